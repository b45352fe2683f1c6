"""Clients in numbers, as they are: they look before they repeat, and remember what was answered.

Used by the end-to-end tests that end parts of a cloud meanwhile.
"""

import asyncio
import itertools
import random
from typing import Any

import httpx

from tests.e2e.parts import Parts

CLIENTS = 64
#: ports that a client keeps at most
MINE = 15


class Storm:
    """A request without an answer may have been done or not."""

    def __init__(self, parts: Parts, network: str, requests: int, clients: int = CLIENTS) -> None:
        self.parts = parts
        self.network = network
        self.left = requests
        self._clients = clients
        self.made: set[str] = set()
        self.deleted: set[str] = set()
        self.unanswered = 0
        self._names = itertools.count()

    async def run(self) -> None:
        await asyncio.gather(*(self._client(random.Random(number)) for number in range(self._clients)))

    async def _client(self, chance: random.Random) -> None:
        mine: list[str] = []
        while self.left > 0:
            self.left -= 1
            if len(mine) >= MINE or (mine and chance.random() < 0.48):
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
        path = f"/v2.0/ports?device_id={name}"
        while (answer := await self._send("GET", path)) is None or answer.status_code != 200:
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

    @property
    def live(self) -> set[str]:
        return self.made - self.deleted

    async def is_live(self) -> bool:
        """Whether the API shows what was answered, all of it ACTIVE, and nothing else."""
        found = await self.parts.list(f"ports?network_id={self.network}&fields=id&fields=status")
        active = {port["id"] for port in found if port["status"] == "ACTIVE"}
        return len(found) == len(self.live) and active == self.live
