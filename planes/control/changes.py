"""Follows each change to its end: from the request through the hosts' acks to the stored status, exactly.

Called by management (a change was published), by the acks (a host answered) and by the REST edge (show me). Stages
come from the control plane's own clock and from the messages, so they are complete without sampling; `finished` hears
of each record and may export spans. Finished changes are kept in memory for a while and in the store for 7 days.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

import msgspec

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
#: writes that wait for the background writer; more are dropped and counted
BACKLOG = 50_000


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


_decode = msgspec.msgpack.Decoder(Record).decode
_encode = msgspec.msgpack.Encoder().encode
_start = attrgetter("start")

Finished = Callable[[Record], None]


class _Open:
    """A change whose hosts have not all answered."""

    __slots__ = ("before", "change", "hosts", "last", "waiting")

    def __init__(self, change: Change, waiting: dict[Id, Port]) -> None:
        self.change = change
        self.waiting = waiting
        #: by port: an earlier change that waits for it too, if any
        self.before: dict[Id, _Open] | None = None
        self.hosts: dict[tuple[str, str], Took] = {}
        self.last = change.last


class Changes:
    """All changes that this instance authored and that are not long finished."""

    def __init__(self, store: Store, teller: Teller, finished: Finished) -> None:
        self._store = store
        self._teller = teller
        self._finished = finished
        self._open: OrderedDict[bytes, _Open] = OrderedDict()
        #: by port: the last change that waits for its host
        self._last: dict[Id, _Open] = {}
        self._done: OrderedDict[bytes, Record] = OrderedDict()
        self._backlog: list[Record] = []
        self._wake = asyncio.Event()
        self.counters = {"changes_dropped": 0}

    @property
    def waiting(self) -> tuple[int, int]:
        """Changes whose hosts have not all answered, and finished ones to be written."""
        return len(self._open), len(self._backlog)

    def follow(self, change: Change, ports: Iterable[Port] = ()) -> None:
        """The change was published; it is finished when hosts have answered for all these ports (none: now)."""
        waiting = {port.id: port for port in ports}
        opened = _Open(change, waiting)
        if not waiting:
            self._finish(opened)
            return
        self._open[change.id] = opened
        for id_ in waiting:
            if (earlier := self._last.get(id_)) is not None:
                opened.before = opened.before or {}
                opened.before[id_] = earlier
            self._last[id_] = opened
        if len(self._open) > FOLLOWED:
            _, oldest = self._open.popitem(last=False)
            self._finish(oldest)
            for id_ in oldest.waiting:
                if self._last.get(id_) is oldest:
                    del self._last[id_]
            oldest.waiting, oldest.before = {}, None

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
            self._answer(earlier, host, item, heard, stored)
            earlier = earlier.before.pop(id_, None) if earlier.before else None
        return opened.change, port

    def _answer(self, opened: _Open, host: str, item: Applied, heard: int, stored: int) -> None:
        begun = item.received if item.sent else item.started or item.done
        stages = [
            ("program", begun, item.done, item.error),
            ("ack", item.done, heard, ""),
            ("active", heard, stored, ""),
        ]
        if item.sent:
            stages.insert(0, ("receive", item.sent, item.received, ""))
        for name, start, end, error in stages:
            # Several ports of one change on one host are one stage: from the first start to the last end.
            old = opened.hosts.get((name, host))
            if old is not None:
                start, end = min(start, old.start), max(end, old.start + old.duration)
                error = error or old.error
            opened.hosts[name, host] = Took(name, host, start, end - start if end > start else 0, error)
        opened.last = max(opened.last, stored)
        if not opened.waiting:
            self._open.pop(opened.change.id, None)
            self._finish(opened)

    def _finish(self, opened: _Open) -> None:
        record = self._record(opened)
        self._done[record.id] = record
        if len(self._done) > KEPT:
            self._done.popitem(last=False)
        if len(self._backlog) < BACKLOG:
            if not self._backlog:
                self._wake.set()
            self._backlog.append(record)
        else:
            self.counters["changes_dropped"] += 1
        self._finished(record)

    def _record(self, opened: _Open) -> Record:
        change = opened.change
        own = [Took(name, "", start, took) for name, (start, took) in change.stages().items()]
        stages = own + sorted(opened.hosts.values(), key=_start)
        failed = [stage for stage in stages if stage.error]
        status = "ERROR" if failed else ("BUILD" if opened.waiting else "ACTIVE")
        return Record(
            change.id,
            change.trace_id,
            change.resource,
            status,
            tuple(stages),
            max(0, opened.last - change.begun),
            change.traceparent,
            change.project,
            change.object,
            change.count,
        )

    async def get(self, id_: bytes) -> Record | None:
        """The record of a change, finished or not."""
        if opened := self._open.get(id_):
            return self._record(opened)
        if record := self._done.get(id_):
            return record
        rows = (await self._store.read(CHANGES, (id_,))).rows
        return _decode(rows[-1][2]) if rows else None  # type: ignore[arg-type]

    def recent(self) -> Iterator[Record]:
        """What this instance remembers, the newest first; a change that hosts have yet to answer for comes before."""
        yield from (self._record(opened) for opened in reversed(self._open.values()))
        yield from reversed(self._done.values())

    async def keep(self) -> None:
        """Tell of finished changes and write them in the background, many at once; runs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            records, self._backlog = self._backlog, []
            self._teller.finished([(record.project, done_of(record)) for record in records])
            try:
                await self._store.write([_write(record) for record in records])
            except StoreError as error:
                log.warning("traces of %d changes were not kept: %s", len(records), error)
                self.counters["changes_dropped"] += len(records)
            await asyncio.sleep(0.1)


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


def _write(record: Record) -> Write:
    start = record.stages[0].start if record.stages else 0
    return Write(CHANGES, (record.id,), (start, ""), (_encode(record),), start + record.total)
