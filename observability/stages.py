"""One change as it happens: the request's identity and the exact time each stage took, without any sampling.

A `Change` is made when a request is accepted, marked as it passes through management and control, completed by the
acks of hosts. A mark is a name and a time; stages and spans are made from them afterwards, where somebody wants them.
"""

import os
import random
import secrets
import time
from collections.abc import Sequence
from typing import Protocol

#: every stage, in order; one that did not happen is absent
STAGES = ("accept", "validate", "claim", "write", "publish", "receive", "program", "ack", "active")
#: last byte of span ids: of the request, the whole change, its publishing; so that each can name the others
REQUEST, WHOLE, PUBLISH = "00", "01", "02"
#: ids are unique, not secret: no system call for each
_random = random.Random(secrets.token_bytes(32))
os.register_at_fork(after_in_child=lambda: _random.seed(secrets.token_bytes(32)))


def now_us() -> int:
    """Wall clock, µs since the epoch."""
    return time.time_ns() // 1000


def request_id(id_: bytes) -> str:
    """A change's id, as answers, logs, spans and events spell it: `req-` and a UUID."""
    h = id_.hex()
    return f"req-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def _uuid7(at: int, bits: bytes) -> bytes:
    """A UUID that begins with the time (RFC 9562): rows of changes made together lie together, on few pages."""
    return (at // 1000).to_bytes(6, "big") + bytes((bits[0] & 0x0F | 0x70, bits[1], bits[2] & 0x3F | 0x80)) + bits[3:10]


class Stage:
    """One interval: `start` in µs since the epoch, `duration` in µs; `host` empty for the control plane's own."""

    __slots__ = ("duration", "error", "host", "name", "start")

    def __init__(self, name: str, start: int, duration: int, host: str = "", error: str = "") -> None:
        self.name = name
        self.start = start
        self.duration = duration
        self.host = host
        self.error = error


class Change:
    """One request that changes something. `id` is the request id (16 bytes), `traceparent` the W3C header.

    `project`, `object` (the first one's id) and `count` are known when it has been done.
    """

    __slots__ = (
        "begun",
        "count",
        "id",
        "marks",
        "object",
        "project",
        "resource",
        "sampled",
        "span_id",
        "trace_id",
        "traceparent",
    )

    def __init__(self, resource: str = "", trace_id: str = "", parent_sampled: bool = False) -> None:
        self.begun = now_us()
        bits = _random.getrandbits(33 * 8).to_bytes(33, "big")
        self.id = _uuid7(self.begun, bits)
        self.trace_id = trace_id or bits[10:26].hex()
        #: of the span that its publishing will be: what hosts do hangs there
        self.span_id = bits[26:].hex() + PUBLISH
        self.sampled = parent_sampled
        self.traceparent = f"00-{self.trace_id}-{self.span_id}-{'01' if parent_sampled else '00'}"
        self.resource = resource
        self.project = self.object = ""
        self.count = 0
        #: each stage's name and end
        self.marks: list[tuple[str, int]] = []

    @property
    def last(self) -> int:
        """When the last stage ended."""
        return self.marks[-1][1] if self.marks else self.begun

    def concerns(self, project: str, object_: str, count: int) -> None:
        """What it was about, now that it is known."""
        self.project, self.object, self.count = project, object_, count

    def mark(self, name: str) -> None:
        """The time since the last mark was spent in stage `name`."""
        self.marks.append((name, time.time_ns() // 1000))

    def stages(self) -> list[tuple[str, int, int]]:
        """Name, start and duration of each stage; one that was marked twice adds up."""
        found: dict[str, tuple[str, int, int]] = {}
        start = self.begun
        for name, end in self.marks:
            before = found.get(name)
            found[name] = (name, start, end - start) if before is None else (name, before[1], before[2] + end - start)
            start = end
        return list(found.values())


class StageLike(Protocol):
    """One interval: µs since the epoch, and µs."""

    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def duration(self) -> int: ...
    @property
    def error(self) -> str: ...


class Finished(Protocol):
    """A change that has come to its end."""

    @property
    def id(self) -> bytes: ...
    @property
    def resource(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def stages(self) -> Sequence[StageLike]: ...
    @property
    def total(self) -> int: ...
    @property
    def traceparent(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def object(self) -> str: ...
    @property
    def count(self) -> int: ...
