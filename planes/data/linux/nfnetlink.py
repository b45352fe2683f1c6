"""Hand-packed nf_tables: set and map elements in atomic batches, and cheap read-back.

Called by the driver for everything that changes with ports and members. A batch is one transaction: all of it or
nothing. It knows layouts, not what the sets mean.
"""

import socket
import struct
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from planes.data.linux.netlink import ACK, CREATE, NESTED, REQUEST, Failure, Netlink, attr, attrs
from planes.data.linux.timings import timed

INET, ARP = 1, 3

_SUBSYSTEM = 10 << 8
_NEWCHAIN, _GETCHAIN, _DELCHAIN = _SUBSYSTEM | 3, _SUBSYSTEM | 4, _SUBSYSTEM | 5
_GETRULE, _GETSET = _SUBSYSTEM | 7, _SUBSYSTEM | 10
_NEWELEMENT, _GETELEMENT, _DELELEMENT = _SUBSYSTEM | 12, _SUBSYSTEM | 13, _SUBSYSTEM | 14
_GETGENERATION, _GETOBJECT = _SUBSYSTEM | 16, _SUBSYSTEM | 19
_BEGIN, _END = 0x10, 0x11
_JUMP, _ACCEPT = -3, 1
#: one message carries at most this much, because a nested attribute's length has 16 bits
_ELEMENTS = 48_000

_HEADER = struct.Struct("=IHHIIBBH")


class Element(NamedTuple):
    """One element of a set or map. In a map `data` is raw bytes, the chain to jump to, or True for `accept`."""

    family: int
    set: str
    key: bytes
    key_end: bytes = b""
    data: bytes | str | bool = b""


class Change(NamedTuple):
    """What one transaction does, in this order: make empty chains, delete elements, add elements, delete chains."""

    chains: tuple[str, ...] = ()
    removed: tuple[Element, ...] = ()
    added: tuple[Element, ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chains or self.removed or self.added or self.gone)


def commit(netlink: Netlink, table: str, change: Change) -> str:
    """Carry out a change as one transaction. Returns the kernel's reason if it refused, with nothing changed."""
    messages = [
        *((_NEWCHAIN, CREATE, INET, _text(1, table) + _text(3, name)) for name in change.chains),
        *_element_messages(_DELELEMENT, 0, table, change.removed),
        *_element_messages(_NEWELEMENT, CREATE, table, change.added),
        *((_DELCHAIN, 0, INET, _text(1, table) + _text(3, name)) for name in change.gone),
    ]
    if not messages:
        return ""
    failures = _transact(netlink, messages)
    return failures[0].text if failures else ""


def _transact(netlink: Netlink, messages: list[tuple[int, int, int, bytes]]) -> list[Failure]:
    first = netlink.next_sequence
    last = first + len(messages)
    buffer = bytearray(_HEADER.pack(20, _BEGIN, REQUEST, first, 0, 0, 0, socket.htons(10)))
    for number, (kind, flags, family, body) in enumerate(messages, first + 1):
        asked = flags | REQUEST | (ACK if number == last else 0)
        buffer += _HEADER.pack(20 + len(body), kind, asked, number, 0, family, 0, 0)
        buffer += body
    buffer += _HEADER.pack(20, _END, REQUEST, last + 1, 0, 0, 0, socket.htons(10))
    with timed("nfnetlink", len(messages)):
        return netlink.exchange(bytes(buffer), first, last)


