"""Two tenants that cannot be told apart by address, and in each of them instances that mean harm.

What hostile instances send is drawn by chance (`SEED`), as raw frames, while good ones talk. Nothing of it may be
seen by anybody else; all that good ones say arrives, once; and each drop is counted for its reason.
"""

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from planes.data.driver import PortSpec, RuleSpec
from planes.data.linux import namespaces
from planes.model.addresses import ip_text, mac_text
from tests.kernel.hostile import (
    FROM,
    GATEWAY,
    GATEWAY_IP,
    HOSTILE,
    RCVBUFFORCE,
    REFUSED,
    ROOM,
    ROUNDS,
    SECRET,
    SEED,
    TALK,
    Evil,
    Tenant,
    capturing,
    distorted,
    draw,
    send,
    well_formed,
)
from tests.kernel.support import World, eventually, ip, join, network, policy, port

pytestmark = pytest.mark.kernel


async def talk(world: World, tenant: Tenant, sender: PortSpec, receiver: PortSpec, stop: threading.Event) -> int:
    """One good instance talks to another until told to stop, large and small; all of it has to arrive, once."""

    def speak() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", FROM))
            number = 0
            while not stop.is_set():
                text = tenant.label * chance.choice([1, 10, 300, 900])
                sock.sendto(number.to_bytes(4, "big") + text, (ip_text(receiver.ips[0]), TALK))
                number += 1
                time.sleep(0.002)
        return number

    chance = random.Random(SEED)
    with namespaces.entered(world.instance(receiver)):
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with ear:
        ear.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, ROOM)
        ear.bind(("", TALK))
        ear.setblocking(False)
        said = await world.inside(sender, speak)
        await asyncio.sleep(0.2)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(ear.recv(1 << 16))
    assert sorted(int.from_bytes(text[:4], "big") for text in heard) == list(range(said))
    assert all(set(text[4:]) == set(tenant.label) for text in heard)
    return said


