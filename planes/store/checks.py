"""Whether what a caller hands to a store fits the table definition, and what a read asks for; alike in every adapter.

Called by adapters before anything is queued or sent. A misfit is a bug of the caller: ValueError, nothing happens.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import cast

from planes.store.protocol import Batch, Value, Values, Write
from planes.store.schema import GUARDED, Table, Type

_PYTHON: dict[Type, type] = {Type.INT: int, Type.TEXT: str, Type.BLOB: bytes}
_MAX = 2**63 - 1
Columns = Sequence[tuple[str, Type]]
#: what is looked at in one go
_PARTS = {
    "row": ("clustering", "columns"),
    "partition": ("partition",),
    "key": ("partition", "clustering"),
    "all": ("partition", "clustering", "columns"),
}
#: (table, part) → types of its values, and which of them are numbers
_SHAPES: dict[tuple[str, str], tuple[tuple[type, ...], list[int]]] = {}


def check_batch(batch: Batch) -> None:
    """Raise ValueError unless the batch fits its table and raises the guard."""
    table = batch.table
    if not table.guard:
        raise ValueError(f"{table.name} is a free table: it takes write(), not commit()")
    if _odd(table, "partition", (batch.partition,)):
        _whole(table, "partition", table.partition, batch.partition)
    for name, value in batch.statics.items():
        kind = _statics(table.name).get(name)
        if kind is None:
            raise ValueError(f"{table.name} has no static column {name!r}")
        _value(table, (name, kind), value, null=True)
    top = batch.statics.get(table.guard)
    if not isinstance(top, int) or (batch.expect is not None and top <= batch.expect):
        raise ValueError(f"{table.name}: the batch must set {table.guard} above {batch.expect}, not to {top!r}")
    if not table.clustering and (batch.puts or batch.drops):
        raise ValueError(f"{table.name} has no rows, only statics")
    width = len(table.clustering)
    for row in _odd(table, "row", batch.puts):
        _whole(table, "row", table.clustering, row[:width])
        _whole(table, "row", table.columns, row[width:], null=True)
    for key in batch.drops:
        _whole(table, "clustering", table.clustering, key)


def check_writes(writes: Sequence[Write]) -> None:
    """Raise ValueError unless every write fits its table."""
    #: by table and whether they are deletions
    rows: dict[tuple[str, bool], tuple[Table, list[Values]]] = {}
    for write in writes:
        table, columns = write.table, write.columns
        where = (table.name, columns is None)
        if where not in rows:
            if table.guard:
                raise ValueError(f"{table.name} is a guarded table: it takes commit(), not write()")
            rows[where] = table, []
        rows[where][1].append(write.partition + write.clustering + (columns or ()))
        if not 0 <= write.stamp <= _MAX:
            raise ValueError(f"{table.name}: a stamp is from 0 to 2^63 - 1, not {write.stamp}")
    for (_, dead), (table, some) in rows.items():
        if _odd(table, "key" if dead else "all", some):
            _careful(writes)
            return


def _careful(writes: Sequence[Write]) -> None:
    for write in writes:
        table = write.table
        _whole(table, "partition", table.partition, write.partition)
        _whole(table, "clustering", table.clustering, write.clustering)
        if write.columns is not None:
            _whole(table, "columns", table.columns, write.columns, null=True)


def check_read(table: Table, partition: Values, prefix: Values, after: Values, among: Values, limit: int) -> None:
    """Raise ValueError unless such a read makes sense."""
    _whole(table, "partition", table.partition, partition)
    for part, values in (("prefix", prefix), ("after", after)):
        if values:
            if len(values) > len(table.clustering):
                raise ValueError(f"{table.name}: {part} has {len(values)} values for {len(table.clustering)} columns")
            _whole(table, part, table.clustering[: len(values)], values)
    if among:
        if after or len(prefix) >= len(table.clustering):
            raise ValueError(f"{table.name}: among is of the column behind the prefix, and not together with after")
        column = table.clustering[len(prefix)]
        for value in among:
            _value(table, column, value, null=False)
    if limit < 0:
        raise ValueError(f"{table.name}: limit is 0 (all) or more, not {limit}")


def check_row(table: Table, partition: Values, key: Values) -> None:
    """Raise ValueError unless this is the whole key of a row that has columns."""
    if not table.columns:
        raise ValueError(f"{table.name} has no columns to read")
    if _odd(table, "key", (partition + key,)):
        _whole(table, "partition", table.partition, partition)
        _whole(table, "clustering", table.clustering, key)


def beyond(prefix: Values, after: Values) -> Values | None:
    """What must be exceeded behind the prefix; () nothing, None: no row can be both."""
    common = min(len(prefix), len(after))
    head, start = cast("tuple[int, ...]", prefix[:common]), cast("tuple[int, ...]", after[:common])
    if head > start:
        return ()
    if head < start or (after and len(after) <= len(prefix)):
        return None
    return after[common:]


def _whole(table: Table, part: str, columns: Columns, values: Values, null: bool = False) -> None:
    if len(values) != len(columns):
        raise ValueError(f"{table.name}: {part} has {len(values)} values for {len(columns)} columns")
    for column, value in zip(columns, values, strict=True):
        _value(table, column, value, null)


def _odd(table: Table, part: str, rows: Iterable[Values]) -> list[Values]:
    """Those that fail the quick look, which nearly all pass: as many values as columns, each of just its type."""
    found = _SHAPES.get((table.name, part))
    if found is None:
        columns = [column for name in _PARTS[part] for column in getattr(table, name)]
        kinds = tuple([_PYTHON[kind] for _, kind in columns])
        found = _SHAPES[table.name, part] = kinds, [n for n, kind in enumerate(kinds) if kind is int]
    kinds, numbers = found
    odd = []
    for row in rows:
        if tuple(map(type, row)) != kinds:
            odd.append(row)
            continue
        for n in numbers:
            if not -_MAX <= row[n] <= _MAX:  # type: ignore[operator]
                odd.append(row)
                break
    return odd


@cache
def _statics(name: str) -> dict[str, Type]:
    return {column: kind for table in GUARDED if table.name == name for column, kind in table.statics}


def _value(table: Table, column: tuple[str, Type], value: Value, null: bool) -> None:
    """The careful look at one value: null, an enum member, or wrong."""
    name, kind = column
    if value is None:
        if not null:
            raise ValueError(f"{table.name}.{name} is part of a key and cannot be null")
    elif not isinstance(value, _PYTHON[kind]):
        raise ValueError(f"{table.name}.{name} is a {kind}, not {type(value).__name__}")
    elif isinstance(value, int) and not -_MAX <= value <= _MAX:
        raise ValueError(f"{table.name}.{name} does not fit 64 bits")
