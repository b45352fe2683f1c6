"""`kill -9` of every part in turn, in a storm of creates and deletes: nothing answered is lost, no packet either."""

import asyncio
import itertools
import os
import time
from pathlib import Path

import pytest

from tests.e2e.kernels import settled
from tests.e2e.parts import ECHO, Parts, Pings, done, eventually
from tests.e2e.storm import Storm

LONG = os.environ.get("PROFILE") == "long"
pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(7200 if LONG else 900)]

REQUESTS = 100_000 if LONG else 10_000
#: requests between two kills
EVERY = 1_000


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
            await eventually(storm.is_live, 60, "all that was answered")
            settling = time.monotonic() - begun - stormed
        answered, lost = pings.result()
        counters = await parts.metrics()
        with capsys.disabled():
            print(
                f"\nstorm: {REQUESTS} requests in {stormed:.1f} s, killed {', '.join(killed)}; {storm.unanswered}"
                f" without an answer; {len(storm.live)} ports settled {settling:.1f} s later; {answered} pings;"
                f" {counters}"
            )
        assert lost == [], f"of {answered}, killed {killed}: {lost}"
        assert answered > 500
        assert len(killed) > 3
        assert counters["acks_stored_total"] < REQUESTS, counters  # of the last life of the API alone
        await done(parts)
        await asyncio.sleep(ECHO)
        assert parts.end("api") == 0
        wrong = await settled(parts)
        assert wrong == [], "\n".join(wrong[:40])
