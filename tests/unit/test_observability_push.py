"""Metrics by OTLP: what arrives at a real receiver, and that one which is away, slow or refusing costs nothing."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from observability import families
from observability.collector import metrics_address, traces_address
from observability.latency import EXPORTED, Counts
from observability.metrics import Metric, Registry, Source
from observability.push import Push
from tests.support.clock import until
from tests.support.collector import MetricsCollector
from tests.support.ports import free_port

pytestmark = pytest.mark.server

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def some() -> Iterator[Metric]:
    counts = Counts()
    counts.record(120)
    counts.record(700_000)
    counts.point_at(120, f"00-{TRACE}-{SPAN}-01", 1234.5)
    yield families.STAGE.each({"write": counts})
    yield families.HOSTS.each({"alive": 3, "silent": 0})
    yield families.CPU.one(1.5)
    yield families.HOST_ACK_LAG.each({})


@asynccontextmanager
async def pushing(url: str, source: Source = some) -> AsyncIterator[dict[str, int]]:
    """An export every few hundredths of a second; what it counts."""
    exports = {"ok": 0, "failed": 0}
    push = Push(
        metrics_address(url), {"service.name": "test", "host.name": "h1"}, Registry(source), exports, every=0.02
    )
    task = asyncio.create_task(push.keep())
    try:
        yield exports
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_names_buckets_and_exemplars_arrive() -> None:
    async with MetricsCollector() as collector, pushing(collector.url) as exports:
        await until(lambda: exports["ok"] >= 2)
    assert exports["failed"] == 0
    assert collector.resources["test"]["host.name"] == "h1"
    taken = collector.taken["test"]
    assert taken.keys() == {"alcor_stage_duration_seconds", "alcor_hosts", "process_cpu_seconds_total"}
    stage = taken["alcor_stage_duration_seconds"]
    (point,) = stage.histogram.data_points
    assert (stage.unit, stage.histogram.aggregation_temporality) == ("s", 2)
    assert (point.count, point.sum, point.max) == (2, 0.70012, 0.7)
    assert list(point.explicit_bounds) == [bound / 1e6 for bound in EXPORTED.bounds]
    assert {place: n for place, n in enumerate(point.bucket_counts) if n} == {1: 1, 15: 1}
    (exemplar,) = point.exemplars
    assert (exemplar.trace_id.hex(), exemplar.span_id.hex(), exemplar.as_double) == (TRACE, SPAN, 0.00012)
    assert exemplar.time_unix_nano == 1_234_500_000_000
    assert {each.attributes[0].value.string_value: each.as_int for each in taken["alcor_hosts"].gauge.data_points} == {
        "alive": 3,
        "silent": 0,
    }
    cpu = taken["process_cpu_seconds_total"].sum
    assert (cpu.is_monotonic, cpu.data_points[0].as_double) == (True, 1.5)
    assert point.time_unix_nano > point.start_time_unix_nano > 0


async def test_a_collector_that_refuses_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with MetricsCollector(400) as collector, pushing(collector.url) as exports:
        await until(lambda: exports["failed"] >= 3)
        collector.status = 200
        await until(lambda: exports["ok"] >= 2)
    (told,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert told.startswith("metrics cannot be sent: ")
    assert "400" in told


async def test_a_figure_that_cannot_be_made_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    broken = True

    def source() -> Iterator[Metric]:
        if broken:
            raise ZeroDivisionError
        return some()

    async with MetricsCollector() as collector, pushing(collector.url, source) as exports:
        await until(lambda: exports["failed"] >= 2)
        broken = False
        await until(lambda: exports["ok"] >= 1)
    assert "metrics cannot be sent: ZeroDivisionError()" in caplog.text


async def test_a_collector_that_never_answers_holds_up_nothing() -> None:
    before = threading.active_count()
    async with MetricsCollector(0) as collector, pushing(collector.url) as exports:
        await until(lambda: collector.asked >= 1)
        turns = 0
        for _ in range(50):  # the loop goes on; a second export does not begin, nothing is kept for it
            await asyncio.sleep(0.01)
            turns += 1
        assert (turns, collector.asked, len(collector.connections)) == (50, 1, 1)
        assert threading.active_count() <= before + 1
        assert sum(exports.values()) == 0


async def test_a_collector_that_is_away_is_counted() -> None:
    async with pushing(f"http://127.0.0.1:{free_port()}") as exports:
        await until(lambda: exports["failed"] > 0, 20)
    assert exports["ok"] == 0


@pytest.mark.parametrize("path", ["", "/", "/v1/metrics", "/v1/traces", "/v1/traces/"])
def test_the_endpoint_is_a_base_or_the_whole(path: str) -> None:
    assert metrics_address(f"http://c:4318{path}") == "http://c:4318/v1/metrics"
    assert traces_address(f"http://c:4318{path}") == "http://c:4318/v1/traces"


@pytest.mark.parametrize("nowhere", ["", "http://zipkin:9411/api/v2/spans"])
def test_who_takes_no_metrics_gets_none(nowhere: str) -> None:
    assert metrics_address(nowhere) == ""
