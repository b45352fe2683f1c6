"""Figures of the control plane: creates one by one and in bulk, the way to ACTIVE, lists, and what idling costs."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import uvloop

from bench.cloud import Bare, Running, bare, cloud, empty_server, network
from bench.load import Outcome, drive, request
from bench.machine import Meter, rss_mib
from bench.report import Budget, Figure, at_least, at_most
from bench.swarm import Swarm

CLIENTS = 64
SECONDS = 6.0
#: MiB of a process that nobody uses, by what its name begins with; agents are called h1, h2
IDLE = {"api": 120, "nats": 30, "h": 60}
BULK = 100
#: ports whose memory is measured
MORE = 2000
#: simulated ones, which ack every port that they are told of
HOSTS = 8
#: seconds after which the echo of a row's creates is over, so that the next row does not pay for it
QUIET = 20.0


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


def creates() -> list[Figure]:
    """Ports by HTTP from 64 clients, one per request and 100, beside a handler that does nothing with the same body."""
    with bare() as running, empty_server() as (port, pid):
        net = network(running.client, "10.0.0.0/12")
        return uvloop.run(_creates(running, net, port, pid))


async def _creates(running: Bare, net: str, empty: int, pid: int) -> list[Figure]:
    swarm = Swarm(running.bus)
    hosts = await swarm.grow(HOSTS)
    swarm.start_beats()
    free = _port_request({"network_id": net, "name": "bench"})
    bound = [_port_request({"network_id": net, "name": "bench", "binding:host_id": host.name}) for host in hosts]
    many = json.dumps({"ports": [{"network_id": net, "name": "bench"}] * BULK}).encode()
    bulk = request("POST", "/v2.0/ports", many)
    await drive(empty, lambda _: free, CLIENTS, seconds=1)
    await drive(running.api_port, lambda _: free, CLIENTS, seconds=1)

    await asyncio.sleep(QUIET)
    yardstick, meter = await _measured({"empty": pid}, empty, lambda _: free)
    figures = [_figure("empty handler", yardstick, meter)]
    base = ("empty handler", yardstick.rate, at_least(0.3, ratio=True))
    alone, meter = await _measured(running.pids, running.api_port, lambda _: free)
    figures.append(_figure("port creates", alone, meter, base=base))
    await asyncio.sleep(QUIET)
    acked, meter = await _measured(running.pids, running.api_port, lambda n: bound[n % HOSTS])
    while swarm.total("unacked"):  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.05)
    figures.append(_figure(f"port creates, acked by {HOSTS} hosts", acked, meter, base=base))
    port = running.client.get("/v2.0/ports", params={"limit": "1", "fields": "id"}).json()["ports"][0]["id"]
    one = request("GET", f"/v2.0/ports/{port}", X_Roles="admin")
    await asyncio.sleep(QUIET)
    got, meter = await _measured(running.pids, running.api_port, lambda _: one)
    figures.append(_figure("get by id", got, meter, base=(*base[:2], at_least(0.4, ratio=True))))
    bulks, meter = await _measured(running.pids, running.api_port, lambda _: bulk, clients=4)
    base = (f"port creates, acked by {HOSTS} hosts", acked.rate, at_least(6, ratio=True))
    figures.append(_figure(f"ports in bulks of {BULK}", bulks, meter, scale=BULK, base=base))
    await swarm.stop_beats()
    swarm.close()
    return figures


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


async def _measured(
    pids: dict[str, int], port: int, make: Callable[[int], bytes], clients: int = CLIENTS
) -> tuple[Outcome, Meter]:
    meter = Meter(pids)
    outcome = await drive(port, make, clients, seconds=SECONDS)
    _check(outcome)
    return outcome, meter


def _figure(
    what: str, outcome: Outcome, meter: Meter, scale: int = 1, base: tuple[str, float, Budget] | None = None
) -> Figure:
    """A rate; `base`: in words and per second what it is compared with, and what the ratio must be."""
    operations, rate = len(outcome.latencies) * scale, outcome.rate * scale
    cpu = ", ".join(f"{name} {used / operations:.0f}" for name, used in meter.cpu().items() if used >= operations)
    note = f"p50 {outcome.quantile(0.5):.1f} p99 {outcome.quantile(0.99):.1f} ms; CPU µs each: {cpu}"
    words, ratio, budget = (base[0], round(rate / base[1], 2), base[2]) if base else ("", None, None)
    return Figure(what, round(rate), "/s", note, meter.steal(), words, ratio, budget)


def _fill(running: Running, net: str, count: int) -> None:
    """Ports on host h1 by bulks of 100."""
    for _ in range(count // BULK):
        body: dict[str, Any] = {"ports": [{"network_id": net, "binding:host_id": "h1"}] * BULK}
        running.client.post("/v2.0/ports", json=body).raise_for_status()


def _check(outcome: Outcome) -> None:
    """A refused request is fast and means nothing."""
    if outcome.refused:
        raise SystemExit(f"bench: {outcome.refused} requests were refused, for example: {outcome.example}")
