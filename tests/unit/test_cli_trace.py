"""The waterfall: order, place and length of its bars, and that a failed stage says why."""

from typing import Any

from rich.console import Console

from cli.trace import bar_of, show


def stage(name: str, start: int, duration: int, host: str = "", error: str = "") -> dict[str, Any]:
    return {"name": name, "host": host, "start_us": start, "duration_us": duration, "error": error}


def printed(stages: list[dict[str, Any]]) -> list[str]:
    console = Console(width=160, record=True, quiet=False, file=None, force_terminal=False)
    change = {"resource": "port", "status": "ACTIVE", "trace_id": "ab", "total_us": 4200, "stages": stages}
    with console.capture() as capture:
        show(change, console)
    return capture.get().splitlines()


def test_bars_show_when_and_how_long() -> None:
    assert bar_of(0, 50, 100, 10) == "━━━━━"
    assert bar_of(50, 50, 100, 10) == "     ━━━━━"
    assert bar_of(100, 0, 100, 10) == "         ━"
    assert bar_of(90, 60, 100, 10) == "         ━"


def test_stages_stand_in_the_order_of_their_start_with_times_since_the_first() -> None:
    lines = printed([stage("program", 1_003_000, 1200, "h1"), stage("accept", 1_000_000, 250)])
    assert "port" in lines[0]
    assert "4.20 ms" in lines[0]
    accept, program = lines[-2:]
    assert accept.split()[:6] == ["accept", "control", "0.00", "ms", "0.25", "ms"]
    assert program.split()[:6] == ["program", "h1", "3.00", "ms", "1.20", "ms"]


def test_a_failed_stage_says_why() -> None:
    lines = printed([stage("accept", 0, 1), stage("program", 1, 1, "h1", "no such device")])
    assert lines[-1].endswith("no such device")


def test_a_change_without_stages_is_only_its_title() -> None:
    assert len([line for line in printed([]) if "ACTIVE" in line]) == 1
