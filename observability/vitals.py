"""What every process tells of itself, API and agent alike: bus, event loop, spans, and what the system says of it.

Made by the composition roots, which run `watch` beside the work. It never raises for what it looks at.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Protocol

from observability import families
from observability.latency import Counts
from observability.metrics import Metric

#: seconds between looks at the loop, and between pings
LOOK, PING = 0.5, 5.0
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Bus(Protocol):
    """As much of the bus as is looked at."""

    @property
    def connected(self) -> bool: ...
    @property
    def counters(self) -> Mapping[str, int]: ...
    async def flush(self, timeout: float = 2.0) -> None: ...


class Vitals:
    """`spans`: the span exporter's counters; nothing when none runs."""

    def __init__(self, bus: Bus, spans: Callable[[], Mapping[str, int]]) -> None:
        self._bus = bus
        self._spans = spans
        self._lag = Counts()
        self._rtt = Counts()

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_loop())
            group.create_task(self._watch_bus())

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK
            await asyncio.sleep(LOOK)
            self._lag.record(round((loop.time() - due) * 1e6))

    async def _watch_bus(self) -> None:
        while True:
            await asyncio.sleep(PING)
            if not self._bus.connected:
                continue
            begun = time.perf_counter_ns()
            try:
                await self._bus.flush()
            except Exception:  # gone, or too slow: `connected` and the counters tell
                continue
            self._rtt.record((time.perf_counter_ns() - begun) // 1000)

    def metrics(self) -> Iterator[Metric]:
        """All of it, now."""
        counters, spans = self._bus.counters, self._spans()
        yield families.BUS_CONNECTED.one(int(self._bus.connected))
        yield families.BUS_MESSAGES.each({way: counters[way] for way in ("sent", "received")})
        yield families.BUS_RECONNECTS.one(counters["reconnects"])
        yield families.BUS_SLOW.one(counters["slow"])
        yield families.BUS_RTT.one(self._rtt)
        for name, family in families.SPANS.items():
            yield family.one(spans.get(name, 0))
        yield families.LOOP_LAG.one(self._lag)
        yield from process()


def process() -> Iterator[Metric]:
    """What the system says of this process."""
    with open("/proc/self/stat", "rb") as file:
        words = file.read().rpartition(b")")[2].split()  # the program's name, before it, may hold spaces
    yield families.BUILD.each({_VERSION: 1})
    yield families.CPU.one(time.process_time())
    yield families.MEMORY.one(int(words[21]) * _PAGE)
    yield families.FILES.one(len(os.listdir("/proc/self/fd")))
    yield families.STARTED.one(_BOOTED + int(words[19]) / _TICK)


def _booted() -> float:
    with open("/proc/stat") as file:
        return float(next(line.split()[1] for line in file if line.startswith("btime ")))


_VERSION = version("alcor-mesh")
_BOOTED = _booted()
