"""Control and agents as they are: whatever the network loses and whoever restarts, all end where the store is.

Several clients change ports, groups and rules through two instances while messages are dropped, delayed and overtaken,
hosts are cut off, agents and instances restart. Then the network heals; after one echo and one sync every kernel is
what the rows say, every port is answered for, and the talking stops (rules S1, S3, S14, S15, S18, D6).
"""

import asyncio
import os
import random
from pathlib import Path

import pytest
from msgspec import UNSET

from planes.bus.memory.bus import Faults
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
from tests.support.chance import from_seed
from tests.support.clock import run
from tests.support.cloud import caller
from tests.support.invariants import violations
from tests.support.mesh import Mesh

pytestmark = pytest.mark.slow

HOSTS = ("h1", "h2", "h3")
#: so few addresses that they are used again and again
ADDRESSES = tuple(f"10.0.{third}.{n}" for third in (0, 4) for n in (5, 6, 7))

SEEDS = 400 if os.environ.get("PROFILE") == "long" else 16


class Clients:
    """Several clients that know the same few objects and change them at random."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self.mesh = mesh
        self.chance = random.Random(seed)
        self.networks: list[str] = []
        self.groups: list[str] = []
        self.ports: list[str] = []
        self.rules: list[str] = []
        self.done = self.refused = 0

    def cloud(self) -> Cloud:
        return self.mesh.clouds[self.chance.choice(sorted(self.mesh.clouds))]

    async def prepare(self) -> None:
        cloud = self.cloud()
        for _ in range(2):
            (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
            self.networks.append(network.id)
            for cidr in ("10.0.0.0/24", "10.0.4.0/24"):
                await cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr=cidr)])
        for name in ("web", "db"):
            (group,) = await cloud.groups.create(caller(), [GroupCreate(name=name)])
            self.groups.append(group.id)

    async def work(self, steps: int) -> None:
        for _ in range(steps):
            what = self.chance.choice(
                ("create", "create", "create", "move", "move", "regroup", "address", "admin", "delete", "rule", "bulk")
            )
            try:
                await getattr(self, what)()
                self.done += 1
            except (Conflict, NotFound, Unavailable):  # others were quicker, or the address is not free
                self.refused += 1
            await asyncio.sleep(self.chance.random() * 2)

    def wish(self) -> PortCreate:
        chance = self.chance
        fixed = tuple(FixedIp(ip_address=ip) for ip in chance.sample(ADDRESSES, chance.choice((0, 1, 1, 2))))
        return PortCreate(
            network_id=chance.choice(self.networks),
            host_id=chance.choice((*HOSTS, *HOSTS, "")),
            security_groups=tuple(chance.sample(self.groups, chance.choice((1, 2)))),
            fixed_ips=fixed or UNSET,
        )

    async def create(self) -> None:
        (port,) = await self.cloud().ports.create(caller(), [self.wish()])
        self.ports.append(port.id)

    async def bulk(self) -> None:
        for port in await self.cloud().ports.create(caller(), [self.wish() for _ in range(3)]):
            self.ports.append(port.id)

    async def change(self, update: PortUpdate) -> None:
        if self.ports:
            await self.cloud().ports.update(caller(), self.chance.choice(self.ports), update, None)

    async def move(self) -> None:
        await self.change(PortUpdate(host_id=self.chance.choice((*HOSTS, ""))))

    async def regroup(self) -> None:
        await self.change(
            PortUpdate(security_groups=tuple(self.chance.sample(self.groups, self.chance.choice((1, 2)))))
        )

    async def address(self) -> None:
        fixed = self.chance.sample(ADDRESSES, self.chance.choice((1, 2)))
        await self.change(PortUpdate(fixed_ips=tuple(FixedIp(ip_address=ip) for ip in fixed)))

    async def admin(self) -> None:
        await self.change(PortUpdate(admin_state_up=self.chance.random() < 0.7))

    async def delete(self) -> None:
        if self.ports:
            id_ = self.ports.pop(self.chance.randrange(len(self.ports)))
            await self.cloud().ports.delete(caller(), id_, None)

    async def rule(self) -> None:
        if self.rules and self.chance.random() < 0.4:
            id_ = self.rules.pop(self.chance.randrange(len(self.rules)))
            await self.cloud().rules.delete(caller(), id_, None)
            return
        low = self.chance.randrange(1, 1000)
        wanted = RuleCreate(
            security_group_id=self.chance.choice(self.groups),
            direction=self.chance.choice(("ingress", "egress")),
            protocol="tcp",
            port_range_min=low,
            port_range_max=low + 5,
            remote_group_id=self.chance.choice((None, *self.groups)),
        )
        (rule,) = await self.cloud().rules.create(caller(), [wanted])
        self.rules.append(rule.id)


async def trouble(mesh: Mesh, chance: random.Random, rounds: int) -> None:
    """Cut hosts off, restart agents and instances, one after the other."""
    for _ in range(rounds):
        await asyncio.sleep(chance.random() * 4)
        host = chance.choice(HOSTS)
        what = chance.choice(("cut", "mute", "agent", "kill", "reboot", "control", "cut control"))
        seconds = chance.choice((0.5, 3.0, 20.0))
        if what in ("cut", "mute"):
            getattr(mesh.broker, what)(host)
            await asyncio.sleep(seconds)
            mesh.broker.heal(host)
        elif what in ("agent", "kill", "reboot"):
            vtep = mesh.agents[host]._vtep
            await mesh.stop_agent(host, killed=what != "agent")
            if what == "reboot":
                mesh.fabric.reboot(vtep)
                del mesh.keepers[host]
            await asyncio.sleep(chance.random())
            await mesh.start_agent(host)
        else:
            name = chance.choice(("c1", "c2"))
            if what == "control":
                await mesh.kill_control(name)
                await mesh.start_control(name)
            else:
                mesh.broker.cut(name)
                await asyncio.sleep(chance.choice((0.5, 3.0)))
                mesh.broker.heal(name)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_all_end_where_the_store_is_and_the_talking_stops(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_seed(monkeypatch, seed)

    async def main() -> None:
        mesh = Mesh(tmp_path, seed)
        await mesh.start()
        clients = Clients(mesh, seed)
        await clients.prepare()
        mesh.broker.faults = Faults(drop=0.1, reorder=0.3, late=0.5, duplicate=0.2)
        await asyncio.gather(clients.work(12), clients.work(12), clients.work(12), trouble(mesh, clients.chance, 5))
        assert clients.done > 5
        mesh.heal()
        await mesh.settle()
        await mesh.check()
        assert mesh.doubles == []
        assert [each for each in await violations(mesh.store) if not each.startswith("by_")] == []
        await at_rest(mesh)
        await mesh.stop()

    run(main())


async def at_rest(mesh: Mesh) -> None:
    """When nothing changes, only beats, beacons and syncs are said, and no ack."""
    await asyncio.sleep(60)
    acks = sum(cloud.plane.acks.counters["acks"] for cloud in mesh.clouds.values())
    goals = sum(cloud.plane.publisher.counters["published"] for cloud in mesh.clouds.values())
    await asyncio.sleep(60)
    assert sum(cloud.plane.acks.counters["acks"] for cloud in mesh.clouds.values()) == acks
    assert sum(cloud.plane.publisher.counters["published"] for cloud in mesh.clouds.values()) == goals
