"""Reading ports, one or many at once: their rows, their addresses, and what their hosts said of them, few reads however
many there are.

Called by management (lists, views), snapshots, sync and the echo.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from planes.model.addresses import place
from planes.model.enums import Kind
from planes.model.ids import Id, first_at, network_home, place_of
from planes.model.resources import Address, Body, Port
from planes.store.partitions import Partitions
from planes.store.protocol import Store, Values
from planes.store.rows import decode, own_addresses
from planes.store.schema import BY_HOST, PORT_STATUS, PORTS, Table
from planes.store.views import View

#: rows of one bucket in one read
TOGETHER = 200
#: reads of one call under way at a time
WIDTH = 32
#: ports of one bucket up to which reading them costs no more than asking whether what is remembered still holds
WORTH = 4
#: ports that are looked at for an address: its own comes first, but for others that had it
NEAR = 4
#: ports of one bucket from which on reading it whole costs little more than reading them
MANY = 250


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


async def port(store: Store, id_: bytes) -> Port | None:
    """The row of a port, read from the store itself."""
    row = await store.row(PORTS, place_of(id_), (int(Kind.PORT), id_))
    return decode(int(Kind.PORT), row[1]) if row else None


async def ports(store: Store, ids: Sequence[bytes]) -> dict[bytes, Port]:
    """The rows of those ports that exist, by id, read from the store itself."""
    rows = await _some(store, PORTS, (int(Kind.PORT),), _by_bucket(ids))
    return {cast(bytes, row[1]): decode(int(Kind.PORT), row[3]) for row in rows}


async def current_ports(partitions: Partitions, ids: Iterable[bytes]) -> dict[bytes, Port]:
    """The same; from what this instance remembers of a bucket where a short read shows that it is still so."""
    found, left = await _remembered(partitions, Kind.PORT, _by_bucket(ids))
    return found | await ports(partitions.store, left) if left else found


async def address(partitions: Partitions, where: tuple[int, int], ip: bytes) -> Address | None:
    """Who has an address of a bucket, or had it, as the store has it now.

    It has a row, or the port tells whose id says where its address lies. Only what none of these says takes all of the
    bucket: it is of a port whose id was drawn before its address, or nobody's.
    """
    if view := await partitions.current(PORTS, where):
        found: Address | None = view.get(Kind.IP, ip)
        return found
    at, kind = first_at(network_home(*where), place(ip)), int(Kind.PORT)
    row, near = await asyncio.gather(
        partitions.store.row(PORTS, where, (int(Kind.IP), ip)),
        partitions.store.read(PORTS, where, prefix=(kind,), after=(kind, at), limit=NEAR),
    )
    if row:
        return cast(Address, decode(int(Kind.IP), row[1]))
    for _, _, _, body in near.rows:
        told = own_addresses(decode(kind, body))
        if found := next((each for own, each in told if own == ip), None):
            return found
    return (await partitions.view(PORTS, where, fresh=True)).get(Kind.IP, ip)  # type: ignore[no-any-return]


async def bucket(partitions: Partitions, partition: tuple[int, int]) -> View:
    """A bucket as the store has it now: all of it, because an address may be told of by any port's row. Only what is
    not remembered, or not so any more, is read; who goes on awaiting takes what it needs of the view first."""
    return await partitions.current(PORTS, partition) or await partitions.view(PORTS, partition, fresh=True)


async def current_addresses(
    partitions: Partitions, partition: tuple[int, int], ips: Sequence[bytes], ports: Iterable[Port]
) -> dict[bytes, Address]:
    """Those of these addresses of one bucket that exist, where from as `current_ports`. `ports`: those that live there
    and whose addresses these are, just read.

    An address without a row was what its port's row told when that was read: rows of addresses do not go again.
    """
    found, left = await _remembered(partitions, Kind.IP, {partition: ips})
    if not left:
        return found
    told = {ip: address for port in ports for ip, address in own_addresses(port) if ip in left}
    return told | await stored_addresses(partitions.store, partition, left)


async def _remembered(
    partitions: Partitions, kind: Kind, wanted: Mapping[tuple[int, int], Sequence[bytes]]
) -> tuple[dict[bytes, Any], list[bytes]]:
    """Rows of buckets that are known to be as this instance remembers them, and the keys in the other buckets."""
    worth = [where for where, keys in wanted.items() if len(keys) > WORTH and partitions.peek(PORTS, where)]
    views = await asyncio.gather(*(partitions.current(PORTS, where) for where in worth))
    known = {where: view.all(kind) for where, view in zip(worth, views, strict=True) if view is not None}
    found = {key: rows[key] for where, rows in known.items() for key in wanted[where] if key in rows}
    return found, [key for where, keys in wanted.items() if where not in known for key in keys]


async def _some(
    store: Store, table: Table, prefix: Values, wanted: Mapping[tuple[int, int], Sequence[bytes]]
) -> list[Values]:
    """The rows behind the prefix that are `wanted`, by partition; many reads, some at a time."""
    asked = [
        (partition, tuple(keys[at : at + TOGETHER]))
        for partition, keys in wanted.items()
        for at in range(0, len(keys), TOGETHER)
    ]
    if len(asked) == 1:  # needs no task
        partition, keys = asked[0]
        if len(keys) == 1:  # a list of one is more work for everybody
            return (await store.read(table, partition, prefix=(*prefix, keys[0]))).rows
        return (await store.read(table, partition, prefix=prefix, among=keys)).rows
    rows: list[Values] = []
    for at in range(0, len(asked), WIDTH):
        reads = [store.read(table, partition, prefix=prefix, among=keys) for partition, keys in asked[at : at + WIDTH]]
        rows += [row for page in await asyncio.gather(*reads) for row in page.rows]
    return rows


async def stored_addresses(store: Store, partition: tuple[int, int], ips: Sequence[bytes]) -> dict[bytes, Address]:
    """Those of these addresses of one bucket that have a row of their own, read from the store itself: all whose ports
    live in other buckets, but few of this one's."""
    rows = await _some(store, PORTS, (int(Kind.IP),), {partition: ips})
    return {cast(bytes, row[1]): decode(int(Kind.IP), row[3]) for row in rows}


