"""Any requests of two API instances on a real Cassandra, in any order and at once: what was answered is so afterwards.

Each instance has a store of its own; statements overtake each other on their way to the server as chance decides.
"""

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planes.management.cloud import Cloud
from planes.model.errors import Conflict, NotFound
from planes.model.query import Query
from planes.model.requests import FixedIp, PortCreate, PortUpdate
from planes.model.views import PortView
from planes.store.cassandra.store import CassandraStore
from tests.property.test_crash import prepared, start
from tests.property.test_crash_cassandra import LATER, MANAGEMENT
from tests.support.cassandra import CassandraServer
from tests.support.cloud import caller
from tests.support.invariants import violations
from tests.support.wire import Wire, instance

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(3600)]

EXAMPLES = 400 if os.environ.get("PROFILE") == "long" else 15
#: fixed addresses and MACs come from a few, so that requests want the same
SCARCE = 4
STEP = st.tuples(
    st.sampled_from(("create", "fixed", "bulk", "move", "group", "delete")), st.integers(0, 1), st.integers(0, 11)
)
#: waves of requests; those of one wave are asked at once
WAVES = st.lists(st.lists(STEP, min_size=1, max_size=6), min_size=2, max_size=5)


class History:
    """What was answered in one network: the last view of each port, and who is gone."""

    def __init__(self, clouds: list[Cloud], ids: dict[str, str]) -> None:
        self._clouds, self._ids = clouds, ids
        self.ports: dict[str, PortView] = {}
        self.gone: set[str] = set()

    async def ask(self, step: tuple[str, int, int]) -> None:
        what, at, n = step
        try:
            await getattr(self, what)(self._clouds[at].ports, n)
        except (Conflict, NotFound):
            if what in ("create", "bulk"):  # there is room for all of them, and nobody takes it away
                raise

    async def create(self, ports: Any, n: int, *fixed: FixedIp, many: int = 1) -> None:
        wanted = PortCreate(network_id=self._ids["network"], device_id=f"d{n}", fixed_ips=fixed)
        for view in await ports.create(caller(), [wanted] * many):
            self.told(view)

    async def fixed(self, ports: Any, n: int) -> None:
        await self.create(ports, n, FixedIp(ip_address=f"10.0.0.{100 + n % SCARCE}"))

    async def bulk(self, ports: Any, n: int) -> None:
        await self.create(ports, n, FixedIp(subnet_id=self._ids["subnet"]), many=2 + n)

    async def move(self, ports: Any, n: int) -> None:
        wanted = (FixedIp(ip_address=f"10.0.0.{100 + n % SCARCE}"), FixedIp(ip_address=f"10.1.0.{100 + n % 3}"))
        self.told(await ports.update(caller(), self.any(n), PortUpdate(fixed_ips=wanted), None))

    async def group(self, ports: Any, n: int) -> None:
        wanted = PortUpdate(security_groups=(self._ids["group"],) if n % 2 else (), device_id=f"d{n}")
        self.told(await ports.update(caller(), self.any(n), wanted, None))

    async def delete(self, ports: Any, n: int) -> None:
        id_ = self.any(n)
        await ports.delete(caller(), id_, None)
        self.gone.add(id_)

    def any(self, n: int) -> str:
        known = sorted(self.ports)
        return known[n % len(known)] if known else self._ids["port"]

    def told(self, view: PortView) -> None:
        """Of two answers about a port, that with the higher revision is the later one."""
        old = self.ports.get(view.id)
        if old is None or old.revision_number < view.revision_number:
            self.ports[view.id] = view

    async def so(self, cloud: Cloud) -> None:
        """Every answer holds, in reads and in lists, and nobody shares an address."""
        query = Query(filters={"network_id": (self._ids["network"],)})
        found = {view.id: view for view in (await cloud.ports.list(caller(), query)).items}
        assert set(found) == set(self.ports) - self.gone | ({self._ids["port"]} - self.gone)
        for id_ in set(found) & set(self.ports):
            mine, theirs = self.ports[id_], found[id_]
            assert (theirs.revision_number, theirs.fixed_ips) == (mine.revision_number, mine.fixed_ips)
            assert (theirs.device_id, theirs.security_groups) == (mine.device_id, mine.security_groups)
            assert await cloud.ports.get(caller(), id_) == theirs
        held = Counter(ip.ip_address for view in found.values() for ip in view.fixed_ips)
        assert [ip for ip, times in held.items() if times > 1] == []
        assert len({view.mac_address for view in found.values()}) == len(found)


async def play(parent: CassandraStore, waves: list[list[tuple[str, int, int]]], seed: int) -> None:
    chance = random.Random(seed)
    clouds = [await start(instance(Wire(parent, chance=chance)), MANAGEMENT) for _ in range(2)]
    history = History(clouds, await prepared(clouds[0]))
    for wave in waves:
        await asyncio.gather(*map(history.ask, wave))
    for cloud in clouds:
        await cloud.plane.partitions.idle()
    await history.so(await start(instance(Wire(parent)), MANAGEMENT))


async def checked(url: str) -> None:
    """What a refused change had claimed is the echo's to free, or the check's; then nothing is wrong."""
    store = CassandraStore(url)
    cloud = await start(store, MANAGEMENT, LATER)
    try:
        report = await cloud.plane.check.run(fix=True, width=16)
        assert [finding.says for finding in report.left] == []
        assert await violations(store) == []
        assert (await cloud.plane.check.run(fix=False, width=16)).found == []
    finally:
        await store.close()


def test_any_requests_of_two_instances_end_as_they_were_answered(
    cassandra: CassandraServer, parent: CassandraStore
) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(waves=WAVES, seed=st.integers(0, 2**16))
    def example(waves: list[list[tuple[str, int, int]]], seed: int) -> None:
        asyncio.run(play(parent, waves, seed))

    example()
    asyncio.run(checked(cassandra.url("property")))
