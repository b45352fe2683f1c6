"""Traces: spans made from a finished change's stages, afterwards, so that a change that nobody samples costs nothing.

`Observer` hears of every finished change: it counts all of them in the latency histograms and exports the sampled, the
slow and the failed. Called by the control plane's `finished` hook and by the REST edge for what failed before control
saw it. Exporting never blocks and never fails a change: the queue is bounded, what does not fit is dropped and counted.
"""

import random
import secrets
from collections.abc import Sequence
from typing import Protocol

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from observability.latency import Latency
from observability.stages import Change

#: spans that wait to be sent; more are dropped
QUEUE = 20_000
BATCH = 2048
#: µs from which a change is slow, and exported whatever the ratio
SLOW = 1_000_000
_SCOPE = InstrumentationScope("alcor")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


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


def parse_traceparent(header: str) -> tuple[str, bool] | None:
    """(trace id, sampled) of a W3C `traceparent`, or None when it is not one."""
    parts = header.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
        return None
    try:
        numbers = [int(part, 16) for part in parts[:4]]
    except ValueError:
        return None
    if not numbers[1] or not numbers[2] or header != header.lower() or "_" in header:
        return None
    return parts[1], bool(numbers[3] & 1)


def begin(resource: str, header: str, ratio: float) -> Change:
    """A change at its beginning; continues the caller's trace and honours its sampling, else samples by the ratio."""
    parent = parse_traceparent(header) if header else None
    if parent is None:
        return Change(resource, parent_sampled=ratio > 0 and random.random() < ratio)
    return Change(resource, parent[0], parent[1])


class _Counting(SpanExporter):
    """Counts what the real exporter took and what it could not send."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self.exported = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class Exporter:
    """Turns finished changes into spans and hands them to a batching processor."""

    def __init__(self, exporter: SpanExporter, service: str, queue: int = QUEUE) -> None:
        self._counting = _Counting(exporter)
        self._processor = BatchSpanProcessor(
            self._counting, max_queue_size=queue, max_export_batch_size=min(BATCH, queue)
        )
        self._resource = Resource.create({"service.name": service})
        self._queue = queue
        self._taken = 0
        self._dropped = 0

    @property
    def counters(self) -> dict[str, int]:
        sent = self._counting
        return {"spans_exported": sent.exported, "spans_failed": sent.failed, "spans_dropped": self._dropped}

    def export(self, change: Finished) -> None:
        """One span for the change and one per stage, as children. Returns at once."""
        wanted = len(change.stages) + 1
        if self._taken - self._counting.exported - self._counting.failed + wanted > self._queue:
            self._dropped += wanted
            return
        self._taken += wanted
        _, trace_hex, span_hex, _ = change.traceparent.split("-")
        trace = int(trace_hex, 16)
        root = SpanContext(trace, int(span_hex, 16), is_remote=False, trace_flags=_SAMPLED)
        begun = change.stages[0].start if change.stages else 0
        reason = next((stage.error for stage in change.stages if stage.error), "")
        failed = reason or (change.status if change.status == "ERROR" else "")
        attributes = {"alcor.request_id": "req-" + _uuid(change.id), "alcor.status": change.status}
        for stage in change.stages:
            context = SpanContext(trace, secrets.randbits(64) or 1, is_remote=False, trace_flags=_SAMPLED)
            where = {"alcor.host": stage.host} if stage.host else {}
            self._end(stage.name, context, root, where, stage.start, stage.duration, stage.error)
        self._end(change.resource or "change", root, None, attributes, begun, change.total, failed)

    def _end(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, str],
        start: int,
        duration: int,
        error: str,
    ) -> None:
        self._processor.on_end(
            ReadableSpan(
                name=name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                kind=SpanKind.INTERNAL if parent else SpanKind.SERVER,
                instrumentation_scope=_SCOPE,
                status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.OK),
                start_time=start * 1000,
                end_time=(start + duration) * 1000,
            )
        )

    def close(self) -> None:
        """Send what waits; blocks for a moment, so call it last."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def otlp(endpoint: str, service: str) -> Exporter:
    """An exporter to an OTLP/HTTP endpoint; `endpoint` is its base, or the whole address of its traces."""
    address = endpoint if endpoint.endswith("/v1/traces") else endpoint.rstrip("/") + "/v1/traces"
    return Exporter(OTLPSpanExporter(endpoint=address, timeout=5), service)


class Observer:
    """Hears of every finished change: histograms for all, spans for the sampled, the slow and the failed."""

    def __init__(self, latency: Latency, exporter: Exporter | None = None, slow: int = SLOW) -> None:
        self.latency = latency
        self.exporter = exporter
        self._slow = slow

    def __call__(self, change: Finished) -> None:
        chosen = self._chosen(change)
        self.latency.finished(change, chosen)
        if self.exporter is not None and chosen:
            self.exporter.export(change)

    def failed(self, change: Change, error: str) -> None:
        """A request that ended in a failure of ours, before the control plane saw it: always exported."""
        if self.exporter is not None:
            self.exporter.export(_Failed(change, error))

    def _chosen(self, change: Finished) -> bool:
        return (
            change.status == "ERROR" or change.total >= self._slow or bool(int(change.traceparent[-2:] or "0", 16) & 1)
        )

    def close(self) -> None:
        if self.exporter is not None:
            self.exporter.close()


class _Failed:
    """A change that ended at the edge, as a finished one."""

    status = "ERROR"

    def __init__(self, change: Change, error: str) -> None:
        change.mark("failed")
        change.stages[-1].error = error
        self.id = change.id
        self.resource = change.resource
        self.stages = change.stages
        self.total = change.last - change.begun
        self.traceparent = change.traceparent


def _uuid(id_: bytes) -> str:
    h = id_.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
