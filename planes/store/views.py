"""A partition of a guarded table as it was read, and a draft of what it is to become.

Made by `partitions`, used by operations and by whoever looks at a partition without changing it. Neither calls the
store.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from planes.model.enums import Kind
from planes.model.resources import Body, MacRow, Port
from planes.store.protocol import Partition, Value
from planes.store.rows import decode, own_mac
from planes.store.schema import Table

Edits = Mapping[tuple[int, bytes], Body | None]
_MAC, _PORT = int(Kind.MAC), int(Kind.PORT)


class View:
    """The committed state of one partition, decoded. Replaced row by row as batches commit; never edited by others.

    A port's row claims its MAC too: that row is here and is not stored.
    """

    def __init__(self, table: Table, read: Partition) -> None:
        names = [name for name, _ in table.statics]
        self.statics: dict[str, Value] = dict(zip(names, read.statics, strict=True)) if read.exists else {}
        self.kinds: dict[int, dict[bytes, Any]] = {}
        #: scratch for whoever looks for something free here; forgotten with the view
        self.hints: dict[Any, Any] = {}
        for row in read.rows:
            kind, key, _, body = cast(tuple[int, bytes, int, bytes], row)
            self.kinds.setdefault(kind, {})[key] = decode(kind, body)
        for port in self.kinds.get(Kind.PORT, {}).values():
            if mac := own_mac(port):
                self.kinds.setdefault(Kind.MAC, {}).setdefault(mac, MacRow(port.id))

    @property
    def top(self) -> int:
        """The partition's counter; 0 when it does not exist."""
        top: int = self.statics.get("top") or 0  # type: ignore[assignment]  # a guard is a number
        return top

    def get(self, kind: int, key: bytes = b"") -> Any:
        """The row's object, or None."""
        rows = self.kinds.get(kind)
        return rows.get(key) if rows else None

    def all(self, kind: int) -> dict[bytes, Any]:
        """Every row of a kind, by key."""
        return self.kinds.get(kind, {})


class Draft:
    """What an operation sees and edits: the view, the edits of the same batch before it, and its own."""

    def __init__(self, view: View, batch: dict[tuple[int, bytes], Body | None], statics: dict[str, Value]) -> None:
        self.view = view
        self._batch = batch
        self._statics = statics
        self.edits: dict[tuple[int, bytes], Body | None] = {}
        self.set: dict[str, Value] = {}

    def get(self, kind: int, key: bytes = b"") -> Any:
        where = (int(kind), key)
        if where in self.edits:
            return self.edits[where]
        if where in self._batch:
            return self._batch[where]
        rows = self.view.kinds.get(kind)
        return rows.get(key) if rows else None

    def all(self, kind: int) -> Iterator[tuple[bytes, Any]]:
        """Rows of a kind with every edit so far, in no particular order; no edits while it runs."""
        for key, body in self.view.all(kind).items():
            if (int(kind), key) not in self.edits and (int(kind), key) not in self._batch:
                yield key, body
        for over in (self._batch, self.edits):
            for where, edited in over.items():
                if where[0] == kind and edited is not None and (over is self.edits or where not in self.edits):
                    yield where[1], edited

    @property
    def untouched(self) -> bool:
        """Whether nothing is edited yet: what is seen here is what is committed."""
        return not self.edits and not self._batch

    def static(self, name: str) -> Value:
        if name in self.set:
            return self.set[name]
        return self._statics[name] if name in self._statics else self.view.statics.get(name)

    def put(self, kind: int, key: bytes, body: Body) -> None:
        self.edits[int(kind), key] = body

    def drop(self, kind: int, key: bytes = b"") -> None:
        self.edits[int(kind), key] = None


def to_store(view: View, edits: Edits) -> Iterator[tuple[int, bytes, Body]]:
    """What of the edits of a view becomes rows: all but a MAC that its port's own row claims."""
    for (kind, key), body in edits.items():
        if body is None:
            continue
        if kind == _MAC and isinstance(body, MacRow):
            owner = (_PORT, body.port)
            port: Port | None = edits[owner] if owner in edits else view.get(*owner)  # type: ignore[assignment]
            if port is not None and port.mac == key:
                continue
        yield kind, key, body
