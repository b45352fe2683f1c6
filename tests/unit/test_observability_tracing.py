"""Which requests and changes are exported, their spans, and that nothing grows while nobody takes them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec
import pytest
from msgspec import Struct

from observability import export
from observability.export import Exporter, exporter, zipkin
from observability.latency import Latency
from observability.spans import HOSTS, SLOW, Kind, Span, of_change, parse
from observability.stages import Change, Stage
from observability.tracing import OPEN, Observer, Request, begin
from tests.support.otlp import Collector, tree
from tests.support.ports import free_port

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"


class Done(Struct):
    """A finished change."""

    id: bytes
    resource: str
    status: str
    stages: list[Stage]
    total: int
    traceparent: str
    project: str = "blue"
    object: str = "4f"
    count: int = 1


def done(request: Request, *, status: str = "ACTIVE", total: int = 300, error: str = "", hosts: int = 1) -> Done:
    stages = [Stage("accept", 1_000_000, 5), Stage("write", 1_000_005, 95), Stage("publish", 1_000_100, 10)]
    for number in range(1, hosts + 1):
        host = f"h{number}"
        stages += [
            Stage("receive", 1_000_110, 10, host),
            Stage("program", 1_000_120, 80 + number, host, error),
            Stage("ack", 1_000_200 + number, 10, host),
            Stage("active", 1_000_210 + number, 10, host),
        ]
    return Done(request.id, request.resource, status, stages, total, request.traceparent, count=hosts)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.mark.parametrize(
    "header",
    ["", "x", "00-0-0-0", PARENT.upper(), f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01"],
)
def test_what_is_no_traceparent_is_ignored(header: str) -> None:
    assert parse(header) is None
    assert begin("create port", header, 0.0).parent == ""


def test_the_callers_trace_and_sampling_are_honoured() -> None:
    request = begin("create port", PARENT, 0.0)
    assert (request.trace_id, request.parent, request.sampled) == (TRACE, CALLER, True)
    assert not begin("create port", PARENT[:-1] + "0", 1.0).sampled
    assert begin("create port", "", 1.0).sampled
    assert not begin("create port", "", 0.0).sampled


CHANGE = ["  create port INTERNAL api", "    accept INTERNAL api", "    publish PRODUCER api"]
ACK = ["      ack CONSUMER api", "        active CLIENT api"]
WORK = ["      program INTERNAL api", "      receive CONSUMER api"]
SERVER = ["POST /v2.0/ports SERVER api"]
WRITE = ["    write CLIENT api"]
CALLED = ["?POST /v2.0/ports SERVER api"]


@pytest.mark.parametrize(
    ("sampled", "more", "status", "late", "agent", "expected"),
    [
        (False, {}, 201, False, False, []),
        (True, {}, 201, False, False, [*CALLED, *CHANGE, *ACK, *WORK, *WRITE]),
        (True, {}, 201, False, True, [*CALLED, *CHANGE, *ACK, *WRITE]),
        (False, {"total": SLOW}, 201, True, True, [*CALLED, *CHANGE, *ACK, *WORK, *WRITE]),
        (False, {"total": SLOW}, 201, False, True, [*CALLED, *CHANGE, *ACK, *WORK, *WRITE]),
        (False, {}, 503, False, False, ["?POST /v2.0/ports SERVER api !"]),
        (False, {}, 404, False, False, []),
    ],
    ids=["not sampled", "sampled", "agent traces", "slow, answered first", "slow, finished first", "failed", "refused"],
)
def test_what_is_exported(
    collector: Collector, sampled: bool, more: dict[str, int], status: int, late: bool, agent: bool, expected: list[str]
) -> None:
    latency = Latency()
    observer = Observer(latency, exporter(collector.address, "alcor-api"), "sqlite", lambda host: agent)
    request = begin("create port", PARENT[:-1] + str(int(sampled)), 0.0)
    request.mark("accept")
    steps: list[Callable[[], None]] = [
        lambda: observer.answered(request, "POST", "/v2.0/ports", "/v2.0/ports", status, 200)
    ]
    if status == 201:
        steps.append(lambda: observer([done(request, **more)]))  # type: ignore[arg-type]
    for step in steps if late else reversed(steps):
        step()
    observer.close()
    assert tree(collector.spans) == expected
    assert latency.snapshot()["since_start"].get("program", {}).get("count", 0) == int(status == 201)


def test_a_failed_change_is_exported_with_its_reason(collector: Collector) -> None:
    observer = Observer(Latency(), exporter(collector.address, "alcor-api"), "sqlite", lambda host: True)
    request = begin("create port", "", 0.0)
    observer([done(request, status="ERROR", error="no room")])
    observer.close()
    failed = {span.name: span.error for span in collector.spans if span.error}
    assert failed == {"create port": "no room", "program": "no room"}


def test_a_request_that_we_failed_says_why(collector: Collector) -> None:
    observer = Observer(Latency(), exporter(collector.address, "alcor-api"))
    request = begin("create port", "", 0.0)
    request.error = "KeyError: 'x'"
    observer.answered(request, "POST", "/v2.0/ports", "/v2.0/ports", 500, 200)
    observer.close()
    (span,) = collector.spans
    assert (span.error, span.attributes["error.type"]) == ("KeyError: 'x'", "KeyError")
    assert span.attributes["http.response.status_code"] == 500


def test_spans_carry_times_ids_and_conventional_attributes(collector: Collector) -> None:
    request = begin("create port", PARENT, 0.0)
    observer = Observer(Latency(), exporter(collector.address, "alcor-api"), "sqlite")
    observer.answered(request, "GET", "/v2.0/ports/{id}", "/v2.0/ports/4f", 201, 200)
    observer([done(request)])
    observer.close()
    spans = {span.name: span for span in collector.spans}
    server, program = spans["GET /v2.0/ports/{id}"], spans["program"]
    assert (server.trace, server.parent, server.end - server.start) == (TRACE, CALLER, 200)
    assert (
        server.attributes.items()
        >= {
            "http.request.method": "GET",
            "http.route": "/v2.0/ports/{id}",
            "http.response.status_code": 201,
            "url.path": "/v2.0/ports/4f",
        }.items()
    )
    assert (program.start, program.end) == (1_000_120, 1_000_201)
    assert program.attributes == {"alcor.host": "h1"}
    assert spans["write"].attributes == {"db.operation.name": "commit", "db.system.name": "sqlite"}
    assert spans["receive"].attributes["messaging.system"] == "nats"
    assert spans["publish"].id == request.traceparent.split("-")[2]
    assert spans["create port"].attributes.items() >= {"alcor.project": "blue", "alcor.object_count": 1}.items()
    assert observer.exporter is not None
    assert observer.exporter.counters == {"spans_exported": 9, "spans_failed": 0, "spans_dropped": 0}


def test_objects_that_travelled_with_another_change_link_to_it_and_keep_their_own_spans(collector: Collector) -> None:
    observer = Observer(Latency(), exporter(collector.address, "alcor-api"), "sqlite", lambda host: True)
    first, second = begin("create port", "", 1.0), begin("create port", "", 1.0)
    observer.joined(second.traceparent, "h1", first.traceparent)
    observer([done(first)])
    observer([done(second)])
    observer.close()
    names = {span.name for span in collector.trace(first.trace_id)}
    assert not names & {"receive", "program"}  # the agent says
    spans = {span.name: span for span in collector.trace(second.trace_id)}
    assert {"receive", "program"} <= spans.keys()
    assert spans["publish"].links == [(first.trace_id, first.traceparent.split("-")[2])]


def test_a_change_on_many_hosts_shows_the_failed_and_the_slowest() -> None:
    change = done(begin("create port", "", 1.0), hosts=100)
    change.stages[4].error = "no room"  # program on h1, the fastest
    own = parse(change.traceparent)
    assert own is not None
    spans = of_change(change, own, "sqlite")
    hosts = {str(span.attributes["alcor.host"]) for span in spans if "alcor.host" in span.attributes}
    assert hosts == {"h1", *(f"h{number}" for number in range(94, 101))}
    assert len(spans) == 4 + 4 * HOSTS
    assert spans[0].attributes["alcor.host_count"] == 100


def test_what_is_remembered_of_open_requests_is_bounded() -> None:
    with Collector() as collector:
        observer = Observer(Latency(), exporter(collector.address, "alcor-api"))
        for _ in range(OPEN + 10):
            request = begin("create port", "", 0.0)
            request.mark("accept")
            observer.answered(request, "POST", "/", "/", 201, 1)
            observer.joined(request.traceparent, "h1", "")
        assert (len(observer._late), len(observer._joined)) == (OPEN, OPEN)
        observer.close()


# -- the way out ------------------------------------------------------------------------------------------------------


def span() -> Span:
    return Span(TRACE, CALLER, "", "a", 1, 2, Kind.CLIENT, {"b": 1}, "why")


class Gate:
    """A collector that takes nothing until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.taken = 0

    def __call__(self, spans: Sequence[Span]) -> bool:
        self.open.wait(10)
        self.taken += len(spans)
        return True

    def close(self) -> None: ...


