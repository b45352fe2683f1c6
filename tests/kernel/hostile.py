"""Frames of instances that mean harm, drawn by chance, and captures that see whether any of them arrives."""

import contextlib
import mmap
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_RR, IPOption_SSRR
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, LLC, STP, Dot1Q, Dot3, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from planes.data.driver import NetworkSpec, PortSpec, RuleSpec
from planes.data.linux import namespaces
from planes.data.linux.vif import GATEWAY_MAC
from planes.model.addresses import ip_text, mac_text
from tests.kernel.support import Host, World, ident, ip, join, members, network, policy, port

SEED = int(os.environ.get("SEED", "4"))
ROUNDS = 10 if os.environ.get("PROFILE") == "long" else 1
#: of each kind of frame, from each hostile instance, in a round
FRAMES = 10

#: must not leave the namespace that it came into; may, but must not arrive
HOSTILE, REFUSED = b"HOSTILE", b"REFUSED"
GATEWAY, GATEWAY_IP = mac_text(GATEWAY_MAC), "10.0.0.1"
EVERYBODY = "ff:ff:ff:ff:ff:ff"
GOOD, EVIL = 1, 2
RCVBUFFORCE, ROOM = 33, 1 << 26
SOL_PACKET, PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 263, 5, 6, 10
#: frames that a capture has room for, 2 kB each
SLOTS = 8192
FROM, TALK = 7001, 7000  # where good ones speak, and listen
SECRET = 8080  # where something listens in the gateway's namespace


class Evil(msgspec.Struct):
    """Who sends, and what it knows of others."""

    chance: random.Random
    me: PortSpec
    others: list[PortSpec]

    @property
    def mac(self) -> str:
        return mac_text(self.me.mac)

    @property
    def ip(self) -> str:
        return ip_text(self.me.ips[0])

    def other(self) -> PortSpec:
        return self.chance.choice(self.others)

    def other_ip(self) -> str:
        return ip_text(self.other().ips[0])

    def some_mac(self) -> str:
        """Another instance's, a host's, the gateway's, or none."""
        invented = f"fa:16:3e:{self.chance.randrange(256):02x}:77:01"
        return self.chance.choice([mac_text(self.other().mac), "02:00:00:00:00:02", GATEWAY, invented])

    def some_ip(self) -> str:
        """Anything but one's own: a neighbour's, the gateway's, nobody's, one far away."""
        return self.chance.choice([self.other_ip(), GATEWAY_IP, "10.0.0.99", f"8.8.{self.chance.randrange(256)}.8"])

    def frame(self, above: Packet, src: str = "", dst: str = GATEWAY, **fields: Any) -> Packet:
        return Ether(src=src or self.mac, dst=dst, **fields) / above

    def packet(self, src: str = "", dst: str = "", mark: bytes = HOSTILE, **fields: Any) -> Packet:
        """What good ones would take, if it came from a good one."""
        udp = UDP(sport=self.chance.randrange(1024, 65536), dport=TALK)
        return (
            IP(src=src or self.ip, dst=dst or self.other_ip(), **fields) / udp / Raw(mark * self.chance.randint(1, 9))
        )

    def tunnelled(self, mark: bytes = HOSTILE) -> Packet:
        """A packet as hosts send them to each other: any network, the identity of the good."""
        inner = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        inner /= self.packet(src=self.other_ip(), mark=mark)
        udp = UDP(sport=self.chance.randrange(5000, 65536), dport=4789)
        return udp / VXLAN(vni=self.chance.choice([401, 402, 7]), flags=0x88, gpid=GOOD) / inner

    def error(self) -> Packet:
        """That good ones cannot reach each other."""
        one, other = self.chance.sample([ip_text(spec.ips[0]) for spec in self.others if spec.identity == GOOD], 2)
        told = IP(src=self.ip, dst=one) / ICMP(type=3, code=self.chance.randint(0, 4), nexthopmtu=68)
        return self.frame(told / IP(src=one, dst=other) / UDP(sport=FROM, dport=TALK) / Raw(HOSTILE))

    def overlapping(self) -> list[Packet]:
        number, to = self.chance.randrange(65536), self.other_ip()
        place = ((0, "MF"), (self.chance.randint(1, 7), "MF"))
        fields: list[dict[str, Any]] = [
            {"id": number, "frag": offset, "flags": flags, "proto": 17} for offset, flags in place
        ]
        return [self.frame(IP(src=self.ip, dst=to, **one) / Raw(HOSTILE * 10)) for one in fields]


Kind = Callable[[Evil], Packet | list[Packet]]


def _options(*options: object) -> Kind:
    return lambda e: e.frame(e.packet(options=list(options)))


