"""Numbers of hosts: each its own, kept for ever, and as cheap for the ten thousandth as for the first."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from observability.stages import now_us
from planes.store import slots
from planes.store.faulty import Call, Fault, FaultyStore
from planes.store.partitions import Partitions
from planes.store.slots import Slots
from planes.store.sqlite.store import SqliteStore

BLOCK = 8
HOSTS = [b"host-%d" % number for number in range(3 * BLOCK)]


class Rig(FaultyStore):
    """Counts what is asked of the store."""

    def __init__(self, inner: SqliteStore) -> None:
        self.calls = 0
        super().__init__(inner, self._count)

    def _count(self, _: Call) -> Fault:
        self.calls += 1
        return Fault.NONE


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(slots, "BLOCK", BLOCK)
    rig = Rig(SqliteStore(tmp_path / "s.db"))
    await rig.open()
    yield rig
    await rig.close()


async def test_every_host_has_a_number_of_its_own_and_keeps_it(store: Rig) -> None:
    here = Slots(Partitions(store, now_us))
    given = await asyncio.gather(*(here.claim_host_number(host) for host in HOSTS))
    assert sorted(given) == list(range(1, len(HOSTS) + 1))
    assert [await here.claim_host_number(host) for host in HOSTS] == given
    elsewhere = Slots(Partitions(store, now_us))
    assert [await elsewhere.claim_host_number(host) for host in HOSTS] == given
    assert await elsewhere.claim_host_number(b"late") == len(HOSTS) + 1
    assert await here.claim_host_number(b"later") == len(HOSTS) + 2  # what it remembers is old


async def test_full_blocks_cost_nothing(store: Rig) -> None:
    here = Slots(Partitions(store, now_us))
    costs = []
    for host in HOSTS:
        before = store.calls
        await here.claim_host_number(host)
        costs.append(store.calls - before)
    assert costs[BLOCK - 2] == costs[-2] == 1  # one conditional batch, in the first block as in the last
