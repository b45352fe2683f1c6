"""The embedded store's figures, in the shape of all others."""

import asyncio
import os
import tempfile
from pathlib import Path

from bench.machine import Meter
from bench.report import Figure
from bench.store import run


def store() -> list[Figure]:
    """The embedded store by itself: conditional commits and reads."""
    meter = Meter({"bench": os.getpid()})
    with tempfile.TemporaryDirectory(prefix="alcor-bench-") as directory:
        results = asyncio.run(run(Path(directory)))
    steal = meter.steal()
    return [Figure(one.name, round(one.per_second), "/s", f"{one.cpu_us:.0f} µs CPU each", steal) for one in results]
