"""Whether a create costs the same in a small cloud and in a large one: CPU of management, control and store per port.

In process, without HTTP, without agents, and with the echo put off: it is the cost of earlier creates, and would be
counted to whichever figure happens to be measured when it comes.
"""

import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.machine import Meter
from bench.report import Figure
from observability.stages import Change
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.plane import ControlConfig
from planes.management.caller import Caller
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.requests import NetworkCreate, PortCreate, SubnetCreate
from planes.store.sqlite.store import SqliteStore

CLIENTS = 64
BULK = 100
#: ports of one measurement: several buckets full, so that filling one up is a part of every figure
PORTS = 4096
#: seconds; longer than any measurement
ECHO_AFTER = 3600.0


def scale() -> list[Figure]:
    """CPU of a create by the size of its network, of its host, and of the cloud."""
    with tempfile.TemporaryDirectory(prefix="alcor-bench-") as directory:
        return asyncio.run(_run(Path(directory)))


async def _run(directory: Path) -> list[Figure]:
    store, bus = SqliteStore(directory / "store.db"), MemoryBus(MemoryBroker(), "bench")
    await store.open()
    await bus.connect()
    cloud = build(store, bus, ControlConfig(echo_after=ECHO_AFTER), ManagementConfig())
    await cloud.start()
    try:
        await _measure("", cloud, await _network(cloud, 0), "")
        return await _figures(cloud)
    finally:
        await cloud.stop()
        await bus.close()
        await store.close()


async def _figures(cloud: Cloud) -> list[Figure]:
    figures = []
    small, large = await _network(cloud, 1), await _network(cloud, 2)
    figures.append(await _measure("network of 10 ports", cloud, await _filled(cloud, small, 10), ""))
    figures.append(await _measure("network of 20,000 ports", cloud, await _filled(cloud, large, 20_000), ""))
    network = await _network(cloud, 3)
    figures.append(await _measure("host of 10 ports", cloud, await _filled(cloud, network, 10, "few"), "few"))
    network = await _network(cloud, 4)
    figures.append(await _measure("host of 1,000 ports", cloud, await _filled(cloud, network, 1000, "many"), "many"))
    figures.append(await _measure("10 networks", cloud, await _network(cloud, 5), ""))
    for number in range(2000):
        await _network(cloud, 6 + number)
    figures.append(await _measure("2,000 networks", cloud, await _network(cloud, 6), ""))
    return figures


async def _measure(what: str, cloud: Cloud, network: str, host: str) -> Figure:
    """CPU of `PORTS` more ports, one per request from `CLIENTS` at once."""
    numbers = iter(range(PORTS))

    async def client() -> None:
        for _ in numbers:
            await _create(cloud, network, host, 1)

    gc.collect()
    meter, cpu, wall = Meter({"bench": os.getpid()}), time.process_time(), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Figure(f"create, {what}", round(cpu / PORTS * 1e6), "µs CPU", f"{PORTS / wall:,.0f} /s", meter.steal())


async def _network(cloud: Cloud, number: int) -> str:
    """A network with a subnet of a million addresses."""
    (network,) = await cloud.networks.create(_caller(), [NetworkCreate(name=f"n{number}")])
    await cloud.subnets.create(_caller(), [SubnetCreate(network_id=network.id, cidr="10.0.0.0/12")])
    return network.id


async def _filled(cloud: Cloud, network: str, ports: int, host: str = "") -> str:
    for start in range(0, ports, BULK):
        await _create(cloud, network, host, min(BULK, ports - start))
    return network


async def _create(cloud: Cloud, network: str, host: str, count: int) -> Sequence[object]:
    return await cloud.ports.create(_caller(), [PortCreate(network_id=network, name="p", host_id=host)] * count)


def _caller() -> Caller:
    return Caller("bench", False, Change("bench"))
