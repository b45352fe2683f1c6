"""How long each stage takes: histograms of every sample, since start, over the last minutes, and for a heat map.

Called for every finished change, which is no more than put aside then, and counted with many others. Buckets are
log-linear, 64 per power of two: a quantile is off by less than 1 %; count, sum and maximum are exact. Coarser scales
(what is exported, the heat map) are made from these counts when somebody asks. No I/O.
"""

import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from observability.stages import Finished

#: width of the sliding window, in slots of `SLOT` seconds
SLOTS = 5
SLOT = 60.0
#: the heat map's: so many slots of so many seconds, of which a minute's holds a whole number
COLUMNS = 60
COLUMN = 10.0
_COLUMNS_IN_SLOT = int(SLOT / COLUMN)
#: the longest duration told apart: 2⁴⁰ µs, twelve days
LONGEST = (1 << 40) - 1
#: finished changes that wait to be counted
WAITING = 1000
_FINE = 64
_FINE_BITS = 7


def bucket_of(us: int) -> int:
    """The bucket of a duration."""
    if us < _FINE:
        return us if us > 0 else 0
    shift = us.bit_length() - _FINE_BITS
    return shift * _FINE + (us >> shift)


def middle_of(bucket: int) -> int:
    """The duration in the middle of a bucket."""
    if bucket < 2 * _FINE:
        return bucket
    shift = bucket // _FINE - 1
    return ((bucket - shift * _FINE) << shift) + (1 << shift >> 1)


class Scale:
    """A coarser division: rising upper bounds in µs, and one place more for what lies above all of them."""

    def __init__(self, bounds: Iterable[int]) -> None:
        self.bounds = tuple(bounds)
        #: of each of our buckets, where its middle lies
        self._places = bytes(bisect_left(self.bounds, middle_of(bucket)) for bucket in range(bucket_of(LONGEST) + 1))

    def place(self, us: int) -> int:
        """Where a duration is counted."""
        return self._places[bucket_of(min(max(us, 0), LONGEST))]

    def spread(self, counts: "Counts") -> list[int]:
        """How many samples lie at each place."""
        found = [0] * (len(self.bounds) + 1)
        places = self._places
        for bucket, n in counts.buckets.items():
            found[places[bucket]] += n
        return found


#: what is exported: 0.1 ms to 60 s
EXPORTED = Scale(
    (*(round(step * 10**power) for power in range(2, 7) for step in (1, 2.5, 5, 7.5)), 10**7, 25 * 10**6, 6 * 10**7)
)
#: the heat map: half powers of two from 64 µs to 67 s
HEAT = Scale(round(2 ** (6 + half / 2)) for half in range(41))


class Exemplar(Struct, frozen=True):
    """One sample whose trace can be looked at. `at`: seconds since the epoch."""

    trace_id: str
    span_id: str
    us: int
    at: float


