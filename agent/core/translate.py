"""Goal objects to driver specs: each spec is a function of the objects that exist now, whatever order they came in.

Called by `AgentState`: objects go in by `put` and `remove`, which mark the spec keys that they may change; `spec`
computes one. A port exists as soon as its network is known, with the addresses whose subnets are; it forwards nothing
until the policy of its groups is in (fail closed), and it never goes away because something it needs is not known yet:
an instance would lose its interface.
"""

from collections.abc import Iterable

from agent.core.check import flaw
from agent.core.network import NetworkView
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
    SubnetSpec,
)
from planes.goalstate.messages import (
    Gone,
    Group,
    Identity,
    Key,
    Neighbour,
    Network,
    Object,
    Peer,
    Port,
    Subnet,
)
from planes.model.addresses import ip_int, ip_text

IPV4 = 4


class Goals:
    """What this host should look like, by network."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.networks: dict[bytes, NetworkView] = {}
        self.groups: dict[bytes, Group] = {}
        #: group → networks with local ports that use it
        self._users: dict[bytes, set[bytes]] = {}
        #: network → groups that rules of local ports name as remote
        self._remote: dict[bytes, set[bytes]] = {}
        #: port id → network
        self._where: dict[bytes, bytes] = {}
        #: objects that make no sense, and why
        self.flaws: dict[Key, str] = {}
        #: spec keys to be computed again, but for addresses of other hosts
        self.dirty: set[SpecKey] = set()
        #: those, by network, in the order in which they came, in which memory is read fastest
        self.addresses: dict[bytes, dict[bytes, None]] = {}
        #: networks whose set of local identities or rules changed
        self._stale: set[bytes] = set()

    # -- what is needed ---------------------------------------------------------------------------------------------

    def needed_networks(self) -> Iterable[bytes]:
        return (id_ for id_, view in self.networks.items() if view.ports)

    def needs_network(self, network: bytes) -> bool:
        view = self.networks.get(network)
        return view is not None and bool(view.ports)

    def needed_groups(self) -> Iterable[bytes]:
        return self._users.keys()

    def needs_group(self, group: bytes) -> bool:
        return group in self._users

    def port(self, id_: bytes) -> Port | None:
        network = self._where.get(id_)
        return self.networks[network].ports.get(id_) if network is not None else None

    # -- objects in -------------------------------------------------------------------------------------------------

    def put(self, item: Object) -> None:
        """An object is there, or has a new revision; a tombstone removes."""
        self.remove(item)
        if isinstance(item, Gone):
            return
        if reason := flaw(item):
            self.flaws[item.key] = reason
        elif isinstance(item, Neighbour):
            if self._view(item.network).add_neighbour(item):
                self._touch_use(item)
        elif isinstance(item, Group):
            self.groups[item.id] = item
        elif isinstance(item, Port):
            self._where[item.id] = item.network
            self._view(item.network).add_port(item)
            self._touch_port(item)
        elif isinstance(item, Network):
            self._view(item.id).network = item
        elif isinstance(item, Subnet):
            self._view(item.network).subnets[item.id] = item
        elif isinstance(item, Identity):
            self._view(item.network).add_identity(item)
            self._touch_identity(item)
        else:
            self._view(item.network).add_peer(item)
            self._touch_peer(item)

    def begin(self, network: bytes, items: Iterable[Neighbour]) -> None:
        """Addresses of other hosts of which nothing is known; `put` of many."""
        view = self._view(network)
        touched = self.addresses.setdefault(network, {})
        for item in items:
            if reason := flaw(item):
                self.flaws[item.key] = reason
                continue
            touched[item.ip] = None
            if view.add_neighbour(item):
                self._touch_use(item)

    def remove(self, item: Object) -> None:
        """Whatever has this object's key is not there any more; marks what depends on it."""
        key = kind, scope, id_ = item.key
        self.flaws.pop(key, None)
        if kind == 6:
            self._remove_port(id_)
            return
        if kind == 7:
            self.groups.pop(id_, None)
            self._touch_group(id_)
            return
        view = self.networks.get(scope)
        if kind == 5:
            self._touch_addresses(scope, (id_,))
        elif kind in (1, 2):
            self.dirty.add(("network", scope, b""))
        if view is None:
            return
        if kind == 1:
            view.network = None
            self._touch_all(scope)
        elif kind == 2:
            view.subnets.pop(id_, None)
            self.dirty.update(("port", scope, port) for port in view.ports)
        elif kind == 3:
            if (identity := view.remove_identity(int.from_bytes(id_, "big"))) is not None:
                self._touch_identity(identity)
        elif kind == 4:
            if (peer := view.remove_peer(id_.decode(errors="replace"))) is not None:
                self._touch_peer(peer)
        elif (neighbour := view.remove_neighbour(id_)) is not None and neighbour.host not in view.behind:
            self._touch_use(neighbour)

    def forget_network(self, network: bytes) -> None:
        """Nobody here needs the network any more."""
        self._touch_all(network)
        view = self.networks.get(network)
        if view is not None and not view.ports:
            del self.networks[network]

    def _view(self, network: bytes) -> NetworkView:
        view = self.networks.get(network)
        if view is None:
            view = self.networks[network] = NetworkView()
        return view

    def _remove_port(self, id_: bytes) -> None:
        network = self._where.pop(id_, None)
        if network is None:
            return
        port = self.networks[network].remove_port(id_)
        assert port is not None
        self._touch_port(port)

    # -- what depends on what ---------------------------------------------------------------------------------------

    def _touch_port(self, port: Port) -> None:
        network = port.network
        view = self.networks[network]
        self.dirty.add(("port", network, port.id))
        self._touch_addresses(network, port.ips)
        if len(view.ports) <= 1:  # the first, or there was one until now
            self._touch_all(network)
        users = view.users.get(port.identity)
        if port.security and (not users or users == {port.id}):
            self.dirty.add(_policy_key(network, port.identity))
            self._stale.add(network)

    def _touch_identity(self, item: Identity) -> None:
        self.dirty.update(("members", item.network, group) for group in item.groups)

    def _touch_peer(self, item: Peer) -> None:
        self.dirty.add(("peer", item.network, item.mac))
        self._touch_addresses(item.network, self.networks[item.network].behind.get(item.host, ()))

    def _touch_addresses(self, network: bytes, ips: Iterable[bytes]) -> None:
        self.addresses.setdefault(network, {}).update(dict.fromkeys(ips))

    def _touch_use(self, item: Neighbour) -> None:
        """The first address behind a host has come, or the last has gone: its peer is of use, or not any more."""
        peer = self.networks[item.network].peers.get(item.host)
        if peer is not None:
            self.dirty.add(("peer", item.network, peer.mac))

    def _touch_group(self, group: bytes) -> None:
        for network in self._users.get(group, ()):
            view = self.networks[network]
            for identity, ports in view.users.items():
                if group in (view.groups_of(identity) or ()):
                    self.dirty.add(_policy_key(network, identity))
                    self.dirty.update(("port", network, id_) for id_ in ports)
            self._stale.add(network)

    def _touch_all(self, network: bytes) -> None:
        view = self.networks.get(network)
        if view is None:
            return
        self.dirty.add(("network", network, b""))
        self.dirty.update(("port", network, id_) for id_ in view.ports)
        self._touch_addresses(network, view.neighbours)
        self.dirty.update(("peer", network, mac) for mac in view.at)
        self.dirty.update(_policy_key(network, identity) for identity in view.users)
        self.dirty.update(("members", network, group) for group in self._remote.get(network, ()))
        self._stale.add(network)

    def settle(self) -> None:
        """Bring the indexes of groups up to date; before `dirty` is worked off."""
        stale, self._stale = self._stale, set()
        for network in stale:
            view = self.networks.get(network)
            used = view.used_groups if view is not None else set()
            for group, users in list(self._users.items()):
                if network in users and group not in used:
                    users.discard(network)
                    if not users:
                        del self._users[group]
            for group in used:
                self._users.setdefault(group, set()).add(network)
            remote = {
                rule.remote_group
                for group in used
                if group in self.groups
                for rule in self.groups[group].rules
                if rule.remote_group and rule.ethertype == IPV4
            }
            before = self._remote.pop(network, set())
            if remote:
                self._remote[network] = remote
            self.dirty.update(("members", network, group) for group in remote ^ before)

    # -- specs out --------------------------------------------------------------------------------------------------

    def spec(self, key: SpecKey) -> Spec | None:
        """What the driver should hold under this key; None: nothing, or not yet."""
        kind, network, what = key
        view = self.networks.get(network)
        if view is None or not view.ports or view.network is None:
            return None
        if kind == "network":
            return _network_spec(view.network, view)
        if kind == "members":
            if what not in self._remote.get(network, ()):
                return None
            return MembersSpec(network, what, frozenset(view.carriers.get(what, ())))
        if kind == "policy":
            return self._policy_spec(network, view, int.from_bytes(what, "big"))
        if kind == "port":
            return self._port_spec(view, view.ports.get(what))
        if kind == "peer":
            host = view.at.get(what)
            if not host or host == self._host or host not in view.behind:  # nothing stays of a host without addresses
                return None
            return PeerSpec(network, what, view.peers[host].vtep)
        return self.remotes(network, [what]).get(key)

    def _policy_spec(self, network: bytes, view: NetworkView, identity: int) -> PolicySpec | None:
        groups = view.groups_of(identity)
        if groups is None or any(group not in self.groups for group in groups):
            return None
        rules = {
            RuleSpec(
                rule.egress,
                rule.protocol,
                rule.port_min,
                rule.port_max,
                rule.remote_group,
                rule.remote_first,
                rule.remote_prefix,
            )
            for group in groups
            for rule in self.groups[group].rules
            if rule.ethertype == IPV4
        }
        return PolicySpec(network, identity, tuple(sorted(rules)))

    def _port_spec(self, view: NetworkView, port: Port | None) -> PortSpec | None:
        if port is None or view.network is None:
            return None
        return PortSpec(
            port.network,
            port.id,
            port.mac,
            tuple(ip for ip in port.ips if self._lies_in_a_subnet(view, ip)),
            port.identity if port.security else 0,
            port.admin_up and view.network.admin_up,
            port.security,
            tuple(pair for pair in port.pairs if len(pair[0]) == IPV4),
        )

    def _lies_in_a_subnet(self, view: NetworkView, ip: bytes) -> bool:
        return len(ip) == IPV4 and any(_inside(ip, subnet) for subnet in view.subnets.values())

    def remotes(self, network: bytes, ips: Iterable[bytes]) -> dict[SpecKey, RemoteSpec]:
        """`spec` of many addresses of other hosts: those that the driver should hold."""
        view = self.networks.get(network)
        if view is None or not view.ports or view.network is None:
            return {}
        found: dict[SpecKey, RemoteSpec] = {}
        neighbours, local = view.neighbours, view.local
        macs = {host: peer.mac for host, peer in view.peers.items() if host != self._host}
        for ip in ips:
            item = neighbours.get(ip)
            mac = macs.get(item.host) if item is not None else None
            if mac is not None and ip not in local and len(ip) == IPV4:
                found["remote", network, ip] = RemoteSpec(network, ip, mac)
        return found

    def changed(self) -> list[SpecKey]:
        """All that is to be computed again."""
        return [*self.dirty, *(("remote", network, ip) for network, ips in self.addresses.items() for ip in ips)]

    def waits(self, port: Port) -> str:
        """Why a port cannot be what it should be yet, in words; empty when it can."""
        view = self.networks[port.network]
        if view.network is None:
            return "waits for its network"
        for ip in port.ips:
            if len(ip) == IPV4 and not self._lies_in_a_subnet(view, ip):
                return f"waits for the subnet of {ip_text(ip)}"
        if port.security and any(group not in self.groups for group in port.groups):
            return "waits for its security groups"
        return ""

    def needs(self, port: Port) -> list[SpecKey]:
        """What must be in the kernel before the port is what it should be: itself last."""
        keys: list[SpecKey] = [("network", port.network, b"")]
        if port.security:
            groups = [self.groups[group] for group in port.groups if group in self.groups]
            rules = [rule for group in groups for rule in group.rules if rule.ethertype == IPV4]
            remote = {rule.remote_group for rule in rules if rule.remote_group}
            keys += [("members", port.network, group) for group in remote]
            keys.append(_policy_key(port.network, port.identity))
        keys.append(("port", port.network, port.id))
        return keys


def _policy_key(network: bytes, identity: int) -> SpecKey:
    return ("policy", network, identity.to_bytes(2, "big"))


def _network_spec(network: Network, view: NetworkView) -> NetworkSpec:
    subnets = sorted(
        (item.first, item.prefix, item.gateway) for item in view.subnets.values() if len(item.first) == IPV4
    )
    return NetworkSpec(network.id, network.vni, network.mtu, tuple(SubnetSpec(*each) for each in subnets))


def _inside(ip: bytes, subnet: Subnet) -> bool:
    return len(subnet.first) == IPV4 and (ip_int(ip) ^ ip_int(subnet.first)) >> (32 - subnet.prefix) == 0
