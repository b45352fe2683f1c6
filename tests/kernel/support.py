"""Hosts, instances and real packets for the kernel tests: everything in namespaces of its own, removed at the end.

A `World` is a machine room: a bridge as underlay, host namespaces on it with a driver in each, instances on ports.
Probes run in threads inside the instances' namespaces; a probe answers whether the packet arrived.
"""

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from planes.data.driver import (
    ORDER,
    MembersSpec,
    NetworkSpec,
    PeerSpec,
    PolicySpec,
    PortSpec,
    RemoteSpec,
    RuleSpec,
    Spec,
    SpecKey,
    SubnetSpec,
)
from planes.data.linux import hosts, namespaces, netlink
from planes.data.linux.cleanup import remove_all
from planes.data.linux.driver import LinuxDriver
from planes.model.addresses import ip_text, vtep_mac

T = TypeVar("T")

ANY = (RuleSpec(False), RuleSpec(True))


def ip(text: str) -> bytes:
    return socket.inet_aton(text)


def mac(number: int) -> bytes:
    return b"\xfa\x16\x3e" + number.to_bytes(3, "big")


def ident(label: str) -> bytes:
    """A 16-byte id from a word."""
    return label.encode().ljust(16, b"\x80")[:16]


class Host:
    """One host: its namespace, its driver, its tunnel end."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.name = f"{world.tag}h{number}"
        self.cloud = f"{world.tag}{number}"
        self.vtep = bytes((172, 31, 0, number))
        self.vtep_mac = vtep_mac(number)
        self.driver = LinuxDriver(self.cloud)

    async def open(self) -> None:
        with namespaces.entered(self.name):
            await self.driver.open(self.vtep, self.vtep_mac)

    async def restart(self) -> None:
        """A new life of the agent: nothing is remembered but what the kernel holds."""
        await self.driver.close()
        self.driver = LinuxDriver(self.cloud)
        await self.open()

    async def put(self, *specs: Spec) -> None:
        failed = await self.driver.apply(sorted(specs, key=lambda spec: ORDER.index(spec.key[0])), ())
        assert not failed, failed

    async def drop(self, *keys: SpecKey) -> None:
        failed = await self.driver.apply((), keys)
        assert not failed, failed


class World:
    """An underlay and what is on it."""

    def __init__(self) -> None:
        self.tag = f"k{os.getpid() % 10**5:x}{time.monotonic_ns() % 46656:x}"
        self.hosts: list[Host] = []
        self._names: list[str] = []
        self._instances: dict[bytes, str] = {}

    async def start(self, count: int) -> list[Host]:
        bridge = self.namespace("u")
        for number in range(1, count + 1):
            host = Host(self, number)
            hosts.create_namespace(host.name)
            self._names.append(host.name)
            await hosts.join_underlay(bridge, "under", host.name, f"{ip_text(host.vtep)}/24")
            await host.open()
            self.hosts.append(host)
        return self.hosts

    def namespace(self, suffix: str) -> str:
        name = f"{self.tag}{suffix}"
        hosts.create_namespace(name)
        self._names.append(name)
        return name

    async def close(self) -> None:
        for host in self.hosts:
            await host.driver.close()
            await remove_all(host.cloud)
        for name in reversed(self._names):
            hosts.delete_namespace(name)

    def plug(self, host: Host, port: PortSpec, prefix: int = 24, gateway: str | None = None) -> str:
        """An instance on this port; its namespace."""
        name = self.namespace(f"i{len(self._names)}")
        address = ip_text(port.ips[0])
        gateway = gateway or address.rsplit(".", 1)[0] + ".1"
        near, far = hosts.port_link_names(port.id)
        hosts.plug(far, name, host.name, address, prefix, gateway)
        for net in host.driver.networks():
            netlink.link(net.route, near)  # makes the kernel notice the carrier now, not within the next second
        self._instances[port.id] = name
        return name

    def instance(self, port: PortSpec) -> str:
        return self._instances[port.id]

    async def ping(self, port: PortSpec, destination: bytes, timeout: float = 0.6) -> bool:
        return await self.inside(port, lambda: ping(destination, timeout))

    async def tcp(self, port: PortSpec, destination: bytes, dport: int, timeout: float = 0.4) -> bool:
        return await self.inside(port, lambda: tcp(destination, dport, timeout))

    async def reaches(self, port: PortSpec, destination: bytes, dport: int | None = None) -> bool:
        """Whether an echo (or, with `dport`, a SYN) arrives within some seconds: what must pass may take its time."""
        return await eventually(
            lambda: self.ping(port, destination) if dport is None else self.tcp(port, destination, dport)
        )

    async def inside(self, port: PortSpec, work: Callable[[], T]) -> T:
        """Run `work` in a thread inside the port's instance."""
        return await inside(self._instances[port.id], work)


