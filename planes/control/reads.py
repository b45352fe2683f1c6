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
from planes.store.schema import BY_HOST, PORT_STATUS, PORTS, Table

#: ports of one bucket in one read
TOGETHER = 200
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
    rows = await _some(store, PORTS, (int(Kind.PORT),), ids)
    return {cast(bytes, row[1]): decode(int(Kind.PORT), row[3]) for row in rows}


async def _some(store: Store, table: Table, prefix: Values, ids: Iterable[bytes]) -> list[Values]:
    """The rows of these ports, wherever they live: a read for each bucket."""
    asked: list[tuple[tuple[int, int], Values]] = []
    for partition, members in _by_bucket(ids).items():
        asked += [(partition, tuple(members[at : at + TOGETHER])) for at in range(0, len(members), TOGETHER)]
    pages = await _all(
        asked,
        lambda partition, some: (
            store.read(table, partition, prefix=prefix, among=some)
            if len(some) > 1
            else store.read(table, partition, prefix=prefix + some)
        ),
    )
    return [row for page in pages for row in page.rows]


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
    kind, rows = int(Kind.IP), list[Values]()
    for at in range(0, len(ips), TOGETHER):
        rows += (await store.read(PORTS, partition, prefix=(kind,), among=tuple(ips[at : at + TOGETHER]))).rows
    return {cast(bytes, row[1]): decode(kind, row[3]) for row in rows}


def _status(row: Sequence[Any]) -> Status:
    report = _report(row[4]) if row[4] else Report()
    return Status(row[2], report.error, report.at)


async def statuses(store: Store, rows: Iterable[Port]) -> dict[bytes, Status]:
    """What the binding host of each port last said of it, by port id."""
    hosts = {port.id: port.host for port in rows if port.host}
    said = await _some(store, PORT_STATUS, (), hosts)
    return {cast(bytes, row[0]): _status(row) for row in said if hosts.get(Id(cast(bytes, row[0]))) == row[1]}


async def ids_on(store: Store, host: str, after: bytes = b"", limit: int = 0) -> list[bytes]:
    """Ids of the ports that are or may be on a host, in order."""
    read = await store.read(BY_HOST, (host,), after=(after,) if after else (), limit=limit)
    return [cast(bytes, row[0]) for row in read.rows]


async def ids_in(store: Store, buckets: Sequence[tuple[int, int]]) -> list[bytes]:
    """Ids of the ports of these buckets, the live and those that go."""
    pages = [await store.read(PORTS, bucket, prefix=(int(Kind.PORT),)) for bucket in buckets]
    return [cast(bytes, row[1]) for page in pages for row in page.rows]
