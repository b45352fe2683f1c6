"""Hands goal state to the bus: written first, published after, never the other way round (rule S3).

Called by management after a commit, by the echo and by whoever changes hosts. Objects of one scope that are handed over
in the same turn of the loop leave as one message, at most 256 objects or 256 KiB (rule S23). What cannot be sent now is
counted and left to the echo; nothing is kept for later, except that host messages which nobody acks go out again after
1 s and 3 s (rule S15).
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import takewhile

from msgspec import Struct
from msgspec.structs import replace

from observability.spans import HOSTS
from planes.bus.protocol import Bus, BusError
from planes.goalstate import codec
from planes.goalstate.messages import Goal, Key, Object, Span
from planes.goalstate.subjects import Subjects

#: seconds after which an unacknowledged host message goes out again
REPEATS = (1.0, 3.0)
#: host messages whose acks are awaited; more are left to the echo
AWAITED = 100_000
#: objects of one message; leaves room for the largest objects under 256 KiB
_CHUNK_BYTES = codec.MAX_MESSAGE * 3 // 4

#: the end of a context that is sampled
SAMPLED = "-01"

Awaited = tuple[str, Key]


class _Said(Struct, frozen=True, gc=False):
    """What a host was told and has not acked: in which of its lives, under which context, and when it is due again."""

    item: Object
    epoch: int
    traceparent: str
    due: float


class _Message:
    __slots__ = ("epoch", "objects", "spans", "traceparent")

    def __init__(self, traceparent: str, epoch: int) -> None:
        self.objects: dict[Key, Object] = {}
        self.spans: list[Span] = []
        self.traceparent = traceparent
        self.epoch = epoch


class Publisher:
    """One instance's outgoing goal state."""

    def __init__(
        self, bus: Bus, subjects: Subjects, instance: str, now: Callable[[], int], epoch_of: Callable[[str], int]
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._instance = instance
        self._now = now
        self._epoch_of = epoch_of
        self._pending: dict[str, _Message] = {}
        self._scheduled = False
        #: when what is said to hosts in this turn is said again
        self._due = 0.0
        #: what is awaited, the oldest first: that was said once, and that was repeated once
        self._awaited: tuple[dict[Awaited, _Said], dict[Awaited, _Said]] = {}, {}
        #: hears of sampled objects that travel to a host under another context than theirs, or under none
        self.joined: Callable[[str, str, str], None] | None = None
        #: hosts that each sampled context goes to in this turn
        self._spread: dict[str, set[str]] = {}
        self.counters = {"published": 0, "unsent": 0, "repeated": 0}

    @property
    def waiting(self) -> tuple[int, int]:
        """Messages to be sent now, and objects of which acks are awaited."""
        return len(self._pending), sum(map(len, self._awaited))

    def host(self, host: str, objects: Sequence[Object], traceparent: str = "") -> None:
        """Ports and their tombstones, for the host that has them; acknowledged."""
        epoch = self._epoch_of(host)
        sampled = traceparent.endswith(SAMPLED)
        context = traceparent if not sampled or self._spreads(traceparent, host) else ""
        carrier = self._add(self._subjects.host(host), objects, (), context, epoch)
        if sampled and carrier != traceparent:
            context = ""
            if self.joined is not None:
                self.joined(traceparent, host, carrier)
        first, again = self._awaited
        for item in objects:
            awaited = (host, item.key)
            known = first.get(awaited) or again.get(awaited)
            if known is not None:
                if (known.item.rev, known.epoch) >= (item.rev, epoch):
                    continue
                first.pop(awaited, None)
                again.pop(awaited, None)
            if len(first) + len(again) < AWAITED:
                first[awaited] = _Said(item, epoch, context, self._due)

    def network(self, network: bytes, objects: Sequence[Object], spans: Sequence[Span], traceparent: str = "") -> None:
        """Objects of a network, and the stretch of its partitions that they complete."""
        self._add(self._subjects.network(network), objects, spans, traceparent, 0)

    def group(self, group: bytes, objects: Sequence[Object], traceparent: str = "") -> None:
        self._add(self._subjects.group(group), objects, (), traceparent, 0)

    def _spreads(self, traceparent: str, host: str) -> bool:
        """Whether this host gets the context too: so many do that a change's trace stays readable."""
        hosts = self._spread.setdefault(traceparent, set())
        if len(hosts) < HOSTS:
            hosts.add(host)
        return host in hosts

    def acked(self, host: str, key: Key, rev: int) -> None:
        """The host answered for this revision: no repetition."""
        for some in self._awaited:
            said = some.get((host, key))
            if said is not None and said.item.rev <= rev:
                del some[host, key]

    def repeat(self) -> None:
        """Send what is due a second or third time; called a few times a second.

        A new life of the host pulls what it needs: what was said to the former one may be superseded, by whoever else.
        """
        now = asyncio.get_running_loop().time()
        first, again = self._awaited
        for some in (again, first):
            for awaited, said in list(takewhile(lambda each: each[1].due <= now, some.items())):
                host, _ = awaited
                del some[awaited]
                if said.epoch != self._epoch_of(host):
                    continue
                self._add(self._subjects.host(host), (said.item,), (), said.traceparent, said.epoch)
                self.counters["repeated"] += 1
                if some is first:
                    again[awaited] = replace(said, due=now + REPEATS[1] - REPEATS[0])

    def _add(self, subject: str, objects: Sequence[Object], spans: Sequence[Span], traceparent: str, epoch: int) -> str:
        """Returns the context that the message bears: the first sampled one."""
        message = self._pending.get(subject)
        full = message is not None and len(message.objects) + len(objects) > codec.MAX_OBJECTS
        if message is not None and (full or message.epoch != epoch):
            self._send(subject, tuple(message.objects.values()), tuple(message.spans), message)
            message = None
        if message is None:
            message = self._pending[subject] = _Message(traceparent, epoch)
        elif traceparent.endswith(SAMPLED) and not message.traceparent.endswith(SAMPLED):
            message.traceparent = traceparent
        for item in objects:  # the echo may come with what it read before the last change
            key = item.key
            present = message.objects.get(key)
            if present is None or present.rev <= item.rev:
                message.objects[key] = item
        message.spans.extend(spans)
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self.flush)
            self._due = loop.time() + REPEATS[0]
        return message.traceparent

    def flush(self) -> None:
        """Send everything that was handed over."""
        self._scheduled = False
        self._spread.clear()
        pending, self._pending = self._pending, {}
        for subject, message in pending.items():
            self._send(subject, tuple(message.objects.values()), tuple(message.spans), message)

    def _send(self, subject: str, objects: tuple[Object, ...], spans: tuple[Span, ...], message: _Message) -> None:
        goal = Goal(objects, spans, self._instance, self._now())
        data = codec.encode(goal, self._instance, message.epoch)
        if (len(data) > _CHUNK_BYTES or len(objects) > codec.MAX_OBJECTS) and len(objects) > 1:
            # A part must not claim a stretch of which another part was lost: the gap makes the hosts pull.
            half = len(objects) // 2
            self._send(subject, objects[:half], (), message)
            self._send(subject, objects[half:], (), message)
            return
        try:
            self._bus.publish(subject, data, message.traceparent)
            self.counters["published"] += 1
        except BusError:
            self.counters["unsent"] += 1
