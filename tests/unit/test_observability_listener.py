"""The agent's `/metrics`: what it answers, and that bad company is bounded."""

import asyncio
import socket
from contextlib import suppress

import httpx
import pytest

from observability import families
from observability.listener import LIMIT, MOST, listening
from observability.metrics import Registry
from tests.e2e.parts import eventually
from tests.support.metrics import exported
from tests.support.ports import free_port

pytestmark = pytest.mark.server


def registry() -> Registry:
    return Registry(lambda: [families.IN_SYNC.one(1)])


async def get(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        return await http.request(method, f"http://127.0.0.1:{port}{path}", headers=headers)


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        await shut(writer)


async def shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionResetError):
        await writer.wait_closed()


async def test_it_tells_both_formats() -> None:
    port = free_port()
    async with listening(registry(), "127.0.0.1", port):
        classic = await get(port)
        assert classic.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "alcor_agent_in_sync 1" in classic.text
        openmetrics = await get(port, "/metrics?x=1", Accept="application/openmetrics-text; version=1.0.0")
        assert exported(openmetrics.text, openmetrics=True) == exported(classic.text)
        head = await get(port, method="HEAD")
        assert (head.content, head.headers["content-length"]) == (b"", classic.headers["content-length"])


async def test_anything_else_is_refused() -> None:
    port = free_port()
    async with listening(registry(), "127.0.0.1", port):
        assert (await get(port, "/")).status_code == 404
        refused = await get(port, method="DELETE")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert b"404" in await raw(port, b"\r\n\r\n")
        assert await raw(port, b"GET /metrics HTTP/1.1\r\nx: " + b"y" * 2 * LIMIT + b"\r\n\r\n") == b""
        assert (await get(port)).status_code == 200


async def test_idle_connections_are_few() -> None:
    port = free_port()
    async with listening(registry(), "127.0.0.1", port):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST)]
        assert await raw(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        for _, writer in idle:
            await shut(writer)
        await eventually(lambda: raw(port, b"GET /metrics HTTP/1.1\r\n\r\n"))


async def test_an_address_in_use_is_said_and_gone_without(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with listening(registry(), "127.0.0.1", port):
            pass
    (record,) = caplog.records
    assert record.getMessage().startswith(f"no metrics on 127.0.0.1 port {port}: ")
    assert "already in use" in record.getMessage()


async def test_port_0_is_nowhere() -> None:
    async with listening(registry(), "127.0.0.1", 0):
        pass
