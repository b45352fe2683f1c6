"""The example agent against a real API and a real NATS: a port bound to its host becomes ACTIVE, and DELETED again."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.e2e.parts import Parts, eventually
from tests.e2e.support import ROOT

pytestmark = [pytest.mark.server, pytest.mark.kernel]
EXAMPLE = ROOT / "examples/agent.py"


@pytest.mark.parametrize(("name", "lines"), [("agent.py", 120), ("events.py", 36)])
def test_example_is_short_and_needs_little(name: str, lines: int) -> None:
    text = EXAMPLE.with_name(name).read_text()
    assert len(text.splitlines()) <= lines
    roots = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert roots - set(sys.stdlib_module_names) == {"nats", "planes"}
    assert set(_planes(text)) == {"planes.goalstate"}


def _planes(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("from planes."):
            yield ".".join(line.split()[1].split(".")[:2])


def _started(command: list[str], log: IO[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)})


async def test_a_port_becomes_active_and_goes(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as cloud:
        cloud.start("nats", "api")
        await cloud.well()
        log = (tmp_path / "agent.log").open("w+")
        command = [sys.executable, str(EXAMPLE), cloud.nats, "third", "192.0.2.50"]
        agent = _started(command, log)
        try:
            await cloud.well("third")
            network = await cloud.network()
            port = await cloud.port(network, "third", wait=10)
            assert port["status"] == "ACTIVE"

            async def all_of_it() -> bool:
                said = (tmp_path / "agent.log").read_text()
                return all(f"set {kind}(" in said for kind in ("Port", "Group", "Network", "Subnet"))

            await eventually(all_of_it, 10, "the agent learns what its port needs")
            (await cloud.http.delete(f"/v2.0/ports/{port['id']}")).raise_for_status()

            async def removed() -> bool:
                return "remove Gone(kind=6" in (tmp_path / "agent.log").read_text()

            await eventually(removed, 10, "the agent was told that the port is gone")
            assert agent.poll() is None
        finally:
            agent.kill()
            agent.wait()
            log.close()