#: by the reason for which they have to be dropped, on the host of the sender; "": the kernel counts them nowhere
KINDS: list[tuple[str, Kind]] = [
    ("spoofed_ip", lambda e: e.frame(e.packet(src=e.some_ip()))),
    ("spoofed_ip", lambda e: e.frame(e.packet(src=e.some_ip(), flags="MF", id=e.chance.randrange(65536)))),
    ("spoofed_ip", lambda e: e.frame(Dot1Q(vlan=0) / e.packet(src=e.some_ip()))),
    ("spoofed_mac", lambda e: e.frame(e.packet(), src=e.some_mac())),
    ("spoofed_mac", lambda e: e.frame(e.packet(src=ip_text((o := e.other()).ips[0])), src=mac_text(o.mac))),
    ("spoofed_arp", lambda e: e.frame(ARP(op=1, hwsrc=e.mac, psrc=e.some_ip(), pdst=e.other_ip()), dst=EVERYBODY)),
    ("spoofed_arp", lambda e: e.frame(ARP(op=1, hwsrc=e.some_mac(), psrc=e.ip, pdst=GATEWAY_IP), dst=EVERYBODY)),
    ("spoofed_arp", lambda e: e.frame(ARP(op=2, hwsrc=e.mac, psrc=(a := e.some_ip()), pdst=a), dst=EVERYBODY)),
    ("spoofed_arp", lambda e: e.frame(ARP(op=2, hwsrc=e.mac, psrc=e.other_ip(), pdst=GATEWAY_IP, hwdst=GATEWAY))),
    ("", lambda e: e.frame(ARP(op=2, hwsrc=e.mac, psrc=GATEWAY_IP, pdst=e.other_ip()), dst=mac_text(e.other().mac))),
    ("", lambda e: e.frame(Dot1Q(vlan=9) / ARP(op=2, hwsrc=e.mac, psrc=GATEWAY_IP, pdst=e.other_ip()))),
    ("ipv6", lambda e: e.frame(IPv6(src="fe80::7", dst="ff02::1") / ICMPv6ND_RA(), dst="33:33:00:00:00:01")),
    ("ipv6", lambda e: e.frame(IPv6(src="fe80::7", dst="fe80::1") / ICMPv6ND_NA(tgt="fe80::1"))),
    ("ipv6", lambda e: e.frame(IPv6(src="::ffff:10.0.0.5", dst="::ffff:10.0.0.6") / UDP(dport=TALK) / Raw(HOSTILE))),
    ("foreign_mac", lambda e: e.frame(Dot1Q(vlan=e.chance.randint(1, 4094)) / e.packet())),
    ("foreign_mac", lambda e: e.frame(e.packet(), dst=mac_text(e.other().mac))),
    ("foreign_mac", lambda e: e.frame(e.packet(), dst="02:00:00:00:00:02")),
    ("other_ethertype", lambda e: e.frame(Dot1Q(vlan=5, type=0x8100) / Dot1Q(vlan=6) / e.packet(), type=0x88A8)),
    ("other_ethertype", lambda e: e.frame(Raw(HOSTILE * 6), type=e.chance.choice([0x0801, 0x22F3, 0x88B5, 0xFFF0]))),
    ("other_ethertype", lambda e: e.frame(Raw(HOSTILE * 6), dst="01:80:c2:00:00:0e", type=0x88CC)),
    ("", lambda e: Dot3(src=e.mac, dst="01:80:c2:00:00:00") / LLC() / STP()),
    ("", lambda e: Dot3(src=e.mac, dst=EVERYBODY) / LLC() / Raw(HOSTILE)),
    ("broadcast", lambda e: e.frame(e.packet(), dst=EVERYBODY)),
    ("broadcast", lambda e: e.frame(e.packet(dst="255.255.255.255"), dst=EVERYBODY)),
    ("broadcast", lambda e: e.frame(e.packet(dst="224.0.0.251"), dst="01:00:5e:00:00:fb")),
    ("unroutable", lambda e: e.frame(e.packet(dst=e.chance.choice(["224.0.0.18", "255.255.255.255", "240.0.0.1"])))),
    ("unroutable", lambda e: e.frame(e.packet(dst=e.chance.choice(["127.0.0.1", "0.0.0.0", "169.254.169.254"])))),
    ("unroutable", lambda e: e.frame(e.packet(src=e.chance.choice(["127.0.0.1", "0.0.0.0", "224.0.0.1"])))),
    ("source_routed", _options(IPOption_LSRR(routers=["10.0.0.6"]))),
    ("source_routed", _options(IPOption_RR(), IPOption_SSRR(routers=["10.0.0.6"]))),
    ("no_route", lambda e: e.frame(IP(src=e.ip, dst=f"172.31.0.{e.chance.randint(1, 2)}") / e.tunnelled())),
    ("no_route", lambda e: e.frame(e.packet(dst=f"172.31.0.{e.chance.randint(1, 2)}"))),
    ("", lambda e: e.frame(e.packet(dst=f"10.0.0.{e.chance.randint(100, 255)}"))),
    ("input", lambda e: e.frame(IP(src=e.ip, dst=GATEWAY_IP) / e.tunnelled())),
    ("input", lambda e: e.frame(IP(src=e.ip, dst=GATEWAY_IP) / TCP(sport=e.chance.randrange(65536), dport=SECRET))),
    ("input", lambda e: e.frame(IP(src=e.ip, dst=GATEWAY_IP) / UDP(dport=SECRET) / Raw(HOSTILE))),
    ("input", lambda e: e.frame(IP(src=e.ip, dst=GATEWAY_IP) / ICMP(type=5, code=1, gw=e.ip) / e.packet())),
    ("input", lambda e: e.frame(IP(src=e.ip, dst=GATEWAY_IP, proto=e.chance.choice([2, 47, 50, 89])) / Raw(HOSTILE))),
    ("malformed", lambda e: e.frame(e.packet(chksum=1))),
    ("malformed", lambda e: e.frame(e.packet(version=e.chance.choice([0, 3, 5, 6, 15])))),
    ("malformed", lambda e: e.frame(e.packet(ihl=e.chance.randint(0, 4)))),
    ("malformed", lambda e: e.frame(e.packet(len=e.chance.choice([0, 19, 2000, 65535])))),
    ("malformed", lambda e: e.frame(Raw(b"\x45" + e.chance.randbytes(e.chance.randint(0, 15))), type=0x0800)),
    ("malformed", lambda e: e.frame(e.packet(ttl=e.chance.randint(0, 1)))),
    ("malformed", _options(b"\x07\xff\x04\x00")),
    ("fragments", Evil.overlapping),
    ("invalid", lambda e: e.frame(IP(src=e.ip, dst=e.other_ip()) / TCP(dport=80, flags="SF") / Raw(HOSTILE))),
    ("forged_error", Evil.error),
    ("denied_egress", lambda e: e.frame(IP(src=e.ip, dst=e.other_ip()) / TCP(dport=2000, flags="S") / Raw(HOSTILE))),
]


