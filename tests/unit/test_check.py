"""The check beside requests under way, and what it says of a store that nothing is wrong with."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control import reads
from planes.control.findings import WALKED
from planes.control.indexes import index_rows
from planes.control.plane import ControlConfig
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.errors import Conflict
from planes.model.ids import bucket_of, number_of, parse
from planes.model.requests import FixedIp, PortCreate, SubnetCreate
from planes.store.protocol import Batch, Write
from planes.store.schema import NETWORKS, PORT_STATUS
from tests.support.cloud import caller, network_with_subnet, running
from tests.support.held import Held
from tests.support.invariants import violations

CONTROL = ControlConfig(echo_after=0.05, echo_every=3600, vni_quarantine=0)
MANAGEMENT = ManagementConfig(quotas={"port": 10, "network": 10, "subnet": 10})


@pytest.fixture
async def store(tmp_path: Path) -> Held:
    return Held(tmp_path / "store.db")


@pytest.fixture
async def cloud(tmp_path: Path, store: Held) -> AsyncIterator[Cloud]:
    async with running(tmp_path, store=store, control=CONTROL, management=MANAGEMENT) as made:
        yield made


async def creating(cloud: Cloud, store: Held) -> "asyncio.Task[object]":
    """A port in two subnets whose index rows, slot and second address are claimed, and whose commit has begun."""
    network, subnet = await network_with_subnet(cloud)
    (other,) = await cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr="10.9.0.0/24")])
    fixed = (FixedIp(subnet_id=subnet.id), FixedIp(subnet_id=other.id))
    store.go.clear()
    task = asyncio.create_task(
        cloud.ports.create(caller(), [PortCreate(network_id=network.id, fixed_ips=fixed, device_id="vm")])
    )
    await store.waits.wait()
    return task


async def test_what_is_under_way_at_the_first_look_only_is_left_alone(cloud: Cloud, store: Held) -> None:
    task = await creating(cloud, store)
    looked: list[str] = []

    def progress(table: str, _: int) -> None:
        looked.append(table)
        if table == WALKED[-1].name:
            store.go.set()

    report = await cloud.plane.check.run(fix=True, progress=progress)
    await task
    assert looked == [table.name for table in WALKED]
    assert report.found == []
    assert await violations(store) == []


async def test_who_takes_too_long_is_stopped_and_never_half_made(cloud: Cloud, store: Held) -> None:
    task = await creating(cloud, store)
    other = build(store, MemoryBus(MemoryBroker(), "other"), CONTROL, MANAGEMENT)
    report = await other.plane.check.run(fix=True)
    assert {finding.rule for finding in report.found} >= {"claim", "index", "slot"}
    assert report.left == []
    store.go.set()
    with pytest.raises(Conflict, match="took too long"):
        await task
    assert (await other.plane.check.run(fix=True)).left == [], "what led to the bucket came with the batch that failed"
    assert await violations(store) == []


async def test_a_store_in_use_has_nothing_wrong_and_an_index_row_that_is_lost_comes_back(
    cloud: Cloud, store: Held
) -> None:
    network, _ = await network_with_subnet(cloud)
    views = await cloud.ports.create(caller(), [PortCreate(network_id=network.id, device_id="vm") for _ in range(5)])
    await cloud.ports.delete(caller(), views[0].id, None)
    check = cloud.plane.check
    report = await check.run(fix=False)
    assert report.found == []
    assert report.looked["ports"] == 1
    id_ = parse(views[1].id)
    port = (await reads.ports(store, [id_]))[id_]
    gone = [Write(table, where, key, None, cloud.plane.now()) for table, where, key in index_rows(port)]
    await store.write(gone)
    report = await check.run(fix=False)
    assert [finding.rule for finding in report.left] == ["unlisted"] * 3, "its own, and what leads to the bucket"
    assert (await check.run(fix=True)).left == []
    assert await violations(store) == []


async def test_what_was_said_of_a_port_after_its_end_is_dropped(cloud: Cloud, store: Held) -> None:
    network, _ = await network_with_subnet(cloud)
    (kept, gone) = await cloud.ports.create(caller(), [PortCreate(network_id=network.id) for _ in range(2)])
    await cloud.ports.delete(caller(), gone.id, None)
    rev = cloud.plane.now()
    for id_ in (parse(kept.id), parse(gone.id)):
        where = (number_of(id_), bucket_of(id_))
        await store.write([Write(PORT_STATUS, where, (id_, "h1"), (rev, 0, b""), (rev << 12) + 4095)])
    report = await cloud.plane.check.run(fix=True)
    assert [(finding.rule, finding.key) for finding in report.found] == [("said", (parse(gone.id), "h1"))]
    assert report.left == []
    id_ = parse(kept.id)
    rows = (await store.read(PORT_STATUS, (number_of(id_), bucket_of(id_)))).rows
    assert [row[0] for row in rows] == [id_]


async def test_what_cannot_be_read_is_said_and_stops_nobody(cloud: Cloud, store: Held) -> None:
    assert await store.commit(Batch(NETWORKS, (7,), None, {"top": 1}, [(1, b"", 1, b"\0")]))
    report = await cloud.plane.check.run(fix=True)
    assert [finding.rule for finding in report.left] == ["unreadable"]
    assert "networks (7,)" in report.left[0].says


async def test_one_instance_walks_in_the_background_and_once_a_day(cloud: Cloud, store: Held) -> None:
    clock = [cloud.plane.now()]
    lease, day = cloud.plane.check._lease, 86_400_000_000
    lease._now = lambda: clock[0]
    assert not await lease.due(day)  # from here on
    clock[0] += day
    assert await lease.due(day)
    assert await lease.hold()
    other = type(lease)(store, "check", "another", lambda: clock[0])
    assert await other.due(day)
    assert not await other.hold()
    assert await lease.hold(clock[0])
    assert not await other.due(day)
    clock[0] += day
    assert await other.hold()
