"""How objects come, change and go in a real kernel: restarts, conflicts, order, and what is left behind (nothing)."""

import asyncio
import os
import subprocess
import sys

import msgspec
import pytest

from planes.data.driver import DriverError, MembersSpec, RuleSpec, Spec, SpecKey
from planes.data.linux import driver, hosts, namespaces, netlink, skeleton
from planes.data.linux.cleanup import remove_all
from planes.data.linux.netlink import Netlink
from planes.data.linux.network import Network
from planes.model import ids
from tests.kernel.support import (
    Host,
    World,
    ident,
    inside,
    ip,
    join,
    members,
    network,
    open_policy,
    peer,
    policy,
    port,
    remote,
)

pytestmark = pytest.mark.kernel


def everything(one: Host, two: Host) -> list[Spec]:
    net = network("net", 300)
    ranged = msgspec.structs.replace(port(net, "b", "10.0.0.6"), pairs=((ip("10.0.0.64"), 26, b""),))
    free = msgspec.structs.replace(port(net, "c", "10.0.0.7", 0), security=False)
    return [
        net,
        members(net, "some", 1, 2),
        members(net, "none"),
        open_policy(net, 1),
        policy(net, 2),
        port(net, "a", "10.0.0.5"),
        ranged,
        free,
        msgspec.structs.replace(port(net, "d", "10.0.0.8", 2), admin_up=False),
        peer(net, two),
        *(remote(net, ip(f"10.0.0.{n}"), two) for n in range(100, 120)),
        network("other", 301),
    ]


async def test_a_new_life_of_the_agent_finds_exactly_what_was_put(world: World) -> None:
    one, two = await world.start(2)
    specs = everything(one, two)
    await one.put(*specs)
    keys = frozenset(spec.key for spec in specs)
    assert (await one.driver.held()).keys() == keys
    footprints = [dict(net.footprints) for net in one.driver.networks()]
    await one.restart()
    assert (await one.driver.held()).keys() == keys
    assert [dict(net.footprints) for net in one.driver.networks()] == footprints
    await one.put(*specs)
    assert (await one.driver.held()).keys() == keys
    for key in reversed([spec.key for spec in specs]):
        await one.drop(key)
    assert (await one.driver.held()).keys() == frozenset()
    assert namespaces.names(f"{one.cloud}-") == []


async def test_dropping_leaves_nothing_of_a_port_behind(world: World) -> None:
    one, two = await world.start(2)
    specs = everything(one, two)
    await one.put(*specs)
    await one.restart()
    ports = [spec.key for spec in specs if spec.key[0] == "port"]
    rest = [s.key for s in specs if s.key[0] in ("policy", "members", "remote", "peer")]
    assert not await one.driver.apply((), [*ports, *rest])
    seen = next(net for net in one.driver.networks() if net.vni == 300).read()
    assert not seen.footprints
    assert not seen.links
    assert not seen.chains
    assert not seen.sets
    assert (await one.driver.held()).keys() == {spec.key for spec in specs if spec.key[0] == "network"}


async def test_applying_everything_again_and_restarting_loses_no_packet(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 302)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    specs: list[Spec] = [net, open_policy(net), a, peer(net, two), remote(net, b.ips[0], two)]
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net)])
    world.plug(one, a)
    world.plug(two, b)
    assert await world.reaches(a, b.ips[0])
    command = ["ip", "netns", "exec", world.instance(a), "ping", "-q", "-i", "0.01", "-c", "100", "-W", "1", "10.0.0.6"]
    pinging = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    for _ in range(5):
        await one.put(*specs)
        await one.restart()
        await one.put(*specs, members(net, "x", 5))
        await one.put(policy(net, 9), open_policy(net))
    output, _ = await pinging.communicate()
    assert b" 0% packet loss" in output, output


