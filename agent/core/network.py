"""What is known of one network, with the indexes that make a change cost what it changes and no more.

Used by `agent.core.translate` only.
"""

from collections.abc import Iterable
from typing import TypeVar

from planes.goalstate.messages import Identity, Neighbour, Network, Peer, Port, Subnet

K = TypeVar("K")
V = TypeVar("V")


class NetworkView:
    """Objects of one network that exist, and the local ports in it."""

    def __init__(self) -> None:
        self.network: Network | None = None
        self.subnets: dict[bytes, Subnet] = {}
        self.identities: dict[int, Identity] = {}
        self.peers: dict[str, Peer] = {}
        self.neighbours: dict[bytes, Neighbour] = {}
        self.ports: dict[bytes, Port] = {}
        #: group → identities that carry it
        self.carriers: dict[bytes, set[int]] = {}
        #: host → addresses behind it
        self.behind: dict[str, set[bytes]] = {}
        #: tunnel MAC → host
        self.at: dict[bytes, str] = {}
        #: address → local ports that have it
        self.local: dict[bytes, set[bytes]] = {}
        #: identity → local ports that use it
        self.users: dict[int, set[bytes]] = {}

    def add_identity(self, item: Identity) -> None:
        self.identities[item.number] = item
        for group in item.groups:
            self.carriers.setdefault(group, set()).add(item.number)

    def remove_identity(self, number: int) -> Identity | None:
        item = self.identities.pop(number, None)
        if item is not None:
            for group in item.groups:
                _discard(self.carriers, group, number)
        return item

    def add_peer(self, item: Peer) -> None:
        self.peers[item.host] = item
        self.at[item.mac] = item.host

    def remove_peer(self, host: str) -> Peer | None:
        item = self.peers.pop(host, None)
        if item is not None and self.at.get(item.mac) == host:
            del self.at[item.mac]
        return item

    def add_neighbour(self, item: Neighbour) -> bool:
        """Whether it is the first behind its host."""
        self.neighbours[item.ip] = item
        behind = self.behind.get(item.host)
        if behind is None:
            self.behind[item.host] = {item.ip}
            return True
        behind.add(item.ip)
        return False

    def remove_neighbour(self, ip: bytes) -> Neighbour | None:
        item = self.neighbours.pop(ip, None)
        if item is not None:
            _discard(self.behind, item.host, ip)
        return item

    def add_port(self, item: Port) -> None:
        self.ports[item.id] = item
        for ip in item.ips:
            self.local.setdefault(ip, set()).add(item.id)
        if item.security:
            self.users.setdefault(item.identity, set()).add(item.id)

    def remove_port(self, id_: bytes) -> Port | None:
        item = self.ports.pop(id_, None)
        if item is not None:
            for ip in item.ips:
                _discard(self.local, ip, id_)
            _discard(self.users, item.identity, id_)
        return item

    def groups_of(self, identity: int) -> tuple[bytes, ...] | None:
        """The groups that an identity of local ports stands for; None when no local port uses it.

        While ports of different revisions disagree the newest speaks.
        """
        ports = [self.ports[id_] for id_ in self.users.get(identity, ())]
        return max(ports, key=lambda port: port.rev).groups if ports else None

    @property
    def used_groups(self) -> set[bytes]:
        """Groups of local ports."""
        return {group for identity in self.users for group in self.groups_of(identity) or ()}

    def missing_peers(self, own: str) -> Iterable[str]:
        """Hosts that neighbours name and nobody has described."""
        return (host for host in self.behind if host != own and host not in self.peers)


def _discard(index: dict[K, set[V]], key: K, value: V) -> None:
    values = index.get(key)
    if values is not None:
        values.discard(value)
        if not values:
            del index[key]
