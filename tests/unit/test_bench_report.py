"""What a figure is judged by, and what is kept of it."""

import json
from pathlib import Path

import pytest

from bench.report import Budget, Figure, at_least, at_most, plain, save, text


@pytest.mark.parametrize(
    ("value", "ratio", "budget", "verdict"),
    [
        (1.0, None, None, ""),
        (1.5, None, at_most(1.5), "ok"),
        (1.6, None, at_most(1.5), "MISSED"),
        (7.0, 0.3, at_least(0.3, ratio=True), "ok"),
        (7.0, 0.29, at_least(0.3, ratio=True), "MISSED"),
        (0.1, 1.2, at_most(1.15, ratio=True), "MISSED"),
        (0.1, None, at_most(1.15, ratio=True), "MISSED"),
    ],
)
def test_verdict(value: float, ratio: float | None, budget: Budget | None, verdict: str) -> None:
    assert Figure("x", value, "s", ratio=ratio, budget=budget).verdict == verdict


def test_the_table_names_baseline_ratio_budget_and_verdict() -> None:
    figure = Figure("creates", 2500, "/s", "note", 0.1, "empty", 0.31, at_least(0.3, ratio=True))
    head, line = text([figure]).splitlines()
    assert head.split() == ["WHAT", "FIGURE", "BASELINE", "RATIO", "BUDGET", "VERDICT", "STEAL", "NOTE"]
    assert line.split() == ["creates", "2,500", "/s", "empty", "0.31", "≥", "0.3", "×", "ok", "0.1", "%", "note"]


def test_parts_measured_on_one_day_share_a_file(tmp_path: Path) -> None:
    save({"idle": [Figure("a", 1, "MiB")], "lists": [Figure("b", 2, "ms")]}, 2, tmp_path)
    path = save({"lists": [Figure("b", 3, "ms", budget=at_most(2))]}, 2, tmp_path)
    parts = json.loads(path.read_text())["parts"]
    assert parts["idle"]["figures"] == plain([Figure("a", 1, "MiB")])
    assert [(one["value"], one["verdict"]) for one in parts["lists"]["figures"]] == [(3, "MISSED")]