async def test_a_changed_port_keeps_what_is_the_same_and_loses_what_is_not(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 303)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net), open_policy(net, 2)])
    world.plug(one, a)
    world.plug(two, b)
    assert await world.reaches(b, a.ips[0])
    index = one.driver.networks()[0].links[hosts.port_link_names(a.id)[0]].ifindex
    grown = msgspec.structs.replace(a, ips=(*a.ips, ip("10.0.0.15")), identity=2)
    await one.put(grown)
    await two.put(remote(net, ip("10.0.0.15"), one))
    hosts_ = hosts.port_link_names(a.id)[0]
    await inside(world.instance(a), lambda: _address("10.0.0.15"))
    assert await world.reaches(b, ip("10.0.0.15"))
    await one.put(msgspec.structs.replace(a, ips=(ip("10.0.0.15"),)))
    assert not await world.ping(b, a.ips[0])
    assert await world.reaches(b, ip("10.0.0.15"))
    seen = one.driver.networks()[0].read()
    assert seen.links[hosts_].ifindex == index, "the link is the same"
    assert {address for address, _ in seen.footprints[hosts_].addresses} == {ip("10.0.0.15")}


def _address(text: str, device: str = "eth0", prefix: int = 32) -> None:
    route = Netlink()
    try:
        index = netlink.link(route, device)
        assert index is not None
        message = netlink.Message(netlink.NEWADDR, netlink.CHANGE, netlink.address(ip(text), prefix, index.ifindex))
        assert not route.send([message])
    finally:
        route.close()


async def test_a_port_whose_instance_was_deleted_comes_back(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 304)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await one.put(net, open_policy(net), a, b)
    first = world.plug(one, a)
    world.plug(one, b)
    assert await world.reaches(b, a.ips[0])
    hosts.delete_namespace(first)
    for _ in range(200):
        if a.key not in await one.driver.held():
            break
        await asyncio.sleep(0.01)
    assert a.key not in await one.driver.held()
    await one.put(a)
    assert a.key in await one.driver.held()
    assert one.driver.counters()["repairs"] == 1
    world.plug(one, a)
    assert await world.reaches(b, a.ips[0])


def older(net: Network) -> None:
    """Filters as another release left them: other rules, chains and sets of its own; the same ports and policies."""
    net.nft.run(
        f"""
        delete chain inet alcor {skeleton.VERSION}
        table inet alcor {{
          counter former {{ }}
          counter named {{ }}
          set others {{ type ifname; elements = {{ "strange" }}; }}
          chain former {{ iifname @others counter name former drop; }}
          chain e2 {{ counter name named; }}
          chain forward {{
            type filter hook forward priority 5; policy drop;
            jump former
            iifname . ether saddr . ip saddr @speakers accept
            iifname vx accept
            counter name former drop
          }}
          chain inbound {{ counter name former; }}
          chain version_of_before {{ }}
        }}
        """
    )


def _listing(net: Network) -> list[str]:
    """All that is declared and ruled, without elements and what was counted."""
    lines = "".join(net.nft.run(f"list table {family} alcor") for family in ("inet", "arp")).splitlines()
    return sorted(line for line in lines if "packets" not in line)


async def test_filters_of_another_release_are_replaced_and_no_packet_is_lost(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 317)
    group = ident("friends")
    friends = policy(net, 2, RuleSpec(False, 1, -1, -1, group), RuleSpec(True))
    a, b = port(net, "a", "10.0.0.5", 2), port(net, "b", "10.0.0.6", 2)
    ranged = msgspec.structs.replace(port(net, "c", "10.0.0.7"), pairs=((ip("10.0.0.64"), 26, b""),))
    free = msgspec.structs.replace(port(net, "d", "10.0.0.8", 0), security=False)
    await join(net, {"a": (one, a), "b": (two, b)}, [friends, open_policy(net)])
    for host in (one, two):
        await host.put(MembersSpec(net.network, group, frozenset({2})))
    await one.put(ranged, free)
    world.plug(one, a)
    world.plug(two, b)
    assert await world.reaches(a, b.ips[0])
    before = await one.driver.held()
    command = ["ip", "netns", "exec", world.instance(a), "ping", "-q", "-f", "-c", "50000", "-W", "1", "10.0.0.6"]
    pinging = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    renewals = 0
    while pinging.returncode is None:
        (now,) = one.driver.networks()
        footprints, base, listing = dict(now.footprints), now.base, _listing(now)
        older(now)
        await one.restart()
        (now,) = one.driver.networks()
        assert (now.footprints, now.base) == (footprints, base)
        assert await one.driver.held() == before
        await one.put(friends)
        now.nft.run("delete counter inet alcor named")
        assert _listing(now) == listing
        renewals += 1
    output, _ = await pinging.communicate()
    assert b" 0% packet loss" in output, (output, renewals)
    assert renewals > 2


