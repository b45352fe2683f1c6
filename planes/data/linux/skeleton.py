"""What a network's namespace enforces, as text and set elements: the ruleset, the chains of a policy, and elements
of a port.

Pure: names, addresses and rules in; nft text and elements out. Called by `network` and `readback`. Nothing here may
look at connection state in a base chain (rule N3): only chains reached through a local port's interface do.
"""

import hashlib
import ipaddress
import struct
from collections import Counter

from msgspec import Struct

from planes.data.driver import PolicySpec, PortSpec, RuleSpec
from planes.data.linux.nfnetlink import ARP, INET, Element

TABLE = "alcor"
VXLAN = "vx"
#: new connections that one port may hold at a time (rule N17)
CONNECTIONS = 65_536
#: an element of every group's set that no packet can bear: marks from the wire have 16 bits and flags 19 and 22
PRESENT = 1 << 16

_INET_REASONS = (
    "spoofed_ip", "spoofed_mac", "ipv6", "broadcast", "unroutable", "source_routed", "no_policy", "no_port", "hairpin",
    "denied_egress", "denied_ingress", "invalid", "forged_error", "connections", "input", "output",
)  # fmt: skip

#: why a packet is dropped, where the filters drop it
REASONS = frozenset({*_INET_REASONS, "spoofed_arp"})

#: `dynamic` makes the kernel grow a bounded set as it fills; without it all of `size` is allocated at once
_GROWING = "size 262144; flags dynamic;"
_SPEAKER = "type ifname . ether_addr . ipv4_addr;"
#: every fragment is judged by itself, or one with a stolen source would be joined to those of its owner
_BEFORE_REASSEMBLY = -450
_NEVER_ROUTED = "{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 }"

#: all but the version
TABLES = f"""
table inet {TABLE} {{
{chr(10).join(f"  counter {name} {{ }}" for name in _INET_REASONS)}
  set speakers {{ {_SPEAKER} {_GROWING} }}
  set ranges {{ {_SPEAKER} size 65536; flags interval; }}
  set macs {{ type ifname . ether_addr; {_GROWING} }}
  set open {{ type ifname; {_GROWING} }}
  set connections {{ type ifname; {_GROWING} }}
  map identity {{ type ifname : mark; {_GROWING} }}
  map egress {{ type ifname : verdict; {_GROWING} }}
  map ingress {{ type ifname : verdict; {_GROWING} }}
  chain prerouting {{
    type filter hook prerouting priority {_BEFORE_REASSEMBLY}; policy drop;
    meta nfproto != ipv4 counter name ipv6 drop
    iifname "lo" meta mark set 0 accept
    meta pkttype != host counter name broadcast drop
    ip daddr {_NEVER_ROUTED} counter name unroutable drop
    ip saddr {_NEVER_ROUTED} counter name unroutable drop
    ip option lsrr exists counter name source_routed drop
    ip option ssrr exists counter name source_routed drop
    iifname "{VXLAN}" accept
    meta mark set 0
    meta mark set iifname map @identity
    iifname . ether saddr . ip saddr @speakers accept
    iifname @open accept
    iifname . ether saddr . ip saddr @ranges accept
    iifname . ether saddr @macs counter name spoofed_ip drop
    counter name spoofed_mac drop
  }}
  chain outbound {{
    type filter hook forward priority 0; policy drop;
    iifname vmap @egress
    iifname "{VXLAN}" oifname "{VXLAN}" counter name hairpin drop
    iifname "{VXLAN}" accept
    counter name no_policy drop
  }}
  chain inbound {{
    type filter hook forward priority 10; policy drop;
    oifname vmap @ingress
    oifname "{VXLAN}" accept
    counter name no_port drop
  }}
  chain errors {{
    iifname . ether saddr . ct original ip daddr @speakers accept
    iifname . ether saddr . ct original ip saddr @speakers accept
    iifname . ether saddr . ct original ip daddr @ranges accept
    iifname . ether saddr . ct original ip saddr @ranges accept
    counter name forged_error drop
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "p*" icmp type echo-request limit rate 1000/second burst 1000 packets accept
    counter name input drop
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    meta l4proto icmp accept
    counter name output drop
  }}
}}
table arp {TABLE} {{
  counter spoofed_arp {{ }}
  set speakers {{ {_SPEAKER} {_GROWING} }}
  set ranges {{ {_SPEAKER} size 65536; flags interval; }}
  set open {{ type ifname; {_GROWING} }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname . arp saddr ether . arp saddr ip @speakers accept
    iifname @open accept
    iifname . arp saddr ether . arp saddr ip @ranges accept
    counter name spoofed_arp drop
  }}
}}
"""

