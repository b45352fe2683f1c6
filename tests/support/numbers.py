"""Two instances on one store, a network and security groups, to give numbers to sets of groups and take them away.

On virtual time; nothing happens in either by itself, so weeks pass at once. Used by tests of rule I2.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.bus.protocol import Incoming
from planes.control.plane import ControlConfig
from planes.goalstate import codec
from planes.goalstate.messages import Goal, ObjectKind
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.management.port_plans import identity_key
from planes.model import resources
from planes.model.enums import Kind
from planes.model.ids import Id, bucket_of, number_of, parse, text
from planes.model.requests import FixedIp, GroupCreate, NetworkCreate, PortCreate, PortUpdate, SubnetCreate
from planes.model.resources import Port
from planes.model.views import PortView
from planes.store.protocol import Batch, Store, Write
from planes.store.schema import NETWORKS, PORTS
from planes.store.sqlite.store import SqliteStore
from planes.store.views import View
from tests.support.clock import now_us, run
from tests.support.cloud import caller
from tests.support.invariants import violations
from tests.support.steady import SteadyStore

DAY = 86_400.0


class Door:
    """The store as one instance sees it; its batches of a table wait here, in `waits`, until they may `go`."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.holds = ""
        self.waits, self.go = asyncio.Event(), asyncio.Event()
        #: seconds that a batch is on its way there
        self.slow: Callable[[], float] = lambda: 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, batch: Batch, before: tuple[Write, ...] = ()) -> bool:
        if batch.table.name == self.holds:
            self.waits.set()
            await self.go.wait()
        if seconds := self.slow():
            await asyncio.sleep(seconds)
        done: bool = await cast(Store, self._inner).commit(batch, before)
        return done

    def hold(self, table: str) -> None:
        self.holds = table
        self.waits.clear()
        self.go.clear()

    def let(self) -> None:
        self.holds = ""
        self.go.set()


class Two:
    """Two instances that nothing happens in by itself, a network, and security groups a, b, c, …"""

    def __init__(self, store: SteadyStore) -> None:
        self.store = store
        self.doors = [Door(store) for _ in range(2)]
        self.broker = MemoryBroker()
        self.clouds: list[Cloud] = []
        self.network, self.number = "", 0
        self.groups: dict[str, Id] = {}
        self.told: list[object] = []
        self.spare: PortView

    async def start(self, count: int) -> None:
        management = ManagementConfig(instance_spread=False)
        for n, door in enumerate(self.doors):
            bus = MemoryBus(self.broker, f"c{n}")
            await bus.connect()
            self.clouds.append(build(cast(Store, door), bus, ControlConfig(), management, now=now_us))
        (made,) = await self.clouds[0].networks.create(caller(), [NetworkCreate()])
        self.network, self.number = made.id, number_of(parse(made.id))
        await self.clouds[0].subnets.create(caller(), [SubnetCreate(network_id=made.id, cidr="10.0.0.0/16")])
        for name in "abcdefghijklmnop"[:count]:
            (group,) = await self.clouds[0].groups.create(caller(), [GroupCreate(name=name)])
            self.groups[name] = parse(group.id)
        plane = self.clouds[1].plane

        def heard(message: Incoming) -> None:
            items = codec.decode(message.data, Goal)[1].objects
            self.told += [item for item in items if item.key[0] == ObjectKind.IDENTITY]

        await plane.bus.subscribe(plane.subjects.network(parse(made.id)), heard)

    async def stop(self) -> None:
        for cloud in self.clouds:
            await cloud.plane.partitions.idle()
            await cloud.plane.bus.close()
        await self.store.close()

    def wanted(self, names: str, ip: str = "", host: str = "") -> PortCreate:
        fixed = {"fixed_ips": (FixedIp(ip_address=ip),)} if ip else {}
        return PortCreate(network_id=self.network, host_id=host, security_groups=self.ids(names), **fixed)  # type: ignore[arg-type]

    def ids(self, names: str) -> tuple[str, ...]:
        return tuple(text(self.groups[name]) for name in names)

    async def port(self, names: str, by: int = 0, ip: str = "") -> PortView:
        """A port with these groups."""
        (made,) = await self.clouds[by].ports.create(caller(), [self.wanted(names, ip)])
        return made

    async def wear(self, port: PortView, names: str, by: int = 0) -> None:
        wanted = PortUpdate(security_groups=self.ids(names))
        await self.clouds[by].ports.update(caller(), port.id, wanted, None)

    async def drop(self, port: PortView, by: int = 0) -> None:
        await self.clouds[by].ports.delete(caller(), port.id, None)

    async def spend(self, names: str) -> None:
        """Each of these groups gets a number, and then has no port."""
        for name in names:
            await self.drop(await self.port(name))

    async def check(self, by: int = 0) -> None:
        """What happens once a day."""
        report = await self.clouds[by].plane.check.run(fix=True)
        assert [finding.rule for finding in report.left] == []

    async def look(self, by: int = 0) -> None:
        """The part of it that is about numbers."""
        await self.clouds[by].plane.check._numbers.tend(self.number, lambda: asyncio.sleep(0))

    async def rested(self, by: int = 0) -> None:
        """Whatever no port has has rested, and is free."""
        await self.look(by)
        await asyncio.sleep(7 * DAY)
        await self.look(by)

    async def row(self, names: str) -> resources.Identity | None:
        view = View(NETWORKS, await self.store.read(NETWORKS, (self.number,)))
        row: resources.Identity | None = view.get(Kind.IDENTITY, self.key(names))
        return row

    def key(self, names: str) -> bytes:
        return identity_key(tuple(sorted(self.groups[name] for name in names)))

    async def state(self, names: str) -> int:
        row = await self.row(names)
        assert row is not None
        return row.state

    async def of(self, port: PortView) -> int:
        """The number that a port has in the store."""
        id_ = parse(port.id)
        view = View(PORTS, await self.store.read(PORTS, (self.number, bucket_of(id_))))
        row: Port = view.get(Kind.PORT, id_)
        return row.identity

    async def right(self) -> None:
        """Each port has its set's number, and no number is of two sets."""
        wrong = await violations(cast(Store, self.store))
        assert not wrong, wrong


Story = Callable[[Two], Awaitable[None]]


def play(path: Path, story: Story, count: int = 6, seed: int = 1) -> None:
    @asynccontextmanager
    async def made() -> AsyncIterator[Two]:
        two = Two(SteadyStore(SqliteStore(path / "store.db"), random.Random(seed)))
        await two.store.open()
        await two.start(count)
        try:
            yield two
        finally:
            for door in two.doors:
                door.let()
            await two.stop()

    async def main() -> None:
        async with made() as two:
            await story(two)
            await two.right()

    run(main())
