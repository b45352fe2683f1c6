"""A partition of a guarded table as it was read, and a draft of what it is to become.

Made by `partitions`, used by operations and by whoever looks at a partition without changing it. Neither calls the
store.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, cast

from planes.model.enums import Kind
from planes.model.resources import Address, AddressState, Body, MacRow, Port
from planes.store.protocol import Batch, Partition, Value, Values
from planes.store.rows import decode, own_addresses, own_mac, tells, to_row
from planes.store.schema import Table

Edits = Mapping[tuple[int, bytes], Body | None]
_IP, _MAC, _PORT = int(Kind.IP), int(Kind.MAC), int(Kind.PORT)
_TOLD = (_IP, _MAC)


class View:
    """The committed state of one partition, decoded. Replaced row by row as batches commit; never edited by others.

    A port's row tells of its MAC and its addresses too: those rows are here and need not be stored. What is stored
    counts, whatever the port's row tells. They are made when somebody wants more than one of them: who lists ports
    never does.
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
        #: addresses that have a row of their own
        self.stored: set[bytes] = set(self.kinds.get(_IP, ()))
        #: ports' rows have not told yet
        self.untold = _PORT in self.kinds

    def whole(self) -> None:
        """Have ports' rows tell what they have to, unless they have."""
        if self.untold:
            self.untold = False
            self._tell(self.kinds[_PORT].values())

    @property
    def rows(self) -> int:
        """How many there are, or will be when ports' rows have told."""
        untold = 2 * len(self.kinds[_PORT]) if self.untold else 0
        return sum(map(len, self.kinds.values())) + untold

    def _tell(self, ports: Iterable[Port]) -> None:
        """What these ports' rows tell of besides, where nothing says otherwise."""
        for port in ports:
            if mac := own_mac(port):
                self.kinds.setdefault(_MAC, {}).setdefault(mac, MacRow(port.id))
            for ip, address in own_addresses(port):
                self.kinds.setdefault(_IP, {}).setdefault(ip, address)

    def merge(self, edits: Edits, batch: Batch) -> None:
        """Become what the batch that these edits made has left in the store."""
        if self.untold:
            self.whole()
        ports: list[Port] = []
        for (kind, key), body in edits.items():
            rows = self.kinds.get(kind)
            if rows is None:
                rows = self.kinds[kind] = {}
            if body is None:
                rows.pop(key, None)
            else:
                rows[key] = body
                if kind == _PORT:
                    ports.append(body)  # type: ignore[arg-type]  # the kind says so
        self.statics.update(batch.statics)
        dropped = {key for kind, key in batch.drops if kind == _IP}
        self.stored.difference_update(dropped)
        self.stored.update(row[1] for row in batch.puts if row[0] == _IP)  # type: ignore[misc]
        # Any port may tell of an address that has no row any more.
        if rest := self.all(_PORT).values() if dropped else ports:
            self._tell_rest(rest)

    def _tell_rest(self, ports: Iterable[Port]) -> None:
        """What these ports' rows tell of that is not here; of nearly all of them everything is."""
        addresses, macs = self.kinds.get(_IP, {}), self.kinds.get(_MAC, {})
        for port in ports:
            if port.mac not in macs:
                self._tell((port,))
                continue
            for _, ip in port.fixed:
                if ip not in addresses:
                    self._tell((port,))
                    break

    @property
    def top(self) -> int:
        """The partition's counter; 0 when it does not exist."""
        top: int = self.statics.get("top") or 0  # type: ignore[assignment]  # a guard is a number
        return top

    def get(self, kind: int, key: bytes = b"") -> Any:
        """The row's object, or None."""
        rows = self.kinds.get(kind)
        found = rows.get(key) if rows else None
        return self._told_of(kind, key) if found is None and self.untold and kind in _TOLD else found

    def _told_of(self, kind: int, key: bytes) -> Any:
        """What ports' rows would tell of one address or MAC."""
        if kind == _IP:
            owners = [port for port in self.kinds[_PORT].values() if any(ip == key for _, ip in port.fixed)]
            return next((each for port in owners for ip, each in own_addresses(port) if ip == key), None)
        return next((MacRow(port.id) for port in self.kinds[_PORT].values() if own_mac(port) == key), None)

    def all(self, kind: int) -> dict[bytes, Any]:
        """Every row of a kind, by key."""
        if self.untold and kind in _TOLD:
            self.whole()
        return self.kinds.get(kind, {})


class Draft:
    """What an operation sees and edits: the view, the edits of the same batch before it, and its own."""

    def __init__(self, view: View, batch: dict[tuple[int, bytes], Body | None], statics: dict[str, Value]) -> None:
        if view.untold:
            view.whole()
        self.view = view
        self._batch = batch
        self._statics = statics
        self.edits: dict[tuple[int, bytes], Body | None] = {}
        self.set: dict[str, Value] = {}

    def get(self, kind: int, key: bytes = b"") -> Any:
        where = (kind, key)
        if where in self.edits:
            return self.edits[where]
        if self._batch and where in self._batch:
            return self._batch[where]
        rows = self.view.kinds.get(kind)
        return rows.get(key) if rows else None

    def lacks(self, kind: int, keys: Collection[bytes]) -> bool:
        """Whether surely none of these rows is there, by one look for all; False where it takes one for each."""
        rows = self.view.kinds.get(kind)
        if rows and not rows.keys().isdisjoint(keys):
            return False
        return not any((kind, key) in over for over in (self._batch, self.edits) if over for key in keys)

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


def to_store(view: View, edits: Edits, revs: Mapping[tuple[int, bytes], int]) -> list[Values]:
    """The rows that edits of a view, each of a revision, put: all but what their port's own row tells; and addresses
    that had no row and that an edited port's row does not tell any more as they are."""
    rows: dict[tuple[int, bytes], Values] = {}
    for where, body in edits.items():
        kind, key = where
        if kind == _PORT:
            for ip, address in _left_alone(view, edits, key, body):  # type: ignore[arg-type]  # the kind says so
                rows[_IP, ip] = to_row(_IP, ip, address.rev, address)
        if body is not None and not (kind in _TOLD and _told(view, edits, key, body)):
            rows[where] = to_row(kind, key, revs[where], body)
    return list(rows.values())


def _told(view: View, edits: Edits, key: bytes, body: Any) -> bool:
    """Whether an edited address or MAC is what its port's own row will tell, so that it need not be stored."""
    if key in view.stored or (isinstance(body, Address) and body.state != AddressState.USED):
        return False  # a row that is there would count
    owner = (_PORT, body.port)
    port: Any = edits[owner] if owner in edits else view.get(*owner)
    if port is None:
        return False
    if isinstance(body, MacRow):
        return bool(port.mac == key)
    present: Address | None = view.get(_IP, key)
    # What another port's row tells could count.
    return tells(port, key, body) and (present is None or present.port == port.id)


def _left_alone(view: View, edits: Edits, id_: bytes, new: Port | None) -> Iterable[tuple[bytes, Address]]:
    """Addresses without a row, and not edited, that an edited port's row told of or will tell of otherwise: no
    address may ever change by that alone, for hosts know it by its revision."""
    old: Port | None = view.get(_PORT, id_)
    fixed = old.fixed if old is not None else ()
    if new is not None and new.fixed != fixed:
        fixed += new.fixed
    for _, ip in fixed:
        if (_IP, ip) not in edits and ip not in view.stored:
            address: Address | None = view.get(_IP, ip)
            if address is not None and not (new is not None and tells(new, ip, address)):
                yield ip, address