#: a chain that does nothing but say that the tables are these, and not those of another release
VERSION = f"version_{hashlib.blake2b(TABLES.encode(), digest_size=8).hexdigest()}"
RULESET = f"{TABLES}add chain inet {TABLE} {VERSION}\n"

#: the same in place of whatever part of it is there, in one transaction, which drops what comes in that moment
REPLACEMENT = "".join(f"table {f} {TABLE}\ndelete table {f} {TABLE}\n" for f in ("inet", "arp")) + RULESET

#: the sets whose elements begin with an interface's name
BY_INTERFACE = (
    (INET, "speakers"), (INET, "ranges"), (INET, "macs"), (INET, "open"),
    (INET, "identity"), (INET, "egress"), (INET, "ingress"),
    (ARP, "speakers"), (ARP, "ranges"), (ARP, "open"),
)  # fmt: skip


class Footprint(Struct, frozen=True):
    """All that a port is in its network's namespace besides the link itself. Compared to find what differs."""

    elements: frozenset[Element] = frozenset()
    addresses: frozenset[tuple[bytes, bytes]] = frozenset()  # (IP, MAC): a /32 route and a permanent neighbour


def port_link_names(port: bytes) -> tuple[str, str]:
    """The two ends of a port's pair: in the network's namespace, and towards the instance (rule N15)."""
    digest = hashlib.blake2b(port, digest_size=6).hexdigest()[:11]
    return f"p{digest}", f"t{digest}"


def group_set(group: bytes) -> str:
    return f"g_{group.hex()}"


def group_of(set_name: str) -> bytes | None:
    return bytes.fromhex(set_name[2:]) if set_name.startswith("g_") else None


def chain_pair(identity: int) -> tuple[str, str]:
    """The chains of what ports of an identity send, and of what they receive."""
    return f"e{identity}", f"i{identity}"


def identity_of(chain: str) -> int | None:
    """The identity whose chain of outgoing traffic this is."""
    return int(chain[1:]) if chain[:1] == "e" and is_of_policy(chain) else None


def is_of_policy(chain: str) -> bool:
    """Whether it is one of a pair of chains."""
    return chain[:1] in ("e", "i") and chain[1:].isdigit()


def mark(identity: int) -> bytes:
    return struct.pack("=I", identity)


