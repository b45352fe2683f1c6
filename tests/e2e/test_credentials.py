"""A bus that asks who is there: each role says and hears what it must, and nothing else. Real NATS, API and agents."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from planes.goalstate.codec import decode
from planes.goalstate.messages import Events
from tests.e2e.parts import Parts, eventually
from tests.e2e.support import alcor

pytestmark = [pytest.mark.server, pytest.mark.kernel]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bus")
    assert alcor("bus", "init", str(folder)).returncode == 0
    for role, name in (("control", "api"), ("host", "h1"), ("host", "h2"), ("integrator", "demo")):
        done = alcor("bus", "issue", role, name, "--keys", str(folder), "--out", str(folder / f"{name}.creds"))
        assert done.returncode == 0, done.stderr
    return folder


@asynccontextmanager
async def guarded(directory: Path, keys: Path) -> AsyncIterator[Parts]:
    """A cloud of two hosts whose server asks for credentials, and whose parts have theirs."""
    async with Parts(directory, hosts=2) as cloud:
        config = cloud.layout.data / "nats.conf"
        config.write_text(config.read_text() + (keys / "auth.conf").read_text())
        for name in ("api", "h1", "h2"):
            cloud.add(name, name, ALCOR_NATS_CREDS=str(keys / f"{name}.creds"))
        await cloud.up()
        yield cloud


async def connected(cloud: Parts, keys: Path, who: str, trouble: list[str], **more: Any) -> Client:
    async def said(error: Exception) -> None:
        trouble.append(str(error))

    return await nats.connect(
        cloud.nats, user_credentials=str(keys / f"{who}.creds"), error_cb=said, allow_reconnect=False, **more
    )


async def test_each_role_does_its_work_and_no_more(tmp_path: Path, keys: Path) -> None:
    async with guarded(tmp_path / "data", keys) as cloud:
        heard: list[str] = []

        async def take(message: Any) -> None:
            heard.extend(event.id for event in decode(message.data, Events)[1].events)

        trouble: list[str] = []
        listener = await connected(cloud, keys, "demo", trouble)
        await listener.subscribe("alcor.event.demo.port.>", cb=take)
        await listener.flush()
        network = await cloud.network()
        ports = [await cloud.port(network, host, wait=10) for host in ("h1", "h2")]
        assert [port["status"] for port in ports] == ["ACTIVE", "ACTIVE"]

        async def told() -> bool:
            return {port["id"] for port in ports} <= set(heard)

        await eventually(told, 10, "an integrator hears its project")
        assert not trouble
        await _refused_what_is_not_theirs(cloud, keys)
        await listener.close()


async def _refused_what_is_not_theirs(cloud: Parts, keys: Path) -> None:
    for who, inbox, subscribe, publish in (
        ("h2", "_INBOX_h2", "alcor.goal.host.h1", "alcor.ack.h1.any"),
        ("h2", "_INBOX_h2", "alcor.goal.host.*", "alcor.goal.host.h1"),
        ("h2", "_INBOX_h2", "alcor.event.>", "alcor.beacon.x"),
        ("h2", "_INBOX_h2", "_INBOX_h1.>", "alcor.stored.x"),
        ("demo", "_INBOX", "alcor.event.other.>", "alcor.event.demo.port.create"),
        ("demo", "_INBOX", "alcor.goal.>", "alcor.beat.h1"),
        ("api", "_INBOX", "alcor.goal.>", "alcor.ack.h1.any"),
        ("api", "_INBOX", "_INBOX_h1.>", "_INBOX_h1.x"),
    ):
        trouble: list[str] = []
        client = await connected(cloud, keys, who, trouble, inbox_prefix=inbox)
        await client.subscribe(subscribe, cb=_nothing)
        await client.publish(publish, b"x")
        await client.flush()

        async def both(trouble: list[str] = trouble) -> bool:
            return len(trouble) >= 2

        await eventually(both, 5, f"{who} may neither subscribe {subscribe} nor publish {publish}")
        assert all("permissions violation" in each.lower() for each in trouble), trouble
        await client.close()


async def _nothing(message: Any) -> None:
    raise AssertionError(message)


async def test_without_good_credentials_nobody_connects(tmp_path: Path, keys: Path) -> None:
    """None, those of other keys, and those that are out of date; and an agent says why."""
    other = tmp_path / "other"
    assert alcor("bus", "init", str(other)).returncode == 0
    stranger = alcor("bus", "issue", "host", "h1", "--keys", str(other)).stdout
    (tmp_path / "stranger.creds").write_text(stranger)
    async with guarded(tmp_path / "data", keys) as cloud:
        address, port = cloud.nats.removeprefix("nats://").split(":")
        reader, writer = await asyncio.open_connection(address, int(port))
        writer.write(b'CONNECT {"verbose":false}\r\nSUB alcor.goal.> 1\r\nPING\r\n')
        said = await asyncio.wait_for(reader.read(), 10)  # to the end: the server hangs up
        writer.close()
        assert b"Authorization Violation" in said
        assert b"PONG" not in said
        cloud.end("h2")
        cloud.add("h2", "h2", ALCOR_NATS_CREDS=str(tmp_path / "stranger.creds"))
        cloud.start("h2")

        async def refused() -> bool:
            return "authorization violation" in cloud.said("h2").lower()

        await eventually(refused, 10, "the log names the reason")
