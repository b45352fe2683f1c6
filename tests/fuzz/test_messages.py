"""Garbage on every subject: recorded messages, bent at random, never stop an agent or control nor harm what is there.

What control alone may publish is believed when it is well formed, so there only crashes count. What hosts may publish
must leave every object as it was and every kernel as the store says.
"""

import asyncio
import logging
import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from planes.bus.protocol import Incoming
from tests.support.chance import from_seed
from tests.support.clients import Clients
from tests.support.clock import run
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COUNT = 5_000_000 if os.environ.get("PROFILE") == "long" else 500_000
STORY = ("create", "bulk", "rule", "move", "regroup", "address", "create", "delete", "bulk")
#: what stands where something else is expected
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), "", "h2", "x" * 300, "ä\0\n",
    b"", b"\0" * 4, b"\xff" * 16, b"x" * 5000, [], [[]], [None] * 300, {}, {"a": [1]}, [[[[[[[[1]]]]]]]],
)  # fmt: skip


def bent(data: bytes, chance: random.Random) -> bytes:
    """The message with one to three things wrong, in its bytes or in its structure."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        way = chance.randrange(6)
        at = chance.randrange(len(data)) if data else 0
        if way == 0:
            data = data[:at]
        elif way == 1:
            data = data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :] if data else b"\x00"
        elif way == 2:
            data = data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
        else:
            data = _restructured(data, chance)
    return data


def _restructured(data: bytes, chance: random.Random) -> bytes:
    try:
        tree = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return chance.randbytes(chance.randrange(40))
    place, node = None, tree
    while isinstance(node, list) and node and chance.random() < 0.8:
        place = (node, chance.randrange(len(node)))
        node = node[place[1]]
        if isinstance(node, bytes) and chance.random() < 0.3:  # a body is a message of its own
            place[0][place[1]] = _restructured(node, chance)
            place = None
            break
    if place is not None:
        place[0][place[1]] = chance.choice(ODD)
    return msgspec.msgpack.encode(tree)


async def recorded(mesh: Mesh) -> list[Incoming]:
    """What is said while clients work."""
    said: list[Incoming] = []
    route = mesh.broker.route

    def heard(sender: str, message: Incoming) -> None:
        said.append(message)
        route(sender, message)

    mesh.broker.route = heard  # type: ignore[method-assign]
    clients = Clients(mesh)
    await clients.prepare()
    for n, what in enumerate(STORY):
        await clients.ask(what, random.Random(n))
        await asyncio.sleep(1)
    for agent in mesh.agents.values():
        agent.state.syncs.ask()
    await mesh.settle()
    mesh.broker.route = route  # type: ignore[method-assign]
    return said


async def thrown(mesh: Mesh, kinds: tuple[str, ...], said: list[Incoming], seed: int) -> None:
    """Bent messages of these kinds of subject, from somebody who is none of us."""
    chance = random.Random(seed)
    chosen = [message for message in said if message.subject.split(".")[1] in kinds]
    assert {message.subject.split(".")[1] for message in chosen} == set(kinds)
    for n in range(COUNT):
        message = chance.choice(chosen)
        subject = chance.choice(chosen).subject if chance.random() < 0.1 else message.subject
        mesh.broker.route("stranger", Incoming(subject, bent(message.data, chance), "_INBOX.stranger"))
        if n % 100 == 0:
            await asyncio.sleep(0.05)
    await asyncio.sleep(5)


def played(path: Path, kinds: tuple[str, ...], seed: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        mesh = Mesh(path)
        await mesh.start()
        said = await recorded(mesh)
        before = {port.id: port for port in await mesh.ports()}
        await thrown(mesh, kinds, said, seed)
        assert [agent.bugs for agent in mesh.agents.values()] == [0, 0, 0]
        assert [bus.counters["handler_errors"] for bus in mesh.broker.clients.values()] == [0] * 5
        assert [
            record.message for record in caplog.records if record.levelno >= logging.ERROR and record.exc_info
        ] == []
        if "goal" not in kinds:
            await mesh.settle()
            await mesh.check()
            assert {port.id: port for port in await mesh.ports()} == before
        await mesh.stop()

    run(main())


def test_garbage_from_hosts_harms_nothing(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from_seed(monkeypatch, 1)
    played(memory_path, ("ack", "pull", "sync", "beat"), 1, caplog)


def test_garbage_from_control_stops_no_agent(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from_seed(monkeypatch, 2)
    played(memory_path, ("goal", "beacon"), 2, caplog)
