"""Who follows events through this instance: consoles and scripts. Events come from all instances, by the bus.

Called by the REST edge for each stream. Listens on the bus only while somebody watches. A watcher that does not keep up
loses events and is told so; it never slows another, nor the instance.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from planes.bus.protocol import Bus, BusError, Incoming, Subscription
from planes.goalstate import codec
from planes.goalstate.messages import Events, Finished
from planes.goalstate.subjects import Subjects
from planes.model.errors import Unavailable

#: streams of one instance, and messages that wait for a slow one
WATCHERS = 200
WAITING = 1000

Told = Events | Finished


class Watcher:
    """One stream. `project` empty: all of them."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._waiting: deque[Told] = deque()
        self._wake = asyncio.Event()
        self._missed = False
        self.closed = False

    def take(self, told: Told) -> None:
        if self._project and told.project != self._project:
            return
        if len(self._waiting) >= WAITING:
            self.miss()
        else:
            self._waiting.append(told)
            self._wake.set()

    def miss(self) -> None:
        """What waits is worth nothing any more: the watcher has to look anew."""
        self._waiting.clear()
        self._missed = True
        self._wake.set()

    def close(self) -> None:
        self.closed = True
        self._wake.set()

    async def next(self, seconds: float) -> tuple[list[Told], bool]:
        """What came, and whether something was lost before it; nothing after `seconds` without news or when closed."""
        if not self.closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
        self._wake.clear()
        told, missed = list(self._waiting), self._missed
        self._waiting.clear()
        self._missed = False
        return told, missed


class Watch:
    """All streams of one instance."""

    def __init__(self, bus: Bus, subjects: Subjects) -> None:
        self._bus = bus
        self._subjects = subjects
        self._watchers: set[Watcher] = set()
        self._subscription: Subscription | None = None
        self._turn = asyncio.Lock()
        self.counters = {"watch_malformed": 0}

    @contextlib.asynccontextmanager
    async def watching(self, project: str) -> AsyncIterator[Watcher]:
        """A stream of a project's events, or of all (empty). Raises Unavailable over the bound or without a bus."""
        if len(self._watchers) >= WATCHERS:
            raise Unavailable(f"This instance serves {WATCHERS} event streams already.")
        watcher = Watcher(project)
        self._watchers.add(watcher)
        try:
            await self._listen()
            yield watcher
        finally:
            self._watchers.discard(watcher)
            await asyncio.shield(self._leave())

    async def _listen(self) -> None:
        async with self._turn:
            if self._subscription is None:
                if not self._bus.connected:
                    raise Unavailable("There is no connection to NATS, which carries the events.")
                self._subscription = await self._bus.subscribe(self._subjects.events, self._on_event)

    async def _leave(self) -> None:
        async with self._turn:
            if not self._watchers and self._subscription is not None:
                subscription, self._subscription = self._subscription, None
                with contextlib.suppress(BusError):
                    await subscription.unsubscribe()

    def _on_event(self, message: Incoming) -> None:
        finished = message.subject.endswith(".change.finished")
        try:
            told = codec.decode(message.data, Finished)[1] if finished else codec.decode(message.data, Events)[1]
        except codec.Malformed:
            self.counters["watch_malformed"] += 1
            return
        for watcher in self._watchers:
            watcher.take(told)

    def missed(self) -> None:
        """The connection to the bus was away."""
        for watcher in self._watchers:
            watcher.miss()

    def close(self) -> None:
        """End all streams."""
        for watcher in self._watchers:
            watcher.close()
