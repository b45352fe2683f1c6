"""Follows each change to its end: from the request through the hosts' acks to the stored status, exactly.

Called by management (a change was published), by the acks (a host answered) and by the REST edge (show me). Stages
come from the control plane's own clock and from the messages, so they are complete without sampling; `finished` hears
of all records and may export spans. Changes that have ended are put away some at a time, by a task of their own: one
after the other that costs a third of what each costs alone, between two requests. They are kept in memory for a while
and in the store for 7 days.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from operator import attrgetter

import msgspec
from msgspec import Struct

from observability.stages import Change, request_id
from planes.control.events import Teller
from planes.goalstate.messages import Applied, Done, Took
from planes.model.ids import Id
from planes.model.resources import Body, Port
from planes.store.protocol import Store, StoreError, Write
from planes.store.schema import CHANGES

log = logging.getLogger(__name__)

#: changes followed at once, and finished ones kept in memory
FOLLOWED = 100_000
KEPT = 20_000
#: ended ones that wait to be put away; more are dropped and counted
BACKLOG = 50_000
#: so many are put away in one go, or those of so many seconds: what waits is work for the collector
TOGETHER = 64
GATHER = 0.1


class Record(Body, frozen=True):
    """Body of a `changes` row, and what the REST edge shows."""

    id: bytes
    trace_id: str
    resource: str
    status: str
    stages: tuple[Took, ...]
    total: int
    traceparent: str = ""
    project: str = ""
    object: str = ""  # id of the first object
    count: int = 0


class Brief(Struct, frozen=True, gc=False):
    """What a finished change is found by, and its record as it is stored: many are kept, few are looked at."""

    project: str
    resource: str
    status: str
    object: str
    total: int
    body: bytes


#: one answer for a port: host, what it said, when that came and when it was kept
Answer = tuple[str, Applied, int, int]

_decode = msgspec.msgpack.Decoder(Record).decode
_encode = msgspec.msgpack.Encoder().encode
_start = attrgetter("start")

Finished = Callable[[Sequence[Record]], None]


class _Open:
    """A change whose hosts have not all answered."""

    __slots__ = ("answers", "before", "change", "given_up", "waiting")

    def __init__(self, change: Change, waiting: dict[Id, Port]) -> None:
        self.change = change
        self.waiting = waiting
        #: by port: an earlier change that waits for it too, if any
        self.before: dict[Id, _Open] | None = None
        self.answers: list[Answer] = []
        self.given_up = False


class Changes:
    """All changes that this instance authored and that are not long finished."""

    def __init__(self, store: Store, teller: Teller, finished: Finished) -> None:
        self._store = store
        self._teller = teller
        self._finished = finished
        self._open: OrderedDict[bytes, _Open] = OrderedDict()
        #: by port: the last change that waits for its host
        self._last: dict[Id, _Open] = {}
        #: those that have ended and are not put away yet, and those that are
        self._ended: dict[bytes, _Open] = {}
        self._done: OrderedDict[bytes, Brief] = OrderedDict()
        self._some, self._enough = asyncio.Event(), asyncio.Event()
        self.counters = {"changes_dropped": 0}

    @property
    def waiting(self) -> tuple[int, int]:
        """Changes whose hosts have not all answered, and ended ones to be put away."""
        return len(self._open), len(self._ended)

    def follow(self, change: Change, ports: Iterable[Port] = ()) -> None:
        """The change was published; it is finished when hosts have answered for all these ports (none: now)."""
        waiting = {port.id: port for port in ports}
        opened = _Open(change, waiting)
        if not waiting:
            self._end(opened)
            return
        self._open[change.id] = opened
        for id_ in waiting:
            if (earlier := self._last.get(id_)) is not None:
                opened.before = opened.before or {}
                opened.before[id_] = earlier
            self._last[id_] = opened
        if len(self._open) > FOLLOWED:
            _, oldest = self._open.popitem(last=False)
            self._end(oldest)
            for id_ in oldest.waiting:
                if self._last.get(id_) is oldest:
                    del self._last[id_]
            oldest.waiting, oldest.before, oldest.given_up = {}, None, True

    def answered(self, host: str, item: Applied, heard: int, stored: int) -> tuple[Change, Port] | None:
        """A host answered for one port: `heard` and `stored` are when the ack came and when it was kept.

        Who answers for a revision answers for those before, of which it may say nothing. Returns the change and the
        port as it was asked for, or None when nobody here waited for this answer.
        """
        id_ = Id(item.id)
        opened = self._open.get(item.change)
        port = opened.waiting.get(id_) if opened else None
        if opened is None or port is None:
            return None
        if self._last.get(id_) is opened:
            del self._last[id_]
        earlier: _Open | None = opened
        while earlier is not None and earlier.waiting.pop(id_, None) is not None:
            earlier.answers.append((host, item, heard, stored))
            if not earlier.waiting:
                self._open.pop(earlier.change.id, None)
                self._end(earlier)
            earlier = earlier.before.pop(id_, None) if earlier.before else None
        return opened.change, port

    def _end(self, opened: _Open) -> None:
        if len(self._ended) >= BACKLOG:
            self.counters["changes_dropped"] += 1
            return
        self._ended[opened.change.id] = opened
        self._some.set()
        if len(self._ended) >= TOGETHER:
            self._enough.set()

    async def get(self, id_: bytes) -> Record | None:
        """The record of a change, finished or not."""
        if opened := self._open.get(id_) or self._ended.get(id_):
            return _record(opened)
        if brief := self._done.get(id_):
            return _decode(brief.body)
        rows = (await self._store.read(CHANGES, (id_,))).rows
        return _decode(rows[-1][2]) if rows else None  # type: ignore[arg-type]

    def recent(self, fits: Callable[[Record | Brief], bool]) -> Iterator[Record]:
        """What this instance remembers, the newest first; a change that hosts have yet to answer for comes before."""
        for some in (self._open, self._ended):
            yield from filter(fits, map(_record, reversed(some.values())))
        yield from (_decode(brief.body) for brief in reversed(self._done.values()) if fits(brief))

    async def keep(self) -> None:
        """Put away what has ended, in the background; runs until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            self._enough.clear()
            await self.put_away()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER):
                    await self._enough.wait()

    async def put_away(self) -> None:
        """Tell of those that have ended, and write their records."""
        left = len(self._ended)
        while left > 0:
            writes = self.tell(min(left, TOGETHER))
            left -= TOGETHER
            try:
                await self._store.write(writes)
            except StoreError as error:
                log.warning("traces of %d changes were not kept: %s", len(writes), error)
                self.counters["changes_dropped"] += len(writes)

    def tell(self, most: int) -> list[Write]:
        """Tell of so many that have ended; their rows."""
        records = [_record(opened) for opened in islice(self._ended.values(), most)]
        for record in records:
            del self._ended[record.id]
        self._finished(records)
        self._teller.finished([(record.project, done_of(record)) for record in records])
        return [self._remembered(record) for record in records]

    def _remembered(self, record: Record) -> Write:
        body = _encode(record)
        brief = Brief(record.project, record.resource, record.status, record.object, record.total, body)
        self._done[record.id] = brief
        if len(self._done) > KEPT:
            self._done.popitem(last=False)
        start = record.stages[0].start if record.stages else 0
        return Write(CHANGES, (record.id,), (start, ""), (body,), start + record.total)


