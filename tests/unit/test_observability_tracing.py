"""Spans from finished changes: which are exported, what they look like, and that the queue is bounded."""

import threading
from collections.abc import Sequence

import pytest
from msgspec import Struct
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from observability.latency import Latency
from observability.stages import Change, Stage
from observability.tracing import SLOW, Exporter, Observer, begin, parse_traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Done(Struct):
    """A finished change."""

    id: bytes
    resource: str
    status: str
    stages: list[Stage]
    total: int
    traceparent: str


def done(*, status: str = "ACTIVE", total: int = 300, sampled: bool = False, error: str = "") -> Done:
    stages = [Stage("write", 1_000_000, 100), Stage("program", 1_000_100, 200, "h1", error)]
    return Done(b"\1" * 16, "create port", status, stages, total, f"00-{TRACE}-00000000000000aa-0{int(sampled)}")


@pytest.mark.parametrize(
    "header",
    ["", "x", "00-0-0-0", PARENT.upper(), f"00-{'0' * 32}-b7ad6b7169203331-01", f"ff-{TRACE}-b7ad6b7169203331-01"],
)
def test_what_is_no_traceparent_is_ignored(header: str) -> None:
    assert parse_traceparent(header) is None


def test_the_callers_trace_and_sampling_are_honoured() -> None:
    change = begin("create port", PARENT, 0.0)
    assert (change.trace_id, change.sampled) == (TRACE, True)
    assert not begin("create port", PARENT[:-1] + "0", 1.0).sampled
    assert begin("create port", "", 1.0).sampled
    assert not begin("create port", "", 0.0).sampled


@pytest.mark.parametrize(
    ("change", "exported"),
    [
        (done(), False),
        (done(sampled=True), True),
        (done(status="ERROR", error="no room"), True),
        (done(total=SLOW), True),
    ],
)
def test_only_sampled_slow_and_failed_changes_are_exported(change: Done, exported: bool) -> None:
    memory, latency = InMemorySpanExporter(), Latency()
    observer = Observer(latency, Exporter(memory, "test"))
    observer(change)
    observer.close()
    assert bool(memory.get_finished_spans()) is exported
    assert latency.snapshot()["since_start"]["program"]["count"] == 1
    assert latency.snapshot()["since_start"]["total"]["max_us"] == change.total


def test_spans_carry_the_times_ids_and_errors_of_the_stages() -> None:
    memory = InMemorySpanExporter()
    exporter = Exporter(memory, "alcor-test")
    exporter.export(done(error="no room"))
    exporter.close()
    spans = {span.name: span for span in memory.get_finished_spans()}
    root, program = spans["create port"], spans["program"]
    assert format(root.context.trace_id, "032x") == TRACE
    assert root.context.span_id == 0xAA
    assert program.parent is not None
    assert program.parent.span_id == 0xAA
    assert (program.start_time, program.end_time) == (1_000_100_000, 1_000_300_000)
    assert program.attributes == {"alcor.host": "h1"}
    assert program.status.description == "no room"
    assert root.resource.attributes["service.name"] == "alcor-test"
    assert exporter.counters == {"spans_exported": 3, "spans_failed": 0, "spans_dropped": 0}


def test_what_does_not_fit_the_queue_is_dropped_and_counted() -> None:
    gate = threading.Event()

    class Stuck(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            gate.wait(10)
            return SpanExportResult.FAILURE

        def shutdown(self) -> None:
            gate.set()

    exporter = Exporter(Stuck(), "test", queue=6)
    for _ in range(3):
        exporter.export(done())
    gate.set()
    exporter.close()
    assert exporter.counters == {"spans_exported": 0, "spans_failed": 6, "spans_dropped": 3}


def test_a_request_that_failed_at_the_edge_is_exported() -> None:
    memory = InMemorySpanExporter()
    observer = Observer(Latency(), Exporter(memory, "test"))
    observer.failed(Change("create port"), "KeyError: 'x'")
    observer.close()
    spans = memory.get_finished_spans()
    assert {span.name for span in spans} == {"failed", "create port"}
    assert all(span.status.description == "KeyError: 'x'" for span in spans)
