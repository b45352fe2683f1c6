"""The data plane of one host in a real Linux kernel: a namespace per network, each a router of its own.

Made by the agent's composition root; follows the protocol in `planes.data.driver`. This module sorts specs into
networks and collects reasons; `network` and `vif` talk to the kernel. It touches nothing that does not bear the
cloud's name and alias.
"""

import asyncio
import logging
import os
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

from planes.data.driver import (
    DriverError,
    MembersSpec,
    NetworkSpec,
    PeerSpec,
    PolicySpec,
    PortSpec,
    RemoteSpec,
    Spec,
    SpecKey,
    Transaction,
)
from planes.data.linux import audit, namespaces, netlink, nft, surplus, timings, vif
from planes.data.linux.drops import Tally, dropped
from planes.data.linux.netlink import Netlink
from planes.data.linux.network import Host, Network, Reasons, Refused
from planes.data.linux.nft import NftError
from planes.data.linux.skeleton import port_link_names
from planes.data.linux.tally import transactions
from planes.model import ids

log = logging.getLogger(__name__)

#: rule N17: entries in the neighbour table, which all namespaces share
_NEIGHBOURS = 1 << 20
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}

#: rule N17: what one host carries at most
_MOST_NETWORKS, _MOST_PORTS = 4_000, 16_000
#: networks whose drops one call reads: some 5 ms, for which an apply may have to wait
_READ = 32
#: objects sorted before the loop runs again
_PAUSE = 4_096
#: what a kernel, or another owner, may answer
_EXPECTED = (OSError, Refused, NftError)

S = TypeVar("S")
T = TypeVar("T")
K = TypeVar("K")


