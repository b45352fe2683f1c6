"""A real store on virtual time: every step takes a while that chance decides, and a run is repeated exactly.

The store has a loop of its own, which runs only while a call of the store waits for something: nobody else goes on
meanwhile, and the real time that it takes is not seen. Before and after each step the virtual clock moves: steps of
several callers overtake each other on the way there, and so do the answers.
"""

import asyncio
import random
from collections.abc import Awaitable, Coroutine, Generator, Sequence
from typing import Any, TypeVar, cast

from planes.store.protocol import Batch, Partition, Store, Values, Write, in_turn
from planes.store.schema import Table
from tests.support.clock import now_us

T = TypeVar("T")
#: the longest way, seconds; most are far shorter
LONGEST = 0.02


class _Rest(Awaitable[T]):
    """What a step still has to do once `first`, which it waits for, is there."""

    def __init__(self, first: Any, work: Coroutine[Any, Any, T]) -> None:
        self._first = first
        self._work = work

    def __await__(self) -> Generator[Any, Any, T]:
        yield self._first
        return (yield from self._work.__await__())


async def _ended(rest: _Rest[T]) -> T:
    return await rest


class SteadyStore:
    """`ahead`: µs by which the store's clock is ahead of everybody else's."""

    def __init__(self, inner: Store, chance: random.Random) -> None:
        self.ahead = 0
        self._inner = inner
        self._chance = chance
        self._loop = asyncio.new_event_loop()

    async def open(self) -> None:
        self._turn(self._inner.open())

    async def close(self) -> None:
        self._turn(self._inner.close())  # and what the store left to the loop ends, too
        self._loop.close()

    async def now(self) -> int:
        return now_us() + self.ahead

    async def read(
        self,
        table: Table,
        partition: Values,
        *,
        prefix: Values = (),
        after: Values = (),
        among: Values = (),
        limit: int = 0,
        serial: bool = False,
    ) -> Partition:
        return await self._step(
            self._inner.read(table, partition, prefix=prefix, after=after, among=among, limit=limit, serial=serial)
        )

    async def row(self, table: Table, partition: Values, key: Values) -> Values | None:
        return await self._step(self._inner.row(table, partition, key))

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        if before:  # as where no transaction holds both
            return await in_turn(self, batch, before)
        return await self._step(self._inner.commit(batch))

    async def write(self, writes: Sequence[Write]) -> None:
        await self._step(self._inner.write(writes))

    async def partitions(self, table: Table, *, after: Values = (), limit: int = 0) -> list[Values]:
        return await self._step(self._inner.partitions(table, after=after, limit=limit))

    async def _step(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            await self._way()
        except BaseException:
            work.close()
            raise
        try:
            return self._at_once(work)
        finally:
            await self._way()

    async def _way(self) -> None:
        await asyncio.sleep(self._chance.random() ** 4 * LONGEST)

    def _at_once(self, work: Coroutine[Any, Any, T]) -> T:
        outer = asyncio.get_running_loop()
        asyncio._set_running_loop(self._loop)
        try:
            first = work.send(None)
        except StopIteration as done:  # without waiting for anything, as nearly all do: no turn of a loop is needed
            return cast(T, done.value)
        finally:
            asyncio._set_running_loop(outer)
        return self._turn(_ended(_Rest(first, work)))

    def _turn(self, work: Coroutine[Any, Any, T]) -> T:
        outer = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return self._loop.run_until_complete(work)
        finally:
            asyncio._set_running_loop(outer)
