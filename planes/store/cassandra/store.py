"""The store that grows with its users: a Cassandra cluster, for many API instances at once.

Chosen by the composition root; used through `planes.store.protocol.Store`, from one event loop. A batch is one
conditional batch of one partition; free rows go one batch per partition with their stamp as the timestamp. Must never
report an unknown outcome as a failure, nor answer a write before a quorum of the local data center has it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

from planes.store.cassandra import cql, migrations
from planes.store.cassandra.session import READ, SERIAL, CassandraSession, Line
from planes.store.cassandra.sharing import Sharing
from planes.store.cassandra.url import Address, parse
from planes.store.checks import beyond, check_batch, check_read, check_row, check_writes
from planes.store.protocol import Batch, Partition, Unavailable, Value, Values, Write, in_turn
from planes.store.schema import CHANGES, Table

#: free rows of one partition in one request
ROWS = 100
#: traces in one request, so many that the servers do not warn of it
TRACES = 8
#: partitions that one `write` has under way at a time
WIDTH = 256
#: reads of a partition that changes under them, before the caller is told to come back
ATTEMPTS = 8
#: 100 ns steps from the start of UUID time to the epoch
_EPOCH = 0x01B21DD213814000


class CassandraStore:
    """`url` as `planes.store.cassandra.url` explains. Raises Invalid for one that makes no sense."""

    def __init__(self, url: str) -> None:
        self._address: Address = parse(url)
        self._keyspace = self._address.keyspace
        self._session: CassandraSession | None = None
        #: conditional batches that this process sent and has no answer to, also those that their caller gave up
        self._under_way: dict[tuple[str, Values], set[asyncio.Task[bool]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sharing: Sharing | None = None

    async def open(self) -> None:
        if self._session is not None:
            return
        session = CassandraSession(self._address)
        await session.connect()
        try:
            await migrations.migrate(session, self._address)
        except BaseException:
            await session.close()
            raise
        self._session, self._sharing = session, Sharing(session.idempotent, ROWS)

    async def close(self) -> None:
        session, sharing, self._session, self._sharing = self._session, self._sharing, None, None
        if session is None or sharing is None:
            return
        while self._tasks:
            await asyncio.wait(self._tasks)
        await sharing.idle()
        await session.close()

    @property
    def session(self) -> CassandraSession:
        """For counting and listing statements. Raises Unavailable while the store is closed."""
        if self._session is None:
            raise Unavailable("The store is not open.")
        return self._session

    async def now(self) -> int:
        """A server's clock, from a row that a quorum has just taken."""
        session = self.session
        beat = f"INSERT INTO {self._keyspace}.clock (name, at) VALUES (?, now())"
        await session.idempotent([(beat, ("beat",))])
        rows = await session.rows(READ, ("SELECT now() FROM system.local WHERE key = ?", ("local",)))
        return (cast(UUID, rows[0][0]).time - _EPOCH) // 10

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
        session, profile = self.session, READ
        if serial and table.guard:
            profile = SERIAL
            if waiting := self._under_way.get((table.name, partition)):
                await asyncio.wait(waiting)
        statements = cql.of(self._keyspace, table.name)
        past = beyond(prefix, after) if table.clustering else ()
        line: Line | None = None
        if past is not None:
            some, most = (among,) if among else (), (min(limit, 2**31 - 1),) if limit else ()
            values = (*partition, *prefix, *past, *some, *most)
            line = (statements.read(len(prefix), len(past), bool(among), bool(limit)), values)
        if table.guard:
            return await self._guarded(statements, partition, line, profile, limit)
        rows = await session.rows(profile, line) if line else []
        return Partition((), rows, bool(rows))

    async def row(self, table: Table, partition: Values, key: Values) -> Values | None:
        """Of one moment by itself: no guard is needed to show it."""
        check_row(table, partition, key)
        line = (cql.of(self._keyspace, table.name).row, partition + key)
        rows = (await self.session.page(READ, line, None)).rows
        return rows[0] if rows else None

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        """Not undone by giving up: a cancelled call's batch is still waited for by serial reads and by `close`."""
        check_batch(batch)
        if before:
            return await in_turn(self, batch, before)
        session = self.session
        where = (batch.table.name, batch.partition)
        task = asyncio.create_task(session.conditional(self._conditional(batch)))
        self._tasks.add(task)
        self._under_way.setdefault(where, set()).add(task)
        task.add_done_callback(lambda done: self._answered(where, done))
        return await asyncio.shield(task)

    async def write(self, writes: Sequence[Write]) -> None:
        """Every row is tried, however others end; then the error that leaves the most open is raised."""
        check_writes(writes)
        sharing = self._sharing
        if sharing is None:
            raise Unavailable("The store is not open.")
        groups, errors = self._by_partition(writes), list[BaseException]()
        for at in range(0, len(groups), WIDTH):
            shares = [
                sharing.add(where, lines, TRACES if where[0] == CHANGES.name else 1)
                for where, lines in groups[at : at + WIDTH]
            ]
            await asyncio.wait(shares)
            errors += [error for share in shares if (error := share.exception())]
        if errors:
            raise next((error for error in errors if not isinstance(error, Unavailable)), errors[0])

    async def partitions(self, table: Table, *, after: Values = (), limit: int = 0) -> list[Values]:
        text = cql.of(self._keyspace, table.name).partitions(following=bool(after), limited=bool(limit))
        return await self.session.rows(READ, (text, (*after, *((limit,) if limit else ()))))

    async def _guarded(
        self, statements: cql.Statements, partition: Values, line: Line | None, profile: str, limit: int
    ) -> Partition:
        """Statics and rows of one moment, for every row carries the guard; with no rows, statics of a moment before."""
        table, session = statements.table, self.session
        width, none = len(table.statics), (None,) * len(table.statics)
        guard = [name for name, _ in table.statics].index(table.guard)
        before: Values | None = None
        for _ in range(ATTEMPTS):
            rows = await session.rows(profile, line) if line else []
            if rows:
                statics: Values = rows[0][:width]
                if rows[-1][guard] != statics[guard] or any(row[guard] != statics[guard] for row in rows):
                    continue
                alone = len(rows[0]) == width or rows[0][width] is None
                return Partition(statics, [] if alone else [row[width:] for row in rows])
            found = await session.rows(profile, (statements.statics, partition))
            if not found:
                return Partition(none, [], False)
            if line is not None and before is not None:
                return Partition(before, [])
            before = found[0][len(table.partition) :]
            if line is None:
                return Partition(before, [])
        raise Unavailable(f"{table.name} {partition} changes faster than it can be read.")

    def _conditional(self, batch: Batch) -> list[Line]:
        statements = cql.of(self._keyspace, batch.table.name)
        partition = batch.partition
        guard = statements.guard(tuple(batch.statics))
        lines: list[Line] = [(guard, (*batch.statics.values(), *partition, batch.expect))]
        lines += [(statements.put, (*partition, *row)) for row in batch.puts]
        lines += [(statements.drop, (*partition, *key)) for key in batch.drops]
        return lines

    def _by_partition(self, writes: Sequence[Write]) -> list[tuple[tuple[str, Values], list[Line]]]:
        """Rows by table and partition, as many together as a request holds.

        Traces have a partition for each row, are written by the hundred and read by hardly anybody: some share a
        request all the same, which costs the servers less than as many requests.
        """
        groups: dict[tuple[str, Values], list[Line]] = {}
        traces = 0
        for write in writes:
            statements = cql.of(self._keyspace, write.table.name)
            line: tuple[str, tuple[Value, ...]]
            if write.columns is None:
                line = (statements.erase, (write.stamp, *write.partition, *write.clustering))
            else:
                line = (statements.write, (*write.partition, *write.clustering, *write.columns, write.stamp))
            partition = write.partition
            if write.table is CHANGES:
                partition, traces = (traces // TRACES,), traces + 1
            groups.setdefault((write.table.name, partition), []).append(line)
        return [(where, group[at : at + ROWS]) for where, group in groups.items() for at in range(0, len(group), ROWS)]

    def _answered(self, where: tuple[str, Values], task: "asyncio.Task[bool]") -> None:
        tasks = self._under_way[where]
        tasks.discard(task)
        if not tasks:
            del self._under_way[where]
        self._over(task)

    def _over(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone
