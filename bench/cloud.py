"""Clouds and servers to measure: `alcor up` in a directory of its own, and the yardstick beside it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from msgspec import Struct

START_SECONDS = 60.0


class Running(Struct):
    """A cloud under measurement. `pids` by part."""

    port: int
    pids: dict[str, int]
    client: httpx.Client
    network: str


@contextlib.contextmanager
def cloud(hosts: int = 2) -> Iterator[Running]:
    """A fresh cloud with one network of a million addresses; gone at the end."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="alcor-bench-") as data:
        command = [sys.executable, "-m", "cli.main", "up", "--json", "--hosts", str(hosts), "--data", f"{data}/cloud"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("ALCOR_")}
        process = subprocess.Popen([*command, "--api-port", str(port)], stdout=subprocess.PIPE, text=True, env=env)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"bench: the cloud did not start (code {process.wait()})")
            ready = json.loads(line)
            headers = {"X-Roles": "admin"}
            with httpx.Client(base_url=ready["api"], headers=headers, timeout=60, trust_env=False) as client:
                yield Running(port, ready["pids"], client, network(client, "10.0.0.0/12"))
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


class Bare(Struct):
    """A broker and an API without any host. `bus`: the broker's URL."""

    bus: str
    pids: dict[str, int]
    client: httpx.Client
    api_port: int


@contextlib.contextmanager
def bare(**settings: str) -> Iterator[Bare]:
    """A broker and an API with these settings, on a fresh database; gone at the end."""
    bus, port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="alcor-bench-") as data, contextlib.ExitStack() as stack:
        env = {name: value for name, value in os.environ.items() if not name.startswith("ALCOR_")}
        env |= {"ALCOR_NATS": f"nats://127.0.0.1:{bus}", "ALCOR_API_PORT": str(port), "ALCOR_DATA": data}
        env |= {f"ALCOR_{name.upper()}": value for name, value in settings.items()}
        server = str(Path(sys.executable).with_name("nats-server"))
        pids = {"nats": _started(stack, [server, "-a", "127.0.0.1", "-p", str(bus)], env, bus)}
        pids["api"] = _started(stack, [sys.executable, "-m", "cli.main", "api"], env, port)
        url, headers = f"http://127.0.0.1:{port}", {"X-Roles": "admin"}
        with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.05)
            yield Bare(f"nats://127.0.0.1:{bus}", pids, client, port)


def _started(stack: contextlib.ExitStack, command: list[str], env: dict[str, str], port: int) -> int:
    """A process that listens, ended with the stack; its pid."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    _wait_for(port, process, command[-1])
    return process.pid


def _wait_for(port: int, process: "subprocess.Popen[bytes]", what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"bench: {what} did not start")
        time.sleep(0.05)


@contextlib.contextmanager
def empty_server() -> Iterator[tuple[int, int]]:
    """(port, pid) of the yardstick."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.empty", str(port)])
    try:
        _wait_for(port, process, "the yardstick")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def network(client: httpx.Client, cidr: str) -> str:
    """A network with one subnet; its id."""
    made = client.post("/v2.0/networks", json={"network": {"name": "bench"}}).raise_for_status().json()["network"]
    subnet: dict[str, Any] = {"network_id": made["id"], "cidr": cidr, "ip_version": 4}
    client.post("/v2.0/subnets", json={"subnet": subnet}).raise_for_status()
    return str(made["id"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def results() -> Path:
    """Where the figures go as JSON."""
    folder = Path(__file__).resolve().parent / "results"
    folder.mkdir(exist_ok=True)
    return folder
