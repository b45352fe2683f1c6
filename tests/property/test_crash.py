"""Killed between any two writes, or left in the dark about one: nothing answered is lost, nothing leaks (rules D5, D6).

Each story runs once to count its writes, then once per write and way to fail. After the crash a new instance echoes
what the feed names; then every row must be accounted for.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from observability.stages import now_us
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.plane import ControlConfig
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.errors import AlcorError
from planes.model.query import Query
from planes.model.requests import (
    FixedIp,
    GroupCreate,
    NetworkCreate,
    PortCreate,
    PortUpdate,
    RuleCreate,
    SubnetCreate,
)
from planes.store.faulty import Fault, FaultyStore, script
from planes.store.protocol import Store
from planes.store.sqlite.store import SqliteStore
from tests.support.cloud import caller
from tests.support.invariants import violations

pytestmark = pytest.mark.slow

CONTROL = ControlConfig(echo_after=0, echo_every=3600, vni_quarantine=0)
MANAGEMENT = ManagementConfig(quotas={"port": 50, "network": 10, "subnet": 10, "security_group": 10})


class Log:
    """What the client was told."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}
        self.gone: set[str] = set()
        self.fixed: dict[str, tuple[str, ...]] = {}


async def start(store: Store, management: ManagementConfig = MANAGEMENT, ahead: int = 0) -> Cloud:
    """A cloud whose clock is so many µs ahead."""
    await store.open()
    bus = MemoryBus(MemoryBroker(), "control")
    await bus.connect()
    clock = [0]

    def rising() -> int:
        """Every reading is later than the one before, so that nothing is ever too young for the echo."""
        clock[0] = max(clock[0] + 1, now_us() + ahead)
        return clock[0]

    return build(store, bus, CONTROL, management, now=rising)


async def prepared(cloud: Cloud) -> dict[str, str]:
    """A network with two subnets, a group and a port, before the story."""
    (network,) = await cloud.networks.create(caller(), [NetworkCreate(name="old")])
    cidrs = ("10.0.0.0/24", "10.1.0.0/24")
    subnets = [
        (await cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr=cidr)]))[0] for cidr in cidrs
    ]
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="g")])
    wanted = PortCreate(
        network_id=network.id,
        fixed_ips=(FixedIp(subnet_id=subnets[0].id), FixedIp(ip_address="10.1.0.9")),
        host_id="h1",
        device_id="vm",
    )
    (port,) = await cloud.ports.create(caller(), [wanted])
    return {"network": network.id, "subnet": subnets[0].id, "other": subnets[1].id, "group": group.id, "port": port.id}


async def make_network(cloud: Cloud, ids: dict[str, str], log: Log) -> None:
    (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
    log.made[network.id] = "networks"
    (subnet,) = await cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr="10.9.0.0/24")])
    log.made[subnet.id] = "subnets"


async def drop_network(cloud: Cloud, ids: dict[str, str], log: Log) -> None:
    await cloud.ports.delete(caller(), ids["port"], None)
    log.gone.add(ids["port"])
    await cloud.subnets.delete(caller(), ids["other"], None)
    log.gone.add(ids["other"])
    await cloud.networks.delete(caller(), ids["network"], None)
    log.gone.add(ids["network"])


async def make_ports(cloud: Cloud, ids: dict[str, str], log: Log) -> None:
    wide = (FixedIp(subnet_id=ids["subnet"]), FixedIp(subnet_id=ids["other"]))
    one = PortCreate(network_id=ids["network"], fixed_ips=wide, mac_address="02:00:00:77:77:77", device_id="d")
    (port,) = await cloud.ports.create(caller(), [one])
    log.made[port.id] = "ports"
    for view in await cloud.ports.create(caller(), [PortCreate(network_id=ids["network"]) for _ in range(4)]):
        log.made[view.id] = "ports"


async def change_port(cloud: Cloud, ids: dict[str, str], log: Log) -> None:
    groups = PortUpdate(security_groups=(ids["group"],), device_id="other", host_id="h2")
    await cloud.ports.update(caller(), ids["port"], groups, None)
    moved = (FixedIp(ip_address="10.0.0.77"), FixedIp(ip_address="10.1.0.78"))
    await cloud.ports.update(caller(), ids["port"], PortUpdate(fixed_ips=moved), None)
    log.fixed[ids["port"]] = ("10.0.0.77", "10.1.0.78")


async def change_groups(cloud: Cloud, ids: dict[str, str], log: Log) -> None:
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="new")])
    log.made[group.id] = "groups"
    rule = RuleCreate(security_group_id=group.id, direction="ingress", protocol="tcp")
    (made,) = await cloud.rules.create(caller(), [rule])
    log.made[made.id] = "rules"
    await cloud.groups.delete(caller(), ids["group"], None)
    log.gone.add(ids["group"])


async def drop_port_and_take_its_address(cloud: Cloud, ids: dict[str, str], log: Log) -> None:
    await cloud.ports.delete(caller(), ids["port"], None)
    log.gone.add(ids["port"])
    wanted = PortCreate(network_id=ids["network"], fixed_ips=(FixedIp(ip_address="10.1.0.9"),))
    (port,) = await cloud.ports.create(caller(), [wanted])
    log.made[port.id] = "ports"


STORIES = (make_network, drop_network, make_ports, change_port, change_groups, drop_port_and_take_its_address)


async def told_the_truth(cloud: Cloud, log: Log) -> None:
    for id_, collection in log.made.items():
        if id_ not in log.gone:
            await getattr(cloud, collection).get(caller(), id_)
    every = {
        view.id
        for collection in (cloud.networks, cloud.subnets, cloud.ports, cloud.groups)
        for view in (await collection.list(caller(), Query())).items
    }
    assert not every & log.gone
    for id_, fixed in log.fixed.items():
        port = await cloud.ports.get(caller(), id_)
        assert tuple(ip.ip_address for ip in port.fixed_ips) == fixed


async def base(path: Path) -> dict[str, str]:
    """A store to start from; the ids in it."""
    store = SqliteStore(path / "base.db")
    cloud = await start(store)
    ids = await prepared(cloud)
    await cloud.plane.partitions.idle()
    await store.close()
    return ids


async def run(path: Path, ids: dict[str, str], story: Any, fault: Fault, at: int) -> int:
    """One story with one fault; returns how many writes it took when nothing failed."""
    log, file = Log(), path / f"{at}.db"
    shutil.copy(path / "base.db", file)
    inner = SqliteStore(file)
    faulty = FaultyStore(inner, script({at: fault}), seed=at)
    cloud = await start(faulty)
    try:
        await faulty.run(story(cloud, ids, log))
    except AlcorError:
        assert fault is not Fault.NONE
    writes = faulty.writes
    if not faulty.killed.is_set():
        await cloud.plane.partitions.idle()
        await faulty.settle()
    await inner.close()
    after = SqliteStore(file)
    cloud = await start(after)
    try:
        for _ in range(3):
            await cloud.plane.echo.turn()
        assert await violations(after) == [], f"{story.__name__}: {fault} at write {at}"
        await told_the_truth(cloud, log)
    finally:
        await after.close()
    file.unlink()  # as many would be much for a disk in memory
    return writes


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE])
@pytest.mark.parametrize("story", STORIES)
async def test_nothing_is_lost_and_nothing_leaks(memory_path: Path, story: Any, fault: Fault) -> None:
    ids = await base(memory_path)
    writes = await run(memory_path, ids, story, Fault.NONE, -1)
    assert writes > 2
    for at in range(writes + 2):
        await run(memory_path, ids, story, fault, at)
