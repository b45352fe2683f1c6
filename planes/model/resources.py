"""What tenants own, as the store keeps it: one immutable Struct per row kind, encoded as a msgpack array.

Fields are only ever appended, with a default. `rev` is the row's revision (rule §0 of docs/southbound.md); equal key
and revision mean equal content. Times are microseconds since the epoch. Addresses are bytes. Pure.
"""

from enum import IntEnum
from typing import Any

import msgspec
from msgspec import Struct

from planes.model.ids import Id


class Body(Struct, array_like=True, frozen=True, gc=False):
    """Base of every stored body."""


class NetworkState(IntEnum):
    """Static column `state` of a partition of `networks` and of `groups`."""

    ACTIVE = 0
    DELETING = 1


class Network(Body, frozen=True):
    id: Id
    number: int  # 40 random bits: the partition
    vni: int
    project: str
    name: str = ""
    description: str = ""
    admin_up: bool = True
    shared: bool = False
    mtu: int = 1450
    port_security: bool = True
    created: int = 0
    updated: int = 0
    rev: int = 0
    change: bytes = b""  # request id of the last change
    availability_hints: tuple[str, ...] = ()


class Subnet(Body, frozen=True):
    id: Id
    network: Id
    project: str
    first: int  # first address of the prefix, as an integer
    prefix: int
    gateway: bytes = b""  # empty: none
    pools: tuple[tuple[int, int], ...] = ()  # inclusive ranges, sorted
    name: str = ""
    description: str = ""
    dhcp: bool = True
    dns: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()  # (destination, next hop)
    created: int = 0
    updated: int = 0
    rev: int = 0
    deleting: bool = False
    change: bytes = b""


class NumberState(IntEnum):
    """What becomes of a number whose set of groups no port has any more (rule I2)."""

    USED = 0
    DOUBTED = 1  # no port was seen to have it; who wants the set sets it to USED before its port is committed
    RESTING = 2  # certainly no port has it; hosts have been told that it means nothing
    FREE = 3  # nor had any after the rest: it may be given to another set


class Identity(Body, frozen=True):
    """One distinct set of security groups in a network; number and groups are immutable (rule I1)."""

    number: int
    groups: tuple[Id, ...]  # sorted
    rev: int = 0  # since when hosts are told what they are told now: this meaning, or (RESTING, FREE) none
    state: int = NumberState.USED
    since: int = 0  # DOUBTED: the revision of that; RESTING, FREE: µs since when


class PortState(IntEnum):
    LIVE = 0
    DELETING = 1  # gone for the API; its addresses are being released


class Port(Body, frozen=True):
    id: Id
    network: Id
    project: str
    mac: bytes
    fixed: tuple[tuple[Id, bytes], ...]  # (subnet, address)
    groups: tuple[Id, ...] = ()
    identity: int = 0  # number of the group set in the network; 0: port security off
    host: str = ""
    leaving: str = ""  # the host that must let go before `host` is told (re-bind)
    name: str = ""
    description: str = ""
    device_id: str = ""
    device_owner: str = ""
    vnic_type: str = "normal"
    admin_up: bool = True
    security: bool = True
    pairs: tuple[tuple[str, str], ...] = ()  # allowed address pairs: (address or prefix, MAC or empty)
    profile: dict[str, Any] = {}
    state: int = PortState.LIVE
    created: int = 0
    updated: int = 0
    rev: int = 0
    goal_rev: int = 0  # the last revision that matters to a kernel
    change: bytes = b""  # request id of the change that made `goal_rev`
    traceparent: str = ""
    releasing: tuple[bytes, ...] = ()  # addresses taken off the port that its host has not let go of yet


class AddressState(IntEnum):
    CLAIMED = 0  # taken by a port whose home is another bucket, not yet committed there
    USED = 1
    RELEASING = 2  # its port was deleted; the old host has not let go of it yet
    FREE = 3  # may be had again 60 s after `since`; the row stays, so that its revision goes on rising (rule S2)


class Address(Body, frozen=True):
    """An IP row; the neighbour that hosts learn is a function of this row alone."""

    port: Id
    subnet: Id
    mac: bytes
    host: str = ""
    identity: int = 0
    state: int = AddressState.USED
    since: int = 0
    rev: int = 0


class MacRow(Body, frozen=True):
    port: Id
    since: int = 0  # µs


class Group(Body, frozen=True):
    id: Id
    project: str
    name: str = ""
    description: str = ""
    stateful: bool = True
    created: int = 0
    updated: int = 0
    rev: int = 0
    change: bytes = b""


class Direction(IntEnum):
    INGRESS = 0
    EGRESS = 1


class Rule(Body, frozen=True):
    id: Id
    group: Id
    project: str
    direction: int
    ethertype: int = 4  # 4 or 6
    protocol: int = -1  # IP protocol number; -1: any
    port_min: int = -1  # ports, or ICMP type; -1: any
    port_max: int = -1  # ports, or ICMP code; -1: any
    remote_group: bytes = b""
    remote_first: bytes = b""  # remote prefix: first address; empty: any
    remote_prefix: int = 0
    protocol_text: str = ""  # as it was asked for
    description: str = ""
    created: int = 0
    rev: int = 0


class HostState(IntEnum):
    UP = 0
    FENCED = 1  # declared dead for good: its peers are withdrawn, its addresses may be given away (rule S20)
    PLANNED = 2  # known to the operator, no agent has registered yet
    REMOVED = 3  # taken off the books; the row stays, so that its epoch goes on rising


class Host(Body, frozen=True):
    """The body of a `hosts` row; epoch, machine, vtep, cell and state are columns of their own."""

    number: int = 0
    registered: int = 0
    capabilities: tuple[str, ...] = ()
    version: str = ""
    description: str = ""
    attempt: bytes = b""  # of the last registration


class Slot(Body, frozen=True):
    """A claim of one number in a space: who has it."""

    owner: bytes
    at: int = 0


encode = msgspec.msgpack.Encoder().encode
