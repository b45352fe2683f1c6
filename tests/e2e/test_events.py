"""What happens, as it happens, over HTTP and on the bus: real API, real NATS, real hosts."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.parts import Parts, eventually
from tests.e2e.support import ROOT

pytestmark = [pytest.mark.server, pytest.mark.kernel]
EXAMPLE = ROOT / "examples/events.py"
EVENTS = "/v2.0/alcor/events"


class Follower:
    """A stream of events, read as a browser reads it."""

    def __init__(self, http: httpx.AsyncClient, project: str = "") -> None:
        self._headers = {"X-Project-Id": project, "X-Roles": "member"} if project else {"X-Roles": "admin"}
        self._http = http
        self.events: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []
        self.lagged = 0
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self._http.stream("GET", EVENTS, headers=self._headers, timeout=30) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream"
            self.begun.set()
            async for kind, data in _messages(answer):
                if kind == "lagged":
                    self.lagged += 1
                elif kind == "change":
                    self.changes.append(data)
                else:
                    self.events.append(data)

    def verbs(self) -> list[str]:
        return [f"{event['resource']} {event['verb']} {event['status']}".strip() for event in self.events]


async def _messages(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    kind = ""
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)
            kind = ""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


async def test_streams(directory: Path) -> None:
    """A port's life on its project's stream, an operator's and the bus, and not on another project's stream."""
    async with Parts(directory / "data", hosts=1) as cloud:
        await cloud.up()
        mine, operator, other = (Follower(cloud.http, name) for name in ("demo", "", "other"))
        for each in (mine, operator, other):
            await asyncio.wait_for(each.begun.wait(), 10)
        log = directory / "example.log"
        example = _example(cloud.nats, log)
        try:
            await _life(cloud, mine, operator, other, log)
            await _bus_away(cloud, operator)
            started = time.monotonic()
            assert cloud.end("api") == 0
            assert time.monotonic() - started < 8, "streams end when the API is asked to end"
            await asyncio.wait_for(asyncio.gather(mine.task, operator.task, other.task, return_exceptions=True), 5)
            assert example.poll() is None
        finally:
            example.kill()
            example.wait()


def _example(nats: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(EXAMPLE), nats, "demo"]
    with log.open("w") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"PYTHONPATH": str(ROOT)})


async def _life(cloud: Parts, mine: Follower, operator: Follower, other: Follower, log: Path) -> None:
    network = await cloud.network()

    async def example_listens() -> bool:  # it has no sign of its own: whoever was away asks the REST API
        (await cloud.http.put(f"/v2.0/networks/{network}", json={"network": {"name": "n"}})).raise_for_status()
        return "network update" in log.read_text()

    await eventually(example_listens, 10, "the example hears events")
    del mine.events[:], operator.events[:]
    port = await cloud.port(network, "h1", wait=10)
    (await cloud.http.delete(f"/v2.0/ports/{port['id']}")).raise_for_status()

    async def told() -> bool:
        lines = [line.split()[:2] for line in log.read_text().splitlines() if port["id"] in line]
        expected = ["port create BUILD", "port status ACTIVE", "port delete"]
        return (
            mine.verbs()[-3:] == operator.verbs()[-3:] == expected
            and lines == [["port", verb] for verb in ("create", "status", "delete")]
            and [change["object_id"] for change in mine.changes[-2:]] == [port["id"]] * 2
        )

    await eventually(told, 10, "everybody concerned hears of the port")
    assert not other.events
    assert not other.changes
    status = mine.events[-2]
    assert (status["host"], status["network_id"]) == ("h1", network)
    assert status["took_us"] > 0
    stages = {(stage["name"], stage["host"]) for stage in mine.changes[-2]["stages"]}
    assert {("write", ""), ("program", "h1"), ("ack", "h1")} <= stages


async def _bus_away(cloud: Parts, operator: Follower) -> None:
    """Who may have missed something is told so, and hears what comes after."""
    cloud.kill("nats")
    await asyncio.sleep(1)
    cloud.start("nats")

    async def told() -> bool:
        return operator.lagged > 0

    await eventually(told, 15, "the stream says that it may have missed something")
    del operator.events[:]
    await cloud.network()

    async def again() -> bool:
        return "network create ACTIVE" in operator.verbs()

    await eventually(again, 10, "events after the bus came back")


async def test_a_thousand_streams_are_refused_beyond_the_bound(directory: Path) -> None:
    """Who opens more than the bound gets a clear 503; those that end make room again."""
    async with Parts(directory / "many", hosts=1) as cloud:
        cloud.start("nats", "api")
        await cloud.well()
        limits = httpx.Limits(max_connections=400)
        async with httpx.AsyncClient(base_url=cloud.api, limits=limits, timeout=30, trust_env=False) as http:
            answers = await asyncio.gather(
                *(http.send(http.build_request("GET", EVENTS), stream=True) for _ in range(300))
            )
            codes = sorted(answer.status_code for answer in answers)
            assert codes == [200] * 200 + [503] * 100
            refused = next(answer for answer in answers if answer.status_code == 503)
            assert "event streams" in (await refused.aread()).decode()
            assert refused.headers["retry-after"] == "1"
            for answer in answers:
                await answer.aclose()

            async def room() -> bool:
                async with http.stream("GET", EVENTS) as answer:
                    return answer.status_code == 200

            await eventually(room, 10, "closed streams make room")
