"""Index rows: what leads from a project, a host, a device, a name or a group to objects.

A port's host, device and name lead to the port itself. Its project and its groups lead to its bucket: one row, the
*mark*, stands for all ports there, however many; who asks reads the bucket. Whoever commits the first port that needs
a mark writes it before, and whoever removes the last takes it away after, each with the revision of the batch that
proves it; in between nobody writes any. Called by management and control. Pure.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from planes.model.enums import Kind
from planes.model.ids import Id, home_of, leading, make_id
from planes.model.resources import Port
from planes.store.protocol import Values, Write
from planes.store.schema import BY_DEVICE, BY_GROUP, BY_HOST, BY_NAME, BY_PROJECT, Table
from planes.store.views import Draft

#: partitions over which the ports of one name are spread
NAME_PARTS = 2
#: bytes in which all ids of a home begin
LEADING = 2
#: (table, partition, key)
Index = tuple[Table, Values, Values]

#: the project under which shared networks are listed for everybody
SHARED = "*"


def part_of(id_: bytes) -> int:
    """The first 6 bits of an id, by which indexes are spread over partitions; all ids of a home have the same."""
    return id_[0] >> 2


def mark_of(id_: bytes) -> Id:
    """The key of the mark of a port's bucket: the lowest id that a port there can have."""
    return _mark(id_[8:])


@lru_cache(4096)
def _mark(home: bytes) -> Id:
    number = home_of(Id(bytes(8) + home))
    return make_id(number, leading(number))


def is_marked(id_: bytes) -> bool:
    """Whether marks stand for a port of this id. For older ones, which begin at random, they do not: those have rows
    of their own, and so keep their place in the order of ids."""
    return id_[:LEADING] == mark_of(id_)[:LEADING]


def index_rows(port: Port) -> list[Index]:
    """Every index row that leads to a port."""
    return [*own_rows(port), *marks(port)]


def own_rows(port: Port) -> list[Index]:
    """Those that lead to it alone."""
    id_ = port.id
    rows: list[Index] = [(BY_HOST, (host,), (id_,)) for host in (port.host, port.leaving) if host]
    if port.device_id:
        rows.append((BY_DEVICE, (port.device_id,), (id_,)))
    if port.name:
        rows.append((BY_NAME, (port.project, port.name, part_of(id_) % NAME_PARTS), (id_,)))
    return rows if is_marked(id_) else [*rows, *_listed(id_, (port.project, *port.groups))]


def marks(port: Port) -> list[Index]:
    """Those that lead to its bucket."""
    return _listed(mark_of(port.id), (port.project, *port.groups)) if is_marked(port.id) else []


def leads_to(row: Index, port: Port) -> bool:
    """Whether a row may be there for the port: also those of its own that versions without marks wrote."""
    return row in index_rows(port) or row in _listed(port.id, (port.project, *port.groups))


def is_mark(row: Index) -> bool:
    """Whether an index row of a port's is a mark."""
    table, where, (key, *_) = row
    of_ports = table is BY_GROUP or (table is BY_PROJECT and where[1] == Kind.PORT)
    return of_ports and isinstance(key, bytes) and key == mark_of(key)


def unshared(draft: Draft, id_: Id, names: Sequence[Any]) -> list[Index]:
    """Of the marks that lead from a project and groups to the bucket of a draft those that no port there needs, but for
    the one of this id. In most buckets the first other port needs all of them.
    """
    mark, left = mark_of(id_), set(names)
    start = mark[:LEADING]
    if id_[:LEADING] != start:
        return []
    for key, other in draft.all(Kind.PORT):
        if key != id_ and key[:LEADING] == start:
            left.discard(other.project)
            left.difference_update(other.groups)
            if not left:
                return []
    return _listed(mark, [name for name in names if name in left])


def unneeded(draft: Draft, rows: Sequence[Index]) -> list[Index]:
    """Those of some marks of a bucket that none of the ports in its draft needs."""
    return unshared(draft, rows[0][2][0], [row[1][0] for row in rows]) if rows else []  # type: ignore[arg-type]


def _listed(key: Id, names: Iterable[Any]) -> list[Index]:
    """Rows of a key under a project (text) and groups (ids)."""
    part, kind = part_of(key), int(Kind.PORT)
    return [
        (BY_PROJECT, (name, kind, part), (key,)) if isinstance(name, str) else (BY_GROUP, (name, part), (key,))
        for name in names
    ]


def puts(rows: Sequence[Index], rev: int) -> list[Write]:
    """Writes that make these index rows exist."""
    return [Write(table, partition, key, (rev,) if table.columns else (), rev) for table, partition, key in rows]


def drops(rows: Sequence[Index], rev: int) -> list[Write]:
    """Writes that remove these index rows."""
    return [Write(table, partition, key, None, rev) for table, partition, key in rows]


def names(rows: Sequence[Index]) -> tuple[tuple[str, Values, Values], ...]:
    """The same as the feed names them."""
    return tuple([(table.name, where, key) for table, where, key in rows])
