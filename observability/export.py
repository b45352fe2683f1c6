"""Sends spans to a collector: OTLP over HTTP, or Zipkin's JSON. A thread of its own, behind a bounded queue.

Made by the composition roots, fed by `observability.tracing` and `agent.tracing`. Handing over never waits and never
fails: what does not fit the queue is dropped, what the collector does not take after a few tries is lost, and both are
counted. Spans are made in the thread, from what was handed over. Honours OTEL_EXPORTER_OTLP_HEADERS and _CERTIFICATE.
"""

import logging
import os
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import httpx
import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.util.re import parse_env_headers

from observability.collector import is_zipkin, traces_address
from observability.spans import Attributes, Kind, Span

log = logging.getLogger(__name__)

#: spans that wait to be sent; more are dropped
QUEUE = 20_000
#: spans of one request to the collector
BATCH = 512
#: seconds: between two looks at the queue; for one request; before each further try
EVERY, TIMEOUT, RETRIES = 0.5, 5.0, (0.5, 1.0)
#: seconds that an end may take to send what waits
PATIENCE = 2.0
#: answers that another try may change
_AGAIN = frozenset((429, 502, 503, 504))

Make = Callable[[], Iterable[Span]]


class Sender(Protocol):
    """Delivers a batch. True: it was taken; False: refused; None: perhaps later."""

    def __call__(self, spans: Sequence[Span]) -> bool | None: ...
    def close(self) -> None: ...


class Exporter:
    """The queue and the thread."""

    def __init__(self, send: Sender, queue: int = QUEUE) -> None:
        self._send = send
        self._most = queue
        self._queue: deque[tuple[Make, int]] = deque()
        self._waiting = 0
        self._wake = threading.Event()
        self._end = threading.Event()
        self._deadline = float("inf")
        self.counters = {"spans_exported": 0, "spans_failed": 0, "spans_dropped": 0}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="export spans", daemon=True)
        self._thread.start()

    def put(self, make: Make, count: int) -> None:
        """Have what `make` returns sent, `count` spans or so. Returns at once; from any thread."""
        with self._lock:
            if self._waiting + count > self._most:
                self.counters["spans_dropped"] += count
                return
            self._waiting += count
            self._queue.append((make, count))
        if self._waiting >= BATCH:
            self._wake.set()

    def close(self) -> None:
        """Send what waits, for a few seconds at most; blocks, so call it last and off the loop."""
        self._deadline = time.monotonic() + PATIENCE
        self._end.set()
        self._wake.set()
        self._thread.join(PATIENCE + 1)
        self._send.close()

    def _run(self) -> None:
        while True:
            self._wake.wait(EVERY)
            self._wake.clear()
            while self._queue:
                self._one_batch()
            if self._end.is_set():
                return

    def _one_batch(self) -> None:
        spans: list[Span] = []
        taken = 0
        while self._queue and len(spans) < BATCH:
            make, count = self._queue.popleft()
            taken += count
            try:
                spans += make()
            except Exception:  # whatever is wrong with one change, the others are sent
                log.exception("spans cannot be made")
                self.counters["spans_failed"] += count
        self.counters["spans_exported" if self._deliver(spans) else "spans_failed"] += len(spans)
        with self._lock:
            self._waiting -= taken

    def _deliver(self, spans: Sequence[Span]) -> bool:
        for wait in (*RETRIES, 0.0):
            if time.monotonic() > self._deadline:
                return False
            done = self._send(spans)
            if done is not None:
                return done
            if wait:
                self._end.wait(wait)
        return False


class Post:
    """A `Sender` to one address."""

    def __init__(self, address: str, encode: Callable[[Sequence[Span]], bytes], content: str) -> None:
        self._address = address
        self._encode = encode
        self._troubled = False
        headers = {**parse_env_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True)}
        certificate = os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE")
        verify = ssl.create_default_context(cafile=certificate) if certificate else address.startswith("https:")
        self._http = httpx.Client(timeout=TIMEOUT, headers=headers | {"content-type": content}, verify=verify)

    def __call__(self, spans: Sequence[Span]) -> bool | None:
        try:
            status = self._http.post(self._address, content=self._encode(spans)).status_code
        except httpx.HTTPError as error:
            self._failed(str(error) or type(error).__name__)
            return None
        if status < 300:
            if self._troubled:
                log.info("the collector takes traces again")
            self._troubled = False
            return True
        self._failed(f"HTTP {status}")
        return None if status in _AGAIN else False

    def _failed(self, reason: str) -> None:
        if not self._troubled:  # said once, not for each batch
            log.warning("traces cannot be sent: %s", reason)
        self._troubled = True

    def close(self) -> None:
        self._http.close()


def exporter(address: str, service: str, **resource: str) -> Exporter:
    """To a collector of either kind, as `collector` tells them apart."""
    named = {"service.name": service, **resource}
    if is_zipkin(address):
        return Exporter(Post(address, lambda spans: zipkin(spans, service), "application/json"))
    return Exporter(Post(traces_address(address), lambda spans: otlp(spans, named), "application/x-protobuf"))


# -- encodings --------------------------------------------------------------------------------------------------------


def otlp(spans: Sequence[Span], resource: Mapping[str, str]) -> bytes:
    """An ExportTraceServiceRequest, straight from our spans: a third of the time that the SDK's objects take."""
    encoded = [
        trace_pb2.Span(
            trace_id=bytes.fromhex(span.trace),
            span_id=bytes.fromhex(span.id),
            parent_span_id=bytes.fromhex(span.parent),
            name=span.name,
            kind=int(span.kind),  # type: ignore[arg-type]
            start_time_unix_nano=span.start * 1000,
            end_time_unix_nano=(span.start + span.duration) * 1000,
            attributes=_attributes(span.attributes),
            status=trace_pb2.Status(code=2, message=span.error) if span.error else None,  # type: ignore[arg-type]
            links=[
                trace_pb2.Span.Link(trace_id=bytes.fromhex(link.trace), span_id=bytes.fromhex(link.span))
                for link in span.links
            ],
            flags=1,
        )
        for span in spans
    ]
    scope = trace_pb2.ScopeSpans(scope=InstrumentationScope(name="alcor"), spans=encoded)
    whole = trace_pb2.ResourceSpans(resource=Resource(attributes=_attributes(resource)), scope_spans=[scope])
    return bytes(ExportTraceServiceRequest(resource_spans=[whole]).SerializeToString())


def _attributes(values: Attributes | Mapping[str, str]) -> list[KeyValue]:
    return [_attribute(key, value) for key, value in values.items() if value != ""]


@lru_cache(1024, typed=True)
def _attribute(key: str, value: str | int) -> KeyValue:
    """Most are the same again and again."""
    return KeyValue(
        key=key, value=AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value)
    )


def zipkin(spans: Sequence[Span], service: str) -> bytes:
    """Zipkin's v2 JSON, which knows neither links nor internal spans."""
    return msgspec.json.encode(
        [
            {
                "traceId": span.trace,
                "id": span.id,
                "name": span.name,
                "timestamp": span.start,
                "duration": max(1, span.duration),
                "localEndpoint": {"serviceName": service},
                "tags": {key: str(value) for key, value in span.attributes.items() if value != ""}
                | ({"error": span.error} if span.error else {})
                | ({"links": ",".join(link.trace for link in span.links)} if span.links else {}),
            }
            | ({"parentId": span.parent} if span.parent else {})
            | ({"kind": span.kind.name} if span.kind is not Kind.INTERNAL else {})
            for span in spans
        ]
    )
