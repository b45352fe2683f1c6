"""Third parties on the bus that misbehave: one that does not read, one that says nonsense, one that was away."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planes.bus.nats.bus import NatsBus
from planes.bus.protocol import Incoming
from planes.goalstate import codec
from planes.goalstate.messages import Events
from planes.goalstate.subjects import Subjects
from tests.e2e.parts import Parts, active, eventually
from tests.e2e.support import ROOT

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(240)]

#: bulks of a hundred ports with long names: more than the buffers of a connection hold
BULKS = 120
EXAMPLE = ROOT / "examples/agent.py"


class Listener:
    """A well-behaved integrator: the last revision of each port that it heard of."""

    def __init__(self, parts: Parts) -> None:
        self.bus = NatsBus(parts.nats, "listener")
        self.known: dict[str, int] = {}
        self.created: list[str] = []

    async def listen(self) -> None:
        await self.bus.connect()
        await self.bus.subscribe("alcor.event.demo.port.*", self._hear)
        await self.bus.flush()

    def _hear(self, message: Incoming) -> None:
        _, said = codec.decode(message.data, Events)
        for event in said.events:
            self.known[event.id] = event.revision
            if said.verb == "create":
                self.created.append(event.id)


async def test_one_that_does_not_read_is_cut_off_and_nobody_else_notices(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as parts:
        await parts.up()
        network = await parts.network()
        ear = Listener(parts)
        await ear.listen()
        address, port = parts.nats.removeprefix("nats://").rsplit(":", 1)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((address, int(port)))
            hello = json.dumps({"verbose": False, "pedantic": False, "lang": "test", "version": "1", "name": "deaf"})
            deaf.sendall(f"CONNECT {hello}\r\nSUB alcor.event.> 1\r\nSUB alcor.goal.> 2\r\nPING\r\n".encode())
            await asyncio.sleep(0.5)
            before = parts.memory("api")
            wanted: dict[str, Any] = {"ports": [{"network_id": network, "name": "n" * 255}] * 100}
            made: list[str] = []
            for _ in range(BULKS):
                answer = await parts.http.post("/v2.0/ports", json=wanted)
                made += [each["id"] for each in answer.raise_for_status().json()["ports"]]
            last = await parts.port(network, "h1")
            assert last["status"] == "ACTIVE"
            assert parts.memory("api") - before < 96 << 20
            await eventually(lambda: _all_heard(ear, len(made) + 1), 20, "everything that happened")
            assert ear.created == [*made, last["id"]]  # in order, none twice
            await eventually(lambda: _cut_off(parts), 20, "the server gives it up")
            deaf.settimeout(5)
            await asyncio.to_thread(_drained, deaf)
        await ear.bus.close()


async def _all_heard(ear: Listener, count: int) -> bool:
    return len(ear.created) >= count


async def _cut_off(parts: Parts) -> bool:
    return "Slow Consumer" in parts.said("nats")


def _drained(deaf: socket.socket) -> None:
    """Read what is left, to the end of the connection; TimeoutError when it has none."""
    try:
        while deaf.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass


async def test_one_that_says_nonsense_stops_nothing(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as parts:
        await parts.up()
        network = await parts.network()
        chance, subjects = random.Random(7), Subjects()
        bus = NatsBus(parts.nats, "garbled")
        await bus.connect()
        said = (
            subjects.ack("h1", "api"),
            subjects.beat("h1"),
            subjects.sync("h1"),
            subjects.pull("h1", "host"),
            subjects.host("h1"),
            subjects.event("demo", "port", "create"),
            subjects.stored("api"),
            "alcor.no.such.thing",
        )
        ports = []
        for _ in range(10):
            for _ in range(200):
                bus.publish(chance.choice(said), chance.randbytes(chance.randrange(300)))
            await bus.flush()
            ports.append((await parts.port(network, "h1", wait=0))["id"])
        await active(parts, ports)
        assert (await parts.metrics())["host_messages_malformed_total"] > 0
        assert all(process.poll() is None for process in parts.processes.values())
        await bus.close()


async def test_one_that_was_away_finds_what_it_missed(tmp_path: Path) -> None:
    """A data plane of its own learns it by pulling; who only listens compares revisions with a list."""
    async with Parts(tmp_path / "data", hosts=1) as parts:
        parts.start("nats", "api")
        await parts.well()
        network = await parts.network()
        ear = Listener(parts)
        await ear.listen()
        log = tmp_path / "agent.log"
        agent = _agent(parts, log)
        try:
            await parts.well("third")
            kept, changed, gone = [(await parts.port(network, "third"))["id"] for _ in range(3)]
            await eventually(lambda: _all_heard(ear, 3), 10, "three ports")
            await ear.bus.close()
            agent.kill()
            agent.wait()

            (await parts.http.put(f"/v2.0/ports/{changed}", json={"port": {"name": "new"}})).raise_for_status()
            (await parts.http.delete(f"/v2.0/ports/{gone}")).raise_for_status()
            missed = (await parts.port(network, "third", wait=0))["id"]
            log.write_text("")
            agent = _agent(parts, log)
            await active(parts, [kept, changed, missed])

            listed = {port["id"]: port["revision_number"] for port in await parts.list("ports")}
            assert {id_ for id_, revision in listed.items() if revision > ear.known.get(id_, 0)} == {changed, missed}
            assert ear.known.keys() - listed.keys() == {gone}
            assert "set Port(" in log.read_text()
        finally:
            agent.kill()
            agent.wait()


def _agent(parts: Parts, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(EXAMPLE), parts.nats, "third", "192.0.2.50"]
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"PYTHONPATH": str(ROOT)})
