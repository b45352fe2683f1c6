"""Numbers that tables and messages share; never renumbered, only appended."""

from enum import IntEnum


class Kind(IntEnum):
    """Kind of a row within its partition; the first clustering column."""

    NETWORK = 1
    SUBNET = 2
    IDENTITY = 3
    BUCKET = 4
    LINK = 5
    ROUTE = 6
    PORT = 10
    IP = 11
    MAC = 12
    FLOATING_IP = 13
    NAT = 14
    VOID = 15
    GROUP = 20
    RULE = 21
    ROUTER = 30
    INTERFACE = 31
    ROUTER_ROUTE = 32
    LIMIT = 40
    DEFAULT_GROUP = 41
    SLOT = 50
    HOST = 60


class Op(IntEnum):
    """What a feed row announces."""

    PORTS = 1  # args: port ids, created, changed or deleted; and what each claimed outside its home bucket
    NETWORK = 2
    SUBNET = 3
    GROUP = 4
    HOST = 5


class Status:
    """Port and network status, as Neutron spells them."""

    ACTIVE = "ACTIVE"
    BUILD = "BUILD"
    DOWN = "DOWN"
    ERROR = "ERROR"
