"""A MAC belongs to one port of its network, whether a row says so or the port's own row does (docs/store.md)."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from planes.management.cloud import Cloud
from planes.model.enums import Kind
from planes.model.errors import Conflict
from planes.model.ids import number_of, parse, place_of
from planes.model.requests import PortCreate, PortUpdate
from planes.model.resources import MacRow
from planes.model.views import NetworkView, PortView
from planes.store.protocol import Batch
from planes.store.rows import to_row
from planes.store.schema import PORTS
from planes.store.sqlite.store import SqliteStore
from tests.support.cloud import caller, network_with_subnet, running
from tests.support.invariants import violations

GIVEN = "02:00:00:12:34:56"


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with running(tmp_path) as started:
        yield started


@pytest.fixture
async def network(cloud: Cloud) -> NetworkView:
    return (await network_with_subnet(cloud))[0]


async def port(cloud: Cloud, network: NetworkView, **wanted: Any) -> PortView:
    (view,) = await cloud.ports.create(caller(), [PortCreate(network_id=network.id, **wanted)])
    return view


async def stored(cloud: Cloud, network: NetworkView) -> list[bytes]:
    """MACs that have a row of their own."""
    number, found = number_of(parse(network.id)), list[bytes]()
    for where in await cloud.plane.store.partitions(PORTS):
        if where[0] == number:
            rows = (await cloud.plane.store.read(PORTS, where, prefix=(int(Kind.MAC),))).rows
            found += [cast(bytes, row[1]) for row in rows]
    return found


async def anew(cloud: Cloud, *ports: PortView) -> None:
    """Nothing of these ports' buckets is remembered."""
    for view in ports:
        cloud.plane.partitions.forget(PORTS, place_of(parse(view.id)))


async def test_a_port_s_row_claims_its_mac_also_for_who_reads_it_later(cloud: Cloud, network: NetworkView) -> None:
    made = [await port(cloud, network), await port(cloud, network, mac_address=GIVEN)]
    assert await stored(cloud, network) == []
    for view in made:
        for _ in range(2):  # as remembered, then as stored
            with pytest.raises(Conflict, match="is in use"):
                await port(cloud, network, mac_address=view.mac_address)
            await anew(cloud, view)
        await cloud.ports.delete(caller(), view.id, None)
        await anew(cloud, view)
        again = await port(cloud, network, mac_address=view.mac_address)
        assert again.mac_address == view.mac_address
    assert await violations(cloud.plane.store) == []


async def test_a_mac_in_another_bucket_has_a_row_until_its_port_gives_it_up(cloud: Cloud, network: NetworkView) -> None:
    made = await port(cloud, network)
    await cloud.ports.update(caller(admin=True), made.id, PortUpdate(mac_address=GIVEN), None)
    assert await stored(cloud, network) == [bytes.fromhex(GIVEN.replace(":", ""))]
    with pytest.raises(Conflict, match="is in use"):
        await port(cloud, network, mac_address=GIVEN)
    taken = await port(cloud, network, mac_address=made.mac_address)  # nobody's any more
    with pytest.raises(Conflict, match="is in use"):
        await cloud.ports.update(caller(admin=True), made.id, PortUpdate(mac_address=taken.mac_address), None)
    await cloud.ports.delete(caller(), taken.id, None)
    await cloud.ports.update(caller(admin=True), made.id, PortUpdate(mac_address=made.mac_address), None)
    await anew(cloud, made)
    assert await stored(cloud, network) == []
    with pytest.raises(Conflict, match="is in use"):
        await port(cloud, network, mac_address=made.mac_address)
    assert (await port(cloud, network, mac_address=GIVEN)).mac_address == GIVEN
    assert await violations(cloud.plane.store) == []


async def test_the_rows_that_older_clouds_have_go_with_their_ports(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    async with running(tmp_path, store=store) as cloud:
        network, _ = await network_with_subnet(cloud)
        made = await port(cloud, network)
        id_, mac = parse(made.id), bytes.fromhex(made.mac_address.replace(":", ""))
        top = (await store.read(PORTS, place_of(id_))).statics[0]
        assert isinstance(top, int)
        row = to_row(Kind.MAC, mac, top + 1, MacRow(id_))
        assert await store.commit(Batch(PORTS, place_of(id_), top, {"top": top + 1}, [row]))
        await anew(cloud, made)
        with pytest.raises(Conflict, match="is in use"):
            await port(cloud, network, mac_address=made.mac_address)
        await cloud.ports.delete(caller(), made.id, None)
        assert await stored(cloud, network) == []
        assert (await port(cloud, network, mac_address=made.mac_address)).mac_address == made.mac_address
