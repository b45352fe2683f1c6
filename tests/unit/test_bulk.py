"""What ports of one request share is looked up once (docs/architecture.md): each is as if asked for alone."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from planes.management.cloud import Cloud
from planes.management.port_create import PortCreation
from planes.model.enums import Kind
from planes.model.errors import AlcorError, Conflict
from planes.model.ids import bucket_of, parse, text
from planes.model.query import Query
from planes.model.requests import AddressPair, FixedIp, GroupCreate, PortCreate
from planes.model.resources import MacRow, Port
from planes.model.views import PortView
from planes.store.protocol import Partition
from planes.store.schema import PORTS
from planes.store.views import Draft, View
from tests.support.cloud import caller, network_with_subnet, running
from tests.support.invariants import violations


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with running(tmp_path) as started:
        yield started
        assert not creation(started)._taking, "nobody is under way"


def creation(cloud: Cloud) -> PortCreation:
    return cloud.ports._inner._creation  # type: ignore[attr-defined,no-any-return]


async def test_each_port_of_a_mixed_bulk_is_as_it_was_asked_for(cloud: Cloud) -> None:
    one, first = await network_with_subnet(cloud, "10.0.0.0/20")
    two, second = await network_with_subnet(cloud, "10.1.0.0/20")
    groups = [group.id for group in await cloud.groups.create(caller(), [GroupCreate(name=name) for name in "abc"])]
    mac, ip = "02:00:00:00:00:01", (FixedIp(ip_address="10.0.0.77"),)
    asked: list[dict[str, Any]] = [
        {"network_id": one.id, "name": "plain"},
        {"network_id": one.id, "name": "plain too", "host_id": "h1"},
        {"network_id": two.id},
        {"network_id": one.id, "security_groups": (groups[0],)},
        {"network_id": one.id, "security_groups": (groups[0],), "description": "the same groups"},
        {"network_id": one.id, "security_groups": (groups[1], groups[2])},
        {"network_id": one.id, "port_security_enabled": False},
        {"network_id": one.id, "mac_address": mac},
        {"network_id": one.id, "fixed_ips": ip},
        {"network_id": one.id, "fixed_ips": (FixedIp(subnet_id=first.id),)},
        {"network_id": one.id, "fixed_ips": (FixedIp(subnet_id=first.id),)},
        {"network_id": two.id, "fixed_ips": (FixedIp(subnet_id=second.id), FixedIp(subnet_id=second.id))},
        {"network_id": two.id, "fixed_ips": ()},
        {"network_id": one.id, "name": "last"},
    ]
    made = await cloud.ports.create(caller(), [PortCreate(**item) for item in asked])
    default = made[0].security_groups
    assert len({each.id for each in made}) == len({each.mac_address for each in made}) == len(asked)
    for item, view in zip(asked, made, strict=True):
        assert (view.network_id, view.name) == (item["network_id"], item.get("name", ""))
        assert (view.description, view.host_id) == (item.get("description", ""), item.get("host_id", ""))
        secure = item.get("port_security_enabled", True)
        assert view.port_security_enabled == secure
        assert set(view.security_groups) == set(item.get("security_groups", default if secure else ()))
        assert len(view.fixed_ips) == len(item.get("fixed_ips", "1"))
    assert made[7].mac_address == mac
    assert made[8].fixed_ips[0].ip_address == "10.0.0.77"
    used = [(view.network_id, each.ip_address) for view in made for each in view.fixed_ips]
    assert len(set(used)) == len(used)
    assert [await cloud.ports.get(caller(), view.id) for view in made] == made
    assert not await violations(cloud.plane.store)


async def test_a_bulk_fills_a_bucket_and_goes_on_in_the_next(cloud: Cloud) -> None:
    network, _ = await network_with_subnet(cloud, "10.0.0.0/21")
    room = 2**11 - 3  # without the first, the last and the gateway
    made: list[PortView] = []
    for count in (900, 900, room - 1800):
        made += await cloud.ports.create(caller(), [PortCreate(network_id=network.id)] * count)
    assert len({view.fixed_ips[0].ip_address for view in made}) == room
    assert len({bucket_of(parse(view.id)) for view in made}) == 2
    for count in (1, 3):
        with pytest.raises(Conflict, match="No more IP addresses"):
            await cloud.ports.create(caller(), [PortCreate(network_id=network.id)] * count)
    assert not await violations(cloud.plane.store)


async def test_every_field_is_in_its_place(cloud: Cloud) -> None:
    """Rows and views of ports are made in the order of their fields."""
    network, subnet = await network_with_subnet(cloud)
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="g")])
    asked = PortCreate(
        network_id=network.id,
        name="name",
        description="description",
        admin_state_up=False,
        mac_address="02:00:0a:00:00:09",
        fixed_ips=(FixedIp(ip_address="10.0.0.9"),),
        security_groups=(group.id,),
        allowed_address_pairs=(AddressPair(ip_address="10.0.9.0/24"),),
        device_id="device",
        device_owner="owner",
        host_id="h1",
        vnic_type="macvtap",
        profile={"a": "b"},
    )
    (view,) = await cloud.ports.create(caller(), [asked])
    row = await cloud.plane.ground.port(parse(view.id), fresh=True)
    assert row is not None
    assert row == Port(
        id=parse(view.id),
        network=parse(network.id),
        project="demo",
        mac=bytes.fromhex("02000a000009"),
        fixed=((parse(subnet.id), bytes((10, 0, 0, 9))),),
        groups=(parse(group.id),),
        identity=1,
        host="h1",
        name="name",
        description="description",
        device_id="device",
        device_owner="owner",
        vnic_type="macvtap",
        admin_up=False,
        pairs=(("10.0.9.0/24", ""),),
        profile={"a": "b"},
        created=row.rev,
        updated=row.rev,
        rev=row.rev,
        goal_rev=row.rev,
        change=row.change,
        traceparent=row.traceparent,
    )
    shown = msgspec.to_builtins(view)
    assert shown.pop("created_at") == shown.pop("updated_at")
    assert shown.pop("status_reason")
    assert shown == {
        "id": text(row.id),
        "name": "name",
        "description": "description",
        "project_id": "demo",
        "tenant_id": "demo",
        "network_id": network.id,
        "mac_address": "02:00:0a:00:00:09",
        "fixed_ips": ({"subnet_id": subnet.id, "ip_address": "10.0.0.9"},),
        "security_groups": (group.id,),
        "allowed_address_pairs": ({"ip_address": "10.0.9.0/24", "mac_address": "02:00:0a:00:00:09"},),
        "port_security_enabled": True,
        "admin_state_up": False,
        "status": "DOWN",
        "device_id": "device",
        "device_owner": "owner",
        "binding:host_id": "h1",
        "binding:vnic_type": "macvtap",
        "binding:vif_type": "tap",
        "binding:vif_details": {"port_filter": True},
        "binding:profile": {"a": "b"},
        "extra_dhcp_opts": (),
        "tags": (),
        "revision_number": row.rev,
    }


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"mac_address": "02:00:00:00:00:zz"}, "02:00:00:00:00:zz"),
        ({"fixed_ips": (FixedIp(ip_address="10.9.0.1"),)}, "10.9.0.1"),
        ({"fixed_ips": (FixedIp(ip_address="10.0.0.200"),)}, "10.0.0.200 is in use"),
        ({"network_id": "00000000-0000-8000-8000-000000000000"}, "00000000-0000-8000-8000-000000000000"),
        ({"security_groups": ("00000000-0000-8000-8000-000000000001",)}, "00000000-0000-8000-8000-000000000001"),
        ({"qos_policy_id": "00000000-0000-8000-8000-000000000002"}, "qos_policy_id"),
        ({"project_id": "other"}, "other"),
    ],
)
async def test_a_bad_port_among_good_ones_is_named_and_leaves_nothing(
    cloud: Cloud, bad: dict[str, Any], error: str
) -> None:
    network, _ = await network_with_subnet(cloud)
    taken = PortCreate(network_id=network.id, fixed_ips=(FixedIp(ip_address="10.0.0.200"),))
    (other,) = await cloud.ports.create(caller(), [taken])
    good = PortCreate(network_id=network.id)
    with pytest.raises(AlcorError, match=error):
        await cloud.ports.create(caller(), [good, good, PortCreate(**{"network_id": network.id} | bad), good])
    assert [view.id for view in (await cloud.ports.list(caller(), Query())).items] == [other.id]
    assert not await violations(cloud.plane.store)


async def test_a_run_is_proven_where_it_is_committed(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subnet goes between the plans and their commit: none of them is there."""
    network, subnet = await network_with_subnet(cloud)
    claim = PortCreation.claim

    async def late(self: PortCreation, plans: Any) -> None:
        await claim(self, plans)
        await cloud.subnets.delete(caller(), subnet.id, None)

    monkeypatch.setattr(PortCreation, "claim", late)
    with pytest.raises(AlcorError, match="could not be found"):
        await cloud.ports.create(caller(), [PortCreate(network_id=network.id)] * 3)
    assert not (await cloud.ports.list(caller(), Query())).items


def test_one_look_for_many_rows_misses_none() -> None:
    row, kind = MacRow(parse("00000000-0000-8000-8000-000000000000")), Kind.MAC
    view = View(PORTS, Partition((), [], False))
    view.kinds[int(kind)] = {b"seen": row}
    draft = Draft(view, {(int(kind), b"before"): row}, {})
    draft.put(kind, b"own", row)
    assert draft.lacks(kind, [b"x", b"y"])
    assert draft.lacks(Kind.PORT, [b"seen", b"before", b"own"])
    for key in (b"seen", b"before", b"own"):
        assert not draft.lacks(kind, [b"x", key])
