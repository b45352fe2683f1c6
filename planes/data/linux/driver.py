"""The data plane of one host in a real Linux kernel: a namespace per network, each a router of its own.

Made by the agent's composition root; follows the protocol in `planes.data.driver`. This module sorts specs into
networks and collects reasons; `network` and `vif` talk to the kernel. It touches nothing that does not bear the
cloud's name and alias.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

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
)
from planes.data.linux import namespaces, nfnetlink, nft, vif
from planes.data.linux.netlink import Netlink
from planes.data.linux.network import Host, Network, Refused
from planes.data.linux.nfnetlink import ARP, INET
from planes.data.linux.nft import NftError
from planes.data.linux.skeleton import TABLE
from planes.model import ids

#: links that are about to be deleted are gathered in this group
DOOMED = 77
#: rule N17: entries in the neighbour table, which all namespaces share
_NEIGHBOURS = 1 << 20
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}

S = TypeVar("S")


class LinuxDriver:
    """Implements `planes.data.driver.Driver`. The host's namespace is the one that the process is in at `open()`."""

    def __init__(self, cloud: str, *, port: int = 4789, group: int = DOOMED) -> None:
        self._cloud = cloud
        self._port = port
        self._group = group
        self._host: Host | None = None
        self._networks: dict[bytes, Network] = {}
        self._errors = 0
        self._former: dict[str, int] = {}  # counts of networks that are gone

    async def open(self, vtep: bytes, vtep_mac: bytes) -> None:
        _require()
        raise_neighbour_limits()
        namespace = namespaces.current()
        self._host = Host(self._cloud, namespace, Netlink(), vtep, vtep_mac, self._port, self._group)
        await asyncio.to_thread(self._take_over)

    def _take_over(self) -> None:
        host = self._opened()
        for name in namespaces.names(f"{self._cloud}-"):
            number = name.removeprefix(f"{self._cloud}-")
            if not number.isdecimal():
                continue
            try:
                network = Network.take_over(host, name, int(number))
            except (OSError, NftError, Refused) as error:
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

    async def held(self) -> frozenset[SpecKey]:
        found: set[SpecKey] = set()
        for network in self._networks.values():
            found |= (await asyncio.to_thread(network.read)).keys()
        return frozenset(found)

    def networks(self) -> list[Network]:
        """The networks that are here, in the order in which they came."""
        return list(self._networks.values())

    def counters(self) -> dict[str, int]:
        total = dict(self._former)
        for network in self._networks.values():
            _add(total, network)
        return total | {"errors": self._errors}

    async def apply(self, puts: Iterable[Spec], drops: Iterable[SpecKey]) -> Mapping[SpecKey, str]:
        failed: dict[SpecKey, str] = {}
        gone, others = _split(drops)
        for key in gone:
            failed |= await self._drop_network(key)
        wanted: dict[bytes, list[Spec]] = {}
        for spec in puts:
            wanted.setdefault(spec.network, []).append(spec)
        for specs in wanted.values():
            failed |= await self._put(specs)
        for network_id, keys in others.items():
            if network_id in self._networks:
                failed |= await _drop(self._networks[network_id], keys)
        self._errors += len(failed)
        return failed

    # ---- puts --------------------------------------------------------------------------------------------------------

    async def _put(self, specs: list[Spec]) -> dict[SpecKey, str]:
        """All specs of one network."""
        failed: dict[SpecKey, str] = {}
        for spec in _of(specs, NetworkSpec):
            try:
                await asyncio.to_thread(self._put_network, spec)
            except (OSError, Refused, NftError) as error:
                failed[spec.key] = f"vni {spec.vni}: {error}"
        network = self._networks.get(specs[0].network)
        if network is None or not network.whole:
            missing = f"network {ids.text(specs[0].network)} is not on this host"
            return {spec.key: failed.get(spec.key, missing) for spec in specs}
        for member in _of(specs, MembersSpec):
            failed |= _guard(network, member.key, lambda spec=member: network.put_members(spec))  # type: ignore[misc]
        policies = _of(specs, PolicySpec)
        for identity, reason in network.put_policies(policies).items():
            failed[PolicySpec(network.network, identity, ()).key] = f"vni {network.vni}: {reason}"
        ports = _of(specs, PortSpec)
        failed |= await _batch(network, [s.key for s in ports], lambda: vif.put(network, ports), [s.id for s in ports])
        peers = _of(specs, PeerSpec)
        failed |= await _batch(network, [s.key for s in peers], lambda: network.put_peers(peers))
        remotes = _of(specs, RemoteSpec)
        failed |= await _batch(network, [s.key for s in remotes], lambda: network.put_remotes(remotes))
        return failed

    def _put_network(self, spec: NetworkSpec) -> None:
        host = self._opened()
        network = self._networks.get(spec.network)
        if network is None:
            network = Network(host, spec.network, spec.vni)
            network.build()
            self._networks[spec.network] = network
        elif network.vni != spec.vni:
            raise Refused(f"the network is here already as vni {network.vni}")
        network.put(spec)

    # ---- drops -------------------------------------------------------------------------------------------------------

    async def _drop_network(self, key: SpecKey) -> dict[SpecKey, str]:
        network = self._networks.pop(key[1], None)
        if network is None:
            return {}
        _add(self._former, network)
        try:
            await asyncio.to_thread(network.destroy)
        except (OSError, Refused) as error:
            return {key: f"vni {network.vni}: {error}"}
        return {}

    def _opened(self) -> Host:
        if self._host is None:
            raise DriverError("the driver is not open")
        return self._host