def distorted(e: Evil) -> Packet:
    """Any header that has a right checksum, to a good one."""
    packet = e.packet(mark=REFUSED)
    for field, bits in e.chance.sample(
        [("tos", 8), ("id", 16), ("flags", 3), ("frag", 13), ("ttl", 8), ("proto", 8)], 3
    ):
        packet.setfieldval(field, e.chance.getrandbits(bits))
    return e.frame(packet)


#: what senders' hosts let go, and the hosts of those it is for must refuse
REFUSALS: list[Kind] = [
    lambda e: e.frame(e.packet(mark=REFUSED)),
    lambda e: e.frame(IP(src=e.ip, dst=e.other_ip()) / e.tunnelled(mark=REFUSED)),
    lambda e: e.frame(Dot1Q(vlan=0) / e.packet(mark=REFUSED)),
]


class Capture:
    """All that came to a device, as it was then: a socket without a ring shows what the kernel made of it since."""

    def __init__(self, sock: socket.socket, own: bool) -> None:
        self._socket, self._own = sock, own
        self._next = 0
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, 1)  # TPACKET_V2
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("4I", 1 << 16, SLOTS >> 5, 1 << 11, SLOTS))
        self._ring = mmap.mmap(sock.fileno(), SLOTS << 11)

    def frames(self) -> list[bytes]:
        """Those since the last call; none may have been missed."""
        found = []
        while True:
            start = self._next % SLOTS << 11
            status, _, length, place = struct.unpack_from("=3IH", self._ring, start)
            if not status & 1:
                break
            if self._own or self._ring[start + 42] != socket.PACKET_OUTGOING:
                found.append(self._ring[start + place : start + place + length])
            struct.pack_into("=I", self._ring, start, 0)
            self._next += 1
        _, missed = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert not missed, f"{missed} frames were not captured"
        return found

    def close(self) -> None:
        self._ring.close()
        self._socket.close()


@contextlib.contextmanager
def capturing(namespace: str, device: str, own: bool = False) -> Iterator[Capture]:
    """Listen to a device; `own`: also to what it sends."""
    with namespaces.entered(namespace):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        capture = Capture(sock, own)
        sock.bind((device, 3))  # every protocol
    try:
        yield capture
    finally:
        capture.close()


