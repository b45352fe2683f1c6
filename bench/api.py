"""Figures of the control plane: creates one by one and in bulk, the way to ACTIVE, lists, and what idling costs."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import uvloop
from msgspec import Struct

from bench.cloud import Bare, Running, bare, cloud, empty_server, network
from bench.load import Outcome, drive, request
from bench.machine import Meter, rss_mib
from bench.report import Budget, Figure, at_least, at_most
from bench.swarm import Swarm

CLIENTS = 64
#: of one turn, and how many turns there are
SECONDS, TURNS = 4.0, 3
EMPTY = "empty handler"
#: MiB of a process that nobody uses, by what its name begins with; agents are called h1, h2
IDLE = {"api": 120, "nats": 30, "h": 60}
BULK, FEW = 100, 4
#: ports whose memory is measured
MORE = 2000
#: simulated ones, which ack every port that they are told of
HOSTS = 8
#: seconds after which the echo of a row's creates is over, so that the next row does not pay for it
QUIET = 16.0


def idle() -> list[Figure]:
    """Memory and CPU of each process of a cloud that nobody uses."""
    with cloud() as running:
        meter = Meter(running.pids)
        time.sleep(5)
        used = meter.cpu()
        most = {name: next(limit for start, limit in IDLE.items() if name.startswith(start)) for name in running.pids}
        cpu = {name: f"{used[name] / 50_000:.1f} % CPU" for name in running.pids}
        return [
            Figure(f"idle {name}", rss_mib(pid), "MiB", cpu[name], meter.steal(), budget=at_most(most[name]))
            for name, pid in running.pids.items()
        ]


def memory() -> list[Figure]:
    """What a port of its own costs a host's agent, among a thousand others."""
    with cloud() as running:
        _fill(running, running.network, 1000)
        _settled(running)
        before = rss_mib(running.pids["h1"])
        _fill(running, running.network, MORE)
        _settled(running)
        each = (rss_mib(running.pids["h1"]) - before) * 1024 / MORE
        return [Figure("agent, each port of its host", round(each, 1), "kB", f"{MORE} more", budget=at_most(8))]


def _settled(running: Running) -> None:
    while running.client.get("/v2.0/ports?status=BUILD&limit=1&fields=id").json()["ports"]:
        time.sleep(0.2)


class Row(Struct):
    """One figure of `creates`: what is asked for, and the row that it is compared with."""

    what: str
    pids: dict[str, int]
    port: int
    make: Callable[[int], bytes]
    than: str = ""
    budget: Budget | None = None
    clients: int = CLIENTS
    each: int = 1  # ports of a request
    begun: bool = False  # its echo is waited for


class Turn(Struct):
    """What a row came to in one turn."""

    outcome: Outcome
    cpu: dict[str, int]
    steal: float
    rate: float
    ratio: float = 1.0


def creates() -> list[Figure]:
    """Ports by HTTP from 64 clients, one per request and 100, beside a handler that does nothing with the same body.

    All rows by turns; of each the turn whose ratio is the median.
    """
    with bare() as running, empty_server() as (port, pid):
        net = network(running.client, "10.0.0.0/12")
        return uvloop.run(_creates(running, net, port, pid))


