"""A whole cloud from one store into another, any to any; cut off, repeated, refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import cli
from planes.control.plane import ControlConfig
from planes.management.context import ManagementConfig
from planes.model.errors import Conflict
from planes.model.requests import PortCreate
from planes.model.resources import Host, encode
from planes.store.cassandra.store import CassandraStore
from planes.store.copy import Copy, quiet
from planes.store.faulty import Fault, FaultyStore, Killed, script
from planes.store.protocol import Batch, Store, Values, Write
from planes.store.schema import BY_HOST, FEED, HOSTS, LEASES, PORT_STATUS, PORTS, ROUTERS, TABLES
from planes.store.sqlite.store import SqliteStore
from tests.support.cloud import caller, network_with_subnet, running
from tests.support.invariants import violations

QUOTAS = ManagementConfig(quotas={"port": 50})
SQLITE, CASSANDRA = "sqlite", "cassandra"
WAYS = [
    (SQLITE, SQLITE),
    *(pytest.param(w, marks=pytest.mark.server) for w in ((SQLITE, CASSANDRA), (CASSANDRA, SQLITE))),
]
_fresh = count(1)


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way))
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    def make(kind: str) -> Store:
        if kind == SQLITE:
            return SqliteStore(tmp_path / f"{next(_fresh)}.db")
        return CassandraStore(request.getfixturevalue("cassandra").url(f"copy{next(_fresh)}"))

    source, target = (make(kind) for kind in request.param)
    await source.open()
    await target.open()
    yield source, target
    await source.close()
    await target.close()


async def fill(store: Store) -> str:
    """A cloud's own rows, and partitions that need several batches and pages; the id of a port."""
    async with running(Path(), store=Lent(store), control=ControlConfig(echo_every=3600), management=QUOTAS) as cloud:
        network, _ = await network_with_subnet(cloud)
        wanted = [PortCreate(network_id=network.id, host_id="h1", device_id="vm") for _ in range(20)]
        views = await cloud.ports.create(caller(), wanted)
        await cloud.ports.delete(caller(), views[0].id, None)
    big: list[Values] = [(11, n.to_bytes(4, "big"), 9, bytes(50)) for n in range(350)]
    assert await store.commit(Batch(ROUTERS, (1,), None, {"top": 900, "state": None}, big))
    await store.write([Write(BY_HOST, ("many",), (n.to_bytes(4, "big"),), (n,), n) for n in range(2500)])
    await store.write([Write(PORT_STATUS, (1, 2), (bytes(16), "h"), (7, 0, b"x"), 7 << 12)])
    assert await store.commit(Batch(HOSTS, ("h9",), None, {"rev": 5, "epoch": 1, "body": encode(Host(9))}))
    return views[1].id


class Lent(FaultyStore):
    """A store that stays open when a cloud on it is closed."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner, script({}))

    async def close(self) -> None:
        pass


async def rows(store: Store) -> dict[tuple[str, Values], object]:
    return {
        (table.name, key): await store.read(table, key) for table in TABLES for key in await store.partitions(table)
    }


def copy(source: Store, target: Store, *, beside: bool = False) -> Copy:
    return Copy(source, target, lambda *_: None, beside=beside)


async def test_all_is_there_and_works_and_a_second_copy_writes_nothing(stores: tuple[Store, Store]) -> None:
    source, target = stores
    port = await fill(source)
    work = copy(source, target)
    await work.run()
    assert await rows(target) == await rows(source)
    assert work.counted["by_host"].rows >= 2500
    again = copy(source, target)
    await again.run()
    assert {name: each.written for name, each in again.counted.items() if each.written} == {}
    async with running(Path(), store=Lent(target), management=QUOTAS) as cloud:
        view = await cloud.ports.get(caller(), port)
        await cloud.ports.create(caller(), [PortCreate(network_id=view.network_id, host_id="h1")])
        await cloud.ports.delete(caller(), port, None)
        assert not [wrong for wrong in await violations(target) if port.replace("-", "") in wrong]
    with pytest.raises(Conflict, match="newer than the source"):
        await copy(source, target, beside=True).run()


async def test_a_copy_that_was_cut_off_anywhere_goes_on(stores: tuple[Store, Store]) -> None:
    source, target = stores
    await fill(source)
    for at in (2, 2, 5, 9):
        with pytest.raises(Killed):
            await copy(source, FaultyStore(target, script({at: Fault.KILL_AFTER}))).run()
    await target.write([Write(BY_HOST, ("many",), (b"zz",), (1,), 1)])  # of an earlier copy, gone since
    await copy(source, FaultyStore(target, script({2: Fault.HIDE, 4: Fault.LOSE, 6: Fault.REFUSE}))).run()
    assert await rows(target) == await rows(source)


async def test_a_target_with_other_data_is_refused_unless_told(tmp_path: Path) -> None:
    source, target = SqliteStore(tmp_path / "a.db"), SqliteStore(tmp_path / "b.db")
    await source.open()
    await target.open()
    await fill(source)
    await target.commit(Batch(PORTS, (77, 0), None, {"top": 1}))
    with pytest.raises(Conflict, match=r"other data: ports \(77, 0\)"):
        await copy(source, target).run()
    assert not (await target.read(HOSTS, ("h9",))).exists
    await copy(source, target, beside=True).run()
    assert (await target.read(PORTS, (77, 0))).exists
    await target.write([Write(FEED, (1, 1), (60_000_000, b"x"), (1, b""), 60_000_000)])
    await copy(source, target, beside=True).run()
    await source.close()
    await target.close()


async def test_a_store_in_use_is_refused_and_one_that_was_is_waited_for(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db")
    await store.open()
    said: list[str] = []
    now = await store.now()
    await store.commit(Batch(LEASES, ("feed/1",), None, {"until": now + 300_000, "owner": "c1", "done": 0}))
    await quiet(store, "source", said.append)
    assert "waiting 1 s" in said[0]
    now = await store.now()
    at = (await store.read(LEASES, ("feed/1",))).statics[0]
    assert isinstance(at, int)
    await store.commit(Batch(LEASES, ("feed/1",), at, {"until": now + 400_000, "owner": "c1", "done": 0}))
    asked = asyncio.create_task(quiet(store, "source", said.append))
    await asyncio.sleep(0.1)
    await store.commit(Batch(LEASES, ("feed/1",), now + 400_000, {"until": now + 900_000, "owner": "c1", "done": 0}))
    with pytest.raises(Conflict, match="Instance c1 works on the source"):
        await asked
    await store.close()


def test_the_command_copies_and_says_what_is_wrong_with_its_urls(tmp_path: Path) -> None:
    one, other = f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b.db'}"

    def run(*args: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli, ["store", *args])
        return result.exit_code, result.stdout, str(result.exception or "")

    assert "There is no store" in run("copy", "--from", one, "--to", other)[2]
    assert run("init", "--store", one)[0] == 0
    assert "the same store" in run("copy", "--from", one, "--to", one)[2]
    code, out, _ = run("copy", "--from", one, "--to", other, "--json")
    assert code == 0
    assert json.loads(out[out.index("{") :])["ports"] == {"partitions": 0, "rows": 0, "written": 0}
    code, out, _ = run("check", "--store", other)
    assert code == 0
    assert "0 found" in out
