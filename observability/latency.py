"""How long each stage takes: histograms that count every sample, since start and over the last minutes.

Called once per stage of a finished change, so recording costs less than a microsecond. Buckets are log-linear, 64 per
power of two: a quantile is off by less than 1 %; count, sum and maximum are exact. No I/O.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

#: width of the sliding window, in slots of `SLOT` seconds
SLOTS = 5
SLOT = 60.0
#: the longest duration told apart: 2⁴⁰ µs, twelve days
LONGEST = (1 << 40) - 1
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


class Counts:
    """Counts per bucket, with the exact number, sum and maximum."""

    __slots__ = ("buckets", "count", "max", "sum")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = self.sum = self.max = 0

    def add(self, bucket: int, us: int) -> None:
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum += us
        if us > self.max:
            self.max = us

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

    def below(self, bounds: Iterable[int]) -> list[int]:
        """How many samples lie at or below each of these rising bounds (a bucket counts where its middle lies)."""
        bounds = list(bounds)
        found = [0] * len(bounds)
        for bucket, n in self.buckets.items():
            place = bisect_left(bounds, middle_of(bucket))
            if place < len(found):
                found[place] += n
        for place in range(1, len(found)):
            found[place] += found[place - 1]
        return found

    def summary(self) -> dict[str, int]:
        p50, p90, p99 = self.quantiles((0.5, 0.9, 0.99))
        return {"count": self.count, "p50_us": p50, "p90_us": p90, "p99_us": p99, "max_us": self.max}


class Histogram:
    """One kind of duration: all since start, and a ring of slots for the last minutes."""

    __slots__ = ("_clock", "_slot", "_slots", "total")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.total = Counts()
        self._slots = [Counts() for _ in range(SLOTS)]
        self._slot = int(clock() // SLOT)

    def record(self, us: int) -> None:
        us = min(max(us, 0), LONGEST)
        bucket = bucket_of(us)
        self.total.add(bucket, us)
        if (now := int(self._clock() // SLOT)) != self._slot:
            self._turn(now)
        self._slots[now % SLOTS].add(bucket, us)

    def _turn(self, now: int) -> None:
        """Empty the slots whose time has come again."""
        for step in range(max(self._slot + 1, now - SLOTS + 1), now + 1):
            self._slots[step % SLOTS] = Counts()
        self._slot = now

    def recent(self) -> Counts:
        """The last four to five minutes."""
        self._turn(max(self._slot, int(self._clock() // SLOT)))
        merged = Counts()
        for slot in self._slots:
            merged.merge(slot)
        return merged


class Latency:
    """Histograms by stage; at most `most` names, whatever they are asked for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = 1000) -> None:
        self._clock = clock
        self._most = most
        self.stages: dict[str, Histogram] = {}

    def record(self, stage: str, us: int) -> None:
        """One sample of a stage, in µs."""
        histogram = self.stages.get(stage)
        if histogram is None:
            if len(self.stages) >= self._most:
                return
            histogram = self.stages[stage] = Histogram(self._clock)
        histogram.record(us)

    def snapshot(self) -> dict[str, Any]:
        """`{"since_start": {stage: {count, p50_us, p90_us, p99_us, max_us}}, "last_minutes": {…}}`."""
        return {
            "since_start": {name: each.total.summary() for name, each in self.stages.items()},
            "last_minutes": {name: each.recent().summary() for name, each in self.stages.items()},
        }
