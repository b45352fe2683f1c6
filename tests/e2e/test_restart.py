"""A restarted agent: in sync soon, however many ports it has, and no packet is lost over it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from planes.bus.nats.bus import NatsBus
from planes.bus.protocol import Incoming
from planes.goalstate import codec
from planes.goalstate.messages import Beat
from tests.e2e.kernels import settled
from tests.e2e.parts import Parts, Pings, active

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(180)]

#: seconds that a busy machine may take where a quiet one needs one or two
GENEROUS = 15.0


@asynccontextmanager
async def beats(parts: Parts) -> AsyncIterator[list[tuple[str, int, Beat]]]:
    """Every beat of every host, as it comes: host, epoch, what it says."""
    heard: list[tuple[str, int, Beat]] = []

    def take(message: Incoming) -> None:
        envelope, beat = codec.decode(message.data, Beat)
        heard.append((envelope.sender, envelope.epoch, beat))

    bus = NatsBus(parts.nats, "test")
    await bus.connect()
    try:
        await bus.subscribe("alcor.beat.*", take)
        await bus.flush()
        yield heard
    finally:
        await bus.close()


async def _in_sync(heard: list[tuple[str, int, Beat]], host: str, epoch: int, ports: int) -> None:
    """Return when the host says, in this life, that it has all its ports and nothing left to do."""
    async with asyncio.timeout(GENEROUS):
        while not any(  # noqa: ASYNC110
            sender == host and life >= epoch and beat.in_sync and beat.ports == ports and not beat.counters["pending"]
            for sender, life, beat in heard
        ):
            await asyncio.sleep(0.005)


async def _ports(parts: Parts, network: str, host: str, count: int) -> list[str]:
    made: list[str] = []
    while len(made) < count:
        wanted = [{"network_id": network, "binding:host_id": host}] * min(100, count - len(made))
        answer = await parts.http.post("/v2.0/ports", json={"ports": wanted})
        made += [port["id"] for port in answer.raise_for_status().json()["ports"]]
    return made


@pytest.mark.parametrize(("count", "lives"), [(200, 4), (1000, 1)])
async def test_in_sync_soon_and_no_packet_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, lives: int
) -> None:
    async with Parts(tmp_path / "data", hosts=2, env={"ALCOR_BEAT_EVERY": "0.1"}) as parts:
        await parts.up()
        network = await parts.network()
        await parts.instance("a", network, "h1")
        address = await parts.instance("b", network, "h2")
        await active(parts, await _ports(parts, network, "h1", count - 1), 60)
        await asyncio.sleep(1)
        took: list[float] = []
        async with beats(parts) as heard:
            with Pings(parts, "a", address) as pings:
                for _ in range(lives):
                    epoch = (await parts.host("h1"))["epoch"]
                    parts.kill("h1")
                    begun = time.monotonic()
                    parts.start("h1")
                    await _in_sync(heard, "h1", epoch + 1, count)
                    took.append(time.monotonic() - begun)
        answered, lost = pings.result()
        with capsys.disabled():
            words = ", ".join(f"{seconds:.2f}" for seconds in took)
            print(f"\nrestart with {count} ports: in sync {words} s after the start of its process; {answered} pings")
        assert lost == [], f"of {answered}: {lost}"
        assert answered > 100
        assert parts.end("api") == 0
        wrong = await settled(parts)
        assert wrong == [], "\n".join(wrong[:40])