async def test_filters_that_cannot_become_this_releases_begin_closed(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 318)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await one.put(net, open_policy(net), a, b)
    world.plug(one, a)
    world.plug(one, b)
    assert await world.reaches(b, a.ips[0])
    nft = one.driver.networks()[0].nft
    nft.run(
        f"flush chain inet alcor prerouting\ndelete set inet alcor macs\ndelete chain inet alcor {skeleton.VERSION}"
    )
    nft.run("add set inet alcor macs { type ifname; }")
    await one.restart()
    assert not await world.ping(b, a.ips[0])
    await one.put(net, open_policy(net), a, b)
    assert await world.reaches(b, a.ips[0])


async def test_what_belongs_to_somebody_else_is_neither_used_nor_touched(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 305)
    foreign = f"{one.cloud}-306"
    hosts.create_namespace(foreign)
    try:
        taken = network("taken", 306)
        failed = await one.driver.apply([taken, port(taken, "x", "10.0.0.9")], ())
        assert foreign in failed[taken.key]
        assert set(failed) == {taken.key, ("port", taken.network, ident("x"))}
        await one.restart()
        assert (await one.driver.held()).keys() == frozenset()
        await remove_all(one.cloud)
        assert foreign in namespaces.names()
    finally:
        hosts.delete_namespace(foreign)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await one.put(net, open_policy(net))
    name = hosts.port_link_names(a.id)[0]
    await inside(f"{one.cloud}-305", lambda: _veth(name))
    failed = await one.driver.apply([a, b], ())
    assert set(failed) == {a.key}, "the other port is not kept from coming"
    assert name in failed[a.key]
    await one.restart()
    assert set(await one.driver.apply([a], ())) == {a.key}
    assert set(await one.driver.apply((), [a.key])) == {a.key}, "nor is it deleted"
    assert name in {link.name for link in one.driver.networks()[0].read().links.values()}


def _veth(name: str) -> None:
    route = Netlink()
    here = namespaces.current()
    try:
        assert not route.send([netlink.veth(name, 0, b"\2\0\0\0\0\1", "other", b"\2\0\0\0\0\2", here, 1400, False)])
    finally:
        os.close(here)
        route.close()


async def test_bad_objects_fail_alone_each_with_a_sentence(world: World) -> None:
    (one,) = await world.start(1)
    net, wrong = network("net", 307), network("wrong", 308, mtu=2)
    good = port(net, "good", "10.0.0.5")
    absent: SpecKey = ("port", ident("nowhere"), ident("x"))
    failed = await one.driver.apply([net, open_policy(net), good, wrong, port(wrong, "w", "10.0.0.6")], [absent])
    assert set(failed) == {wrong.key, port(wrong, "w", "10.0.0.6").key}
    assert failed[wrong.key].startswith("vni 308: ")
    held = await one.driver.held()
    assert {net.key, good.key} <= held.keys()
    assert one.driver.counters()["errors"] == 2
    moved = msgspec.structs.replace(net, vni=309)
    assert "vni 307" in (await one.driver.apply([moved], ()))[moved.key]


async def test_a_network_goes_with_all_that_is_in_it_and_can_come_back_at_once(world: World) -> None:
    one, two = await world.start(2)
    specs = everything(one, two)
    await one.put(*specs)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await one.drop(specs[0].key)
        assert f"{one.cloud}-300" not in namespaces.names()
        assert (await one.driver.held()).keys() == {network("other", 301).key}
        await one.put(*specs)
    assert len(os.listdir("/proc/self/fd")) == before
    assert (await one.driver.held()).keys() == {spec.key for spec in specs}


