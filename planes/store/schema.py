"""The tables, once, for every adapter: partition key, clustering key, columns, and whether they change by
compare-and-set only. docs/store.md explains each; adapters turn them into DDL and statements.

A *guarded* table is written only by conditional batches inside one partition (`Batch`): the condition is that the
static column `guard` still has the value that was read; the batch raises it. A *free* table takes idempotent writes
with a timestamp (last revision wins) and can be rebuilt from the guarded ones.
"""

from enum import StrEnum

from msgspec import Struct


class Type(StrEnum):
    INT = "bigint"
    TEXT = "text"
    BLOB = "blob"


class Table(Struct, frozen=True):
    name: str
    partition: tuple[tuple[str, Type], ...]
    clustering: tuple[tuple[str, Type], ...] = ()
    columns: tuple[tuple[str, Type], ...] = ()
    statics: tuple[tuple[str, Type], ...] = ()
    guard: str = ""  # empty: a free table
    ttl: int = 0  # seconds that rows live; 0: for ever
    timed: bool = False  # rows are in the order of their age


INT, TEXT, BLOB = Type.INT, Type.TEXT, Type.BLOB
_ROW = (("kind", INT), ("key", BLOB))
_BODY = (("rev", INT), ("body", BLOB))

NETWORKS = Table("networks", (("net", INT),), _ROW, _BODY, (("top", INT), ("state", INT)), "top")
PORTS = Table(
    "ports", (("net", INT), ("bucket", INT)), _ROW, _BODY, (("top", INT), ("floor", INT), ("sealed", INT)), "top"
)
GROUPS = Table("groups", (("home", INT),), _ROW, _BODY, (("top", INT), ("state", INT)), "top")
ROUTERS = Table("routers", (("home", INT),), _ROW, _BODY, (("top", INT), ("state", INT)), "top")
PROJECTS = Table("projects", (("project", TEXT),), _ROW, _BODY, (("top", INT),), "top")
SLOTS = Table("slots", (("space", TEXT), ("block", INT)), _ROW, _BODY, (("top", INT),), "top")
HOSTS = Table(
    "hosts",
    (("name", TEXT),),
    (),
    (),
    (("epoch", INT), ("rev", INT), ("machine", TEXT), ("vtep", BLOB), ("cell", TEXT), ("state", INT), ("body", BLOB)),
    "rev",
)
LEASES = Table("leases", (("name", TEXT),), (), (), (("until", INT), ("owner", TEXT), ("done", INT)), "until")

BY_PROJECT = Table("by_project", (("project", TEXT), ("kind", INT), ("part", INT)), (("id", BLOB),))
BY_HOST = Table("by_host", (("host", TEXT),), (("id", BLOB),), (("rev", INT),))
BY_DEVICE = Table("by_device", (("device", TEXT),), (("id", BLOB),))
BY_NAME = Table("by_name", (("project", TEXT), ("name", TEXT), ("part", INT)), (("id", BLOB),))
BY_GROUP = Table("by_group", (("grp", BLOB), ("part", INT)), (("id", BLOB),))
PORT_STATUS = Table(
    "port_status",
    (("net", INT), ("bucket", INT)),
    (("id", BLOB), ("host", TEXT)),
    (("applied", INT), ("state", INT), ("body", BLOB)),
)
MOVES = Table("moves", (("net", INT),), (("at", INT), ("ip", BLOB)), (("body", BLOB),), ttl=7 * 86400)
FEED = Table(
    "feed",
    (("minute", INT), ("part", INT)),
    (("at", INT), ("id", BLOB)),
    (("op", INT), ("args", BLOB)),
    ttl=86400,
    timed=True,
)
CHANGES = Table("changes", (("id", BLOB),), (("at", INT), ("host", TEXT)), (("body", BLOB),), ttl=7 * 86400, timed=True)

GUARDED = (NETWORKS, PORTS, GROUPS, ROUTERS, PROJECTS, SLOTS, HOSTS, LEASES)
FREE = (BY_PROJECT, BY_HOST, BY_DEVICE, BY_NAME, BY_GROUP, PORT_STATUS, MOVES, FEED, CHANGES)
TABLES = GUARDED + FREE
