"""What one network's namespace holds, read from the kernel: after a restart, and whenever someone asks.

Called by `network` and `driver`, in a thread: it blocks for as long as the kernel lists (about 3 µs per remote
address). It changes nothing.
"""

from msgspec import Struct
from pyroute2.iproute.linux import IPRoute

from planes.data.driver import SpecKey
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
    remotes: frozenset[bytes]
    peers: frozenset[bytes]

    def found(self) -> set[SpecKey]:
        """The keys of all that exists. A namespace without its VXLAN device is no whole network."""
        found: set[SpecKey] = {("network", self.network, b"")} if self.vxlan else set()
        found |= {("members", self.network, group) for group in self.members}
        found |= {("policy", self.network, identity.to_bytes(2, "big")) for identity in self.policies}
        found |= {("port", self.network, id_) for link in self.links.values() if (id_ := alias_id(link.alias))}
        found |= {("peer", self.network, mac) for mac in self.peers}
        found |= {("remote", self.network, ip) for ip in self.remotes}
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
    remotes = set()
    for index, ip, mac in neighbours:
        if vxlan and index == vxlan.ifindex:
            remotes.add(ip)
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
        remotes=frozenset(remotes),
        peers=frozenset(mac for mac, _ in netlink.forwarding(route, vxlan.ifindex)) if vxlan else frozenset(),
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