def interface_key(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


def interface_of(key: bytes) -> str:
    return key[:16].rstrip(b"\0").decode()


def port_footprint(spec: PortSpec) -> Footprint:
    """What must be in the namespace for this port. A port that is down has no route: nothing is sent to it."""
    ifname = interface_key(port_link_names(spec.id)[0])
    elements: set[Element] = set()
    if spec.security:
        speaks = {(ip, 32, spec.mac) for ip in spec.ips} | {(ip, bits, mac or spec.mac) for ip, bits, mac in spec.pairs}
        for first, prefix, mac in speaks:
            elements |= _may_speak(ifname, first, prefix, mac)
        egress, ingress = chain_pair(spec.identity)
        elements.add(Element(INET, "identity", ifname, data=mark(spec.identity)))
        elements.add(Element(INET, "egress", ifname, data=egress))
        elements.add(Element(INET, "ingress", ifname, data=ingress))
    else:
        elements |= {Element(family, "open", ifname) for family in (INET, ARP)}
        elements |= {Element(INET, name, ifname, data=True) for name in ("egress", "ingress")}
    addresses = frozenset((ip, spec.mac) for ip in spec.ips) if spec.admin_up else frozenset()
    return Footprint(frozenset(elements), addresses)


def _may_speak(ifname: bytes, first: bytes, prefix: int, mac: bytes) -> set[Element]:
    head = ifname + mac + b"\0\0"
    macs = Element(INET, "macs", head)
    if prefix == 32:
        return {macs, *(Element(family, "speakers", head + first) for family in (INET, ARP))}
    last = (int.from_bytes(first, "big") | (1 << (32 - prefix)) - 1).to_bytes(4, "big")
    return {macs, *(Element(family, "ranges", head + first, head + last) for family in (INET, ARP))}


def policy_text(spec: PolicySpec) -> str:
    """The commands that replace an identity's two chains, in one transaction and so never seen empty."""
    egress, ingress = chain_pair(spec.identity)
    lines = [f"add set inet {TABLE} {name} {GROUP_TYPE}" for name in sorted(groups(spec))]
    for chain, direction in ((egress, True), (ingress, False)):
        where = f"inet {TABLE} {chain}"
        side = "iifname" if direction else "oifname"
        lines += [
            f"add chain {where}",
            f"flush chain {where}",
            f"add rule {where} ct state established accept",
            # an error about a connection is believed from its ends alone, and judged on the way out
            f"add rule {where} ct state related {'jump errors' if direction else 'accept'}",
            f"add rule {where} ct state invalid counter name invalid drop",
            f"add rule {where} add @connections {{ {side} ct count over {CONNECTIONS} }} counter name connections drop",
            *(f"add rule {where} {text} accept" for rule in spec.rules if (text := _rule(rule, direction)) is not None),
            f"add rule {where} counter name denied_{'egress' if direction else 'ingress'} drop",
        ]
    return "\n".join(lines)


#: how a group's set is declared; the same wherever it may come first
GROUP_TYPE = "{ type mark; size 65536; flags dynamic; }"


def groups(spec: PolicySpec) -> set[str]:
    return {group_set(rule.remote_group) for rule in spec.rules if rule.remote_group and not rule.egress}


def _rule(rule: RuleSpec, egress: bool) -> str | None:
    """The match of one rule; None for one of the other direction, or that can match nothing."""
    if rule.egress != egress or _senseless(rule):
        return None
    parts = []
    if rule.remote_group:
        if egress:
            return None  # needs the destination's identity, which is not known before it arrives (rule N6): closed
        parts.append(f"meta mark @{group_set(rule.remote_group)}")
    elif rule.remote_first and rule.remote_prefix:
        net = ipaddress.IPv4Network((rule.remote_first, rule.remote_prefix), strict=False)
        parts.append(f"ip {'daddr' if egress else 'saddr'} {net}")
    if rule.protocol == 1 and rule.port_min >= 0:
        parts.append(f"icmp type {rule.port_min}")
        if rule.port_max >= 0:
            parts.append(f"icmp code {rule.port_max}")
    elif rule.protocol >= 0:
        parts.append(f"meta l4proto {rule.protocol}")
        if rule.protocol != 1 and (rule.port_min >= 0 or rule.port_max >= 0):
            low = max(rule.port_min, 0)
            parts.append(f"th dport {low}-{max(rule.port_max, low)}")
    return " ".join(parts)


def _senseless(rule: RuleSpec) -> bool:
    """Ports without a protocol, a code without a type, an empty range: closed, rather than open to everything."""
    if rule.protocol == 1:
        return rule.port_min < 0 <= rule.port_max
    ports = rule.port_min >= 0 or rule.port_max >= 0
    return ports and (rule.protocol < 0 or 0 <= rule.port_max < rule.port_min)


def base_rules(inet: Counter[str], arp: Counter[str]) -> Counter[str]:
    """How many rules each chain has that every network has."""
    found = Counter({name: count for name, count in inet.items() if not is_of_policy(name)})
    found.update({f"arp {name}": count for name, count in arp.items()})
    return found
