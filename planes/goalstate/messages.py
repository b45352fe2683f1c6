"""The southbound contract: every object and message between control and hosts, as msgspec Structs.

Who uses it: `planes.control` and `agent`, and third parties with a data plane of their own. docs/southbound.md explains
it; tests/contract holds golden bytes. What must never happen: a field inserted, removed or reordered. Fields are only
appended, with a default; readers ignore what they do not know. Every body starts with an `Envelope`.

An *object* is complete and revisioned; its key is (kind, scope, id). A `Gone` is the tombstone of a key.
Addresses are bytes (4 for IPv4; 16 reserved for IPv6), MACs 6 bytes, ids 16 bytes, times µs since the epoch.

Version history
    1   networks, subnets, identities, peers, neighbours, ports, groups, tombstones; register, pull, sync, beat, beacon;
        events
"""

from enum import IntEnum
from typing import Annotated

from msgspec import Meta, Struct

VERSION = 1
#: what hosts say in numbers goes into the store, which has 64 bits with a sign
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class MessageKind(IntEnum):
    """`Envelope.kind`: how to read the body."""

    GOAL = 1
    ACK = 2
    REGISTER = 3
    PULL = 4
    SYNC = 5
    BEAT = 6
    BEACON = 7
    REPLY = 8  # bodies of replies: which Struct follows from the request
    EVENTS = 9
    FINISHED = 10
    STORED = 11


class Envelope(Struct, array_like=True, frozen=True, gc=False):
    """The head of every message. `key_epoch` 0 means that `body` is in clear; otherwise it is sealed with that key."""

    version: int
    kind: int
    sender: str  # instance or host
    epoch: int  # of the host that sends, or that is addressed on goal.host; 0 where it has no meaning
    key_epoch: int
    body: bytes


class ObjectKind(IntEnum):
    """First part of an object's key; also its tag on the wire."""

    NETWORK = 1
    SUBNET = 2
    IDENTITY = 3
    PEER = 4
    NEIGHBOUR = 5
    PORT = 6
    GROUP = 7
    # 8 route, 9 link, 10 router, 11 grant, 12 floating address: reserved
    GONE = 0


Key = tuple[int, bytes, bytes]  # (kind, scope, id)


