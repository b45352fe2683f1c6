"""Changing one partition: batches, lost races, unknown outcomes (rules D2, D5)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from observability.stages import now_us
from planes.model.enums import Kind
from planes.model.errors import Conflict, Unavailable
from planes.store.partitions import BATCH, Apply, Draft, Partitions
from planes.store.protocol import Batch, Partition, UnknownOutcome, Values, Write
from planes.store.rows import Mark
from planes.store.schema import NETWORKS, Table
from planes.store.sqlite.store import SqliteStore

WHERE = (7,)


class Shaky:
    """A store whose commits go as a script says: `ok`, `lost` (happened, unknown), `never` (did not, unknown)."""

    def __init__(self, inner: SqliteStore) -> None:
        self.inner = inner
        self.script: list[str] = []
        self.batches: list[Batch] = []
        self.late: Batch | None = None

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def now(self) -> int:
        return await self.inner.now()

    async def read(
        self,
        table: Table,
        partition: Values,
        *,
        prefix: Values = (),
        after: Values = (),
        limit: int = 0,
        serial: bool = False,
    ) -> Partition:
        return await self.inner.read(table, partition, prefix=prefix, after=after, limit=limit, serial=serial)

    async def commit(self, batch: Batch) -> bool:
        self.batches.append(batch)
        what = self.script.pop(0) if self.script else "ok"
        if what == "never":
            raise UnknownOutcome("timed out")
        if what == "late":
            self.late = batch
            raise UnknownOutcome("timed out")
        done = await self.inner.commit(batch)
        if what == "lost":
            raise UnknownOutcome("timed out")
        return done

    async def write(self, writes: Sequence[Write]) -> None:
        await self.inner.write(writes)

    async def partitions(self, table: Table) -> list[Values]:
        return await self.inner.partitions(table)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Shaky]:
    inner = SqliteStore(tmp_path / "s.db")
    await inner.open()
    yield Shaky(inner)
    await inner.close()


def put(key: bytes, value: bytes = b"") -> Apply[int]:
    def apply(draft: Draft, rev: int) -> int:
        draft.put(Kind.BUCKET, key, Mark(value, rev))
        return rev

    return apply


async def rows(store: Shaky) -> dict[bytes, int]:
    read = await store.read(NETWORKS, WHERE)
    return {row[1]: row[2] for row in read.rows}  # type: ignore[misc]


async def test_concurrent_changes_leave_in_batches_and_draw_rising_revisions(store: Shaky) -> None:
    parts = Partitions(store, now_us)
    keys = [n.to_bytes(4, "big") for n in range(100)]
    done = await asyncio.gather(*(parts.change(NETWORKS, WHERE, put(key)) for key in keys))
    revs = [item.rev for item in done]
    assert revs == sorted(set(revs))
    assert [item.prev for item in done][1:] == revs[:-1]
    assert await rows(store) == dict(zip(keys, revs, strict=True))
    assert len(store.batches) <= 2 + len(keys) // BATCH


async def test_an_operation_that_raises_takes_no_other_with_it(store: Shaky) -> None:
    parts = Partitions(store, now_us)

    def refuse(draft: Draft, rev: int) -> None:
        draft.put(Kind.BUCKET, b"no", Mark())
        raise Conflict("no")

    done = await asyncio.gather(
        parts.change(NETWORKS, WHERE, put(b"a")),
        parts.change(NETWORKS, WHERE, refuse),
        parts.change(NETWORKS, WHERE, put(b"b")),
        return_exceptions=True,
    )
    assert isinstance(done[1], Conflict)
    assert set(await rows(store)) == {b"a", b"b"}


async def test_a_later_operation_of_a_batch_sees_the_earlier(store: Shaky) -> None:
    parts = Partitions(store, now_us)

    def count(draft: Draft, rev: int) -> int:
        mark: Mark | None = draft.get(Kind.BUCKET, b"n")
        n = int(mark.value) + 1 if mark else 1
        draft.put(Kind.BUCKET, b"n", Mark(str(n).encode()))
        return n

    done = await asyncio.gather(*(parts.change(NETWORKS, WHERE, count) for _ in range(64)))
    assert sorted(item.value for item in done) == list(range(1, 65))


async def test_two_instances_never_lose_an_update(store: Shaky) -> None:
    first, second = Partitions(store, now_us), Partitions(store, now_us)

    def count(draft: Draft, rev: int) -> None:
        mark: Mark | None = draft.get(Kind.BUCKET, b"n")
        draft.put(Kind.BUCKET, b"n", Mark(str(int(mark.value) + 1 if mark else 1).encode()))

    for parts in (first, second) * 10:
        await parts.change(NETWORKS, WHERE, count)
    await asyncio.gather(*(parts.change(NETWORKS, WHERE, count) for parts in (first, second) * 20))
    view = await first.view(NETWORKS, WHERE, fresh=True)
    assert view.get(Kind.BUCKET, b"n").value == b"60"
    assert first.conflicts + second.conflicts > 0


@pytest.mark.parametrize("outcome", ["lost", "never"])
async def test_an_unknown_outcome_is_settled_and_nothing_is_done_twice(store: Shaky, outcome: str) -> None:
    parts = Partitions(store, now_us)

    def once(draft: Draft, rev: int) -> None:
        if draft.get(Kind.BUCKET, b"x") is not None:
            raise Conflict("twice")
        draft.put(Kind.BUCKET, b"x", Mark(b"", rev))

    store.script = [outcome]
    done = await parts.change(NETWORKS, WHERE, once)
    assert (await rows(store))[b"x"] == done.rev


async def test_a_batch_that_applies_late_finds_the_counter_raised(store: Shaky) -> None:
    parts = Partitions(store, now_us)
    await parts.change(NETWORKS, WHERE, put(b"a"))
    store.script = ["late"]
    done = await parts.change(NETWORKS, WHERE, put(b"b", b"1"))
    assert store.late is not None
    assert await store.inner.commit(store.late) is False
    assert (await rows(store))[b"b"] == done.rev


async def test_nothing_is_visible_of_a_batch_that_was_refused_for_good(store: Shaky) -> None:
    parts = Partitions(store, now_us)

    async def closed(batch: Batch) -> bool:
        raise UnknownOutcome("gone")

    store.commit = closed  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await parts.change(NETWORKS, WHERE, put(b"a"))
    assert await rows(store) == {}
    assert parts.peek(NETWORKS, WHERE) is None
