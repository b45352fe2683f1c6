"""What may and may not pass between instances, with real packets through real kernels."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator

import msgspec
import pytest

from planes.data.driver import RuleSpec, SubnetSpec
from planes.data.linux import namespaces, skeleton
from tests.kernel.support import (
    World,
    checksum,
    eventually,
    ident,
    inside,
    ip,
    join,
    mac,
    members,
    network,
    open_policy,
    peer,
    ping,
    policy,
    port,
    remote,
)

pytestmark = pytest.mark.kernel

TCP, ICMP = 6, 1
SEND_ALL = RuleSpec(True)


async def test_instances_of_a_network_reach_each_other_on_one_host_and_across(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 100)
    a, b, c = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6"), port(net, "c", "10.0.0.7")
    await join(net, {"a": (one, a), "b": (two, b), "c": (one, c)}, [open_policy(net)])
    for host, spec in ((one, a), (two, b), (one, c)):
        world.plug(host, spec)
    assert await world.reaches(a, b.ips[0])
    assert await world.reaches(b, c.ips[0])
    assert await world.reaches(a, c.ips[0])
    assert await world.reaches(a, ip("10.0.0.1")), "the gateway answers"
    assert await world.reaches(a, b.ips[0], 80)
    assert not await world.ping(a, ip("10.0.0.99")), "nobody has this address"


async def test_subnets_of_a_network_are_routed_between(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 101)
    other = network("net", 101, "10.9.0.0").subnets
    net = msgspec.structs.replace(net, subnets=net.subnets + other)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.9.0.6")
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net)])
    world.plug(one, a)
    world.plug(two, b)
    assert await world.reaches(a, b.ips[0])
    await one.put(msgspec.structs.replace(net, subnets=net.subnets[:1]))
    assert not await world.ping(a, b.ips[0]), "its subnet is gone"
    await one.put(net)
    assert await world.reaches(a, b.ips[0])


async def test_two_networks_with_one_cidr_do_not_see_each_other(world: World) -> None:
    one, two = await world.start(2)
    red, blue = network("red", 201), network("blue", 202)
    ra, rb = port(red, "ra", "10.0.0.5"), port(red, "rb", "10.0.0.6")
    ba, bb = port(blue, "ba", "10.0.0.5"), port(blue, "bb", "10.0.0.6")
    await join(red, {"ra": (one, ra), "rb": (two, rb)}, [open_policy(red)])
    await join(blue, {"ba": (one, ba), "bb": (two, bb)}, [open_policy(blue)])
    for host, spec in ((one, ra), (two, rb), (one, ba), (two, bb)):
        world.plug(host, spec)
    with counting(world.instance(bb)) as crossed:
        assert await world.reaches(ra, rb.ips[0])
        assert await world.reaches(ra, rb.ips[0], 80)
        assert crossed() == 0
    with counting(world.instance(bb)) as arrived:
        assert await world.reaches(ba, bb.ips[0])
        assert arrived() > 0, "the counter counts"


async def test_rules_allow_what_they_say_and_their_replies_and_nothing_else(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 110)
    a, b = port(net, "a", "10.0.0.5", 1), port(net, "b", "10.0.0.6", 2)
    web = policy(net, 2, RuleSpec(False, TCP, 80, 90, remote_first=ip("10.0.0.0"), remote_prefix=24))
    await join(net, {"a": (one, a), "b": (two, b)}, [policy(net, 1, SEND_ALL), web])
    world.plug(one, a)
    world.plug(two, b)
    assert await world.reaches(a, b.ips[0], 80)
    assert await world.reaches(a, b.ips[0], 90)
    assert not await world.tcp(a, b.ips[0], 91)
    assert not await world.ping(a, b.ips[0])
    assert not await world.tcp(b, a.ips[0], 80), "b may send nothing of its own"
    assert (await two.driver.drops())["denied_ingress"] >= 2
    assert (await two.driver.drops())["denied_egress"] >= 1
    await two.put(policy(net, 2, *web.rules, RuleSpec(False, ICMP, 8, 0)))
    assert await world.reaches(a, b.ips[0]), "a rule was added"
    await two.put(policy(net, 2, RuleSpec(False, TCP, 80, 90, remote_first=ip("10.1.0.0"), remote_prefix=16)))
    assert not await world.tcp(a, b.ips[0], 80), "the source is outside the prefix now"


async def test_a_remote_group_is_recognised_by_identity_locally_and_over_the_wire(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 111)
    friend, stranger = port(net, "friend", "10.0.0.5", 7), port(net, "stranger", "10.0.0.6", 9)
    near, far = port(net, "near", "10.0.0.7", 3), port(net, "far", "10.0.0.8", 3)
    rules = policy(net, 3, RuleSpec(False, remote_group=ident("friends")))
    senders = [policy(net, number, SEND_ALL) for number in (7, 9)]
    placed = {"f": (one, friend), "s": (one, stranger), "near": (one, near), "far": (two, far)}
    await join(net, placed, [rules, *senders])
    for host, spec in placed.values():
        world.plug(host, spec)
    assert not await world.ping(friend, far.ips[0]), "the group has no members yet"
    for host in (one, two):
        await host.put(members(net, "friends", 7, 8))
    for target in (near, far):
        assert await world.reaches(friend, target.ips[0])
        assert not await world.ping(stranger, target.ips[0])
    await two.put(members(net, "friends", 8, 9))
    assert await world.reaches(stranger, far.ips[0])
    assert not await world.ping(friend, far.ips[0], timeout=0.3), "membership was taken away"


async def test_a_port_forwards_nothing_before_its_policy(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 112)
    a, b = port(net, "a", "10.0.0.5", 1), port(net, "b", "10.0.0.6", 2)
    await one.put(net, a, b, open_policy(net, 1))
    world.plug(one, a)
    world.plug(one, b)
    assert not await world.ping(a, b.ips[0])
    assert not await world.ping(b, a.ips[0])
    assert (await one.driver.drops())["no_policy"] >= 1
    assert (await one.driver.drops())["no_port"] >= 1
    await one.put(open_policy(net, 2))
    assert await world.reaches(a, b.ips[0])
    await one.drop(open_policy(net, 2).key)
    assert not await world.ping(a, b.ips[0])
    await one.put(open_policy(net, 2))
    assert await world.reaches(a, b.ips[0])


async def test_a_port_speaks_only_with_its_own_addresses(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 113)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    a = msgspec.structs.replace(a, pairs=((ip("10.0.0.66"), 32, b""), (ip("10.0.0.128"), 28, mac(77))))
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net)])
    instance = world.plug(one, a)
    world.plug(two, b)
    assert await world.reaches(a, b.ips[0])

    async def arrives(source: str, ether: bytes) -> bool:
        with counting(world.instance(b)) as arrived:
            await inside(instance, lambda: frame(ether, ip(source), b.ips[0]))
            return await arrived.soon()

    assert await arrives("10.0.0.5", a.mac)
    before = await one.driver.drops()
    assert not await arrives("10.0.0.7", a.mac), "another address"
    assert not await arrives("10.0.0.5", mac(99)), "another MAC"
    after = await one.driver.drops()
    assert [after[reason] - before[reason] for reason in ("spoofed_ip", "spoofed_mac")] == [1, 1]
    assert await arrives("10.0.0.66", a.mac), "an allowed pair"
    assert await arrives("10.0.0.130", mac(77)), "an allowed prefix with its MAC"
    assert not await arrives("10.0.0.130", a.mac), "that prefix with another MAC"
    assert not await arrives("10.0.0.144", mac(77)), "just outside the prefix"


async def test_a_port_claims_no_foreign_address_by_arp(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 114)
    a = port(net, "a", "10.0.0.5")
    await one.put(net, open_policy(net), a)
    instance = world.plug(one, a)

    async def own() -> bool:
        return await inside(instance, lambda: arp(a.mac, ip("10.0.0.5"), ip("10.0.0.6")))

    assert await eventually(own), "proxied for its own address"
    before = (await one.driver.drops())["spoofed_arp"]
    assert not await inside(instance, lambda: arp(a.mac, ip("10.0.0.9"), ip("10.0.0.6")))
    assert not await inside(instance, lambda: arp(mac(9), ip("10.0.0.5"), ip("10.0.0.6")))
    assert (await one.driver.drops())["spoofed_arp"] == before + 2


async def test_link_local_is_not_forwarded_even_where_a_route_leads(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 115)
    net = msgspec.structs.replace(net, subnets=(*net.subnets, SubnetSpec(ip("169.254.0.0"), 16)))
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "169.254.0.6")
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net)])
    world.plug(one, a)
    world.plug(two, b)
    before = await one.driver.drops()
    assert not await world.ping(a, b.ips[0])
    assert (await one.driver.drops())["unroutable"] > before["unroutable"]


async def test_without_security_a_port_says_and_hears_anything(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 116)
    a = msgspec.structs.replace(port(net, "a", "10.0.0.5", 0), security=False)
    b = port(net, "b", "10.0.0.6")
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net)])
    instance = world.plug(one, a)
    world.plug(two, b)
    assert await world.reaches(a, b.ips[0])
    assert await world.reaches(b, a.ips[0])
    with counting(world.instance(b)) as arrived:
        await inside(instance, lambda: frame(mac(99), ip("10.0.0.77"), b.ips[0]))
        assert await arrived.soon()
    await one.put(msgspec.structs.replace(a, security=True, identity=1))
    with counting(world.instance(b)) as arrived:
        await inside(instance, lambda: frame(mac(99), ip("10.0.0.77"), b.ips[0]))
        assert not await arrived.soon()
    assert await world.reaches(a, b.ips[0])


async def test_a_port_that_is_down_neither_sends_nor_receives(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 117)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await one.put(net, open_policy(net), a, b)
    world.plug(one, a)
    world.plug(one, b)
    assert await world.reaches(a, b.ips[0])
    await one.put(msgspec.structs.replace(a, admin_up=False))
    assert not await world.ping(a, b.ips[0])
    assert not await world.ping(b, a.ips[0])
    await one.put(a)
    assert await world.reaches(a, b.ips[0])
    assert await world.reaches(b, a.ips[0])


async def test_an_address_that_moves_is_found_at_its_new_place(world: World) -> None:
    one, two, three = await world.start(3)
    net = network("net", 118)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net)])
    world.plug(one, a)
    first = world.plug(two, b)
    assert await world.reaches(a, b.ips[0])
    await three.put(net, open_policy(net), b, peer(net, one), remote(net, a.ips[0], one))
    await two.drop(b.key)
    world.plug(three, b)
    assert first != world.instance(b)
    await one.put(peer(net, three), remote(net, b.ips[0], three))
    assert await world.reaches(a, b.ips[0])


async def test_large_packets_pass_up_to_the_mtu_and_the_sender_is_told_beyond(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 119)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await join(net, {"a": (one, a), "b": (two, b)}, [open_policy(net)])
    world.plug(one, a)
    world.plug(two, b)
    assert await world.inside(a, lambda: ping(b.ips[0], 0.5, payload=1450 - 28))
    assert await world.inside(a, lambda: ping(b.ips[0], 0.5, payload=4000)), "fragments are reassembled and pass"


async def test_a_port_holds_a_bounded_number_of_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "CONNECTIONS", 3)
    one, two = await world.start(2)
    net = network("net", 120)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await one.put(net, open_policy(net), a, peer(net, two), remote(net, b.ips[0], two))
    world.plug(one, a)

    def flood() -> None:
        for _ in range(10):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", ("10.0.0.6", 9))

    await world.reaches(a, ip("10.0.0.1"))
    await world.inside(a, flood)
    assert (await one.driver.drops())["connections"] == 7


# ---- packets by hand ----------------------------------------------------------------------------------------------


class Counting:
    """Counts the IPv4 packets that an instance's interface receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._count = 0

    def __call__(self) -> int:
        with contextlib.suppress(BlockingIOError):
            while True:
                _, where = self._socket.recvfrom(2048)
                self._count += where[2] == socket.PACKET_HOST
        return self._count

    async def soon(self) -> bool:
        """Whether one came, or comes within half a second."""
        for _ in range(50):
            if self():
                return True
            await asyncio.sleep(0.01)
        return False


@contextlib.contextmanager
def counting(instance: str) -> Iterator["Counting"]:
    with namespaces.entered(instance):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    try:
        sock.bind(("eth0", 0x0800))
        sock.setblocking(False)
        yield Counting(sock)
    finally:
        sock.close()


GATEWAY = b"\xfe\x16\x3e\x00\x00\x01"


def frame(ether: bytes, source: bytes, destination: bytes) -> None:
    """One UDP packet, with the addresses that the caller likes."""
    payload = b"alcor"
    udp = struct.pack("!HHHH", 5000, 5001, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source, destination)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    send_raw(0x0800, ether, head + udp)


def send_raw(kind: int, ether: bytes, packet: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(GATEWAY + ether + struct.pack("!H", kind) + packet)


def arp(ether: bytes, source: bytes, target: bytes) -> bool:
    """One ARP request; whether it was answered."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as sock:
        sock.bind(("eth0", 0x0806))
        request = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, ether, source, bytes(6), target)
        sock.send(b"\xff" * 6 + ether + b"\x08\x06" + request)
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:
                answer = sock.recv(128)
                if answer[20:22] == b"\0\2" and answer[28:32] == target:
                    return True
    return False
