"""Free rows of many callers in few requests. Those of one partition that come while a request for it is under way leave
together in the next; those that come in one turn of the loop leave together, also of some partitions.

Called by the Cassandra store. Rows carry their own stamps, so neither their order nor a repetition matters. A request
that fails fails for everybody in it. Must never hold a row back longer than one request takes, nor put more partitions
into a request than the servers take without a warning.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any

from planes.store.cassandra.session import Line

#: partitions in one request, and bytes of it: of more the servers warn (10; 5 KiB), and they refuse 50 KiB
TOGETHER, BYTES = 8, 4096
#: bytes of a row beside its texts and blobs, at most; so many rows are too many, whatever is in them
ROW = 80

Send = Callable[[list[Line]], Awaitable[None]]
_Waiting = tuple[list[Line], "asyncio.Future[None]"]


class Sharing:
    """`rows`: at most so many in one request, unless a caller hands in more at once."""

    def __init__(self, send: Send, rows: int) -> None:
        self._send = send
        self._rows = rows
        #: rows that wait, by partition; a partition without any here has no request under way either
        self._queues: dict[Hashable, deque[_Waiting]] = {}
        #: partitions of which rows came in this turn, with how many they stand for
        self._fresh: list[tuple[Hashable, int]] = []
        self._workers: set[asyncio.Task[None]] = set()

    def add(self, partition: Hashable, lines: list[Line], spread: int = 1) -> "asyncio.Future[None]":
        """Write rows of one partition, or of `spread` that stand for one; done when they are."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(_seen)
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = deque()
            if not self._fresh:
                loop.call_soon(self._begin)
            self._fresh.append((partition, spread))
        queue.append((lines, future))
        return future

    async def idle(self) -> None:
        """Until nothing is under way."""
        while self._workers or self._fresh:
            await (asyncio.wait(self._workers) if self._workers else asyncio.sleep(0))

    def _begin(self) -> None:
        """What came in this turn leaves: as many partitions together as a request holds."""
        fresh, self._fresh = self._fresh, []
        pack: list[Hashable] = []
        room, left = TOGETHER, BYTES
        for partition, spread in fresh:
            size = _size(self._queues[partition])
            if pack and (spread > room or size > left):
                self._start(self._together(pack))
                pack, room, left = [], TOGETHER, BYTES
            pack.append(partition)
            room, left = room - spread, left - size
        self._start(self._together(pack))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        worker = asyncio.get_running_loop().create_task(work)
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _together(self, partitions: list[Hashable]) -> None:
        """The first request of some partitions; what came for them meanwhile leaves by partition."""
        await self._share([waiting for partition in partitions for waiting in self._taken(self._queues[partition])])
        for partition in partitions:
            if self._queues[partition]:
                self._start(self._work(partition))
            else:
                del self._queues[partition]

    async def _work(self, partition: Hashable) -> None:
        queue = self._queues[partition]
        while queue:
            await self._share(self._taken(queue))
        del self._queues[partition]

    def _taken(self, queue: deque[_Waiting]) -> list[_Waiting]:
        taken = [queue.popleft()]
        rows = len(taken[0][0])
        while queue and rows + len(queue[0][0]) <= self._rows:
            taken.append(queue.popleft())
            rows += len(taken[-1][0])
        return taken

    async def _share(self, taken: list[_Waiting]) -> None:
        """One request; its outcome is everybody's in it."""
        try:
            await self._send([line for lines, _ in taken for line in lines])
        except Exception as error:
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)
        else:
            for _, future in taken:
                if not future.done():
                    future.set_result(None)


def _size(queue: deque[_Waiting]) -> int:
    """Of a request of these rows, in bytes; of many, some number above what shares one."""
    rows = [values for lines, _ in queue for _, values in lines]
    if len(rows) * ROW > BYTES:
        return BYTES + 1
    return sum(ROW + sum([len(value) for value in row if isinstance(value, bytes | str)]) for row in rows)


def _seen(future: "asyncio.Future[None]") -> None:
    """Its caller may be gone."""
    if not future.cancelled():
        future.exception()