async def _drop(network: Network, keys: list[SpecKey]) -> dict[SpecKey, str]:
    """Remove objects of one network, the last to come to life first."""
    failed: dict[SpecKey, str] = {}
    by_kind: dict[str, list[SpecKey]] = {}
    for key in keys:
        by_kind.setdefault(key[0], []).append(key)
    remotes = by_kind.get("remote", [])
    failed |= await _batch(network, remotes, lambda: network.drop_remotes([key[2] for key in remotes]))
    peers = by_kind.get("peer", [])
    failed |= await _batch(network, peers, lambda: network.drop_peers([key[2] for key in peers]))
    ports = by_kind.get("port", [])
    names = [key[2] for key in ports]
    failed |= await _batch(network, ports, lambda: vif.drop(network, names), names)
    for key in by_kind.get("policy", []):
        failed |= _guard(network, key, lambda key=key: network.drop_policy(int.from_bytes(key[2], "big")))  # type: ignore[misc]
    for key in by_kind.get("members", []):
        failed |= _guard(network, key, lambda key=key: network.drop_members(key[2]))  # type: ignore[misc]
    return failed


def _guard(network: Network, key: SpecKey, act: Callable[[], None]) -> dict[SpecKey, str]:
    try:
        act()
    except (OSError, Refused, NftError) as error:
        return {key: f"vni {network.vni}: {error}"}
    return {}


async def _batch(
    network: Network,
    keys: Sequence[SpecKey],
    act: Callable[[], Awaitable[Mapping[int, str]]] | Callable[[], Awaitable[Mapping[bytes, str]]],
    names: Sequence[bytes] | None = None,
) -> dict[SpecKey, str]:
    """Run one batch; its reasons, by index or by name, become reasons by key. What stops a batch fails all of it."""
    if not keys:
        return {}
    try:
        reasons = await act()
    except (OSError, Refused, NftError) as error:
        return dict.fromkeys(keys, f"vni {network.vni}: {error}")
    if not reasons:
        return {}
    labels: Iterable[object] = range(len(keys)) if names is None else names
    by_label = dict(zip(labels, keys, strict=True))
    return {by_label[label]: f"vni {network.vni}: {reason}" for label, reason in reasons.items()}


def _split(drops: Iterable[SpecKey]) -> tuple[list[SpecKey], dict[bytes, list[SpecKey]]]:
    """Networks to remove whole, and single objects of other networks."""
    keys = list(drops)
    gone = {key[1]: key for key in keys if key[0] == "network"}
    others: dict[bytes, list[SpecKey]] = {}
    for key in keys:
        if key[1] not in gone:
            others.setdefault(key[1], []).append(key)
    return list(gone.values()), others


def _of(specs: Iterable[Spec], kind: type[S]) -> list[S]:
    return [spec for spec in specs if isinstance(spec, kind)]


def _add(total: dict[str, int], network: Network) -> None:
    """Add what a network's filters have dropped, by reason."""
    for family, prefix in ((INET, ""), (ARP, "arp_")):
        for name, count in nfnetlink.counters(network.filters, family, TABLE).items():
            total[prefix + name] = total.get(prefix + name, 0) + count


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
