"""What the tests of dashboards and alerts share: the queries, the table of metrics, and Prometheus' own checker."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
BOARDS = sorted((ROOT / "observability/dashboards/json").glob("*.json"))
ALERTS = ROOT / "observability/alerts/alcor.yaml"
RUNBOOKS = ROOT / "docs/runbooks"
#: of a histogram
_SERIES = ("_bucket", "_sum", "_count")
_NAME = re.compile(r"\b(?:alcor|process)_[a-z0-9_]+\b")
#: what Prometheus itself makes
_OWN = {"up", "ALERTS"}


class Query(NamedTuple):
    """One query of a panel."""

    board: str
    panel: str
    expr: str

    def __str__(self) -> str:
        return f"{self.board} / {self.panel}: {self.expr}"


def load(board: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(board.read_text())
    return found


def panels(board: Path) -> list[dict[str, Any]]:
    return [panel for panel in load(board)["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """All of all dashboards."""
    for board in BOARDS:
        for panel in panels(board):
            yield from (Query(board.stem, panel["title"], target["expr"]) for target in panel["targets"])


def filled(query: Query, window: str, api: str = ".+") -> str:
    """A query as Grafana sends it with all processes chosen; `api` are those of the API."""
    chosen = ".+" if query.board in ("alcor-hosts", "alcor-data") else api
    return query.expr.replace("$__rate_interval", window).replace("$instance", chosen)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def blocks(runbook: Path, kind: str) -> list[str]:
    """The lines of a runbook's blocks: `promql`, or commands (no kind)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", runbook.read_text(), re.MULTILINE | re.DOTALL)
    return [line for this, block in found if this == kind for line in block.splitlines()]


def known() -> set[str]:
    """Every series that docs/metrics.md promises."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert rows, "docs/metrics.md has no table"
    return {name + end for name, kind in rows for end in (_SERIES if kind == "histogram" else ("",))}


def names(text: str) -> set[str]:
    """The metrics that a query, or any text, names."""
    return set(_NAME.findall(text)) - _OWN


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)


def parsed(expressions: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Prometheus' own parser on all of them."""
    rules = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(expressions)]
    path = folder / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    return promtool("check", "rules", path)
