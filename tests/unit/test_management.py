"""What tenants may ask and what they get: validation, allocation, references, in Neutron's words."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from planes.management.cloud import Cloud
from planes.management.context import ManagementConfig
from planes.model.errors import AlcorError, Conflict, Forbidden, Invalid, NotFound, OverQuota, PreconditionFailed
from planes.model.query import Query
from planes.model.requests import (
    AddressPair,
    FixedIp,
    GroupCreate,
    GroupUpdate,
    NetworkCreate,
    NetworkUpdate,
    Pool,
    PortCreate,
    PortUpdate,
    RuleCreate,
    SubnetCreate,
    SubnetUpdate,
)
from planes.model.views import NetworkView, PortView, SubnetView
from planes.store.partitions import Partitions
from planes.store.schema import BY_DEVICE, BY_GROUP, BY_NAME, BY_PROJECT, SLOTS
from planes.store.slots import Slots
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


async def refused(type_name: str, kind: type[AlcorError], work: Any) -> str:
    with pytest.raises(kind) as caught:
        await work
    assert caught.value.type_name == type_name
    return str(caught.value)


# -- networks and subnets ------------------------------------------------------------------------------------------


async def test_networks_have_different_vnis_and_partitions(cloud: Cloud) -> None:
    views = await cloud.networks.create(caller(), [NetworkCreate(name=f"n{n}") for n in range(50)])
    assert len({view.provider_segmentation_id for view in views}) == 50
    assert all(0 < view.provider_segmentation_id < 1 << 24 for view in views)


async def test_a_freed_vni_rests_before_another_network_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule D8: a host that has not heard yet may still send and take packets of the network that had it."""
    monkeypatch.setattr("planes.store.slots.VNI_BLOCK", 64)
    time, minutes = [1_800_000_000_000_000], 60_000_000
    store = SqliteStore(tmp_path / "slots.db")
    await store.open()
    slots = Slots(Partitions(store, lambda: time[0]))

    async def claim(owner: int) -> int | None:
        return await slots.claim_vni(7, owner.to_bytes(16, "big"), 10 * minutes)

    numbers = {await claim(owner) for owner in range(64)}
    assert numbers == {*range(7 * 64, 8 * 64)}
    assert await claim(5000) is None
    held = await claim(9)  # who has one gets the same
    await slots.free_vni(7, (9).to_bytes(16, "big"))
    time[0] += 10 * minutes - 1
    assert await claim(5000) is None
    time[0] += 1
    assert await claim(5000) == held
    await store.close()


async def test_another_project_sees_only_shared_networks(cloud: Cloud) -> None:
    (own,) = await cloud.networks.create(caller("red"), [NetworkCreate(name="own")])
    (shared,) = await cloud.networks.create(caller("red", admin=True), [NetworkCreate(name="shared", shared=True)])
    await refused("NetworkNotFound", NotFound, cloud.networks.get(caller("blue"), own.id))
    listed = await cloud.networks.list(caller("blue"), Query())
    assert [view.id for view in listed.items] == [shared.id]
    await refused("PolicyNotAuthorized", Forbidden, cloud.networks.delete(caller("blue"), shared.id, None))


async def test_a_tenant_may_not_share_or_choose_the_segment(cloud: Cloud) -> None:
    await refused("PolicyNotAuthorized", Forbidden, cloud.networks.create(caller(), [NetworkCreate(shared=True)]))
    asked = NetworkCreate(provider_segmentation_id=7)
    await refused("PolicyNotAuthorized", Forbidden, cloud.networks.create(caller(), [asked]))


@pytest.mark.parametrize("mtu", [67, 1451, 9000])
async def test_an_mtu_that_does_not_fit_the_underlay_is_refused(cloud: Cloud, mtu: int) -> None:
    said = await refused("InvalidInput", Invalid, cloud.networks.create(caller(), [NetworkCreate(mtu=mtu)]))
    assert "mtu" in said


