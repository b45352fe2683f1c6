"""The control plane's side of the southbound contract over a dictionary, for tests of the agent.

It follows the contract to the letter: stateless pages, spans, tombstones for a while, acks stored before they are
answered. A test changes `rows` through `put` and `gone`, and decides what is published.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable

from msgspec import Struct

from planes.bus.protocol import Bus, Disconnected, Incoming
from planes.goalstate import codec
from planes.goalstate.codec import Message
from planes.goalstate.messages import (
    WHOLE,
    Ack,
    Applied,
    Beacon,
    Beat,
    Goal,
    Gone,
    Group,
    Key,
    Neighbour,
    NetworkDigest,
    Object,
    ObjectKind,
    Ok,
    Page,
    Peer,
    Port,
    Pull,
    Register,
    Registered,
    Span,
    Sync,
    Synced,
    What,
)
from planes.goalstate.subjects import Subjects
from planes.model.addresses import bucket, vtep_mac

PAGE = 3  # objects; small, so that snapshots have pages


class HostRow(Struct):
    epoch: int = 0
    number: int = 0
    machine: str = ""
    vtep: bytes = b""


class FakeControl:
    """One control instance that holds the truth in memory."""

    def __init__(self, bus: Bus, now_us: Callable[[], int], instance: str = "c1") -> None:
        self.bus = bus
        self.subjects = Subjects()
        self.instance = instance
        self.hosts: dict[str, HostRow] = {}
        self.port_host: dict[bytes, str] = {}
        self.rows: dict[Key, Object] = {}
        self.tops: dict[tuple[bytes, int], int] = {}
        self.acked: list[tuple[str, Applied]] = []
        self.beats: list[Beat] = []
        self.syncs: list[Sync] = []
        self.pulls: list[Pull] = []
        self.refuse: Callable[[str], bool] = lambda subject: False  # subjects that get no answer
        self.answer: Callable[[str, Message], bytes | None] = lambda subject, message: None  # other bytes instead
        self._registrations: set[str] = set()
        self._revs = itertools.count(1000)
        self._now = now_us

    async def start(self) -> None:
        await self.bus.connect()
        for subject in (self.subjects.pulls, self.subjects.syncs, self.subjects.beats, self.subjects.acks):
            await self.bus.subscribe(subject, self._asked, queue="control")
        await self.bus.flush()

    # -- the truth --------------------------------------------------------------------------------------------------

    def rev(self) -> int:
        return next(self._revs)

    def put(self, item: Object, host: str = "") -> tuple[Object, Span | None]:
        """Store an object as it is; returns it with the stretch of its partition that it completes."""
        if item.key[0] == ObjectKind.PORT and host:
            self.port_host[item.key[2]] = host
        self.rows[item.key] = item
        return item, self._span(item)

    def _span(self, item: Object) -> Span | None:
        kind, scope, id_ = item.key
        if kind in (ObjectKind.PORT, ObjectKind.GROUP, ObjectKind.PEER):
            return None
        part = bucket(id_) if kind == ObjectKind.NEIGHBOUR else WHOLE
        prev = self.tops.get((scope, part), 0)
        self.tops[scope, part] = max(prev, item.rev)
        return Span(part, prev, item.rev)

    def message(self, items: Iterable[tuple[Object, Span | None]], epoch: int = 0) -> bytes:
        """The bytes of a goal message."""
        pairs = list(items)
        goal = Goal(tuple(item for item, _ in pairs), tuple(s for _, s in pairs if s), self.instance, self._now())
        return codec.encode(goal, self.instance, epoch)

    def subject(self, item: Object) -> str:
        kind, scope, id_ = item.key
        if kind == ObjectKind.PORT:
            return self.subjects.host(self.port_host[id_])
        return self.subjects.group(id_) if kind == ObjectKind.GROUP else self.subjects.network(scope)

    def publish(self, *stored: tuple[Object, Span | None]) -> None:
        """Tell whoever listens."""
        for item, span in stored:
            kind, _, id_ = item.key
            host = self.hosts.get(self.port_host.get(id_, "")) if kind == ObjectKind.PORT else None
            try:
                self.bus.publish(self.subject(item), self.message([(item, span)], host.epoch if host else 0))
            except Disconnected:
                pass

    def say(self, item: Object, host: str = "") -> None:
        """Store and publish."""
        self.publish(self.put(item, host))

    def beacon(self) -> None:
        message = codec.encode(Beacon(self.instance, self._now()), self.instance)
        try:
            self.bus.publish(self.subjects.beacon(self.instance), message)
        except Disconnected:
            pass

    def status(self, id_: bytes) -> Applied | None:
        """The last that a host said of a port."""
        return next((item for _, item in reversed(self.acked) if item.id == id_), None)

    # -- requests ---------------------------------------------------------------------------------------------------

    def _asked(self, message: Incoming) -> None:
        verb = message.subject.split(".")[1]
        token = self.subjects.host_of(message.subject)
        if self.refuse(message.subject):
            return
        if verb == "ack":
            envelope, ack = codec.decode(message.data, Ack)
            self.acked += [(envelope.sender, item) for item in ack.items]
            self._reply(message, Ok(self.hosts[envelope.sender].epoch))
        elif verb == "beat":
            envelope, beat = codec.decode(message.data, Beat)
            self.beats.append(beat)
            row = self.hosts.get(envelope.sender)
            self._reply(message, Ok(row.epoch if row else 0))
        elif verb == "sync":
            envelope, sync = codec.decode(message.data, Sync)
            self.syncs.append(sync)
            self._reply(message, Synced(tuple(self._differences(envelope.sender, sync)), 0, self._epoch(token)))
        elif message.subject.endswith(".register"):
            if message.reply not in self._registrations:  # a doubled request is still one
                self._registrations.add(message.reply)
                self._reply(message, self._register(codec.decode(message.data, Register)[1]))
        else:
            envelope, pull = codec.decode(message.data, Pull)
            self.pulls.append(pull)
            self._reply(message, self._page(envelope.sender, pull))

    def _reply(self, message: Incoming, reply: Message) -> None:
        data = self.answer(message.subject, reply)
        self.bus.publish(message.reply, codec.encode(reply, self.instance) if data is None else data)

    def _epoch(self, token: str) -> int:
        row = self.hosts.get(token)
        return row.epoch if row else 0

    def _register(self, asked: Register) -> Registered:
        row = self.hosts.setdefault(asked.host, HostRow(number=int(asked.host[1:])))
        if row.machine not in ("", asked.machine):
            return Registered(refused=f"host {asked.host} is alive on another machine")
        row.epoch = max(row.epoch, asked.epoch) + 1
        row.machine, row.vtep = asked.machine, asked.vtep
        return Registered(row.epoch, row.number)

    def peer(self, network: bytes, host: str) -> Peer:
        row = self.hosts[host]
        return Peer(network, host, row.epoch + 500, row.epoch, row.vtep, vtep_mac(row.number))

    def _page(self, host: str, pull: Pull) -> Page:
        if pull.what == What.HOST:
            items = [i for k, i in self.rows.items() if k[0] == 6 and self.port_host.get(k[2]) == host]
            return _pages(items, pull, ())
        if pull.what == What.GROUP:
            item = self.rows.get((7, pull.scope, pull.scope))
            return Page((item,)) if isinstance(item, Group) else Page(denied="no such security group")
        networks = {i.network for i in self.rows.values() if isinstance(i, Port) and self.port_host[i.id] == host}
        if pull.scope not in networks:
            return Page(denied="no port in this network")
        if pull.what == What.BUCKET:
            top = self.tops.get((pull.scope, pull.part), 0)
            return _pages(self._addresses(pull.scope, pull.part, pull.since), pull, (Span(pull.part, pull.since, top),))
        own: list[Object] = [
            i for k, i in self.rows.items() if k[1] == pull.scope and k[0] in (1, 2, 3) and not isinstance(i, Gone)
        ]
        parts = sorted(part for network, part in self.tops if network == pull.scope and part != WHOLE)
        spans = [Span(WHOLE, 0, self.tops.get((pull.scope, WHOLE), 0))]
        for part in parts:
            own += self._addresses(pull.scope, part, 0)
            spans.append(Span(part, 0, self.tops[pull.scope, part]))
        return _pages(own, pull, tuple(spans))

    def _addresses(self, network: bytes, part: int, since: int) -> list[Object]:
        items = [
            item
            for key, item in self.rows.items()
            if key[0] == 5 and key[1] == network and bucket(key[2]) == part and item.rev > since
            if since or not isinstance(item, Gone)
        ]
        hosts = {item.host for item in items if isinstance(item, Neighbour)}
        return [*items, *(self.peer(network, host) for host in sorted(hosts) if host in self.hosts)]

    def _differences(self, host: str, digest: Sync) -> Iterable[Pull]:
        ports = {i.id: i.rev for i in self.rows.values() if isinstance(i, Port) and self.port_host[i.id] == host}
        if dict(digest.ports) != ports:
            yield Pull(What.HOST)
        for network in digest.networks:
            yield from self._compare(network)
        for group, rev in digest.groups:
            item = self.rows.get((7, group, group))
            if item is None or item.rev != rev:
                yield Pull(What.GROUP, group)

    def _compare(self, digest: NetworkDigest) -> Iterable[Pull]:
        tops = dict(digest.tops)
        peers = {host: self.peer(digest.id, host).rev for host, _ in digest.peers if host in self.hosts}
        if tops.pop(WHOLE, 0) != self.tops.get((digest.id, WHOLE), 0) or any(
            peers.get(host, rev) != rev for host, rev in digest.peers
        ):
            yield Pull(What.NETWORK, digest.id)
            return
        for (network, part), top in self.tops.items():
            if network == digest.id and part != WHOLE and tops.get(part, 0) != top:
                known = tops.get(part, 0)
                yield Pull(What.BUCKET, digest.id, part, known if known < top else 0)

    async def beacons(self, every: float = 10.0) -> None:
        """Send beacons for ever."""
        while True:
            self.beacon()
            await asyncio.sleep(every)


def _pages(items: list[Object], pull: Pull, spans: tuple[Span, ...]) -> Page:
    """A page of a list whose order does not change between requests."""
    ordered = sorted(items, key=lambda item: item.key)
    start = 0
    if pull.token:
        kind, scope, id_ = pull.token[0], pull.token[2 : 2 + pull.token[1]], pull.token[2 + pull.token[1] :]
        start = next((n for n, item in enumerate(ordered) if item.key > (kind, scope, id_)), len(ordered))
    page = ordered[start : start + PAGE]
    token = b""
    if start + PAGE < len(ordered):
        kind, scope, id_ = page[-1].key
        token = bytes((kind, len(scope))) + scope + id_
    return Page(tuple(page), token, spans if not pull.token else (), whole=not pull.since)
