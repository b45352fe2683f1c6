"""The embedded store's speed: conditional commits alone and 64 at a time, with an idle and with a busy loop, and reads.

Run by `make bench`, or `python -m bench.store`. CPU is the whole process: the loop's side and the commit thread.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec import Struct, to_builtins

from planes.store.protocol import Batch, Values
from planes.store.schema import PORTS
from planes.store.sqlite.store import SqliteStore

_BODY = bytes(200)
_ROWS = 100


class Result(Struct, frozen=True):
    """One line of the table."""

    name: str
    per_second: float
    cpu_us: float


def port_batch(bucket: int, expect: int | None, turn: int) -> Batch:
    """What creating a port writes: the port, its address, its MAC."""
    key = turn.to_bytes(8, "big")
    top = (expect or 0) + 1
    rows: list[Values] = [(kind, key, top, _BODY) for kind in (1, 2, 3)]
    return Batch(PORTS, (1, bucket), expect, {"top": top}, rows)


async def _measure(name: str, callers: int, seconds: float, one: Callable[[int, int], Awaitable[None]]) -> Result:
    counts = [0] * callers
    end = time.perf_counter() + seconds

    async def caller(index: int) -> None:
        while time.perf_counter() < end:
            await one(index, counts[index])
            counts[index] += 1

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(index) for index in range(callers)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Result(name, sum(counts) / wall, cpu / sum(counts) * 1e6)


async def run(directory: Path, seconds: float = 2.0) -> list[Result]:
    """Every measurement, on a fresh file under `directory`."""
    store = SqliteStore(directory / "bench.db")
    await store.open()
    results: list[Result] = []
    base = 0

    def commit(work_us: float) -> Callable[[int, int], Awaitable[None]]:
        async def one(index: int, turn: int) -> None:
            spin = time.perf_counter() + work_us / 1e6
            while time.perf_counter() < spin:
                pass
            await store.commit(port_batch(base + index, turn or None, turn))

        return one

    try:
        for callers, work_us in ((1, 0), (64, 0), (64, 100)):
            name = f"commit of a port, {callers} callers" + (
                f", each with {work_us} µs of other work" if work_us else ""
            )
            results.append(await _measure(name, callers, seconds, commit(work_us)))
            base += callers
        rows: list[Values] = [(1, n.to_bytes(8, "big"), 1, _BODY) for n in range(_ROWS)]
        await store.commit(Batch(PORTS, (2, 0), None, {"top": 1}, rows))

        async def point(_: int, turn: int) -> None:
            await store.read(PORTS, (2, 0), prefix=(1, (turn % _ROWS).to_bytes(8, "big")))

        async def whole(_: int, turn: int) -> None:
            await store.read(PORTS, (2, 0))

        results.append(await _measure("read of one row", 1, seconds, point))
        results.append(await _measure(f"read of a partition of {_ROWS} rows", 1, seconds, whole))
    finally:
        await store.close()
    return results


def main() -> None:
    """Print the table; with `--json`, as JSON."""
    with tempfile.TemporaryDirectory() as directory:
        results = asyncio.run(run(Path(directory)))
    if "--json" in sys.argv:
        print(json.dumps(to_builtins(results)))
        return
    for result in results:
        print(f"{result.name:64} {result.per_second:10,.0f}/s {result.cpu_us:8.1f} µs CPU")


if __name__ == "__main__":
    main()
