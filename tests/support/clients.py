"""Several clients that know the same few objects and change them at random, and remember what they were told."""

import random
from collections.abc import Awaitable, Callable

from msgspec import UNSET

from planes.management.cloud import Cloud
from planes.model.errors import Conflict, NotFound, Unavailable
from planes.model.requests import (
    FixedIp,
    GroupCreate,
    NetworkCreate,
    PortCreate,
    PortUpdate,
    RuleCreate,
    SubnetCreate,
)
from tests.support.cloud import caller
from tests.support.mesh import Mesh

HOSTS = ("h1", "h2", "h3")
#: so few addresses that they are used again and again
ADDRESSES = tuple(f"10.0.{third}.{n}" for third in (0, 4) for n in (5, 6, 7))


class Clients:
    """What a client may ask for, each with details drawn from `chance`."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.networks: list[str] = []
        self.groups: list[str] = []
        self.ports: list[str] = []
        self.rules: list[str] = []
        self.done = self.refused = 0
        #: ports whose creation was answered and whose deletion nobody asked for; ports whose deletion was answered
        self.made: set[str] = set()
        self.gone: set[str] = set()
        self._asks: dict[str, Callable[[Cloud, random.Random], Awaitable[None]]] = {
            "create": self.create,
            "bulk": self.bulk,
            "move": self.move,
            "regroup": self.regroup,
            "address": self.address,
            "admin": self.admin,
            "delete": self.delete,
            "rule": self.rule,
        }

    async def prepare(self) -> None:
        """Two networks with two subnets each, and two groups."""
        cloud = self.mesh.clouds["c1"]
        for _ in range(2):
            (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
            self.networks.append(network.id)
            for cidr in ("10.0.0.0/24", "10.0.4.0/24"):
                await cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr=cidr)])
        for name in ("web", "db"):
            (group,) = await cloud.groups.create(caller(), [GroupCreate(name=name)])
            self.groups.append(group.id)

    async def ask(self, what: str, chance: random.Random) -> None:
        """One operation through an instance that is there; it ends with that instance, if it is killed."""
        if not self.mesh.clouds:
            return
        name = chance.choice(sorted(self.mesh.clouds))
        try:
            await self.mesh.on(name, lambda cloud: self._asks[what](cloud, chance))
            self.done += 1
        except (Conflict, NotFound, Unavailable):  # others were quicker, or the address is not free
            self.refused += 1

    async def told_the_truth(self) -> None:
        """What was answered is so."""
        cloud = next(iter(self.mesh.clouds.values()))
        for id_ in self.made:
            await cloud.ports.get(caller(), id_)
        for id_ in self.gone:
            try:
                await cloud.ports.get(caller(), id_)
            except NotFound:
                continue
            raise AssertionError(f"port {id_} was deleted and is there")

    # -- operations -------------------------------------------------------------------------------------------------

    def _wish(self, chance: random.Random) -> PortCreate:
        fixed = tuple(FixedIp(ip_address=ip) for ip in chance.sample(ADDRESSES, chance.choice((0, 1, 1, 2))))
        return PortCreate(
            network_id=chance.choice(self.networks),
            host_id=chance.choice((*HOSTS, *HOSTS, "")),
            security_groups=tuple(chance.sample(self.groups, chance.choice((1, 2)))),
            fixed_ips=fixed or UNSET,
        )

    async def create(self, cloud: Cloud, chance: random.Random, count: int = 1) -> None:
        for port in await cloud.ports.create(caller(), [self._wish(chance) for _ in range(count)]):
            self.ports.append(port.id)
            self.made.add(port.id)

    async def bulk(self, cloud: Cloud, chance: random.Random) -> None:
        await self.create(cloud, chance, 3)

    async def _change(self, cloud: Cloud, chance: random.Random, update: PortUpdate) -> None:
        if self.ports:
            await cloud.ports.update(caller(), chance.choice(self.ports), update, None)

    async def move(self, cloud: Cloud, chance: random.Random) -> None:
        await self._change(cloud, chance, PortUpdate(host_id=chance.choice((*HOSTS, ""))))

    async def regroup(self, cloud: Cloud, chance: random.Random) -> None:
        groups = tuple(chance.sample(self.groups, chance.choice((1, 2))))
        await self._change(cloud, chance, PortUpdate(security_groups=groups))

    async def address(self, cloud: Cloud, chance: random.Random) -> None:
        fixed = chance.sample(ADDRESSES, chance.choice((1, 2)))
        await self._change(cloud, chance, PortUpdate(fixed_ips=tuple(FixedIp(ip_address=ip) for ip in fixed)))

    async def admin(self, cloud: Cloud, chance: random.Random) -> None:
        await self._change(cloud, chance, PortUpdate(admin_state_up=chance.random() < 0.7))

    async def delete(self, cloud: Cloud, chance: random.Random) -> None:
        if self.ports:
            id_ = self.ports.pop(chance.randrange(len(self.ports)))
            self.made.discard(id_)
            await cloud.ports.delete(caller(), id_, None)
            self.gone.add(id_)

    async def rule(self, cloud: Cloud, chance: random.Random) -> None:
        if self.rules and chance.random() < 0.4:
            id_ = self.rules.pop(chance.randrange(len(self.rules)))
            await cloud.rules.delete(caller(), id_, None)
            return
        low = chance.randrange(1, 1000)
        wanted = RuleCreate(
            security_group_id=chance.choice(self.groups),
            direction=chance.choice(("ingress", "egress")),
            protocol="tcp",
            port_range_min=low,
            port_range_max=low + 5,
            remote_group_id=chance.choice((None, *self.groups)),
        )
        (rule,) = await cloud.rules.create(caller(), [wanted])
        self.rules.append(rule.id)
