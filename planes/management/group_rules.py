"""Security group rules: reading what a request asks for, and showing what there is. Pure."""

import ipaddress

from planes.management.context import iso
from planes.model.addresses import cidr_text, ip_bytes, ip_int, parse_cidr
from planes.model.errors import Conflict, Invalid
from planes.model.ids import Id, parse, text
from planes.model.requests import RuleCreate
from planes.model.resources import Direction, Group, Rule
from planes.model.views import RuleView

#: Neutron's names of IP protocols and their numbers
PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "icmp": 1, "icmpv6": 58, "igmp": 2, "ipip": 4,
    "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "ipv6-route": 43,
    "ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112,
}  # fmt: skip
#: protocols that have ports
PORTED = (6, 17, 33, 132, 136)
ICMP = (1, 58)
IPV6_ONLY = (58, 41, 44, 59, 60, 43)
RULE_LIMIT_TYPE = "OverQuota"


def parse_rule(wanted: RuleCreate, id_: Id, group: Group) -> Rule:
    """The row that a request asks for; raises Invalid or Conflict in Neutron's words."""
    directions = {"ingress": Direction.INGRESS, "egress": Direction.EGRESS}
    if wanted.direction not in directions:
        raise Invalid(f"Invalid input for direction. Reason: '{wanted.direction:.40}' is not in ['ingress', 'egress'].")
    versions = {"ipv4": 4, "ipv6": 6}
    if wanted.ethertype.lower() not in versions:
        raise Invalid(f"Invalid input for ethertype. Reason: '{wanted.ethertype:.40}' is not in ['IPv4', 'IPv6'].")
    version = versions[wanted.ethertype.lower()]
    protocol, spelled = parse_protocol(wanted.protocol)
    if version == 4 and protocol in IPV6_ONLY:
        raise Conflict(f"Invalid ethertype IPv4 for protocol {spelled}.", "SecurityGroupEthertypeConflictWithProtocol")
    _check_range(wanted, protocol)
    remote, first, prefix = _remote(wanted, version)
    return Rule(
        id_,
        group.id,
        group.project,
        directions[wanted.direction],
        version,
        protocol,
        -1 if wanted.port_range_min is None else wanted.port_range_min,
        -1 if wanted.port_range_max is None else wanted.port_range_max,
        remote,
        first,
        prefix,
        spelled,
        wanted.description,
    )


def parse_protocol(asked: str | int | None) -> tuple[int, str]:
    """(number, spelling); −1 and empty for any."""
    if asked is None or str(asked).lower() in ("any", "", "0", "-1"):
        return -1, ""
    word = str(asked).lower()
    if word in PROTOCOLS:
        return PROTOCOLS[word], word
    if word.isdecimal() and int(word) <= 255:
        return int(word), word
    names = ", ".join(sorted(PROTOCOLS))
    raise Invalid(
        f"Security group rule protocol {asked!s:.40} not supported. Only protocol values [{names}] and integer "
        "representations [0 to 255] are supported.",
        "SecurityGroupRuleInvalidProtocol",
    )


def _check_range(wanted: RuleCreate, protocol: int) -> None:
    low, high = wanted.port_range_min, wanted.port_range_max
    if low is None and high is None:
        return
    if protocol in ICMP:
        if low is None:
            raise Invalid(
                "ICMP code (port-range-max) is provided but ICMP type (port-range-min) is missing.",
                "SecurityGroupMissingIcmpType",
            )
        for name, value in (("port_range_min", low), ("port_range_max", high)):
            if value is not None and not 0 <= value <= 255:
                raise Invalid(
                    f"Invalid value for ICMP {'type' if name.endswith('min') else 'code'} ({name}) {value}. "
                    "It must be 0 to 255.",
                    "SecurityGroupInvalidIcmpValue",
                )
        return
    if protocol not in PORTED:
        raise Invalid(
            "Port range cannot be specified for a protocol without ports; give protocol tcp, udp, sctp, dccp or "
            "udplite.",
            "SecurityGroupProtocolRequiredWithPorts",
        )
    for name, value in (("port_range_min", low), ("port_range_max", high)):
        if value is None or not 0 <= value <= 65535:
            raise Invalid(
                f"Invalid input for {name}. Reason: '{value}' is not a port (0 to 65535).",
                "SecurityGroupInvalidPortValue",
            )
    if low is not None and high is not None and low > high:
        raise Invalid(
            "For TCP/UDP protocols, port_range_min must be <= port_range_max", "SecurityGroupInvalidPortRange"
        )


def _remote(wanted: RuleCreate, version: int) -> tuple[bytes, bytes, int]:
    if wanted.remote_address_group_id is not None:
        raise Invalid("Invalid input for remote_address_group_id. Reason: address groups are not offered.")
    if wanted.remote_group_id is not None and wanted.remote_ip_prefix is not None:
        raise Invalid("Only remote_ip_prefix or remote_group_id may be provided.", "SecurityGroupMultipleRemoteEntites")
    if wanted.remote_group_id is not None:
        return parse(wanted.remote_group_id, "remote_group_id"), b"", 0
    if wanted.remote_ip_prefix is None:
        return b"", b"", 0
    asked = wanted.remote_ip_prefix
    if ":" in asked or version == 6:
        if version == 4 or ":" not in asked:
            raise Invalid(
                f"Conflicting value ethertype {wanted.ethertype} for CIDR {asked:.64}.",
                "SecurityGroupRuleParameterConflict",
            )
        try:
            net = ipaddress.IPv6Network(asked, strict=False)
        except ValueError as error:
            raise Invalid(f"Invalid input for remote_ip_prefix. Reason: {error}.") from None
        return b"", net.network_address.packed, net.prefixlen
    first, prefix = parse_cidr(_network_of(asked), "remote_ip_prefix")
    return b"", ip_bytes(first), prefix


def _network_of(asked: str) -> str:
    """Neutron takes an address for a /32 and host bits for their network."""
    try:
        return str(ipaddress.IPv4Network(asked, strict=False))
    except ValueError:
        return asked


def same_rule(a: Rule, b: Rule) -> bool:
    """Whether two rules say the same."""
    return _meaning(a) == _meaning(b)


def _meaning(rule: Rule) -> tuple[object, ...]:
    anywhere = rule.remote_first and rule.remote_prefix == 0
    return (
        rule.direction,
        rule.ethertype,
        rule.protocol,
        rule.port_min,
        rule.port_max,
        rule.remote_group,
        b"" if anywhere else rule.remote_first,
        rule.remote_prefix,
    )


def rule_view(row: Rule) -> RuleView:
    """What a client reads."""
    prefix = None
    if row.remote_first:
        if len(row.remote_first) == 4:
            prefix = cidr_text(ip_int(row.remote_first), row.remote_prefix)
        else:
            prefix = str(ipaddress.IPv6Network((row.remote_first, row.remote_prefix)))
    return RuleView(
        id=text(row.id),
        security_group_id=text(row.group),
        project_id=row.project,
        tenant_id=row.project,
        direction="egress" if row.direction == Direction.EGRESS else "ingress",
        ethertype=f"IPv{row.ethertype}",
        protocol=row.protocol_text or None,
        port_range_min=None if row.port_min < 0 else row.port_min,
        port_range_max=None if row.port_max < 0 else row.port_max,
        remote_ip_prefix=prefix,
        remote_group_id=text(row.remote_group) if row.remote_group else None,
        normalized_cidr=prefix,
        description=row.description,
        created_at=iso(row.created),
        updated_at=iso(row.created),
        revision_number=row.rev,
    )
