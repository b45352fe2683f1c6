"""What makes a kernel match goal state: the protocol between the agent and a data plane, and its vocabulary.

Called by `agent`; implemented by `planes.data.linux` (a real kernel) and `planes.data.memory` (a fake one that answers
"does this packet arrive?"). A driver is declarative and idempotent: the same spec may be put any number of times, a
missing thing may be dropped. It decides nothing: what should exist is the agent's business, in which order the kernel
is told is the driver's (rule N13: policy, link, neighbour; removal in reverse; no port forwards before its policy).

The words say nothing of routes, bridges or tables, so that a data plane of another kind fits behind them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct


class SubnetSpec(Struct, frozen=True, gc=False):
    first: bytes
    prefix: int
    gateway: bytes = b""  # empty: none


class NetworkSpec(Struct, frozen=True, gc=False):
    """A network on this host: an isolated routing domain."""

    network: bytes
    vni: int
    mtu: int
    subnets: tuple[SubnetSpec, ...] = ()

    @property
    def key(self) -> "SpecKey":
        return ("network", self.network, b"")


class MembersSpec(Struct, frozen=True, gc=False):
    """Which identities of a network carry a security group; what a remote-group rule matches."""

    network: bytes
    group: bytes
    identities: frozenset[int]

    @property
    def key(self) -> "SpecKey":
        return ("members", self.network, self.group)


class RuleSpec(Struct, frozen=True, gc=False, order=True):
    """Accept what matches; -1 and empty mean any."""

    egress: bool
    protocol: int = -1
    port_min: int = -1  # ICMP: type
    port_max: int = -1  # ICMP: code
    remote_group: bytes = b""
    remote_first: bytes = b""
    remote_prefix: int = 0


class PolicySpec(Struct, frozen=True, gc=False):
    """All that ports of one identity may send and receive; the union of the rules of the identity's groups.

    Stateful: replies to what was accepted pass. Nothing else does. Rules are IPv4 only, sorted, without duplicates.
    """

    network: bytes
    identity: int
    rules: tuple[RuleSpec, ...]

    @property
    def key(self) -> "SpecKey":
        return ("policy", self.network, self.identity.to_bytes(2, "big"))


class PortSpec(Struct, frozen=True, gc=False):
    """A local port. With `security` off it may send anything as anyone and receives anything; its identity is 0."""

    network: bytes
    id: bytes
    mac: bytes
    ips: tuple[bytes, ...]
    identity: int
    admin_up: bool = True
    security: bool = True
    pairs: tuple[tuple[bytes, int, bytes], ...] = ()  # may also speak as: (first address, prefix, MAC or empty: own)

    @property
    def key(self) -> "SpecKey":
        return ("port", self.network, self.id)


class PeerSpec(Struct, frozen=True, gc=False):
    """Another host that is in the network, known by the MAC of its tunnel end."""

    network: bytes
    mac: bytes
    vtep: bytes

    @property
    def key(self) -> "SpecKey":
        return ("peer", self.network, self.mac)


class RemoteSpec(Struct, frozen=True, gc=False):
    """An address of the network that lives behind a peer."""

    network: bytes
    ip: bytes
    via: bytes  # the peer's MAC

    @property
    def key(self) -> "SpecKey":
        return ("remote", self.network, self.ip)


Spec = NetworkSpec | MembersSpec | PolicySpec | PortSpec | PeerSpec | RemoteSpec
SpecKey = tuple[str, bytes, bytes]  # (kind, network, what)

#: the order in which kinds come to life; they go in reverse
ORDER = ("network", "members", "policy", "port", "peer", "remote")


class Transaction(Struct, frozen=True):
    """One exchange with the kernel: by what, how many messages, when (µs since the epoch) and how long (µs)."""

    what: str
    messages: int
    start: int
    duration: int


class DriverError(Exception):
    """The data plane as a whole cannot work here: no privilege, no kernel support. Says what is missing."""


class Driver(Protocol):
    """One host's data plane. One caller at a time."""

    async def open(self, vtep: bytes, vtep_mac: bytes) -> None:
        """Get ready; take over what already bears our mark. `vtep`: this host's underlay address (4 bytes)."""

    async def held(self) -> Mapping[SpecKey, Spec | None]:
        """What exists now and is ours, read from the kernel itself; None: it may look otherwise than any spec says.

        Peers and remotes are read whole, so that an agent that comes back need not put again what is right.
        """

    async def apply(self, puts: Iterable[Spec], drops: Iterable[SpecKey]) -> Mapping[SpecKey, str]:
        """Bring about all of `puts` and remove all of `drops`. Returns the reason for each key that failed.

        One bad object does not keep others from being applied. Never raises for what a kernel answers.
        """

    def transactions(self) -> Sequence[Transaction]:
        """What the last `apply` asked of the kernel, in order; a bounded number of them."""

    async def audit(self) -> frozenset[SpecKey]:
        """What others may have damaged since the last call; a network's key stands for everything in it.

        Cheap when there is nothing. Putting what is named mends it; what has a name nobody put is to be passed over.
        """

    async def surplus(self, known: Mapping[SpecKey, Spec | None]) -> Mapping[SpecKey, Spec | None]:
        """What is there beyond what is `known` to be, or otherwise, as it is (None: what it is like is not said).

        `known` is what `held` told and what was applied since. Of peers, remotes, and ports with addresses too many.
        Of a host with much some is looked at by each call, so that the calls together cost next to nothing. It changes
        nothing: dropping what is named removes it, putting it mends it.
        """

    async def drops(self) -> dict[str, int]:
        """How many packets were dropped, by reason; no number ever falls while the driver is open.

        Of a host with many networks some are read by each call, so that a call costs the same everywhere.
        """

    def counters(self) -> dict[str, int]:
        """What was counted since the start, without asking the kernel: repairs, errors."""

    async def close(self) -> None:
        """Let go of sockets and files. Packets keep flowing."""
