"""Everything that one store holds, into another one: any adapter to any.

Called by `alcor store copy`. Nothing of the source is changed. What is in the target already is compared and left, so a
copy that was cut off goes on where it was, and one that is repeated writes nothing. Needs the memory of a few
partitions. Must never run while an instance works on either store, nor overwrite what is newer than the source.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

from msgspec import Struct

from planes.model.errors import Conflict
from planes.store.protocol import Batch, Partition, Store, StoreError, Value, Values, Write
from planes.store.schema import GUARDED, LEASES, PORT_STATUS, TABLES, Table

#: partitions under way at a time, keys of them read at a time, rows of a batch and of a read
WIDTH, KEYS, ROWS, PAGE = 8, 500, 100, 1000
#: tries of one partition while a store does not answer, and seconds between the first two
TRIES, PAUSE = 6, 0.2
#: a lease that ends later than this is not believed, µs
LONGEST = 300_000_000

Progress = Callable[[str, int, int], None]
Pair = tuple[Values | None, Values | None]


class Counted(Struct):
    """Of one table: what was compared, and rows and partitions that had to be written."""

    partitions: int = 0
    rows: int = 0
    written: int = 0


async def quiet(store: Store, name: str, say: Callable[[str], None]) -> None:
    """Return when no instance works on the store, waiting for leases of those that have ended. Raises Conflict."""
    first: dict[Values, int] = {}
    while True:
        now, wait = await store.now(), 0
        for key in await store.partitions(LEASES):
            read = await store.read(LEASES, key, serial=True)
            until, owner = cast(int, read.statics[0] or 0), str(read.statics[1])
            if until > first.setdefault(key, until):
                raise Conflict(f"Instance {owner} works on the {name}: stop every API of that cloud first.")
            if now < until < now + LONGEST:
                wait = max(wait, until - now)
        if not wait:
            return
        say(f"The {name} was in use a moment ago; waiting {wait // 1_000_000 + 1} s for its leases to end.")
        await asyncio.sleep(min(wait / 1e6 + 0.01, 5))


class Copy:
    """One copy. `beside`: other data of the target stays beside what is copied, instead of being refused."""

    def __init__(self, source: Store, target: Store, progress: Progress, *, beside: bool = False) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._beside = beside
        self._began = 0
        self.counted: dict[str, Counted] = {table.name: Counted() for table in TABLES}

    async def run(self) -> None:
        """Copy, then compare every row of both. Raises Conflict for what must not be, StoreError when a store fails."""
        self._began = await self._source.now()
        if not self._beside:
            await self._only_ours()
        for verify in (False, True):
            for table in TABLES:
                counted = self.counted[table.name]
                counted.partitions = counted.rows = 0
                await self._table(table, counted, verify)

    async def _only_ours(self) -> None:
        """Raise Conflict when the target has a partition that the source has not."""
        for table in GUARDED:
            async for page in _keys(self._target, table):
                for key in page if table is not LEASES else ():
                    if not (await self._source.read(table, key, limit=1)).exists:
                        raise Conflict(
                            f"The target holds other data: {table.name} {key} is not in the source. Empty it, or say "
                            "--beside to keep both."
                        )

    async def _table(self, table: Table, counted: Counted, verify: bool) -> None:
        async for page in _keys(self._source, table):
            for at in range(0, len(page), WIDTH):
                await asyncio.gather(*(self._patiently(table, key, counted, verify) for key in page[at : at + WIDTH]))
                self._progress(table.name + (" compared" if verify else ""), counted.partitions, counted.rows)

    async def _patiently(self, table: Table, key: Values, counted: Counted, verify: bool) -> None:
        one = self._guarded if table.guard else self._free
        for attempt in range(TRIES):
            try:
                rows, written = await one(table, key, verify)
            except StoreError:
                if attempt == TRIES - 1:
                    raise
                await asyncio.sleep(PAUSE * 2**attempt)
            else:
                counted.partitions += 1
                counted.rows += rows
                counted.written += written
                return

    # -- guarded tables ---------------------------------------------------------------------------------------------

    async def _guarded(self, table: Table, key: Values, verify: bool) -> tuple[int, int]:
        """Rows, and rows written. The guard reaches the source's value with the last batch: only then it is whole."""
        mine, theirs = await asyncio.gather(self._source.read(table, key), self._target.read(table, key, serial=True))
        if table is LEASES and theirs.exists and _guard(table, theirs) >= _guard(table, mine):
            return 0, 0
        if mine == theirs:
            return len(mine.rows), 0
        if verify:
            raise Conflict(f"{table.name} {key} differs after the copy: one of the stores is in use.")
        width = len(table.clustering)
        old = {row[:width]: row for row in theirs.rows}
        puts = [row for row in mine.rows if old.pop(row[:width], None) != row]
        edits: list[tuple[list[Values], list[Values]]] = [
            (puts[at : at + ROWS], []) for at in range(0, len(puts), ROWS)
        ]
        drops = list(old)
        edits += [([], drops[at : at + ROWS]) for at in range(0, len(drops), ROWS)]
        edits = edits or [([], [])]
        guard, expect = _guard(table, mine), _guard(table, theirs) if theirs.exists else None
        names = [name for name, _ in table.statics]
        statics: dict[str, Value] = dict(zip(names, mine.statics, strict=True))
        for left, (some, gone) in zip(reversed(range(len(edits))), edits, strict=True):
            if expect is not None and guard - left <= expect:
                raise Conflict(f"{table.name} {key} of the target is newer than the source's: it has been used since.")
            batch = Batch(table, key, expect, {**statics, table.guard: guard - left}, some, gone)
            if not await self._target.commit(batch):
                raise Conflict(f"{table.name} {key} of the target changes while it is written: it is in use.")
            expect = guard - left
        return len(mine.rows), len(puts) + len(drops) or 1

    # -- free tables ------------------------------------------------------------------------------------------------

    async def _free(self, table: Table, key: Values, verify: bool) -> tuple[int, int]:
        rows, written = 0, 0
        writes: list[Write] = []
        async for mine, theirs in _pairs(self._source, self._target, table, key):
            rows += mine is not None
            # Rows that expire may do so first in the source.
            if mine == theirs or (mine is None and table.ttl):
                continue
            if verify:
                raise Conflict(f"{table.name} {key} differs after the copy: one of the stores is in use.")
            writes.append(self._write(table, key, mine, theirs))
            if len(writes) == ROWS:
                await self._target.write(writes)
                written += len(writes)
                writes = []
        if writes:
            await self._target.write(writes)
        return rows, written + len(writes)

    def _write(self, table: Table, key: Values, mine: Values | None, theirs: Values | None) -> Write:
        """With a stamp that is above an earlier copy's and below all that an instance will write."""
        row, width = cast(Values, mine or theirs), len(table.clustering)
        columns = row[width:] if mine else None
        stamp = self._began
        if table is PORT_STATUS:
            stamp = cast(int, row[2]) << 12  # as acks stamp it: its revision leads
        elif table.ttl:
            stamp = cast(int, row[0])  # its time: rows expire in the order of their stamps
        return Write(table, key, row[:width], columns, stamp + (theirs is not None))