def _record(opened: _Open) -> Record:
    change, answers = opened.change, opened.answers
    last, failed = change.last, False
    took = [Took(name, "", start, duration) for name, start, duration in change.stages()]
    if len(answers) == 1:
        took += _took(*answers[0])
    elif answers:
        took += sorted(_together(answers), key=_start)
    for _, item, _, stored in answers:
        last = max(last, stored)
        failed = failed or bool(item.error)
    status = "ERROR" if failed else ("BUILD" if opened.waiting or opened.given_up else "ACTIVE")
    return Record(
        change.id,
        change.trace_id,
        change.resource,
        status,
        tuple(took),
        max(0, last - change.begun),
        change.traceparent,
        change.project,
        change.object,
        change.count,
    )


def _took(host: str, item: Applied, heard: int, stored: int) -> list[Took]:
    """What an answer tells, in the order in which it happened."""
    begun, done = item.received if item.sent else item.started or item.done, item.done
    took = [
        Took("program", host, begun, max(0, done - begun), item.error),
        Took("ack", host, done, max(0, heard - done)),
        Took("active", host, heard, max(0, stored - heard)),
    ]
    return [Took("receive", host, item.sent, max(0, item.received - item.sent)), *took] if item.sent else took


def _together(answers: Iterable[Answer]) -> Iterable[Took]:
    """Several ports of one change on one host are one stage: from the first start to the last end."""
    hosts: dict[tuple[str, str], Took] = {}
    for stage in chain.from_iterable(_took(*answer) for answer in answers):
        where = (stage.name, stage.host)
        if (old := hosts.get(where)) is not None:
            start = min(old.start, stage.start)
            end = max(old.start + old.duration, stage.start + stage.duration)
            stage = Took(stage.name, stage.host, start, end - start, stage.error or old.error)
        hosts[where] = stage
    return hosts.values()


def done_of(record: Record) -> Done:
    """The record as integrators and clients hear of it."""
    return Done(
        request_id(record.id),
        record.trace_id,
        record.resource,
        record.object,
        record.count,
        record.status,
        record.total,
        record.stages,
    )
