"""The driver's callbacks as futures of the event loop, with a bound on what is under way.

Called by the Cassandra session only, from one loop. The driver answers on its own input/output thread; one wake-up of
the loop serves every answer that came meanwhile. Must never block the loop, nor count a request as over before the
driver does: a caller that gives up frees nothing.
"""

import asyncio
from collections import deque
from typing import Any

from cassandra.cluster import ResultSet, Session
from msgspec import Struct

from planes.store.protocol import Unavailable

#: requests that the cluster works on for this process at a time; more only wait there instead of here
FLIGHT = 128
#: requests that may wait for their turn; the next is refused
QUEUE = 4096


class Reply(Struct, frozen=True):
    """One page. `more`: how to ask for the next; None: this was the last."""

    rows: list[Any]
    more: bytes | None


class _Flight:
    """One request that the driver has. It may answer twice: of a read that was asked twice, each server does."""

    __slots__ = ("future", "landed")

    def __init__(self, future: "asyncio.Future[Reply]") -> None:
        self.future = future
        self.landed = False


_Job = tuple[Any, Any, str, bytes | None, "asyncio.Future[Reply]"]


class Bridge:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._answers: deque[tuple[Any, Any, _Flight]] = deque()
        self._woken = False
        self._flying = 0
        self._waiting: deque[_Job] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self.refused = 0

    def submit(
        self, statement: Any, parameters: Any, profile: str, page: bytes | None = None
    ) -> "asyncio.Future[Reply]":
        """The answer to come. A future that is cancelled before its turn is never sent.

        Raises Unavailable when too many wait.
        """
        if len(self._waiting) >= QUEUE:
            self.refused += 1
            raise Unavailable(f"{QUEUE} requests wait for Cassandra; come back in a moment.")
        future: asyncio.Future[Reply] = self._loop.create_future()
        job = (statement, parameters, profile, page, future)
        if self._flying < FLIGHT:
            self._send(job)
        else:
            self._waiting.append(job)
        return future

    async def idle(self) -> None:
        """Until the driver works on nothing."""
        await self._idle.wait()

    def _send(self, job: _Job) -> None:
        statement, parameters, profile, page, future = job
        self._flying += 1
        self._idle.clear()
        flight = _Flight(future)
        try:
            response = self._session.execute_async(statement, parameters, execution_profile=profile, paging_state=page)
        except Exception as error:  # a shut-down session, values that do not bind: as an answer, like all else
            self._push(error, None, flight)
            return
        response.add_callbacks(self._push, self._push, callback_args=(response, flight), errback_args=(None, flight))

    def _push(self, value: Any, response: Any, flight: "_Flight") -> None:
        """On the driver's thread. A missed wake-up cannot be: the flag is lowered before the answers are taken."""
        self._answers.append((value, response, flight))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._woken = False
        while self._answers:
            value, response, flight = self._answers.popleft()
            if flight.landed:
                continue
            flight.landed, future = True, flight.future
            self._flying -= 1
            if future.cancelled():
                pass
            elif response is None:
                future.set_exception(value)
            else:
                more = ResultSet(response, value or []).paging_state if response.has_more_pages else None
                future.set_result(Reply(value or [], more))
        while self._waiting and self._flying < FLIGHT:
            job = self._waiting.popleft()
            if not job[4].cancelled():
                self._send(job)
        if not self._flying:
            self._idle.set()
