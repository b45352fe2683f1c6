"""What a network's namespace has beyond what is known to be there: neighbours and forwarding entries of ours.

Called by `driver` between two applies, in a thread. A listing of neighbours may leave some out: their table is one for
all namespaces, the kernel lists it by place, in pieces, and places change when the table grows or somebody else's
entries go. So what was read when the agent started may lack something, and nobody would ever remove it. Here it is
found by looking again, whatever the cause; what somebody puts there by hand, at once. It changes nothing and looks at
nothing but our own devices (rule N15).
"""

import time
from collections.abc import Iterable, Mapping, Sequence

from planes.data.driver import PeerSpec, RemoteSpec, Spec, SpecKey
from planes.data.linux import netlink
from planes.data.linux.network import Network
from planes.data.linux.readback import alias_id
from planes.data.linux.skeleton import Footprint

#: part of one CPU that looking may take in the long run
SHARE = 0.0005
#: seconds of CPU that may be saved up
MOST = 0.05
#: seconds of CPU after which one call ends, and networks that it looks at: an apply may have to wait for that
AT_ONCE, NETWORKS = 0.02, 32

_UNKNOWN = object()


class Looks:
    """Whose turn it is. All at once after a start, for then something may be missing of what was read; from then on at
    a cost that is bounded: the more there is, the more rarely it is looked at."""

    def __init__(self) -> None:
        self._waiting: list[Network] = []
        self._first = True
        self._saved = MOST
        self._last: float | None = None

    def choose(self, networks: Iterable[Network], now: float) -> list[Network]:
        """Those that may be looked at now, each at most once; none while more was spent than is allowed."""
        since = now - self._last if self._last is not None else 0.0
        self._last = now
        self._saved = min(self._saved + since * SHARE, MOST)
        if self._saved < 0 and not self._first:
            return []
        present = dict.fromkeys(networks)
        self._waiting = [one for one in self._waiting if one in present] or list(present)
        return self._waiting[:NETWORKS]

    def spent(self, count: int, seconds: float) -> None:
        """So many of them were looked at, for so long."""
        del self._waiting[:count]
        if not self._first:
            self._saved -= seconds
        self._first = self._first and bool(self._waiting)


def look(
    networks: Sequence[Network], known: Mapping[SpecKey, Spec | None]
) -> tuple[dict[SpecKey, Spec | None], int, float]:
    """What some networks have beyond what is known, of the first at any rate; how many were looked at; the CPU used."""
    found: dict[SpecKey, Spec | None] = {}
    begun, spent = time.thread_time(), 0.0
    for number, network in enumerate(networks):
        if spent > AT_ONCE:
            return found, number, spent
        try:
            found |= beyond(network, known)
        except OSError:  # it is damaged: the audit says so
            pass
        spent = time.thread_time() - begun
    return found, len(networks), spent


def hinted(networks: Iterable[Network], known: Mapping[SpecKey, Spec | None]) -> dict[SpecKey, Spec | None]:
    """What of the neighbours that the kernel told to have come is beyond what is known: no need to look at all."""
    found: dict[SpecKey, Spec | None] = {}
    for network in networks:
        added, network.watch.added = network.watch.added, set()
        try:
            there = [one for device, ip in added for one in netlink.permanent_neighbour(network.route, device, ip)]
            found |= _neighbours(network, known, there)
        except OSError:  # it is damaged: the audit says so
            pass
    return found


def beyond(network: Network, known: Mapping[SpecKey, Spec | None]) -> dict[SpecKey, Spec | None]:
    """Peers and remotes that are not known, or otherwise than known; ports whose device has neighbours too many."""
    id_, device = network.network, network.own_device
    found = _neighbours(network, known, netlink.permanent_neighbours(network.route))
    for mac, vtep in netlink.forwarding(network.route, device) if device else ():
        key: SpecKey = ("peer", id_, mac)
        was = known.get(key, _UNKNOWN)
        if was is _UNKNOWN or (isinstance(was, PeerSpec) and was.vtep != vtep):
            found[key] = PeerSpec(id_, mac, vtep)
    return found


def _neighbours(
    network: Network, known: Mapping[SpecKey, Spec | None], there: Iterable[tuple[int, bytes, bytes]]
) -> dict[SpecKey, Spec | None]:
    id_, device = network.network, network.own_device
    found: dict[SpecKey, Spec | None] = {}
    ports = {link.ifindex: name for name, link in network.links.items()}
    more: dict[str, set[tuple[bytes, bytes]]] = {}
    for index, ip, mac in there:
        if device and index == device:
            key: SpecKey = ("remote", id_, ip)
            was = known.get(key, _UNKNOWN)
            if was is _UNKNOWN or (isinstance(was, RemoteSpec) and was.via != mac):
                found[key] = RemoteSpec(id_, ip, mac)
        elif index in ports and (ip, mac) not in network.footprints.get(ports[index], Footprint()).addresses:
            more.setdefault(ports[index], set()).add((ip, mac))
    for name, addresses in more.items():
        key = ("port", id_, alias_id(network.links[name].alias))
        if key in known:
            footprint = network.footprints.get(name, Footprint())
            network.footprints[name] = Footprint(footprint.elements, footprint.addresses | addresses)
            found[key] = None
    return found
