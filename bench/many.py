"""Whether a port costs the same in a project of a million ports as in one of a thousand, on a Cassandra node.

Both projects are in one store, filled in bulk by the management plane in process, and are measured by turns, so that
whatever else the machine does meets both alike. CPU is that of this process: management, control, adapter and driver;
the server's is in the notes. ALCOR_BENCH_PORTS says how many ports the large project has (50 000 by default; a million
takes about ten minutes on an idle machine).
"""

import asyncio
import gc
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct

from bench.cassandra import baseline
from bench.machine import Meter, cpu_us
from bench.report import Figure, at_most
from bench.swarm import each
from observability.stages import Change
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.plane import ControlConfig
from planes.management.caller import Caller
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.query import Query
from planes.model.requests import NetworkCreate, PortCreate, SubnetCreate
from planes.store.cassandra.store import CassandraStore
from tests.support.cassandra import CassandraServer

SMALL = 1_100
BULK, BULKS, CLIENTS, ROUNDS = 100, 8, 16, 4
#: ports of the host, and of the network, that lists are filtered by
FEW = 100
#: seconds that nothing else than requests runs
NEVER = 86_400.0
SAME = at_most(1.2, ratio=True)
NO_FILTERS: Mapping[str, str] = {}


class Project(Struct):
    """One size. `ids` of the ports of its large network; `cost`: µs of CPU by operation, added up."""

    name: str
    network: str = ""
    few: str = ""
    ids: list[str] = []
    made: list[str] = []
    cost: dict[str, float] = {}
    server: dict[str, float] = {}


Step = Callable[[Project], Awaitable[object]]


def many() -> list[Figure]:
    """CPU of requests in a project of many ports, beside the same in one of a thousand, on a Cassandra node."""
    with CassandraServer(heap="1G") as server:
        return asyncio.run(_run(server))


async def _run(server: CassandraServer) -> list[Figure]:
    ports = int(os.environ.get("ALCOR_BENCH_PORTS", "50000"))
    store, bus = CassandraStore(server.url("bench")), MemoryBus(MemoryBroker(), "bench")
    await store.open()
    await bus.connect()
    cloud = build(store, bus, ControlConfig(echo_every=NEVER), ManagementConfig())
    await cloud.start()
    try:
        bench, small, large = _Bench(cloud, server.pid), Project("small"), Project("large")
        begun = time.perf_counter()
        await bench.fill(small, SMALL)
        await bench.fill(large, ports)
        filled = (SMALL + ports) / (time.perf_counter() - begun)
        meter = Meter({})
        await bench.turn(small, large)  # warm
        for project in (small, large):
            project.cost.clear()
            project.server.clear()
        for _ in range(ROUNDS):
            await bench.turn(small, large)
        steal = meter.steal()
        figures = [Figure(f"fill by bulks of {BULK}", round(filled), "ports/s", f"{ports:,} ports")]
        for what, cost in large.cost.items():
            like = small.cost[what]
            note = f"server {large.server[what] / ROUNDS:.0f} µs, {small.server[what] / ROUNDS:.0f} µs"
            about = f"{what}, among {ports:,}"
            base = f"among {SMALL:,}"
            figures.append(
                Figure(about, round(cost / ROUNDS), "µs CPU", note, steal, base, round(cost / like, 2), SAME)
            )
        return [*figures, await bench.page_beside_selects(large, store)]
    finally:
        await cloud.stop()
        await store.close()


