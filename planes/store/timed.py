"""A store with a stopwatch: how long each call took and how it ended, for metrics.

Wrapped around the real one by the composition root. It adds a microsecond to a call and changes nothing of it.
"""

from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

from observability.latency import Counts
from planes.store.protocol import Batch, Partition, Store, StoreError, UnknownOutcome, Values, Write
from planes.store.schema import Table


class TimedStore:
    """Implements `planes.store.protocol.Store`."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        #: by operation and outcome: ok, refused (a condition did not hold), unknown, error
        self.calls: dict[tuple[str, str], Counts] = {}
        self.rows_written = 0
        #: calls under way
        self.flying = 0

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    async def now(self) -> int:
        with _Watch(self, "now"):
            return await self._inner.now()

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
        with _Watch(self, "read"):
            return await self._inner.read(
                table, partition, prefix=prefix, after=after, among=among, limit=limit, serial=serial
            )

    async def row(self, table: Table, partition: Values, key: Values) -> Values | None:
        with _Watch(self, "read"):
            return await self._inner.row(table, partition, key)

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        self.rows_written += 1 + len(before) + len(batch.puts) + len(batch.drops)
        with _Watch(self, "commit") as watch:
            applied = await self._inner.commit(batch, before)
            if not applied:
                watch.outcome = "refused"
            return applied

    async def write(self, writes: Sequence[Write]) -> None:
        self.rows_written += len(writes)
        with _Watch(self, "write"):
            await self._inner.write(writes)

    async def partitions(self, table: Table, *, after: Values = (), limit: int = 0) -> list[Values]:
        with _Watch(self, "partitions"):
            return await self._inner.partitions(table, after=after, limit=limit)


class _Watch:
    """Runs while a call does."""

    __slots__ = ("_begun", "_operation", "_store", "outcome")

    def __init__(self, store: TimedStore, operation: str) -> None:
        self._store = store
        self._operation = operation
        self.outcome = "ok"

    def __enter__(self) -> "_Watch":
        self._store.flying += 1
        self._begun = perf_counter_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        took = (perf_counter_ns() - self._begun) // 1000
        self._store.flying -= 1
        if kind is not None:
            if not issubclass(kind, StoreError):
                return  # cancelled, or a bug
            self.outcome = "unknown" if issubclass(kind, UnknownOutcome) else "error"
        calls = self._store.calls
        counts = calls.get((self._operation, self.outcome))
        if counts is None:
            counts = calls[self._operation, self.outcome] = Counts()
        counts.record(took)
