"""The supervisor: restarts what dies, ends all, leaves nothing even when it is killed itself."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from cli import supervisor as module
from cli.supervisor import Part, Supervisor


def sleeper(tmp_path: Path, name: str = "a", stage: int = 0) -> Part:
    return Part(name, ("/bin/sleep", "1000"), dict(os.environ), tmp_path / f"{name}.log", stage=stage)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition: object, seconds: float = 5.0) -> None:
    """Wait for something that the operating system does; fails after `seconds`."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


async def test_a_killed_part_is_back_within_half_a_second(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append)
    await supervisor.start(sleeper(tmp_path))
    first = supervisor.pids["a"]
    os.kill(first, signal.SIGKILL)
    begun = time.monotonic()
    await until(lambda: supervisor.pids.get("a", first) != first)
    assert time.monotonic() - begun < 0.5 + 0.3  # the bound, and the machine's own slowness
    assert "a was ended by SIGKILL" in said[0]
    second = supervisor.pids["a"]
    await supervisor.stop()
    assert not alive(second)


async def test_waits_longer_each_time_and_reports_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY", 0.1)
    said: list[str] = []
    supervisor = Supervisor(said.append)
    await supervisor.start(Part("b", ("/bin/sh", "-c", "echo out; exit 3"), {}, tmp_path / "b.log"))
    await until(lambda: len(said) >= 3)
    await supervisor.stop()
    assert [line.split("again in ")[1].split(" s")[0] for line in said[:3]] == ["0.1", "0.2", "0.4"]
    assert all("b ended with code 3" in line for line in said)
    assert (tmp_path / "b.log").read_text().startswith("out\n")


async def test_later_stages_end_first(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    supervisor = Supervisor(lambda _: None)
    for name, stage in (("low", 0), ("high", 1)):
        script = f"trap 'echo {name} >>{ends}; exit' TERM; echo up; while :; do sleep 0.01; done"
        await supervisor.start(Part(name, ("/bin/sh", "-c", script), dict(os.environ), tmp_path / name, stage=stage))
    await until(lambda: all((tmp_path / name).stat().st_size for name in ("low", "high")))
    await supervisor.stop()
    assert ends.read_text().split() == ["high", "low"]
    assert supervisor.pids == {}


async def test_a_part_that_ignores_the_request_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    supervisor = Supervisor(lambda _: None)
    log = tmp_path / "deaf.log"
    await supervisor.start(Part("deaf", ("/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"), {}, log))
    await until(lambda: log.stat().st_size > 0)
    pid = supervisor.pids["deaf"]
    await supervisor.stop()
    assert not alive(pid)


async def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib\n"
        "from cli.supervisor import Part, Supervisor\n"
        "async def main():\n"
        "    s = Supervisor(print)\n"
        f"    await s.start(Part('a', ('/bin/sleep', '1000'), {{}}, pathlib.Path({str(tmp_path / 'a.log')!r})))\n"
        "    print(s.pids['a'], flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    try:
        child = int(await parent.stdout.readline())
        assert alive(child)
    finally:
        parent.kill()
        await parent.wait()
    await until(lambda: not alive(child))


async def test_a_program_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda _: None)
    with pytest.raises(FileNotFoundError):
        await supervisor.start(Part("none", ("/no/such",), {}, tmp_path / "n.log"))
    await supervisor.stop()


async def test_a_log_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 100)
    monkeypatch.setattr(module, "TRIM_EVERY", 0.02)
    supervisor = Supervisor(lambda _: None)
    await supervisor.start(sleeper(tmp_path))
    log = tmp_path / "a.log"
    log.write_bytes(b"x" * 1000)
    await until(lambda: log.stat().st_size == 0)
    await supervisor.stop()
    assert (tmp_path / "a.1.log").stat().st_size == 1000
