"""What leads to ports: one row for all of a bucket, there from the first port that needs it to the last."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.indexes import Index, is_mark, mark_of, marks, part_of
from planes.control.plane import ControlConfig
from planes.goalstate.messages import Register
from planes.management.cloud import Cloud, build
from planes.management.context import Context, ManagementConfig
from planes.model.enums import Kind
from planes.model.errors import NotFound
from planes.model.ids import RANDOM_BITS, make_id, parse, place_of
from planes.model.query import Query
from planes.model.requests import GroupCreate, PortCreate, PortUpdate
from planes.model.views import PortView
from planes.store.protocol import Write
from planes.store.schema import BY_GROUP, BY_PROJECT
from planes.store.sqlite.store import SqliteStore
from tests.support.cloud import caller, network_with_subnet, running
from tests.support.held import Held
from tests.support.invariants import violations

CONTROL = ControlConfig(echo_after=0.05, echo_every=3600)


@pytest.fixture
async def store(tmp_path: Path) -> Held:
    return Held(tmp_path / "store.db")


@pytest.fixture
async def cloud(tmp_path: Path, store: Held) -> AsyncIterator[Cloud]:
    async with running(tmp_path, store=store, control=CONTROL) as made:
        yield made


async def port(cloud: Cloud, network: str, project: str = "demo", **wanted: Any) -> PortView:
    who = caller(project, admin=True)
    (view,) = await cloud.ports.create(who, [PortCreate(network_id=network, project_id=project, **wanted)])
    return view


async def listed(cloud: Cloud, project: str = "demo") -> list[str]:
    return [view.id for view in (await cloud.ports.list(caller(project), Query())).items]


async def rows(store: SqliteStore) -> list[Index]:
    """Every row that leads from a project or a group to ports."""
    found: list[Index] = []
    for table in (BY_PROJECT, BY_GROUP):
        for where in await store.partitions(table):
            if table is BY_GROUP or where[1] == Kind.PORT:
                found += [(table, where, row[:1]) for row in (await store.read(table, where)).rows]
    return found


async def test_a_bucket_is_led_to_by_one_row_from_its_first_port_to_its_last(cloud: Cloud, store: Held) -> None:
    network, _ = await network_with_subnet(cloud)
    made = [await port(cloud, network.id) for _ in range(3)]
    kept = await rows(store)
    assert [table for table, _, _ in kept] == [BY_PROJECT, BY_GROUP]
    assert all(is_mark(row) for row in kept)
    for view in made[:2]:
        await cloud.ports.delete(caller(), view.id, None)
        assert await rows(store) == kept
    await cloud.ports.delete(caller(), made[2].id, None)
    assert await rows(store) == []
    again = await port(cloud, network.id)
    assert await rows(store) == kept
    assert await listed(cloud) == [again.id]


async def test_each_project_sees_its_own_ports_of_a_bucket_in_pages_of_any_size(cloud: Cloud, store: Held) -> None:
    network, _ = await network_with_subnet(cloud)
    made: dict[str, list[str]] = {"demo": [], "other": []}
    for turn in range(40):
        project = "demo" if turn % 8 == 0 else "other"
        made[project].append((await port(cloud, network.id, project)).id)
    for project, ids in made.items():
        assert await listed(cloud, project) == sorted(ids)
        page = await cloud.ports.list(caller(project), Query(limit=3))
        rest = await cloud.ports.list(caller(project), Query(limit=100, marker=page.items[-1].id))
        assert [view.id for view in (*page.items, *rest.items)] == sorted(ids)
    for id_ in made["demo"]:
        await cloud.ports.delete(caller(), id_, None)
    assert await listed(cloud) == []
    assert {where[0] for table, where, _ in await rows(store) if table is BY_PROJECT} == {"other"}


async def test_a_change_of_groups_takes_what_leads_to_the_bucket_with_it(cloud: Cloud, store: Held) -> None:
    network, _ = await network_with_subnet(cloud)
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="g")])
    one, other = await port(cloud, network.id), await port(cloud, network.id)
    default = parse(one.security_groups[0])

    async def leading() -> set[object]:
        return {where[0] for table, where, _ in await rows(store) if table is BY_GROUP}

    await cloud.ports.update(caller(), one.id, PortUpdate(security_groups=(group.id,)), None)
    assert await leading() == {default, parse(group.id)}
    await cloud.ports.update(caller(), other.id, PortUpdate(security_groups=(group.id,)), None)
    assert await leading() == {parse(group.id)}
    await cloud.ports.update(caller(), one.id, PortUpdate(security_groups=()), None)
    assert await leading() == {parse(group.id)}
    assert await violations(store) == []


async def test_ports_of_older_versions_are_listed_in_order_and_their_rows_go_with_them(
    cloud: Cloud, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that begin at random, and ids of today without the row that leads to their bucket."""
    network, _ = await network_with_subnet(cloud)
    ids = iter(range(1 << 59, 1 << RANDOM_BITS, 1 << 52))
    with monkeypatch.context() as patch:
        patch.setattr(Context, "new_id", lambda _, home: make_id(home, next(ids)))
        old = [(await port(cloud, network.id)).id for _ in range(3)]
    assert not any(is_mark(row) for row in await rows(store))
    middle = await port(cloud, network.id)
    view = await cloud.plane.ground.bucket_view(*place_of(parse(middle.id)))
    await store.write(
        [
            Write(table, where, key, None, cloud.plane.now())
            for table, where, key in marks(view.get(10, parse(middle.id)))
        ]
    )
    own = (BY_PROJECT, ("demo", int(Kind.PORT), part_of(parse(middle.id))), (parse(middle.id),))
    await store.write([Write(*own, (), cloud.plane.now())])
    young = await port(cloud, network.id)
    assert await listed(cloud) == sorted([*old, middle.id, young.id])
    for id_ in (old[0], middle.id):
        await cloud.ports.delete(caller(), id_, None)
    cloud.plane.check._age = 0
    report = await cloud.plane.check.run(fix=True)
    assert {finding.rule for finding in report.found} == {"unlisted", "index"}
    assert report.left == []
    assert await listed(cloud) == sorted([*old[1:], young.id])
    assert await violations(store) == []


