"""Latency histograms: how exact they are, and that the window slides."""

import random

from observability.latency import LONGEST, SLOT, SLOTS, Histogram, Latency, bucket_of, middle_of


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


def test_counts_below_bounds_are_cumulative() -> None:
    histogram = Histogram()
    for us in (10, 20, 30, 5000):
        histogram.record(us)
    assert histogram.total.below((9, 20, 100, 10_000)) == [0, 2, 3, 4]
