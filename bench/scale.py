"""Whether a create costs the same in a small cloud and in a large one: CPU of management, control and store per port.

In process, without HTTP and without agents. The cases are measured by turns, so that whatever else the machine does
meets all alike. The echo is a part of a create's cost that comes later: here the clock jumps, so that it comes at once
and is counted by itself, to the case whose ports it looks at.
"""

import asyncio
import gc
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from bench.machine import Meter
from bench.report import Figure, at_most
from bench.swarm import each
from observability.stages import Change, now_us
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.plane import ControlConfig
from planes.management.caller import Caller
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.requests import NetworkCreate, PortCreate, SubnetCreate
from planes.store.sqlite.store import SqliteStore

CLIENTS = 64
BULK = 100
#: ports of one case: four buckets, so that filling one up is a part of every figure alike
ROUNDS, PORTS = 8, 512
NETWORKS = 10_000
#: seconds; the clock jumps over it, and the plane's own timer never comes
ECHO_AFTER, NEVER = 60.0, 86_400.0
SAME = at_most(1.15, ratio=True)


class Case(Struct):
    """One size of a cloud. `like`: the case that it is compared with. µs of CPU add up."""

    what: str
    network: str
    host: str = ""
    like: "Case | None" = None
    create: float = 0.0
    echo: float = 0.0


class Clock:
    """The machine's, with jumps."""

    def __init__(self) -> None:
        self.jumped = 0

    def now(self) -> int:
        return now_us() + self.jumped

    def jump(self, seconds: float) -> None:
        self.jumped += int(seconds * 1e6)


def scale() -> list[Figure]:
    """CPU of a create, and of its echo, by the size of its network, of its host, and of the cloud."""
    with tempfile.TemporaryDirectory(prefix="alcor-bench-") as directory:
        return asyncio.run(_run(Path(directory)))


async def _run(directory: Path) -> list[Figure]:
    clock = Clock()
    store, bus = SqliteStore(directory / "store.db", clock.now), MemoryBus(MemoryBroker(), "bench")
    await store.open()
    await bus.connect()
    config = ControlConfig(echo_after=ECHO_AFTER, echo_every=NEVER)
    cloud = build(store, bus, config, ManagementConfig(), now=clock.now)
    await cloud.start()
    try:
        bench, machine = _Bench(cloud, clock), Meter({})
        cases = [*await bench.networks(), *await bench.hosts()]
        few = Case("among 10 networks", await bench.network())
        await bench.turns([Case("", few.network)], 1)  # warm
        await bench.turns([*cases, few])
        await each(range(NETWORKS), lambda _: bench.network(), CLIENTS)
        await bench.echo()
        # The same network again, now one of many; the machine may have changed meanwhile: a case of before tells how.
        many, again = Case("among 10,000 networks", few.network, like=few), Case("", cases[0].network)
        await bench.turns([many, again])
        many.create *= cases[0].create / again.create
        many.echo *= cases[0].echo / again.echo
        return _figures([*cases, few, many], machine.steal())
    finally:
        await cloud.stop()
        await bus.close()
        await store.close()


class _Bench:
    """Fills a cloud and measures in it."""

    def __init__(self, cloud: Cloud, clock: Clock) -> None:
        self._cloud, self._clock = cloud, clock

    async def networks(self) -> list[Case]:
        small = Case("in a network of 10 ports", await self.filled(10))
        return [small, Case("in a network of 100,000 ports", await self.filled(100_000), like=small)]

    async def hosts(self) -> list[Case]:
        small = Case("on a host of 10 ports", await self.filled(10, "few"), "few")
        return [small, Case("on a host of 1,000 ports", await self.filled(1000, "many"), "many", small)]

    async def network(self) -> str:
        """A network with a subnet of a million addresses."""
        (network,) = await self._cloud.networks.create(_caller(), [NetworkCreate(name="n")])
        await self._cloud.subnets.create(_caller(), [SubnetCreate(network_id=network.id, cidr="10.0.0.0/12")])
        return network.id

    async def filled(self, ports: int, host: str = "") -> str:
        """A network with so many ports, all on one host or none."""
        network = await self.network()
        bulk = min(BULK, ports)
        await each(range(ports // bulk), lambda _: self._create(network, host, bulk), 4)
        await self.echo()
        return network

    async def turns(self, cases: list[Case], rounds: int = ROUNDS) -> None:
        """`PORTS` more ports in each case, one per request, then their echo; so many times."""
        for _ in range(rounds):
            for case in cases:
                gc.collect()
                begun = time.process_time()
                await each([(case.network, case.host)] * PORTS, lambda at: self._create(at[0], at[1], 1), CLIENTS)
                created = time.process_time()
                await self.echo()
                case.create += (created - begun) * 1e6 / PORTS / rounds
                case.echo += (time.process_time() - created) * 1e6 / PORTS / rounds

    async def echo(self) -> None:
        """The second look at all that was done."""
        self._clock.jump(ECHO_AFTER + 1)
        await self._cloud.plane.echo.turn()

    async def _create(self, network: str, host: str, count: int) -> None:
        wanted = [PortCreate(network_id=network, name="p", host_id=host)] * count
        await self._cloud.ports.create(_caller(), wanted)


def _figures(cases: list[Case], steal: float) -> list[Figure]:
    figures = []
    for case in cases:
        for what, cost, base in (
            ("create", case.create, case.like.create if case.like else 0.0),
            ("echo", case.echo, case.like.echo if case.like else 0.0),
        ):
            ratio, baseline = (round(cost / base, 2), case.like.what) if case.like else (None, "")
            limit = SAME if baseline else None
            figures.append(Figure(f"{what} {case.what}", round(cost), "µs CPU", "", steal, baseline, ratio, limit))
    return figures


def _caller() -> Caller:
    return Caller("bench", False, Change("bench"))
