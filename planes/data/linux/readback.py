"""What one network's namespace holds, read from the kernel: after a restart, and whenever someone asks.

Called by `network` and `driver`, in a thread: it blocks for as long as the kernel lists (about 3 µs per remote
address). It changes nothing.
"""

from msgspec import Struct
from pyroute2.iproute.linux import IPRoute

from planes.data.driver import PeerSpec, RemoteSpec, Spec, SpecKey
from planes.data.linux import namespaces, netlink, nfnetlink
from planes.data.linux.netlink import Link, Netlink
from planes.data.linux.nfnetlink import INET, Element
from planes.data.linux.skeleton import (
    BY_INTERFACE,
    PRESENT,
    TABLE,
    VXLAN,
    Footprint,
    chain_pair,
    group_of,
    identity_of,
    interface_of,
    mark,
)
from planes.model import ids
from planes.model.errors import Invalid


class Snapshot(Struct, frozen=True):
    """The kernel's own account of a network on this host."""

    network: bytes
    vxlan: Link | None
    links: dict[str, Link]
    footprints: dict[str, Footprint]
    prefixes: frozenset[tuple[bytes, int]]
    policies: frozenset[int]
    chains: frozenset[str]
    members: dict[bytes, frozenset[int]]
    sets: frozenset[str]
    remotes: dict[bytes, bytes]  # address → MAC of its peer
    peers: dict[bytes, bytes]  # MAC → tunnel end

    def found(self, stays: bool) -> dict[SpecKey, Spec | None]:
        """All that exists. A namespace without its VXLAN device is no whole network. `stays`: the device will not be
        made anew, and what is on it is as good as put."""
        keys: list[SpecKey] = [("network", self.network, b"")] if self.vxlan else []
        keys += [("members", self.network, group) for group in self.members]
        keys += [("policy", self.network, identity.to_bytes(2, "big")) for identity in self.policies]
        keys += [("port", self.network, id_) for link in self.links.values() if (id_ := alias_id(link.alias))]
        found: dict[SpecKey, Spec | None] = dict.fromkeys(keys)
        for mac, vtep in self.peers.items():
            found["peer", self.network, mac] = PeerSpec(self.network, mac, vtep) if stays else None
        for ip, mac in self.remotes.items():
            found["remote", self.network, ip] = RemoteSpec(self.network, ip, mac) if stays else None
        return found


def alias_id(alias: str) -> bytes:
    """The id that an alias of ours spells; empty if it is not one."""
    try:
        return ids.parse(alias)
    except Invalid:
        return b""


def owner(route: Netlink) -> bytes:
    """The network whose namespace this is: the alias of its loopback; empty if the namespace is not ours."""
    loopback = netlink.link(route, "lo")
    return alias_id(loopback.alias) if loopback else b""


def gateways(name: str) -> frozenset[bytes]:
    """The gateway addresses on a namespace's loopback."""
    with namespaces.entered(name), IPRoute() as route:  # type: ignore[no-untyped-call]
        texts = [message.get("address") for message in route.get_addr(family=netlink.AF_INET, index=1)]
    return frozenset(bytes(map(int, text.split("."))) for text in texts if not text.startswith("127."))


def read(network: bytes, route: Netlink, filters: Netlink) -> Snapshot:
    """Everything, but the gateways."""
    links = {link.name: link for link in netlink.links(route)}
    vxlan = links.get(VXLAN)
    ports = {name: link for name, link in links.items() if name.startswith("p")}
    by_index = {link.ifindex: name for name, link in ports.items()}
    neighbours = netlink.permanent_neighbours(route)
    addresses: dict[str, set[tuple[bytes, bytes]]] = {}
    remotes: dict[bytes, bytes] = {}
    for index, ip, mac in neighbours:
        if vxlan and index == vxlan.ifindex:
            remotes[ip] = mac
        elif index in by_index:
            addresses.setdefault(by_index[index], set()).add((ip, mac))
    groups, sets = members(filters)
    ruled = nfnetlink.rules(filters, INET, TABLE)
    policies = {i for chain in ruled if (i := identity_of(chain)) is not None and chain_pair(i)[1] in ruled}
    return Snapshot(
        network=network,
        vxlan=vxlan,
        links=ports,
        footprints=_footprints(filters, addresses),
        prefixes=_prefixes(route, vxlan),
        policies=frozenset(policies),
        chains=frozenset(name for name in nfnetlink.chain_names(filters, INET, TABLE) if name[1:].isdigit()),
        members=groups,
        sets=sets,
        remotes=remotes,
        peers=dict(netlink.forwarding(route, vxlan.ifindex)) if vxlan else {},
    )


def _prefixes(route: Netlink, vxlan: Link | None) -> frozenset[tuple[bytes, int]]:
    if not vxlan:
        return frozenset()
    return frozenset((first, prefix) for first, prefix, index in netlink.routes(route) if index == vxlan.ifindex)


def _footprints(filters: Netlink, addresses: dict[str, set[tuple[bytes, bytes]]]) -> dict[str, Footprint]:
    found = elements(filters)
    return {
        name: Footprint(frozenset(found.get(name, ())), frozenset(addresses.get(name, ())))
        for name in found.keys() | addresses.keys()
    }


def elements(filters: Netlink) -> dict[str, set[Element]]:
    """What the filters hold for each interface."""
    found: dict[str, set[Element]] = {}
    for family, name in BY_INTERFACE:
        for element in nfnetlink.elements(filters, family, TABLE, name):
            found.setdefault(interface_of(element.key), set()).add(element)
    return found


def members(filters: Netlink) -> tuple[dict[bytes, frozenset[int]], frozenset[str]]:
    """The groups that were put (they hold the mark of presence), and the names of all groups' sets."""
    found, names = {}, set()
    present = mark(PRESENT)
    for name in nfnetlink.set_names(filters, INET, TABLE):
        group = group_of(name)
        if group is None:
            continue
        names.add(name)
        keys = {element.key for element in nfnetlink.elements(filters, INET, TABLE, name)}
        if present in keys:
            found[group] = frozenset(int.from_bytes(key, "little") for key in keys - {present})
    return found, frozenset(names)
