"""Reading many ports at once: their rows and what their hosts said of them, few reads however many there are.

Called by management (lists, views), snapshots, sync and the echo.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from planes.model.enums import Kind
from planes.model.ids import Id, bucket_of, number_of
from planes.model.resources import Address, Body, Port
from planes.store.protocol import Store
from planes.store.rows import decode
from planes.store.schema import BY_HOST, PORT_STATUS, PORTS

#: with more ids of one bucket than this, the bucket is read whole
POINT_READS = 8


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
        buckets.setdefault((number_of(Id(id_)), bucket_of(Id(id_))), []).append(id_)
    return buckets


async def ports(store: Store, ids: Sequence[bytes]) -> dict[bytes, Port]:
    """The rows of those ports that exist, by id, read from the store itself."""
    found: dict[bytes, Port] = {}
    for partition, members in _by_bucket(ids).items():
        if len(members) <= POINT_READS:
            for id_ in members:
                for row in (await store.read(PORTS, partition, prefix=(int(Kind.PORT), id_))).rows:
                    found[id_] = decode(Kind.PORT, row[3])
            continue
        wanted = frozenset(members)
        for row in (await store.read(PORTS, partition, prefix=(int(Kind.PORT),))).rows:
            if row[1] in wanted:
                found[row[1]] = decode(Kind.PORT, row[3])
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
    found: dict[bytes, Status] = {}
    for partition, members in _by_bucket(hosts).items():
        if len(members) <= POINT_READS:
            for id_ in members:
                read = await store.read(PORT_STATUS, partition, prefix=(id_, hosts[Id(id_)]))
                for row in read.rows:
                    found[id_] = _status(row)
            continue
        for row in (await store.read(PORT_STATUS, partition)).rows:
            id_ = cast(bytes, row[0])
            if hosts.get(Id(id_)) == row[1]:
                found[id_] = _status(row)
    return found


async def ids_on(store: Store, host: str, after: bytes = b"", limit: int = 0) -> list[bytes]:
    """Ids of the ports that are or may be on a host, in order."""
    read = await store.read(BY_HOST, (host,), after=(after,) if after else (), limit=limit)
    return [cast(bytes, row[0]) for row in read.rows]