def _status(applied: Any, _: Any, body: Any) -> Status:
    report = _report(body) if body else Report()
    return Status(applied, report.error, report.at)


async def status(store: Store, port: Port) -> Status | None:
    """What the binding host of a port last said of it."""
    row = await store.row(PORT_STATUS, place_of(port.id), (port.id, port.host)) if port.host else None
    return _status(*row) if row else None


async def statuses(store: Store, rows: Iterable[Port]) -> dict[bytes, Status]:
    """What the binding host of each port last said of it, by port id."""
    hosts = {port.id: port.host for port in rows if port.host}
    said = await _some(store, PORT_STATUS, (), _by_bucket(hosts))
    return {cast(bytes, row[0]): _status(*row[2:]) for row in said if hosts.get(Id(cast(bytes, row[0]))) == row[1]}


async def ids_on(store: Store, host: str, after: bytes = b"", limit: int = 0) -> list[bytes]:
    """Ids of the ports that are or may be on a host, in order."""
    read = await store.read(BY_HOST, (host,), after=(after,) if after else (), limit=limit)
    return [cast(bytes, row[0]) for row in read.rows]


async def ports_in(store: Store, bucket: tuple[int, int]) -> dict[bytes, Port]:
    """All ports of a bucket, the live and those that go, by id, read from the store itself."""
    read = await store.read(PORTS, bucket, prefix=(int(Kind.PORT),))
    return {cast(bytes, row[1]): decode(int(Kind.PORT), row[3]) for row in read.rows}


async def current_ports_in(
    partitions: Partitions, where: tuple[int, int], after: bytes = b"", limit: int = 0
) -> list[Port]:
    """Ports of a bucket behind an id, in order, `limit` at most (0: all); where from as `current_ports`.

    Who wants many from the beginning reads the bucket whole, so that it is remembered for who reads the list anew. Who
    goes on behind an id walks through them all, once.
    """
    view = None
    if not after and not 0 < limit < MANY:
        view = await bucket(partitions, where)
    elif after or limit > WORTH:
        view = await partitions.current(PORTS, where)
    if view is not None:
        known = view.all(Kind.PORT)
        ids = sorted([id_ for id_ in known if id_ > after])
        return [known[id_] for id_ in (ids[:limit] if limit else ids)]
    kind = int(Kind.PORT)
    read = await partitions.store.read(PORTS, where, prefix=(kind,), after=(kind, after) if after else (), limit=limit)
    return [decode(kind, row[3]) for row in read.rows]
