"""Whether a create costs the same in a small cloud and in a large one: CPU of management, control and store per port.

In process, without HTTP and without agents. The cases are measured by turns, there and back, so that whatever else the
machine does meets all alike; a ratio is the median of those of single turns, one right after the other. The number of
networks is what distinguishes two clouds, which stand side by side. The echo is a part of a create's cost that comes
later: here the clock jumps, so that it comes at once and is counted by itself, to the case whose ports it looks at.
"""

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from msgspec import Struct, field

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
#: ports of one case: eight buckets, so that filling one up is a part of every figure alike
ROUNDS, PORTS = 16, 512
NETWORKS = 10_000
#: seconds; the clock jumps over it, and the plane's own timer never comes
ECHO_AFTER, NEVER = 60.0, 86_400.0
SAME = at_most(1.15, ratio=True)


class Case(Struct):
    """One size of a cloud. `like`: the case that it is compared with. µs of CPU per port, by turn."""

    what: str
    bench: "_Bench"
    network: str
    host: str = ""
    like: "Case | None" = None
    create: list[float] = field(default_factory=list)
    echo: list[float] = field(default_factory=list)


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
    async with _cloud(directory / "few.db") as few, _cloud(directory / "many.db") as many:
        machine = Meter({})
        cases = [*await few.networks(), *await few.hosts()]
        await _turns(cases, 1)  # warm
        await _turns(cases)
        small = Case("among 10 networks", few, await few.network())
        large = Case("among 10,000 networks", many, await many.network(), like=small)
        await each(range(NETWORKS), lambda _: many.network(), CLIENTS)
        await many.echo()
        await _turns([small, large], 1)
        await _turns([small, large])
        return _figures([*cases, small, large], machine.steal())


@asynccontextmanager
async def _cloud(path: Path) -> AsyncIterator["_Bench"]:
    clock = Clock()
    store, bus = SqliteStore(path, clock.now), MemoryBus(MemoryBroker(), "bench")
    await store.open()
    await bus.connect()
    config = ControlConfig(echo_after=ECHO_AFTER, echo_every=NEVER)
    cloud = build(store, bus, config, ManagementConfig(), now=clock.now)
    await cloud.start()
    try:
        yield _Bench(cloud, clock)
    finally:
        await cloud.stop()
        await bus.close()
        await store.close()


class _Bench:
    """Fills a cloud and measures in it."""

    def __init__(self, cloud: Cloud, clock: Clock) -> None:
        self._cloud, self._clock = cloud, clock

    async def networks(self) -> list[Case]:
        small = Case("in a network of 10 ports", self, await self.filled(10))
        return [small, Case("in a network of 100,000 ports", self, await self.filled(100_000), like=small)]

    async def hosts(self) -> list[Case]:
        small = Case("on a host of 10 ports", self, await self.filled(10, "few"), "few")
        return [small, Case("on a host of 1,000 ports", self, await self.filled(1000, "many"), "many", small)]

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

    async def turn(self, case: Case) -> tuple[float, float]:
        """`PORTS` more ports, one per request, then their echo: µs of CPU for each."""
        gc.collect()
        begun = time.process_time()
        await each([(case.network, case.host)] * PORTS, lambda at: self._create(at[0], at[1], 1), CLIENTS)
        created = time.process_time()
        await self.echo()
        return (created - begun) * 1e6 / PORTS, (time.process_time() - created) * 1e6 / PORTS

    async def echo(self) -> None:
        """The second look at all that was done."""
        self._clock.jump(ECHO_AFTER + 1)
        await self._cloud.plane.echo.turn()

    async def _create(self, network: str, host: str, count: int) -> None:
        wanted = [PortCreate(network_id=network, name="p", host_id=host)] * count
        await self._cloud.ports.create(_caller(), wanted)


async def _turns(cases: list[Case], rounds: int = ROUNDS) -> None:
    """Each case in turn, so many times; what was found before is forgotten."""
    for case in cases:
        case.create.clear()
        case.echo.clear()
    for number in range(rounds):
        for case in cases if number % 2 else cases[::-1]:
            create, echo = await case.bench.turn(case)
            case.create.append(create)
            case.echo.append(echo)


def _figures(cases: list[Case], steal: float) -> list[Figure]:
    figures = []
    for case in cases:
        for what, costs, base in (
            ("create", case.create, case.like.create if case.like else []),
            ("echo", case.echo, case.like.echo if case.like else []),
        ):
            ratio = round(median(own / other for own, other in zip(costs, base, strict=True)), 2) if base else None
            baseline, limit = (case.like.what, SAME) if case.like else ("", None)
            figures.append(
                Figure(f"{what} {case.what}", round(median(costs)), "µs CPU", "", steal, baseline, ratio, limit)
            )
    return figures


def _caller() -> Caller:
    return Caller("bench", False, Change("bench"))
