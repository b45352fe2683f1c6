"""What is left to do when a host has let go of a port: its rows, addresses, index rows, status and quota.

Called when an ack of a tombstone arrives, when the host of a deleted port is dead, and by the echo. Each step is
idempotent, in the order that docs/store.md tells: first the batch that frees the addresses, then the index.
"""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from planes.control.ground import Ground
from planes.control.indexes import Index, drops, own_rows, unshared
from planes.model.addresses import bucket
from planes.model.enums import Kind
from planes.model.ids import Id, bucket_of, number_of, place_of
from planes.model.resources import Address, AddressState, Port, PortState
from planes.store.protocol import Store, Write
from planes.store.schema import BY_HOST, PORT_STATUS
from planes.store.slots import Slots
from planes.store.views import Draft


def said_before(rev: int) -> int:
    """A stamp above those of all that hosts said of earlier revisions; see how acks are stamped."""
    return rev << 12


def unsaid(id_: Id, hosts: Iterable[str], rev: int) -> list[Write]:
    """Writes that remove what these hosts said about a port before this revision, which leads the stamps of acks."""
    return [Write(PORT_STATUS, place_of(id_), (id_, host), None, said_before(rev)) for host in hosts if host]


def free_addresses(draft: Draft, port: Id, ips: Iterable[bytes], rev: int, now: int, *, live: bool) -> list[bytes]:
    """In the bucket of `draft`: these addresses of a port become free, if they are still its own.

    A `live` port may have taken one again that it gave up before: that one is in use.
    """
    freed = []
    for ip in ips:
        row: Address | None = draft.get(Kind.IP, ip)
        if row is None or row.port != port or row.state == AddressState.FREE:
            continue
        if row.state == AddressState.RELEASING or not live:
            draft.put(Kind.IP, ip, Address(port, row.subnet, row.mac, "", 0, AddressState.FREE, now, rev))
            freed.append(ip)
    return freed


