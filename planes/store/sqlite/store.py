"""The embedded store: one SQLite file, for a cloud on one machine and for tests.

Chosen by the composition root; used through `planes.store.protocol.Store`, from one event loop. Reads of a few rows run
in the loop's thread on a connection of their own; longer ones pause every `PAGE` rows, on one snapshot. Writes go
through `Writer`. Must never answer a write before the disk has it, nor merge steps that a caller awaits one by one.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from planes.store.checks import beyond, check_batch, check_read, check_row, check_writes
from planes.store.protocol import Batch, Partition, StoreError, Unavailable, Value, Values, Write
from planes.store.schema import FREE, Table
from planes.store.sqlite import file, sql
from planes.store.sqlite.writer import Run, Writer

log = logging.getLogger(__name__)

#: rows that are read without a pause
PAGE = 200
#: how long a delete is remembered against older writes that arrive after it, µs
TOMBSTONE_US = 86_400_000_000
#: seconds between looks for rows to remove for good, and rows removed at a time
PURGE_EVERY = 60.0
PURGE_ROWS = 200
#: writes that share one job
_CHUNK = 128

#: a statement's text with its values, but for the limit
Line = tuple[str, Values]


class SqliteStore:
    """`clock` gives µs since the epoch. `threaded`: COMMIT waits for the disk in a thread, as it should where disks are
    slow; without it, steps end in the order in which they begin, and none gives way to another.
    """

    def __init__(self, path: str | Path, clock: Callable[[], int] | None = None, *, threaded: bool = True) -> None:
        self._threaded = threaded
        self._path = Path(path)
        self._clock = clock or _now_us
        self._lock = -1
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._scanning: sqlite3.Connection | None = None
        self._scan = asyncio.Lock()
        self._writer: Writer | None = None
        self._purging: asyncio.Task[None] | None = None

    async def open(self) -> None:
        if self._writer is not None:
            return
        self._lock = file.lock(self._path)
        try:
            self._writing = file.connect(self._path)
            file.prepare(self._writing)
            self._reading, self._scanning = file.connect(self._path), file.connect(self._path)
        except (sqlite3.Error, StoreError) as error:
            self._release()
            if isinstance(error, StoreError):
                raise Unavailable(f"{self._path}: {error}") from error
            raise Unavailable(f"{self._path}: {file.meaning(error)}") from error
        self._writer = Writer(self._writing, self._threaded)
        self._purging = asyncio.create_task(self._purge_always(), name="sqlite-purge")

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if self._purging is not None:
            self._purging.cancel()
        await writer.close()
        async with self._scan:
            self._release()

    async def now(self) -> int:
        writer = self._open()
        if writer.failing:  # only then is it worth a write to know whether the disk takes one again
            await writer.submit(_touch, 1)
        return self._clock()

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
        check_read(table, partition, prefix, after, among, limit)
        writer = self._open()
        if serial and writer.changes((table.name, partition)):
            await writer.submit(_nothing, 0)
            self._open()
        statements = sql.of(table.name)
        past = beyond(prefix, after) if table.clustering else None
        line: Line | None = None
        if past is not None:
            some = sql.padded(among)
            line = statements.read(len(prefix), len(past), len(some)), (*partition, *prefix, *past, *some)
        most = limit if 0 < limit <= PAGE else PAGE + 1
        try:
            statics, rows = _snapshot(cast(sqlite3.Connection, self._reading), statements, partition, line, most)
            if line is not None and len(rows) > PAGE:
                statics, rows = await self._long(statements, partition, line, limit or -1)
            if table.guard:
                return Partition(statics or (None,) * len(table.statics), rows, statics is not None)
            return Partition((), rows, bool(rows))
        except sqlite3.Error as error:
            raise file.meaning(error) from error

    async def row(self, table: Table, partition: Values, key: Values) -> Values | None:
        check_row(table, partition, key)
        self._open()
        text = sql.of(table.name).read(len(key), 0, 0)
        try:
            connection = cast(sqlite3.Connection, self._reading)
            found = connection.execute(text, (*partition, *key, 1)).fetchone()
        except sqlite3.Error as error:
            raise file.meaning(error) from error
        return found[len(key) :] if found else None

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        check_batch(batch)
        check_writes(before)
        writer = self._open()
        announce, conditional = _idempotent(before, self._clock()), _conditional(batch)

        def run(connection: sqlite3.Connection) -> Any:
            announce(connection)
            return conditional(connection)

        rows = 1 + len(before) + len(batch.puts) + len(batch.drops)
        return cast(bool, await writer.submit(run, rows, (batch.table.name, batch.partition)))

    async def write(self, writes: Sequence[Write]) -> None:
        check_writes(writes)
        writer = self._open()
        if len(writes) <= _CHUNK:
            if writes:
                await writer.submit(_idempotent(writes, self._clock()), len(writes))
            return
        for start in range(0, len(writes), _CHUNK):
            chunk = writes[start : start + _CHUNK]
            await writer.submit(_idempotent(chunk, self._clock()), len(chunk))

    async def partitions(self, table: Table, *, after: Values = (), limit: int = 0) -> list[Values]:
        self._open()
        statements = sql.of(table.name)
        #: in a free table a partition is found by stepping over the one before, so each costs the same, however long
        page = PAGE if table.guard else 1
        found: list[Values] = []
        last = after
        while True:
            if limit:
                page = min(page, limit - len(found))
            if not len(found) % PAGE and found:
                await asyncio.sleep(0)
                self._open()
            try:
                connection = cast(sqlite3.Connection, self._reading)
                keys = connection.execute(statements.partitions(bool(last)), (*last, page)).fetchall()
            except sqlite3.Error as error:
                raise file.meaning(error) from error
            found += keys
            if len(keys) < page or len(found) == limit:
                return found
            last = keys[-1]

    async def purge(self) -> int:
        """Remove what has outlived its table's ttl, and old tombstones; how many. Runs by itself every minute."""
        total = 0
        for table in FREE:
            removed = PURGE_ROWS
            while removed == PURGE_ROWS:
                removed = await self._open().submit(partial(_purge, table, self._clock()), PURGE_ROWS)
                total += removed
        return total

    async def _purge_always(self) -> None:
        while True:
            await asyncio.sleep(PURGE_EVERY)
            try:
                await self.purge()
            except StoreError as error:
                log.warning("Old rows are not removed: %s", error)

    def _open(self) -> Writer:
        if self._writer is None:
            raise Unavailable("The store is not open.")
        return self._writer

    async def _long(
        self, statements: sql.Statements, partition: Values, line: Line, limit: int
    ) -> tuple[Values | None, list[Values]]:
        """Like `_snapshot`, pausing. On its own connection: an open snapshot would hide new commits from others."""
        async with self._scan:
            self._open()
            connection = cast(sqlite3.Connection, self._scanning)
            connection.execute("BEGIN")
            try:
                statics = _statics(connection, statements, partition)
                text, values = line
                cursor = connection.execute(text, (*values, limit))
                rows: list[Values] = []
                while page := cursor.fetchmany(PAGE):
                    rows += page
                    await asyncio.sleep(0)
                return statics, rows
            finally:
                file.rollback(connection)

    def _release(self) -> None:
        for connection in (self._scanning, self._reading, self._writing):
            if connection is not None:
                connection.close()
        self._writing = self._reading = self._scanning = None
        os.close(self._lock)


