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

from msgspec import Struct

from bench.machine import Meter, cpu_us
from bench.report import Budget, Figure, at_least, at_most
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

CLIENTS, BULKS = 64, 8
SECONDS = 4.0
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
    figures: list[Figure] = []
    meter = Meter({})

    def tell(what: str, rate: Rate, base: Rate, name: str, budget: Budget | None) -> None:
        ratio = round(rate.per_second / base.per_second, 2)
        figures.append(Figure(what, round(rate.per_second), "/s", str(rate), meter.steal(), name, ratio, budget))

    try:
        insert, select, hundred = await baseline(store.session)
        one, many = await rig.network(), [await rig.network() for _ in range(CLIENTS)]
        made: list[str] = []
        same, spread = await rig.creates([one], made), await rig.creates(many, made)
        bulk = await rig.bulk(one)
        for step in (insert, select, same, spread, insert, same):  # the server compiles what it does often
            await rig.rate(CLIENTS, step)
        await rig.rate(BULKS, bulk, 100, 2 * SECONDS)
        await asyncio.sleep(QUIET)
        inserts, selects = await rig.rate(CLIENTS, insert), await rig.rate(CLIENTS, select)
        figures.append(Figure("INSERT of a row, 64 clients", round(inserts.per_second), "/s", str(inserts)))
        figures.append(Figure("SELECT of a row, 64 clients", round(selects.per_second), "/s", str(selects)))
        together = await rig.rate(CLIENTS, same)
        apart = await rig.rate(CLIENTS, spread)
        tell("create, 64 clients, one subnet", together, inserts, "INSERTs", at_least(0.30, ratio=True))
        tell("create, 64 clients, 64 subnets", apart, inserts, "INSERTs", None)
        tell("create in one subnet", together, apart, "in 64 subnets", at_least(0.5, ratio=True))
        await asyncio.sleep(QUIET)
        inserts = await rig.rate(CLIENTS, insert)  # again: the server is warmer, or the machine busier
        bulks = await rig.rate(BULKS, bulk, 100)
        tell("ports in bulks of 100", bulks, inserts, "INSERTs", at_least(1.0, ratio=True))

        async def get(number: int) -> None:
            await rig.cloud.ports.get(caller(), made[number])

        tell("get by id, 64 clients", await rig.rate(CLIENTS, get), selects, "SELECTs", at_least(0.6, ratio=True))
        await asyncio.sleep(QUIET)
        alone, row = await rig.rate(1, same), await rig.rate(1, insert)
        slow = Rate(row.per_second / alone.per_second, alone.cpu)
        note = f"{1000 / alone.per_second:.1f} ms; INSERT {1000 / row.per_second:.1f} ms; {alone}"
        figures.append(
            Figure("create alone", round(slow.per_second, 1), "INSERTs", note, meter.steal(), budget=at_most(6))
        )
        ports = int(os.environ.get("ALCOR_BENCH_PORTS", "20000"))
        while len(made) + bulks.per_second * SECONDS < ports:
            await rig.rate(BULKS, bulk, 100)
            ports -= int(bulks.per_second * SECONDS)

        async def page(_: int) -> None:
            assert (await rig.cloud.ports.list(caller(), Query(limit=1000))).more

        lists, rows = await rig.rate(1, page), await rig.rate(1, hundred)
        slow = Rate(rows.per_second / lists.per_second, lists.cpu)
        note = f"{1000 / lists.per_second:.0f} ms; {lists}"
        figures.append(
            Figure(
                "list of 1 000", round(slow.per_second, 1), "SELECTs of 100", note, meter.steal(), budget=at_most(10)
            )
        )
    finally:
        await rig.stop()
    return figures


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
        figures = asyncio.run(on_cassandra(server.url(KEYSPACE), server.pid))
        return figures + asyncio.run(on_sqlite(Path(directory) / "bench.db"))