async def test_a_bulk_of_networks_is_all_or_nothing(cloud: Cloud) -> None:
    await network_with_subnet(cloud)
    wanted = [SubnetCreate(network_id="0" * 32, cidr="10.0.0.0/24")]
    await refused("NetworkNotFound", NotFound, cloud.subnets.create(caller(), wanted))
    (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
    two = [SubnetCreate(network_id=network.id, cidr=cidr) for cidr in ("10.1.0.0/24", "10.1.0.0/25")]
    await refused("OverlappingSubnets", Invalid, cloud.subnets.create(caller(), two))
    assert (await cloud.networks.get(caller(), network.id)).subnets == ()


async def test_of_many_overlapping_subnets_at_once_one_is_made(cloud: Cloud) -> None:
    (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
    wanted = [SubnetCreate(network_id=network.id, cidr="10.0.0.0/24")]
    done = await asyncio.gather(*(cloud.subnets.create(caller(), wanted) for _ in range(20)), return_exceptions=True)
    assert Counter(type(item) for item in done) == {list: 1, Invalid: 19}


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"cidr": "10.0.0.1/24"}, "cidr"),
        ({"cidr": "10.0.0.0"}, "cidr"),
        ({"cidr": "10.0.0.0/31"}, "cidr"),
        ({"cidr": "224.0.0.0/24"}, "cidr"),
        ({"cidr": "nonsense"}, "cidr"),
        ({}, "cidr"),
        ({"cidr": "fd00::/64", "ip_version": 6}, "ip_version"),
        ({"cidr": "10.0.0.0/24", "gateway_ip": "10.0.1.1"}, "gateway_ip"),
        ({"cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.255"}, "gateway_ip"),
        ({"cidr": "10.0.0.0/24", "allocation_pools": (Pool(start="10.0.0.9", end="10.0.0.5"),)}, "allocation_pools"),
        ({"cidr": "10.0.0.0/24", "dns_nameservers": ("x",)}, "dns_nameservers"),
    ],
)
async def test_a_bad_subnet_is_refused_and_the_field_named(cloud: Cloud, wanted: dict[str, Any], field: str) -> None:
    (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
    said = await refused(
        "InvalidInput", Invalid, cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, **wanted)])
    )
    assert field in said