class Network(Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Key (1, id, id)."""

    id: bytes
    rev: int
    vni: int
    mtu: int
    admin_up: bool = True
    mode: int = 0  # 0: push

    @property
    def key(self) -> Key:
        return (1, self.id, self.id)


class Subnet(Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Key (2, network, id)."""

    network: bytes
    id: bytes
    rev: int
    first: bytes
    prefix: int
    gateway: bytes = b""

    @property
    def key(self) -> Key:
        return (2, self.network, self.id)


class Identity(Struct, array_like=True, frozen=True, gc=False, tag=3):
    """A number that stands for one distinct set of security groups. Key (3, network, number as 2 bytes)."""

    network: bytes
    number: int
    rev: int
    groups: tuple[bytes, ...]

    @property
    def key(self) -> Key:
        return (3, self.network, self.number.to_bytes(2, "big"))


class Peer(Struct, array_like=True, frozen=True, gc=False, tag=4):
    """Where a host's tunnel ends. Key (4, network, host name)."""

    network: bytes
    host: str
    rev: int
    epoch: int
    vtep: bytes
    mac: bytes

    @property
    def key(self) -> Key:
        return (4, self.network, self.host.encode())


class Neighbour(Struct, array_like=True, frozen=True, gc=False, tag=5):
    """This address is on that host. Key (5, network, ip). A freed address is a `Gone`."""

    network: bytes
    ip: bytes
    rev: int
    host: str
    identity: int = 0
    mac: bytes = b""

    @property
    def key(self) -> Key:
        return (5, self.network, self.ip)


class Port(Struct, array_like=True, frozen=True, gc=False, tag=6):
    """A whole port, for its binding host; acknowledged. Key (6, empty, id)."""

    id: bytes
    rev: int
    network: bytes
    mac: bytes
    ips: tuple[bytes, ...]
    identity: int
    groups: tuple[bytes, ...]
    admin_up: bool = True
    security: bool = True
    pairs: tuple[tuple[bytes, int, bytes], ...] = ()  # allowed address pairs: (first address, prefix, MAC or empty)
    change: bytes = b""  # request id of the change that made this revision

    @property
    def key(self) -> Key:
        return (6, b"", self.id)


class Rule(Struct, array_like=True, frozen=True, gc=False):
    """One rule of a group. -1: any. `remote_group` and `remote_first` are exclusive; both empty: any address."""

    egress: bool
    ethertype: int  # 4 or 6
    protocol: int = -1
    port_min: int = -1  # ICMP: type
    port_max: int = -1  # ICMP: code
    remote_group: bytes = b""
    remote_first: bytes = b""
    remote_prefix: int = 0


class Group(Struct, array_like=True, frozen=True, gc=False, tag=7):
    """A security group with all its rules under one revision. Key (7, id, id)."""

    id: bytes
    rev: int
    rules: tuple[Rule, ...]
    stateful: bool = True

    @property
    def key(self) -> Key:
        return (7, self.id, self.id)


class Gone(Struct, array_like=True, frozen=True, gc=False, tag=0):
    """Tombstone of a key: whatever has a lower revision is no more."""

    kind: int
    scope: bytes
    id: bytes
    rev: int
    change: bytes = b""

    @property
    def key(self) -> Key:
        return (self.kind, self.scope, self.id)


Object = Gone | Network | Subnet | Identity | Peer | Neighbour | Port | Group

#: `Span.part` of what lives in the network's or group's own partition rather than in a bucket
WHOLE = -1


class Span(Struct, array_like=True, frozen=True, gc=False):
    """This message carries every change of a partition after `prev` up to and including `top` (rule S7)."""

    part: int  # bucket number, or WHOLE
    prev: int
    top: int


class Goal(Struct, array_like=True, frozen=True, gc=False):
    """Body on goal.host, goal.net and goal.sg. All objects are of the scope that the subject names."""

    objects: tuple[Object, ...]
    spans: tuple[Span, ...] = ()
    author: str = ""  # the control instance whose waiters want to hear the acks
    sent: int = 0


class Applied(Struct, array_like=True, frozen=True, gc=False):
    """One acknowledged key: what was done with that revision, when and how long it took on the host."""

    kind: int
    scope: bytes
    id: bytes
    rev: Natural
    error: str = ""  # empty: applied
    change: bytes = b""
    sent: Natural = 0  # `Goal.sent` of the message; 0 when it came by pull
    received: Natural = 0
    started: Natural = 0  # programming began
    done: Natural = 0


class Ack(Struct, array_like=True, frozen=True, gc=False):
    """Body on ack.<host>.<instance>; a request, repeated until an instance says that it is stored."""

    items: tuple[Applied, ...]


class Ok(Struct, array_like=True, frozen=True, gc=False):
    """Reply to an ack or a beat. `epoch`: the host's present one, as the replier knows it (0: unknown)."""

    epoch: int = 0
    again: int = 0  # seconds; not done, ask again later


#: capability: this host exports spans of what it does under a message's `traceparent`, so that control need not
TRACES = "traces"


class Register(Struct, array_like=True, frozen=True, gc=False):
    """Request on pull.<host>.register: an agent starts."""

    host: str
    machine: str
    vtep: bytes
    epoch: Annotated[int, Meta(ge=0, lt=2**40)] = 0  # of its former life, if it knows
    cell: str = ""
    software: str = ""
    capabilities: tuple[str, ...] = ()
    versions: tuple[int, ...] = (VERSION,)
    attempt: bytes = b""  # the same in a repetition whose reply was lost: one life, one epoch


class Registered(Struct, array_like=True, frozen=True, gc=False):
    """Reply: who the host now is. `refused` is the reason in words; then nothing else counts."""

    epoch: int = 0
    number: int = 0  # the VTEP MAC derives from it
    refused: str = ""
    again: int = 0


class What(IntEnum):
    """What a pull asks for."""

    HOST = 1  # the host's own ports
    NETWORK = 2  # network, subnets, identities, peers (part WHOLE) and all buckets
    BUCKET = 3  # one bucket of a network: what changed above `since`, or all of it
    GROUP = 4


class Pull(Struct, array_like=True, frozen=True, gc=False):
    """Request on pull.<host>.<what>. The page token is stateless: any instance may serve the next page."""

    what: int
    scope: bytes = b""
    part: Annotated[int, Meta(ge=WHOLE, lt=2**32)] = WHOLE
    since: Natural = 0  # BUCKET only: the agent's top; 0: everything
    token: bytes = b""


class Page(Struct, array_like=True, frozen=True, gc=False):
    """One page of a snapshot. `token` empty: the last. `spans`: the tops that the pages so far bring a scope to."""

    objects: tuple[Object, ...] = ()
    token: bytes = b""
    spans: tuple[Span, ...] = ()
    whole: bool = True  # False: only what changed above `since`; nothing may be swept
    again: int = 0  # seconds; over its bound, ask again later
    denied: str = ""  # the host has no business in this scope (any more)


class NetworkDigest(Struct, array_like=True, frozen=True, gc=False):
    """What an agent has received of a network: tops of its parts (WHOLE included), revision of each peer."""

    id: bytes
    tops: tuple[tuple[int, int], ...]
    peers: tuple[tuple[str, int], ...] = ()


class Sync(Struct, array_like=True, frozen=True, gc=False):
    """Request on sync.<host>: digests of what was received, applied or not (rule S11)."""

    ports: tuple[tuple[bytes, int], ...] = ()
    networks: tuple[NetworkDigest, ...] = ()
    groups: tuple[tuple[bytes, int], ...] = ()


class Synced(Struct, array_like=True, frozen=True, gc=False):
    """Reply: the scopes that differ, each to be pulled as it says. Nothing: in sync."""

    pulls: tuple[Pull, ...] = ()
    again: int = 0
    epoch: int = 0


class Beat(Struct, array_like=True, frozen=True, gc=False):
    """Request on beat.<host>: alive; counters and states for health."""

    in_sync: bool = False
    last_sync: int = 0
    ports: int = 0
    counters: dict[str, int] = {}
    reasons: tuple[str, ...] = ()  # why it is not healthy, in words


class Beacon(Struct, array_like=True, frozen=True, gc=False):
    """Body on beacon.<instance>: a control instance is there."""

    instance: str
    now: int
    interval_ms: int = 10_000


class Event(Struct, array_like=True, frozen=True, gc=False):
    """What happened to one object, in short; the REST API tells the rest. Within an object, `revision` orders."""

    id: str  # as the REST API spells it; a host's name
    revision: int
    at: int
    name: str = ""
    status: str = ""
    reason: str = ""  # why a port is not ACTIVE, in words
    network: str = ""  # id
    host: str = ""
    change: str = ""  # request id
    took: int = 0  # µs since the request came


class Events(Struct, array_like=True, frozen=True, gc=False):
    """Body on event.<project>.<resource>.<verb>, for integrators. Hosts' project is empty."""

    project: str
    resource: str  # the REST API's singular: network, port, security_group, …
    verb: str  # create, update, delete, status
    events: tuple[Event, ...]


class Took(Struct, array_like=True, frozen=True, gc=False):
    """One stage of a change on one host, or on control (empty)."""

    name: str
    host: str
    start: int
    duration: int
    error: str = ""


class Done(Struct, array_like=True, frozen=True, gc=False):
    """One change that has come to its end on all hosts."""

    change: str  # request id
    trace: str
    what: str  # "create port"
    object: str  # id of the first object
    count: int
    status: str
    took: int
    stages: tuple[Took, ...]


class Finished(Struct, array_like=True, frozen=True, gc=False):
    """Body on event.<project>.change.finished: how long changes took, and where."""

    project: str
    changes: tuple[Done, ...]


class Stored(Struct, array_like=True, frozen=True, gc=False):
    """Body on stored.<instance>, among control instances: acks to its goals that another instance has kept."""

    host: str
    items: tuple[Applied, ...]
    heard: int
    stored: int
