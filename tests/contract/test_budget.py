"""What an operation may cost: calls of the store, and requests to a Cassandra cluster. The table in docs/store.md.

Counted with nothing else under way: no echo, no timers, no other clients. Concurrent requests share, so under load each
costs less.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from observability.stages import now_us
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.plane import ControlConfig
from planes.goalstate.messages import Applied, ObjectKind, Register
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.ids import bucket_of, number_of, parse
from planes.model.requests import PortCreate, PortUpdate
from planes.store.cassandra.session import READ, SERIAL, WRITE
from planes.store.cassandra.store import CassandraStore
from planes.store.faulty import FaultyStore, script
from planes.store.protocol import Batch, Partition, Store, Values, Write
from planes.store.schema import PORT_STATUS, Table
from planes.store.sqlite.store import SqliteStore
from tests.support.cloud import caller, network_with_subnet

CONDITIONAL = "conditional"
BULK = 96
#: of a port with a host, a device and one group: calls of the store, and requests to Cassandra where they are more
BUDGET: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "create": ({WRITE: 1, CONDITIONAL: 1, READ: 1}, {}),
    "bulk": ({WRITE: 1, CONDITIONAL: 1, READ: 1}, {WRITE: 3}),
    "get": ({READ: 2}, {}),
    "ack": ({WRITE: 1}, {}),
    "acks of a bulk": ({WRITE: 1}, {}),
    "delete": ({READ: 1, WRITE: 1, CONDITIONAL: 1}, {}),
    "ack of a delete": ({WRITE: 2, CONDITIONAL: 1}, {}),
}


class Counting(FaultyStore):
    """Counts calls; nothing fails."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner, script({}))
        self.counts: Counter[str] = Counter()

    async def read(
        self,
        table: Table,
        partition: Values,
        *,
        prefix: Values = (),
        after: Values = (),
        among: Values = (),
        limit: int = 0,
        serial: bool = False,
    ) -> Partition:
        self.counts[SERIAL if serial and table.guard else READ] += 1
        return await super().read(table, partition, prefix=prefix, after=after, among=among, limit=limit, serial=serial)

    async def row(self, table: Table, partition: Values, key: Values) -> Values | None:
        self.counts[READ] += 1
        return await super().row(table, partition, key)

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        self.counts[CONDITIONAL] += not before  # after its writes it comes again, alone
        return await super().commit(batch, before)

    async def write(self, writes: Sequence[Write]) -> None:
        self.counts[WRITE] += bool(writes)
        await super().write(writes)


class Rig:
    """A cloud that does nothing by itself, and what is counted there."""

    def __init__(self, cloud: Cloud, counts: Counter[str], real: bool) -> None:
        self.cloud = cloud
        self._counts = counts
        self.real = real

    def taken(self) -> dict[str, int]:
        """What was counted since the last time."""
        found = {name: count for name, count in self._counts.items() if count}
        self._counts.clear()
        return found


@pytest.fixture(params=["calls", pytest.param("requests", marks=pytest.mark.server)])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    store: Store
    if request.param == "calls":
        store = counting = Counting(SqliteStore(tmp_path / "store.db"))
        counts = counting.counts
        await store.open()
    else:
        store = real = CassandraStore(request.getfixturevalue("cassandra").url("budget"))
        await store.open()
        counts = real.session.counts
    bus = MemoryBus(MemoryBroker(), "control")
    await bus.connect()
    ticks = count(now_us())  # all within a moment, however slow the machine is
    cloud = build(store, bus, ControlConfig(), ManagementConfig(), now=lambda: next(ticks))
    yield Rig(cloud, counts, request.param == "requests")
    await cloud.plane.partitions.idle()
    await bus.close()
    await store.close()


async def test_no_operation_costs_more_than_its_budget(rig: Rig) -> None:
    cloud = rig.cloud
    network, _ = await network_with_subnet(cloud)
    wanted = PortCreate(network_id=network.id, host_id="h1", device_id="vm")
    await cloud.plane.hosts.register(Register("h1", "machine", bytes((192, 0, 2, 1))))
    await cloud.ports.create(caller(), [wanted])
    seen: dict[str, dict[str, int]] = {}
    rig.taken()
    (port,) = await cloud.ports.create(caller(), [wanted])
    seen["create"] = rig.taken()
    await cloud.ports.get(caller(), port.id)
    seen["get"] = rig.taken()
    await cloud.plane.acks.store("h1", [applied(port.id, port.revision_number)])
    seen["ack"] = rig.taken()
    views = await cloud.ports.create(caller(), [wanted] * BULK)
    seen["bulk"] = rig.taken()
    await cloud.plane.acks.store("h1", [applied(view.id, view.revision_number) for view in views])
    seen["acks of a bulk"] = rig.taken()
    await cloud.ports.delete(caller(), port.id, None)
    seen["delete"] = rig.taken()
    gone = await cloud.plane.ground.port(parse(port.id), fresh=True)
    assert gone is not None
    rig.taken()
    await cloud.plane.acks.store("h1", [applied(port.id, gone.goal_rev)])
    seen["ack of a delete"] = rig.taken()
    for name, (calls, requests) in BUDGET.items():
        assert seen[name] == (calls | requests if rig.real else calls), name


async def test_what_hosts_said_of_a_port_goes_when_they_let_go_of_it(rig: Rig) -> None:
    """In whatever order acks arrive, also one that comes after all."""
    cloud, store = rig.cloud, rig.cloud.plane.store
    network, _ = await network_with_subnet(cloud)
    for host in ("h1", "h2"):
        await cloud.plane.hosts.register(Register(host, f"machine {host}", bytes((192, 0, 2, int(host[1])))))
    (port,) = await cloud.ports.create(caller(), [PortCreate(network_id=network.id, host_id="h1")])
    id_ = parse(port.id)
    where = (number_of(id_), bucket_of(id_))

    async def said() -> list[str]:
        return [str(row[1]) for row in (await store.read(PORT_STATUS, where)).rows if row[0] == id_]

    async def ack(host: str) -> int:
        row = await cloud.plane.ground.port(id_, fresh=True)
        assert row is not None
        await cloud.plane.acks.store(host, [applied(port.id, row.goal_rev)])
        return row.goal_rev

    await ack("h1")
    assert await said() == ["h1"]
    await cloud.ports.update(caller(), port.id, PortUpdate(host_id="h2"), None)
    await ack("h1")
    assert await said() == []
    await ack("h2")
    assert await said() == ["h2"]
    assert (await cloud.ports.get(caller(), port.id)).status == "ACTIVE"
    await cloud.ports.delete(caller(), port.id, None)
    last = await ack("h2")
    assert await said() == []
    await cloud.plane.acks.store("h2", [applied(port.id, last)])
    assert await said() == []


def applied(id_: str, rev: int) -> Applied:
    return Applied(ObjectKind.PORT, b"", parse(id_), rev)
