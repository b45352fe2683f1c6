"""Finds what others have damaged in a network's namespace, and forgets it so that putting it again mends it.

Called by `driver` between two applies. It reads and mends only what bears our mark: names that lost their namespace
get it back, and tables without which a namespace would forward anything are made anew, closed.
"""

from planes.data.driver import SpecKey
from planes.data.linux import namespaces, netlink, nfnetlink, readback, skeleton
from planes.data.linux.netlink import Netlink
from planes.data.linux.network import Network
from planes.data.linux.nfnetlink import ARP, INET
from planes.data.linux.readback import alias_id
from planes.data.linux.skeleton import TABLE, VXLAN, Footprint
from planes.data.linux.watch import Notice, Overflow

_LOOPBACK = 1
#: what a footprint has in the filters is compared, its addresses are told by notices
_REMOVED = (netlink.DELNEIGH, netlink.DELROUTE)


def damaged(network: Network) -> set[SpecKey]:
    """What notices tell: cheap when there are none. A network's key stands for everything in it."""
    whole: SpecKey = ("network", network.network, b"")
    lost: set[SpecKey] = set()
    if not namespaces.exists(network.name):
        network.name_again()
        lost.add(whole)
    try:
        notices = list(network.watch.notices())
        ports = {link.ifindex: name for name, link in network.links.items()} if notices else {}
        for notice in notices:
            if key := _meaning(network, ports, notice, whole):
                lost.add(key)
    except Overflow:
        _look(network)
        lost.add(whole)
    return lost


def _meaning(network: Network, ports: dict[int, str], notice: Notice, whole: SpecKey) -> SpecKey | None:
    """Which of our objects a notice is about, if any."""
    if notice.kind == netlink.NEWNEIGH:
        network.watch.added.add((notice.device, notice.what))
        return None
    if notice.device == network.device_index:
        return _of_device(network, notice, whole)
    if notice.kind == netlink.DELADDR and notice.device == _LOOPBACK and notice.what in network.gateways:
        network.gateways -= {notice.what}
        return whole
    name = ports.get(notice.device)
    link = network.links.get(name) if name else None
    if name is None or link is None:
        return None
    key: SpecKey = ("port", network.network, alias_id(link.alias))
    if notice.kind == netlink.DELLINK and notice.family != netlink.AF_BRIDGE:
        del network.links[name]
        return key
    if notice.kind == netlink.NEWLINK:
        return key if link.up and not notice.up and _is_down(network, name) else None
    footprint = network.footprints.get(name, Footprint())
    ours = notice.kind in _REMOVED and any(ip == notice.what for ip, _ in footprint.addresses)
    return key if ours else None


def _of_device(network: Network, notice: Notice, whole: SpecKey) -> SpecKey | None:
    if notice.kind == netlink.DELLINK and notice.family != netlink.AF_BRIDGE:
        network.forget_device()
        return whole
    if notice.kind == netlink.NEWLINK:
        return _down(network, whole) if not notice.up and _is_down(network, VXLAN) else None
    if notice.kind == netlink.DELROUTE:
        network.prefixes = frozenset(prefix for prefix in network.prefixes if prefix[0] != notice.what)
        return whole
    if notice.kind != netlink.DELNEIGH:
        return None
    return ("peer" if notice.family == netlink.AF_BRIDGE else "remote", network.network, notice.what)


def _is_down(network: Network, name: str) -> bool:
    """Still now: a device that we make is down at first."""
    link = netlink.link(network.route, name)
    return link is not None and not link.up


def _down(network: Network, whole: SpecKey) -> SpecKey:
    """The device was taken down, and its routes with it."""
    network.raise_device()
    return whole


def _look(network: Network) -> None:
    """Forget what is not there, by looking: too much has happened to be told."""
    there = {link.ifindex for link in netlink.links(network.route)}
    for name in [name for name, link in network.links.items() if link.ifindex not in there]:
        del network.links[name]
    if network.device_index not in there:
        network.forget_device()
    network.gateways, network.prefixes = frozenset(), frozenset()


def filters(network: Network) -> set[SpecKey]:
    """Compare the filters with what was put (blocks, for a thread); what differs is forgotten, so that it is put."""
    network.generation = nfnetlink.generation(network.filters)
    network.doubt = False
    try:
        with namespaces.entered(network.name):
            own = Netlink(netlink.NETFILTER)
        try:
            return _compare(network, own)
        finally:
            own.close()
    except OSError:  # a set or a table is not there
        network.renew()
        return {("network", network.network, b"")}


def _compare(network: Network, own: Netlink) -> set[SpecKey]:
    rules = nfnetlink.rules(own, INET, TABLE)
    if network.base != skeleton.base_rules(rules, nfnetlink.rules(own, ARP, TABLE)):
        network.renew()
        return {("network", network.network, b"")}
    lost: set[SpecKey] = set()
    found = readback.elements(own)
    for name, link in network.links.items():
        footprint = network.footprints.get(name, Footprint())
        now = frozenset(found.get(name, ()))
        if footprint.elements != now:
            network.footprints[name] = Footprint(now, footprint.addresses)
            lost.add(("port", network.network, alias_id(link.alias)))
    for identity, text in list(network.policies.items()):
        chains = skeleton.chain_pair(identity)
        if text and any(rules[chain] != text.count(f"add rule inet {TABLE} {chain} ") for chain in chains):
            del network.policies[identity]
            lost.add(("policy", network.network, identity.to_bytes(2, "big")))
    members, names = readback.members(own)
    for group in [group for group, held in network.members.items() if members.get(group) != held]:
        del network.members[group]
        if group in members:
            network.members[group] = members[group]
        lost.add(("members", network.network, group))
    network.sets &= names
    network.chains &= nfnetlink.chain_names(own, INET, TABLE)
    return lost
