"""Hand-packed rtnetlink: messages, batches over a kept socket, answers by sequence number.

Called by the driver's other modules for everything that is hot or must be one system call; pyroute2 is for the cold
rest. It knows message layouts and nothing of networks or ports. It never waits for anything but the kernel's own
answer, which is there when `send` returns: netlink requests are handled inside the system call.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from planes.data.linux.tally import count
from planes.data.linux.timings import timed

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
CHANGE = CREATE | REPLACE
NESTED = 0x8000

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR = 20, 21
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
SETNEIGHTBL = 67
GETSTATS = 94

IFF_UP = 1
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
AF_INET, AF_BRIDGE = 2, 7
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253

ROUTE, NETFILTER = 0, 12  # netlink protocols

#: the protocol number on every route of ours (rule N15)
PROTOCOL = 100
#: links that are about to be deleted are gathered in this group
DOOMED = 77
#: bytes in one send; about 2 ms of kernel work for the cheapest messages
CHUNK = 32 << 10

_ERROR, _DONE = 2, 3
#: NLM_F_DUMP_INTR, in the lower byte of a message's flags; how often a list is asked for
_TORN, _ATTEMPTS = 0x10, 5
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33
_BUFFER = 4 << 20
_SIOCGSKNS = 0x894C
_SKIP_STATS = 8
_SKIP_STATS_ATTR = 29

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_IFINFO = struct.Struct("=BxHiII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGH = struct.Struct("=BxxxiHBB")
_U32 = struct.Struct("=I")


T = TypeVar("T")


class Message(NamedTuple):
    """One request: its type, flags and body, without header."""

    type: int
    flags: int
    body: bytes


class Failure(NamedTuple):
    """The kernel's refusal of the message at `position` of a batch."""

    position: int
    errno: int
    reason: str

    @property
    def text(self) -> str:
        plain = os.strerror(self.errno)
        return f"{plain} ({self.reason})" if self.reason else plain


