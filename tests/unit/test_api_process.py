"""The API process as it is deployed: real store, real bus, real sockets; a signal drains it, spans arrive by OTLP."""

import asyncio
import contextlib
import json
import re
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bench.load import drive, request
from observability.export import QUEUE
from tests.support.nats import NatsServer
from tests.support.otlp import Collector
from tests.support.ports import free_port

pytestmark = pytest.mark.server

PROGRAM = """
import sys, msgspec, uvloop
from api.app import run
from planes.model.settings import Settings
uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Settings)))
"""


@pytest.fixture
async def nats() -> AsyncIterator[NatsServer]:
    server = NatsServer("--user", "bob", "--pass", "s3cret")
    await server.start()
    yield server
    server.kill()


async def test_it_serves_drains_and_exports(tmp_path: Path, nats: NatsServer) -> None:
    port, collector = free_port(), Collector()
    stack = contextlib.ExitStack()
    stack.enter_context(collector)
    bus, otlp = (url.replace("://", "://bob:s3cret@") for url in (nats.url, collector.address))
    settings = (
        f'{{"store": "sqlite:///{tmp_path}/store.db", "nats": "{bus}", "api_port": {port}, "log": "json:debug",'
        f' "trace_ratio": 1, "otlp": "{otlp}"}}'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, settings, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            await _ready(http)
            network = (await http.post("/v2.0/networks", json={"network": {}})).json()["network"]["id"]
            await http.post("/v2.0/subnets", json={"subnet": {"network_id": network, "cidr": "10.0.0.0/24"}})
            made = await http.post("/v2.0/ports", json={"port": {"network_id": network}})
            assert made.status_code == 201, made.text
            assert 'stage="total"' in (await http.get("/metrics")).text
            admin = {"X-Roles": "admin", "Prefer": "wait=3"}
            await http.post("/v2.0/alcor/hosts", json={"host": {"name": "h1"}}, headers=admin)
            body = {"port": {"network_id": network, "binding:host_id": "h1"}}
            waiting = asyncio.create_task(http.post("/v2.0/ports", json=body, headers=admin))
            await asyncio.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            answer = await waiting
            assert (answer.status_code, answer.json()["port"]["status"]) == (201, "BUILD")
        _, errors = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == 0, errors.decode()
        assert b'"level":"error"' not in errors
        assert {"create port", "accept", "write", "POST /v2.0/ports"} <= {span.name for span in collector.spans}
        assert collector.headers["Authorization"].startswith("Basic ")
        lines = [json.loads(line) for line in errors.splitlines()]
        assert sum(line["logger"] == "changes" and "create port" in line["message"] for line in lines) == 1
        assert b"s3cret" not in errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        stack.close()


@pytest.mark.slow
async def test_a_collector_that_never_answers_costs_memory_up_to_a_bound_and_no_request(
    tmp_path: Path, nats: NatsServer
) -> None:
    """More spans than the queue holds, all of them sampled."""
    port, bus = free_port(), nats.url.replace("://", "://bob:s3cret@")
    with Collector(status=0) as collector:
        settings = (
            f'{{"store": "sqlite:///{tmp_path}/store.db", "nats": "{bus}", "api_port": {port}, "log": "error",'
            f' "trace_ratio": 1, "otlp": "{collector.address}"}}'
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, settings)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
                await _ready(http)
                before = _memory(process.pid)
                outcome = await drive(port, lambda _: request("GET", "/v2.0/networks"), 32, count=QUEUE + 2_000)
                metrics = (await http.get("/metrics")).text
            assert outcome.refused == 0
            assert outcome.quantile(0.99) < 1_000
            counted = re.findall(r"^alcor_spans_(\w+)_total (\d+)", metrics, re.MULTILINE)
            found = {name: int(value) for name, value in counted}
            assert found["dropped"] + found["failed"] > 1_000  # failed: it gave up on some meanwhile
            assert found["exported"] == 0
            assert _memory(process.pid) - before < 64 << 20
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def _ready(http: httpx.AsyncClient) -> None:
    for _ in range(150):
        try:
            if (await http.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("the API did not become ready")
