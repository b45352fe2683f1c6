"""Lists as management gives them: filters, pages, and which index leads to what (rule D10)."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from planes.bus.memory.bus import MemoryBroker
from planes.control import names, reads
from planes.control.indexes import drops, index_rows, part_of
from planes.control.names import Names
from planes.management import context, port_lists, project_index
from planes.management.cloud import Cloud
from planes.model.enums import Kind
from planes.model.ids import parse, place_of
from planes.model.query import Query
from planes.model.requests import PortCreate, PortUpdate
from planes.model.views import NetworkView, PortView, SubnetView
from planes.store.protocol import Batch, Partition, Store
from planes.store.schema import BY_NAME, BY_PROJECT, LEASES, PORT_STATUS, PORTS
from planes.store.sqlite.store import SqliteStore
from tests.support.cloud import caller, network_with_subnet, running


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with running(tmp_path) as started:
        yield started


@pytest.fixture
async def net(cloud: Cloud) -> tuple[NetworkView, SubnetView]:
    return await network_with_subnet(cloud)


async def port(cloud: Cloud, network: NetworkView, **wanted: Any) -> PortView:
    (view,) = await cloud.ports.create(caller(), [PortCreate(network_id=network.id, **wanted)])
    return view


def counting(monkeypatch: pytest.MonkeyPatch, store: Store) -> Counter[str]:
    """Reads from now on, by table."""
    tables = Counter[str]()
    read = store.read

    async def counted(*args: Any, **more: Any) -> Any:
        tables[args[0].name] += 1
        return await read(*args, **more)

    monkeypatch.setattr(store, "read", counted)
    return tables


async def test_lists_filter_page_and_follow_indexes(cloud: Cloud, net: Any) -> None:
    network, _ = net
    made = [await port(cloud, network, name=f"p{n % 2}", device_id=f"d{n % 3}") for n in range(9)]
    every = [view.id for view in (await cloud.ports.list(caller(), Query())).items]
    assert every == sorted(view.id for view in made)
    page = await cloud.ports.list(caller(), Query(limit=4))
    rest = await cloud.ports.list(caller(), Query(limit=9, marker=page.items[-1].id))
    assert (page.more, rest.more) == (True, False)
    assert [view.id for view in page.items + rest.items] == every
    by_device = await cloud.ports.list(caller(), Query({"device_id": ("d1",)}))
    assert {view.id for view in by_device.items} == {view.id for view in made if view.device_id == "d1"}
    by_name = await cloud.ports.list(caller(), Query({"name": ("p0",), "device_id": ("d0", "d1")}))
    assert {view.name for view in by_name.items} == {"p0"}
    address = made[3].fixed_ips[0].ip_address
    by_ip = await cloud.ports.list(
        caller(), Query({"network_id": (network.id,), "fixed_ips": (f"ip_address={address}",)})
    )
    assert [view.id for view in by_ip.items] == [made[3].id]
    down = await cloud.ports.list(caller(), Query(sort=(("name", True),)))
    assert [view.name for view in down.items] == sorted((view.name for view in made), reverse=True)


async def test_a_list_by_name_reads_the_ports_of_that_name_only(
    cloud: Cloud, net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = net
    made = [await port(cloud, network, name=f"p{n % 3}") for n in range(9)]
    store = cloud.plane.store
    ids = {name: sorted(view.id for view in made if view.name == name) for name in ("p0", "p1", "p2")}
    tables = counting(monkeypatch, store)

    async def named(*names: str, project: str = "", **more: Any) -> list[str]:
        return [
            view.id
            for view in (
                await cloud.ports.list(caller(project) if project else caller(), Query({"name": names}, **more))
            ).items
        ]

    assert await named("p1") == ids["p1"]
    assert await named("p0", "p2") == sorted(ids["p0"] + ids["p2"])
    assert await named("p1", limit=2, marker=ids["p1"][0]) == ids["p1"][1:]
    assert await named("p1", project="stranger") == []
    assert await named("nobody") == []
    assert tables[BY_PROJECT.name] == 0
    await cloud.ports.update(caller(), ids["p1"][0], PortUpdate(name="p0"), None)
    await cloud.ports.update(caller(), ids["p1"][1], PortUpdate(name=""), None)
    await cloud.ports.delete(caller(), ids["p1"][2], None)
    assert await named("p1") == []
    assert await named("p0") == sorted([*ids["p0"], ids["p1"][0]])
    assert await named("") == [ids["p1"][1]]
    monkeypatch.setattr(names, "BOUND", 3)  # more have it than are worth a look of their own
    assert len(await named("p0")) == 4
    assert tables[BY_PROJECT.name] > 0


async def test_a_list_by_name_misses_no_port_that_is_older_than_its_index(
    cloud: Cloud, net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = net
    made = await port(cloud, network, name="old")
    store, control = cloud.plane.store, cloud.plane
    (row,) = [
        row for row in index_rows((await reads.ports(store, [parse(made.id)]))[parse(made.id)]) if row[0] is BY_NAME
    ]
    await store.write(drops([row], control.now()))
    assert await store.commit(Batch(LEASES, ("index by_name",), 1, {"until": 2, "owner": "", "done": 0}))
    control.names = Names(store, control.now)
    wanted = Query({"name": ("old",)})
    assert (await cloud.ports.list(caller(), wanted)).items == [], "the row says that the index is whole"
    monkeypatch.setattr(names, "_WHOLE", ("a cloud that knows of no such index",))
    control.names = control.check._names = Names(store, control.now)
    await control.names.open()
    assert [view.id for view in (await cloud.ports.list(caller(), wanted)).items] == [made.id]
    control.check._age = 0
    report = await control.check.run(fix=True)
    assert [finding.rule for finding in report.found] == ["unlisted"]
    tables = counting(monkeypatch, store)
    assert [view.id for view in (await cloud.ports.list(caller(), wanted)).items] == [made.id]
    assert tables[BY_PROJECT.name] == 0


async def test_a_list_by_a_small_network_reads_nothing_of_the_project_s_other_ports(
    cloud: Cloud, net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = net
    other, _ = await network_with_subnet(cloud)
    made = [await port(cloud, network, name=f"p{n % 2}") for n in range(5)]
    await port(cloud, other)
    await cloud.ports.delete(caller(), made.pop().id, None)
    tables = counting(monkeypatch, cloud.plane.store)
    wanted = Query({"network_id": (network.id,), "name": ("p0", "p1")})
    ids = sorted(view.id for view in made)
    assert [view.id for view in (await cloud.ports.list(caller(), wanted)).items] == ids
    assert tables[BY_PROJECT.name] == 0
    page = await cloud.ports.list(caller(), Query(wanted.filters, limit=2, marker=ids[0]))
    assert ([view.id for view in page.items], page.more) == (ids[1:3], True)
    assert (await cloud.ports.list(caller("stranger"), wanted)).items == []
    monkeypatch.setattr(port_lists, "SMALL", 0)  # as a large network is listed
    wanted = Query({"network_id": (network.id,)})
    assert [view.id for view in (await cloud.ports.list(caller(), wanted)).items] == ids
    assert tables[BY_PROJECT.name] > 0


async def test_a_page_reads_each_bucket_once_whatever_lies_between_its_ports(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = [(await network_with_subnet(cloud, f"10.{n}.0.0/24"))[0] for n in range(3)]
    for turn in range(60):
        await port(cloud, nets[turn % 3], host_id="h1")
    monkeypatch.setattr(
        project_index, "LIST_CHUNK", 10
    )  # of the index; the ports of a page are read together all the same
    tables = counting(monkeypatch, cloud.plane.store)
    assert len((await cloud.ports.list(caller(), Query(limit=59))).items) == 59
    assert tables[PORTS.name] == tables[PORT_STATUS.name] == 3


async def test_a_page_of_many_networks_is_of_few_buckets(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [(await network_with_subnet(cloud, f"10.{n}.0.0/24"))[0] for n in range(20)]
    for turn in range(200):
        await port(cloud, nets[turn % 20])
    tables = counting(monkeypatch, cloud.plane.store)
    assert len((await cloud.ports.list(caller(), Query(limit=40))).items) == 40
    assert tables[PORTS.name] <= 5, "40 ports and one more, 10 of each network"


async def test_a_page_is_of_what_the_store_has_also_where_a_bucket_is_remembered(tmp_path: Path) -> None:
    store, broker = SqliteStore(tmp_path / "store.db"), MemoryBroker()
    async with running(tmp_path, store=store, broker=broker) as one, running(tmp_path, store=store) as other:
        network, _ = await network_with_subnet(one)
        made = [await port(one, network, name=f"p{n}") for n in range(reads.WORTH + 3)]

        async def names(cloud: Cloud) -> list[str]:
            return sorted(view.name for view in (await cloud.ports.list(caller(), Query())).items)

        assert await names(one) == await names(other) == [view.name for view in made]
        await other.ports.update(caller(), made[0].id, PortUpdate(name="new"), None)
        await other.ports.delete(caller(), made[1].id, None)
        expected = sorted(["new", *[view.name for view in made[2:]]])
        assert await names(one) == await names(other) == expected


@pytest.mark.parametrize("backward", [False, True])
async def test_pages_of_any_size_make_up_the_whole_list_and_read_no_more_than_they_need(
    cloud: Cloud, net: Any, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many projects, parts of the index that hold more than a chunk, and parts that hold nothing."""
    networks = [net[0], *[(await network_with_subnet(cloud))[0] for _ in range(3)]]
    for module in (context, project_index):
        monkeypatch.setattr(module, "LIST_CHUNK", 4)
    for project in ("demo", "other", "third"):
        for network in networks:
            wanted = [PortCreate(network_id=network.id, project_id=project) for _ in range(9)]
            await cloud.ports.create(caller("demo", admin=True), wanted)
    admin = caller("demo", admin=True)
    every = [view.id for view in (await cloud.ports.list(admin, Query())).items]
    assert len(every) == len(set(every)) == 108
    assert every == sorted(every)
    for size in (1, 5, 40, 107, 108):
        seen: list[str] = []
        marker, more = "", True
        while more:
            page = await cloud.ports.list(admin, Query(limit=size, marker=marker, page_reverse=backward))
            items = [view.id for view in page.items]
            seen = items + seen if backward else seen + items
            more = page.more
            marker = items[0] if backward else items[-1]
        assert seen == every, size
    own = [view.id for view in (await cloud.ports.list(caller(), Query())).items]
    tables = counting(monkeypatch, cloud.plane.store)
    await cloud.ports.list(caller(), Query(limit=2, marker=own[-backward], page_reverse=backward))
    assert tables[BY_PROJECT.name] == 2  # whether the marker is known, and what comes next