async def test_an_mtu_that_changes_reaches_device_and_ports(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 310)
    a = port(net, "a", "10.0.0.5")
    await one.put(net, open_policy(net), a)
    await one.put(network("net", 310, mtu=1400), a)
    seen = one.driver.networks()[0].read()
    assert seen.vxlan is not None
    assert seen.vxlan.mtu == 1400
    assert {link.mtu for link in seen.links.values()} == {1400}


async def test_clean_up_needs_nothing_but_the_tag(world: World) -> None:
    one, two = await world.start(2)
    for host in (one, two):
        await host.put(*everything(one, two))
        await host.driver.close()
    assert await remove_all(one.cloud) == 2
    assert namespaces.names(f"{one.cloud}-") == []
    assert len(namespaces.names(f"{two.cloud}-")) == 2


async def test_instances_end_carries_the_ports_name(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 311)
    a = port(net, "a", "10.0.0.5")
    await one.put(net, a)

    def look() -> netlink.Link | None:
        route = Netlink()
        try:
            return netlink.link(route, hosts.port_link_names(a.id)[1])
        finally:
            route.close()

    link = await inside(one.name, look)
    assert link is not None
    assert (link.alias, link.mac, link.mtu, link.up) == (ids.text(a.id), a.mac, 1450, False)


async def test_without_privilege_open_says_what_is_missing(world: World) -> None:
    script = (
        "import asyncio, os\n"
        "from planes.data.linux.driver import LinuxDriver\n"
        "os.setuid(65534)\n"
        "asyncio.run(LinuxDriver('zz').open(bytes(4), bytes(6)))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stderr=subprocess.PIPE, env={"PYTHONPATH": os.getcwd()}
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode
    assert DriverError.__name__.encode() in errors
    assert b"CAP_NET_ADMIN and CAP_SYS_ADMIN" in errors


async def test_a_host_that_comes_back_with_another_address_uses_it(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 312)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net)])
    world.plug(one, a)
    world.plug(two, b)
    assert await world.reaches(a, b.ips[0])
    one.vtep = ip("172.31.0.77")
    await inside(one.name, lambda: _address("172.31.0.77", "u0", 24))
    known = await one.driver.held()
    assert known[remote(net, b.ips[0], two).key] == remote(net, b.ips[0], two)
    await one.restart()
    unknown = await one.driver.held()
    assert unknown == dict.fromkeys(known), "the device will be made anew, and what is on it goes with the old one"
    await one.put(net, peer(net, two), remote(net, b.ips[0], two))
    await two.put(peer(net, one))
    assert await world.reaches(a, b.ips[0])
    seen = one.driver.networks()[0].read()
    assert seen.vxlan is not None
    assert seen.vxlan.local == one.vtep


async def test_rules_that_somebody_removed_come_back_closed(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 313)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await one.put(net, open_policy(net), a, b)
    world.plug(one, a)
    world.plug(one, b)
    one.driver.networks()[0].nft.run("flush ruleset")
    await one.restart()
    assert not await world.ping(a, b.ips[0])
    await one.put(net, open_policy(net), a, b)
    assert await world.reaches(a, b.ips[0])


async def test_an_instance_end_can_be_taken_back_and_plugged_again(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 314)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await one.put(net, open_policy(net), a, b)
    first = world.plug(one, a)
    world.plug(one, b)
    assert await world.reaches(b, a.ips[0])
    hosts.unplug(hosts.port_link_names(a.id)[1], first, one.name)
    assert not await world.ping(b, a.ips[0])
    await one.put(a)
    assert one.driver.counters()["repairs"] == 0, "where the end is does not matter"
    world.plug(one, a)
    assert await world.reaches(b, a.ips[0])


async def test_a_full_host_refuses_more_with_a_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_MOST_NETWORKS", 1)
    monkeypatch.setattr(driver, "_MOST_PORTS", 2)
    (one,) = await world.start(1)
    net, more = network("net", 315), network("more", 316)
    ports = [port(net, f"p{n}", f"10.0.0.{n}") for n in range(5, 8)]
    failed = await one.driver.apply([net, more, *ports], ())
    assert set(failed) == {more.key, ports[2].key}
    assert all("the host is full" in reason for reason in failed.values())
    await one.put(*ports[:2])
    await one.drop(ports[0].key)
    await one.put(*ports[1:])
