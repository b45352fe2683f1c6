"""A port's address has no row of its own unless it needs one (docs/store.md), and nobody who asks can tell.

Everything is asked twice: of an instance that remembers the bucket, and of one that must read it.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from planes.control import reads
from planes.goalstate.messages import Gone, Neighbour, Pull, Register, What
from planes.management.cloud import Cloud
from planes.model.addresses import BUCKET_SHIFT, bucket, ip_bytes, ip_text, mac_text, parse_ip
from planes.model.enums import Kind
from planes.model.errors import Conflict
from planes.model.ids import Id, number_of, parse, place_of
from planes.model.query import Query
from planes.model.requests import FixedIp, Pool, PortCreate, PortUpdate, SubnetUpdate
from planes.model.resources import Address, AddressState
from planes.model.views import NetworkView, PortView, SubnetView
from planes.store.protocol import Batch, Values
from planes.store.rows import to_row
from planes.store.schema import PORTS
from tests.support.cloud import caller, network_with_subnet, running
from tests.support.invariants import violations


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with running(tmp_path) as started:
        yield started


@pytest.fixture
async def net(cloud: Cloud) -> tuple[NetworkView, SubnetView]:
    return await network_with_subnet(cloud, "10.0.0.0/20")


async def port(cloud: Cloud, network: NetworkView, **wanted: Any) -> PortView:
    (view,) = await cloud.ports.create(caller(), [PortCreate(network_id=network.id, **wanted)])
    return view


async def change(cloud: Cloud, view: PortView, **wanted: Any) -> PortView:
    return await cloud.ports.update(caller(admin=True), view.id, PortUpdate(**wanted), None)


async def stored(cloud: Cloud, view: PortView) -> list[Values]:
    """The rows of addresses in the port's home bucket."""
    return (await cloud.plane.store.read(PORTS, place_of(parse(view.id)), prefix=(int(Kind.IP),))).rows


def ip_of(view: PortView) -> bytes:
    return parse_ip(view.fixed_ips[0].ip_address, "")


async def told(cloud: Cloud, view: PortView) -> Address:
    """The port's address, as remembered, as read, and as the echo has it, which are the same."""
    parts, where, ip = cloud.plane.partitions, place_of(parse(view.id)), ip_of(view)
    found: list[Address] = []
    for _ in range(2):
        found.append((await reads.bucket(parts, where)).get(Kind.IP, ip))
        parts.forget(PORTS, where)
    row = await cloud.plane.ground.port(parse(view.id), fresh=True)
    assert row is not None
    parts.forget(PORTS, where)
    found += (await reads.current_addresses(parts, where, [ip], [row])).values()
    assert found == found[:1] * 3
    return found[0]


async def test_a_port_s_address_gets_a_row_only_when_the_port_goes_on_without_it(cloud: Cloud, net: Any) -> None:
    network, _ = net
    await cloud.plane.hosts.register(Register("h1", "machine", bytes((192, 0, 2, 1))))
    made = await port(cloud, network)
    assert await stored(cloud, made) == []
    bound = await change(cloud, made, host_id="h1")
    assert await stored(cloud, made) == []
    before = await told(cloud, made)
    assert (before.host, before.rev) == ("h1", bound.revision_number)
    await change(cloud, made, name="new")
    assert await stored(cloud, made) == []
    await change(cloud, made, admin_state_up=False)
    assert [row[2] for row in await stored(cloud, made)] == [before.rev]
    assert await told(cloud, made) == before, "hosts know it by its revision"
    await change(cloud, made, host_id="h2")
    assert await told(cloud, made) == before, "until the first host has let go"
    assert await violations(cloud.plane.store) == []