class Netlink:
    """A netlink socket of one network namespace: the one its thread is in while it is made."""

    def __init__(self, protocol: int = ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
            for option in (_SNDBUFFORCE, _RCVBUFFORCE):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            for option in (_CAP_ACK, _EXT_ACK, _STRICT):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: list[Message]) -> list[Failure]:
        """Send one chunk in one system call; the refusals. Only the last message is acknowledged, errors always are."""
        if not messages:
            return []
        first, buffer = self._sequence + 1, bytearray()
        last = first + len(messages) - 1
        for number, (kind, flags, body) in enumerate(messages, first):
            asked = flags | REQUEST | (ACK if number == last else 0)
            buffer += _HEADER.pack(16 + len(body), kind, asked, number, 0)
            buffer += body
        with timed("netlink", len(messages)):
            return self.exchange(bytes(buffer), first, last)

    def exchange(self, data: bytes, first: int, last: int) -> list[Failure]:
        """Send packed messages numbered `first`…`last`; return refusals once `last` is answered."""
        failures = self._exchange(data, first, last)
        count("netlink", bool(failures))
        return failures

    def _exchange(self, data: bytes, first: int, last: int) -> list[Failure]:
        self._sequence = last + 1
        self._socket.send(data)
        failures: list[Failure] = []
        while True:
            try:
                answer = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return failures or [Failure(last - first, errno.EIO, "the kernel did not answer")]
            for kind, number, start, end in messages(answer):
                if kind != _ERROR:
                    continue
                code = -int.from_bytes(answer[start : start + 4], "little", signed=True)
                if code:
                    failures.append(Failure(max(number - first, 0), code, _reason(answer, start, end)))
                if number == last:
                    return failures

    @property
    def address(self) -> int:
        """What notices about this socket's doings bear."""
        port: int = self._socket.getsockname()[0]
        return port

    def namespace(self) -> int:
        """An open file of the namespace that the socket is in, even if it has lost its name. The caller closes it."""
        return fcntl.ioctl(self._socket, _SIOCGSKNS)

    @property
    def next_sequence(self) -> int:
        return self._sequence + 1

    def dump(self, kind: int, body: bytes, read: Callable[[bytes, int, int], T | None], flags: int = DUMP) -> list[T]:
        """What `read(buffer, start, end)` makes of the body of every message that the kernel lists, without None.

        A list that the kernel says has changed under its hands is asked for again, a few times; then it is taken as it
        is. Of neighbours it never says so, though it may leave some out: their table is one for all namespaces, and is
        listed by place in it (`surplus` looks again).
        """
        found: list[T] = []
        for _ in range(_ATTEMPTS):
            found = []
            if not self._dump(kind, body, read, flags, found):
                break
        return found

    def _dump(
        self, kind: int, body: bytes, read: Callable[[bytes, int, int], T | None], flags: int, found: list[T]
    ) -> bool:
        """Whether the list changed while it was written."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(16 + len(body), kind, REQUEST | flags, self._sequence, 0) + body)
        torn = 0
        while True:
            answer = self._socket.recv(1 << 18)
            for kind_, number, start, end in messages(answer):
                if number != self._sequence:
                    continue
                torn |= answer[start - 10] & _TORN
                if kind_ in (_DONE, _ERROR):
                    if code := -int.from_bytes(answer[start : start + 4], "little", signed=True):
                        raise OSError(code, os.strerror(code))
                    return bool(torn)
                item = read(answer, start, end)
                if item is not None:
                    found.append(item)
                if flags != DUMP:
                    return False


def chunks(messages: list[Message], size: int = CHUNK) -> Iterator[tuple[int, list[Message]]]:
    """Cut a batch into pieces of at most `size` bytes, each with the index of its first message."""
    start, total = 0, 0
    for index, message in enumerate(messages):
        length = 16 + len(message.body)
        if total + length > size and index > start:
            yield start, messages[start:index]
            start, total = index, 0
        total += length
    if start < len(messages):
        yield start, messages[start:]


def attr(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return _ATTR.pack(length, kind) + data + b"\0" * (-length & 3)


def attrs(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """The attributes of a message body, by type (the nested flag taken off)."""
    found = {}
    while start + 4 <= end:
        length, kind = _ATTR.unpack_from(data, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, sequence number, start and end of the body) of each message."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _flags, number, _ = _HEADER.unpack_from(data, offset)
        yield kind, number, offset + 16, offset + length
        offset += (length + 3) & ~3


def _reason(answer: bytes, start: int, end: int) -> str:
    """The sentence that the kernel added to an error: attribute 1, behind the copy of the request's header."""
    return attrs(answer, start + 20, end).get(1, b"").rstrip(b"\0").decode("ascii", "replace")


# ---- messages -------------------------------------------------------------------------------------------------------


def u32(value: int) -> bytes:
    return _U32.pack(value)


def ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _IFINFO.pack(0, 0, index, flags, change)


def name_attr(name: str) -> bytes:
    return attr(3, name.encode() + b"\0")


def alias_attr(alias: str) -> bytes:
    return attr(20, alias.encode())


def veth(name: str, index: int, mac: bytes, peer: str, peer_mac: bytes, peer_ns: int, mtu: int, up: bool) -> Message:
    """A veth pair: `name` in the socket's namespace, `peer` (down) in the one of the file `peer_ns`."""
    one_queue = attr(31, u32(1)) + attr(32, u32(1))
    common = attr(4, u32(mtu)) + one_queue
    other = ifinfo() + name_attr(peer) + attr(1, peer_mac) + attr(28, u32(peer_ns)) + common
    info = attr(1, b"veth") + attr(2 | NESTED, attr(1 | NESTED, other))
    flags = IFF_UP if up else 0
    body = ifinfo(index, flags, flags) + name_attr(name) + attr(1, mac) + common + attr(18 | NESTED, info)
    return Message(NEWLINK, CREATE | EXCL, body)


