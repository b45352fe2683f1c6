"""What control and management need of a database, stated in terms of what Cassandra does well.

Reads go by partition, in clustering order, or are of one row. Guarded tables (see `schema`) change by one conditional
batch inside one partition; free tables take idempotent writes. There is nothing else: no transactions across
partitions, no scans but `partitions`. Implementations: `planes.store.sqlite` (embedded), Cassandra.
tests/contract/test_store.py is the suite that each must pass.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from planes.model import errors
from planes.store.schema import Table

Value = int | str | bytes | None
Values = tuple[Value, ...]


class StoreError(errors.Unavailable):
    """Base of what a store raises; where nobody handles it, the client is told to come back."""


class Unavailable(StoreError):
    """The store cannot answer; a read or a write that certainly did not happen."""


class UnknownOutcome(StoreError):
    """A write may or may not have happened, or may still happen (rule D5)."""


class Partition(Struct, frozen=True):
    """One read of one partition. `statics` and row columns are in the order of the table's definition.

    `exists` is False when a guarded partition has never been written; of a free table, when no row was found. A row is
    clustering values, then columns.
    """

    statics: Values
    rows: list[Values]
    exists: bool = True


class Batch(Struct, frozen=True):
    """A conditional batch inside one partition of a guarded table: all of it happens, or none.

    Applies if the guard column equals `expect` (None: the partition does not exist yet). `statics` names columns to
    set; it must hold the guard with a value above `expect`. `puts` are whole rows (clustering values, then columns);
    `drops` are clustering values.
    """

    table: Table
    partition: Values
    expect: int | None
    statics: dict[str, Value]
    puts: Sequence[Values] = ()
    drops: Sequence[Values] = ()


class Write(Struct, frozen=True):
    """One idempotent write into a free table. `columns` None deletes the row. The highest `stamp` of a row wins."""

    table: Table
    partition: Values
    clustering: Values
    columns: Values | None
    stamp: int


class Store(Protocol):
    async def open(self) -> None:
        """Connect; create what is missing of the schema."""

    async def close(self) -> None:
        """Finish what was accepted; afterwards every call raises Unavailable."""

    async def now(self) -> int:
        """The store's own clock, µs since the epoch (rule S22). Raises StoreError while the store takes no writes."""

    async def read(
        self,
        table: Table,
        partition: Values,
        *,
        prefix: Values = (),
        after: Values = (),
        among: Values = (),
        limit: int = 0,
        serial: bool = False,
    ) -> Partition:
        """Statics and rows of one moment; where no row is found, the statics may be of a moment before.

        Rows come in clustering order: those whose clustering begins with `prefix`, after the clustering values `after`
        (which may be shorter than the whole key), `limit` at most (0: all). `among`, instead of `after`: only those
        whose clustering goes on behind the prefix with one of these values, if any are given. `serial`: settles every
        conditional write that the store has begun. One without an answer may begin later: only a guard that has changed
        shuts it out.

        For a table without clustering the rows are empty. Raises Unavailable.
        """

    async def row(self, table: Table, partition: Values, key: Values) -> Values | None:
        """The columns of the row with these clustering values, or None: of a table with columns.

        Nothing of its partition besides, which is the least that a read can cost. Raises Unavailable.
        """

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        """Apply a conditional batch; False when the condition did not hold. Durable when it returns.

        `before` are idempotent writes that are durable before the batch can apply: nobody ever sees the batch without
        them. They may have happened whatever becomes of the batch. Raises UnknownOutcome, or Unavailable when the batch
        certainly did not happen.
        """

    async def write(self, writes: Sequence[Write]) -> None:
        """Idempotent writes, in no particular order, not atomic together; durable when it returns.

        Raises UnknownOutcome or Unavailable; the caller may simply write again.
        """

    async def partitions(self, table: Table, *, after: Values = (), limit: int = 0) -> list[Values]:
        """Partition keys in an order of the store's own, each once: those after the key `after`, `limit` at most (0:
        all). Of a small table (hosts, leases), or for repair: a full scan."""


async def in_turn(store: Store, batch: Batch, before: Sequence[Write]) -> bool:
    """`commit` for adapters without a transaction that holds both: first the writes, then the batch."""
    if before:
        try:
            await store.write(before)
        except UnknownOutcome as error:  # of the writes; the batch was never tried
            raise Unavailable(*error.args) from error
    return await store.commit(batch)