def _element_messages(
    kind: int, flags: int, table: str, elements: Iterable[Element]
) -> list[tuple[int, int, int, bytes]]:
    by_set: dict[tuple[int, str], list[bytes]] = {}
    for element in elements:
        by_set.setdefault((element.family, element.set), []).append(_pack(element))
    messages = []
    for (family, name), packed in by_set.items():
        head = _text(1, table) + _text(2, name)
        step = max(1, _ELEMENTS // max(map(len, packed)))
        for start in range(0, len(packed), step):
            body = head + attr(3 | NESTED, b"".join(packed[start : start + step]))
            messages.append((kind, flags, family, body))
    return messages


def _pack(element: Element) -> bytes:
    body = attr(1 | NESTED, attr(1, element.key))
    if element.data is True:
        body += attr(2 | NESTED, attr(2 | NESTED, attr(1, struct.pack(">i", _ACCEPT))))
    elif isinstance(element.data, str):
        verdict = attr(1, struct.pack(">i", _JUMP)) + _text(2, element.data)
        body += attr(2 | NESTED, attr(2 | NESTED, verdict))
    elif element.data:
        body += attr(2 | NESTED, attr(1, element.data))
    if element.key_end:
        body += attr(10 | NESTED, attr(1, element.key_end))
    return attr(1 | NESTED, body)


def _text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


# ---- reading --------------------------------------------------------------------------------------------------------


def _request(family: int, body: bytes) -> bytes:
    return struct.pack("=BBH", family, 0, 0) + body


def elements(netlink: Netlink, family: int, table: str, name: str) -> list[Element]:
    """All elements of a set or map."""

    def read(data: bytes, start: int, end: int) -> list[Element]:
        packed = attrs(data, start + 4, end).get(3, b"")
        some, offset = [], 0
        while offset + 4 <= len(packed):
            length = int.from_bytes(packed[offset : offset + 2], "little")
            some.append(_unpack(family, name, attrs(packed, offset + 4, offset + length)))
            offset += (length + 3) & ~3
        return some

    parts = netlink.dump(_GETELEMENT, _request(family, _text(1, table) + _text(2, name)), read)
    return [element for part in parts for element in part]


def _unpack(family: int, name: str, element: dict[int, bytes]) -> Element:
    data: bytes | str | bool = b""
    if 2 in element:
        value = attrs(element[2], 0, len(element[2]))
        if 2 in value:
            verdict = attrs(value[2], 0, len(value[2]))
            data = _string(verdict[2]) if 2 in verdict else True
        else:
            data = value[1]
    return Element(family, name, _value(element[1]), _value(element[10]) if 10 in element else b"", data)


def set_names(netlink: Netlink, family: int, table: str) -> list[str]:
    """The names of a table's sets and maps."""
    body = _request(family, _text(1, table))
    return netlink.dump(_GETSET, body, lambda data, start, end: _string(attrs(data, start + 4, end)[2]))


def chain_names(netlink: Netlink, family: int, table: str) -> set[str]:
    """The names of a table's chains."""

    def read(data: bytes, start: int, end: int) -> str | None:
        entry = attrs(data, start + 4, end)
        return _string(entry[3]) if _string(entry[1]) == table else None

    return set(netlink.dump(_GETCHAIN, _request(family, b""), read))


def rules(netlink: Netlink, family: int, table: str) -> Counter[str]:
    """How many rules each chain of a table has that has any."""
    body = _request(family, _text(1, table))
    return Counter(netlink.dump(_GETRULE, body, lambda data, start, end: _string(attrs(data, start + 4, end)[2])))


def generation(netlink: Netlink) -> int:
    """A number that rises with every change of the namespace's filters, whoever makes it."""

    def read(data: bytes, start: int, end: int) -> int:
        return int.from_bytes(attrs(data, start + 4, end)[1], "big")

    return netlink.dump(_GETGENERATION, _request(0, b""), read, flags=0)[0]


def counters(netlink: Netlink, family: int, table: str) -> dict[str, int]:
    """Packets counted by each named counter of a table."""

    def read(data: bytes, start: int, end: int) -> tuple[str, int]:
        entry = attrs(data, start + 4, end)
        value = attrs(entry[4], 0, len(entry[4]))
        return _string(entry[2]), int.from_bytes(value[2], "big")

    return dict(netlink.dump(_GETOBJECT, _request(family, _text(1, table) + attr(3, struct.pack(">I", 1))), read))


def _value(packed: bytes) -> bytes:
    return attrs(packed, 0, len(packed))[1]


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