class Tenant:
    """A network with two good instances and two hostile ones, one of each on each host."""

    def __init__(self, label: str, vni: int, hosts: list[Host]) -> None:
        self.label = label.encode()
        self.net: NetworkSpec = network(label, vni)
        places = (("a", 5, 0, GOOD), ("b", 6, 1, GOOD), ("e", 7, 0, EVIL), ("f", 8, 1, EVIL))
        self.ports = {
            name: (hosts[host], port(self.net, f"{label} {name}", f"10.0.0.{number}", identity))
            for name, number, host, identity in places
        }
        self.good = [spec for _, spec in self.ports.values() if spec.identity == GOOD]
        self.evil = [spec for _, spec in self.ports.values() if spec.identity == EVIL]

    async def settle(self, world: World) -> None:
        friends = ident("friends")
        of_friends = [RuleSpec(False, 17, TALK, TALK, friends), RuleSpec(False, 1, remote_group=friends)]
        evil = [RuleSpec(True, 17), RuleSpec(True, 1), RuleSpec(True, 6, 1, 1000)]
        policies = [policy(self.net, GOOD, RuleSpec(True), *of_friends), policy(self.net, EVIL, *evil)]
        await join(self.net, self.ports, policies)
        for host in world.hosts:
            await host.put(members(self.net, "friends", GOOD))
        for host, spec in self.ports.values():
            with namespaces.entered(world.plug(host, spec)):
                namespaces.sysctl("ipv6/conf/all/disable_ipv6", 1)  # what it says by itself would be counted too
        a, b = self.good
        assert await world.reaches(a, b.ips[0])
        assert await world.reaches(b, a.ips[0])
        for spec in self.evil:
            assert await world.reaches(spec, ip(GATEWAY_IP))

    def all_but(self, me: PortSpec) -> list[PortSpec]:
        return [spec for _, spec in self.ports.values() if spec is not me]

    def host_of(self, address: str) -> Host:
        return next(host for host, spec in self.ports.values() if ip_text(spec.ips[0]) == address)

    def belongs(self, frame: bytes, me: PortSpec) -> bool:
        """Whether an instance may see this: what its friend says, answers to its ARP, errors about its own packets."""
        if frame[:6] != me.mac or frame[6:12] != GATEWAY_MAC:
            return False
        if frame[12:14] == b"\x08\x06":
            return frame[20:22] == b"\0\2"
        source, mine = frame[26:30], me.ips[0]
        if frame[12:14] != b"\x08\0" or frame[30:34] != mine:
            return False
        if source == ip(GATEWAY_IP):
            return frame[23] == 1 and frame[54:58] == mine
        said = self.label in frame and HOSTILE not in frame and REFUSED not in frame
        return said and me in self.good and source in {friend.ips[0] for friend in self.good if friend is not me}


def well_formed(frame: bytes, tenants: list[Tenant]) -> bool:
    """Whether hosts may say this to each other: a packet of a port that is there, with its identity and network."""
    if frame[12:14] != b"\x08\0" or frame[26:30] == bytes(4):  # the hosts' own ARP and IPv6, the bridge's IGMP
        return HOSTILE not in frame and REFUSED not in frame
    tunnel, inner = frame[42:50], frame[50:]
    for tenant in tenants:
        for host, spec in tenant.ports.values():
            head = b"\x88\0" + spec.identity.to_bytes(2, "big") + tenant.net.vni.to_bytes(3, "big") + b"\0"
            if (tunnel, frame[26:30], inner[6:14], inner[26:30]) == (
                head,
                host.vtep,
                host.vtep_mac + b"\x08\0",
                spec.ips[0],
            ):
                return frame[36:38] == (4789).to_bytes(2, "big") and HOSTILE not in frame
    return False


def draw(evil: Evil, tenant: Tenant, expected: dict[str, Counter[str]]) -> list[list[bytes]]:
    """Frames of all kinds in any order; what has to be counted for them goes into `expected`."""
    here = tenant.host_of(evil.ip).name
    frames: list[list[bytes]] = []
    for _ in range(FRAMES):
        for reason, kind in KINDS:
            made = kind(evil)
            frames.append([bytes(one) for one in (made if isinstance(made, list) else [made])])
            expected[here][reason] += 1
        for kind in REFUSALS:
            made = kind(evil)
            assert isinstance(made, Packet)
            frames.append([bytes(made)])
            expected[tenant.host_of(made[IP].dst).name]["denied_ingress"] += 1
    evil.chance.shuffle(frames)
    return frames


def send(frames: list[list[bytes]]) -> None:
    """Send raw frames; lists stay together. Slowly enough for the host's queue, which would count what it loses."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        for number, together in enumerate(frames):
            for frame in together:
                sock.send(frame)
            if number % 10 == 0:
                time.sleep(0.002)