async def test_who_goes_on_behind_a_marker_reads_the_page_and_remembers_no_bucket(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though next to nothing of the marker's own bucket lies behind it."""
    buckets: list[tuple[int, int]] = []
    for _ in range(8):
        network, _ = await network_with_subnet(cloud)
        made = await cloud.ports.create(caller(), [PortCreate(network_id=network.id)] * 100)
        buckets.append(place_of(parse(made[0].id)))
    every = [view.id for view in (await cloud.ports.list(caller(), Query())).items]
    for where in buckets:
        cloud.plane.partitions.forget(PORTS, where)
    rows, read = 0, cloud.plane.store.read

    async def counted(table: Any, *args: Any, **more: Any) -> Any:
        nonlocal rows
        found = await read(table, *args, **more)
        rows += len(found.rows) if table is PORTS else 0
        return found

    monkeypatch.setattr(cloud.plane.store, "read", counted)
    page = await cloud.ports.list(caller(), Query(limit=300, marker=every[98]))
    assert [view.id for view in page.items] == every[99:399]
    assert rows <= 402  # of one bucket more than the page takes, to know that there is one
    assert all(cloud.plane.partitions.peek(PORTS, where) is None for where in buckets)


async def test_how_little_lies_behind_a_marker_says_nothing_of_other_buckets() -> None:
    """Of one port there it was concluded that a page takes dozens of them, each to be read."""
    keys = [number.to_bytes(2, "big") + bytes(14) for number in range(40)]  # all of one part of the index
    asked: list[int] = []

    class Index:
        async def read(self, _: Any, partition: Any, after: Any = (), limit: int = 0) -> Partition:
            rows = [(key,) for key in keys if part_of(key) == partition[2] and (not after or key > after[0])]
            return Partition((), list(rows), bool(rows))

    async def expand(some: Sequence[bytes], _: bytes, __: int) -> tuple[Sequence[bytes], bytes]:
        asked.append(len(some))
        return [key[:2] + bytes([n]) * 14 for key in some for n in range(1 if key == keys[0] else 100)], b""

    found = 0
    index = project_index.ProjectIndex(cast(Store, Index()))
    async for ids in index.ids(project_index.Asked(["p"], Kind.PORT, keys[0][:2] + b"\xff" * 14, size=301), expand):
        found += len(ids)
        if found >= 301:
            break
    assert (found, asked) == (301, [1, 1, 2])
