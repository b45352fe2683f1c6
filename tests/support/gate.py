"""Each await of store, bus and driver goes through a gate, where it is counted, refused, left in the dark, or the last.

Made by the mesh, which lets everything through; tests of faults put their own in its place.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, NoReturn, TypeVar, cast

from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.bus.protocol import Disconnected, Handler, NoReply, Subscription
from planes.store.protocol import Store, Unavailable, UnknownOutcome, in_turn

T = TypeVar("T")


class Fault(StrEnum):
    ERROR = "error"  # refused; it did not happen
    UNKNOWN = "unknown"  # it did happen, and whoever asked is told that nobody knows
    KILL_BEFORE = "kill before"  # the process dies just before
    KILL_AFTER = "kill after"  # the process dies just after


class Gate:
    """`fault` befalls the call number `at`; `kill` ends the part that made it (by its name in the mesh)."""

    def __init__(self, at: int = -1, fault: Fault = Fault.ERROR) -> None:
        self._at = at
        self._fault = fault
        self.kill: Callable[[str], Awaitable[None]] | None = None
        self.open = False
        #: what was called while the gate was watching: (part, call)
        self.calls: list[tuple[str, str]] = []
        self._deaths: set[asyncio.Task[None]] = set()

    def _due(self, part: str, call: str) -> Fault | None:
        if not self.open:
            return None
        self.calls.append((part, call))
        return self._fault if len(self.calls) - 1 == self._at else None

    async def through(self, part: str, call: str, work: Callable[[], Awaitable[T]]) -> T:
        fault = self._due(part, call)
        if fault is None:
            return await work()
        if fault is Fault.ERROR:
            _fail(call)
        if fault is Fault.KILL_BEFORE:
            await self._die(part)
        await work()
        if fault is Fault.KILL_AFTER:
            await self._die(part)
        return _forget(call)

    def publish(self, part: str, work: Callable[[], None]) -> None:
        """What is said without waiting: it may fail, be lost on its way, or be the last word."""
        fault = self._due(part, "bus.publish")
        if fault is Fault.ERROR:
            raise Disconnected("injected")
        if fault in (None, Fault.KILL_AFTER):
            work()
        if fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER):
            self._end(part)

    async def _die(self, part: str) -> NoReturn:
        self._end(part)
        await asyncio.Event().wait()
        raise AssertionError("a dead part goes on")

    def _end(self, part: str) -> None:
        assert self.kill is not None
        death = asyncio.ensure_future(self.kill(part))
        self._deaths.add(death)
        death.add_done_callback(self._deaths.discard)


def _fail(call: str) -> NoReturn:
    if call.startswith("store"):
        raise Unavailable("The store refuses (injected).")
    if call.startswith("bus"):
        raise Disconnected("injected")
    raise OSError(f"{call} fails (injected)")


def _forget(call: str) -> NoReturn:
    if call.startswith("store"):
        raise UnknownOutcome("The answer was lost (injected).")
    if call.startswith("bus"):
        raise NoReply("the answer was lost (injected)")
    raise OSError(f"the answer of {call} was lost (injected)")


class GatedBus(MemoryBus):
    """A client whose every call goes through the gate."""

    def __init__(self, broker: MemoryBroker, name: str, gate: Gate) -> None:
        super().__init__(broker, name)
        self._gate = gate

    def publish(self, subject: str, data: bytes, traceparent: str = "") -> None:
        self._gate.publish(self.name, lambda: super(GatedBus, self).publish(subject, data, traceparent))

    async def flush(self, timeout: float = 2.0) -> None:
        await self._gate.through(self.name, "bus.flush", lambda: super(GatedBus, self).flush(timeout))

    async def request(self, subject: str, data: bytes, timeout: float, traceparent: str = "") -> bytes:
        work = super().request
        return await self._gate.through(self.name, "bus.request", lambda: work(subject, data, timeout, traceparent))

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        work = super().subscribe
        return await self._gate.through(self.name, "bus.subscribe", lambda: work(subject, handler, queue))


class GatedStore:
    """A store as one instance sees it: through the gate, and not at all once that instance is dead.

    The dead cannot even clean up after themselves.
    """

    def __init__(self, inner: object, part: str, gate: Gate) -> None:
        self._inner = inner
        self._part = part
        self._gate = gate
        self._closed = False

    def close(self) -> None:
        self._closed = True

    def __getattr__(self, name: str) -> Any:
        work = getattr(self._inner, name)

        async def call(*args: Any, **how: Any) -> Any:
            if self._closed:
                raise asyncio.CancelledError
            try:
                if name == "now":
                    return await work()
                if name == "commit" and len(args) > 1 and args[1]:
                    return await in_turn(cast(Store, self), *args)
                return await self._gate.through(self._part, f"store.{name}", lambda: work(*args, **how))
            finally:
                if self._closed:
                    raise asyncio.CancelledError

        return call