async def test_pools_stay_in_the_prefix_apart_and_off_the_gateway(cloud: Cloud) -> None:
    (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
    for pools, name in (
        ([("10.0.0.2", "10.0.1.9")], "OutOfBoundsAllocationPool"),
        ([("10.0.0.1", "10.0.0.9")], "GatewayConflictWithAllocationPools"),
        ([("10.0.0.2", "10.0.0.9"), ("10.0.0.9", "10.0.0.20")], "OverlappingAllocationPools"),
    ):
        asked = tuple(Pool(start=a, end=b) for a, b in pools)
        wanted = SubnetCreate(network_id=network.id, cidr="10.0.0.0/24", allocation_pools=asked)
        await refused(name, Conflict, cloud.subnets.create(caller(), [wanted]))


async def test_a_gateway_in_use_cannot_be_moved_to(cloud: Cloud, net: Any) -> None:
    network, subnet = net
    await port(cloud, network, fixed_ips=(FixedIp(ip_address="10.0.0.77"),))
    pools = (Pool(start="10.0.0.2", end="10.0.0.50"),)
    asked = SubnetUpdate(gateway_ip="10.0.0.77", allocation_pools=pools)
    await refused("GatewayIpInUse", Conflict, cloud.subnets.update(caller(), subnet.id, asked, None))


async def test_a_network_or_subnet_in_use_stays(cloud: Cloud, net: Any) -> None:
    network, subnet = net
    made = await port(cloud, network)
    await refused("NetworkInUse", Conflict, cloud.networks.delete(caller(), network.id, None))
    await refused("SubnetInUse", Conflict, cloud.subnets.delete(caller(), subnet.id, None))
    await port(cloud, network)
    for view in (await cloud.ports.list(caller(), Query())).items:
        await cloud.ports.delete(caller(), view.id, None)
    await cloud.subnets.delete(caller(), subnet.id, None)
    await cloud.networks.delete(caller(), network.id, None)
    await refused("NetworkNotFound", NotFound, cloud.networks.get(caller(), network.id))
    await refused("PortNotFound", NotFound, cloud.ports.get(caller(), made.id))


async def test_no_port_is_created_in_a_subnet_that_is_being_deleted(cloud: Cloud, net: Any) -> None:
    network, subnet = net
    wanted = [PortCreate(network_id=network.id, fixed_ips=(FixedIp(subnet_id=subnet.id),))]
    work = [cloud.ports.create(caller(), wanted) for _ in range(20)]
    work.insert(10, cloud.subnets.delete(caller(), subnet.id, None))
    done = await asyncio.gather(*work, return_exceptions=True)
    ports = [item for item in done if isinstance(item, list)]
    left = (await cloud.networks.get(caller(), network.id)).subnets
    assert left == ((subnet.id,) if ports else ())


async def test_if_match_lets_only_the_current_revision_change(cloud: Cloud, net: Any) -> None:
    network, _ = net
    changed = await cloud.networks.update(caller(), network.id, NetworkUpdate(name="b"), network.revision_number)
    assert changed.name == "b"
    assert changed.revision_number > network.revision_number
    stale = cloud.networks.update(caller(), network.id, NetworkUpdate(name="c"), network.revision_number)
    await refused("RevisionNumberConstraintFailed", PreconditionFailed, stale)


# -- ports ---------------------------------------------------------------------------------------------------------


async def test_a_hundred_requests_for_one_address_give_one_port(cloud: Cloud, net: Any) -> None:
    network, _ = net
    wanted = [PortCreate(network_id=network.id, fixed_ips=(FixedIp(ip_address="10.0.0.9"),))]
    done = await asyncio.gather(*(cloud.ports.create(caller(), wanted) for _ in range(100)), return_exceptions=True)
    assert Counter(getattr(item, "type_name", "port") for item in done) == {"port": 1, "IpAddressInUse": 99}
    assert len((await cloud.ports.list(caller(), Query())).items) == 1


async def test_addresses_and_macs_are_unique_under_concurrency(cloud: Cloud, net: Any) -> None:
    network, _ = net
    done = await asyncio.gather(*(port(cloud, network) for _ in range(253)))
    assert len({view.fixed_ips[0].ip_address for view in done}) == 253
    assert len({view.mac_address for view in done}) == 253
    await refused("IpAddressGenerationFailure", Conflict, port(cloud, network))


async def test_an_exhausted_subnet_gives_an_address_again_after_a_delete(cloud: Cloud) -> None:
    network, _ = await network_with_subnet(cloud, "10.0.0.0/30")
    first = await port(cloud, network)
    await refused("IpAddressGenerationFailure", Conflict, port(cloud, network))
    await cloud.ports.delete(caller(), first.id, None)
    assert (await port(cloud, network)).fixed_ips == first.fixed_ips


async def test_a_given_mac_and_address_in_other_buckets_belong_to_the_port_alone(cloud: Cloud) -> None:
    network, subnet = await network_with_subnet(cloud, "10.0.0.0/16")
    fixed = tuple(FixedIp(ip_address=ip) for ip in ("10.0.5.5", "10.0.200.1"))
    made = await port(cloud, network, mac_address="02:00:00:12:34:56", fixed_ips=fixed)
    assert [ip.ip_address for ip in made.fixed_ips] == ["10.0.5.5", "10.0.200.1"]
    assert made.mac_address == "02:00:00:12:34:56"
    for ip in fixed:
        await refused("IpAddressInUse", Conflict, port(cloud, network, fixed_ips=(ip,)))
    await refused("MacAddressInUse", Conflict, port(cloud, network, mac_address="02:00:00:12:34:56"))
    await cloud.ports.delete(caller(), made.id, None)
    again = await port(cloud, network, mac_address="02:00:00:12:34:56", fixed_ips=fixed)
    assert again.fixed_ips == made.fixed_ips
    assert (await cloud.subnets.get(caller(), subnet.id)).cidr == "10.0.0.0/16"


async def test_an_instance_that_knows_no_bucket_yet_sees_which_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its first creates are refused in a large network: each try of theirs ends in another full bucket."""
    pools = tuple(Pool(start=ip, end=ip) for ip in (f"10.0.{4 * n}.10" for n in range(8)))
    async with running(tmp_path, management=ManagementConfig(instance_spread=False)) as cloud:
        (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
        wanted = SubnetCreate(network_id=network.id, cidr="10.0.0.0/16", ip_version=4, allocation_pools=pools)
        await cloud.subnets.create(caller(), [wanted])
        for _ in range(7):
            await port(cloud, network)
    monkeypatch.setattr("planes.management.port_create.MOVES", 1)
    async with running(tmp_path, management=ManagementConfig(instance_spread=False)) as cloud:
        assert (await port(cloud, network)).fixed_ips[0].ip_address == "10.0.28.10"
        await refused("IpAddressGenerationFailure", Conflict, port(cloud, network))


async def test_a_bulk_of_ports_is_all_or_nothing(cloud: Cloud) -> None:
    network, _ = await network_with_subnet(cloud, "10.0.0.0/29")
    wanted = [PortCreate(network_id=network.id) for _ in range(6)]
    await refused("IpAddressGenerationFailure", Conflict, cloud.ports.create(caller(), wanted))
    assert (await cloud.ports.list(caller(), Query())).items == []
    assert len(await cloud.ports.create(caller(), wanted[:5])) == 5


@pytest.mark.parametrize(
    ("wanted", "name", "field"),
    [
        ({"fixed_ips": (FixedIp(ip_address="10.0.1.9"),)}, "InvalidIpForNetwork", "10.0.1.9"),
        ({"fixed_ips": (FixedIp(ip_address="10.0.0.255"),)}, "InvalidIpForSubnet", "10.0.0.255"),
        ({"fixed_ips": (FixedIp(ip_address="x"),)}, "InvalidInput", "fixed_ips[0].ip_address"),
        ({"fixed_ips": (FixedIp(),)}, "InvalidInput", "fixed_ips[0]"),
        ({"fixed_ips": (FixedIp(subnet_id="0" * 32),)}, "InvalidSubnet", "subnet"),
        ({"mac_address": "01:00:00:00:00:01"}, "InvalidInput", "mac_address"),
        ({"mac_address": "nonsense"}, "InvalidInput", "mac_address"),
        ({"host_id": "has_underscore"}, "InvalidInput", "binding:host_id"),
        ({"host_id": "a.*"}, "InvalidInput", "binding:host_id"),
        ({"allowed_address_pairs": (AddressPair(ip_address="10.0.0.1/24"),)}, "InvalidInput", "allowed_address_pairs"),
        ({"profile": {"x": "y" * 5000}}, "InvalidInput", "binding:profile"),
        ({"vnic_type": "direct"}, "InvalidInput", "binding:vnic_type"),
    ],
)
async def test_a_bad_port_is_refused_and_the_field_named(
    cloud: Cloud, net: Any, wanted: dict[str, Any], name: str, field: str
) -> None:
    assert field in await refused(name, Invalid, port(cloud, net[0], **wanted))
    assert (await cloud.ports.list(caller(), Query())).items == []


async def test_the_gateways_address_is_nobodys_port(cloud: Cloud, net: Any) -> None:
    await refused("IpAddressInUse", Conflict, port(cloud, net[0], fixed_ips=(FixedIp(ip_address="10.0.0.1"),)))


async def test_port_security_and_groups_exclude_each_other(cloud: Cloud, net: Any) -> None:
    made = await port(cloud, net[0])
    off = PortUpdate(port_security_enabled=False)
    await refused("PortSecurityPortHasSecurityGroup", Conflict, cloud.ports.update(caller(), made.id, off, None))
    both = PortUpdate(port_security_enabled=False, security_groups=())
    assert (await cloud.ports.update(caller(), made.id, both, None)).port_security_enabled is False


async def test_a_port_says_why_it_is_not_active(cloud: Cloud, net: Any) -> None:
    unbound = await port(cloud, net[0])
    assert (unbound.status, unbound.status_reason) == ("DOWN", "The port has no host.")
    bound = await port(cloud, net[0], host_id="nowhere")
    assert bound.status == "BUILD"
    assert "nowhere is unknown" in bound.status_reason
    down = await cloud.ports.update(caller(), bound.id, PortUpdate(admin_state_up=False), None)
    assert down.status == "DOWN"


async def test_updates_keep_take_and_give_back_addresses(cloud: Cloud, net: Any) -> None:
    network, subnet = net
    made = await port(cloud, network)
    first = made.fixed_ips[0].ip_address
    both = (FixedIp(ip_address=first), FixedIp(ip_address="10.0.0.50"))
    assert len((await cloud.ports.update(caller(), made.id, PortUpdate(fixed_ips=both), None)).fixed_ips) == 2
    only = PortUpdate(fixed_ips=(FixedIp(ip_address="10.0.0.50"),))
    left = await cloud.ports.update(caller(), made.id, only, None)
    assert [ip.ip_address for ip in left.fixed_ips] == ["10.0.0.50"]
    assert (await port(cloud, network, fixed_ips=(FixedIp(ip_address=first),))).fixed_ips[0].ip_address == first
    taken = PortUpdate(fixed_ips=(FixedIp(ip_address=first, subnet_id=subnet.id),))
    await refused("IpAddressInUse", Conflict, cloud.ports.update(caller(), made.id, taken, None))


async def test_a_rename_does_not_concern_the_kernel(cloud: Cloud, net: Any) -> None:
    made = await port(cloud, net[0], host_id="h1")
    row = await cloud.plane.ground.port(bytes.fromhex(made.id.replace("-", "")))
    assert row is not None
    await cloud.ports.update(caller(), made.id, PortUpdate(name="new"), None)
    after = await cloud.plane.ground.port(row.id)
    assert after is not None
    assert after.rev > row.rev
    assert after.goal_rev == row.goal_rev


async def rows_of(cloud: Cloud) -> list[str]:
    found = []
    for table in (BY_PROJECT, BY_GROUP, BY_DEVICE, BY_NAME, SLOTS):
        for where in await cloud.plane.store.partitions(table):
            found += [f"{table.name} {where} {row}" for row in (await cloud.plane.store.read(table, where)).rows]
    return sorted(found)


async def test_nothing_is_left_of_a_deleted_port(cloud: Cloud, net: Any) -> None:
    await cloud.groups.list(caller(), Query())
    before = await rows_of(cloud)
    made = await port(cloud, net[0], name="p", device_id="d")
    assert await rows_of(cloud) != before
    await cloud.ports.delete(caller(), made.id, None)
    assert await rows_of(cloud) == before


# -- groups --------------------------------------------------------------------------------------------------------


async def test_the_default_group_is_neutrons(cloud: Cloud) -> None:
    many = await asyncio.gather(*(cloud.groups.list(caller(), Query()) for _ in range(10)))
    assert {len(listing.items) for listing in many} == {1}
    (default,) = many[0].items
    rules = {(rule.direction, rule.ethertype, rule.remote_group_id) for rule in default.security_group_rules}
    assert rules == {
        ("egress", "IPv4", None),
        ("egress", "IPv6", None),
        ("ingress", "IPv4", default.id),
        ("ingress", "IPv6", default.id),
    }
    await refused("SecurityGroupCannotRemoveDefault", Conflict, cloud.groups.delete(caller(), default.id, None))
    renamed = cloud.groups.update(caller(), default.id, GroupUpdate(name="other"), None)
    await refused("SecurityGroupCannotUpdateDefault", Conflict, renamed)


async def test_a_group_in_use_stays_and_one_being_deleted_takes_no_port(cloud: Cloud, net: Any) -> None:
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="web")])
    made = await port(cloud, net[0], security_groups=(group.id,))
    await refused("SecurityGroupInUse", Conflict, cloud.groups.delete(caller(), group.id, None))
    await cloud.ports.delete(caller(), made.id, None)
    await cloud.groups.delete(caller(), group.id, None)
    await refused("SecurityGroupNotFound", NotFound, port(cloud, net[0], security_groups=(group.id,)))


async def test_a_port_and_the_deletion_of_its_group_do_not_both_succeed(cloud: Cloud, net: Any) -> None:
    for _ in range(10):
        (group,) = await cloud.groups.create(caller(), [GroupCreate(name="web")])
        done = await asyncio.gather(
            port(cloud, net[0], security_groups=(group.id,)),
            cloud.groups.delete(caller(), group.id, None),
            return_exceptions=True,
        )
        made, deleted = isinstance(done[0], PortView), done[1] is None
        assert not (made and deleted)
        for error in done:
            assert not isinstance(error, Exception) or isinstance(error, AlcorError)


async def test_a_rule_that_says_the_same_exists(cloud: Cloud) -> None:
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="web")])
    rule = RuleCreate(
        security_group_id=group.id, direction="ingress", protocol="tcp", port_range_min=80, port_range_max=80
    )
    await cloud.rules.create(caller(), [rule])
    await refused("SecurityGroupRuleExists", Conflict, cloud.rules.create(caller(), [rule]))


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ({"direction": "sideways"}, "InvalidInput"),
        ({"ethertype": "IPX"}, "InvalidInput"),
        ({"protocol": "nonsense"}, "SecurityGroupRuleInvalidProtocol"),
        ({"protocol": "tcp", "port_range_min": 90, "port_range_max": 80}, "SecurityGroupInvalidPortRange"),
        ({"protocol": "tcp", "port_range_min": 1, "port_range_max": 70000}, "SecurityGroupInvalidPortValue"),
        ({"port_range_min": 80, "port_range_max": 80}, "SecurityGroupProtocolRequiredWithPorts"),
        ({"protocol": "icmp", "port_range_max": 3}, "SecurityGroupMissingIcmpType"),
        ({"protocol": "icmp", "port_range_min": 300}, "SecurityGroupInvalidIcmpValue"),
        ({"remote_ip_prefix": "fd00::/64"}, "SecurityGroupRuleParameterConflict"),
        ({"remote_ip_prefix": "nonsense"}, "InvalidInput"),
    ],
)
async def test_a_bad_rule_is_refused_in_neutrons_words(cloud: Cloud, wanted: dict[str, Any], name: str) -> None:
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="web")])
    asked = {"security_group_id": group.id, "direction": "ingress", **wanted}
    await refused(name, Invalid, cloud.rules.create(caller(), [RuleCreate(**asked)]))


# -- quota ---------------------------------------------------------------------------------------------------------


async def test_quota_is_exact_under_concurrency_and_given_back(tmp_path: Path) -> None:
    async with running(tmp_path, management=ManagementConfig(quotas={"port": 10})) as cloud:
        network, _ = await network_with_subnet(cloud)
        done = await asyncio.gather(*(port(cloud, network) for _ in range(30)), return_exceptions=True)
        assert Counter(type(item) for item in done) == {PortView: 10, OverQuota: 20}
        made = [item for item in done if isinstance(item, PortView)]
        await cloud.ports.delete(caller(), made[0].id, None)
        await port(cloud, network)
        await refused("OverQuota", OverQuota, port(cloud, network))