class Counts:
    """Counts per bucket, with the exact number, sum and maximum; of each exported bucket the latest sampled trace."""

    __slots__ = ("buckets", "count", "exemplars", "max", "sum")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = self.sum = self.max = 0
        self.exemplars: dict[int, Exemplar] = {}

    def record(self, us: int) -> None:
        """One sample; clocks have been known to jump."""
        if not 0 <= us <= LONGEST:
            us = min(max(us, 0), LONGEST)
        shift = us.bit_length() - _FINE_BITS
        bucket = us if us < _FINE else shift * _FINE + (us >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum += us
        if us > self.max:
            self.max = us

    def record_all(self, durations: Iterable[int]) -> None:
        """Many samples, for a third of what each would cost alone."""
        buckets = self.buckets
        sane = [us if 0 <= us <= LONGEST else min(max(us, 0), LONGEST) for us in durations]
        for us in sane:
            shift = us.bit_length() - _FINE_BITS
            bucket = us if us < _FINE else shift * _FINE + (us >> shift)
            buckets[bucket] = buckets.get(bucket, 0) + 1
        self.count += len(sane)
        self.sum += sum(sane)
        self.max = max(self.max, *sane)

    def merge(self, other: "Counts") -> None:
        for bucket, n in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + n
        self.count += other.count
        self.sum += other.sum
        self.max = max(self.max, other.max)

    def quantiles(self, shares: Iterable[float]) -> list[int]:
        """The durations that these shares (rising) of all samples do not exceed."""
        ordered = sorted(self.buckets)
        ends: list[int] = []
        seen = 0
        for bucket in ordered:
            seen += self.buckets[bucket]
            ends.append(seen)
        if not ends:
            return [0 for _ in shares]
        places = (bisect_left(ends, max(1, -int(-share * seen // 1))) for share in shares)
        return [min(self.max, middle_of(ordered[min(place, len(ordered) - 1)])) for place in places]

    def point_at(self, us: int, traceparent: str, at: float) -> None:
        """A sample, already counted, has a trace that somebody may look at."""
        self.exemplars[EXPORTED.place(us)] = Exemplar(traceparent[3:35], traceparent[36:52], us, at)

    def summary(self) -> dict[str, int]:
        p50, p90, p99 = self.quantiles((0.5, 0.9, 0.99))
        return {"count": self.count, "p50_us": p50, "p90_us": p90, "p99_us": p99, "max_us": self.max}


class Histogram:
    """One kind of duration: all since start, a ring of slots for the last minutes, and columns of a heat map.

    Counting many samples at once is cheaper.
    """

    __slots__ = ("_clock", "_column", "_columns", "_known", "_slots", "_total")

    def __init__(self, clock: Callable[[], float] = time.monotonic, column: int | None = None) -> None:
        self._clock = clock
        self._total = Counts()
        self._slots = [Counts() for _ in range(SLOTS)]
        self._column = int(clock() // COLUMN) if column is None else column
        #: finished columns, and all that came before the present one
        self._columns: deque[tuple[int, list[int]]] = deque(maxlen=COLUMNS - 1)
        self._known = HEAT.spread(self._total)

    def record(self, us: int) -> None:
        """One sample, in µs."""
        self.record_all((us,), int(self._clock() // COLUMN))

    def record_all(self, durations: Iterable[int], column: int) -> None:
        """Samples of this column, which is the present one or the last."""
        self._turn(column)
        some = Counts()
        some.record_all(durations)
        self._total.merge(some)
        self._slots[self._column // _COLUMNS_IN_SLOT % SLOTS].merge(some)

    def _turn(self, now: int) -> None:
        """Begin a new column when it is time, and empty slots whose time has come again."""
        if now > self._column:
            self._columns.append((self._column, self._present()))
            self._known = HEAT.spread(self._total)
            slot, last = now // _COLUMNS_IN_SLOT, self._column // _COLUMNS_IN_SLOT
            for step in range(max(last + 1, slot - SLOTS + 1), slot + 1):
                self._slots[step % SLOTS] = Counts()
            self._column = now

    def _present(self) -> list[int]:
        return [all_ - before for all_, before in zip(HEAT.spread(self._total), self._known, strict=True)]

    @property
    def total(self) -> Counts:
        """All since start."""
        return self._total

    def point_at(self, us: int, traceparent: str, at: float) -> None:
        """A sample has a trace that somebody may look at."""
        self._total.point_at(us, traceparent, at)

    def recent(self) -> Counts:
        """The last four to five minutes."""
        self._turn(int(self._clock() // COLUMN))
        merged = Counts()
        for slot in self._slots:
            merged.merge(slot)
        return merged

    def columns(self) -> dict[int, list[int]]:
        """Counts on the heat map's scale by number of the column, of the last ones that had any and the present one."""
        self._turn(int(self._clock() // COLUMN))
        return {**dict(self._columns), self._column: self._present()}


class Latency:
    """Histograms by stage, and by kind and end of whole changes; at most `most` names, whatever they are asked for.

    Changes wait in a list, to be counted many at once: when a column ends, when there are many, or when somebody looks.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        most: int = 1000,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall = wall
        #: what to add to the clock for seconds since the epoch
        self._epoch = wall() - clock()
        self._most = most
        self._stages: dict[str, Histogram] = {}
        #: finished changes to be counted, all of one column
        self._waiting: list[Finished] = []
        self._column = 0
        #: by what was asked for ("create port") and how it ended
        self.changes: dict[tuple[str, str], Counts] = {}

    @property
    def stages(self) -> dict[str, Histogram]:
        """By name, with all that happened."""
        self._count()
        return self._stages

    def _count(self) -> None:
        """Count what waits."""
        waiting, self._waiting = self._waiting, []
        durations: defaultdict[str, list[int]] = defaultdict(list)
        for change in waiting:
            for stage in change.stages:
                durations[stage.name].append(stage.duration)
            durations["total"].append(change.total)
        for name, some in durations.items():
            self._histogram(name, self._column).record_all(some, self._column)

    def record(self, stage: str, us: int) -> None:
        """One sample of a stage, in µs."""
        self._histogram(stage, int(self._clock() // COLUMN)).record(us)

    def _histogram(self, stage: str, column: int) -> Histogram:
        """A stage's, which begins with this column if it is new; one name too many gets one that nobody keeps."""
        histogram = self._stages.get(stage)
        if histogram is None:
            histogram = Histogram(self._clock, column)
            if len(self._stages) < self._most:
                self._stages[stage] = histogram
        return histogram

    def finished(self, changes: Sequence[Finished]) -> None:
        """All of these changes, finished just now."""
        column = int(self._clock() // COLUMN)
        if column != self._column or len(self._waiting) >= WAITING:
            self._count()
            self._column = column
        self._waiting += changes
        totals: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for change in changes:
            totals[change.resource, change.status].append(change.total)
        for kind, some in totals.items():
            counts = self.changes.get(kind)
            if counts is None and len(self.changes) < self._most:
                counts = self.changes[kind] = Counts()
            if counts is not None:
                counts.record_all(some)

    def traced(self, change: Finished) -> None:
        """The trace of a change, which was counted already, can be looked at."""
        counts = self.changes.get((change.resource, change.status))
        if counts is not None and change.traceparent:
            self._point_at(change, counts)

    def _point_at(self, change: Finished, counts: Counts) -> None:
        traceparent, at = change.traceparent, self._wall()
        counts.point_at(change.total, traceparent, at)
        for name, us in (*((stage.name, stage.duration) for stage in change.stages), ("total", change.total)):
            self._histogram(name, self._column).point_at(us, traceparent, at)

    def snapshot(self) -> dict[str, Any]:
        """`{"since_start": {stage: {count, p50_us, p90_us, p99_us, max_us}}, "last_minutes": {…}}`."""
        return {
            "since_start": {name: each.total.summary() for name, each in self.stages.items()},
            "last_minutes": {name: each.recent().summary() for name, each in self.stages.items()},
        }

    def history(self, stage: str) -> dict[str, Any]:
        """A heat map of one stage: counts by time, oldest first, and duration; the last slot is the present one.

        `counts` has one place more than `bounds_us`: for what took longer.
        """
        histogram = self.stages.get(stage)
        found = histogram.columns() if histogram is not None else {}
        now = int(self._clock() // COLUMN)
        nothing = [0] * (len(HEAT.bounds) + 1)
        slots = [
            {"at": round(self._epoch + number * COLUMN), "counts": found.get(number, nothing)}
            for number in range(now - COLUMNS + 1, now + 1)
        ]
        return {"stage": stage, "slot_seconds": int(COLUMN), "bounds_us": list(HEAT.bounds), "slots": slots}