async def _creates(running: Bare, net: str, empty: int, pid: int) -> list[Figure]:
    swarm = Swarm(running.bus)
    hosts = await swarm.grow(HOSTS)
    swarm.start_beats()
    rows = _rows(running, net, [host.name for host in hosts], empty, pid)
    for row in rows:
        await drive(row.port, row.make, row.clients, seconds=1)
    turns: dict[str, list[Turn]] = {row.what: [] for row in rows}
    for _ in range(TURNS):
        for row in rows:
            turn = await _turn(row)
            if row.than:
                turn.ratio = turn.rate / turns[row.than][-1].rate
            turns[row.what].append(turn)
            while swarm.total("unacked"):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.05)
    await swarm.stop_beats()
    swarm.close()
    return [_figure(row, sorted(turns[row.what], key=lambda turn: turn.ratio)[TURNS // 2]) for row in rows]


def _rows(running: Bare, net: str, hosts: list[str], empty: int, pid: int) -> list[Row]:
    """In the order in which they are measured: each after what it is compared with. `empty`: its port and process."""
    plain = {"network_id": net, "name": "bench"}
    free = _port_request(plain)
    bound = [_port_request(plain | {"binding:host_id": host}) for host in hosts]
    bulk = request("POST", "/v2.0/ports", json.dumps({"ports": [plain] * BULK}).encode())
    port = running.client.post("/v2.0/ports", json={"port": plain}).raise_for_status().json()["port"]["id"]
    one = request("GET", f"/v2.0/ports/{port}", X_Roles="admin")

    def row(what: str, make: Callable[[int], bytes], than: str, least: float, begun: bool = True, **more: int) -> Row:
        budget = at_least(least, ratio=True)
        return Row(what, running.pids, running.api_port, make, than, budget, begun=begun, **more)

    acked = f"port creates, acked by {HOSTS} hosts"
    few = f"{acked}, {FEW} clients"
    return [
        Row(EMPTY, {"empty": pid}, empty, lambda _: free),
        row("port creates", lambda _: free, EMPTY, 0.3),
        row(acked, lambda n: bound[n % HOSTS], EMPTY, 0.3),
        row("get by id", lambda _: one, EMPTY, 0.4, begun=False),
        # Creates of 64 clients are made together, as bulks are: what a bulk spares is seen beside as few clients.
        Row(few, running.pids, running.api_port, lambda n: bound[n % HOSTS], clients=FEW, begun=True),
        row(f"ports in bulks of {BULK}, {FEW} clients", lambda _: bulk, few, 6, clients=FEW, each=BULK),
    ]


async def _turn(row: Row) -> Turn:
    """A turn of one row, and the quiet in which what it began comes to its end."""
    meter = Meter(row.pids)
    outcome = await drive(row.port, row.make, row.clients, seconds=SECONDS)
    _check(outcome)
    turn = Turn(outcome, meter.cpu(), meter.steal(), outcome.rate * row.each)
    if row.begun:
        await asyncio.sleep(QUIET)
    return turn


def _port_request(port: dict[str, str]) -> bytes:
    return request("POST", "/v2.0/ports", json.dumps({"port": port}).encode())


def active() -> list[Figure]:
    """One port at a time: from the request until the kernel of its host has it and the answer says ACTIVE."""
    figures = []
    with cloud() as running:
        for size in (0, 1000):
            if size:
                _fill(running, running.network, size)
            outcome, meter = _until_active(running)
            note = f"p99 {outcome.quantile(0.99):.1f} ms, among {size or 'no'} other ports"
            p50 = round(outcome.quantile(0.5), 2)
            figures.append(Figure("create until ACTIVE, p50", p50, "ms", note, meter.steal(), budget=at_most(5)))
        since = running.client.get("/v2.0/alcor/latency").raise_for_status().json()["since_start"]
        for name in ("program", "total"):
            if name in since:
                at = since[name]
                note = f"p99 {at['p99_us'] / 1000:.2f} ms of {at['count']}"
                figures.append(Figure(f"stage {name}, p50", round(at["p50_us"] / 1000, 2), "ms", note))
    return figures


def lists() -> list[Figure]:
    """All 1 400 ports of a network in one answer."""
    with cloud() as running:
        net = network(running.client, "10.64.0.0/16")
        _fill(running, net, 1400)
        call = request("GET", f"/v2.0/ports?network_id={net}", X_Roles="admin")
        meter = Meter(running.pids)
        outcome = asyncio.run(drive(running.port, lambda _: call, 1, count=20))
        _check(outcome)
        size = len(running.client.get("/v2.0/ports", params={"network_id": net}).json()["ports"])
        return [
            Figure(
                f"list of {size} ports, p50",
                round(outcome.quantile(0.5), 1),
                "ms",
                "",
                meter.steal(),
                budget=at_most(20),
            )
        ]


def _until_active(running: Running) -> tuple[Outcome, Meter]:
    """200 ports one after the other, on two hosts by turns."""
    calls = [
        request("POST", "/v2.0/ports", json.dumps({"port": port}).encode(), Prefer="wait=10")
        for port in ({"network_id": running.network, "binding:host_id": host} for host in ("h1", "h2"))
    ]
    asyncio.run(drive(running.port, lambda n: calls[n % 2], 1, count=20))
    meter = Meter(running.pids)
    outcome = asyncio.run(drive(running.port, lambda n: calls[n % 2], 1, count=200))
    _check(outcome)
    return outcome, meter


def _figure(row: Row, turn: Turn) -> Figure:
    operations, outcome = len(turn.outcome.latencies) * row.each, turn.outcome
    cpu = ", ".join(f"{name} {used / operations:.0f}" for name, used in turn.cpu.items() if used >= operations)
    note = f"p50 {outcome.quantile(0.5):.1f} p99 {outcome.quantile(0.99):.1f} ms; CPU µs each: {cpu}"
    ratio = round(turn.ratio, 2) if row.than else None
    return Figure(row.what, round(turn.rate), "/s", note, turn.steal, row.than, ratio, row.budget)


def _fill(running: Running, net: str, count: int) -> None:
    """Ports on host h1 by bulks of 100."""
    for _ in range(count // BULK):
        body: dict[str, Any] = {"ports": [{"network_id": net, "binding:host_id": "h1"}] * BULK}
        running.client.post("/v2.0/ports", json=body).raise_for_status()


def _check(outcome: Outcome) -> None:
    """A refused request is fast and means nothing."""
    if outcome.refused:
        raise SystemExit(f"bench: {outcome.refused} requests were refused, for example: {outcome.example}")
