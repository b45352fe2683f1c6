"""One network on this host: its namespace, and how it is brought from what it is to what it should be.

Called by `driver`, one call at a time. The state here is what the kernel is known to hold (read back at the start,
kept up to date by what succeeded), so that applying an unchanged spec touches nothing that carries traffic. Order
is rule N13's: policy, link, neighbour; removal in reverse.
"""

import asyncio
import contextlib
import errno
import logging
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from msgspec import Struct

from planes.data.driver import MembersSpec, NetworkSpec, PeerSpec, PolicySpec, RemoteSpec, Spec, SpecKey
from planes.data.linux import namespaces, netlink, nfnetlink, readback, skeleton
from planes.data.linux.netlink import Link, Message, Netlink
from planes.data.linux.nfnetlink import ARP, INET, Change, Element
from planes.data.linux.nft import Nft, NftError
from planes.data.linux.renewal import renewal
from planes.data.linux.skeleton import TABLE, VXLAN, Footprint
from planes.data.linux.watch import Watch
from planes.model import ids

log = logging.getLogger(__name__)

_LOOPBACK = 1
_VXLAN_INDEX = 10
_FIRST_PORT_INDEX = 1000
#: neighbours in one send: under 32 KB and about 2 ms
_STEP = 512
#: descriptors that a network must leave for everything else
_RESERVE = 16

T = TypeVar("T")
Reasons = dict[SpecKey, str]

_SYSCTLS = (
    ("ipv4/ip_forward", 1),
    ("ipv4/conf/all/rp_filter", 0),
    ("ipv4/conf/default/rp_filter", 0),
    ("ipv4/conf/all/send_redirects", 0),
    ("ipv4/conf/default/send_redirects", 0),
    ("ipv4/conf/all/accept_redirects", 0),
    ("ipv4/conf/default/accept_redirects", 0),
    ("ipv4/conf/all/accept_source_route", 0),
    ("ipv4/conf/default/accept_source_route", 0),
    ("ipv4/conf/all/arp_accept", 0),
    ("ipv4/conf/default/arp_accept", 0),
    ("ipv6/conf/all/disable_ipv6", 1),
    ("ipv6/conf/default/disable_ipv6", 1),
)


class Host(Struct, frozen=True):
    """What every network of this host shares."""

    cloud: str
    namespace: int  # an open file of the host's namespace
    route: Netlink
    vtep: bytes
    vtep_mac: bytes
    port: int
    group: int


class Refused(Exception):
    """The kernel or another owner stands in the way; the sentence says what and why."""


