"""`make bench`: the table of figures. `python -m bench [PART…]` picks parts; each goes to bench/results as JSON too."""

import importlib
import os
import sys
from collections.abc import Callable

from bench.cloud import results
from bench.report import Figure, save, text

PARTS = {
    "idle": "bench.api:idle",
    "creates": "bench.api:creates",
    "active": "bench.api:active",
    "lists": "bench.api:lists",
    "kernel": "bench.kernel:kernel",
    "store": "bench.embedded:store",
    "scale": "bench.scale:scale",
}


def main(names: list[str]) -> int:
    """Measure what was asked for, all by default; the exit code."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"bench: there is no part {unknown[0]}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    for name in names or PARTS:
        module, function = PARTS[name].split(":")
        measure: Callable[[], list[Figure]] = getattr(importlib.import_module(module), function)
        print(f"\n{name}: {(measure.__doc__ or '').splitlines()[0]}", flush=True)
        figures = measure()
        print(text(figures), flush=True)
        save(name, len(os.sched_getaffinity(0)), figures, results())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
