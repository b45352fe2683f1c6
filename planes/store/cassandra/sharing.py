"""Free rows of many callers in few requests: those of one partition that come while a request for it is under way, or
in the same turn of the loop, leave together.

Called by the Cassandra store. Rows carry their own stamps, so neither their order nor a repetition matters. A request
that fails fails for everybody in it. Must never hold a row back longer than one request takes.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable

from planes.store.cassandra.session import Line

Send = Callable[[list[Line]], Awaitable[None]]
_Waiting = tuple[list[Line], "asyncio.Future[None]"]


class Sharing:
    """`rows`: at most so many in one request."""

    def __init__(self, send: Send, rows: int) -> None:
        self._send = send
        self._rows = rows
        self._queues: dict[Hashable, deque[_Waiting]] = {}
        self._workers: set[asyncio.Task[None]] = set()

    def add(self, partition: Hashable, lines: list[Line]) -> "asyncio.Future[None]":
        """Write rows of one partition; done when they are."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = deque()
            worker = asyncio.create_task(self._work(partition, queue))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        future.add_done_callback(_seen)
        queue.append((lines, future))
        return future

    async def idle(self) -> None:
        """Until nothing is under way."""
        while self._workers:
            await asyncio.wait(self._workers)

    async def _work(self, partition: Hashable, queue: deque[_Waiting]) -> None:
        while queue:
            taken = [queue.popleft()]
            rows = len(taken[0][0])
            while queue and rows + len(queue[0][0]) <= self._rows:
                taken.append(queue.popleft())
                rows += len(taken[-1][0])
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
        del self._queues[partition]


def _seen(future: "asyncio.Future[None]") -> None:
    """Its caller may be gone."""
    if not future.cancelled():
        future.exception()