def test_what_does_not_fit_the_queue_is_dropped_and_counted() -> None:
    gate = Gate()
    out = Exporter(gate, queue=6)
    for _ in range(4):
        out.put(lambda: [span(), span()], 2)
    assert out.counters["spans_dropped"] == 2
    gate.open.set()
    out.close()
    assert out.counters == {"spans_exported": 6, "spans_failed": 0, "spans_dropped": 2}
    assert gate.taken == 6


def test_one_change_that_cannot_be_shown_takes_no_other_along(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    gate.open.set()
    out = Exporter(gate)
    out.put(lambda: [1 / 0], 1)  # type: ignore[list-item]
    out.put(lambda: [span()], 1)
    out.close()
    assert out.counters == {"spans_exported": 1, "spans_failed": 1, "spans_dropped": 0}
    assert "spans cannot be made" in caplog.text


@pytest.mark.parametrize("trouble", ["silent", "refused", "busy", "wrong"])
def test_a_collector_in_trouble_costs_the_caller_nothing(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PATIENCE", 0.5)
    with Collector({"silent": 0, "refused": 200, "busy": 503, "wrong": 400}[trouble]) as collector:
        address = f"http://127.0.0.1:{free_port()}" if trouble == "refused" else collector.address
        out = exporter(address, "alcor-api")
        begun = time.thread_time()
        for _ in range(30_000):
            out.put(partial(list, [span()]), 1)
        assert time.thread_time() - begun < 1.0
        assert len(out._queue) <= export.QUEUE
        assert sum(out.counters.values()) + out._waiting >= 30_000
        assert out.counters["spans_dropped"] >= (1 if trouble == "wrong" else 30_000 - export.QUEUE - export.BATCH)
        begun = time.monotonic()
        out.close()
        assert time.monotonic() - begun < 0.5 + 1 + 1
    assert collector.spans == []
    assert out.counters["spans_exported"] == 0


def test_a_collector_that_is_busy_for_a_moment_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "RETRIES", (0.05,) * 20)
    with Collector(503) as collector:
        out = exporter(collector.address, "alcor-api")
        out.put(lambda: [span()], 1)
        while not collector.requests:
            time.sleep(0.01)
        collector.status = 200
        collector.wait(lambda spans: len(spans) == 1)
        out.close()
    assert out.counters == {"spans_exported": 1, "spans_failed": 0, "spans_dropped": 0}


def test_headers_for_the_collector_come_from_the_standard_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    with Collector() as collector:
        out = exporter(collector.address + "/v1/traces", "alcor-agent", **{"host.name": "h1"})
        out.put(lambda: [span()], 1)
        out.close()
    assert collector.headers["authorization"] == "Bearer x"
    assert collector.spans[0].resource == {"service.name": "alcor-agent", "host.name": "h1"}


def test_zipkins_json() -> None:
    assert msgspec.json.decode(zipkin([span()], "alcor-api")) == [
        {
            "traceId": TRACE,
            "id": CALLER,
            "name": "a",
            "timestamp": 1,
            "duration": 2,
            "kind": "CLIENT",
            "localEndpoint": {"serviceName": "alcor-api"},
            "tags": {"b": "1", "error": "why"},
        }
    ]


def test_ids_of_one_change_differ_in_their_last_byte() -> None:
    spans = of_change(done(begin("x", "", 1.0)), parse(Change().traceparent), "")  # type: ignore[arg-type]
    assert len({each.id for each in spans}) == len(spans)
    assert spans[0].parent[:14] == spans[0].id[:14]
