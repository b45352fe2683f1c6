"""What control is told of this host's ports, until it says that it is stored (rules S14, S15).

Part of `AgentState`. An answer is owed for every revision of a port or its tombstone, and given when the kernel has it
or refused it; per key only the latest is kept. Nothing is said of other objects.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import cast

from msgspec import Struct

from agent.core.context import Context
from agent.core.events import Answered
from agent.core.instructions import Traced
from agent.core.plan import Plan
from agent.core.translate import Goals
from planes.data.driver import SpecKey
from planes.goalstate import codec
from planes.goalstate.codec import MAX_OBJECTS, Malformed
from planes.goalstate.messages import Ack, Applied, Gone, Key, ObjectKind, Ok, Port
from planes.goalstate.subjects import ANY

#: ack requests that may be under way at a time
AT_ONCE = 8
RETRY_FIRST, RETRY_MOST = 0.5, 30.0


class Owed(Struct):
    """A revision that control wants to hear of. `said`: the error that it was told already."""

    rev: int
    change: bytes
    author: str
    sent: int
    received: int
    keys: tuple[SpecKey, ...] = ()  # of a tombstone: what must be gone
    gone: bool = False
    said: str = ""
    started: int = 0
    done: int = 0
    trace: str = ""  # context under which it came, until its work was told of


class Acks:
    """Answers owed, waiting to be sent, and on their way."""

    def __init__(self, context: Context, plan: Plan, goals: Goals, superseded: Callable[[int], None]) -> None:
        self._context = context
        self._superseded = superseded
        self._plan = plan
        self._goals = goals
        self.owed: dict[Key, Owed] = {}
        #: to be sent, latest per key
        self._waiting: dict[Key, tuple[Applied, str]] = {}
        self._under_way: dict[int, dict[Key, tuple[Applied, str]]] = {}
        self._count = 0
        self._tries = 0
        #: not confirmed; they wait for the timer, others do not. True: there was no reply at all
        self._held: dict[Key, bool] = {}

    def owe(
        self, item: Port | Gone, author: str, sent: int, received: int, keys: tuple[SpecKey, ...] = (), trace: str = ""
    ) -> None:
        """A new revision came."""
        gone = isinstance(item, Gone)
        self.owed[item.key] = Owed(item.rev, item.change, author or ANY, sent, received, keys, gone, trace=trace)
        self._waiting.pop(item.key, None)

    def repeat(self, item: Port | Gone, author: str, sent: int, received: int) -> None:
        """Control sent a revision again: it wants to hear again what became of it."""
        key = item.key
        if key in self.owed:
            self.owed[key].said = ""
        elif key not in self._waiting:
            self.owe(item, author, sent, received)

    def opened(self, held: Iterable[SpecKey]) -> list[SpecKey]:
        """What the kernel still has of ports that are to be gone: they are answered for when it is dropped."""
        left = []
        for key in held:
            owed = self.owed.get((ObjectKind.PORT, b"", key[2])) if key[0] == "port" else None
            if owed is not None and owed.gone:
                owed.keys = (*owed.keys, key)
                left.append(key)
        return left

    def resume(self) -> None:
        """Send again what was not confirmed."""
        self._held.clear()

    def control_is_there(self) -> None:
        """A beacon came, or a reply: what found nobody goes again. What was put off keeps its time."""
        self._held = {key: unheard for key, unheard in self._held.items() if not unheard}
        self._tries = 0

    def stamp(self, keys: list[SpecKey], started: int, done: int) -> None:
        """The driver worked on these."""
        ports = {key[2] for key in keys if key[0] == "port"}
        for key, owed in self.owed.items():
            if key[2] in ports:
                owed.started, owed.done = started, done

    def settle(self) -> None:
        """Answer for whatever the kernel now has, or refused."""
        told: dict[tuple[str, int], Traced] = {}
        for key in list(self.owed):
            owed = self.owed[key]
            error = self._verdict(key, owed)
            if error is None or (error and error == owed.said):
                continue
            started = owed.started or owed.received
            answer = Applied(
                key[0], key[1], key[2], owed.rev, error[:500], owed.change, owed.sent, owed.received, started,
                owed.done or started,
            )  # fmt: skip
            self._waiting[key] = (answer, owed.author)
            self._held.pop(key, None)
            if owed.trace:
                _tell(told, owed, answer)
            self._context.counters["failed" if error else "applied"] += 1
            if error:
                owed.said = error
            else:
                del self.owed[key]
        self._context.out += told.values()

    def _verdict(self, key: Key, owed: Owed) -> str | None:
        """Empty: done. Words: refused. None: not yet."""
        if key in self._goals.flaws:
            return self._goals.flaws[key]
        if owed.gone:
            keys = list(owed.keys)
        else:
            port = self._goals.port(key[2])
            if port is None or self._goals.waits(port):
                return None
            keys = self._goals.needs(port)
            if any(need not in self._plan.desired for need in keys):
                return None
        if error := self._plan.error(keys):
            return error
        return "" if all(self._plan.holds(need) for need in keys) else None

    def send(self) -> None:
        """Send what waits, at once, up to a number of requests at a time."""
        context = self._context
        if not context.online or not context.epoch or not self._waiting:
            return
        flying = set(self._held).union(*self._under_way.values())
        batches: dict[str, dict[Key, tuple[Applied, str]]] = defaultdict(dict)
        for key, item in self._waiting.items():
            if key not in flying and len(batches[item[1]]) < MAX_OBJECTS:
                batches[item[1]][key] = item
        for author, items in batches.items():
            if len(self._under_way) >= AT_ONCE:
                return
            if items:
                self._count += 1
                self._under_way[self._count] = items
                message = Ack(tuple(answer for answer, _ in items.values()))
                context.request(("ack", self._count), context.subjects.ack(context.options.host, author), message)

    def answered(self, event: Answered) -> None:
        """Stored, or to be said again."""
        items = self._under_way.pop(cast(int, event.tag[1]), None)
        if items is None:
            return
        again = self._tries_again(event.data)
        if again is not None:
            self._tries += not self._held  # those of one round are one try
            self._context.counters["acks_repeated"] += 1
            held = [key for key, item in items.items() if self._waiting.get(key) is item]
            self._held.update(dict.fromkeys(held, event.data is None))
            self._context.timers.set(("acks",), self._context.now + again)
            return
        self.control_is_there()
        for key, item in items.items():
            if self._waiting.get(key) is item:
                del self._waiting[key]

    def _tries_again(self, data: bytes | None) -> float | None:
        """Seconds after which the acks go out again; None: they are stored."""
        retry = self._context.backoff(self._tries, RETRY_FIRST, RETRY_MOST)
        if data is None:
            return retry
        try:
            reply = codec.decode(data, Ok)[1]
        except Malformed:
            self._context.counters["malformed"] += 1
            return retry
        if reply.epoch > self._context.epoch:
            self._superseded(reply.epoch)  # not stored: said again in the next life
            return retry
        return self._context.jittered(float(reply.again)) if reply.again else None

    def forget(self, key: Key) -> None:
        """The port was swept: control does not know it any more."""
        self.owed.pop(key, None)
        self._waiting.pop(key, None)
        self._held.pop(key, None)

    def unsettled(self) -> tuple[int, int]:
        """Ports that are on their way into the kernel, and ports that it refused."""
        error = sum(bool(owed.said) for owed in self.owed.values() if not owed.gone)
        return sum(not owed.gone for owed in self.owed.values()) - error, error

    def waiting(self) -> int:
        return len(self.owed) + len(self._waiting)


def _tell(told: dict[tuple[str, int], Traced], owed: Owed, answer: Applied) -> None:
    """One more object of a message that is traced; what came together is told together."""
    key, owed.trace = (owed.trace, answer.sent), ""
    old = told.get(key) or Traced(*key, answer.received, 0, 0, 0, "")
    told[key] = Traced(
        *key, old.received, max(old.started, answer.started), max(old.done, answer.done), old.objects + 1,
        old.error or answer.error,
    )  # fmt: skip
