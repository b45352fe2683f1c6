"""What being seen costs a create: CPU of the API without an exporter, with the default share of spans, with all, and
without the log's line.

APIs beside each other take the same load by turns; a sink here takes their spans.
"""

import asyncio
import contextlib
import json
import statistics
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.cloud import Bare, bare, network
from bench.load import drive, request
from bench.machine import Meter
from bench.report import Figure, at_most

CLIENTS, COUNT, ROUNDS = 64, 1500, 7
#: settings, and how many times the CPU of the first it may take
CASES: dict[str, tuple[dict[str, str], float]] = {
    "traces off": ({}, 0),
    "traces of 1 % of the requests, the default": ({"trace_ratio": "0.01"}, 1.1),
    "traces of all requests": ({"trace_ratio": "1"}, 1.6),
    "traces off, and no line in the log": ({"log": "json:info,changes=warning"}, 1.0),
}


def tracing() -> list[Figure]:
    """CPU of a create with tracing off, at the default share, with every span exported; without its line in the log."""
    with contextlib.ExitStack() as stack:
        otlp, taken = stack.enter_context(_sink())
        clouds: dict[str, Bare] = {}
        for name, (settings, _) in CASES.items():
            collector = {"otlp": otlp} if "trace_ratio" in settings else {}
            clouds[name] = stack.enter_context(bare(**settings, **collector))
        calls = {name: _call(cloud) for name, cloud in clouds.items()}
        costs: dict[str, list[float]] = {name: [] for name in CASES}
        machine = Meter({})
        for turn in range(ROUNDS + 1):
            for name, cloud in clouds.items():
                cost = _cost(cloud, calls[name])
                if turn:  # the first is for warming up
                    costs[name].append(cost)
        return _figures({name: statistics.median(each) for name, each in costs.items()}, taken, machine.steal())


def _figures(costs: dict[str, float], taken: list[int], steal: float) -> list[Figure]:
    first = next(iter(costs))
    figures = []
    for number, (name, cost) in enumerate(costs.items()):
        ratio, baseline = (round(cost / costs[first], 2), first) if number else (None, "")
        limit = at_most(CASES[name][1], ratio=True) if number else None
        note = f"{sum(taken) / 1e6:.1f} MB of spans in all" if number == 2 else ""
        figures.append(Figure(f"create, {name}", round(cost), "µs CPU", note, steal, baseline, ratio, limit))
    return figures


def _cost(cloud: Bare, call: bytes) -> float:
    """µs of the API's CPU for one create."""
    meter = Meter({"api": cloud.pids["api"]})
    outcome = asyncio.run(drive(cloud.api_port, lambda _: call, CLIENTS, count=COUNT))
    if outcome.refused:
        raise SystemExit(f"bench: {outcome.refused} requests were refused, for example: {outcome.example}")
    return meter.cpu()["api"] / COUNT


def _call(cloud: Bare) -> bytes:
    port = {"network_id": network(cloud.client, "10.0.0.0/12"), "name": "bench"}
    return request("POST", "/v2.0/ports", json.dumps({"port": port}).encode())


class _Sink(BaseHTTPRequestHandler):
    taken: list[int]

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.rfile.read(size)
        self.taken.append(size)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _sink() -> Iterator[tuple[str, list[int]]]:
    """Where spans go, and the sizes of what came."""
    taken: list[int] = []
    handler = type("Sink", (_Sink,), {"taken": taken})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", taken
        finally:
            server.shutdown()
            thread.join()