class Network:
    """The namespace `<cloud>-<VNI>` and the sockets into it."""

    def __init__(self, host: Host, network: bytes, vni: int) -> None:
        self.host = host
        self.network = network
        self.vni = vni
        self.name = f"{host.cloud}-{vni}"
        self.mtu = 0
        self.links: dict[str, Link] = {}
        self.footprints: dict[str, Footprint] = {}
        self.chains: set[str] = set()
        self.next_index = _FIRST_PORT_INDEX
        self.repairs = 0  # things found missing and made again
        self.base: Counter[str] = Counter()  # rules in the chains that every network has
        self.generation = 0  # of the filters, when we last changed or compared them
        self.doubt = False  # somebody else has changed them since
        self._vxlan: Link | None = None
        self.gateways: frozenset[bytes] = frozenset()
        self.prefixes: frozenset[tuple[bytes, int]] = frozenset()
        self.policies: dict[int, str] = {}
        self.members: dict[bytes, frozenset[int]] = {}
        self.sets: set[str] = set()

    def _open(self) -> None:
        """Open the sockets; the calling thread is in the namespace.

        Raises OSError while few descriptors are left: libnftables ends the whole process when it gets none.
        """
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(os.listdir("/proc/self/fd")) + _RESERVE > limit:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.route = Netlink()
        self.filters = Netlink(netlink.NETFILTER)
        self.nft = Nft()
        self.watch = Watch(self.route.address)

    # ---- birth, take-over and death (in a thread) --------------------------------------------------------------------

    def build(self) -> None:
        """Make the namespace, whole, then name it."""

        def prepare() -> None:
            self._open()
            for key, value in _SYSCTLS:
                namespaces.sysctl(key, value)
            self.nft.run(skeleton.RULESET)
            self._know_filters()
            alias = netlink.alias_attr(ids.text(self.network))
            self._do("bring up lo", [netlink.set_link(_LOOPBACK, up=True, attributes=alias)])

        try:
            namespaces.create(self.name, prepare)
        except FileExistsError:
            self.close()
            raise Refused(f"the namespace {self.name} exists and is not ours") from None
        except (OSError, NftError, Refused) as error:
            self.close()
            raise Refused(f"cannot make the namespace {self.name}: {_sentence(error)}") from error

    @classmethod
    def take_over(cls, host: Host, name: str, vni: int) -> "Network | None":
        """The network whose namespace this is, with all that it holds; None if it is not ours."""
        with namespaces.entered(name):
            route = Netlink()
        try:
            network = readback.owner(route)
        finally:
            route.close()
        if not network:
            return None
        taken = cls(host, network, vni)
        with namespaces.entered(name):
            taken._open()
        taken._restore_rules()
        taken._know_filters()
        taken._remember(taken.read())
        taken.gateways = readback.gateways(name)
        return taken

    def _restore_rules(self) -> None:
        """Without its tables a namespace would forward anything: unless they are there and ours, both are made anew.

        Those of another release become ours under traffic: an upgrade stops none.
        """
        chains = {family: nfnetlink.chain_names(self.filters, family, TABLE) for family in (INET, ARP)}
        if skeleton.VERSION in chains[INET] and "input" in chains[ARP]:
            return
        self.repairs += 1
        if all(chains.values()):
            try:
                self._succeed()
            except NftError as error:
                log.warning("%s: the filters of another release cannot become this one's: %s", self.name, error)
            else:
                return
        self.nft.run(skeleton.REPLACEMENT)

    def _succeed(self) -> None:
        """Make another release's filters ours, in place."""
        steps = renewal("".join(self.nft.run(f"list table {family} {TABLE}") for family in ("inet", "arp")))
        self.nft.run(steps.begin)
        self.nft.run(steps.end)
        for text in steps.rest:
            with contextlib.suppress(NftError):
                self.nft.run(text)

    def _know_filters(self) -> None:
        rules = (nfnetlink.rules(self.filters, family, TABLE) for family in (INET, ARP))
        self.base = skeleton.base_rules(*rules)
        self.generation = nfnetlink.generation(self.filters)

    def renew(self) -> None:
        """Make the tables anew, closed; what ports and policies had in them has to be put again."""
        self.nft.run(skeleton.REPLACEMENT)
        self.repairs += 1
        self.chains, self.sets, self.policies, self.members = set(), set(), {}, {}
        self.footprints = {name: Footprint(frozenset(), was.addresses) for name, was in self.footprints.items()}
        self._know_filters()

    def begin(self) -> None:
        """We are about to change things: did somebody else change the filters since we last did?"""
        self.doubt = self.suspicious()

    def end(self) -> None:
        """We have changed things."""
        self.generation = nfnetlink.generation(self.filters)

    def suspicious(self) -> bool:
        """Whether the filters may not be as we left them."""
        return self.doubt or nfnetlink.generation(self.filters) != self.generation

    def name_again(self) -> None:
        """The namespace lost its name, not its life: our sockets are in it."""
        namespace = self.route.namespace()
        try:
            namespaces.give_name(self.name, namespace)
        finally:
            os.close(namespace)
        self.repairs += 1

    def forget_device(self) -> None:
        """The VXLAN device is gone, and what was on it."""
        self._vxlan = None
        self.prefixes = frozenset()

    def raise_device(self) -> None:
        """The VXLAN device was taken down: bring it up; its routes have to be put again."""
        self.prefixes = frozenset()
        self._do(
            "bring up vxlan", [netlink.set_link(_VXLAN_INDEX, up=True)], {errno.ENODEV}
        )  # it goes down to be deleted

    def read(self) -> readback.Snapshot:
        """What the kernel holds now; on sockets of its own, for it runs beside the loop."""
        with namespaces.entered(self.name):
            route, filters = Netlink(), Netlink(netlink.NETFILTER)
        try:
            return readback.read(self.network, route, filters)
        finally:
            route.close()
            filters.close()

    def held(self) -> dict[SpecKey, Spec | None]:
        """What exists in it."""
        seen = self.read()
        return seen.found(stays=seen.vxlan is not None and self._is_ours(seen.vxlan))

    def _is_ours(self, device: Link) -> bool:
        """Whether the VXLAN device ends the tunnels of this host as it is now."""
        return (device.mac, device.local) == (self.host.vtep_mac, self.host.vtep)

    def _remember(self, seen: readback.Snapshot) -> None:
        self._vxlan = seen.vxlan
        self.mtu = seen.vxlan.mtu if seen.vxlan else 0
        self.links = dict(seen.links)
        self.footprints = dict(seen.footprints)
        self.chains = set(seen.chains)
        self.next_index = max([_FIRST_PORT_INDEX, *(link.ifindex + 1 for link in seen.links.values())])
        self.prefixes = seen.prefixes
        self.members = dict(seen.members)
        self.sets = set(seen.sets)
        self.policies = dict.fromkeys(seen.policies, "")
        orphans = [name for name in self.footprints if name not in self.links]
        self.forget_elements(orphans)  # of links that went away with their instance: they can match nothing

    def close(self) -> None:
        for name in ("route", "filters", "nft", "watch"):
            if (resource := self.__dict__.pop(name, None)) is not None:
                resource.close()

    def destroy(self) -> None:
        """Remove the links, then the namespace. A socket left open would keep it alive, so they go first."""
        doomed = [link.ifindex for link in netlink.links(self.route) if link.ifindex != _LOOPBACK]
        try:
            self.delete_links(doomed)
        finally:
            self.close()
            namespaces.delete(self.name)

    def delete_links(self, indexes: Iterable[int]) -> None:
        """Delete links, on a socket of its own so that nothing waits behind it."""
        with namespaces.entered(self.name):
            own = Netlink()
        try:
            failures = netlink.delete_together(own, indexes, self.host.group)
        finally:
            own.close()
        if failures:
            raise Refused(f"cannot delete links: {failures[0].text}")

    # ---- the network itself ------------------------------------------------------------------------------------------

    def put(self, spec: NetworkSpec) -> None:
        """Make device, prefixes, gateways and MTU what the spec says; what is already so is not touched."""
        device = self._device(spec)
        if device.mtu != spec.mtu:
            self._do(
                "set the MTU", [netlink.set_link(device.ifindex, attributes=netlink.attr(4, netlink.u32(spec.mtu)))]
            )
            self._vxlan = device._replace(mtu=spec.mtu)
        self.mtu = spec.mtu
        prefixes = frozenset((subnet.first, subnet.prefix) for subnet in spec.subnets)
        gateways = frozenset(subnet.gateway for subnet in spec.subnets if subnet.gateway)
        added = [
            Message(netlink.NEWADDR, netlink.CHANGE, netlink.address(ip, 32, 1)) for ip in gateways - self.gateways
        ]
        added += [
            Message(netlink.NEWROUTE, netlink.CHANGE, netlink.route(*prefix, device.ifindex))
            for prefix in prefixes - self.prefixes
        ]
        self._do("add subnets", added)
        removed = [
            Message(netlink.DELROUTE, 0, netlink.route(*prefix, device.ifindex)) for prefix in self.prefixes - prefixes
        ]
        removed += [Message(netlink.DELADDR, 0, netlink.address(ip, 32, 1)) for ip in self.gateways - gateways]
        self._do("remove subnets", removed, {errno.ESRCH, errno.EADDRNOTAVAIL})
        self.prefixes, self.gateways = prefixes, gateways

    def _device(self, spec: NetworkSpec) -> Link:
        """The VXLAN device: as it is, corrected, or made."""
        alias = ids.text(self.network)
        device = netlink.link(self.route, VXLAN)
        if device is None:
            device = self._make_device(spec, alias)
        elif device.alias != alias:
            raise Refused(f"the device {VXLAN} in {self.name} belongs to {device.alias or 'somebody else'}")
        elif not self._is_ours(device):
            # a changed device would refuse identities from the wire (kernel 6.14 and later), so it is made anew; its
            # peers and remotes follow with the goal state
            self.delete_links([device.ifindex])
            device = self._make_device(spec, alias)
        self._vxlan = device
        return device

    def _make_device(self, spec: NetworkSpec, alias: str) -> Link:
        host = self.host
        with namespaces.entered(self.name):  # proxy ARP is for ports alone, and devices inherit the default
            namespaces.sysctl("ipv4/conf/default/proxy_arp", 0)
        namespace = namespaces.open_namespace(self.name)
        try:
            message = netlink.vxlan(
                VXLAN, _VXLAN_INDEX, self.vni, host.vtep, host.port, host.vtep_mac, spec.mtu, namespace
            )
            failures = host.route.send([message])
        finally:
            os.close(namespace)
        if failures:
            raise Refused(f"cannot create vxlan: {failures[0].text}")
        with namespaces.entered(self.name):
            namespaces.sysctl("ipv4/conf/default/proxy_arp", 1)
        up = netlink.set_link(_VXLAN_INDEX, up=True, attributes=netlink.alias_attr(alias))
        self._do("bring up vxlan", [up, netlink.neighbour_timing(_VXLAN_INDEX, probes=0)])
        self.prefixes = frozenset()
        return Link(_VXLAN_INDEX, VXLAN, alias, host.vtep_mac, spec.mtu, True, host.vtep)

    # ---- groups and policies -----------------------------------------------------------------------------------------

    def put_members(self, spec: MembersSpec) -> None:
        """Make a group's set hold exactly these identities, and the mark that it was put."""
        name = skeleton.group_set(spec.group)
        if name not in self.sets:
            self.nft.run(f"add set inet {TABLE} {name} {skeleton.GROUP_TYPE}")
            self.sets.add(name)
        former = self.members.get(spec.group)
        old = set() if former is None else former | {skeleton.PRESENT}
        new = spec.identities | {skeleton.PRESENT}
        self.commit(Change(removed=_marks(name, old - new), added=_marks(name, new - old)))
        self.members[spec.group] = spec.identities

    def drop_members(self, group: bytes) -> None:
        """Empty a group's set; it goes as soon as no rule names it."""
        former = self.members.get(group)
        if former is not None:
            self.commit(Change(removed=_marks(skeleton.group_set(group), former | {skeleton.PRESENT})))
            del self.members[group]
        self._drop_unused_sets()

    def put_policies(self, specs: Sequence[PolicySpec]) -> Reasons:
        """Replace chains; all in one transaction, one by one if that is refused."""
        texts = {spec.identity: skeleton.policy_text(spec) for spec in specs}
        changed = [spec for spec in specs if self.policies.get(spec.identity) != texts[spec.identity]]
        if not changed:
            return {}
        try:
            self.nft.run("\n".join(texts[spec.identity] for spec in changed))
        except NftError as error:
            if len(changed) == 1:
                return {changed[0].key: f"cannot set the rules: {error}"}
            failed: Reasons = {}
            for spec in changed:
                failed |= self.put_policies([spec])
            return failed
        for spec in changed:
            self.policies[spec.identity] = texts[spec.identity]
            self.chains.update(skeleton.chain_pair(spec.identity))
            self.sets.update(skeleton.groups(spec))
        return {}

    def drop_policy(self, identity: int) -> None:
        """Take an identity's rules away. Ports that still have the identity then forward nothing."""
        chains = [name for name in skeleton.chain_pair(identity) if name in self.chains]
        if identity in self.policies:
            self.nft.run("\n".join(f"flush chain inet {TABLE} {name}" for name in chains))
            del self.policies[identity]
        self.drop_unused_chains()
        self._drop_unused_sets()

    def drop_unused_chains(self) -> None:
        """Remove chains that neither a policy nor a port needs."""
        kept = {name for identity in self.policies for name in skeleton.chain_pair(identity)}
        kept |= {e.data for f in self.footprints.values() for e in f.elements if isinstance(e.data, str)}
        gone = self.chains - kept
        if gone:
            self.commit(Change(gone=tuple(gone)))
            self.chains -= gone

    def _drop_unused_sets(self) -> None:
        for name in self.sets - {skeleton.group_set(group) for group in self.members}:
            try:
                self.nft.run(f"delete set inet {TABLE} {name}")
                self.sets.discard(name)
            except NftError:
                pass  # a rule still names it

    # ---- peers and remotes -------------------------------------------------------------------------------------------

    async def put_peers(self, specs: Sequence[PeerSpec]) -> Reasons:
        index, kind, flags = self._device_index(), netlink.NEWNEIGH, netlink.CHANGE
        failed = await self._push(specs, lambda s: Message(kind, flags, netlink.fdb(s.mac, index, s.vtep)))
        return {specs[position].key: reason for position, reason in failed.items()}

    async def drop_peers(self, macs: Sequence[bytes]) -> Reasons:
        index, kind = self._device_index(), netlink.DELNEIGH
        failed = await self._push(macs, lambda mac: Message(kind, 0, netlink.fdb(mac, index)), errno.ENOENT)
        return {("peer", self.network, macs[position]): reason for position, reason in failed.items()}

    async def put_remotes(self, specs: Sequence[RemoteSpec]) -> Reasons:
        index, kind, flags = self._device_index(), netlink.NEWNEIGH, netlink.CHANGE
        failed = await self._push(specs, lambda s: Message(kind, flags, netlink.neighbour(s.ip, s.via, index)))
        return {specs[position].key: reason for position, reason in failed.items()}

    async def drop_remotes(self, addresses: Sequence[bytes]) -> Reasons:
        index, kind = self._device_index(), netlink.DELNEIGH
        failed = await self._push(addresses, lambda ip: Message(kind, 0, netlink.no_neighbour(ip, index)), errno.ENOENT)
        return {("remote", self.network, addresses[position]): reason for position, reason in failed.items()}

    async def _push(self, items: Sequence[T], pack: Callable[[T], Message], tolerated: int = 0) -> dict[int, str]:
        """Send one message per item, some at a time, letting the loop run in between. Reasons by position."""
        failed: dict[int, str] = {}
        for start in range(0, len(items), _STEP):
            for failure in self.route.send([pack(item) for item in items[start : start + _STEP]]):
                if failure.errno != tolerated:
                    failed.setdefault(start + failure.position, failure.text)
            await asyncio.sleep(0)
        return failed

    # ---- shared ------------------------------------------------------------------------------------------------------

    def forget_elements(self, names: Iterable[str]) -> None:
        """Remove the elements of ports whose links are gone."""
        known = {name: self.footprints[name] for name in names if name in self.footprints}
        self.commit(Change(removed=tuple(e for footprint in known.values() for e in footprint.elements)))
        for name in known:
            del self.footprints[name]

    @property
    def whole(self) -> bool:
        """Whether the device that makes it a network is there."""
        return self._vxlan is not None

    @property
    def device_index(self) -> int:
        """Of the VXLAN device; 0: there is none."""
        return self._vxlan.ifindex if self._vxlan else 0

    @property
    def own_device(self) -> int:
        """The same, if it bears our mark."""
        return self._vxlan.ifindex if self._vxlan and self._vxlan.alias == ids.text(self.network) else 0

    def _device_index(self) -> int:
        if self._vxlan is None:
            raise Refused(f"the device {VXLAN} is missing")
        return self._vxlan.ifindex

    def commit(self, change: Change) -> None:
        if reason := nfnetlink.commit(self.filters, TABLE, change):
            raise Refused(f"cannot change the filter: {reason}")

    def _do(self, what: str, messages: list[Message], tolerated: Iterable[int] = ()) -> None:
        allowed = frozenset(tolerated)
        for _, part in netlink.chunks(messages):
            for failure in self.route.send(part):
                if failure.errno not in allowed:
                    raise Refused(f"cannot {what}: {failure.text}")


def _marks(name: str, identities: Iterable[int]) -> tuple[Element, ...]:
    return tuple(Element(INET, name, skeleton.mark(identity)) for identity in identities)


def _sentence(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
