"""The message bus inside one process: the semantics of `planes.bus.nats`, deterministic, and able to misbehave.

Used by tests of everything that talks over the bus. All delays are on the running loop's clock, all chance comes from
one seeded generator, so a run can be repeated exactly. Faults are those of the real thing: messages lost, doubled,
delayed and reordered, clients cut off with or without noticing, a broker that restarts, interest that spreads late.
"""

import asyncio
import contextvars
import itertools
import logging
import random
from collections.abc import Callable
from functools import lru_cache

from msgspec import Struct

from planes.bus.protocol import Disconnected, Event, Handler, Incoming, NoReply, Subscription

log = logging.getLogger(__name__)


class Faults(Struct):
    """What may happen to a delivery; chances between 0 and 1, times in seconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # delivered `late` seconds after its time, so that others overtake it
    late: float = 0.01
    delay: float = 0.0  # of every delivery; order is kept
    interest: float = 0.0  # a new subscription begins to match this long after `subscribe` returned
    lose: Callable[[str, str], bool] | None = None  # (receiving client, subject): lose this one


@lru_cache(maxsize=65_536)
def matches(pattern: str, subject: str) -> bool:
    """NATS wildcards: `*` is one token, `>` the rest."""
    wanted, given = pattern.split("."), subject.split(".")
    for n, token in enumerate(wanted):
        if token == ">":
            return len(given) > n
        if n >= len(given) or token not in ("*", given[n]):
            return False
    return len(wanted) == len(given)


class _Subscription:
    def __init__(self, bus: "MemoryBus", pattern: str, handler: Handler, queue: str, since: float) -> None:
        self.bus = bus
        self.pattern = pattern
        self.handler = handler
        self.queue = queue
        self.since = since

    async def unsubscribe(self) -> None:
        self.bus.broker.subscriptions.pop(id(self), None)


class MemoryBroker:
    """The server: who listens to what, and what happens on the way."""

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.up = True
        self.clients: dict[str, MemoryBus] = {}
        self.subscriptions: dict[int, _Subscription] = {}
        self._cut: set[str] = set()
        self._muted: set[str] = set()
        self._lives = 0
        self.counters = {"published": 0, "delivered": 0, "lost": 0, "doubled": 0}

    # -- misbehaviour -----------------------------------------------------------------------------------------------

    def cut(self, name: str) -> None:
        """A client loses its connection, and notices."""
        self._cut.add(name)
        if name in self.clients:
            self.clients[name].went_down()

    def heal(self, name: str) -> None:
        """The client gets through again."""
        self._cut.discard(name)
        self._muted.discard(name)
        if name in self.clients and self.up:
            self.clients[name].came_up()

    def mute(self, name: str) -> None:
        """Nothing from or to a client arrives any more, and nobody notices."""
        self._muted.add(name)

    def stop(self) -> None:
        """The server dies; what was on its way is lost."""
        self.up = False
        self._lives += 1
        for client in list(self.clients.values()):
            client.went_down()

    def start(self) -> None:
        self.up = True
        for name, client in list(self.clients.items()):
            if name not in self._cut:
                client.came_up()

    # -- what clients do --------------------------------------------------------------------------------------------

    def reaches(self, name: str) -> bool:
        return self.up and name not in self._cut

    def has_listener(self, subject: str) -> bool:
        return any(matches(each.pattern, subject) for each in self.subscriptions.values())

    def route(self, sender: str, message: Incoming) -> None:
        """Deliver to every subscription that matches, and to one member of each queue group."""
        self.counters["published"] += 1
        if sender in self._muted:
            self.counters["lost"] += 1
            return
        now = asyncio.get_running_loop().time()
        groups: dict[tuple[str, str], list[_Subscription]] = {}
        for each in list(self.subscriptions.values()):
            if not matches(each.pattern, message.subject) or now < each.since or not self.reaches(each.bus.name):
                continue
            if each.queue:
                groups.setdefault((each.pattern, each.queue), []).append(each)
            else:
                self._send(each, message)
        for members in groups.values():
            self._send(self.random.choice(members), message)

    def _send(self, to: _Subscription, message: Incoming) -> None:
        faults, chance = self.faults, self.random.random
        lost = faults.lose is not None and faults.lose(to.bus.name, message.subject)
        if lost or to.bus.name in self._muted or (faults.drop and chance() < faults.drop):
            self.counters["lost"] += 1
            return
        copies = 1
        if faults.duplicate and chance() < faults.duplicate:
            copies = 2
            self.counters["doubled"] += 1
        for _ in range(copies):
            wait = faults.delay
            if faults.reorder and chance() < faults.reorder:
                wait += chance() * faults.late
            loop = asyncio.get_running_loop()
            if wait:
                loop.call_later(wait, self._deliver, to, message, self._lives, context=to.bus.context)
            else:
                loop.call_soon(self._deliver, to, message, self._lives, context=to.bus.context)

    def _deliver(self, to: _Subscription, message: Incoming, life: int) -> None:
        if life != self._lives or id(to) not in self.subscriptions or not self.reaches(to.bus.name):
            self.counters["lost"] += 1
            return
        self.counters["delivered"] += 1
        to.bus.deliver(to, message)


class MemoryBus:
    """One client of a broker."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self.broker = broker
        self.name = name
        self._connected = False
        self._was_up = False
        self._up = asyncio.Event()
        self._inboxes = itertools.count()
        self._listeners: list[Callable[[Event], None]] = []
        #: handlers run in the context of whoever made the client, not in that of a sender
        self.context = contextvars.copy_context()
        self.counters = {"handler_errors": 0}

    @property
    def connected(self) -> bool:
        return self._connected

    async def connect(self) -> None:
        self.broker.clients[self.name] = self
        if self.broker.reaches(self.name):
            self.came_up()
        await self._up.wait()

    async def close(self) -> None:
        self._connected = False
        self.broker.clients.pop(self.name, None)
        for key, each in list(self.broker.subscriptions.items()):
            if each.bus is self:
                del self.broker.subscriptions[key]

    def publish(self, subject: str, data: bytes, traceparent: str = "") -> None:
        if not self._connected:
            raise Disconnected("not connected")
        self.broker.route(self.name, Incoming(subject, data, "", traceparent))

    async def flush(self, timeout: float = 2.0) -> None:
        if not self._connected:
            raise Disconnected("not connected")
        await asyncio.sleep(0)

    async def request(self, subject: str, data: bytes, timeout: float, traceparent: str = "") -> bytes:
        if not self._connected:
            raise Disconnected("not connected")
        if not self.broker.has_listener(subject):
            await asyncio.sleep(0)
            raise NoReply(f"nobody listens on {subject}")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def arrived(message: Incoming) -> None:
            if not answer.done():
                answer.set_result(message.data)

        inbox = f"_INBOX.{self.name}.{next(self._inboxes)}"
        waiting = self._add(inbox, arrived, "", 0.0)
        try:
            self.broker.route(self.name, Incoming(subject, data, inbox, traceparent))
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise NoReply(f"no reply on {subject} within {timeout} s") from None
        finally:
            await waiting.unsubscribe()

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        late = self.broker.faults.interest
        return self._add(subject, handler, queue, asyncio.get_running_loop().time() + late if late else 0.0)

    def _add(self, subject: str, handler: Handler, queue: str, since: float) -> _Subscription:
        subscription = _Subscription(self, subject, handler, queue, since)
        self.broker.subscriptions[id(subscription)] = subscription
        return subscription

    def listen(self, handler: Callable[[Event], None]) -> None:
        self._listeners.append(handler)

    # -- what the broker does ---------------------------------------------------------------------------------------

    def deliver(self, to: _Subscription, message: Incoming) -> None:
        try:
            to.handler(message)
        except Exception:
            self.counters["handler_errors"] += 1
            log.exception("the handler of %s failed", to.pattern)

    def went_down(self) -> None:
        if self._connected:
            self._connected = False
            self._tell(Event("disconnected"))

    def came_up(self) -> None:
        if not self._connected:
            self._connected = True
            self._tell(Event("reconnected" if self._was_up else "connected"))
            self._was_up = True
            self._up.set()

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener of the bus failed")
