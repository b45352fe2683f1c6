"""`alcor trace`: one change as a waterfall, stage by stage and host by host. The demo shows the same picture."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Client
from planes.model.settings import Loaded

WIDTH = 36


def fetch(loaded: Loaded, id_: str) -> dict[str, Any]:
    """The change, as the API tells it."""
    with Client(loaded.settings.api) as client:
        return change_of(client, id_)


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