async def test_an_address_is_nobody_elses_also_for_who_reads_it_later(cloud: Cloud, net: Any) -> None:
    network, _ = net
    given = (FixedIp(ip_address="10.0.0.77"),)
    for _ in range(3):
        made = await port(cloud, network, fixed_ips=given)
        for _ in range(2):
            with pytest.raises(Conflict, match="in use"):
                await port(cloud, network, fixed_ips=given)
            cloud.plane.partitions.forget(PORTS, place_of(parse(made.id)))
        last = await told(cloud, made)
        await cloud.ports.delete(caller(), made.id, None)
        (row,) = await stored(cloud, made)
        free = (await reads.bucket(cloud.plane.partitions, place_of(parse(made.id)))).get(Kind.IP, ip_of(made))
        assert free.state == AddressState.FREE
        assert row[2] == free.rev > last.rev, "the next owner's is higher still (rule S2)"
    others = [await port(cloud, network) for _ in range(30)]
    assert len({view.fixed_ips[0].ip_address for view in others}) == 30
    cloud.plane.partitions.forget(PORTS, place_of(parse(others[0].id)))
    others += [await port(cloud, network) for _ in range(30)]
    assert len({view.fixed_ips[0].ip_address for view in others}) == 60
    assert await violations(cloud.plane.store) == []


async def test_rows_of_older_clouds_count(cloud: Cloud, net: Any) -> None:
    network, _ = net
    made = await port(cloud, network, host_id="h1")
    where, ip, store = place_of(parse(made.id)), ip_of(made), cloud.plane.store
    address = await told(cloud, made)
    top = (await store.read(PORTS, where)).statics[0]
    assert isinstance(top, int)
    older = Address(address.port, address.subnet, address.mac, "h1", address.identity, 1, 1, 1)
    assert await store.commit(Batch(PORTS, where, top, {"top": top + 1}, [to_row(Kind.IP, ip, 1, older)]))
    cloud.plane.partitions.forget(PORTS, where)
    assert await told(cloud, made) == older
    await change(cloud, made, security_groups=())
    assert (await told(cloud, made)).rev > older.rev
    assert len(await stored(cloud, made)) == 1
    assert await violations(store) == []


async def test_whoever_looks_for_an_address_finds_it(cloud: Cloud, net: Any) -> None:
    network, subnet = net
    made = await port(cloud, network, fixed_ips=(FixedIp(ip_address="10.0.0.77"),))
    pools = (Pool(start="10.0.0.2", end="10.0.0.50"),)
    asked = Query(filters={"network_id": (network.id,), "fixed_ips": ("ip_address=10.0.0.77",)})
    for _ in range(2):
        assert [view.id for view in (await cloud.ports.list(caller(), asked)).items] == [made.id]
        wanted = SubnetUpdate(gateway_ip="10.0.0.77", allocation_pools=pools)
        with pytest.raises(Conflict, match="already in use"):
            await cloud.subnets.update(caller(), subnet.id, wanted, None)
        with pytest.raises(Conflict, match="have an IP"):
            await cloud.subnets.delete(caller(), subnet.id, None)
        cloud.plane.partitions.forget(PORTS, place_of(parse(made.id)))
    await cloud.ports.delete(caller(), made.id, None)
    assert (await cloud.ports.list(caller(), asked)).items == []
    await cloud.subnets.delete(caller(), subnet.id, None)


async def pulled(cloud: Cloud, network: NetworkView, where: int, since: int) -> dict[bytes, Any]:
    """What a host is told of a bucket, page by page."""
    found: dict[bytes, Any] = {}
    pull = Pull(What.BUCKET, parse(network.id), where, since)
    while True:
        page = await cloud.plane.snapshots.page("h1", pull)
        assert not page.denied
        for item in page.objects:
            if isinstance(item, Neighbour | Gone):
                key = item.id if isinstance(item, Gone) else item.ip
                assert key not in found, "told twice"
                found[key] = item
        if not page.token:
            return found
        pull = Pull(What.BUCKET, parse(network.id), where, since, page.token)


