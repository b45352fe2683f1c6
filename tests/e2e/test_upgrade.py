"""Every part is ended as an operator ends it and comes back, the agents as another release: under a ping each
millisecond and a storm of creates and deletes no packet is lost, and nothing that was answered.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from planes.data.linux import namespaces
from tests.e2e.kernels import settled
from tests.e2e.parts import ECHO, Parts, Pings, done, eventually
from tests.e2e.storm import Storm

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(300)]

#: requests between two replacements; how often each part is replaced
EVERY, TURNS = (2_000, 3) if os.environ.get("PROFILE") == "long" else (250, 1)
CLIENTS = 16
#: an agent whose filters have another version, so that it replaces those that it finds
NEXT = """
from planes.data.linux import skeleton
for name in ("RULESET", "REPLACEMENT", "VERSION"):
    setattr(skeleton, name, getattr(skeleton, name).replace(skeleton.VERSION, "version_of_{release}"))
from cli.main import main
main()
"""


def _released(parts: Parts, host: str, release: str) -> None:
    command = (sys.executable, "-P", "-c", NEXT.format(release=release), "agent")
    parts.parts[host] = replace(parts.parts[host], argv=command)


def _filters(parts: Parts, host: str) -> set[str]:
    """The versions of a host's filters."""
    found: set[str] = set()
    for name in namespaces.names(f"{parts.layout.cloud(host)}-"):
        command = ["ip", "netns", "exec", name, "nft", "list", "chains"]
        found |= set(
            re.findall(r"version_\w+", subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        )
    return found


async def _replaced(parts: Parts, name: str) -> None:
    """NATS in lame-duck mode, as its chart does; everything else by SIGTERM."""
    parts.signal(name, signal.SIGUSR2 if name == "nats" else signal.SIGTERM)
    code = await asyncio.to_thread(parts.processes.pop(name).wait, 30)
    assert code == 0, f"{name}: {code}"
    parts.start(name)


async def _upgrade(parts: Parts, storm: Storm) -> list[str]:
    replaced: list[str] = []
    for turn in range(TURNS):
        for name in ("h1", "api", "nats", "h2"):
            at = storm.left - EVERY
            while storm.left > at:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            if name in parts.hosts:
                _released(parts, name, f"turn{turn}")
            began = time.monotonic()
            await _replaced(parts, name)
            await parts.well(*parts.hosts, within=40)
            replaced.append(f"{name} in {time.monotonic() - began:.1f} s")
    storm.left = EVERY
    return replaced


async def test_every_part_is_replaced_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = {"ALCOR_DEAD_AFTER": "10"}  # as it is: agents of a busy machine may take a while to begin
    async with Parts(tmp_path / "data", hosts=2, env=env) as parts:
        await parts.up()
        quiet = await parts.network("10.1.0.0/24")
        await parts.instance("a", quiet, "h1")
        across = await parts.instance("b", quiet, "h2")
        beside = await parts.instance("c", quiet, "h1")
        storm = Storm(parts, await parts.network("10.2.0.0/16"), 10**9, CLIENTS)
        await asyncio.sleep(1)
        pings = (Pings(parts, "a", across), Pings(parts, "c", across), Pings(parts, "b", beside))
        with pings[0], pings[1], pings[2]:
            upgrade = asyncio.create_task(_upgrade(parts, storm))
            upgrade.add_done_callback(lambda _: setattr(storm, "left", min(storm.left, EVERY)))
            await storm.run()
            replaced = await upgrade
            await eventually(storm.is_live, 60, "all that was answered")
        results = [each.result() for each in pings]
        with capsys.disabled():
            print(
                f"\nupgrade: {', '.join(replaced)}; {len(storm.made)} creates and {len(storm.deleted)} deletes"
                f" answered, {storm.unanswered} requests not; {sum(count for count, _ in results)} pings"
            )
        assert [lost for _, lost in results] == [[], [], []], replaced
        assert all(count > 500 for count, _ in results)
        await done(parts)
        await asyncio.sleep(ECHO)
        assert parts.end("api") == 0
        for host in parts.hosts:
            assert _filters(parts, host) == {f"version_of_turn{TURNS - 1}"}
        wrong = [line for line in await settled(parts) if "version_" not in line]
        assert wrong == [], "\n".join(wrong[:40])