def _now_us() -> int:
    return time.time_ns() // 1000


def _nothing(_: sqlite3.Connection) -> None:
    """A job that only waits for its turn."""


def _touch(connection: sqlite3.Connection) -> None:
    """A job that writes one page as it is."""
    connection.execute(f"PRAGMA user_version = {sql.VERSION}")


def _statics(connection: sqlite3.Connection, statements: sql.Statements, partition: Values) -> Values | None:
    if not statements.table.statics:
        return None
    return cast("Values | None", connection.execute(statements.read_statics, partition).fetchone())


def _snapshot(
    connection: sqlite3.Connection,
    statements: sql.Statements,
    partition: Values,
    line: Line | None,
    limit: int,
) -> tuple[Values | None, list[Values]]:
    """Statics and rows of the same moment."""
    if line is None:
        return _statics(connection, statements, partition), []
    text, values = line
    if not statements.table.statics:
        return None, connection.execute(text, (*values, limit)).fetchall()
    connection.execute("BEGIN")
    try:
        statics = _statics(connection, statements, partition)
        if statics is None:
            return None, []
        return statics, connection.execute(text, (*values, limit)).fetchall()
    finally:
        file.rollback(connection)


def _conditional(batch: Batch) -> Run:
    """The batch as a job: True if the condition held."""
    statements, partition = sql.of(batch.table.name), batch.partition
    create, change = statements.statics(tuple(batch.statics))
    values: tuple[Value, ...] = tuple(batch.statics.values())
    puts = [partition + row for row in batch.puts]
    drops = [partition + key for key in batch.drops]

    def run(connection: sqlite3.Connection) -> bool:
        if batch.expect is None:
            done = connection.execute(create, (*partition, *values))
        else:
            done = connection.execute(change, (*values, *partition, batch.expect))
        if done.rowcount == 0:
            return False
        for text, row in statements.put.each(puts):
            connection.execute(text, row)
        if drops:
            connection.executemany(statements.drop, drops)
        return True

    return run


def _idempotent(writes: Sequence[Write], now: int) -> Run:
    """The writes as a job, table by table."""
    rows: dict[str, list[Values]] = {}
    for write in writes:
        table = write.table
        if write.columns is None:
            rest: Values = (*(None,) * len(table.columns), write.stamp, 1, now + TOMBSTONE_US)
        else:
            rest = (*write.columns, write.stamp, 0, now + table.ttl * 1_000_000 if table.ttl else None)
        rows.setdefault(table.name, []).append(write.partition + write.clustering + rest)

    def run(connection: sqlite3.Connection) -> None:
        for name, values in rows.items():
            for text, row in sql.of(name).write.each(values):
                connection.execute(text, row)

    return run


def _purge(table: Table, now: int, connection: sqlite3.Connection) -> int:
    return connection.execute(sql.of(table.name).purge, (now, PURGE_ROWS)).rowcount