async def test_a_bucket_is_read_for_an_address_only_where_no_id_says_whose_it_is(cloud: Cloud, net: Any) -> None:
    network, _ = net
    many = await cloud.ports.create(caller(), [PortCreate(network_id=network.id)] * 100)
    where, partitions = place_of(parse(many[0].id)), cloud.plane.partitions

    def at(place: int) -> str:
        return ip_text(ip_bytes((where[1] << BUCKET_SHIFT) + place))

    by_mac = await port(cloud, network, mac_address=mac_text(bytes((2, 0)) + parse_ip(at(249), "")))
    asked = await port(cloud, network, fixed_ips=(FixedIp(ip_address=at(521)),))
    moved = await change(cloud, many[7], fixed_ips=(FixedIp(ip_address=at(522)),))
    gone = many[11]
    await cloud.ports.delete(caller(), gone.id, None)

    async def owners(ip: str) -> tuple[list[str], bool]:
        """Whose it is, and whether the whole bucket was read for that; told by nothing that is remembered."""
        partitions.forget(PORTS, where)
        filters: dict[str, tuple[str, ...]] = {"network_id": (network.id,), "fixed_ips": (f"ip_address={ip}",)}
        found = (await cloud.ports.list(caller(), Query(filters))).items
        return [view.id for view in found], partitions.peek(PORTS, where) is not None

    for view in (*many[:7], *many[8:11], *many[12::20], asked):
        assert await owners(view.fixed_ips[0].ip_address) == ([view.id], False)
    assert await owners(at(522)) == ([moved.id], True)  # its id says where the first one was
    assert await owners(many[7].fixed_ips[0].ip_address) == ([], False)  # a row says that it is free
    assert await owners(gone.fixed_ips[0].ip_address) == ([], False)
    assert (await owners(by_mac.fixed_ips[0].ip_address))[0] == [by_mac.id]  # its id was drawn before its address
    assert await owners(at(867)) == ([], True)
    again = await port(cloud, network, fixed_ips=gone.fixed_ips and (FixedIp(ip_address=gone.fixed_ips[0].ip_address),))
    assert await owners(gone.fixed_ips[0].ip_address) == ([again.id], False)


async def test_pages_of_a_bucket_name_each_address_once_with_and_without_rows(cloud: Cloud, net: Any) -> None:
    network, _ = net
    made: list[PortView] = []
    for _ in range(6):
        made += await cloud.ports.create(caller(), [PortCreate(network_id=network.id, host_id="h1")] * 100)
    where = place_of(parse(made[0].id))
    some = [view for view in made if place_of(parse(view.id)) == where]
    before = (await reads.bucket(cloud.plane.partitions, where)).top
    changed, gone = some[10::50], some[20::50]
    for view in changed:
        await change(cloud, view, admin_state_up=False)
    for view in gone:
        await cloud.ports.delete(caller(), view.id, None)
    new = await port(cloud, network, host_id="h1", fixed_ips=(FixedIp(ip_address="10.0.3.250"),))
    assert place_of(parse(new.id))[0] == where[0]
    for _ in range(2):
        rows = dict((await reads.bucket(cloud.plane.partitions, where)).all(Kind.IP))
        whole = await pulled(cloud, network, where[1], 0)
        assert {ip: item.rev for ip, item in whole.items()} == {
            ip: row.rev for ip, row in rows.items() if row.state == AddressState.USED
        }
        assert set(whole) >= {ip_of(view) for view in changed}
        since = await pulled(cloud, network, where[1], before)
        expected = {ip_of(view) for view in gone} | ({ip_of(new)} if bucket(ip_of(new)) == where[1] else set())
        assert set(since) == expected
        cloud.plane.partitions.forget(PORTS, where)


async def test_the_echo_tells_of_addresses_that_it_does_not_remember(
    cloud: Cloud, net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are read one by one, many with their bucket; of each network its own, though both have the same addresses."""
    networks = [net[0], (await network_with_subnet(cloud, "10.0.0.0/20"))[0]]
    views = [await port(cloud, network, host_id="h1") for network in networks for _ in range(8)]
    said: list[tuple[bytes, Any]] = []
    publisher = cloud.plane.publisher
    monkeypatch.setattr(publisher, "network", lambda network, items, *_: said.extend((network, item) for item in items))
    for some in (views, views[:1] + views[8:9]):
        for known in (True, False):
            rows = await reads.ports(cloud.plane.store, [parse(view.id) for view in some])
            if not known:
                for view in views:
                    cloud.plane.partitions.forget(PORTS, place_of(parse(view.id)))
            said.clear()
            await cloud.plane.echo._neighbours(list(rows.values()))
            found = {(n, item.ip): item for n, item in said if isinstance(item, Neighbour)}
            assert set(found) == {(Id(parse(view.network_id)), ip_of(view)) for view in some}
            assert {item.rev for item in found.values()} == {view.revision_number for view in some}
            assert {item.mac for item in found.values()} == {rows[parse(view.id)].mac for view in some}
    assert len({number_of(parse(view.id)) for view in views}) == 2
