"""Single ports that are asked for together are made together, and each is as if it had been asked for alone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from planes.control.feed import Entry
from planes.management import port_gather
from planes.management.cloud import Cloud
from planes.management.context import ManagementConfig
from planes.model.enums import Kind
from planes.model.errors import AlcorError
from planes.model.ids import parse
from planes.model.query import Query
from planes.model.requests import FixedIp, GroupCreate, NetworkCreate, PortCreate, SubnetCreate
from planes.model.views import PortView
from planes.store.protocol import Batch, Unavailable, Values, Write
from planes.store.schema import FEED, PORTS
from planes.store.sqlite.store import SqliteStore
from tests.support.cloud import caller, network_with_subnet, running
from tests.support.held import Held
from tests.support.invariants import violations

Outcome = PortView | AlcorError


def _entry(row: Values) -> Entry:
    return msgspec.msgpack.decode(row[3], type=Entry)  # type: ignore[arg-type]


class Counted(SqliteStore):
    """How many ports each batch puts; `broken`: refuses them all."""

    broken = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[int] = []

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        if batch.table is PORTS and self.broken:
            self.batches.append(0)
            raise Unavailable("The disk is gone.")
        if batch.table is PORTS:
            self.batches.append(len(batch.puts))
        return await super().commit(batch, before)


@pytest.fixture
async def store(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "store.db")


@pytest.fixture
async def cloud(tmp_path: Path, store: Counted) -> AsyncIterator[Cloud]:
    async with running(tmp_path, store=store) as started:
        yield started
        assert not await violations(started.plane.store)


async def at_once(cloud: Cloud, asked: Sequence[dict[str, Any]], project: str = "demo") -> list[Outcome]:
    """Each by a request of its own, all in one turn of the loop."""

    async def one(item: dict[str, Any]) -> Outcome:
        try:
            return (await cloud.ports.create(caller(project), [PortCreate(**item)]))[0]
        except AlcorError as error:
            return error

    return await asyncio.gather(*(one(item) for item in asked))


def made(outcomes: Sequence[Outcome]) -> list[PortView]:
    return [outcome for outcome in outcomes if isinstance(outcome, PortView)]


def refused(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.type_name for outcome in outcomes if isinstance(outcome, AlcorError)]


async def test_each_port_is_as_it_was_asked_for(cloud: Cloud, store: Counted) -> None:
    one, first = await network_with_subnet(cloud, "10.0.0.0/20")
    two, _ = await network_with_subnet(cloud, "10.1.0.0/20")
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="g")])
    plain: list[dict[str, Any]] = [{"network_id": one.id, "name": f"p{n}", "host_id": f"h{n % 3}"} for n in range(20)]
    asked = [
        *plain,
        {"network_id": two.id, "name": "elsewhere"},
        {"network_id": one.id, "name": "own group", "security_groups": (group.id,)},
        {"network_id": one.id, "name": "own subnet", "fixed_ips": (FixedIp(subnet_id=first.id),)},
        {"network_id": one.id, "name": "own address", "fixed_ips": (FixedIp(ip_address="10.0.0.77"),)},
        {"network_id": one.id, "name": "no address", "fixed_ips": ()},
        {"network_id": one.id, "name": "two", "fixed_ips": (FixedIp(subnet_id=first.id), FixedIp(subnet_id=first.id))},
    ]
    views = made(await at_once(cloud, asked))
    assert [(view.name, view.network_id, view.host_id) for view in views] == [
        (item["name"], item["network_id"], item.get("host_id", "")) for item in asked
    ]
    assert [len(view.fixed_ips) for view in views] == [*[1] * 24, 0, 2]
    assert views[-5].security_groups == (group.id,)
    assert views[-3].fixed_ips[0].ip_address == "10.0.0.77"
    used = [(view.network_id, each.ip_address) for view in views for each in view.fixed_ips]
    assert len(set(used)) == len(used) == 26
    assert [await cloud.ports.get(caller(), view.id) for view in views] == views
    assert max(store.batches) >= len(plain)


async def test_each_has_a_change_of_its_own(cloud: Cloud) -> None:
    network, _ = await network_with_subnet(cloud)
    callers = [caller() for _ in range(10)]
    wanted = [PortCreate(network_id=network.id)]
    views = [view for (view,) in await asyncio.gather(*(cloud.ports.create(who, wanted) for who in callers))]
    for who, view in zip(callers, views, strict=True):
        port = await cloud.plane.ground.port(parse(view.id), fresh=True)
        assert port is not None
        assert (port.change, port.traceparent) == (who.change.id, who.change.traceparent)
        assert [name for name, _ in who.change.marks] == ["validate", "claim", "write", "publish"]
        record = await cloud.plane.changes.get(who.change.id)
        assert record is not None
        assert (record.object, record.count) == (view.id, 1)


async def test_what_is_wrong_with_one_is_its_own(cloud: Cloud) -> None:
    network, _ = await network_with_subnet(cloud)
    good = {"network_id": network.id}
    asked: list[dict[str, Any]] = [
        good,
        {"network_id": "00000000-0000-8000-8000-000000000000"},
        good,
        good | {"security_groups": ("00000000-0000-8000-8000-000000000001",)},
        good | {"project_id": "another"},
        good | {"host_id": "no such name!"},
        good,
    ]
    outcomes = await at_once(cloud, asked)
    assert len(made(outcomes)) == 3
    assert refused(outcomes) == ["NetworkNotFound", "SecurityGroupNotFound", "PolicyNotAuthorized", "InvalidInput"]


async def test_as_many_as_there_is_room_for(cloud: Cloud) -> None:
    network, _ = await network_with_subnet(cloud, "10.0.0.0/27")
    outcomes = await at_once(cloud, [{"network_id": network.id}] * 40)
    assert len({view.fixed_ips[0].ip_address for view in made(outcomes)}) == 29
    assert refused(outcomes) == ["IpAddressGenerationFailure"] * 11


async def test_as_many_as_the_quota_allows(tmp_path: Path) -> None:
    async with running(tmp_path, management=ManagementConfig(quotas={"port": 7})) as cloud:
        network, _ = await network_with_subnet(cloud)
        outcomes = await at_once(cloud, [{"network_id": network.id}] * 20)
        assert (len(made(outcomes)), refused(outcomes)) == (7, ["OverQuota"] * 13)
        await cloud.ports.delete(caller(), made(outcomes)[0].id, None)
        assert len(made(await at_once(cloud, [{"network_id": network.id}] * 5))) == 1
        assert not await violations(cloud.plane.store)


async def test_a_group_that_goes_meanwhile_is_missed_by_who_named_it_alone(tmp_path: Path) -> None:
    store = Held(tmp_path / "store.db")
    async with running(tmp_path, store=store) as cloud:
        network, _ = await network_with_subnet(cloud)
        (group,) = await cloud.groups.create(caller(), [GroupCreate(name="g")])
        await at_once(cloud, [{"network_id": network.id}])
        store.go.clear()
        plain = {"network_id": network.id}
        waiting: asyncio.Task[list[Outcome]] = asyncio.create_task(
            at_once(cloud, [plain, plain, plain | {"security_groups": (group.id,)}, plain])
        )
        await store.waits.wait()
        deleting = asyncio.create_task(cloud.groups.delete(caller(), group.id, None))
        await asyncio.sleep(0.05)
        store.go.set()
        outcomes = await waiting
        gone = await asyncio.wait((deleting,)) and deleting.exception()
        # Whoever of the two comes first wins, and nobody else is concerned.
        assert (len(made(outcomes)), refused(outcomes), gone is not None) in [
            (3, ["SecurityGroupNotFound"], False),
            (4, [], True),
        ]
        assert not await violations(cloud.plane.store)


async def test_what_may_have_happened_is_not_done_again(cloud: Cloud, store: Counted) -> None:
    network, _ = await network_with_subnet(cloud)
    asked = [{"network_id": network.id}] * 20
    await at_once(cloud, asked)
    store.broken = True
    store.batches.clear()
    outcomes = await at_once(cloud, asked)
    store.broken = False
    assert [outcome.status for outcome in outcomes if isinstance(outcome, AlcorError)] == [503] * 20
    assert len(store.batches) <= 2
    assert len((await cloud.ports.list(caller(), Query())).items) == 20


async def test_who_gives_up_takes_nobody_along(tmp_path: Path) -> None:
    store = Held(tmp_path / "store.db")
    async with running(tmp_path, store=store) as cloud:
        network, _ = await network_with_subnet(cloud)
        wanted = [PortCreate(network_id=network.id)]
        await cloud.ports.create(caller(), wanted)
        store.go.clear()
        tasks = [asyncio.create_task(cloud.ports.create(caller(), wanted)) for _ in range(8)]
        await store.waits.wait()
        for task in tasks[1::2]:
            task.cancel()
        store.go.set()
        ends = Counter(type(end).__name__ for end in await asyncio.gather(*tasks, return_exceptions=True))
        assert ends == {"list": 4, "CancelledError": 4}
        assert not await violations(cloud.plane.store)


async def test_projects_of_a_shared_network_are_apart(cloud: Cloud) -> None:
    operator = caller(admin=True)
    (network,) = await cloud.networks.create(operator, [NetworkCreate(name="shared", shared=True)])
    await cloud.subnets.create(operator, [SubnetCreate(network_id=network.id, cidr="10.0.0.0/24")])
    asked = [{"network_id": network.id}] * 6
    ours, theirs = await asyncio.gather(at_once(cloud, asked, "ours"), at_once(cloud, asked, "theirs"))
    for project, outcomes in (("ours", ours), ("theirs", theirs)):
        assert {view.project_id for view in made(outcomes)} == {project}
        listed = (await cloud.ports.list(caller(project), Query())).items
        assert {view.id for view in listed} == {view.id for view in made(outcomes)}
    mixed = [PortCreate(network_id=network.id, project_id=project) for project in ("ours", "theirs", "ours")]
    assert len(await cloud.ports.create(caller(admin=True), mixed)) == 3
    # who undoes one that never came to be gives its place back to the project that had taken it
    named = 0
    for where in await cloud.plane.store.partitions(FEED):
        for entry in [_entry(row) for row in (await cloud.plane.store.read(FEED, where)).rows if row[2] == Kind.PORT]:
            ports = [await cloud.plane.ground.port(id_) for id_ in entry.ids]
            assert {port.project for port in ports if port is not None} == {entry.project}
            named += len(ports)
    assert named == 15


async def test_what_comes_while_others_are_made_goes_together() -> None:
    """One group of a network at a time, none larger than a batch, and other networks do not wait for it."""
    sizes: list[tuple[str, int]] = []
    go = asyncio.Event()

    async def make(fields: Sequence[Any]) -> list[Any]:
        sizes.append((fields[0].project, len(fields)))
        await go.wait()
        return list(fields)

    gather = port_gather.PortGather(make)
    tasks: list[asyncio.Task[Any]] = []

    async def ask(project: str, count: int) -> None:
        for _ in range(count):
            fields: Any = SimpleNamespace(network=SimpleNamespace(id=b"n"), project=project)
            tasks.append(asyncio.create_task(gather.made(fields)))
        await asyncio.sleep(0.01)

    assert gather.idle
    for project, count in (("a", 1), ("a", 10), ("a", 5), ("a", 130), ("b", 3)):
        await ask(project, count)
    assert sizes == [("a", 1), ("a", 10), ("b", 3)]
    go.set()
    made = await asyncio.gather(*tasks)
    assert len({id(one) for one in made}) == 149
    assert sizes[3:] == [("a", port_gather.MOST), ("a", 135 - port_gather.MOST)]
    assert gather.idle
