"""What one operation may cost, counted and not timed: rows, reads, transactions, messages, tasks, calls, memory.

A number that rises is a regression even where a clock would not show it; one that falls is lowered here together with
the change that made it fall. docs/performance.md has the same numbers.
"""

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import asdict

from planes.goalstate.messages import Applied, ObjectKind
from planes.management.cloud import Cloud
from planes.model.ids import Id, parse, text
from planes.model.requests import PortCreate
from planes.store.sqlite.store import SqliteStore
from tests.support.cloud import caller, network_with_subnet, running

#: operations that are counted, after half as many that fill caches
TIMES = 100


class Cost(Struct, frozen=True):
    """Of one object."""

    rows: float  # written, without those of the trace, which come later and many at once
    reads: float  # statements on the reading connection
    commits: float  # with those of the traces, of 64 each
    messages: float
    tasks: float
    calls: float  # of Python functions
    kept: float  # memory blocks


class Rig:
    """A cloud of which everything is counted that it does in the loop's thread."""

    def __init__(self, cloud: Cloud, store: SqliteStore, network: str) -> None:
        self.cloud = cloud
        self.network = network
        self._store = store

    async def create(self, count: int = 1) -> list[Id]:
        wanted = [PortCreate(network_id=self.network, host_id="h1")] * count
        return [parse(view.id) for view in await self.cloud.ports.create(caller(), wanted)]

    async def cost(self, work: Callable[[], Awaitable[object]], objects: int = 1, times: int = TIMES) -> Cost:
        """`work` handles so many `objects` each time."""
        for _ in range(times // 2):
            await work()
        ended = self.cloud.plane.changes.put_away
        await ended()
        seen: Counter[str] = Counter()
        with self._counting(seen):
            for _ in range(times):
                await work()
            await ended()
        return Cost(**{name: round(seen[name] / times / objects, 2) for name in Cost.__struct_fields__})

    @contextmanager
    def _counting(self, seen: Counter[str]) -> Iterator[None]:
        writing, reading = self._store._writing, self._store._reading
        assert writing is not None
        assert reading is not None
        loop = asyncio.get_running_loop()

        def written(text: str) -> None:
            seen["commits"] += text == "COMMIT"
            if text.startswith(("INSERT", "UPDATE", "DELETE")) and " changes " not in text:
                seen["rows"] += 1 + text.count("), (")

        def task(loop: asyncio.AbstractEventLoop, work: Any) -> asyncio.Task[Any]:
            seen["tasks"] += 1
            return asyncio.Task(work, loop=loop)

        def called(_: FrameType, event: str, __: Any) -> None:
            seen["calls"] += event == "call"

        published = self.cloud.plane.publisher.counters["published"]
        writing.set_trace_callback(written)
        reading.set_trace_callback(lambda text: seen.update(reads=text.startswith("SELECT")))
        loop.set_task_factory(task)
        gc.collect()
        blocks = sys.getallocatedblocks()
        sys.setprofile(called)
        try:
            yield
        finally:
            sys.setprofile(None)
            gc.collect()
            seen["kept"] = sys.getallocatedblocks() - blocks
            loop.set_task_factory(None)
            writing.set_trace_callback(None)
            reading.set_trace_callback(None)
            seen["messages"] = self.cloud.plane.publisher.counters["published"] - published


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    store = SqliteStore(tmp_path / "store.db")
    async with running(tmp_path, store=store) as cloud:
        for timer in cloud.plane._timers:  # what they do is not an operation's
            timer.cancel()
        network, _ = await network_with_subnet(cloud, "10.0.0.0/16")
        yield Rig(cloud, store, network.id)


def within(cost: Cost, budget: Cost) -> None:
    most = asdict(budget)
    over = [f"{name} {used} > {most[name]}" for name, used in asdict(cost).items() if used > most[name]]
    assert not over, f"over budget: {', '.join(over)}"


async def test_a_create(rig: Rig) -> None:
    within(await rig.cost(rig.create), Cost(rows=4, reads=2, commits=1, messages=2, tasks=2, calls=455, kept=46))


async def test_one_of_many_creates_at_once(rig: Rig) -> None:
    """What comes together is made together; a task of each is the test's."""
    cost = await rig.cost(lambda: asyncio.gather(*(rig.create() for _ in range(32))), 32, 10)
    within(cost, Cost(rows=2.2, reads=0.2, commits=0.1, messages=0.2, tasks=1.2, calls=165, kept=40))


async def test_a_port_of_a_bulk(rig: Rig) -> None:
    cost = await rig.cost(lambda: rig.create(100), 100, 10)
    within(cost, Cost(rows=2.1, reads=0.05, commits=0.03, messages=0.04, tasks=0.05, calls=75, kept=20))


async def test_an_ack(rig: Rig) -> None:
    """With all that it ends: stages, event and record of the change."""
    ids = iter([id_ for _ in range(2 * TIMES) for id_ in await rig.create()])

    async def ack() -> None:
        port = await rig.cloud.plane.ground.port(id_ := next(ids))
        assert port is not None
        item = Applied(ObjectKind.PORT, b"", id_, port.goal_rev, change=port.change)
        await rig.cloud.plane.acks.store("h1", [item])

    within(await rig.cost(ack), Cost(rows=1, reads=0, commits=1.05, messages=0, tasks=0, calls=115, kept=0))


async def test_a_delete_of_a_port_whose_host_is_gone(rig: Rig) -> None:
    """The whole way: marked, released, forgotten."""
    ids = iter(await rig.create(2 * TIMES))
    cost = await rig.cost(lambda: rig.cloud.ports.delete(caller(), text(next(ids)), None))
    within(cost, Cost(rows=12, reads=3, commits=3.1, messages=2, tasks=2.1, calls=580, kept=12))


async def test_a_get(rig: Rig) -> None:
    (id_,) = await rig.create()
    cost = await rig.cost(lambda: rig.cloud.ports.get(caller(), text(id_)))
    within(cost, Cost(rows=0, reads=2, commits=0, messages=0, tasks=0, calls=52, kept=2))
