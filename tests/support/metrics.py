"""Metrics as a scraper reads them, and the table in docs/metrics.md as a test reads it."""

import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from observability.metrics import Family

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ?(.*?) ?\| .* \|$")


class Seen(Struct, frozen=True):
    """A family: its type and the names of its labels (None: there was no sample)."""

    kind: str
    labels: frozenset[str] | None


def documented() -> dict[str, dict[str, Seen]]:
    """The tables, by heading."""
    found: dict[str, dict[str, Seen]] = {}
    heading = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif row := _ROW.match(line):
            found.setdefault(heading, {})[row[1]] = Seen(row[2], frozenset(re.findall(r"`(\w+)`", row[3])))
    return found


def of_code(families: Iterable[Family]) -> dict[str, Seen]:
    return {one.name: Seen(one.kind, frozenset(one.labels)) for one in families}


def parsed(text: str, *, openmetrics: bool = False) -> list[Metric]:
    """As Prometheus' own client reads it."""
    parse = (openmetrics_parser if openmetrics else parser).text_string_to_metric_families
    return list(parse(text))


def exported(text: str, *, openmetrics: bool = False) -> dict[str, Seen]:
    """What a scrape has; fails on what the format does not allow."""
    found: dict[str, Seen] = {}
    for family in parsed(text, openmetrics=openmetrics):
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert len(labels) <= 1, family
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in found, name
        found[name] = Seen(family.type, next(iter(labels), None))
    return found


def agree(scrape: dict[str, Seen], table: dict[str, Seen]) -> None:
    """The same names and types, and the same labels wherever there was a sample."""
    assert scrape.keys() == table.keys()
    for name, seen in scrape.items():
        assert seen.kind == table[name].kind, name
        assert seen.labels in (None, table[name].labels), name