@contextlib.contextmanager
def listening(namespace: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Something in a namespace that anybody may talk to, if they get there."""
    with namespaces.entered(namespace):
        stream, datagram = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with stream, datagram:
        for sock in (stream, datagram):
            sock.bind(("", SECRET))
            sock.setblocking(False)
        stream.listen()
        yield stream, datagram


class Watch:
    """Everything that can see what it should not."""

    def __init__(self, stack: contextlib.ExitStack, world: World, tenants: list[Tenant]) -> None:
        self._tenants = tenants
        self._ears = [
            (tenant, spec, stack.enter_context(capturing(world.instance(spec), "eth0")))
            for tenant in tenants
            for _, spec in tenant.ports.values()
        ]
        self._wires = [stack.enter_context(capturing(host.name, "u0", own=True)) for host in world.hosts]
        nets = [net.name for host in world.hosts for net in host.driver.networks()]
        self._listeners = [sock for name in nets for sock in stack.enter_context(listening(name))]

    def check(self) -> None:
        for tenant, spec, ear in self._ears:
            frames = ear.frames()
            wrong = [frame for frame in frames if not tenant.belongs(frame, spec)]
            assert not wrong, f"{spec.id!r} saw {len(wrong)} of {len(frames)} frames: {Ether(wrong[0]).summary()}"
            assert frames, "the capture captures"
        for wire in self._wires:
            frames = wire.frames()
            wrong = [frame for frame in frames if not well_formed(frame, self._tenants)]
            assert not wrong, f"on the wire: {Ether(wrong[0])!r}"
            assert any(REFUSED in frame for frame in frames), "what receivers' hosts refuse is seen here"
        for sock in self._listeners:
            with pytest.raises(BlockingIOError):
                sock.accept() if sock.type == socket.SOCK_STREAM else sock.recv(1)


async def test_nothing_hostile_arrives_all_good_does_and_each_drop_has_its_reason(world: World) -> None:
    hosts = await world.start(2)
    tenants = [Tenant("red", 401, hosts), Tenant("blue", 402, hosts)]
    for tenant in tenants:
        await tenant.settle(world)
    evils = [(tenant, spec) for tenant in tenants for spec in tenant.evil]
    with contextlib.ExitStack() as stack:
        watch = Watch(stack, world, tenants)
        for number in range(ROUNDS):
            chance = random.Random(SEED * 1000 + number)
            stop = threading.Event()
            expected: dict[str, Counter[str]] = {host.name: Counter() for host in hosts}
            before = [await host.driver.drops() for host in hosts]
            talks = [
                asyncio.create_task(talk(world, tenant, a, b, stop))
                for tenant in tenants
                for a, b in (tenant.good, tenant.good[::-1])
            ]
            attacks = [
                (spec, draw(Evil(chance, spec, tenant.all_but(spec)), tenant, expected)) for tenant, spec in evils
            ]
            await asyncio.sleep(0.1)  # errors can be forged only about what is said already
            await asyncio.gather(*(world.inside(spec, partial(send, frames)) for spec, frames in attacks))
            stop.set()
            said = await asyncio.gather(*talks)
            assert min(said) > 20, "the good talked all the while"
            watch.check()
            for host, old in zip(hosts, before, strict=True):
                new = await host.driver.drops()
                counted = {reason: new[reason] - old[reason] for reason in new if new[reason] != old[reason]}
                assert counted == {reason: count for reason, count in expected[host.name].items() if reason}


async def test_no_header_opens_what_is_closed(world: World) -> None:
    hosts = await world.start(2)
    tenant = Tenant("red", 403, hosts)
    await tenant.settle(world)
    chance = random.Random(SEED)
    frames = [[bytes(distorted(Evil(chance, tenant.evil[0], tenant.good)))] for _ in range(500)]
    for _ in range(ROUNDS):
        with contextlib.ExitStack() as stack:
            ears = [(spec, stack.enter_context(capturing(world.instance(spec), "eth0"))) for spec in tenant.good]
            wires = [stack.enter_context(capturing(host.name, "u0", own=True)) for host in hosts]
            await world.inside(tenant.evil[0], lambda: send(frames))
            for spec, ear in ears:
                assert all(tenant.belongs(frame, spec) for frame in ear.frames())
            for wire in wires:
                assert all(well_formed(frame, [tenant]) for frame in wire.frames())
    drops = [await host.driver.drops() for host in hosts]
    assert sum(sum(reasons.values()) for reasons in drops) > 200 * ROUNDS


async def test_a_fragment_with_a_stolen_source_is_not_joined_to_those_of_its_owner(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 410)
    a, b, e = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6"), port(net, "e", "10.0.0.7")
    await one.put(net, policy(net, 1, RuleSpec(True), RuleSpec(False)), a, b, e)
    for spec in (a, b, e):
        world.plug(one, spec)
    assert await world.reaches(a, b.ips[0])
    head = Ether(src=mac_text(a.mac), dst=GATEWAY)
    head /= IP(src="10.0.0.5", dst="10.0.0.6", id=77, flags="MF", proto=17)
    rest = head.copy()
    rest[IP].flags, rest[IP].frag = 0, 3
    forged, true = (head / UDP(dport=TALK, len=40, chksum=0) / Raw(text) for text in (HOSTILE.ljust(16), b"f" * 16))

    with capturing(world.instance(b), "eth0") as ear:
        await world.inside(e, lambda: send([[bytes(forged)]]))
        await world.inside(a, lambda: send([[bytes(rest / Raw(b"r" * 16)), bytes(true)]]))
        await asyncio.sleep(0.3)
        arrived = b"".join(frame[34:] for frame in ear.frames() if frame[12:14] == b"\x08\0")
    assert arrived[8:] == b"f" * 16 + b"r" * 16


async def test_the_end_of_a_connection_may_report_an_error_though_it_may_say_nothing_else(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 412)
    a, b = port(net, "a", "10.0.0.5", 1), port(net, "b", "10.0.0.6", 2)
    await join(net, {"a": (one, a), "b": (two, b)}, [policy(net, 1, RuleSpec(True)), policy(net, 2, RuleSpec(False))])
    world.plug(one, a)
    world.plug(two, b)

    def refused() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.5)
            sock.connect(("10.0.0.6", 9))
            try:
                sock.send(b"anybody there?")
                sock.recv(1)
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
        return False

    assert await eventually(lambda: world.inside(a, refused))


async def test_what_was_dropped_counts_on_when_its_port_its_network_or_the_agent_is_gone(world: World) -> None:
    (one,) = await world.start(1)
    net = network("net", 411)
    a = port(net, "a", "10.0.0.5")
    await one.put(net, a)
    world.plug(one, a)
    await world.reaches(a, ip(GATEWAY_IP))
    reasons = ("other_ethertype", "spoofed_mac", "malformed")
    good = IP(src="10.0.0.5", dst="10.0.0.6")
    head = Ether(src=mac_text(a.mac), dst=GATEWAY)
    frames = [head.copy() / Raw(b"x" * 40), Ether(src=GATEWAY, dst=GATEWAY) / good, head / IP(version=5) / UDP()]
    frames[0].type = 0x88B5

    async def dropped() -> list[int]:
        counts = await one.driver.drops()
        return [counts[reason] for reason in reasons]

    await world.inside(a, lambda: send([list(map(bytes, frames))]))
    assert await dropped() == [1, 1, 1]
    await one.restart()
    assert await dropped() == [1, 1, 1], "the kernel has kept it"
    await one.drop(a.key)
    assert await dropped() == [1, 1, 1]
    await one.drop(net.key)
    assert await dropped() == [1, 1, 1]
    await one.put(net, a)
    world.plug(one, a)
    await world.reaches(a, ip(GATEWAY_IP))
    await world.inside(a, lambda: send([list(map(bytes, frames))]))
    assert await dropped() == [2, 2, 2]
