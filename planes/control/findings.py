"""What is wrong with one partition of the store, as far as a crash or a lost write can leave it so.

Called by the check only. It reads and never writes: what it names may just be a request under way, so the check looks
twice before it believes. Bounded by what a partition holds.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct

from planes.control import reads
from planes.control.feed import MINUTE, Entry
from planes.control.indexes import SHARED, Index, index_rows, is_mark, leads_to, marks, names, own_rows, part_of
from planes.control.release import said_before
from planes.model.addresses import bucket
from planes.model.enums import Kind
from planes.model.ids import Id, home_of, is_ours, make_id, network_home, number_of, place_of, text
from planes.model.resources import Address, AddressState, NetworkState, Port, PortState
from planes.store.protocol import Store, Values
from planes.store.rows import decode
from planes.store.schema import (
    BY_DEVICE,
    BY_GROUP,
    BY_HOST,
    BY_NAME,
    BY_PROJECT,
    FEED,
    GROUPS,
    LEASES,
    NETWORKS,
    PORT_STATUS,
    PORTS,
    SLOTS,
    Table,
)
from planes.store.slots import HOST_SPACE, VNI_SPACE
from planes.store.views import View

#: the tables that are walked
WALKED = (NETWORKS, PORTS, GROUPS, SLOTS, BY_PROJECT, BY_HOST, BY_DEVICE, BY_NAME, BY_GROUP, PORT_STATUS, FEED)
#: ids of an index partition that are looked at together
CHUNK = 500
#: µs after which a change that waits for a host is no longer the echo's, and a feed row is overdue
GIVEN_UP, LATE = 900_000_000, 120_000_000

_decode = msgspec.msgpack.Decoder(Entry).decode


class Finding(Struct, frozen=True):
    """One fault, and what mends it: an `entry` for the echo, index rows to `put` or `drop`, an owner whose `slot` goes,
    an address that its port gave up, as it was `seen`, to be marked so. `stamp`: of the drops, where the time of the
    first look is not what orders that table's writes.
    """

    #: claim, unconfirmed, unmarked, lost, index, unlisted, said, slot, half-deleted, unfinished, sealed, feed or
    #: unreadable
    rule: str
    table: str
    partition: Values
    key: Values
    says: str
    entry: Entry | None = None
    put: tuple[Index, ...] = ()
    drop: tuple[Index, ...] = ()
    stamp: int = 0
    slot: bytes = b""
    seen: Address | None = None

    @property
    def name(self) -> tuple[Any, ...]:
        """What makes two looks see the same."""
        return (self.rule, self.table, self.partition, self.key)


class Findings:
    """Looks at partitions. `kinds`: the kind of object that each resource of a quota counts."""

    def __init__(self, store: Store, now: Callable[[], int], kinds: dict[str, int]) -> None:
        self._store = store
        self._now = now
        self._kinds = kinds
        self._looks: dict[str, Callable[[Values], Awaitable[list[Finding]]]] = {
            NETWORKS.name: self._network,
            PORTS.name: self._bucket,
            GROUPS.name: self._group,
            SLOTS.name: self._slots,
            PORT_STATUS.name: self._said,
            FEED.name: self._feed,
        }

    async def look(self, table: Table, partition: Values) -> list[Finding]:
        """Everything that is wrong here."""
        own = self._looks.get(table.name)
        try:
            return await own(partition) if own else await self._index(table, partition)
        except (msgspec.MsgspecError, KeyError) as error:
            says = f"{table.name} {partition} holds, or names, what this version cannot read: {error!r:.200}"
            return [Finding("unreadable", table.name, partition, (), says)]

    # -- objects ----------------------------------------------------------------------------------------------------

    async def _network(self, where: Values) -> list[Finding]:
        view = View(NETWORKS, await self._store.read(NETWORKS, where))
        row = view.get(Kind.NETWORK)
        if row is None:
            return []
        found = []
        half = [(Kind.NETWORK, row)] if view.statics.get("state") == NetworkState.DELETING else []
        half += [(Kind.SUBNET, subnet) for subnet in view.all(Kind.SUBNET).values() if subnet.deleting]
        for kind, item in half:
            entry = Entry(kind, (item.id,), False, row.id, item.project)
            says = f"{kind.name.lower()} {text(item.id)} is half deleted"
            found.append(Finding("half-deleted", NETWORKS.name, where, (item.id,), says, entry))
        rows = [_listed(item.project, Kind.SUBNET, key) for key, item in view.all(Kind.SUBNET).items()]
        rows.append(_listed(row.project, Kind.NETWORK, row.id))
        if row.shared:
            rows.append(_listed(SHARED, Kind.NETWORK, row.id))
        return found + await self._unlisted(NETWORKS, where, rows)

    async def _group(self, where: Values) -> list[Finding]:
        view = View(GROUPS, await self._store.read(GROUPS, where))
        row = view.get(Kind.GROUP)
        if row is None:
            return []
        found = []
        if view.statics.get("state") == NetworkState.DELETING:
            entry = Entry(Kind.GROUP, (row.id,), False, project=row.project)
            says = f"security group {text(row.id)} is half deleted"
            found.append(Finding("half-deleted", GROUPS.name, where, (row.id,), says, entry))
        return found + await self._unlisted(GROUPS, where, [_listed(row.project, Kind.GROUP, row.id)])

    async def _unlisted(self, table: Table, where: Values, rows: Iterable[Index]) -> list[Finding]:
        """Index rows that are missing; put back by the check itself."""
        missing = [row for row in rows if not await self._there(row)]
        return [
            Finding("unlisted", table.name, where, (*row[1], *row[2]), f"{_say(row)} is missing", put=(row,))
            for row in missing
        ]

    async def _there(self, row: Index) -> bool:
        return bool((await self._store.read(row[0], row[1], prefix=row[2])).rows)

    # -- ports and claims -------------------------------------------------------------------------------------------

    async def _bucket(self, where: Values) -> list[Finding]:
        number, here = cast(tuple[int, int], where)
        view = View(PORTS, await self._store.read(PORTS, where))
        networks = View(NETWORKS, await self._store.read(NETWORKS, (number,), prefix=(int(Kind.NETWORK),)))
        row = networks.get(Kind.NETWORK)
        network = row.id if row else make_id(network_home(number), 0)
        owners: dict[bytes, Port] = dict(view.all(Kind.PORT))
        claims = [(Kind.IP, key, a) for key, a in view.all(Kind.IP).items() if a.state != AddressState.FREE]
        claims += [(Kind.MAC, key, mac) for key, mac in view.all(Kind.MAC).items()]
        abroad = {claim.port for _, _, claim in claims if claim.port not in owners}
        owners |= await reads.ports(self._store, sorted(id_ for id_ in abroad if (number, here) != place_of(id_)))
        found = [
            finding
            for kind, key, claim in claims
            if (finding := _claim(where, kind, key, claim, owners.get(claim.port), network)) is not None
        ]
        for port in view.all(Kind.PORT).values():
            found += await self._port(where, view, port)
        wanted = dict.fromkeys(row for port in view.all(Kind.PORT).values() for row in marks(port))
        found += await self._unlisted(PORTS, where, wanted)
        if row and view.statics.get("sealed") and networks.statics.get("state") != NetworkState.DELETING:
            entry = Entry(Kind.NETWORK, (row.id,), False, row.id, row.project)
            says = f"bucket {here} of network {text(row.id)} takes no ports, though the network is in use"
            found.append(Finding("sealed", PORTS.name, where, (), says, entry))
        return found

    async def _port(self, where: Values, view: View, port: Port) -> list[Finding]:
        outside = {bucket(ip) for _, ip in port.fixed} | {bucket(ip) for ip in port.releasing} | {bucket(port.mac)}
        outside -= {cast(int, where[1])}
        named = names(index_rows(port))
        entry = Entry(Kind.PORT, (port.id,), False, port.network, port.project, named, tuple(sorted(outside)))
        waits = port.state == PortState.DELETING or port.leaving or port.releasing
        holder = port.leaving or port.host
        if waits and not (holder and port.rev > self._now() - GIVEN_UP):
            host = f"; host {holder} has not let go of it" if holder else ""
            says = f"a change of port {text(port.id)} is not finished{host}"
            return [Finding("unfinished", PORTS.name, where, (port.id,), says, entry)]
        if port.state == PortState.DELETING:
            return []
        found = []
        for _, ip in port.fixed:
            address = view.get(Kind.IP, ip)
            if bucket(ip) != where[1]:
                address = (await reads.stored_addresses(self._store, (number_of(port.id), bucket(ip)), [ip])).get(ip)
            if address is None or address.port != port.id or address.state == AddressState.FREE:
                says = f"port {text(port.id)} does not hold its address {ip.hex()}; delete it or give it another"
                found.append(Finding("lost", PORTS.name, where, (port.id, ip), says))
        missing = [row for row in own_rows(port) if not await self._there(row)]
        if missing:
            says = f"port {text(port.id)}: {', '.join(map(_say, missing))} is missing"
            found.append(Finding("unlisted", PORTS.name, where, (port.id,), says, entry))
        return found

    async def _said(self, where: Values) -> list[Finding]:
        """What hosts said of ports that are no more: an ack that came after the port's end."""
        found: list[Finding] = []
        after: Values = ()
        while True:
            rows = (await self._store.read(PORT_STATUS, where, after=after, limit=CHUNK)).rows
            live = await self._objects(Kind.PORT, list(dict.fromkeys(cast(bytes, row[0]) for row in rows)))
            for row in rows:
                id_, host, applied = cast(tuple[bytes, str, int], row[:3])
                if id_ not in live:
                    says = f"host {host} spoke of port {text(id_)}, which is not there"
                    drop, stamp = ((PORT_STATUS, where, (id_, host)),), said_before(applied + 1)
                    found.append(Finding("said", PORT_STATUS.name, where, (id_, host), says, drop=drop, stamp=stamp))
            if len(rows) < CHUNK:
                return found
            after = rows[-1][:2]

    # -- numbers ----------------------------------------------------------------------------------------------------

    async def _slots(self, where: Values) -> list[Finding]:
        space, block = cast(tuple[str, int], where)
        project, _, resource = space.rpartition("/")
        kind = Kind.NETWORK if space == VNI_SPACE else self._kinds.get(resource)
        if space == HOST_SPACE or kind is None:
            return []
        view = View(SLOTS, await self._store.read(SLOTS, where))
        held = {slot.owner: key for key, slot in view.all(Kind.SLOT).items() if slot.owner}
        gone = set(held) - set(await self._objects(kind, sorted(held)))
        found = []
        for owner in sorted(gone):
            says = (
                f"number {int.from_bytes(held[owner], 'big')} of {space} belongs to {text(owner)}, which is not there"
            )
            if space == VNI_SPACE:
                if await self._clearing(owner):
                    continue
                entry = Entry(kind, (owner,), True, owner, vni_block=block)
                found.append(Finding("slot", SLOTS.name, where, (owner,), says, entry))
            else:
                undo = None if kind == Kind.RULE else _absent(kind, owner, project, ())
                found.append(Finding("slot", SLOTS.name, where, (owner,), says, undo, slot=owner))
        return found

    async def _clearing(self, network: bytes) -> bool:
        """Whether a deleted network waits for hosts, and not for too long."""
        read = await self._store.read(NETWORKS, (number_of(Id(network)),))
        view = View(NETWORKS, read)
        return view.statics.get("state") == NetworkState.DELETING and view.top > self._now() - GIVEN_UP

    # -- indexes ----------------------------------------------------------------------------------------------------

    async def _index(self, table: Table, where: Values) -> list[Finding]:
        found: list[Finding] = []
        after: Values = ()
        while True:
            rows = (await self._store.read(table, where, after=after, limit=CHUNK)).rows
            found += await self._indexed(table, where, [cast(bytes, row[0]) for row in rows])
            if len(rows) < CHUNK:
                return found
            after = rows[-1][:1]

    async def _indexed(self, table: Table, where: Values, ids: Sequence[bytes]) -> list[Finding]:
        kind = cast(int, where[1]) if table is BY_PROJECT else Kind.PORT
        found = []
        buckets = [id_ for id_ in ids if is_mark((table, where, (id_,)))]
        for id_ in buckets:
            row: Index = (table, where, (id_,))
            if not any(row in marks(port) for port in (await reads.ports_in(self._store, place_of(id_))).values()):
                says = f"{_say(row)} leads to a bucket without such a port"
                found.append(Finding("index", table.name, where, (id_,), says, drop=(row,)))
        ids = [id_ for id_ in ids if id_ not in buckets]
        objects = await self._objects(kind, ids)
        for id_ in ids:
            row = (table, where, (id_,))
            item = objects.get(id_)
            project = str(where[0]) if table is BY_PROJECT and where[0] != SHARED else ""
            if item is None:
                undo = _absent(kind, id_, project, (row,))
                found.append(Finding("index", table.name, where, (id_,), f"{_say(row)} names nothing", undo))
            elif not _rightly(row, item):
                says = f"{_say(row)} is not of the object"
                found.append(Finding("index", table.name, where, (id_,), says, drop=(row,)))
        return found

    async def _objects(self, kind: int, ids: Sequence[bytes]) -> dict[bytes, Any]:
        """Those objects that exist."""
        ours = [Id(id_) for id_ in ids if is_ours(id_)]
        if kind == Kind.PORT:
            return dict(await reads.ports(self._store, ours))
        found: dict[bytes, Any] = {}
        for id_ in ours:
            table, where = (GROUPS, home_of(id_)) if kind in (Kind.GROUP, Kind.RULE) else (NETWORKS, number_of(id_))
            key = b"" if kind in (Kind.NETWORK, Kind.GROUP) else id_
            for row in (await self._store.read(table, (where,), prefix=(int(kind), key))).rows:
                item = decode(int(kind), row[3])
                if item.id == id_:
                    found[id_] = item
        return found

    # -- the feed ---------------------------------------------------------------------------------------------------

    async def _feed(self, where: Values) -> list[Finding]:
        """Changes that were announced long ago and that no instance has looked at."""
        minute, part = cast(tuple[int, int], where)
        until = self._now() - LATE
        if minute * MINUTE > until:
            return []
        lease = await self._store.read(LEASES, (f"feed/{part}",))
        done = cast(int, lease.statics[2] or 0) if lease.exists else 0
        if done >= (minute + 1) * MINUTE:
            return []
        found = []
        for row in (await self._store.read(FEED, where, after=(done,) if done // MINUTE == minute else ())).rows:
            at, id_, _, args = cast(tuple[int, bytes, int, bytes], row)
            if done < at <= until:
                says = f"a change of {text(id_)} was announced, and nobody has looked at it since"
                found.append(Finding("feed", FEED.name, where, (at, id_), says, _decode(args)))
        return found


def _claim(where: Values, kind: Kind, key: bytes, claim: Any, owner: Port | None, network: bytes) -> Finding | None:
    """What is wrong with an address or a MAC that a port claims."""
    name = f"{'address' if kind == Kind.IP else 'MAC'} {key.hex()}"
    fixed = [ip for _, ip in owner.fixed] if owner else []
    given_up = owner is not None and key in owner.releasing and key not in fixed
    if owner and given_up and claim.state == AddressState.USED:
        says = f"{name} was given up by port {text(owner.id)} and is not marked so"
        entry = Entry(Kind.PORT, (owner.id,), network=owner.network)
        return Finding("unmarked", PORTS.name, where, (kind, key), says, entry, seen=claim)
    mine = owner is not None and (owner.mac == key if kind == Kind.MAC else given_up or key in fixed)
    if mine and not (kind == Kind.IP and claim.state == AddressState.CLAIMED):
        return None
    project = owner.project if owner else ""
    entry = Entry(Kind.PORT, (claim.port,), owner is None, network, project, (), (cast(int, where[1]),))
    if owner is None:
        return Finding("claim", PORTS.name, where, (kind, key), f"{name} is held by no port", entry)
    says = f"{name} is held by port {text(claim.port)}, "
    if mine:
        return Finding("unconfirmed", PORTS.name, where, (kind, key), says + "which never confirmed it", entry)
    return Finding("claim", PORTS.name, where, (kind, key), says + "which does not have it", entry)


def _rightly(row: Index, item: Any) -> bool:
    """Whether an index row is one of the object's."""
    if isinstance(item, Port):
        return leads_to(row, item)
    return row[1][0] == item.project or (row[1][0] == SHARED and getattr(item, "shared", False))


def _absent(kind: int, id_: bytes, project: str, rows: Sequence[Index]) -> Entry:
    """Undo the creation of something that is not there: so that its creator, should there be one, stops too."""
    network = make_id(network_home(number_of(Id(id_))), 0)
    return Entry(kind, (id_,), True, id_ if kind == Kind.NETWORK else network, project, names(rows))


def _listed(project: str, kind: int, id_: bytes) -> Index:
    return (BY_PROJECT, (project, int(kind), part_of(id_)), (id_,))


def _say(row: Index) -> str:
    table, where, key = row
    return " ".join([table.name, *(text(v) if isinstance(v, bytes) else str(v) for v in (*where, *key))])
