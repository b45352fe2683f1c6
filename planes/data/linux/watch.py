"""What others do to a network's namespace, as the kernel tells it: wake-up calls, never a list of what exists.

Made by `network`, drained by its `audit`. What our own socket did is not repeated. It changes nothing.
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from planes.data.linux import netlink

#: links, neighbours, IPv4 addresses, IPv4 routes
_GROUPS = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 6
_GONE = (netlink.DELLINK, netlink.DELADDR, netlink.DELROUTE, netlink.DELNEIGH)
#: notices looked at in one audit: who meets more knows enough
_MOST = 16_384
_ATTACH_FILTER, _RCVBUFFORCE = 26, 33
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _EQUAL, _HAS_BIT, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x45, 0x06
#: the kernel keeps notices of deleting a thousand ports in about half of it
_BUFFER = 16 << 20


class Notice(NamedTuple):
    """Something went away, came or changed. `what`: an address or a MAC, if it has one; `up`: of a link."""

    kind: int
    device: int
    family: int = 0
    what: bytes = b""
    up: bool = True


class Overflow(Exception):
    """So much happened that the kernel did not keep it all."""


class Watch:
    """A listening socket in the namespace of the thread that makes it. `own`: the address of our own socket there."""

    def __init__(self, own: int) -> None:
        #: (device, address) of neighbours that others put there, until somebody has looked what they are
        self.added: set[tuple[int, bytes]] = set()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
            _admit(self._socket, own)
            self._socket.bind((0, _GROUPS))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def notices(self) -> Iterator[Notice]:
        """What came since the last call; raises Overflow when it is not all."""
        for _ in range(_MOST):
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise Overflow from None
                raise
            for kind, _number, start, end in netlink.messages(data):
                yield _notice(kind, data, start, end)
        raise Overflow


def _notice(kind: int, data: bytes, start: int, end: int) -> Notice:
    family = data[start]
    if kind in (netlink.NEWLINK, netlink.DELLINK):
        index, flags = struct.unpack_from("=iI", data, start + 4)
        return Notice(kind, index, family, up=bool(flags & netlink.IFF_UP))
    if kind == netlink.DELADDR:
        found = netlink.attrs(data, start + 8, end)
        return Notice(kind, int.from_bytes(data[start + 4 : start + 8], "little"), family, found.get(2, b""))
    found = netlink.attrs(data, start + 12, end)
    if kind == netlink.DELROUTE:
        return Notice(kind, int.from_bytes(found.get(4, b""), "little"), family, found.get(1, b""))
    (index,) = struct.unpack_from("=i", data, start + 4)
    return Notice(kind, index, family, found.get(2 if family == netlink.AF_BRIDGE else 1, b""))


def _admit(sock: socket.socket, own: int) -> None:
    """Have the kernel keep only what went away, links that are down, and permanent IPv4 neighbours that came; nothing
    that our own socket has caused.

    A program for the kernel: each step loads a value, or compares it and skips so many steps if it is so, or is not.
    """
    count = len(_GONE)
    code = [(_LOAD_WORD, 0, 0, 12), (_EQUAL, count + 9, 0, socket.htonl(own)), (_LOAD_HALF, 0, 0, 4)]
    code += [(_EQUAL, count + 8 - place, 0, socket.htons(kind)) for place, kind in enumerate(_GONE)]
    code += [(_EQUAL, 0, 2, socket.htons(netlink.NEWLINK)), (_LOAD_BYTE, 0, 0, 24), (_HAS_BIT, 5, 6, netlink.IFF_UP)]
    code += [(_EQUAL, 0, 4, socket.htons(netlink.NEWNEIGH)), (_LOAD_BYTE, 0, 0, 16), (_EQUAL, 0, 2, netlink.AF_INET)]
    code += [(_LOAD_BYTE, 0, 0, 24), (_HAS_BIT, 1, 0, netlink.NUD_PERMANENT)]
    code += [(_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFF_FFFF)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program)))
