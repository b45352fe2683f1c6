"""One API instance's wire to Cassandra, where each statement can be lost, its answer hidden, or be the last.

Stands where the driver's session does, below everything that the adapter is made of. Instances share the sockets and
the prepared statements of one parent and nothing else. A dead instance sends and hears nothing any more, not even to
clean up; what it had sent arrives all the same.
"""

import asyncio
import copy
import random
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any, cast

import cassandra

from planes.store.cassandra.bridge import Bridge
from planes.store.cassandra.sharing import Sharing
from planes.store.cassandra.store import ROWS, CassandraStore

#: seconds, the longest that a statement is held back where chance decides; most are far shorter
LONGEST = 0.02


class Fault(StrEnum):
    KILL_BEFORE = "kill before"  # never sent, and the instance is dead
    KILL_AFTER = "kill after"  # carried out, but the instance is dead before it hears of it
    HIDE = "hide"  # carried out, and answered by a time-out
    LOSE = "lose"  # never sent, and answered by a time-out


class Wire:
    """`fault` befalls statement number `at`. With `chance`, statements overtake each other on their way."""

    def __init__(
        self, parent: CassandraStore, at: int = -1, fault: Fault | None = None, chance: random.Random | None = None
    ) -> None:
        self.parent = parent
        self._driver = parent.session._session
        self._at, self._fault, self._chance = at, fault, chance
        self._loop = asyncio.get_running_loop()
        self._under_way = 0
        self._landed = asyncio.Event()
        self.sent = 0
        self.dead = asyncio.Event()

    def execute_async(self, *args: Any, **how: Any) -> "_Answer":
        """As the driver's session does."""
        n, self.sent = self.sent, self.sent + 1
        fault = self._fault if n == self._at else None
        answer = _Answer(self)
        if fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER):
            self.dead.set()
        elif self.dead.is_set():
            fault = Fault.KILL_BEFORE
        if fault is Fault.LOSE:
            self._loop.call_soon(answer.end, True, cassandra.OperationTimedOut())
        elif fault is not Fault.KILL_BEFORE:
            self._under_way += 1
            delay = self._chance.random() ** 4 * LONGEST if self._chance else 0
            self._loop.call_later(delay, self._send, answer, fault, args, how)
        return answer

    async def run(self, work: Coroutine[Any, Any, object]) -> bool:
        """Do `work`, with all that it begins, as an instance that may die on the way: whether it lives."""
        others = asyncio.all_tasks()
        task, death = asyncio.ensure_future(work), asyncio.ensure_future(self.dead.wait())
        await asyncio.wait((task, death), return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if not self.dead.is_set():
            await task
            return True
        while self._under_way:
            self._landed.clear()
            await self._landed.wait()
        while orphans := asyncio.all_tasks() - others:
            for orphan in orphans:
                orphan.cancel()
            await asyncio.wait(orphans, timeout=0.1)
        return False

    def _send(self, answer: "_Answer", fault: Fault | None, args: Any, how: Any) -> None:
        answer.response = response = self._driver.execute_async(*args, **how)

        def hear(failed: bool) -> Callable[[Any], None]:
            return lambda value: cast(None, self._loop.call_soon_threadsafe(self._hear, answer, fault, failed, value))

        response.add_callbacks(hear(False), hear(True))

    def _hear(self, answer: "_Answer", fault: Fault | None, failed: bool, value: Any) -> None:
        if answer.over:  # a read that was asked twice
            return
        self._under_way -= 1
        self._landed.set()
        if fault is Fault.HIDE:
            failed, value = True, cassandra.OperationTimedOut()
        answer.end(failed, value)


class _Answer:
    """As the driver's future of a response."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._tell: tuple[Callable[..., None], ...] = ()
        self._with: tuple[tuple[Any, ...], ...] = ()
        self.response: Any = None
        self.over = False

    def add_callbacks(
        self,
        callback: Callable[..., None],
        errback: Callable[..., None],
        callback_args: tuple[Any, ...],
        errback_args: tuple[Any, ...],
    ) -> None:
        self._tell, self._with = (callback, errback), (callback_args, errback_args)

    def end(self, failed: bool, value: Any) -> None:
        self.over = True
        if not self._wire.dead.is_set():
            self._tell[failed](value, *self._with[failed])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.response, name)


def instance(wire: Wire) -> CassandraStore:
    """An open store of its own on the parent's sockets. It needs no closing, and must not be closed."""
    parent = wire.parent
    store, session = copy.copy(parent), copy.copy(parent.session)
    session._bridge, session._preparing = Bridge(cast(Any, wire)), {}
    store._session, store._sharing = session, Sharing(session.idempotent, ROWS)
    store._under_way, store._tasks = {}, set()
    return store
