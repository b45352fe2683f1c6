"""What all parts of the agent's core share: who we are, the time, timers, chance, counters, and the way out.

Made by `AgentState`, which sets the time before each event and collects the instructions after it.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Hashable

from msgspec import Struct

from agent.core.events import Tag
from agent.core.instructions import Instruction, Request, Say
from planes.goalstate import codec
from planes.goalstate.codec import Message
from planes.goalstate.subjects import Subjects

Name = tuple[Hashable, ...]


class Options(Struct, frozen=True, kw_only=True):
    """Bounds and times (seconds); the defaults are those of the rules."""

    host: str
    machine: str
    vtep: bytes
    cell: str = ""
    software: str = "alcor-mesh"
    capabilities: tuple[str, ...] = ("vxlan-gbp",)
    prefix: str = "alcor"
    beat_every: float = 3.0
    sync_every: float = 600.0
    sync_spread: float = 1.0  # a sync after a reconnect happens within this
    look_again: float = 2.0  # after joining a scope
    gap_after: float = 0.05
    tombstone_life: float = 600.0
    linger: float = 0.0  # a scope is left this long after its last port
    request_timeout: float = 5.0
    pulls_at_once: int = 8
    batch: int = 1024  # specs handed to the driver at a time
    objects_max: int = 1 << 20
    instances_max: int = 256


class Timers:
    """Named points in time; setting a name again moves it."""

    def __init__(self) -> None:
        self._at: dict[Name, float] = {}
        self._heap: list[tuple[float, int, Name]] = []
        self._count = 0

    def set(self, name: Name, at: float) -> None:
        self._at[name] = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, name))

    def set_once(self, name: Name, at: float) -> None:
        """Unless it is set already, and earlier."""
        if self._at.get(name, at + 1) > at:
            self.set(name, at)

    def cancel(self, name: Name) -> None:
        self._at.pop(name, None)

    def __contains__(self, name: Name) -> bool:
        return name in self._at

    def due(self) -> float | None:
        """When the next one is due."""
        heap = self._heap
        while heap and self._at.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop(self, now: float) -> Name | None:
        """One that is due, which is then no longer set."""
        at = self.due()
        if at is None or at > now:
            return None
        name = heapq.heappop(self._heap)[2]
        del self._at[name]
        return name


class Context:
    """Shared by the parts of one agent."""

    def __init__(self, options: Options, random: Callable[[], float]) -> None:
        self.options = options
        self.subjects = Subjects(options.prefix)
        self.random = random
        #: monotonic seconds of the event that is being handled
        self.now = 0.0
        self.out: list[Instruction] = []
        self.timers = Timers()
        self.counters: Counter[str] = Counter()
        #: 0: not registered in this life
        self.epoch = 0
        #: the bus is there
        self.online = False
        self._said: dict[str, int] = {}

    def request(self, tag: Tag, subject: str, message: Message, timeout: float = 0.0) -> None:
        data = codec.encode(message, self.options.host, self.epoch)
        self.out.append(Request(tag, subject, data, timeout or self.options.request_timeout))

    def jittered(self, seconds: float) -> float:
        """The same, 25 % more or less, so that hosts do not act in step."""
        return seconds * (0.75 + self.random() / 2)

    def backoff(self, tries: int, first: float, most: float) -> float:
        """How long to wait before try number `tries` (from 0), jittered."""
        wait: float = min(most, first * 2.0 ** min(tries, 30))
        return self.jittered(wait)

    def trouble(self, kind: str, text: str) -> None:
        """Say the first of a kind, count the rest until `fine`."""
        self._said[kind] = self._said.get(kind, 0) + 1
        if self._said[kind] == 1:
            self.out.append(Say("warning", text))

    def fine(self, kind: str, text: str) -> None:
        """Say once that a kind of trouble is over."""
        if (count := self._said.pop(kind, 0)) > 0:
            self.out.append(Say("info", f"{text} (after {count} failures)"))
