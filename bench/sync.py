"""An agent comes back to a network of 100 000 addresses: how long until it is in sync, and who spends the time.

The API and the broker are processes of their own. The agent is the real one, in this process, on the memory driver,
whose kernel costs nothing: the figure is of pages made by control, carried by NATS and taken by the agent. On the way
it is measured what a port costs in memory in the API.
"""

import asyncio
import gc
import os
import random
import time

import httpx
import uvloop
from msgspec import Struct

from agent.core.context import Options
from agent.core.state import AgentState
from agent.main import be_patient
from agent.runtime import Agent
from bench.cloud import Bare, bare, network
from bench.machine import Meter, rss_mib
from bench.report import Budget, Figure, at_most
from bench.swarm import SimulatedHost, Swarm, each
from observability.stages import now_us
from planes.bus.nats.bus import NatsBus
from planes.data.memory.driver import MemoryDriver
from planes.data.memory.fabric import Fabric

ADDRESSES = 100_000
#: ports after which the API's caches are full
WARM = 20_000
BULK = 100
RESTARTS = 5
PATIENCE = 60.0
LIMITS = httpx.Limits(keepalive_expiry=2)
ADMIN = {"X-Roles": "admin"}


class Took(Struct, order=True):
    """From an agent's start until it was in sync: seconds, CPU in µs of the API and of the agent, and its MiB."""

    seconds: float
    api: int
    agent: int
    grew: float
    steal: float


def sync() -> list[Figure]:
    """An agent returns to a network of 100 000 ports: seconds to be in sync; memory of a port in the API."""
    with bare(echo_from="3600", echo_to="3601") as running:  # the echo is not what is measured
        net = network(running.client, "10.0.0.0/12")
        return uvloop.run(_run(running, net))


async def _run(running: Bare, net: str) -> list[Figure]:
    swarm, fabric = Swarm(running.bus), Fabric()
    be_patient()
    (other,) = await swarm.grow(1)
    begun = time.perf_counter()
    await _acked(running, net, other, WARM)
    before = rss_mib(running.pids["api"])
    await _acked(running, net, other, ADDRESSES)
    took, grew = time.perf_counter() - begun, rss_mib(running.pids["api"]) - before
    note = f"beyond the first {WARM:,}, which fill caches; {ADDRESSES:,} made and acked in {took:.0f} s"
    cost = _each(grew, ADDRESSES - WARM)
    figures = [Figure("memory of a port in the API", cost, "kB", note, budget=at_most(2))]
    await _fill(running, net, "sync", 1)
    first = await _life(running, fabric, "sync", ADDRESSES)
    figures.append(_figure("first sync of 100,000 objects", first, f"{_each(first.grew, ADDRESSES):.2f} kB each"))
    lives = sorted([await _life(running, fabric, "sync", ADDRESSES) for _ in range(RESTARTS)])
    median, last = lives[RESTARTS // 2], lives[-1]
    note = f"median of {RESTARTS}, slowest {last.seconds:.2f} s"
    figures.append(_figure("sync of 100,000 objects after a restart", median, note, at_most(1)))
    swarm.close()
    return figures


async def _life(running: Bare, fabric: Fabric, host: str, objects: int) -> Took:
    """One life of an agent, from its start until it has at least so many objects and is in sync."""
    vtep = b"\xc6\x13\x00" + bytes((len(host),))
    state = AgentState(Options(host=host, machine=f"machine-{host}", vtep=vtep), random.random)
    agent = Agent(state, NatsBus(running.bus, host), MemoryDriver(fabric), vtep, now_us)
    gc.collect()
    before, meter, begun = rss_mib(os.getpid()), Meter({**running.pids, "agent": os.getpid()}), time.perf_counter()
    await agent.start()
    try:
        async with asyncio.timeout(PATIENCE):
            while len(state.objects) < objects or not state.in_sync():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise SystemExit(f"bench: the agent is not in sync: {state.story()[-5:]}") from None
    took, used = time.perf_counter() - begun, meter.cpu()
    gc.collect()
    grew = rss_mib(os.getpid()) - before
    await agent.close()
    return Took(took, used["api"], used["agent"], grew, meter.steal())


async def _acked(running: Bare, net: str, host: SimulatedHost, total: int) -> None:
    """Ports on a simulated host until it has acked so many."""
    await _fill(running, net, host.name, total - host.acked)
    while host.acked < total:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.05)


async def _fill(running: Bare, net: str, host: str, count: int) -> None:
    """Ports on a host, known or not."""
    bulk = min(BULK, count)
    ports = [{"network_id": net, "binding:host_id": host}] * bulk
    url = str(running.client.base_url)
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=ADMIN, limits=LIMITS, trust_env=False) as client:

        async def post(_: int) -> None:
            (await client.post("/v2.0/ports", json={"ports": ports})).raise_for_status()

        await each(range(count // bulk), post, 4)


def _figure(what: str, took: Took, note: str, budget: Budget | None = None) -> Figure:
    words = f"CPU: API {took.api / 1e6:.2f} s, agent {took.agent / 1e6:.2f} s"
    return Figure(what, round(took.seconds, 2), "s", f"{note}; {words}", took.steal, budget=budget)


def _each(mebibytes: float, count: int) -> float:
    """kB of each."""
    return round(mebibytes * 1024 / count, 2)
