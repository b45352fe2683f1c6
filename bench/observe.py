"""What being seen costs: CPU of a create without an exporter, with metrics alone, with the default share of spans, and
with all; and CPU of a scrape while ten thousand hosts beat.

Four APIs beside each other take the same load by turns; a sink here takes their spans and metrics.
"""

import asyncio
import contextlib
import json
import re
import statistics
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.cloud import Bare, bare, network
from bench.load import drive, request
from bench.machine import Meter
from bench.report import Figure, at_most
from bench.swarm import BEAT_EVERY, Swarm
from observability.exposition import OPENMETRICS

CLIENTS, COUNT, ROUNDS = 64, 1500, 7
#: settings, and how many times the CPU of the first it may take; with a `trace_ratio`, spans and metrics leave
CASES: dict[str, tuple[dict[str, str], float]] = {
    "nothing leaves": ({}, 0),
    "metrics alone": ({"trace_ratio": "0"}, 1.1),
    "traces of 1 % of the requests, the default": ({"trace_ratio": "0.01"}, 1.1),
    "traces of all requests": ({"trace_ratio": "1"}, 1.6),
    "nothing leaves, no line in the log": ({"log": "json:info,changes=warning"}, 1.0),
}
HOSTS, SCRAPES = 10_000, 20


def observe() -> list[Figure]:
    """CPU of a create with nothing exported, metrics alone, and spans in shares; CPU of a scrape with 10 000 hosts."""
    return [*_creates(), *asyncio.run(_scraped())]


async def _scraped() -> list[Figure]:
    """With all hosts alive, and every kind of request counted that a create of a port needs."""
    with bare() as running:
        hosts = Swarm(running.bus)
        try:
            await hosts.grow(HOSTS)
            hosts.start_beats()
            await asyncio.sleep(2 * BEAT_EVERY)
            await hosts.stop_beats()
            network(running.client, "10.0.0.0/12")
            return [_scrape(running, form) for form in ("text/plain", f"{OPENMETRICS}; version=1.0.0")]
        finally:
            hosts.close()


def _scrape(running: Bare, form: str) -> Figure:
    costs, machine = [], Meter({})
    text = ""
    for _ in range(SCRAPES):
        meter = Meter({"api": running.pids["api"]})
        text = running.client.get("/metrics", headers={"accept": form}).raise_for_status().text
        costs.append(meter.cpu()["api"] / 1000)
    alive = re.search(r'alcor_hosts{state="alive"} (\d+)', text)
    note = f"{alive[1] if alive else 0} hosts alive; {len(text.splitlines())} lines, {len(text) / 1000:.0f} kB"
    what = f"scrape with {HOSTS:,} hosts, {form.partition(';')[0]}"
    return Figure(what, round(statistics.median(costs), 1), "ms CPU", note, machine.steal(), budget=at_most(20))


def _creates() -> list[Figure]:
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
        note = f"{sum(taken) / 1e6:.1f} MB sent in all" if number == len(costs) - 1 else ""
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
    """Where spans and metrics go, and the sizes of what came."""
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
