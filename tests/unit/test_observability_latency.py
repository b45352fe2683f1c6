"""Latency histograms: how exact they are, that the window slides, and what the heat map tells."""

import random

from msgspec import Struct

from observability.latency import (
    COLUMN,
    COLUMNS,
    EXPORTED,
    LONGEST,
    SLOT,
    SLOTS,
    WAITING,
    Histogram,
    Latency,
    bucket_of,
    middle_of,
)
from observability.stages import Stage


def test_a_bucket_is_narrower_than_two_percent() -> None:
    rng = random.Random(1)
    values = [*range(3000), *(rng.randrange(LONGEST) for _ in range(3000)), LONGEST]
    for value in values:
        assert abs(middle_of(bucket_of(value)) - value) <= value * 0.01
    ordered = sorted(values)
    assert [bucket_of(value) for value in ordered] == sorted(bucket_of(value) for value in values)


def test_quantiles_count_and_maximum() -> None:
    latency = Latency()
    for us in range(1, 10_001):
        latency.record("write", us)
    found = latency.snapshot()["since_start"]["write"]
    assert found["count"] == 10_000
    assert found["max_us"] == 10_000
    for name, exact in (("p50_us", 5000), ("p90_us", 9000), ("p99_us", 9900)):
        assert abs(found[name] - exact) <= exact * 0.02


def test_the_window_forgets_and_the_total_does_not() -> None:
    now = 0.0
    histogram = Histogram(lambda: now)
    histogram.record(7)
    now = SLOT * (SLOTS - 1)
    histogram.record(9)
    assert histogram.recent().count == 2
    now = SLOT * SLOTS
    assert histogram.recent().summary() == {"count": 1, "p50_us": 9, "p90_us": 9, "p99_us": 9, "max_us": 9}
    now = SLOT * SLOTS * 10
    assert histogram.recent().count == 0
    assert histogram.total.count == 2


def test_names_are_bounded() -> None:
    latency = Latency(most=2)
    for name in ("a", "b", "c"):
        latency.record(name, 1)
    assert set(latency.stages) == {"a", "b"}


def test_a_scale_counts_each_sample_once_and_where_it_belongs() -> None:
    histogram = Histogram()
    for us in (10, 98, 130, 4900, 61_000_000, LONGEST + 1):
        histogram.record(us)
    found = EXPORTED.spread(histogram.total)
    assert sum(found) == 6
    places = {bound: n for bound, n in zip((*EXPORTED.bounds, -1), found, strict=True) if n}
    assert places == {100: 2, 250: 1, 5000: 1, -1: 2}


def test_exported_bounds_go_from_a_tenth_of_a_millisecond_to_a_minute() -> None:
    assert EXPORTED.bounds[:5] == (100, 250, 500, 750, 1000)
    assert EXPORTED.bounds[-3:] == (10_000_000, 25_000_000, 60_000_000)
    assert list(EXPORTED.bounds) == sorted(EXPORTED.bounds)


def test_the_heat_map_tells_which_slot_had_what() -> None:
    now = 5000.0
    latency = Latency(lambda: now, wall=lambda: 1_000_000.0 + now)
    latency.record("write", 70)
    latency.record("write", 80)
    now += COLUMN
    latency.record("write", 70)
    latency.record("write", 100_000_000)
    now += 3 * COLUMN
    found = latency.history("write")
    assert (found["stage"], found["slot_seconds"], len(found["slots"])) == ("write", 10, COLUMNS)
    assert found["bounds_us"][:3] == [64, 91, 128]
    ats = [slot["at"] for slot in found["slots"]]
    assert ats == list(range(ats[0], ats[0] + 600, 10))
    assert ats[-1] == 1_000_000 + now
    told = {slot["at"] - ats[-1]: _told(slot["counts"]) for slot in found["slots"] if any(slot["counts"])}
    assert told == {-40: {1: 2}, -30: {1: 1, 41: 1}}
    now += (COLUMNS - 4) * COLUMN
    assert [_told(slot["counts"]) for slot in latency.history("write")["slots"] if any(slot["counts"])] == [
        {1: 1, 41: 1}
    ]
    assert not any(any(slot["counts"]) for slot in latency.history("ack")["slots"])


def _told(counts: list[int]) -> dict[int, int]:
    return {place: n for place, n in enumerate(counts) if n}


def test_the_heat_map_is_bounded() -> None:
    now = 0.0
    histogram = Histogram(lambda: now)
    for _ in range(3 * COLUMNS):
        histogram.record(7)
        now += COLUMN
    assert len(histogram._columns) < COLUMNS
    assert sum(map(sum, histogram.columns().values())) == COLUMNS - 1  # the present one is empty


class Change(Struct, frozen=True):
    """A finished change, as far as it is counted."""

    stages: tuple[Stage, ...]
    total: int = 50
    id: bytes = b""
    resource: str = "create port"
    status: str = "ACTIVE"
    traceparent: str = ""
    project: str = ""
    object: str = ""
    count: int = 1


def test_a_change_counts_when_it_ended_whenever_it_is_counted() -> None:
    now = 0.0
    latency = Latency(lambda: now, wall=lambda: 0.0)
    latency.finished([Change((Stage("write", 0, 7),))])
    now = COLUMN
    latency.finished([Change((Stage("write", 0, 9), Stage("publish", 0, 1)))])
    latency.finished([Change((Stage("write", 0, 9),))])
    now = 2 * COLUMN
    for stage, counts in (("write", [1, 2, 0]), ("publish", [0, 1, 0]), ("total", [1, 2, 0])):
        slots = latency.history(stage)["slots"]
        assert [sum(slot["counts"]) for slot in slots[-3:]] == counts
    assert {name: each.total.count for name, each in latency.stages.items()} == {"write": 3, "publish": 1, "total": 3}
    assert latency.snapshot()["last_minutes"]["write"]["count"] == 3


def test_no_more_changes_wait_than_may() -> None:
    latency = Latency(lambda: 0.0)
    for _ in range(2 * WAITING + 1):
        latency.finished([Change((Stage("write", 0, 7),))])
    assert latency._stages["write"].total.count == 2 * WAITING
    assert latency.stages["write"].total.count == 2 * WAITING + 1
