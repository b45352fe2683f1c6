"""What every data plane must do, whatever it is made of: run against the fake kernel, and against real ones.

A *room* is some hosts joined by an underlay. It says whether what a port sends arrives; how, is its own affair.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import msgspec
import pytest

from planes.data.driver import Driver, NetworkSpec, PeerSpec, PortSpec, RemoteSpec, RuleSpec, Spec, SpecKey
from planes.data.memory.driver import MemoryDriver
from planes.data.memory.fabric import Fabric
from planes.model.addresses import vtep_mac
from tests.kernel.support import World, eventually, ident, ip, members, network, open_policy, policy, port

ICMP, TCP = 1, 6
SEND = RuleSpec(True)


class Room(ABC):
    """Hosts by number, from 0."""

    drivers: list[Driver]

    @abstractmethod
    async def start(self, count: int) -> None: ...

    @abstractmethod
    async def restart(self, host: int) -> None:
        """A new life of the driver, on the kernel as it is."""

    @abstractmethod
    async def ping(self, source: PortSpec, destination: bytes) -> bool: ...

    @abstractmethod
    async def tcp(self, source: PortSpec, destination: bytes, dport: int) -> bool: ...

    async def reaches(self, source: PortSpec, destination: bytes, dport: int | None = None) -> bool:
        """Whether an echo (or, with `dport`, a SYN) arrives within some seconds: what must pass may take its time."""
        return await eventually(
            lambda: self.ping(source, destination) if dport is None else self.tcp(source, destination, dport)
        )

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    def plug(self, host: int, spec: PortSpec) -> None:
        """Put an instance on a port."""

    def peer(self, net: NetworkSpec, host: int) -> PeerSpec:
        return PeerSpec(net.network, vtep_mac(host + 1), bytes((172, 31, 0, host + 1)))

    def remote(self, spec: PortSpec, host: int) -> list[RemoteSpec]:
        return [RemoteSpec(spec.network, address, vtep_mac(host + 1)) for address in spec.ips]

    async def put(self, host: int, *specs: Spec) -> None:
        failed = await self.drivers[host].apply(specs, ())
        assert not failed, failed

    async def drop(self, host: int, *keys: SpecKey) -> None:
        failed = await self.drivers[host].apply((), keys)
        assert not failed, failed

    async def place(self, net: NetworkSpec, rules: list[Spec], *placed: tuple[int, PortSpec]) -> None:
        """A network with these ports on these hosts, each host knowing the others."""
        for host in sorted({host for host, _ in placed}):
            others = [(other, spec) for other, spec in placed if other != host]
            specs: list[Spec] = [net, *rules, *(spec for owner, spec in placed if owner == host)]
            specs += [self.peer(net, other) for other in {other for other, _ in others}]
            specs += [one for other, spec in others for one in self.remote(spec, other)]
            await self.put(host, *specs)
        for host, spec in placed:
            self.plug(host, spec)


class MemoryRoom(Room):
    def __init__(self) -> None:
        self._fabric = Fabric()

    async def start(self, count: int) -> None:
        self.drivers = [MemoryDriver(self._fabric) for _ in range(count)]
        for host in range(count):
            await self._open(host)

    async def _open(self, host: int) -> None:
        await self.drivers[host].open(bytes((172, 31, 0, host + 1)), vtep_mac(host + 1))

    async def restart(self, host: int) -> None:
        await self.drivers[host].close()
        self.drivers[host] = MemoryDriver(self._fabric)
        await self._open(host)

    def plug(self, host: int, spec: PortSpec) -> None:
        """A fake port is its own instance."""

    async def ping(self, source: PortSpec, destination: bytes) -> bool:
        return self._arrives(source, destination, ICMP, dport=0, sport=8)

    async def tcp(self, source: PortSpec, destination: bytes, dport: int) -> bool:
        return self._arrives(source, destination, TCP, dport, sport=40_000)

    def _arrives(self, source: PortSpec, destination: bytes, protocol: int, dport: int, sport: int) -> bool:
        packet = (source.ips[0], destination, protocol, dport, sport)
        return self._fabric.arrives(source.network, source.id, *packet)[0] is not None

    async def close(self) -> None:
        for driver in self.drivers:
            await driver.close()


class LinuxRoom(Room):
    def __init__(self) -> None:
        self._world = World()

    async def start(self, count: int) -> None:
        self.drivers = [host.driver for host in await self._world.start(count)]

    async def restart(self, host: int) -> None:
        await self._world.hosts[host].restart()
        self.drivers[host] = self._world.hosts[host].driver

    def plug(self, host: int, spec: PortSpec) -> None:
        self._world.plug(self._world.hosts[host], spec)

    async def ping(self, source: PortSpec, destination: bytes) -> bool:
        return await self._world.ping(source, destination)

    async def tcp(self, source: PortSpec, destination: bytes, dport: int) -> bool:
        return await self._world.tcp(source, destination, dport)

    async def close(self) -> None:
        await self._world.close()


@pytest.fixture(params=[MemoryRoom, pytest.param(LinuxRoom, marks=pytest.mark.kernel)], ids=["memory", "linux"])
async def room(request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    made: Room = request.param()
    try:
        yield made
    finally:
        await made.close()


async def test_ports_of_a_network_reach_each_other_wherever_they_are(room: Room) -> None:
    await room.start(2)
    net = network("net", 500)
    a, b, c = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6"), port(net, "c", "10.0.0.7")
    await room.place(net, [open_policy(net)], (0, a), (0, b), (1, c))
    for source, target in ((a, b), (a, c), (c, b)):
        assert await room.reaches(source, target.ips[0])
        assert await room.reaches(source, target.ips[0], 80)
    assert not await room.ping(a, ip("10.0.0.99"))


async def test_networks_are_apart_even_with_equal_addresses(room: Room) -> None:
    await room.start(2)
    red, blue = network("red", 501), network("blue", 502)
    here, there = port(red, "here", "10.0.0.5"), port(blue, "there", "10.0.0.6")
    await room.place(red, [open_policy(red)], (0, here))
    await room.place(blue, [open_policy(blue)], (1, there))
    assert not await room.ping(here, there.ips[0])


async def test_only_what_the_rules_say_passes_and_its_replies(room: Room) -> None:
    await room.start(2)
    net = network("net", 503)
    a, b = port(net, "a", "10.0.0.5", 1), port(net, "b", "10.0.0.6", 2)
    web = RuleSpec(False, TCP, 80, 81, remote_first=ip("10.0.0.0"), remote_prefix=24)
    await room.place(net, [policy(net, 1, SEND), policy(net, 2, web)], (0, a), (1, b))
    assert await room.reaches(a, b.ips[0], 81)
    assert not await room.tcp(a, b.ips[0], 82)
    assert not await room.ping(a, b.ips[0])
    assert not await room.tcp(b, a.ips[0], 80)
    await room.put(1, policy(net, 2, RuleSpec(False, ICMP, 8, 0)))
    assert await room.reaches(a, b.ips[0])
    assert not await room.tcp(a, b.ips[0], 80), "a flow that is new"


async def test_a_remote_group_matches_the_senders_identity(room: Room) -> None:
    await room.start(2)
    net = network("net", 504)
    friend, stranger = port(net, "friend", "10.0.0.5", 7), port(net, "stranger", "10.0.0.6", 9)
    near, far = port(net, "near", "10.0.0.7", 3), port(net, "far", "10.0.0.8", 3)
    rules: list[Spec] = [
        policy(net, 3, RuleSpec(False, remote_group=ident("g"))),
        *(policy(net, n, SEND) for n in (7, 9)),
    ]
    await room.place(net, [members(net, "g", 7), *rules], (0, friend), (0, stranger), (0, near), (1, far))
    for target in (near, far):
        assert await room.reaches(friend, target.ips[0])
        assert not await room.ping(stranger, target.ips[0])
    await room.put(1, members(net, "g"))
    assert not await room.tcp(friend, far.ips[0], 443)


async def test_a_port_is_closed_until_its_policy_comes_and_after_it_goes(room: Room) -> None:
    await room.start(1)
    net = network("net", 505)
    a, b = port(net, "a", "10.0.0.5", 1), port(net, "b", "10.0.0.6", 2)
    await room.place(net, [open_policy(net, 1)], (0, a), (0, b))
    assert not await room.ping(a, b.ips[0])
    assert not await room.ping(b, a.ips[0])
    await room.put(0, open_policy(net, 2))
    assert await room.reaches(a, b.ips[0])
    await room.drop(0, open_policy(net, 2).key)
    assert not await room.tcp(b, a.ips[0], 80)


async def test_a_port_that_is_down_gets_nothing(room: Room) -> None:
    await room.start(1)
    net = network("net", 506)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await room.place(net, [open_policy(net)], (0, a), (0, b))
    await room.put(0, msgspec.structs.replace(b, admin_up=False))
    assert not await room.ping(a, b.ips[0])
    await room.put(0, b)
    assert await room.reaches(a, b.ips[0])


async def test_what_was_put_is_held_and_what_was_dropped_is_not(room: Room) -> None:
    await room.start(2)
    net = network("net", 507)
    a = port(net, "a", "10.0.0.5")
    b = port(net, "b", "10.0.0.6")
    specs: list[Spec] = [net, open_policy(net), members(net, "g", 1), members(net, "empty"), a]
    specs += [room.peer(net, 1), *room.remote(b, 1)]
    keys = frozenset(spec.key for spec in specs)
    for _ in range(2):
        await room.put(0, *specs)
        assert (await room.drivers[0].held()).keys() == keys
        await room.restart(0)
        held = await room.drivers[0].held()
        assert held.keys() == keys
        assert {key: held[key] for key in keys if held[key]} == {spec.key: spec for spec in specs[5:]}
    for spec in reversed(specs):
        await room.drop(0, spec.key)
        keys -= {spec.key}
        assert (await room.drivers[0].held()).keys() == keys


async def test_what_is_there_beyond_what_is_known_is_told_as_it_is(room: Room) -> None:
    await room.start(2)
    net = network("net", 515)
    a, b, c = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6"), port(net, "c", "10.0.0.7")
    peer, near, far = room.peer(net, 1), *room.remote(b, 1), *room.remote(c, 1)
    await room.put(0, net, open_policy(net), a, peer, near, far)
    driver = room.drivers[0]
    known: dict[SpecKey, Spec | None] = {spec.key: spec for spec in (net, open_policy(net), a, peer, near, far)}
    assert await driver.surplus(known) == {}
    assert await driver.surplus(await driver.held()) == {}
    assert await driver.surplus(dict.fromkeys(known)) == {}, "of what nobody knows how it is"
    assert await driver.surplus(known | {near.key: msgspec.structs.replace(near, via=vtep_mac(9))}) == {near.key: near}
    del known[far.key], known[peer.key]
    assert await driver.surplus(known) == {far.key: far, peer.key: peer}
    await room.drop(0, far.key, peer.key)
    assert await driver.surplus(known) == {}


async def test_dropping_what_is_not_there_is_no_error(room: Room) -> None:
    await room.start(1)
    net = network("net", 508)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    specs: list[Spec] = [a, open_policy(net), members(net, "g"), room.peer(net, 1), *room.remote(b, 1), net]
    await room.drop(0, *(spec.key for spec in specs))
    await room.put(0, net)
    await room.drop(0, *(spec.key for spec in specs[:-1]))
    assert (await room.drivers[0].held()).keys() == {net.key}


async def test_what_lacks_its_network_fails_alone(room: Room) -> None:
    await room.start(1)
    net, absent = network("net", 509), network("absent", 510)
    good, lost = port(net, "good", "10.0.0.5"), port(absent, "lost", "10.0.0.6")
    failed = await room.drivers[0].apply([lost, net, good], ())
    assert set(failed) == {lost.key}
    assert failed[lost.key]
    assert (await room.drivers[0].held()).keys() == {net.key, good.key}
    assert room.drivers[0].counters()["errors"] == 1


async def test_a_drop_is_counted_for_its_reason_where_it_happens(room: Room) -> None:
    await room.start(2)
    net = network("net", 514)
    a, b = port(net, "a", "10.0.0.5", 1), port(net, "b", "10.0.0.6", 2)
    await room.place(net, [policy(net, 1, SEND), policy(net, 2)], (0, a), (1, b))
    assert not await room.tcp(a, b.ips[0], 80)
    assert not await room.tcp(b, a.ips[0], 80)
    near, far = [await driver.drops() for driver in room.drivers]
    assert near.get("denied_ingress", 0) == near.get("denied_egress", 0) == 0
    assert far["denied_ingress"] > 0
    assert far["denied_egress"] > 0


async def test_a_network_takes_all_that_is_in_it_along(room: Room) -> None:
    await room.start(2)
    net, other = network("net", 511), network("other", 512)
    a, b = port(net, "a", "10.0.0.5"), port(net, "b", "10.0.0.6")
    await room.put(0, net, other, open_policy(net), a, room.peer(net, 1), *room.remote(b, 1))
    await room.drop(0, net.key)
    assert (await room.drivers[0].held()).keys() == {other.key}


async def test_a_vni_belongs_to_one_network_at_a_time(room: Room) -> None:
    await room.start(1)
    first, second = network("first", 513), network("second", 513)
    await room.put(0, first)
    failed = await room.drivers[0].apply([second], ())
    assert set(failed) == {second.key}
    assert not await room.drivers[0].apply([second], [first.key])
    assert (await room.drivers[0].held()).keys() == {second.key}
