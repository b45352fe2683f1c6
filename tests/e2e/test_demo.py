"""`alcor demo --once`: every step of the story holds, and nothing is left of it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.support import ROOT, alcor, eventually, remains
from tests.support.ports import free_port

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(180)]


def test_the_story_holds(tmp_path: Path) -> None:
    done = alcor("demo", "--once", "--json", "--data", str(tmp_path), "--api-port", str(free_port()), timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["held"] is True
    assert len(told["steps"]) >= 20
    assert [step for step in told["steps"] if not step["held"]] == []
    assert told["hosts"] == ["h1", "h2", "h3"]
    assert remains(tmp_path / "demo") == []


def test_stopped_in_the_middle_it_says_so_by_its_code_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "demo", "--once", "--data", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--api-port", str(free_port())], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        eventually(lambda: any("-vm-" in name for name in remains(tmp_path / "demo")), 30, "the first instance")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 1
    assert remains(tmp_path / "demo") == []
