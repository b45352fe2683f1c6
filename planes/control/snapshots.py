"""Answers hosts' pulls, page by page, and compares their digests (rules S4, S5, S7, S11).

Called by the plane. Page tokens are stateless, so any instance may serve the next page. A page holds at most 256
objects. A host is given only networks in which it has ports.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, cast

import msgspec

from planes.control import goals, reads
from planes.control.ground import Ground
from planes.control.hosts import Hosts
from planes.goalstate import messages as goal
from planes.goalstate.codec import MAX_OBJECTS
from planes.goalstate.messages import (
    WHOLE,
    Group,
    NetworkDigest,
    Object,
    Page,
    Pull,
    Span,
    Sync,
    Synced,
    What,
)
from planes.model.enums import Kind
from planes.model.ids import Id, home_of, number_of
from planes.model.resources import AddressState, HostState, Identity, Network, NumberState, Port, PortState
from planes.store.protocol import Store
from planes.store.schema import GROUPS, PORTS
from planes.store.views import View

#: identities of a page; and buckets whose addresses it may have, so that one whose buckets are nearly empty comes soon
ROWS, BUCKETS = MAX_OBJECTS * 3 // 4, 16


class Token(msgspec.Struct, array_like=True, frozen=True):
    """Where the next page begins: in this bucket (−1: the network's own rows), after this key."""

    bucket: Annotated[int, msgspec.Meta(ge=WHOLE, lt=2**32)]
    after: bytes = b""


#: objects that an address may bring: itself and its peer
NEW = 2
_token = msgspec.msgpack.Decoder(Token).decode
_encode = msgspec.msgpack.Encoder().encode


class Found(msgspec.Struct):
    """A page's addresses and the peers that they name, each once."""

    objects: list[Object] = []
    hosts: set[str] = set()

    @property
    def full(self) -> bool:
        """Whether there may be no room for another."""
        return len(self.objects) > MAX_OBJECTS - NEW


class Snapshots:
    """What hosts should have, read from the store."""

    def __init__(self, store: Store, ground: Ground, hosts: Hosts) -> None:
        self._store = store
        self._ground = ground
        self._hosts = hosts

    async def page(self, host: str, pull: Pull) -> Page:
        """One page of what is asked for; `denied` when the host has no business there."""
        if pull.what == What.HOST:
            return await self._host_page(host, pull.token)
        if pull.what == What.GROUP:
            return await self._group_page(pull.scope)
        if len(pull.scope) != 16:
            return Page(denied="no such network")
        number = number_of(Id(pull.scope))
        if number not in {number_of(Id(id_)) for id_ in await reads.ids_on(self._store, host)}:
            return Page(denied=f"host {host} has no port in this network")
        view = await self._ground.network_view(number, fresh=True)
        network: Network | None = view.get(Kind.NETWORK)
        if network is None or network.id != pull.scope:
            return Page(denied="no such network")
        try:
            token = _token(pull.token) if pull.token else None
        except msgspec.DecodeError:
            return Page(denied="the page token is none of ours")
        if pull.what == What.BUCKET:
            return await self._bucket_page(network, pull, token)
        return await self._network_page(network, view, token)

    async def _host_page(self, host: str, token: bytes) -> Page:
        ids = await reads.ids_on(self._store, host, token, MAX_OBJECTS)
        rows = await reads.ports(self._store, ids)
        objects = [item for row in rows.values() if (item := for_host(row, host)) is not None]
        return Page(tuple(objects), ids[-1] if len(ids) == MAX_OBJECTS else b"")

    async def _group_page(self, group: bytes) -> Page:
        item = await self.group(group)
        return Page((item,)) if item else Page(denied="no such security group")

    async def group(self, group: bytes) -> Group | None:
        """The group object as the store has it now."""
        if len(group) != 16:
            return None
        view = await self._ground.partitions.view(GROUPS, (home_of(Id(group)),), fresh=True)
        row = view.get(Kind.GROUP)
        if row is None or row.id != group:
            return None
        return goals.group(row, view.all(Kind.RULE).values(), view.top)

    async def _network_page(self, network: Network, view: View, token: Token | None) -> Page:
        buckets = sorted(int.from_bytes(key, "big") for key in view.all(Kind.BUCKET))
        if token is None:
            objects: list[Object] = [goals.network(network)]
            objects += [goals.subnet(row) for row in view.all(Kind.SUBNET).values() if not row.deleting]
            return self._identities(network, objects, _meaning(view), 0, view.top, buckets)
        if token.bucket == WHOLE:
            start = int.from_bytes(token.after, "big")
            left = [row for row in _meaning(view) if row.number > start]
            return self._identities(network, [], left, start, view.top, buckets)
        return await self._buckets_page(network, [each for each in buckets if each >= token.bucket], token)

    async def _buckets_page(self, network: Network, buckets: list[int], token: Token) -> Page:
        """A page of addresses, of as many buckets as it has room for."""
        found = Found()
        spans: list[Span] = []
        after, following = token.after if buckets[:1] == [token.bucket] else b"", b""
        for number, bucket in enumerate(buckets):
            if number == BUCKETS or found.full:
                following = _encode(Token(bucket))
                break
            key, top = await self._addresses(network, bucket, after, 0, found)
            if not after:
                spans.append(Span(bucket, 0, top))
            if key:
                following = _encode(Token(bucket, key))
                break
            after = b""
        return Page(tuple(found.objects), following, tuple(spans))

    def _identities(
        self,
        network: Network,
        objects: list[Object],
        identities: Sequence[Identity],
        start: int,
        top: int,
        buckets: list[int],
    ) -> Page:
        """A page of the network's own rows; identities are numbered, so a page begins after a number."""
        room = ROWS - min(len(objects), ROWS // 2)
        page = identities[:room]
        objects += [goals.identity(network.id, row) for row in page]
        spans = (Span(WHOLE, 0, top),) if not start else ()
        if len(identities) > room:
            last = page[-1].number
            return Page(tuple(objects), _encode(Token(WHOLE, last.to_bytes(2, "big"))), spans)
        return Page(tuple(objects), _encode(Token(buckets[0])) if buckets else b"", spans)

    async def _bucket_page(self, network: Network, pull: Pull, token: Token | None) -> Page:
        after = token.after if token else b""
        found = Found()
        key, top = await self._addresses(network, pull.part, after, pull.since, found)
        spans = (Span(pull.part, pull.since, top),) if token is None else ()
        following = _encode(Token(pull.part, key)) if key else b""
        return Page(tuple(found.objects), following, spans, whole=not pull.since)

    async def _addresses(
        self, network: Network, bucket: int, after: bytes, since: int, found: Found
    ) -> tuple[bytes, int]:
        """Find neighbours of a bucket above `since`, and the peers they name, until the page is full.

        Says the key to go on from, if there may be more, and the bucket's top.
        """
        view = await reads.bucket(self._ground.partitions, (network.number, bucket))
        top, rows = view.top, sorted((ip, row) for ip, row in view.all(Kind.IP).items() if ip > after)
        done = after
        for ip, address in rows:
            if found.full:
                return done, top
            done = ip
            if address.rev <= since:
                continue
            if not since and address.state != AddressState.USED:
                continue  # who knows nothing need not hear of what is not there
            found.objects.append(goals.neighbour(network.id, ip, address))
            if address.host and address.host not in found.hosts:
                found.hosts.add(address.host)
                await self._describe(network, address.host, found)
        return b"", top

    async def _describe(self, network: Network, host: str, found: Found) -> None:
        """Find a neighbour's peer too."""
        if self._hosts.get(host) is None:
            await self._hosts.fetch(host)
        if (peer := self._hosts.peer(network.id, host)) is not None:
            found.objects.append(peer)

    # -- digests ----------------------------------------------------------------------------------------------------

    async def sync(self, host: str, digest: Sync) -> Synced:
        """The scopes in which the host's digest differs from the store, each as the pull that mends it."""
        pulls: list[Pull] = []
        ids = await reads.ids_on(self._store, host)
        rows = await reads.ports(self._store, ids)
        objects = [for_host(row, host) for row in rows.values()]
        wanted = {item.id: item.rev for item in objects if isinstance(item, goal.Port)}
        if dict(digest.ports) != wanted:
            pulls.append(Pull(What.HOST))
        for network in digest.networks:
            pulls += await self._compare(network)
        for group, rev in digest.groups:
            item = await self.group(group)
            if item is None or item.rev != rev:
                pulls.append(Pull(What.GROUP, group))
        return Synced(tuple(pulls), epoch=self._hosts.epoch(host))

    async def _compare(self, digest: NetworkDigest) -> list[Pull]:
        whole = [Pull(What.NETWORK, digest.id)]
        if len(digest.id) != 16:
            return whole
        number = number_of(Id(digest.id))
        view = await self._ground.network_view(number, fresh=True)
        network: Network | None = view.get(Kind.NETWORK)
        tops = dict(digest.tops)
        if network is None or network.id != digest.id or tops.pop(WHOLE, 0) != view.top:
            return whole
        for name, rev in digest.peers:
            row = self._hosts.get(name)
            if row is not None and (row.rev != rev or row.state != HostState.UP):
                return whole
        pulls = []
        for key in view.all(Kind.BUCKET):
            bucket = int.from_bytes(key, "big")
            read = await self._store.read(PORTS, (number, bucket), limit=1)
            top = cast(int, read.statics[0] or 0) if read.exists else 0
            known = tops.get(bucket, 0)
            if known != top:
                pulls.append(Pull(What.BUCKET, digest.id, bucket, known if known < top else 0))
        return pulls


def _meaning(view: View) -> list[Identity]:
    """The numbers that mean something, in order."""
    rows: Iterable[Identity] = view.all(Kind.IDENTITY).values()
    return sorted((row for row in rows if row.state < NumberState.RESTING), key=lambda row: row.number)


def for_host(row: Port, host: str) -> Object | None:
    """What a host should hold of a port: all of it, its tombstone, or nothing while another host must let go first."""
    if row.host == host and not row.leaving:
        return goals.port_gone(row) if row.state == PortState.DELETING else goals.port(row)
    return goals.port_gone(row) if row.leaving == host else None