def vxlan(name: str, index: int, vni: int, local: bytes, port: int, mac: bytes, mtu: int, target_ns: int) -> Message:
    """A VXLAN device made in the socket's namespace (where its UDP socket stays) and put into that of `target_ns`."""
    data = (
        attr(1, u32(vni)) + attr(4, local) + attr(15, port.to_bytes(2, "big")) + attr(7, b"\0") + attr(23, b"")
    )  # id, local, port, learning off, gbp
    info = attr(1, b"vxlan") + attr(2 | NESTED, data)
    body = ifinfo(index) + name_attr(name) + attr(1, mac) + attr(4, u32(mtu)) + attr(28, u32(target_ns))
    return Message(NEWLINK, CREATE | EXCL, body + attr(18 | NESTED, info))


def set_link(index: int, *, up: bool | None = None, attributes: bytes = b"") -> Message:
    change = 0 if up is None else IFF_UP
    return Message(NEWLINK, 0, ifinfo(index, IFF_UP if up else 0, change) + attributes)


def set_named_link(name: str, attributes: bytes) -> Message:
    return Message(NEWLINK, 0, ifinfo() + name_attr(name) + attributes)


def neighbour_timing(index: int, *, proxy_delay: int | None = None, probes: int | None = None) -> Message:
    """ARP timing of one device: delay of proxied answers (ms), and probes of every kind (0: unknown fails at once)."""
    parameters = attr(1, u32(index))
    if proxy_delay is not None:
        parameters += attr(13, struct.pack("=Q", proxy_delay))
    if probes is not None:
        parameters += b"".join(attr(kind, u32(probes)) for kind in (8, 9, 10))  # unicast, app, multicast
    return Message(SETNEIGHTBL, REPLACE, b"\x02\0\0\0" + attr(1, b"arp_cache\0") + attr(6 | NESTED, parameters))


def route(first: bytes, prefix: int, index: int) -> bytes:
    """An IPv4 route of ours straight to a device."""
    head = _ROUTE.pack(AF_INET, prefix, 0, 0, 254, PROTOCOL, SCOPE_LINK, 1, 0)
    return head + attr(1, first) + attr(4, u32(index))


def default_route(gateway: bytes, index: int) -> bytes:
    """An IPv4 default route by a gateway."""
    head = _ROUTE.pack(AF_INET, 0, 0, 0, 254, PROTOCOL, SCOPE_UNIVERSE, 1, 0)
    return head + attr(5, gateway) + attr(4, u32(index))


def neighbour(ip: bytes, mac: bytes, index: int) -> bytes:
    return _NEIGH.pack(AF_INET, index, NUD_PERMANENT, 0, 0) + b"\x08\0\x01\0" + ip + b"\x0a\0\x02\0" + mac + b"\0\0"


def no_neighbour(ip: bytes, index: int) -> bytes:
    return _NEIGH.pack(AF_INET, index, 0, 0, 0) + b"\x08\0\x01\0" + ip


def fdb(mac: bytes, index: int, vtep: bytes = b"") -> bytes:
    """A forwarding entry of a VXLAN device; without `vtep`: whatever stands for this MAC."""
    body = _NEIGH.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0) + attr(2, mac)
    return body + attr(1, vtep) if vtep else body


def address(ip: bytes, prefix: int, index: int, scope: int = SCOPE_UNIVERSE) -> bytes:
    return struct.pack("=BBBBI", AF_INET, prefix, 0, scope, index) + attr(2, ip) + attr(1, ip)


# ---- reading --------------------------------------------------------------------------------------------------------


def delete_together(netlink: Netlink, indexes: Iterable[int], group: int) -> list[Failure]:
    """Delete links at the cost of one, by way of a group: the kernel waits for RCU once per request."""
    for _, part in chunks([set_link(index, attributes=attr(27, u32(group))) for index in indexes]):
        netlink.send(part)  # a link that is gone already is no failure
    message = Message(DELLINK, 0, ifinfo() + attr(27, u32(group)))
    return [failure for failure in netlink.send([message]) if failure.errno != errno.ENODEV]


class Link(NamedTuple):
    ifindex: int
    name: str
    alias: str
    mac: bytes
    mtu: int
    up: bool
    local: bytes = b""  # of a VXLAN device: its end of the tunnel