async def refused(task: "asyncio.Task[Any]", store: Held, group: str) -> None:
    """Another instance deletes the group while the task's commit waits: the request learns that it is gone."""
    await store.waits.wait()
    other = build(store, MemoryBus(MemoryBroker(), "other"), CONTROL, ManagementConfig())
    await other.groups.delete(caller(), group, None)
    store.go.set()
    with pytest.raises(NotFound, match=r"Security group .* does not exist"):
        await task


async def test_a_group_is_deleted_while_a_port_of_it_is_about_to_be_committed(cloud: Cloud, store: Held) -> None:
    """The creator has looked at the group already; the deleter finds no live port in the bucket, and stops him."""
    await cloud.plane.hosts.register(Register("h1", "machine", bytes((192, 0, 2, 1))))
    network, _ = await network_with_subnet(cloud)
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="g")])
    leaving = await port(cloud, network.id, security_groups=(group.id,), host_id="h1")
    await cloud.ports.delete(caller(), leaving.id, None)
    assert mark_of(parse(leaving.id)) in [key for table, _, (key,) in await rows(store) if table is BY_GROUP]
    store.go.clear()
    store.waits.clear()
    task = asyncio.create_task(port(cloud, network.id, security_groups=(group.id,)))
    await refused(task, store, group.id)
    assert await listed(cloud) == []


async def test_a_group_is_deleted_while_a_port_is_about_to_change_to_it(cloud: Cloud, store: Held) -> None:
    network, _ = await network_with_subnet(cloud)
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="g")])
    made = await port(cloud, network.id)
    store.go.clear()
    store.waits.clear()
    change = cloud.ports.update(caller(), made.id, PortUpdate(security_groups=(group.id,)), None)
    task = asyncio.create_task(change)
    await refused(task, store, group.id)
    assert (await cloud.ports.get(caller(), made.id)).security_groups == made.security_groups
