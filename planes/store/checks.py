"""Whether what a caller hands to a store fits the table definition; the same answer from every adapter.

Called by adapters before anything is queued or sent. A misfit is a bug of the caller: ValueError, nothing happens.
"""

from collections.abc import Iterable, Sequence

from planes.store.protocol import Batch, Value, Values, Write
from planes.store.schema import Table, Type

_PYTHON: dict[Type, type] = {Type.INT: int, Type.TEXT: str, Type.BLOB: bytes}
_MAX = 2**63 - 1
Columns = Sequence[tuple[str, Type]]


def check_batch(batch: Batch) -> None:
    """Raise ValueError unless the batch fits its table and raises the guard."""
    table = batch.table
    if not table.guard:
        raise ValueError(f"{table.name} is a free table: it takes write(), not commit()")
    _whole(table, "partition", table.partition, batch.partition)
    for name, value in batch.statics.items():
        kind = next((kind for column, kind in table.statics if column == name), None)
        if kind is None:
            raise ValueError(f"{table.name} has no static column {name!r}")
        _value(table, (name, kind), value, null=True)
    top = batch.statics.get(table.guard)
    if not isinstance(top, int) or (batch.expect is not None and top <= batch.expect):
        raise ValueError(f"{table.name}: the batch must set {table.guard} above {batch.expect}, not to {top!r}")
    if not table.clustering and (batch.puts or batch.drops):
        raise ValueError(f"{table.name} has no rows, only statics")
    width = len(table.clustering)
    for row in batch.puts:
        _whole(table, "row", table.clustering, row[:width])
        _whole(table, "row", table.columns, row[width:], null=True)
    for key in batch.drops:
        _whole(table, "clustering", table.clustering, key)


def check_writes(writes: Iterable[Write]) -> None:
    """Raise ValueError unless every write fits its table."""
    for write in writes:
        table = write.table
        if table.guard:
            raise ValueError(f"{table.name} is a guarded table: it takes commit(), not write()")
        _whole(table, "partition", table.partition, write.partition)
        _whole(table, "clustering", table.clustering, write.clustering)
        if write.columns is not None:
            _whole(table, "columns", table.columns, write.columns, null=True)
        if not 0 <= write.stamp <= _MAX:
            raise ValueError(f"{table.name}: a stamp is from 0 to 2^63 - 1, not {write.stamp}")


def check_read(table: Table, partition: Values, prefix: Values, after: Values, limit: int) -> None:
    """Raise ValueError unless such a read makes sense."""
    _whole(table, "partition", table.partition, partition)
    for part, values in (("prefix", prefix), ("after", after)):
        if values:
            if len(values) > len(table.clustering):
                raise ValueError(f"{table.name}: {part} has {len(values)} values for {len(table.clustering)} columns")
            _whole(table, part, table.clustering[: len(values)], values)
    if limit < 0:
        raise ValueError(f"{table.name}: limit is 0 (all) or more, not {limit}")


def _whole(table: Table, part: str, columns: Columns, values: Values, null: bool = False) -> None:
    if len(values) != len(columns):
        raise ValueError(f"{table.name}: {part} has {len(values)} values for {len(columns)} columns")
    for column, value in zip(columns, values, strict=True):
        kind = type(value)
        if kind is not _PYTHON[column[1]] or (kind is int and not -_MAX <= value <= _MAX):  # type: ignore[operator]
            _value(table, column, value, null)


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
