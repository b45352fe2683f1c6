"""Identifiers that lead to their partition without a look-up table.

An id is a UUID of version 8 (RFC 9562): 60 bits that differ, then 62 bits of *home*. For networks, subnets and ports
the home is 40 bits of network number and 22 bits of bucket; for groups and their rules it is 62 bits common to the
family. Of the 60 bits the first 16 follow from the home: ids of one partition lie together in every index, whose rows
are then written together, and a page of a list is of few partitions. The next 10 bits of a port's id are, if they can,
the place of its address in its bucket: who looks for an address finds its port among few. Inside the planes an id is 16
bytes; text appears only at the REST edge. Pure: randomness comes as an argument.
"""

from functools import lru_cache
from typing import NewType

from planes.model.errors import Invalid

Id = NewType("Id", bytes)

HOME_BITS = 62
BUCKET_BITS = 22
NUMBER_BITS = 40
RANDOM_BITS = 60
#: of these: what follows from the home, a number that rises with every id of an instance, and chance
LEADING_BITS, TURN_BITS, LAST_BITS = 16, 16, 28
#: of the number that rises, what a port's place takes
PLACE_BITS = 10

_VERSION = 0x8 << 76
_VARIANT = 0x2 << 62
_HOME_MASK = (1 << HOME_BITS) - 1
_BUCKET_MASK = (1 << BUCKET_BITS) - 1
#: what separates an id from an arbitrary UUID: version and variant bits
_FIXED_MASK = (0xF << 76) | (0x3 << 62)


def make_id(home: int, random: int) -> Id:
    """An id with this home (62 bits) and these 60 bits in front."""
    high = (random >> 12) << 80
    middle = (random & 0xFFF) << 64
    return Id((high | _VERSION | middle | _VARIANT | (home & _HOME_MASK)).to_bytes(16, "big"))


@lru_cache(4096)
def leading(home: int) -> int:
    """Where ids of a home begin, in its place among the 60 bits: homes are spread evenly (Fibonacci hashing)."""
    spread = home * 0x9E37_79B9_7F4A_7C15 & (1 << 64) - 1
    return (spread >> 64 - LEADING_BITS) << (RANDOM_BITS - LEADING_BITS)


def placed(id_: Id, place: int) -> Id:
    """The id with this place (10 bits) behind what follows from the home."""
    rest = TURN_BITS - PLACE_BITS
    turn = place << rest | int.from_bytes(id_[2:4], "big") & (1 << rest) - 1
    return Id(id_[:2] + turn.to_bytes(2, "big") + id_[4:])


def first_at(home: int, place: int) -> Id:
    """Where ids of a home that were `placed` there begin; nobody has this one."""
    return make_id(home, leading(home) | place << RANDOM_BITS - LEADING_BITS - PLACE_BITS)


def home_of(id_: Id) -> int:
    """The 62 bits that name the partition."""
    return int.from_bytes(id_[8:], "big") & _HOME_MASK


def network_home(number: int, bucket: int = 0) -> int:
    """The home of what lives in a network: its number (40 bits) and a bucket (22 bits)."""
    return number << BUCKET_BITS | bucket


def number_of(id_: Id) -> int:
    """The network number inside the id of a network, subnet or port."""
    return home_of(id_) >> BUCKET_BITS


def bucket_of(id_: Id) -> int:
    """The bucket inside the id of a port."""
    return home_of(id_) & _BUCKET_MASK


def place_of(id_: bytes) -> tuple[int, int]:
    """(network number, bucket) inside the id of a port: the partition that it lives in."""
    home = int.from_bytes(id_[8:], "big") & _HOME_MASK
    return home >> BUCKET_BITS, home & _BUCKET_MASK


def text(id_: bytes) -> str:
    """The id as the REST API writes it: 8-4-4-4-12 hexadecimal digits."""
    h = id_.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


@lru_cache(4096)
def common_text(id_: bytes) -> str:
    """`text` of an id that many objects name, as a network's."""
    return text(id_)


def parse(value: object, field: str = "id") -> Id:
    """Read an id from text. A UUID that cannot be one of ours still parses: it simply will not be found.

    Raises Invalid, naming `field`, when it is no UUID at all.
    """
    if isinstance(value, str) and len(value) in (32, 36):
        digits = value.replace("-", "")
        if len(digits) == 32:
            try:
                return Id(bytes.fromhex(digits))
            except ValueError:
                pass
    raise Invalid(f"Invalid input for {field}. Reason: '{value!s:.80}' is not a valid UUID.")


def is_ours(id_: bytes) -> bool:
    """Whether the version and variant bits are those of `make_id`."""
    return len(id_) == 16 and int.from_bytes(id_, "big") & _FIXED_MASK == _VERSION | _VARIANT