async def eventually(probe: Callable[[], Awaitable[bool]], tries: int = 8) -> bool:
    """Whether a probe succeeds within some tries: a device that went up, or an ARP that was refused, takes a second."""
    for _ in range(tries):
        if await probe():
            return True
    return False


async def inside(namespace: str, work: Callable[[], T]) -> T:
    def run() -> T:
        with namespaces.entered(namespace):
            return work()

    return await asyncio.to_thread(run)


def ping(destination: bytes, timeout: float, payload: int = 16) -> bool:
    """Whether one of three ICMP echoes is answered: the first may find a device that the kernel has yet to start."""
    token = os.urandom(4)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        packet = struct.pack("!BBH4s", 8, 0, 0, token) + b"x" * payload
        packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
        for _ in range(3):
            with contextlib.suppress(OSError):
                sock.sendto(packet, (ip_text(destination), 0))
            if _answered(sock, destination, token, time.monotonic() + timeout / 3):
                return True
    return False


def _answered(sock: socket.socket, destination: bytes, token: bytes, deadline: float) -> bool:
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data, _ = sock.recvfrom(8192)
        except OSError:
            return False
        if data[20] == 0 and data[24:28] == token and data[12:16] == destination:
            return True
    return False


def tcp(destination: bytes, dport: int, timeout: float) -> bool:
    """Whether a SYN reached the destination: it answered, be it with a reset."""
    with socket.socket() as sock:
        sock.settimeout(timeout)
        code = sock.connect_ex((ip_text(destination), dport))
    return code in (0, errno.ECONNREFUSED)


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2)))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def network(label: str, vni: int, cidr: str = "10.0.0.0", prefix: int = 24, mtu: int = 1450) -> NetworkSpec:
    gateway = ip(cidr)[:3] + b"\x01"
    return NetworkSpec(ident(label), vni, mtu, (SubnetSpec(ip(cidr), prefix, gateway),))


def port(net: NetworkSpec, label: str, address: str, identity: int = 1) -> PortSpec:
    number = int.from_bytes(ip(address)[1:], "big")
    return PortSpec(net.network, ident(label), mac(number), (ip(address),), identity)


def open_policy(net: NetworkSpec, identity: int = 1) -> PolicySpec:
    """Everything may be sent and received."""
    return PolicySpec(net.network, identity, ANY)


def policy(net: NetworkSpec, identity: int, *rules: RuleSpec) -> PolicySpec:
    return PolicySpec(net.network, identity, tuple(sorted(rules)))


def members(net: NetworkSpec, group: str, *identities: int) -> MembersSpec:
    return MembersSpec(net.network, ident(group), frozenset(identities))


def peer(net: NetworkSpec, host: Host) -> PeerSpec:
    return PeerSpec(net.network, host.vtep_mac, host.vtep)


def remote(net: NetworkSpec, address: bytes, host: Host) -> RemoteSpec:
    return RemoteSpec(net.network, address, host.vtep_mac)


async def join(net: NetworkSpec, ports: dict[str, tuple[Host, PortSpec]], rules: Iterable[PolicySpec]) -> None:
    """Bring a network about on all hosts that have a port of it, everyone knowing everyone (push)."""
    policies = list(rules)
    where = {host for host, _ in ports.values()}
    for host in where:
        specs: list[Spec] = [net, *policies, *(spec for owner, spec in ports.values() if owner is host)]
        specs += [peer(net, other) for other in where if other is not host]
        specs += [remote(net, a, owner) for owner, spec in ports.values() if owner is not host for a in spec.ips]
        await host.put(*specs)
