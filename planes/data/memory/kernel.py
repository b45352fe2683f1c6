"""A kernel made of dictionaries: what one host holds of each network, and what it does with a packet.

Used by `planes.data.memory.driver`, which changes it, and `planes.data.memory.fabric`, which sends packets through it.
It behaves as the real data plane must: closed without a policy, stateful, deaf to spoofed sources.
"""

from collections import Counter

from msgspec import Struct

from planes.data.driver import (
    MembersSpec,
    NetworkSpec,
    PeerSpec,
    PolicySpec,
    PortSpec,
    RemoteSpec,
    RuleSpec,
    Spec,
    SpecKey,
)
from planes.model.addresses import ip_int, ip_text, mac_text

ICMP = 1

#: the reasons that a real kernel can count too, in its words
_COUNTED = {
    "spoofed source": "spoofed_ip",
    "no policy (egress)": "no_policy",
    "no policy (ingress)": "no_port",
    "no rule (egress)": "denied_egress",
    "no rule (ingress)": "denied_ingress",
}


class Packet(Struct, frozen=True):
    """`sport` and `dport` are type and code for ICMP."""

    src: bytes
    dst: bytes
    protocol: int
    sport: int = -1
    dport: int = -1

    @property
    def flow(self) -> tuple[int, frozenset[tuple[bytes, int]]]:
        """The connection that it belongs to, in either direction."""
        if self.protocol == ICMP:
            return (ICMP, frozenset(((self.src, -1), (self.dst, -1))))
        return (self.protocol, frozenset(((self.src, self.sport), (self.dst, self.dport))))


