"""Requests of all kinds at once, the process killed at any call of the store, answers lost on the way: afterwards the
check alone, without the feed, finds and mends what is left, and a second one finds nothing.
"""

import asyncio
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from planes.management.cloud import Cloud
from planes.model.errors import AlcorError
from planes.model.requests import FixedIp, GroupCreate, NetworkCreate, PortCreate, PortUpdate, RuleCreate, SubnetCreate
from planes.store.faulty import Call, Fault, FaultyStore, Plan
from planes.store.sqlite.store import SqliteStore
from tests.property.test_crash import base, start
from tests.support.cloud import caller
from tests.support.invariants import violations

pytestmark = pytest.mark.slow

SEEDS = 400 if os.environ.get("PROFILE") == "long" else 60
FAULTS = (Fault.LOSE, Fault.HIDE, Fault.LATE, Fault.REFUSE)


class Actor:
    """One client: asks for whatever comes to its mind, and goes on whatever the answer."""

    def __init__(self, cloud: Cloud, ids: dict[str, str], rng: random.Random) -> None:
        self.cloud, self.ids, self.rng = cloud, ids, rng
        self.ports = [ids["port"]]
        self.groups = [ids["group"]]

    async def run(self) -> None:
        choices = (self.create, self.create, self.bulk, self.update, self.delete, self.network, self.group)
        for _ in range(6):
            try:
                await self.rng.choice(choices)()
            except AlcorError:
                pass

    def wanted(self) -> PortCreate:
        fixed = [(FixedIp(subnet_id=self.ids["subnet"]),), (FixedIp(subnet_id=self.ids["other"]),)]
        both = (*fixed[0], *fixed[1])
        more: dict[str, Any] = {"device_id": self.rng.choice(["", "vm", "d"])}
        if self.rng.random() < 0.3:
            more["mac_address"] = f"02:00:00:00:{self.rng.randrange(3):02x}:01"
        if self.rng.random() < 0.4:
            more["security_groups"] = (self.rng.choice(self.groups),)
        return PortCreate(network_id=self.ids["network"], fixed_ips=self.rng.choice([*fixed, both]), **more)

    async def create(self) -> None:
        self.ports += [view.id for view in await self.cloud.ports.create(caller(), [self.wanted()])]

    async def bulk(self) -> None:
        wanted = [self.wanted() for _ in range(self.rng.randrange(2, 5))]
        self.ports += [view.id for view in await self.cloud.ports.create(caller(), wanted)]

    async def update(self) -> None:
        rng = self.rng
        fixed = (FixedIp(ip_address=f"10.0.0.{rng.randrange(50, 60)}"), FixedIp(subnet_id=self.ids["other"]))
        wanted = rng.choice(
            [
                PortUpdate(device_id=rng.choice(["vm", "x"])),
                PortUpdate(fixed_ips=fixed),
                PortUpdate(security_groups=(rng.choice(self.groups),)),
            ]
        )
        await self.cloud.ports.update(caller(), rng.choice(self.ports), wanted, None)

    async def delete(self) -> None:
        await self.cloud.ports.delete(caller(), self.rng.choice(self.ports), None)

    async def network(self) -> None:
        (network,) = await self.cloud.networks.create(caller(admin=True), [NetworkCreate(shared=True)])
        await self.cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr="10.9.0.0/24")])
        await self.cloud.ports.create(caller(), [PortCreate(network_id=network.id)])
        await self.cloud.networks.delete(caller(), network.id, None)

    async def group(self) -> None:
        (group,) = await self.cloud.groups.create(caller(), [GroupCreate(name="new")])
        self.groups.append(group.id)
        rule = RuleCreate(security_group_id=group.id, direction="ingress", protocol="tcp")
        await self.cloud.rules.create(caller(), [rule])
        await self.cloud.groups.delete(caller(), self.rng.choice(self.groups), None)


def plan(rng: random.Random, kill: int) -> Plan:
    """Dead at call number `kill`, reads counted too; some writes before it fail or get no answer."""
    calls = iter(range(1 << 30))

    def decide(call: Call) -> Fault:
        if next(calls) >= kill:
            return Fault.KILL_BEFORE if call.op == "read" else rng.choice([Fault.KILL_BEFORE, Fault.KILL_AFTER])
        return rng.choice(FAULTS) if call.op != "read" and rng.random() < 0.03 else Fault.NONE

    return decide


@pytest.mark.parametrize("seeds", range(4))
async def test_what_a_death_in_a_storm_leaves_is_found_and_mended(memory_path: Path, seeds: int) -> None:
    ids, mended = await base(memory_path), 0
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # what the dead never learned concerns nobody
    for seed in range(seeds, SEEDS, 4):
        rng, file = random.Random(seed), memory_path / f"{seed}.db"
        shutil.copy(memory_path / "base.db", file)
        inner = SqliteStore(file)
        faulty = FaultyStore(inner, plan(rng, rng.randrange(300)), seed)
        cloud = await start(faulty)
        await faulty.run(gather([Actor(cloud, ids, random.Random(f"{seed}/{n}")) for n in range(4)]))
        await inner.close()
        after = SqliteStore(file)
        check = (await start(after)).plane.check
        report = await check.run(fix=True)
        assert [finding.says for finding in report.left] == [], seed
        assert await violations(after) == [], seed
        assert [finding.says for finding in (await check.run(fix=False)).found] == [], seed
        mended += len(report.found)
        await after.close()
        file.unlink()  # as many would be much for a disk in memory
    assert mended > SEEDS // 8


async def gather(actors: list[Actor]) -> None:
    await asyncio.gather(*(actor.run() for actor in actors))
