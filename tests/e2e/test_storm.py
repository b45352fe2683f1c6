"""`kill -9` of every part in turn, in a storm of creates and deletes: nothing answered is lost, no packet either."""

import asyncio
import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.kernels import settled
from tests.e2e.parts import Parts, Pings, done, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(600)]

LONG = os.environ.get("PROFILE") == "long"
REQUESTS = 20_000 if LONG else 2_000
CLIENTS = 64
#: requests between two kills
EVERY = 300


class Storm:
    """Clients as they are: a request without an answer may have been done or not, so they look before they repeat."""

    def __init__(self, parts: Parts, network: str, requests: int) -> None:
        self.parts = parts
        self.network = network
        self.left = requests
        self.made: set[str] = set()
        self.deleted: set[str] = set()
        self.unanswered = 0
        self._names = itertools.count()

    async def run(self) -> None:
        await asyncio.gather(*(self._client(random.Random(number)) for number in range(CLIENTS)))

    async def _client(self, chance: random.Random) -> None:
        mine: list[str] = []
        while self.left > 0:
            self.left -= 1
            if mine and chance.random() < 0.48:
                await self._delete(mine.pop(chance.randrange(len(mine))))
            else:
                mine.append(await self._create(chance.choice(self.parts.hosts)))

    async def _create(self, host: str) -> str:
        name = f"client-{next(self._names)}"
        port = {"network_id": self.network, "binding:host_id": host, "device_id": name}
        while True:
            answer = await self._send("POST", "/v2.0/ports", json={"port": port})
            if answer is not None and answer.status_code == 201:
                made = str(answer.json()["port"]["id"])
            else:
                assert answer is None or answer.status_code == 503, answer.text
                made = await self._look(name)
            if made:
                self.made.add(made)
                return made

    async def _look(self, name: str) -> str:
        """Whether a request that got no answer was done: the id of its port, or nothing."""
        while (answer := await self._send("GET", f"/v2.0/ports?device_id={name}")) is None or answer.status_code != 200:
            assert answer is None or answer.status_code == 503, answer.text
        found = answer.json()["ports"]
        assert len(found) < 2, f"{name} exists {len(found)} times"
        return str(found[0]["id"]) if found else ""

    async def _delete(self, id_: str) -> None:
        asked = False
        while True:
            answer = await self._send("DELETE", f"/v2.0/ports/{id_}")
            if answer is not None and (answer.status_code == 204 or (asked and answer.status_code == 404)):
                self.deleted.add(id_)
                return
            assert answer is None or answer.status_code == 503, f"{id_}: {answer.status_code} {answer.text}"
            asked = True

    async def _send(self, method: str, path: str, **more: Any) -> httpx.Response | None:
        try:
            answer = await self.parts.http.request(method, path, **more)
        except httpx.TransportError:
            self.unanswered += 1
            await asyncio.sleep(0.05)
            return None
        if answer.status_code == 503:
            await asyncio.sleep(0.1)
        return answer


async def _killer(parts: Parts, storm: Storm) -> list[str]:
    """One part after the other dies whenever so many requests were made, and is back a moment later."""
    killed: list[str] = []
    for name in itertools.cycle(["h1", "api", "nats", "h2", "api", "h3", "nats"]):
        at = storm.left - EVERY
        if at < EVERY:
            return killed
        while storm.left > at:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        parts.kill(name)
        killed.append(f"{name} at {time.time():.3f}")
        await asyncio.sleep(0.2)
        parts.start(name)
    return killed


async def test_nothing_answered_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Parts(tmp_path / "data", hosts=3) as parts:
        await parts.up()
        quiet = await parts.network("10.1.0.0/24")
        await parts.instance("a", quiet, "h1")
        address = await parts.instance("b", quiet, "h2")
        storm = Storm(parts, await parts.network("10.2.0.0/16"), REQUESTS)
        await asyncio.sleep(1)
        begun = time.monotonic()
        with Pings(parts, "a", address) as pings:
            killer = asyncio.create_task(_killer(parts, storm))
            await storm.run()
            killed = await killer
            stormed = time.monotonic() - begun
            await parts.well(*parts.hosts, within=30)
            live = storm.made - storm.deleted
            await eventually(lambda: _is(parts, storm.network, live), 60, "all that was answered")
            settling = time.monotonic() - begun - stormed
        answered, lost = pings.result()
        counters = await parts.metrics()
        with capsys.disabled():
            print(
                f"\nstorm: {REQUESTS} requests in {stormed:.1f} s, killed {', '.join(killed)}; {storm.unanswered}"
                f" without an answer; {len(live)} ports settled {settling:.1f} s later; {answered} pings; {counters}"
            )
        assert lost == [], f"{len(lost)} of {answered}, killed {killed}: {lost}"
        assert answered > 500
        assert len(killed) > 3
        assert counters["acks_stored_total"] < REQUESTS, counters  # of the last life of the API alone
        await done(parts)
        assert parts.end("api") == 0
        wrong = await settled(parts)
        assert wrong == [], "\n".join(wrong[:40])


async def _is(parts: Parts, network: str, live: set[str]) -> bool:
    """Whether the API shows these ports, all of them ACTIVE, and no others."""
    found = await parts.list(f"ports?network_id={network}&fields=id&fields=status")
    return len(found) == len(live) and {port["id"] for port in found if port["status"] == "ACTIVE"} == live
