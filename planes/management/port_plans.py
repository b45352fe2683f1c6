"""From a request for a port to a plan: everything checked that can be, nothing written yet.

Called by `ports`. Raises `planes.model.errors` that name the field and the rule.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from observability.stages import Change
from planes.control import numbers
from planes.goalstate.subjects import check_host
from planes.management.addressing import in_use
from planes.management.context import Context
from planes.model.addresses import (
    bucket,
    cidr_last,
    cidr_text,
    ip_int,
    ip_text,
    mac_text,
    parse_cidr,
    parse_ip,
    parse_mac,
)
from planes.model.enums import Kind
from planes.model.errors import Conflict, Invalid, not_found
from planes.model.ids import Id, home_of, parse, text
from planes.model.requests import AddressPair, FixedIp, PortCreate
from planes.model.resources import Group, Identity, Network, NetworkState, NumberState, Subnet
from planes.store.schema import GROUPS
from planes.store.views import Draft, View

MAX_PROFILE = 4096
VNIC_TYPES = ("normal", "macvtap", "virtio-forwarder")


class Wish(Struct, frozen=True):
    """One fixed IP that a request wants: in this subnet, and this very address if it says so."""

    subnet: Subnet
    ip: bytes = b""


class Fields(Struct, frozen=True, kw_only=True):
    """What a new port is to be, apart from what the store decides."""

    change: Change  # the request's
    network: Network
    project: str
    wishes: tuple[Wish, ...]
    mac: bytes
    groups: tuple[Id, ...]
    security: bool
    host: str
    wanted: PortCreate
    pairs: tuple[tuple[str, str], ...]
    profile: dict[str, Any]
    vnic_type: str


def subnets_of(view: View) -> list[Subnet]:
    """The network's usable subnets, oldest first."""
    top, known = view.hints.get("subnets", (None, []))
    if top != view.top:
        usable = (row for row in view.all(Kind.SUBNET).values() if not row.deleting)
        known = sorted(usable, key=lambda row: row.created)
        view.hints["subnets"] = view.top, known
    return list(known)


def wishes(asked: Sequence[FixedIp], view: View, network: Network) -> tuple[Wish, ...]:
    """The fixed IPs that a request names; raises Invalid for what does not fit the network."""
    subnets = subnets_of(view)
    by_id = {subnet.id: subnet for subnet in subnets}
    found: list[Wish] = []
    for n, item in enumerate(asked):
        name = f"fixed_ips[{n}]"
        if item.subnet_id is UNSET and item.ip_address is UNSET:
            raise Invalid(f"Invalid input for {name}. Reason: it names neither subnet_id nor ip_address.")
        ip = parse_ip(item.ip_address, f"{name}.ip_address") if item.ip_address is not UNSET else b""
        if item.subnet_id is not UNSET:
            subnet = by_id.get(parse(item.subnet_id, f"{name}.subnet_id"))
            if subnet is None:
                raise Invalid(
                    f"Failed to create port on network {text(network.id)}, because fixed_ips included invalid subnet "
                    f"{item.subnet_id}.",
                    "InvalidSubnet",
                )
        else:
            inside = [s for s in subnets if s.first <= ip_int(ip) <= cidr_last(s.first, s.prefix)]
            if not inside:
                raise Invalid(
                    f"IP address {ip_text(ip)} is not a valid IP for any of the subnets on the specified network.",
                    "InvalidIpForNetwork",
                )
            subnet = inside[0]
        if ip:
            _check_ip(ip, subnet, network)
        found.append(Wish(subnet, ip))
    given = [wish.ip for wish in found if wish.ip]
    if len(set(given)) != len(given):
        raise Invalid("Invalid input for fixed_ips. Reason: the same address is named twice.")
    return tuple(found)


def _check_ip(ip: bytes, subnet: Subnet, network: Network) -> None:
    if not subnet.first < ip_int(ip) < cidr_last(subnet.first, subnet.prefix):
        raise Invalid(
            f"IP address {ip_text(ip)} is not a valid IP for the specified subnet "
            f"({cidr_text(subnet.first, subnet.prefix)}).",
            "InvalidIpForSubnet",
        )
    if ip == subnet.gateway:
        raise in_use(ip, network.id)


def pairs(asked: Sequence[AddressPair] | None) -> tuple[tuple[str, str], ...]:
    """Allowed address pairs in canonical spelling."""
    found = []
    for n, pair in enumerate(asked or ()):
        name = f"allowed_address_pairs[{n}]"
        if "/" in pair.ip_address:
            address = cidr_text(*parse_cidr(pair.ip_address, f"{name}.ip_address"))
        else:
            address = ip_text(parse_ip(pair.ip_address, f"{name}.ip_address"))
        mac = mac_text(parse_mac(pair.mac_address, f"{name}.mac_address")) if pair.mac_address is not UNSET else ""
        found.append((address, mac))
    if len(set(found)) != len(found):
        raise Invalid(
            "Invalid input for allowed_address_pairs. Reason: a pair is named twice.", "DuplicateAddressPairInRequest"
        )
    return tuple(found)


