"""What an operator does with a database as a whole: check it, copy it. Called by the command line."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
from msgspec import structs

from cli.errors import Failure
from cli.output import table
from cli.parts import store_url
from planes.model.settings import Loaded, masked
from planes.store.copy import Copy, Counted, quiet
from planes.store.protocol import Store

#: partitions that a check looks at side by side
WIDTH = 16


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """The store at a URL, until the block ends."""
    from api.app import store_of

    store = store_of(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def check(loaded: Loaded, fix: bool) -> tuple[dict[str, Any], str]:
    """Walk the store; what was looked at, found and left, for a program and for a person."""
    report = asyncio.run(_check(loaded, fix))
    found = [{"rule": f.rule, "says": f.says, "repaired": f not in report.left} for f in report.found]
    lines = [f"{'repaired' if each['repaired'] else 'wrong'}: {each['says']}" for each in found]
    looked = f"{sum(report.looked.values())} partitions of {len(report.looked)} tables looked at"
    lines.append(f"{looked}; {len(found)} found, {len(report.left)} left")
    if report.more:
        lines.append("There is more: run it again.")
    answer = {"looked": dict(report.looked), "found": found, "left": len(report.left), "more": report.more}
    return answer, "\n".join(lines)


async def _check(loaded: Loaded, fix: bool) -> Any:
    from api.app import build_cloud
    from observability.latency import Latency
    from observability.tracing import Observer
    from planes.bus.nats.bus import NatsBus

    settings = structs.replace(loaded.settings, store=store_url(loaded.settings), instance="")
    async with opened(settings.store) as store:
        # The bus stays unconnected: hosts find what changed for them by comparing digests.
        bus = NatsBus(settings.nats, "alcor-check", credentials=settings.nats_creds)
        plane = build_cloud(settings, store, bus, Observer(Latency(), None)).plane
        await plane.hosts.load()
        report = await plane.check.run(fix=fix, width=WIDTH, progress=_progress)
        await plane.partitions.idle()
        return report


def copy(source: str, target: str, beside: bool) -> tuple[dict[str, Any], str]:
    """Copy a store; what was compared and written by table, for a program and for a person."""
    for url in (source, target):
        if not url.startswith(("sqlite:///", "cassandra://")):
            raise Failure(f"'{masked(url)}' is no store; say sqlite:///path or cassandra://host/keyspace.")
    if source.startswith("sqlite:///") and not Path(source.removeprefix("sqlite:///")).is_file():
        raise Failure(f"There is no store at {source}.")
    if source == target:
        raise Failure("Source and target are the same store.")
    counted = {name: structs.asdict(each) for name, each in asyncio.run(_copy(source, target, beside)).items()}
    rows = [{"table": name, **each} for name, each in counted.items() if each["partitions"]]
    end = f"{masked(target)} holds all of {masked(source)}."
    return counted, table(("table", "partitions", "rows", "written"), rows) + f"\n{end}" if rows else end


async def _copy(source: str, target: str, beside: bool) -> dict[str, Counted]:
    last = 0.0

    def progress(name: str, partitions: int, rows: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= 1:
            last = now
            _say(f"{name}: {partitions} partitions, {rows} rows")

    async with opened(source) as one, opened(target) as other:
        await quiet(one, "source", _say)
        await quiet(other, "target", _say)
        work = Copy(one, other, progress, beside=beside)
        await work.run()
        return work.counted


def _say(text: str) -> None:
    click.echo(text, err=True)


def _progress(name: str, count: int) -> None:
    _say(f"{name}: {count} partitions")
