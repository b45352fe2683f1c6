"""`make bench`: the table of figures. `python -m bench [PART…]` picks parts; all go to bench/results as JSON too."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable

import click

from bench.cloud import results
from bench.report import Figure, plain, save, text

PARTS = {
    "idle": "bench.api:idle",
    "memory": "bench.api:memory",
    "creates": "bench.api:creates",
    "active": "bench.api:active",
    "lists": "bench.api:lists",
    "kernel": "bench.kernel:kernel",
    "store": "bench.embedded:store",
    "cassandra": "bench.cassandra:cassandra",
    "many": "bench.many:many",
    "scale": "bench.scale:scale",
    "swarm": "bench.fleet:swarm",
    "sync": "bench.sync:sync",
    "observe": "bench.observe:observe",
}


def part(name: str) -> Callable[[], list[Figure]]:
    """The function that measures a part."""
    module, function = PARTS[name].split(":")
    measure: Callable[[], list[Figure]] = getattr(importlib.import_module(module), function)
    return measure


def about() -> str:
    """One line for each part."""
    lines = [f"  {name:9} {(part(name).__doc__ or '').splitlines()[0]}" for name in PARTS]
    return "\b\nParts, all by default:\n" + "\n".join(lines)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure, print one table, and add the figures to bench/results/<date>.json.",
    epilog="\b\nExamples:\n  make bench\n  make bench ARGS='creates kernel'\n"
    "  python -m bench --json scale > scale.json",
)
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)), metavar="[PART]...")
@click.option("--json", "json_", is_flag=True, help="One JSON document instead of the table.")
@click.option("--save/--no-save", "save_", default=True, help="Whether bench/results is written.")
def main(parts: tuple[str, ...], json_: bool, save_: bool) -> None:
    measured: dict[str, list[Figure]] = {}
    names = parts or tuple(PARTS)
    for number, name in enumerate(names, 1):
        begun = time.monotonic()
        click.echo(f"[{number}/{len(names)}] {name} …", err=True)
        measured[name] = part(name)()
        click.echo(f"[{number}/{len(names)}] {name}: {time.monotonic() - begun:.0f} s", err=True)
    if json_:
        click.echo(json.dumps({name: plain(figures) for name, figures in measured.items()}, indent=2))
    else:
        click.echo("\n" + text([one for figures in measured.values() for one in figures]))
    if save_:
        path = save(measured, len(os.sched_getaffinity(0)), results())
        click.echo(f"written to {path}", err=True)


if __name__ == "__main__":
    if "--help" in sys.argv or "-h" in sys.argv:
        main.epilog = f"{about()}\n\n{main.epilog}"
    main(prog_name="python -m bench")
