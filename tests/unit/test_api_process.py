"""The API process as it is deployed: real store, real bus, real sockets; a signal drains it, spans arrive by OTLP."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.nats import NatsServer
from tests.support.ports import free_port

pytestmark = pytest.mark.server

PROGRAM = """
import sys, msgspec, uvloop
from api.app import run
from planes.model.settings import Settings
uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Settings)))
"""


class Collector:
    """An OTLP/HTTP endpoint that keeps the names of the spans it was sent."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                sent = ExportTraceServiceRequest.FromString(body if b"/v1/traces" in head else b"")
                for resource in sent.resource_spans:
                    for scope in resource.scope_spans:
                        self.names |= {span.name for span in scope.spans}
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def nats() -> AsyncIterator[NatsServer]:
    server = NatsServer()
    await server.start()
    yield server
    server.kill()


async def test_it_serves_drains_and_exports(tmp_path: Path, nats: NatsServer) -> None:
    collector, port, otlp = Collector(), free_port(), free_port()
    listener = await asyncio.start_server(collector.take, "127.0.0.1", otlp)
    settings = (
        f'{{"store": "sqlite:///{tmp_path}/store.db", "nats": "{nats.url}", "api_port": {port}, "log": "json",'
        f' "trace_ratio": 1, "otlp": "http://127.0.0.1:{otlp}"}}'
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
        assert {"create port", "accept", "write"} <= collector.names
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        listener.close()
        await listener.wait_closed()


async def _ready(http: httpx.AsyncClient) -> None:
    for _ in range(150):
        try:
            if (await http.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("the API did not become ready")