class KernelNetwork:
    """One network on one host."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.members: dict[bytes, MembersSpec] = {}
        self.policies: dict[int, PolicySpec] = {}
        self.ports: dict[bytes, PortSpec] = {}
        self.peers: dict[bytes, PeerSpec] = {}
        self.remotes: dict[bytes, RemoteSpec] = {}
        self._flows: dict[bytes, set[object]] = {}

    def put(self, spec: Spec) -> None:
        if isinstance(spec, RemoteSpec):  # nearly everything is one
            self.remotes[spec.ip] = spec
        elif isinstance(spec, NetworkSpec):
            self.spec = spec
        elif isinstance(spec, MembersSpec):
            self.members[spec.group] = spec
        elif isinstance(spec, PolicySpec):
            self.policies[spec.identity] = spec
        elif isinstance(spec, PortSpec):
            self.ports[spec.id] = spec
        else:
            self.peers[spec.mac] = spec

    def drop(self, key: SpecKey) -> None:
        kind, _, what = key
        if kind == "members":
            self.members.pop(what, None)
        elif kind == "policy":
            self.policies.pop(int.from_bytes(what, "big"), None)
        elif kind == "port":
            self.ports.pop(what, None)
            self._flows.pop(what, None)
        elif kind == "peer":
            self.peers.pop(what, None)
        elif kind == "remote":
            self.remotes.pop(what, None)

    def specs(self) -> list[Spec]:
        kept = (self.members, self.policies, self.ports, self.peers, self.remotes)
        return [self.spec, *(spec for each in kept for spec in each.values())]

    # -- packets ----------------------------------------------------------------------------------------------------

    def sends(self, port: PortSpec, packet: Packet) -> str:
        """Why a port may not send this; empty when it may."""
        if not port.admin_up:
            return "the sender is down"
        if not port.security:
            return ""
        if packet.src not in port.ips and not any(_in(packet.src, first, prefix) for first, prefix, _ in port.pairs):
            return "spoofed source"
        return self._admits(port, packet, egress=True, other=packet.dst, mark=self._identity_at(packet.dst))

    def receives(self, port: PortSpec, packet: Packet, mark: int) -> str:
        """Why a port may not receive this; empty when it may."""
        if not port.admin_up:
            return "the receiver is down"
        if not port.security:
            return ""
        return self._admits(port, packet, egress=False, other=packet.src, mark=mark)

    def established(self, port: PortSpec, packet: Packet) -> None:
        """Both sides accepted it: replies pass."""
        self._flows.setdefault(port.id, set()).add(packet.flow)

    def port_at(self, ip: bytes) -> PortSpec | None:
        return next((port for port in self.ports.values() if ip in port.ips), None)

    def _identity_at(self, ip: bytes) -> int:
        """Of a local destination; of others the sender does not know it."""
        port = self.port_at(ip)
        return port.identity if port is not None else 0

    def _admits(self, port: PortSpec, packet: Packet, egress: bool, other: bytes, mark: int) -> str:
        side = "egress" if egress else "ingress"
        policy = self.policies.get(port.identity)
        if policy is None:
            return f"no policy ({side})"
        if packet.flow in self._flows.get(port.id, ()):
            return ""
        if any(rule.egress == egress and self._matches(rule, packet, other, mark) for rule in policy.rules):
            return ""
        return f"no rule ({side})"

    def _matches(self, rule: RuleSpec, packet: Packet, other: bytes, mark: int) -> bool:
        if rule.protocol not in (-1, packet.protocol):
            return False
        if packet.protocol == ICMP:
            if rule.port_min not in (-1, packet.sport) or rule.port_max not in (-1, packet.dport):
                return False
        elif rule.port_min != -1 and not rule.port_min <= packet.dport <= rule.port_max:
            return False
        if rule.remote_group:
            members = self.members.get(rule.remote_group)
            return members is not None and mark in members.identities
        return not rule.remote_first or _in(other, rule.remote_first, rule.remote_prefix)


def _in(ip: bytes, first: bytes, prefix: int) -> bool:
    return len(ip) == len(first) and (ip_int(ip) ^ ip_int(first)) >> (len(ip) * 8 - prefix) == 0


class Kernel:
    """All that one host holds; it outlives the agent that made it."""

    def __init__(self) -> None:
        self.mac = b""
        self.networks: dict[bytes, KernelNetwork] = {}
        self.damaged: set[SpecKey] = set()
        #: what the next listing leaves out, as a real one may
        self.unlisted: set[SpecKey] = set()
        self.drops: Counter[str] = Counter()

    def dropped(self, reason: str) -> str:
        """Count a packet that went no further; the reason."""
        if reason in _COUNTED:
            self.drops[_COUNTED[reason]] += 1
        return reason

    def by_vni(self, vni: int) -> KernelNetwork | None:
        return next((network for network in self.networks.values() if network.spec.vni == vni), None)

    def damage(self, key: SpecKey) -> None:
        """Somebody removes this by hand."""
        if key[0] == "network":
            self.networks.pop(key[1], None)
        else:
            self.networks[key[1]].drop(key)
        self.damaged.add(key)

    def held(self) -> dict[SpecKey, Spec | None]:
        """What exists; as a real kernel, it tells of peers and remotes alone what they look like."""
        specs = [spec for network in self.networks.values() for spec in network.specs()]
        listed = [spec for spec in specs if spec.key not in self.unlisted]
        return {spec.key: spec if isinstance(spec, RemoteSpec | PeerSpec) else None for spec in listed}

    def dump(self) -> str:
        """Everything, in one canonical spelling: equal text is an equal kernel."""
        lines = [_line(spec) for network in self.networks.values() for spec in network.specs()]
        return "\n".join(sorted(lines))


def _line(spec: Spec) -> str:
    head = f"{spec.network.hex()} {spec.key[0]}"
    if isinstance(spec, NetworkSpec):
        subnets = " ".join(
            f"{ip_text(each.first)}/{each.prefix}" + (f" gateway {ip_text(each.gateway)}" if each.gateway else "")
            for each in spec.subnets
        )
        return f"{head} vni {spec.vni} mtu {spec.mtu} {subnets}".rstrip()
    if isinstance(spec, MembersSpec):
        return f"{head} {spec.group.hex()} = {sorted(spec.identities)}"
    if isinstance(spec, PolicySpec):
        rules = "; ".join(_rule(rule) for rule in spec.rules)
        return f"{head} {spec.identity}: {rules}".rstrip()
    if isinstance(spec, PortSpec):
        flags = ("" if spec.admin_up else " down") + ("" if spec.security else " open")
        pairs = "".join(f" pair {ip_text(a)}/{n} {mac_text(m) if m else 'own'}" for a, n, m in spec.pairs)
        addresses = ",".join(map(ip_text, spec.ips))
        return f"{head} {spec.id.hex()} {mac_text(spec.mac)} {addresses} identity {spec.identity}{flags}{pairs}"
    if isinstance(spec, PeerSpec):
        return f"{head} {mac_text(spec.mac)} at {ip_text(spec.vtep)}"
    return f"{head} {ip_text(spec.ip)} via {mac_text(spec.via)}"


def _rule(rule: RuleSpec) -> str:
    words = ["egress" if rule.egress else "ingress"]
    if rule.protocol != -1:
        words.append(f"protocol {rule.protocol}")
    if rule.port_min != -1 or rule.port_max != -1:
        words.append(f"{rule.port_min}-{rule.port_max}")
    if rule.remote_group:
        words.append(f"group {rule.remote_group.hex()}")
    if rule.remote_first:
        words.append(f"{ip_text(rule.remote_first)}/{rule.remote_prefix}")
    return " ".join(words)
