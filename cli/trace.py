"""`alcor trace`: one change as a waterfall, stage by stage and host by host, or a line for each of the recent ones.

The demo shows the same picture.
"""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Client
from cli.output import table
from planes.model.settings import Loaded

WIDTH = 36


def fetch(loaded: Loaded, id_: str) -> dict[str, Any]:
    """The change, as the API tells it."""
    with Client(loaded.settings) as client:
        return change_of(client, id_)


def recent(loaded: Loaded, failed: bool, slow_ms: float, limit: int) -> list[dict[str, Any]]:
    """Changes that the API instance remembers, the newest first."""
    chosen = {"limit": str(limit)} | ({"status": "ERROR"} if failed else {})
    if slow_ms:
        chosen["min_us"] = str(round(slow_ms * 1000))
    with Client(loaded.settings) as client:
        changes: list[dict[str, Any]] = client.get("/v2.0/alcor/changes", **chosen)["changes"]
    return changes


def listed(changes: Sequence[dict[str, Any]]) -> str:
    """One line per change."""
    columns = ("began", "request", "change", "object", "project", "status", "took", "slowest_stage", "hosts")
    return table(columns, [_row(change) for change in changes]) if changes else "no changes"


def _row(change: dict[str, Any]) -> dict[str, Any]:
    stages = change["stages"]
    hosts = {stage["host"] for stage in stages if stage["host"]}
    slowest = max(stages, key=lambda stage: stage["duration_us"], default=None)
    began = time.localtime(min(stage["start_us"] for stage in stages) / 1e6) if stages else None
    return {
        "began": time.strftime("%H:%M:%S", began) if began else "",
        "request": change["id"],
        "change": change["resource"],
        "object": change.get("object_id", ""),
        "project": change.get("project_id", ""),
        "status": change["status"],
        "took": milliseconds(change["total_us"]),
        "slowest_stage": f"{slowest['name']} {milliseconds(slowest['duration_us'])}" if slowest else "",
        "hosts": ",".join(sorted(hosts)) if len(hosts) <= 3 else f"{len(hosts)} hosts",
    }


def change_of(client: Client, id_: str) -> dict[str, Any]:
    """One change, by request id or port id."""
    change: dict[str, Any] = client.get(f"/v2.0/alcor/changes/{id_}")["change"]
    return change


def show(change: dict[str, Any], console: Console | None = None) -> None:
    """Print the waterfall."""
    (console or Console()).print(waterfall(change))


def waterfall(change: dict[str, Any]) -> Table:
    """One line per stage, in the order in which they began; a bar's place and length are its time."""
    table = Table(box=None, pad_edge=False, title_justify="left", title=_title(change), title_style="bold")
    for heading in ("stage", "where", "start", "took"):
        table.add_column(heading, justify="right" if heading in ("start", "took") else "left", no_wrap=True)
    table.add_column("", no_wrap=True)
    stages = sorted(change["stages"], key=lambda stage: (stage["start_us"], stage["duration_us"]))
    if not stages:
        return table
    begin = stages[0]["start_us"]
    whole = max(1, *(stage["start_us"] + stage["duration_us"] - begin for stage in stages))
    for stage in stages:
        start = stage["start_us"] - begin
        bar = bar_of(start, stage["duration_us"], whole)
        error = stage.get("error") or ""
        style = "red" if error else "cyan" if stage["host"] else "green"
        table.add_row(
            stage["name"],
            stage["host"] or "control",
            milliseconds(start),
            milliseconds(stage["duration_us"]),
            Text.assemble((bar, style), (f" {error}" if error else "", "red")),
        )
    return table


def bar_of(start: int, duration: int, whole: int, width: int = WIDTH) -> str:
    """A bar of at least one cell, indented to its place in `width` cells that stand for `whole`."""
    first = min(width - 1, start * width // whole)
    cells = max(1, min(width - first, round(duration * width / whole)))
    return " " * first + "━" * cells


def milliseconds(us: int) -> str:
    return f"{us / 1000:.2f} ms"


def _title(change: dict[str, Any]) -> str:
    return f"{change['resource']}  {change['status']}  {milliseconds(change['total_us'])}  trace {change['trace_id']}"