class _Bench:
    """Fills projects and measures in them."""

    def __init__(self, cloud: Cloud, server: int) -> None:
        self._cloud, self._server = cloud, server
        self._rng = random.Random(1)

    async def fill(self, project: Project, ports: int) -> None:
        """A network of so many ports with a name and a device each, another of few, which are on one host."""
        project.network, project.few = await self._network(project), await self._network(project)
        few = [PortCreate(network_id=project.few, host_id=f"host-{project.name}")] * FEW
        await self._cloud.ports.create(_caller(project), few)
        done, told = 0, 0.0

        async def bulk(start: int) -> None:
            nonlocal done, told
            wanted = [
                PortCreate(network_id=project.network, name=f"p{n}", device_id=f"{project.name}-{n // 2}")
                for n in range(start, min(start + BULK, ports))
            ]
            project.ids += [view.id for view in await self._cloud.ports.create(_caller(project), wanted)]
            done += len(wanted)
            if time.monotonic() > told + 10:
                told = time.monotonic()
                print(f"  {project.name}: {done:,} of {ports:,} ports", file=sys.stderr, flush=True)

        await each(range(0, ports, BULK), bulk, BULKS)

    async def turn(self, small: Project, large: Project) -> None:
        """Every operation in both projects, now this first, now that."""
        for what, step, times, width in self._steps():
            for project in self._rng.sample((small, large), 2):
                gc.collect()
                begun, server = time.process_time(), cpu_us(self._server)
                await each([project] * times, step, width)
                spent = (time.process_time() - begun) * 1e6 / times
                project.cost[what] = project.cost.get(what, 0) + spent
                project.server[what] = project.server.get(what, 0) + (cpu_us(self._server) - server) / times

    def _steps(self) -> Sequence[tuple[str, Step, int, int]]:
        """What is measured, how often, how many at once."""
        device = self._rng.randrange(SMALL // 2)
        return (
            ("create", self._create, 512, CLIENTS),
            ("get", self._get, 512, CLIENTS),
            ("delete", self._delete, 512, CLIENTS),
            ("list, first page of 1 000", lambda p: self._list(p, 1000, limit=1000), 4, 1),
            ("list, page of 1 000 behind a marker", self._behind, 4, 1),
            ("list by device", lambda p: self._list(p, 2, {"device_id": f"{p.name}-{device}"}), 64, 4),
            ("list by host", lambda p: self._list(p, FEW, {"binding:host_id": f"host-{p.name}"}), 16, 4),
            ("list by network of 100", lambda p: self._list(p, FEW, {"network_id": p.few}), 16, 4),
            ("list by network and address", self._by_address, 64, 4),
            ("list by name alone", lambda p: self._list(p, 1, {"name": f"p{device}"}), 64, 4),
        )

    async def _create(self, project: Project) -> None:
        wanted = [PortCreate(network_id=project.network, name="one")]
        project.made += [view.id for view in await self._cloud.ports.create(_caller(project), wanted)]

    async def _get(self, project: Project) -> None:
        await self._cloud.ports.get(_caller(project), self._rng.choice(project.ids))

    async def _delete(self, project: Project) -> None:
        await self._cloud.ports.delete(_caller(project), project.made.pop(), None)

    async def _list(
        self, project: Project, expected: int, filters: Mapping[str, str] = NO_FILTERS, limit: int = 0, marker: str = ""
    ) -> None:
        query = Query({name: (value,) for name, value in filters.items()}, limit, marker)
        found = await self._cloud.ports.list(_caller(project), query)
        assert len(found.items) == expected, (query, len(found.items))

    async def _behind(self, project: Project) -> None:
        """From a place that has a page behind it in either project."""
        await self._list(project, 1000, limit=1000, marker=min(self._rng.sample(project.ids, SMALL // 10)))

    async def _by_address(self, project: Project) -> None:
        port = await self._cloud.ports.get(_caller(project), self._rng.choice(project.ids))
        address = f"ip_address={port.fixed_ips[0].ip_address}"
        await self._list(project, 1, {"network_id": project.network, "fixed_ips": address})

    async def page_beside_selects(self, project: Project, store: CassandraStore) -> Figure:
        """The time of a page of 1 000, by turns with SELECTs of 100 rows."""
        _, _, hundred = await baseline(store.session)
        spent = [0.0, 0.0]
        for turn in range(64):
            begun = time.perf_counter()
            await (hundred(0) if turn % 2 else self._list(project, 1000, limit=1000))
            spent[turn % 2] += time.perf_counter() - begun
        note = f"{spent[0] / 32 * 1e3:.0f} ms; SELECT {spent[1] / 32 * 1e3:.1f} ms"
        return Figure(
            "list of 1 000 of them", round(spent[0] / spent[1], 1), "SELECTs of 100", note, budget=at_most(10)
        )

    async def _network(self, project: Project) -> str:
        (network,) = await self._cloud.networks.create(_caller(project), [NetworkCreate()])
        subnet = SubnetCreate(network_id=network.id, cidr="10.0.0.0/10")
        await self._cloud.subnets.create(_caller(project), [subnet])
        return network.id


def _caller(project: Project) -> Caller:
    return Caller(project.name, False, Change("bench"))