def _guard(table: Table, read: Partition) -> int:
    return cast(int, read.statics[[name for name, _ in table.statics].index(table.guard)])


async def _keys(store: Store, table: Table) -> AsyncIterator[list[Values]]:
    """Partition keys, some at a time."""
    after: Values = ()
    while True:
        page = await store.partitions(table, after=after, limit=KEYS)
        yield page
        if len(page) < KEYS:
            return
        after = page[-1]


async def _rows(store: Store, table: Table, key: Values) -> AsyncIterator[Values]:
    after: Values = ()
    while True:
        rows = (await store.read(table, key, after=after, limit=PAGE)).rows
        for row in rows:
            yield row
        if len(rows) < PAGE:
            return
        after = rows[-1][: len(table.clustering)]


async def _pairs(source: Store, target: Store, table: Table, key: Values) -> AsyncIterator[Pair]:
    """The rows of a partition in both stores, side by side; None where one has no such row."""
    width = len(table.clustering)
    ours, theirs = _rows(source, table, key), _rows(target, table, key)

    def following(rows: AsyncIterator[Values]) -> Awaitable[Values | None]:
        return anext(rows, None)

    a, b = await following(ours), await following(theirs)
    while a is not None or b is not None:
        left = a is not None and (b is None or a[:width] <= b[:width])
        right = b is not None and (a is None or b[:width] <= a[:width])
        yield (a if left else None), (b if right else None)
        if left:
            a = await following(ours)
        if right:
            b = await following(theirs)
