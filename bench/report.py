"""A figure, a table of them for people, and a file of them for machines."""

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from cli.output import table


class Figure(Struct, frozen=True):
    """`steal`: percent of CPU time that the hypervisor took away meanwhile; over 5, look at CPU times only."""

    what: str
    value: float
    unit: str
    note: str = ""
    steal: float = 0.0


class Report(Struct, frozen=True):
    part: str
    at: str
    machine: str
    cores: int
    figures: Sequence[Figure]


def text(figures: Sequence[Figure]) -> str:
    rows = [
        {"what": one.what, "figure": f"{one.value:,g} {one.unit}", "steal": f"{one.steal:g} %", "note": one.note}
        for one in figures
    ]
    return table(("what", "figure", "steal", "note"), rows)


def save(part: str, cores: int, figures: Sequence[Figure], folder: Path) -> None:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    machine = f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}"
    report = Report(part, at, machine, cores, figures)
    body = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (folder / f"{part}.json").write_bytes(body + b"\n")