def host(asked: Any) -> str:
    """`binding:host_id`; null and empty mean no host."""
    if asked is UNSET or not asked:
        return ""
    return check_host(asked, "binding:host_id")


def profile(asked: Any) -> dict[str, Any]:
    """`binding:profile`, bounded."""
    if asked is UNSET or not asked:
        return {}
    if len(msgspec.json.encode(asked)) > MAX_PROFILE:
        raise Invalid(f"Invalid input for binding:profile. Reason: it is larger than {MAX_PROFILE} bytes.")
    found: dict[str, Any] = asked
    return found


def vnic_type(asked: Any) -> str:
    if asked is UNSET or not asked:
        return "normal"
    if asked not in VNIC_TYPES:
        raise Invalid(f"Invalid input for binding:vnic_type. Reason: '{asked:.40}' is not one of {list(VNIC_TYPES)}.")
    return str(asked)


async def check_groups(context: Context, asked: Sequence[str], who_sees: Any) -> tuple[Id, ...]:
    """The groups, sorted; raises SecurityGroupNotFound for one that is not there or not the caller's."""
    found: set[Id] = set()
    for value in asked:
        id_ = parse(value, "security_groups")
        view = await context.plane.partitions.view(GROUPS, (home_of(id_),))
        row: Group | None = view.get(Kind.GROUP)
        if row is None:
            view = await context.plane.partitions.view(GROUPS, (home_of(id_),), fresh=True)
            row = view.get(Kind.GROUP)
        if row is None or row.id != id_ or not who_sees(row.project):
            raise not_found("security_group", value)
        found.add(id_)
    return tuple(sorted(found))


@lru_cache(4096)
def identity_key(groups: tuple[Id, ...]) -> bytes:
    """The key of a group set's identity row."""
    return hashlib.blake2b(b"".join(groups), digest_size=16).digest()


async def identity(context: Context, network: Network, groups: tuple[Id, ...]) -> int:
    """The number of a group set in a network, allocated (and published) before any port that needs it (rule I3).

    The network may be known as it was long ago: whether the number still is the set's is asked once more where the
    port is committed, by `numbered`.
    """
    key = identity_key(groups)
    view = context.ground.known_network(network.number) or await context.ground.network_view(network.number)
    row: Identity | None = view.get(Kind.IDENTITY, key)
    if row is not None and row.state == NumberState.USED:
        return row.number

    def apply(draft: Draft, rev: int) -> int:
        if draft.get(Kind.NETWORK) is None or draft.static("state") == NetworkState.DELETING:
            raise not_found("network", text(network.id))
        number = numbers.give(draft, key, groups, rev)
        if number is None:
            raise Conflict(
                f"Network {text(network.id)} has no number left for another set of security groups: each of the "
                f"{numbers.MAX_IDENTITY} belongs to a set that a port has, or had not long enough ago.",
                "OverQuota",
            )
        return number

    return (await context.ground.change_network(network.id, network.number, apply)).value


class Renumbered(Exception):
    """The number of a port's groups is not, or not for certain, what it was when the port was planned."""


def numbered(view: View | None, where: int, groups: tuple[Id, ...], number: int) -> None:
    """Raise Renumbered unless the network's partition says that this is the groups' number, and knows the bucket.

    Whoever takes a number away fences the buckets that are registered when it is doubted (rule I2): who commits into
    a younger one must know the network at least since that one was registered.
    """
    row: Identity | None = view.get(Kind.IDENTITY, identity_key(groups)) if view is not None else None
    if row is None or row.number != number or row.state != NumberState.USED:
        raise Renumbered
    if view is None or view.get(Kind.BUCKET, where.to_bytes(4, "big")) is None:
        raise Renumbered


def home_bucket(mac: bytes, wanted: tuple[Wish, ...]) -> int | None:
    """The home that a request dictates by a MAC or an address; None: free to choose."""
    if mac:
        return bucket(mac)
    for wish in wanted:
        if wish.ip:
            return bucket(wish.ip)
    return None


def at_choice(fields: Fields) -> bool:
    """Whether the port may have any address, if it has one: nobody need be waited for, or be in its way."""
    return not fields.mac and len(fields.wishes) <= 1 and not (fields.wishes and fields.wishes[0].ip)


def alike(fields: Fields, other: Fields) -> bool:
    """Whether a port is planned as the other was: it may have any address of the same subnets, in the same groups.

    What one request's checks found is the same object for all that ask the same.
    """
    return (
        fields.wishes is other.wishes
        and fields.groups is other.groups
        and fields.network is other.network
        and fields.security == other.security
        and len(fields.wishes) == 1
        and at_choice(fields)
        and not other.mac
    )
