"""The API without its bus: it serves, says so, keeps what is written, and the hosts get it when the bus is back."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.e2e.parts import Parts, active, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(120)]


async def test_started_without_nats_it_serves_and_the_hosts_follow_when_nats_comes(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as parts:
        parts.start("api", "h1")
        health = await eventually(lambda: parts.http.get("/healthz"), 10, "the API listens")
        assert health.status_code == 200
        await _says_that_nats_is_away(parts)
        network = await parts.network()
        made = await parts.port(network, "h1", wait=0)
        gone = await parts.port(network, "h1", wait=0)
        assert made["status"] == "BUILD"
        assert (await parts.http.delete(f"/v2.0/ports/{gone['id']}")).status_code == 204
        await asyncio.sleep(3)  # as long as a host may be silent: nobody is given up for it
        assert [port["status"] for port in await parts.list("ports")] == ["BUILD"]
        parts.start("nats")
        await parts.well("h1")
        await active(parts, [made["id"]])
        assert parts.end("api") == 0


async def test_ended_while_it_still_looks_for_nats_it_ends_at_once(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as parts:
        parts.start("api")
        await eventually(lambda: parts.http.get("/healthz"), 10, "the API listens")
        assert parts.end("api") == 0
        assert "Traceback" not in parts.said("api")


async def test_nats_goes_away_for_long(tmp_path: Path) -> None:
    """Longer than it takes to call a host dead: nobody is, because it is control that hears nothing."""
    async with Parts(tmp_path / "data", hosts=2) as parts:
        await parts.up()
        network = await parts.network()
        first = [await parts.port(network, host) for host in parts.hosts]
        parts.kill("nats")
        await _says_that_nats_is_away(parts)
        made = [await parts.port(network, host, wait=0) for host in parts.hosts]
        assert (await parts.http.delete(f"/v2.0/ports/{first[0]['id']}")).status_code == 204
        await asyncio.sleep(8)  # a host is dead after 3 s, an echo comes after 2 to 7
        assert {host["state"] for host in await parts.list("alcor/hosts")} == {"silent"}
        parts.start("nats")
        await parts.well(*parts.hosts)
        await active(parts, [port["id"] for port in [first[1], *made]])
        assert {host["epoch"] for host in await parts.list("alcor/hosts")} == {1}


async def test_nats_takes_connections_and_does_not_answer(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as parts:
        parts.start("nats")
        await asyncio.sleep(0.5)
        parts.pause("nats")
        parts.start("api", "h1")
        await eventually(lambda: parts.http.get("/healthz"), 10, "the API listens")
        made = await parts.port(await parts.network(), "h1", wait=0)
        parts.resume("nats")
        await active(parts, [made["id"]])


async def _says_that_nats_is_away(parts: Parts) -> None:
    async def said() -> httpx.Response | None:
        answer = await parts.http.get("/readyz")
        return answer if answer.status_code == 503 else None

    answer = await eventually(said, 10, "not ready")
    assert answer.json()["NeutronError"]["message"].startswith("There is no connection to NATS")
    assert (await parts.http.get("/healthz")).status_code == 200
