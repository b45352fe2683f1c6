"""Rows to goal-state objects: each is a function of one revisioned row and nothing else. Pure.

Called by whoever publishes or answers pulls.
"""

from collections.abc import Iterable

from planes.goalstate import messages as goal
from planes.model.addresses import ip_bytes, parse_cidr, parse_ip, parse_mac, vtep_mac
from planes.model.resources import (
    Address,
    AddressState,
    Direction,
    Group,
    Identity,
    Network,
    NumberState,
    Port,
    Rule,
    Subnet,
)


def network(row: Network) -> goal.Network:
    return goal.Network(row.id, row.rev, row.vni, row.mtu, row.admin_up)


def subnet(row: Subnet) -> goal.Subnet:
    return goal.Subnet(row.network, row.id, row.rev, ip_bytes(row.first), row.prefix, row.gateway)


def identity(network_id: bytes, row: Identity) -> goal.Identity | goal.Gone:
    """What hosts are told of a number: its groups, or that it means nothing while it rests (rule I2)."""
    if row.state >= NumberState.RESTING:
        return goal.Gone(goal.ObjectKind.IDENTITY, network_id, row.number.to_bytes(2, "big"), row.rev)
    return goal.Identity(network_id, row.number, row.rev, row.groups)


def neighbour(network_id: bytes, ip: bytes, row: Address) -> goal.Neighbour | goal.Gone:
    """What hosts are told of an address: where it is, or that nobody has it (also while it has no host)."""
    if row.state == AddressState.USED and row.host:
        return goal.Neighbour(network_id, ip, row.rev, row.host, row.identity, row.mac)
    return goal.Gone(goal.ObjectKind.NEIGHBOUR, network_id, ip, row.rev)


def peer(network_id: bytes, host: str, rev: int, epoch: int, vtep: bytes, number: int) -> goal.Peer:
    return goal.Peer(network_id, host, rev, epoch, vtep, vtep_mac(number))


def peer_gone(network_id: bytes, host: str, rev: int) -> goal.Gone:
    return goal.Gone(goal.ObjectKind.PEER, network_id, host.encode(), rev)


def _pair(address: str, mac: str) -> tuple[bytes, int, bytes]:
    if "/" in address:
        first, prefix = parse_cidr(address, "allowed_address_pairs")
        return ip_bytes(first), prefix, parse_mac(mac, "mac_address") if mac else b""
    return parse_ip(address, "allowed_address_pairs"), 32, parse_mac(mac, "mac_address") if mac else b""


def port(row: Port) -> goal.Port:
    """The whole port, for its binding host."""
    return goal.Port(
        row.id,
        row.goal_rev,
        row.network,
        row.mac,
        tuple([ip for _, ip in row.fixed]),
        row.identity,
        row.groups,
        row.admin_up,
        row.security,
        tuple([_pair(*pair) for pair in row.pairs]) if row.pairs else (),
        row.change,
    )


def port_gone(row: Port) -> goal.Gone:
    return goal.Gone(goal.ObjectKind.PORT, b"", row.id, row.goal_rev, row.change)


def group(row: Group, rules: Iterable[Rule], top: int) -> goal.Group:
    """The group with all its rules; its revision is the partition's counter."""
    return goal.Group(
        row.id,
        top,
        tuple(
            goal.Rule(
                rule.direction == Direction.EGRESS,
                rule.ethertype,
                rule.protocol,
                rule.port_min,
                rule.port_max,
                rule.remote_group,
                rule.remote_first,
                rule.remote_prefix,
            )
            for rule in sorted(rules, key=lambda rule: rule.id)
        ),
        row.stateful,
    )
