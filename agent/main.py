"""Composition root of the host agent: the only module here that knows NATS and the Linux data plane.

Called by the command line with a finished configuration.
"""

import asyncio
import gc
import ipaddress
import logging
import os
import random
import signal
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from agent.config import AgentConfig
from agent.core.context import Options
from agent.core.state import AgentState
from agent.runtime import Agent
from agent.state_file import StateFile
from observability.listener import listening
from observability.metrics import Registry
from observability.telemetry import telling
from planes.bus.nats.bus import NatsBus
from planes.data.linux.driver import LinuxDriver
from planes.goalstate.messages import TRACES
from planes.goalstate.subjects import check_host, token

if TYPE_CHECKING:
    from agent.tracing import Tracer

log = logging.getLogger(__name__)
MACHINE_ID = Path("/etc/machine-id")


def _now_us() -> int:
    return time.time_ns() // 1000


def machine_id(config: AgentConfig) -> str:
    """What tells this machine from another that goes by the same host name (rule S16)."""
    if config.machine:
        return config.machine
    try:
        found = MACHINE_ID.read_text().strip()
    except OSError:
        found = ""
    if found:
        return f"{found}-{socket.gethostname()}"
    kept = Path(config.state_dir) / "machine-id"
    with suppress(OSError):
        return kept.read_text().strip()
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept.write_text(uuid.uuid4().hex)
    os.chmod(kept, 0o600)
    return kept.read_text()


async def run(config: AgentConfig) -> None:
    """Be the agent of a host until SIGTERM or SIGINT; then leave the kernel as it is."""
    host = check_host(config.host)
    vtep = ipaddress.IPv4Address(config.vtep).packed
    options = Options(
        host=host,
        machine=machine_id(config),
        vtep=vtep,
        cell=config.cell,
        prefix=config.prefix,
        beat_every=config.beat_every,
        sync_every=config.sync_every,
        tombstone_life=config.tombstone_life,
        linger=config.linger,
        capabilities=("vxlan-gbp", *((TRACES,) if config.otlp else ())),
    )
    keeper = StateFile(config.state_dir, host)
    keeper.lock()
    state = AgentState(options, random.random, keeper.load())
    bus = NatsBus(config.nats, f"host-{host}", credentials=config.credentials, inbox=f"_INBOX_{token(host)}")
    driver = LinuxDriver(config.cloud, port=config.udp_port)
    tracer = _tracer(config, host) if config.otlp else None
    agent = Agent(state, bus, driver, vtep, _now_us, keeper, tracer)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    registry = Registry(agent.metrics)
    who = {"service.name": "alcor-agent", "host.name": host}
    async with (
        telling(registry, bus, lambda: tracer.exporter.counters if tracer else {}, config.otlp, who),
        listening(registry, config.metrics_host, config.metrics_port),
    ):
        await agent.start()
        log.info("agent of host %s started, tunnel end %s", host, config.vtep)
        await stop.wait()
        await agent.close()
    if tracer is not None:
        await asyncio.to_thread(tracer.close)
    log.info("agent of host %s stopped; its traffic goes on", host)


def _tracer(config: AgentConfig, host: str) -> "Tracer":
    from agent.tracing import Tracer  # here: few agents export spans, and the others save the memory
    from observability.export import exporter

    return Tracer(exporter(config.otlp, "alcor-agent", **{"host.name": host}), host, config.trace_ratio)


def main(config: AgentConfig) -> None:
    """The same, with a loop of its own."""
    be_patient()
    uvloop.run(run(config))


def be_patient() -> None:
    """Set the interpreter up for an agent."""
    # Hundreds of thousands of objects come at once and stay: looking through them for garbage finds nothing.
    gc.set_threshold(20_000, 50, 100)
