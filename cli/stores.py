"""What an operator does with a database as a whole: check it. Called by the command line."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import click

from cli.parts import store_url
from planes.model.settings import Loaded
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
    from msgspec import structs

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


def _progress(table: str, count: int) -> None:
    click.echo(f"{table}: {count} partitions", err=True)
