"""The Cassandra store under the management plane, on a node of its own, beside what the node can do at all.

Run by `make bench ARGS=cassandra`. The baselines are single-row INSERTs and SELECTs by prepared statements of the same
session, measured just before; SQLite stands beside. ALCOR_BENCH_PORTS says how many ports the lists
have (20 000 by default; a million takes a quarter of an hour).
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path

import uvloop
from msgspec import Struct

from bench.machine import Meter, cpu_us
from bench.report import Figure, at_least, at_most
from observability.memory import settle
from observability.stages import Change
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.plane import ControlConfig
from planes.management.caller import Caller
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.query import Query
from planes.model.requests import FixedIp, NetworkCreate, PortCreate, SubnetCreate
from planes.store.cassandra.session import READ, WRITE, CassandraSession
from planes.store.cassandra.store import CassandraStore
from planes.store.protocol import Store
from planes.store.sqlite.store import SqliteStore
from tests.support.cassandra import CassandraServer

CLIENTS, BULKS = 64, 16
SECONDS = 3.0
#: each figure and what it is compared with, by turns
PAIRS = 3
#: seconds in which the second looks at what was created come to an end
QUIET = 30.0
KEYSPACE = "bench"
BODY = bytes(400)
Step = Callable[[int], Awaitable[object]]


class Rate(Struct, frozen=True):
    """`cpu`: µs of this process and of the server for each."""

    per_second: float
    cpu: dict[str, float]

    def __str__(self) -> str:
        return ", ".join(f"{name} {us:.0f} µs" for name, us in self.cpu.items()) + " CPU each"


class Rig:
    """One store with a cloud on it, and what is measured there."""

    def __init__(self, store: Store, pids: dict[str, int]) -> None:
        self.store = store
        self._pids = pids
        self._names: Iterator[int] = count()
        self.cloud: Cloud

    async def start(self) -> None:
        await self.store.open()
        bus = MemoryBus(MemoryBroker(), "bench")
        await bus.connect()
        self.cloud = build(self.store, bus, ControlConfig(), ManagementConfig())
        await self.cloud.start()

    async def stop(self) -> None:
        await self.cloud.stop()
        await self.store.close()

    async def rate(self, clients: int, one: Step, each: int = 1, seconds: float = SECONDS) -> Rate:
        """How often `one` runs in a second, by so many at a time; it counts for `each`."""
        done = 0
        before = {name: cpu_us(pid) for name, pid in self._pids.items()}
        begun = time.perf_counter()

        async def client(number: int) -> None:
            nonlocal done
            while time.perf_counter() < begun + seconds:
                await one(number)
                done += each

        await asyncio.gather(*(client(number) for number in range(clients)))
        took = time.perf_counter() - begun
        return Rate(done / took, {name: (cpu_us(pid) - before[name]) / done for name, pid in self._pids.items()})

    async def network(self, cidr: str = "10.0.0.0/10") -> tuple[str, str]:
        """A new network and its subnet."""
        (network,) = await self.cloud.networks.create(caller(), [NetworkCreate(name=f"n{next(self._names)}")])
        (subnet,) = await self.cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr=cidr)])
        return network.id, subnet.id

    async def creates(self, networks: list[tuple[str, str]], made: list[str]) -> Step:
        async def create(number: int) -> None:
            made.append((await self.cloud.ports.create(caller(), [wanted(networks[number % len(networks)])]))[0].id)

        return create

    async def bulk(self, network: tuple[str, str], size: int = 100) -> Step:
        async def create(_: int) -> None:
            await self.cloud.ports.create(caller(), [wanted(network)] * size)

        return create


class Load(Struct, frozen=True):
    """What so many clients do; each time counts for `each`."""

    clients: int
    step: Step
    each: int = 1


class Table:
    """Figures beside what they are compared with, which is measured by turns with them."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self._told: set[str] = set()

    async def rate(self, rig: Rig, what: str, load: Load, name: str, base: Load, least: float) -> None:
        """How often in a second; the ratio is the median of the pairs."""
        meter = Meter({})
        ours, theirs, ratio = await self._pairs(rig, load, base, lambda mine, other: mine.per_second / other.per_second)
        if name not in self._told:
            self._told.add(name)
            clients = f"{name}, {base.clients} clients"
            self.figures.append(Figure(clients, round(theirs.per_second), "/s", str(theirs), meter.steal()))
        budget = at_least(least, ratio=True)
        figure = Figure(what, round(ours.per_second), "/s", str(ours), meter.steal(), name, round(ratio, 2), budget)
        self.figures.append(figure)

    async def latency(self, rig: Rig, what: str, step: Step, name: str, base: Step, most: float) -> None:
        """How many of the other take as long, one client at a time; the median of the pairs."""
        meter, load, other = Meter({}), Load(1, step), Load(1, base)
        ours, theirs, ratio = await self._pairs(rig, load, other, lambda mine, its: its.per_second / mine.per_second)
        note = f"{1000 / ours.per_second:.1f} ms; one {1000 / theirs.per_second:.2f} ms; {ours}"
        self.figures.append(Figure(what, round(ratio, 1), name, note, meter.steal(), budget=at_most(most)))

    async def _pairs(
        self, rig: Rig, load: Load, base: Load, ratio: Callable[[Rate, Rate], float]
    ) -> tuple[Rate, Rate, float]:
        """The pair of which the ratio is the median."""
        pairs = []
        for _ in range(PAIRS):
            other = await rig.rate(base.clients, base.step, base.each)
            pairs.append((await rig.rate(load.clients, load.step, load.each), other))
        ours, theirs = sorted(pairs, key=lambda pair: ratio(*pair))[PAIRS // 2]
        return ours, theirs, ratio(ours, theirs)


def caller() -> Caller:
    return Caller("bench", False, Change("bench"))


def wanted(network: tuple[str, str]) -> PortCreate:
    return PortCreate(network_id=network[0], fixed_ips=(FixedIp(subnet_id=network[1]),))


async def baseline(session: CassandraSession) -> tuple[Step, Step, Step]:
    """INSERT and SELECT of one row, SELECT of 100 rows of one partition."""
    table = f"{KEYSPACE}.rows"
    await session.execute(f"CREATE TABLE IF NOT EXISTS {table} (k bigint, c bigint, v blob, PRIMARY KEY (k, c))")
    put = f"INSERT INTO {table} (k, c, v) VALUES (?, ?, ?)"
    for n in range(100):
        await session.once(WRITE, [(put, (-1, n, BODY))])
    keys = count()

    async def insert(_: int) -> None:
        await session.once(WRITE, [(put, (next(keys), 0, BODY))])

    async def select(_: int) -> None:
        await session.page(READ, (f"SELECT v FROM {table} WHERE k = ? AND c = ?", (-1, next(keys) % 100)), None)

    async def hundred(_: int) -> None:
        await session.page(READ, (f"SELECT c, v FROM {table} WHERE k = ?", (-1,)), None)

    return insert, select, hundred


async def on_cassandra(url: str, pid: int) -> list[Figure]:
    store = CassandraStore(url)
    rig = Rig(store, {"client": os.getpid(), "server": pid})
    await rig.start()
    table = Table()
    try:
        insert, select, hundred = await baseline(store.session)
        one, many = await rig.network(), [await rig.network() for _ in range(CLIENTS)]
        made: list[str] = []
        same, spread = await rig.creates([one], made), await rig.creates(many, made)
        bulk = await rig.bulk(one)

        async def get(number: int) -> None:
            await rig.cloud.ports.get(caller(), made[number])

        async def page(_: int) -> None:
            assert (await rig.cloud.ports.list(caller(), Query(limit=1000))).more

        for step in (insert, select, same, spread, insert, get, same):  # the server compiles what it does often
            await rig.rate(CLIENTS, step)
        await rig.rate(BULKS, bulk, 100)
        await rig.rate(1, same, seconds=2 * SECONDS)
        await asyncio.sleep(QUIET)
        settle()  # as a real process does when it begins to serve
        inserts, selects = Load(CLIENTS, insert), Load(CLIENTS, select)
        await table.rate(rig, "get by id, 64 clients", Load(CLIENTS, get), "SELECT of a row", selects, 0.6)
        await table.rate(rig, "create, 64 clients, one subnet", Load(CLIENTS, same), "INSERT of a row", inserts, 0.3)
        await asyncio.sleep(QUIET)
        apart = Load(CLIENTS, spread)
        await table.rate(rig, "create in one subnet", Load(CLIENTS, same), "create in 64 subnets", apart, 0.5)
        await asyncio.sleep(QUIET)
        await table.rate(rig, "ports in bulks of 100", Load(BULKS, bulk, 100), "INSERT of a row", inserts, 1.0)
        await asyncio.sleep(QUIET)
        await table.latency(rig, "create alone", same, "INSERTs", insert, 6)
        ports = int(os.environ.get("ALCOR_BENCH_PORTS", "20000"))
        while len(made) < ports // 2:  # of many networks by turns; the others are of one
            await rig.rate(CLIENTS, spread)
        await asyncio.sleep(QUIET)
        await table.latency(rig, "list of 1 000", page, "SELECTs of 100", hundred, 10)
    finally:
        await rig.stop()
    return table.figures


async def on_sqlite(path: Path) -> list[Figure]:
    rig = Rig(SqliteStore(path), {"client": os.getpid()})
    await rig.start()
    try:
        one = await rig.network()
        rate = await rig.rate(CLIENTS, await rig.creates([one], []))
        bulks = await rig.rate(4, await rig.bulk(one), 100)
    finally:
        await rig.stop()
    return [
        Figure("SQLite: create, 64 clients, one subnet", round(rate.per_second), "/s", str(rate)),
        Figure("SQLite: ports in bulks of 100", round(bulks.per_second), "/s", str(bulks)),
    ]


def cassandra() -> list[Figure]:
    """Creates, bulks, reads and lists on a Cassandra node, beside INSERTs and SELECTs of its own."""
    with CassandraServer(heap="1G") as server, tempfile.TemporaryDirectory(prefix="alcor-bench-") as directory:
        figures = uvloop.run(on_cassandra(server.url(KEYSPACE), server.pid))
        return figures + uvloop.run(on_sqlite(Path(directory) / "bench.db"))
