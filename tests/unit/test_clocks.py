"""Clocks that are wrong or jump: revisions rise, the echo goes on, and an instance that is off says so (rule S22)."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.plane import ControlConfig
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.requests import PortCreate, PortUpdate
from planes.store.sqlite.store import SqliteStore
from tests.support.clock import now_us, run
from tests.support.cloud import caller, network_with_subnet
from tests.support.steady import SteadyStore

HOUR = 3600 * 1_000_000


class Clock:
    """A machine's clock; `off` in µs."""

    def __init__(self, off: int = 0) -> None:
        self.off = off

    def __call__(self) -> int:
        return now_us() + self.off


@asynccontextmanager
async def _instance(store: SteadyStore, clock: Clock, broker: MemoryBroker) -> AsyncIterator[Cloud]:
    bus = MemoryBus(broker, f"control {id(clock)}")
    await bus.connect()
    cloud = build(store, bus, ControlConfig(), ManagementConfig(), now=clock)
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop()
        await bus.close()


def _with_store(path: Path, work: "Any") -> None:
    async def main() -> None:
        store = SteadyStore(SqliteStore(path / "store.db"), random.Random(1))
        await store.open()
        try:
            await work(store)
        finally:
            await store.close()

    run(_bounded(main()))


async def _bounded(work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(10_000):
        await work


async def _port(cloud: Cloud, network: str) -> Any:
    (port,) = await cloud.ports.create(caller(), [PortCreate(network_id=network)])
    return port


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_the_echo_goes_on_when_the_machines_clock_jumps(tmp_path: Path, jump: int) -> None:
    async def work(store: SteadyStore) -> None:
        clock, broker = Clock(), MemoryBroker()
        async with _instance(store, clock, broker) as cloud:
            network, _ = await network_with_subnet(cloud)
            first = await _port(cloud, network.id)
            await asyncio.sleep(60)
            clock.off = store.ahead = jump
            before = cloud.counters()["echoed"]
            second = await _port(cloud, network.id)
            await asyncio.sleep(60)
            assert cloud.counters()["echoed"] > before
            assert second.revision_number > first.revision_number
        clock.off = store.ahead = 0
        async with _instance(store, clock, broker) as cloud:  # the leases are still another's, and end in the future
            await _port(cloud, network.id)
            await asyncio.sleep(60)
            assert cloud.counters()["echoed"] > 0

    _with_store(tmp_path, work)


@pytest.mark.parametrize("off", [-HOUR, HOUR])
def test_an_instance_whose_clock_is_off_says_so_and_does_no_harm(tmp_path: Path, off: int) -> None:
    async def work(store: SteadyStore) -> None:
        broker = MemoryBroker()
        async with _instance(store, Clock(), broker) as right, _instance(store, Clock(off), broker) as wrong:
            assert await right.health.ready() == []
            (reason,) = await wrong.health.ready()
            assert f"clock is {off / 1e6:+.1f} s off" in reason
            network, _ = await network_with_subnet(wrong)
            port = await _port(wrong, network.id)
            revisions = [port.revision_number]
            for number, cloud in enumerate([right, wrong] * 4):
                port = await cloud.ports.update(caller(), port.id, PortUpdate(name=f"name {number}"), None)
                revisions.append(port.revision_number)
            assert revisions == sorted(set(revisions))
            await asyncio.sleep(60)
            echoed = [cloud.counters()["echoed"] for cloud in (right, wrong)]
            assert sum(echoed) >= 10  # every one of these changes, by whoever has the lease
            await wrong.ports.delete(caller(), port.id, None)
            await asyncio.sleep(60)
            assert sum(cloud.counters()["echoed"] for cloud in (right, wrong)) > sum(echoed)

    _with_store(tmp_path, work)