def _link(data: bytes, start: int, end: int) -> Link:
    index, flags = struct.unpack_from("=iI", data, start + 4)
    found = attrs(data, start + 16, end)
    return Link(
        index,
        found[3].rstrip(b"\0").decode(),
        found.get(20, b"").rstrip(b"\0").decode("utf-8", "replace"),
        found.get(1, b""),
        _U32.unpack(found[4])[0],
        bool(flags & IFF_UP),
        _tunnel_end(found.get(18, b"")),
    )


def _tunnel_end(info: bytes) -> bytes:
    kind = attrs(info, 0, len(info))
    if kind.get(1, b"").rstrip(b"\0") != b"vxlan":
        return b""
    return attrs(kind[2], 0, len(kind[2])).get(4, b"")


def links(netlink: Netlink) -> list[Link]:
    """Every link of the namespace."""
    return netlink.dump(GETLINK, ifinfo() + attr(_SKIP_STATS_ATTR, u32(_SKIP_STATS)), _link)


def link(netlink: Netlink, name: str) -> Link | None:
    """The link of this name, if there is one."""
    try:
        return netlink.dump(GETLINK, ifinfo() + name_attr(name), _link, flags=0)[0]
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def statistics(netlink: Netlink) -> list[tuple[int, tuple[int, ...]]]:
    """(device, its counters in the order of `struct rtnl_link_stats64`) of every link."""

    def read(data: bytes, start: int, end: int) -> tuple[int, tuple[int, ...]]:
        counts = attrs(data, start + 12, end).get(1, b"")
        return _U32.unpack_from(data, start + 4)[0], struct.unpack(f"={len(counts) // 8}Q", counts)

    return netlink.dump(GETSTATS, struct.pack("=BxxxII", 0, 0, 1), read)


def _permanent(data: bytes, start: int, end: int) -> tuple[int, bytes, bytes] | None:
    index, state = struct.unpack_from("=iH", data, start + 4)
    # the kernel writes NDA_DST, then NDA_LLADDR, right behind the header: fixed places, twice as fast as a parse
    if state & NUD_PERMANENT:
        return index, data[start + 16 : start + 20], data[start + 24 : start + 30]
    return None


def permanent_neighbours(netlink: Netlink) -> list[tuple[int, bytes, bytes]]:
    """(device, IP, MAC) of every permanent IPv4 neighbour."""
    return netlink.dump(GETNEIGH, _NEIGH.pack(AF_INET, 0, 0, 0, 0), _permanent)


def permanent_neighbour(netlink: Netlink, index: int, ip: bytes) -> list[tuple[int, bytes, bytes]]:
    """The same of one address on one device; none: it has none."""
    try:
        return netlink.dump(GETNEIGH, no_neighbour(ip, index), _permanent, flags=0)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return []


#: NDA_PORT, NDA_VNI, NDA_IFINDEX: in a forwarding entry only where they are not the device's own
_ASIDE = (6, 7, 8)


def forwarding(netlink: Netlink, index: int) -> list[tuple[bytes, bytes]]:
    """(MAC, VTEP) of every forwarding entry of a VXLAN device; no VTEP: it leads by a port or VNI of its own."""

    def read(data: bytes, start: int, end: int) -> tuple[bytes, bytes] | None:
        entry = attrs(data, start + 12, end)
        if struct.unpack_from("=i", data, start + 4)[0] == index and 1 in entry and 2 in entry:
            return entry[2], entry[1] if entry.keys().isdisjoint(_ASIDE) else b""
        return None

    return netlink.dump(GETNEIGH, _NEIGH.pack(AF_BRIDGE, index, 0, 0, 0), read)


def routes(netlink: Netlink) -> list[tuple[bytes, int, int]]:
    """(first address, prefix, device) of every IPv4 route of ours."""

    def read(data: bytes, start: int, end: int) -> tuple[bytes, int, int] | None:
        entry = attrs(data, start + 12, end)
        return (entry.get(1, b"\0" * 4), data[start + 1], _U32.unpack(entry[4])[0]) if 4 in entry else None

    return netlink.dump(GETROUTE, _ROUTE.pack(AF_INET, 0, 0, 0, 0, PROTOCOL, 0, 0, 0), read)