class LinuxDriver:
    """Implements `planes.data.driver.Driver`. The host's namespace is the one that the process is in at `open()`."""

    def __init__(self, cloud: str, *, port: int = 4789, group: int = netlink.DOOMED) -> None:
        self._cloud = cloud
        self._port = port
        self._group = group
        self._host: Host | None = None
        self._networks: dict[bytes, Network] = {}
        self._errors = 0
        self._repairs = 0  # in networks that are gone
        self._tally = Tally()
        self._transactions: list[Transaction] = []
        self._unread: list[Network] = []  # whose drops are yet to be read
        self._looks = surplus.Looks()
        self._lost: set[SpecKey] = set()  # told by notices that were read before the next audit

    async def open(self, vtep: bytes, vtep_mac: bytes) -> None:
        _require()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # four sockets for each network
        raise_neighbour_limits()
        self._looks, self._lost = surplus.Looks(), set()
        namespace = namespaces.current()
        self._host = Host(self._cloud, namespace, Netlink(), vtep, vtep_mac, self._port, self._group)
        try:
            await asyncio.to_thread(self._take_over)
        except BaseException:
            await self.close()
            raise

    def _take_over(self) -> None:
        host = self._opened()
        for name in namespaces.names(f"{self._cloud}-"):
            number = name.removeprefix(f"{self._cloud}-")
            if not number.isdecimal():
                continue
            try:
                if not namespaces.is_whole(name):
                    namespaces.delete(name)
                    continue
                network = Network.take_over(host, name, int(number))
                if network and not network.whole and not network.links:  # half destroyed, or not yet built
                    network.destroy()
                    continue
            except _EXPECTED as error:
                raise DriverError(f"cannot take over the namespace {name}: {error}") from error
            if network:
                self._networks[network.network] = network

    async def close(self) -> None:
        for network in self._networks.values():
            network.close()
        self._networks.clear()
        if self._host:
            self._host.route.close()
            os.close(self._host.namespace)
            self._host = None

    async def held(self) -> Mapping[SpecKey, Spec | None]:
        return await asyncio.to_thread(self._read)

    def _read(self) -> dict[SpecKey, Spec | None]:
        held: dict[SpecKey, Spec | None] = {}
        for network in self._networks.values():
            held.update(network.held())
        return held

    def networks(self) -> list[Network]:
        """The networks that are here, in the order in which they came."""
        return list(self._networks.values())

    def counters(self) -> dict[str, int]:
        repairs = self._repairs + sum(network.repairs for network in self._networks.values())
        return {"repairs": repairs, "errors": self._errors, **transactions}

    async def drops(self) -> dict[str, int]:
        self._unread = self._unread or self.networks()
        some, self._unread = self._unread[:_READ], self._unread[_READ:]
        await asyncio.to_thread(self._count, [one for one in some if self._networks.get(one.network) is one])
        return dict(self._tally.total)

    def _count(self, networks: Iterable[Network]) -> None:
        for network in networks:
            try:
                self._tally.add(network.network, dropped(network))
            except OSError:  # it is damaged: the audit says so
                log.debug("the drops of vni %d cannot be read", network.vni, exc_info=True)

    def transactions(self) -> Sequence[Transaction]:
        return self._transactions

    async def audit(self) -> frozenset[SpecKey]:
        lost, self._lost = self._lost, set()
        for network in list(self._networks.values()):
            try:
                lost |= audit.damaged(network)
                if network.suspicious():
                    lost |= await asyncio.to_thread(audit.filters, network)
            except _EXPECTED as error:
                self._errors += 1
                lost.add(("network", network.network, b""))  # what was told so far is forgotten: all is in doubt
                log.warning("vni %d cannot be looked after: %s", network.vni, error)
        return frozenset(lost)

    async def surplus(self, known: Mapping[SpecKey, Spec | None]) -> Mapping[SpecKey, Spec | None]:
        found: dict[SpecKey, Spec | None] = {}
        if hinted := [network for network in self._networks.values() if network.watch.added]:
            found = await asyncio.to_thread(surplus.hinted, hinted, known)
        if chosen := self._looks.choose(self._networks.values(), time.monotonic()):
            more, count, spent = await asyncio.to_thread(surplus.look, chosen, known)
            self._looks.spent(count, spent)
            found |= more
        return found

    async def apply(self, puts: Iterable[Spec], drops: Iterable[SpecKey]) -> Mapping[SpecKey, str]:
        self._transactions = timings.gather()
        failed: dict[SpecKey, str] = {}
        obsolete = await _sorted(drops, lambda key: (key[1], key[0]))
        for kinds in obsolete.values():
            if "network" in kinds:
                failed |= await self._drop_network(kinds["network"][0])
        for network, specs in (await _sorted(puts, lambda spec: (spec.network, type(spec)))).items():
            failed |= await self._put(network, specs)
        for network, keys in obsolete.items():
            if "network" not in keys and network in self._networks:
                failed |= await _drop(self._networks[network], keys)
                self._others(self._networks[network], {key for some in keys.values() for key in some})
        self._errors += len(failed)
        return failed

    # ---- puts --------------------------------------------------------------------------------------------------------

    async def _put(self, network_id: bytes, specs: dict[type[Spec], list[Spec]]) -> dict[SpecKey, str]:
        """All specs of one network, by kind."""
        if (known := self._networks.get(network_id)) is not None:
            known.begin()
        failed: dict[SpecKey, str] = {}
        for spec in _of(specs, NetworkSpec):
            try:
                await self._put_network(spec)
            except _EXPECTED as error:
                failed[spec.key] = f"vni {spec.vni}: {error}"
        network = self._networks.get(network_id)
        if network is None or not network.whole:
            missing = f"network {ids.text(network_id)} is not on this host"
            return {spec.key: failed.get(spec.key, missing) for some in specs.values() for spec in some}
        policies, ports = _of(specs, PolicySpec), _of(specs, PortSpec)
        peers, remotes = _of(specs, PeerSpec), _of(specs, RemoteSpec)
        for member in _of(specs, MembersSpec):
            failed |= await _attempt(network, lambda m=member: network.put_members(m), [member])  # type: ignore[misc]
        failed |= await _attempt(network, lambda: network.put_policies(policies), policies)
        failed |= (full := self._refuse(network, ports))
        ports = [spec for spec in ports if spec.key not in full]
        failed |= await _attempt(network, lambda: vif.put(network, ports), ports)
        failed |= await _attempt(network, lambda: network.put_peers(peers), peers)
        failed |= await _attempt(network, lambda: network.put_remotes(remotes), remotes)
        network.end()
        return failed

    async def _put_network(self, spec: NetworkSpec) -> None:
        network = self._networks.get(spec.network)
        if network is None:
            network = self._place_for(spec)
            await asyncio.to_thread(network.build)
            self._networks[spec.network] = network
        elif network.vni != spec.vni:
            raise Refused(f"the network is here already as vni {network.vni}")
        await asyncio.to_thread(network.put, spec)

    def _place_for(self, spec: NetworkSpec) -> Network:
        """A network that is yet to be built, if there is room for one."""
        holder = next((one for one in self._networks.values() if one.vni == spec.vni), None)
        if holder:
            raise Refused(f"network {ids.text(holder.network)} has this vni here")
        if len(self._networks) >= _MOST_NETWORKS:
            raise Refused(f"the host is full: it has {_MOST_NETWORKS} networks")
        return Network(self._opened(), spec.network, spec.vni)

    def _refuse(self, network: Network, ports: list[PortSpec]) -> Reasons:
        """Which ports there is no room for on this host."""
        room = _MOST_PORTS - sum(len(one.links) for one in self._networks.values())
        if len(ports) <= room:
            return {}
        new = [spec for spec in ports if port_link_names(spec.id)[0] not in network.links]
        return {spec.key: f"the host is full: it has {_MOST_PORTS} ports" for spec in new[max(room, 0) :]}

    # ---- drops -------------------------------------------------------------------------------------------------------

    async def _drop_network(self, key: SpecKey) -> dict[SpecKey, str]:
        network = self._networks.pop(key[1], None)
        if network is None:
            return {}
        self._repairs += network.repairs
        await asyncio.to_thread(self._count, [network])
        self._tally.forget(network.network)
        try:
            await asyncio.to_thread(network.destroy)
        except _EXPECTED as error:
            return {key: f"vni {network.vni}: {error}"}
        return {}

    def _others(self, network: Network, own: set[SpecKey]) -> None:
        """Of what went away meanwhile keep what we did not remove: of neighbours the kernel does not say who did, so
        that later nobody could tell, nor whether they are too many to be told."""
        try:
            self._lost |= audit.damaged(network) - own
        except _EXPECTED as error:
            self._lost.add(("network", network.network, b""))
            log.warning("vni %d cannot be looked after: %s", network.vni, error)

    def _opened(self) -> Host:
        if self._host is None:
            raise DriverError("the driver is not open")
        return self._host


