"""What control and agents need of a message bus; implemented by `planes.bus.nats` and `planes.bus.memory`.

Delivery is at most once and unbuffered: while disconnected, `publish` raises `Disconnected` and nothing is kept for
later (rule S3). Handlers are plain functions, called in the loop in the order of arrival on one subscription; they must
not block and must not raise (what they raise is counted and logged, the subscription lives on).
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct


class BusError(Exception):
    """Base of what a bus raises."""


class Disconnected(BusError):
    """No connection now; nothing was sent."""


class NoReply(BusError):
    """A request was sent, or could not be, and no reply came in time; whether it was acted on is unknown."""


class Incoming(Struct, frozen=True):
    """One delivered message. `reply` is empty unless somebody waits for an answer."""

    subject: str
    data: bytes
    reply: str = ""
    traceparent: str = ""


class Event(Struct, frozen=True):
    """A change of the connection: `connected`, `disconnected`, `reconnected`, `slow` or `error` (with detail)."""

    name: str
    detail: str = ""


class Subscription(Protocol):
    async def unsubscribe(self) -> None: ...


class Bus(Protocol):
    @property
    def connected(self) -> bool: ...

    async def connect(self) -> None:
        """Connect, trying for ever with jittered back-off; afterwards reconnects by itself."""

    async def close(self) -> None: ...

    def publish(self, subject: str, data: bytes, traceparent: str = "") -> None:
        """Hand over to the connection without waiting. Raises Disconnected."""

    async def flush(self, timeout: float = 2.0) -> None:
        """Return when the server has seen all that was handed over before. Raises Disconnected or NoReply."""

    async def request(self, subject: str, data: bytes, timeout: float, traceparent: str = "") -> bytes:
        """Raises Disconnected or NoReply (also when nobody listens)."""

    async def subscribe(self, subject: str, handler: Callable[[Incoming], None], queue: str = "") -> Subscription:
        """Subscriptions survive reconnects. `queue`: each message goes to one member of the group."""

    def listen(self, handler: Callable[[Event], None]) -> None:
        """Hear about the connection."""


Handler = Callable[[Incoming], None]
AsyncHandler = Callable[[Incoming], Awaitable[None]]
