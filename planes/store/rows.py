"""Rows of the guarded tables as typed objects: which Struct each kind holds, and how a row becomes bytes and back.

Used by `partitions` and by whoever reads a partition directly. Pure.
"""

from typing import Any

import msgspec

from planes.model.addresses import bucket
from planes.model.enums import Kind
from planes.model.ids import bucket_of
from planes.model.resources import (
    Address,
    AddressState,
    Body,
    Group,
    Identity,
    MacRow,
    Network,
    Port,
    PortState,
    Rule,
    Slot,
    Subnet,
)
from planes.store.protocol import Values


class Mark(Body, frozen=True):
    """A row that says no more than that its key exists: a bucket, a void id, a default group's id."""

    value: bytes = b""
    rev: int = 0


STRUCTS: dict[int, type[Body]] = {
    Kind.NETWORK: Network,
    Kind.SUBNET: Subnet,
    Kind.IDENTITY: Identity,
    Kind.BUCKET: Mark,
    Kind.PORT: Port,
    Kind.IP: Address,
    Kind.MAC: MacRow,
    Kind.VOID: Mark,
    Kind.GROUP: Group,
    Kind.RULE: Rule,
    Kind.SLOT: Slot,
    Kind.DEFAULT_GROUP: Mark,
}
_DECODERS: dict[int, Any] = {kind: msgspec.msgpack.Decoder(struct).decode for kind, struct in STRUCTS.items()}
_encode = msgspec.msgpack.Encoder().encode


def decode(kind: int, body: Any) -> Any:
    """The object in a row's body."""
    return _DECODERS[kind](body)


def to_row(kind: int, key: bytes, rev: int, body: Body) -> Values:
    """(kind, key, rev, body) as the table holds it."""
    return (int(kind), key, rev, _encode(body))


def own_mac(port: Port) -> bytes:
    """The MAC that a port's own row claims, so that no row of its own need be stored; empty: it lies elsewhere.

    A port lives in its MAC's bucket until the MAC is changed to one of another.
    """
    return port.mac if bucket(port.mac) == bucket_of(port.id) else b""


def own_addresses(port: Port) -> list[tuple[bytes, Address]]:
    """The addresses of its home bucket as a live port's own row tells of them, so that no rows of their own need be
    stored: used since, and at the revision of, the last change that matters to a kernel.

    That is what a create writes, and what a change of the host, the groups or the MAC does.
    """
    if port.state != PortState.LIVE:
        return []
    home, host, rev = bucket_of(port.id), port.leaving or port.host, port.goal_rev
    return [
        (ip, Address(port.id, subnet, port.mac, host, port.identity, AddressState.USED, rev, rev))
        for subnet, ip in port.fixed
        if bucket(ip) == home
    ]


def tells(port: Port, ip: bytes, address: Address) -> bool:
    """Whether that is what `own_addresses` has of an address of the port's home bucket."""
    return (
        address.rev == address.since == port.goal_rev
        and address.port == port.id
        and address.state == AddressState.USED
        and address.host == (port.leaving or port.host)
        and address.mac == port.mac
        and address.identity == port.identity
        and port.state == PortState.LIVE
        and (address.subnet, ip) in port.fixed
    )