async def _drop(network: Network, keys: dict[str, list[SpecKey]]) -> dict[SpecKey, str]:
    """Remove objects of one network, the last to come to life first."""

    def what(kind: str) -> list[bytes]:
        return [key[2] for key in keys.get(kind, ())]

    network.begin()
    failed: dict[SpecKey, str] = {}
    failed |= await _attempt(network, lambda: network.drop_remotes(what("remote")), keys.get("remote", ()))
    failed |= await _attempt(network, lambda: network.drop_peers(what("peer")), keys.get("peer", ()))
    failed |= await _attempt(network, lambda: vif.drop(network, what("port")), keys.get("port", ()))
    for key in keys.get("policy", ()):
        identity = int.from_bytes(key[2], "big")
        failed |= await _attempt(network, lambda i=identity: network.drop_policy(i), [key])  # type: ignore[misc]
    for key in keys.get("members", ()):
        failed |= await _attempt(network, lambda k=key: network.drop_members(k[2]), [key])  # type: ignore[misc]
    network.end()
    return failed


async def _attempt(
    network: Network,
    act: Callable[[], Awaitable[Reasons] | Reasons | None],
    objects: Sequence[Spec] | Sequence[SpecKey],
) -> Reasons:
    """Do something with some objects; the reasons why not, by key. What stops the whole fails each of them."""
    if not objects:
        return {}
    try:
        result = act()
        reasons = await result if isinstance(result, Awaitable) else result
    except _EXPECTED as error:
        reasons = {one if isinstance(one, tuple) else one.key: str(error) for one in objects}
    return {key: f"vni {network.vni}: {reason}" for key, reason in (reasons or {}).items()}


async def _sorted(items: Iterable[T], place: Callable[[T], tuple[bytes, K]]) -> dict[bytes, dict[K, list[T]]]:
    """Things by network and kind; the loop runs now and then, for there may be a hundred thousand."""
    found: dict[bytes, dict[K, list[T]]] = {}
    for number, item in enumerate(items, 1):
        network, kind = place(item)
        found.setdefault(network, {}).setdefault(kind, []).append(item)
        if number % _PAUSE == 0:
            await asyncio.sleep(0)
    return found


def _of(specs: dict[type[Spec], list[Spec]], kind: type[S]) -> list[S]:
    return cast(list[S], specs.get(cast(type[Spec], kind), []))


def raise_neighbour_limits() -> None:
    """Make room in the neighbour table. Only the machine's first namespace has the setting."""
    for name, share in (("gc_thresh3", 1), ("gc_thresh2", 2), ("gc_thresh1", 4)):
        present = namespaces.read_sysctl(f"ipv4/neigh/default/{name}")
        if present is not None and present < _NEIGHBOURS // share:
            try:
                namespaces.sysctl(f"ipv4/neigh/default/{name}", _NEIGHBOURS // share)
            except OSError:
                return  # read-only /proc: the administrator's choice


def _require() -> None:
    """Say in one sentence what is missing, if anything is."""
    with open("/proc/thread-self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        raise DriverError(f"the agent lacks {' and '.join(missing)}: run it as root or grant the capability")
    try:
        nft.library()
    except OSError as error:
        raise DriverError(f"libnftables is missing (Debian package libnftables1): {error}") from error