class Releases:
    """Ends what hosts have let go of."""

    def __init__(self, store: Store, ground: Ground, slots: Slots, now: Callable[[], int], port_quota: int) -> None:
        self._store = store
        self._ground = ground
        self._slots = slots
        self._now = now
        self._port_quota = port_quota

    def is_settled(self, port_id: bytes, rev: int) -> bool:
        """Whether nothing can wait for an ack of this revision, as of what this instance remembers."""
        view = self._ground.known_bucket(*place_of(port_id))
        port: Port | None = view.get(Kind.PORT, port_id) if view is not None else None
        if port is None or port.goal_rev != rev:
            return False
        return not (port.state or port.leaving or port.releasing)

    async def let_go(self, port_id: bytes, host: str, rev: int) -> Port | None:
        """The host has applied revision `rev` of the port, perhaps its tombstone; do what waited for that.

        Returns the row as it now stands; None when the port is no more. Nothing happens on an old revision's ack.
        """
        port = await self._ground.port(port_id)
        if port is None or rev > port.goal_rev:
            port = await self._ground.port(port_id, fresh=True)
        if port is None or rev < port.goal_rev or host not in (port.host, port.leaving):
            return port
        if port.state == PortState.DELETING:
            await self.finish(port)
            return None
        if port.leaving == host:
            return await self.arrive(port)
        if port.releasing:
            await self._free_outside(port, list(port.releasing), live=True)
            return await self._settled(port)
        return port

    async def finish(self, port: Port) -> None:
        """A deleted port whose host has let go, or is dead and fenced: free its addresses, then forget it."""
        ips = [ip for _, ip in port.fixed] + list(port.releasing)
        await self._free_outside(port, ips, live=False)
        number, home = place_of(port.id)

        def apply(draft: Draft, rev: int) -> list[Index]:
            row: Port | None = draft.get(Kind.PORT, port.id)
            if row is None or row.state != PortState.DELETING:
                return []
            free_addresses(draft, port.id, ips, rev, self._now(), live=False)
            draft.drop(Kind.PORT, port.id)
            mac = draft.get(Kind.MAC, port.mac)
            if mac is not None and mac.port == port.id:
                draft.drop(Kind.MAC, port.mac)
            return unshared(draft, row.id, (row.project, *row.groups))

        done = await self._ground.change_bucket(port.network, number, home, apply)
        rev = max(done.rev, port.rev) + 1
        # Marks go with the batch's own revision: the next port's come with a later one.
        gone = drops(own_rows(port), rev) + drops(done.value, done.rev)
        await self._store.write(gone + unsaid(port.id, (port.host, port.leaving), rev))
        await self._slots.free_quota(port.project, "port", [port.id], self._port_quota)

    async def arrive(self, port: Port) -> Port | None:
        """The old host of a re-bound port has let go: its addresses now are on the new one, which is told.

        With the port it let go of the addresses that were taken off it before.
        """
        number, host = number_of(port.id), port.host
        await self._free_outside(port, list(port.releasing), live=True)
        for where, ips in _by_bucket(port).items():
            if where == bucket_of(port.id):
                continue

            def move(draft: Draft, rev: int, ips: list[bytes] = ips) -> None:
                self._move(draft, port.id, ips, host, rev)

            await self._ground.change_bucket(port.network, number, where, move)

        def apply(draft: Draft, rev: int) -> Port | None:
            row: Port | None = draft.get(Kind.PORT, port.id)
            if row is None or row.state != PortState.LIVE or row.host != host or not row.leaving:
                return row
            self._move(draft, port.id, [ip for _, ip in row.fixed], host, rev)
            free_addresses(draft, port.id, row.releasing, rev, self._now(), live=True)
            new = replace(row, leaving="", releasing=(), rev=rev, goal_rev=rev)
            draft.put(Kind.PORT, port.id, new)
            return new

        done = await self._ground.change_bucket(port.network, number, bucket_of(port.id), apply)
        if done.value is not None:
            self._ground.publish_port(done.value, port.traceparent)
            if done.value.leaving != port.leaving and port.leaving != done.value.host:
                gone: list[Index] = [(BY_HOST, (port.leaving,), (port.id,))]
                forgotten = unsaid(port.id, (port.leaving,), done.rev)
                await self._store.write(drops(gone, done.rev + 1) + forgotten)
        return done.value

    def _move(self, draft: Draft, port: Id, ips: list[bytes], host: str, rev: int) -> None:
        for ip in ips:
            row: Address | None = draft.get(Kind.IP, ip)
            if row is not None and row.port == port and row.state == AddressState.USED and row.host != host:
                draft.put(
                    Kind.IP, ip, Address(port, row.subnet, row.mac, host, row.identity, row.state, row.since, rev)
                )

    async def _settled(self, port: Port) -> Port | None:
        """The addresses that were taken off a live port are free."""

        def apply(draft: Draft, rev: int) -> Port | None:
            row: Port | None = draft.get(Kind.PORT, port.id)
            if row is None or row.goal_rev != port.goal_rev or not row.releasing:
                return row
            free_addresses(draft, port.id, row.releasing, rev, self._now(), live=True)
            new = replace(row, releasing=(), rev=rev)
            draft.put(Kind.PORT, port.id, new)
            return new

        return (await self._ground.change_bucket(port.network, *place_of(port.id), apply)).value

    async def _free_outside(self, port: Port, ips: list[bytes], *, live: bool) -> None:
        """Free addresses (and, for a deleted port, the MAC) that live outside the port's home bucket."""
        home = bucket_of(port.id)
        outside: dict[int, list[bytes]] = {}
        for ip in ips:
            if bucket(ip) != home:
                outside.setdefault(bucket(ip), []).append(ip)
        if not live and bucket(port.mac) != home:
            outside.setdefault(bucket(port.mac), [])
        for where, members in outside.items():

            def apply(draft: Draft, rev: int, members: list[bytes] = members) -> None:
                free_addresses(draft, port.id, members, rev, self._now(), live=live)
                mac = None if live else draft.get(Kind.MAC, port.mac)
                if mac is not None and mac.port == port.id:
                    draft.drop(Kind.MAC, port.mac)

            await self._ground.change_bucket(port.network, number_of(port.id), where, apply)


def _by_bucket(port: Port) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for _, ip in port.fixed:
        found.setdefault(bucket(ip), []).append(ip)
    return found
