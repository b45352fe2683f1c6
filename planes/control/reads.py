"""Reading many ports at once: their rows and what their hosts said of them, few reads however many there are.

Called by management (lists, views), snapshots, sync and the echo.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import msgspec

from planes.model.enums import Kind
from planes.model.ids import Id, place_of
from planes.model.resources import Address, Body, Port
from planes.store.protocol import Store, Values
from planes.store.rows import decode
from planes.store.schema import BY_HOST, PORT_STATUS, PORTS

#: with more ids, or runs of ids, of one bucket than this, the bucket is read whole
POINT_READS = 32
#: reads of one call under way at a time
WIDTH = 32

S = TypeVar("S")
T = TypeVar("T")


class Report(Body, frozen=True):
    """Body of a `port_status` row: what a host said of its last revision."""

    error: str = ""
    at: int = 0


class Status(msgspec.Struct, frozen=True):
    """The last revision that a host answered for, and the reason when it failed."""

    applied: int
    error: str
    at: int


_report = msgspec.msgpack.Decoder(Report).decode


def _by_bucket(ids: Iterable[bytes]) -> dict[tuple[int, int], list[bytes]]:
    buckets: dict[tuple[int, int], list[bytes]] = {}
    for id_ in ids:
        buckets.setdefault(place_of(id_), []).append(id_)
    return buckets


async def ports(store: Store, ids: Sequence[bytes]) -> dict[bytes, Port]:
    """The rows of those ports that exist, by id, read from the store itself."""
    kind, wanted = int(Kind.PORT), frozenset(ids)
    asked: list[tuple[tuple[int, int], list[bytes]]] = []
    for partition, members in _by_bucket(ids).items():
        runs = _runs(members)
        asked += [(partition, run) for run in runs] if len(runs) <= POINT_READS else [(partition, [])]
    found = await _all(asked, lambda partition, run: _run(store, partition, run))
    return {row[1]: decode(kind, row[3]) for rows in found for row in rows if row[1] in wanted}


def _runs(ids: Iterable[bytes]) -> list[list[bytes]]:
    """Ids that were made one after the other, together: in a bucket they mostly follow each other."""
    runs: list[list[bytes]] = []
    for id_ in sorted(ids):
        if runs and runs[-1][0][:3] == id_[:3]:
            runs[-1].append(id_)
        else:
            runs.append([id_])
    return runs


async def _run(store: Store, partition: tuple[int, int], run: Sequence[bytes]) -> list[Values]:
    """The rows of these ports, and perhaps of some between them; of all ports of the bucket when none is named."""
    kind = int(Kind.PORT)
    if len(run) < 2:
        return (await store.read(PORTS, partition, prefix=(kind, *run))).rows
    rows: list[Values] = []
    while run:
        before = (int.from_bytes(run[0], "big") - 1).to_bytes(16, "big")
        page = (await store.read(PORTS, partition, prefix=(kind,), after=(kind, before), limit=len(run))).rows
        rows += page
        run = [id_ for id_ in run if id_ > cast(bytes, page[-1][1])] if len(page) == len(run) else []
    return rows


async def _all(
    asked: Sequence[tuple[tuple[int, int], S]], read: Callable[[tuple[int, int], S], Awaitable[T]]
) -> list[T]:
    """Many reads, some at a time; one alone needs no task."""
    if len(asked) == 1:
        return [await read(*asked[0])]
    found: list[T] = []
    for at in range(0, len(asked), WIDTH):
        found += await asyncio.gather(*(read(*each) for each in asked[at : at + WIDTH]))
    return found


async def addresses(store: Store, partition: tuple[int, int], ips: Sequence[bytes]) -> dict[bytes, Address]:
    """Those address rows of one bucket that exist, read from the store itself."""
    kind = int(Kind.IP)
    if len(ips) <= POINT_READS:
        rows = [row for ip in ips for row in (await store.read(PORTS, partition, prefix=(kind, ip))).rows]
    else:
        wanted = frozenset(ips)
        rows = [row for row in (await store.read(PORTS, partition, prefix=(kind,))).rows if row[1] in wanted]
    return {cast(bytes, row[1]): decode(kind, row[3]) for row in rows}


def _status(row: Sequence[Any]) -> Status:
    report = _report(row[4]) if row[4] else Report()
    return Status(row[2], report.error, report.at)


async def statuses(store: Store, rows: Iterable[Port]) -> dict[bytes, Status]:
    """What the binding host of each port last said of it, by port id."""
    hosts = {port.id: port.host for port in rows if port.host}
    asked: list[tuple[tuple[int, int], Values]] = []
    for partition, members in _by_bucket(hosts).items():
        few = len(members) <= POINT_READS
        asked += [(partition, (id_, hosts[Id(id_)])) for id_ in members] if few else [(partition, ())]
    pages = await _all(asked, lambda partition, prefix: store.read(PORT_STATUS, partition, prefix=prefix))
    said = [row for page in pages for row in page.rows]
    return {cast(bytes, row[0]): _status(row) for row in said if hosts.get(Id(cast(bytes, row[0]))) == row[1]}


async def ids_on(store: Store, host: str, after: bytes = b"", limit: int = 0) -> list[bytes]:
    """Ids of the ports that are or may be on a host, in order."""
    read = await store.read(BY_HOST, (host,), after=(after,) if after else (), limit=limit)
    return [cast(bytes, row[0]) for row in read.rows]


async def ids_in(store: Store, buckets: Sequence[tuple[int, int]]) -> list[bytes]:
    """Ids of the ports of these buckets, the live and those that go."""
    pages = [await store.read(PORTS, bucket, prefix=(int(Kind.PORT),)) for bucket in buckets]
    return [cast(bytes, row[1]) for page in pages for row in page.rows]
