"""A figure with what it is judged by, a table of them for people, and one file a day of them for machines.

A ratio is of two figures of one run; a budget is of the figure, or of that ratio. Parts that are measured again the
same day replace their figures in that day's file.
"""

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cli.output import table

COLUMNS = ("what", "figure", "baseline", "ratio", "budget", "verdict", "steal", "note")


class Budget(Struct, frozen=True):
    """What a figure, or its ratio to the baseline, may be at most, or must be at least."""

    limit: float
    least: bool = False
    of_ratio: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.limit:g}{' ×' if self.of_ratio else ''}"


def at_most(limit: float, *, ratio: bool = False) -> Budget:
    return Budget(limit, least=False, of_ratio=ratio)


def at_least(limit: float, *, ratio: bool = False) -> Budget:
    return Budget(limit, least=True, of_ratio=ratio)


class Figure(Struct, frozen=True):
    """`steal`: percent of CPU time that the hypervisor took away meanwhile; over 5, look at CPU times only.

    `baseline` says in words what `ratio` is the ratio to.
    """

    what: str
    value: float
    unit: str
    note: str = ""
    steal: float = 0.0
    baseline: str = ""
    ratio: float | None = None
    budget: Budget | None = None

    @property
    def verdict(self) -> str:
        """`ok` or `MISSED`; empty without a budget."""
        if self.budget is None:
            return ""
        judged = self.ratio if self.budget.of_ratio else self.value
        return "ok" if judged is not None and self.budget.holds(judged) else "MISSED"


def text(figures: Sequence[Figure]) -> str:
    """The table."""
    rows = [
        {
            "what": one.what,
            "figure": f"{one.value:,g} {one.unit}",
            "baseline": one.baseline,
            "ratio": "" if one.ratio is None else f"{one.ratio:.2f}",
            "budget": str(one.budget or ""),
            "verdict": one.verdict,
            "steal": f"{one.steal:g} %",
            "note": one.note,
        }
        for one in figures
    ]
    return table(COLUMNS, rows)


def plain(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [{**msgspec.to_builtins(one), "verdict": one.verdict} for one in figures]


def save(parts: Mapping[str, Sequence[Figure]], cores: int, folder: Path) -> Path:
    """Add these parts to today's file; its path."""
    now = time.gmtime()
    path = folder / time.strftime("%Y-%m-%d.json", now)
    report: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    report["machine"] = f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}"
    report["cores"] = cores
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", now)
    measured = {name: {"at": at, "figures": plain(figures)} for name, figures in parts.items()}
    report["parts"] = {**report.get("parts", {}), **measured}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return path
