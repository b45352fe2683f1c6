"""A real OTLP/HTTP receiver: keeps the spans that it is sent, not the metrics; it can be silent, refuse, or be away."""

import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from msgspec import Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Values = dict[str, str | int]


class Received(Struct):
    """One span, and what sent it."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    service: str
    start: int
    end: int
    attributes: Values
    resource: Values
    error: str
    links: list[tuple[str, str]]


class Collector:
    """`status`: what it answers; 0: nothing, ever. `address` is for ALCOR_OTLP."""

    def __init__(self, status: int = 200, address: str = "127.0.0.1", port: int = 0) -> None:
        collector = self
        self.status = status
        self.spans: list[Received] = []
        self.requests = 0
        self.headers: dict[str, str] = {}
        self._end = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests += 1
                collector.headers = dict(self.headers)
                if not collector.status:
                    collector._end.wait()
                    self.close_connection = True
                    return
                if collector.status == 200 and self.path.endswith("/traces"):
                    collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self.address = f"http://{address}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    def trace(self, trace: str) -> list[Received]:
        return [span for span in self.spans if span.trace == trace]

    def wait(self, wanted: Callable[[list[Received]], bool], seconds: float = 15.0) -> list[Received]:
        """The spans, once `wanted` holds of them."""
        deadline = time.monotonic() + seconds
        while not wanted(self.spans):
            assert time.monotonic() < deadline, f"only {sorted((s.service, s.name) for s in self.spans)}"
            time.sleep(0.05)
        return self.spans


def tree(spans: Iterable[Received]) -> list[str]:
    """Each span as `name KIND service`, children indented under their parents, siblings by name; `!`: it failed.

    `?` before a name: its parent is not among them.
    """
    found = list(spans)
    ids = {span.id for span in found}
    services = {"alcor-api": "api", "alcor-agent": "agent"}
    lines: list[str] = []

    def show(span: Received, depth: int, mark: str = "") -> None:
        service = services.get(span.service, span.service)
        failed = " !" if span.error else ""
        lines.append(f"{'  ' * depth}{mark}{span.name} {span.kind} {service}{failed}")
        for child in sorted((c for c in found if c.parent == span.id), key=lambda c: (c.name, c.start)):
            show(child, depth + 1)

    for span in sorted((s for s in found if s.parent not in ids), key=lambda s: (bool(s.parent), s.name)):
        show(span, 0, "?" if span.parent else "")
    return lines


def _spans(request: ExportTraceServiceRequest) -> list[Received]:
    return [
        Received(
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.name,
            Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            str(_values(resource.resource.attributes)["service.name"]),
            span.start_time_unix_nano // 1000,
            span.end_time_unix_nano // 1000,
            _values(span.attributes),
            _values(resource.resource.attributes),
            span.status.message if span.status.code == 2 else "",
            [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Iterable[KeyValue]) -> Values:
    return {
        each.key: each.value.int_value if each.value.HasField("int_value") else each.value.string_value
        for each in attributes
    }
