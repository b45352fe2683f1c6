"""Changing one partition: batches, lost races, unknown outcomes (rules D2, D5)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from observability.stages import now_us
from planes.model.enums import Kind
from planes.model.errors import Conflict, Unavailable
from planes.store import partitions
from planes.store.faulty import Fault, FaultyStore
from planes.store.partitions import BATCH, Apply, Partitions
from planes.store.protocol import Batch, Partition, UnknownOutcome, Values, Write
from planes.store.rows import Mark, to_row
from planes.store.schema import NETWORKS, Table
from planes.store.sqlite.store import SqliteStore
from planes.store.views import Draft

WHERE = (7,)


class Rig(FaultyStore):
    """A store that fails as its script says, and counts its batches."""

    def __init__(self, inner: SqliteStore) -> None:
        self.faults: list[Fault] = []
        super().__init__(inner, lambda call: self.faults.pop(0) if call.op == "commit" and self.faults else Fault.NONE)
        self.batches = 0

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        self.batches += 1
        return await super().commit(batch, before)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(SqliteStore(tmp_path / "s.db"))
    await rig.open()
    yield rig
    await rig.close()


def put(key: bytes, value: bytes = b"") -> Apply[int]:
    def apply(draft: Draft, rev: int) -> int:
        draft.put(Kind.BUCKET, key, Mark(value, rev))
        return rev

    return apply


async def rows(store: Rig) -> dict[bytes, int]:
    read = await store.read(NETWORKS, WHERE)
    return {row[1]: row[2] for row in read.rows}  # type: ignore[misc]


async def test_concurrent_changes_leave_in_batches_and_draw_rising_revisions(store: Rig) -> None:
    parts = Partitions(store, now_us)
    keys = [n.to_bytes(4, "big") for n in range(100)]
    done = await asyncio.gather(*(parts.change(NETWORKS, WHERE, put(key)) for key in keys))
    revs = [item.rev for item in done]
    assert revs == sorted(set(revs))
    assert [item.prev for item in done][1:] == revs[:-1]
    assert await rows(store) == dict(zip(keys, revs, strict=True))
    assert store.batches <= 2 + len(keys) // BATCH


async def test_an_operation_that_raises_takes_no_other_with_it(store: Rig) -> None:
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


async def test_a_later_operation_of_a_batch_sees_the_earlier(store: Rig) -> None:
    parts = Partitions(store, now_us)

    def count(draft: Draft, rev: int) -> int:
        mark: Mark | None = draft.get(Kind.BUCKET, b"n")
        n = int(mark.value) + 1 if mark else 1
        draft.put(Kind.BUCKET, b"n", Mark(str(n).encode()))
        return n

    done = await asyncio.gather(*(parts.change(NETWORKS, WHERE, count) for _ in range(64)))
    assert sorted(item.value for item in done) == list(range(1, 65))


async def test_two_instances_never_lose_an_update(store: Rig) -> None:
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


@pytest.mark.parametrize("fault", [Fault.HIDE, Fault.LOSE, Fault.LATE])
async def test_an_unknown_outcome_is_settled_and_nothing_is_done_twice(store: Rig, fault: Fault) -> None:
    parts = Partitions(store, now_us)

    def once(draft: Draft, rev: int) -> None:
        if draft.get(Kind.BUCKET, b"x") is not None:
            raise Conflict("twice")
        draft.put(Kind.BUCKET, b"x", Mark(b"", rev))

    store.faults = [fault]
    done = await parts.change(NETWORKS, WHERE, once)
    assert (await rows(store))[b"x"] == done.rev


async def test_a_batch_that_comes_late_finds_the_counter_raised(store: Rig) -> None:
    parts = Partitions(store, now_us)
    await parts.change(NETWORKS, WHERE, put(b"a"))
    view = await parts.view(NETWORKS, WHERE)
    late = Batch(NETWORKS, WHERE, view.top, {"top": view.top + 1}, [to_row(Kind.BUCKET, b"late", 1, Mark())])
    store.faults = [Fault.LOSE]
    await parts.change(NETWORKS, WHERE, put(b"b"))
    assert await store.commit(late) is False
    assert set(await rows(store)) == {b"a", b"b"}


async def test_nothing_is_visible_of_a_batch_that_was_refused_for_good(store: Rig) -> None:
    parts = Partitions(store, now_us)

    store.faults = [Fault.LOSE] * 1000
    with pytest.raises(Unavailable):
        await parts.change(NETWORKS, WHERE, put(b"a"))
    assert await rows(store) == {}
    assert parts.peek(NETWORKS, WHERE) is None


async def test_fresh_reads_are_shared_only_by_those_who_asked_before_it_began(
    store: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Partitions(store, now_us)
    began, go = asyncio.Queue[int](), asyncio.Semaphore(0)
    inner, reads = store.read, 0

    async def read(table: Table, partition: Values, *, limit: int = 0) -> Partition:
        nonlocal reads
        reads += 1
        began.put_nowait(reads)
        await go.acquire()
        return await inner(table, partition, limit=limit)

    monkeypatch.setattr(store, "read", read)
    early = [asyncio.create_task(parts.view(NETWORKS, WHERE, fresh=True)) for _ in range(20)]
    await began.get()
    late = [asyncio.create_task(parts.view(NETWORKS, WHERE, fresh=True)) for _ in range(20)]
    go.release()
    first = await asyncio.gather(*early)
    await began.get()
    go.release()
    second = await asyncio.gather(*late)
    assert reads == 2
    assert len({id(view) for view in (*first, *second)}) == 1


async def test_a_read_that_a_commit_overtakes_leaves_nothing_older_behind(
    store: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, other = Partitions(store, now_us), Partitions(store, now_us)
    await parts.change(NETWORKS, WHERE, put(b"0"))
    await other.change(NETWORKS, WHERE, put(b"1"))  # so that what `parts` knows does not hold
    read, under_way, hold = store.read, asyncio.Event(), asyncio.Event()

    async def late(*args: Any, **more: Any) -> Partition:
        found = await read(*args, **more)
        if not more.get("limit"):
            under_way.set()
            await hold.wait()
        return found

    monkeypatch.setattr(store, "read", late)
    reading = asyncio.create_task(parts.view(NETWORKS, WHERE, fresh=True))
    await under_way.wait()
    monkeypatch.setattr(store, "read", read)
    await parts.change(NETWORKS, WHERE, put(b"2"))
    await parts.idle()  # begun and ended while the read is under way
    hold.set()
    await reading
    view = parts.peek(NETWORKS, WHERE)
    assert view is not None
    assert set(view.all(Kind.BUCKET)) == {b"0", b"1", b"2"}


async def test_a_fresh_read_of_what_has_not_changed_reads_one_row_and_keeps_the_view(
    store: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, other = Partitions(store, now_us), Partitions(store, now_us)
    for n in range(9):
        await parts.change(NETWORKS, WHERE, put(bytes([n])))
    view = await parts.view(NETWORKS, WHERE)
    view.hints["looked"] = True
    inner, rows = store.read, []

    async def read(table: Table, partition: Values, *, limit: int = 0) -> Partition:
        found = await inner(table, partition, limit=limit)
        rows.append(len(found.rows))
        return found

    monkeypatch.setattr(store, "read", read)
    assert await parts.view(NETWORKS, WHERE, fresh=True) is view
    assert rows == [1]
    assert not view.hints
    await other.change(NETWORKS, WHERE, put(b"theirs"))
    rows.clear()
    newer = await parts.view(NETWORKS, WHERE, fresh=True)
    assert newer.get(Kind.BUCKET, b"theirs") is not None
    assert rows == [1, 10]


async def test_what_another_instance_has_made_is_found_by_many_at_once(store: Rig) -> None:
    """A refusal on what was remembered is decided anew, also while a worker goes from one refusal to the next."""
    here, there = Partitions(store, now_us), Partitions(store, now_us)
    await here.change(NETWORKS, WHERE, put(b"first"))
    for n in range(40):
        await there.change(NETWORKS, WHERE, put(b"%d" % n))

    def take(key: bytes) -> Apply[None]:
        def apply(draft: Draft, rev: int) -> None:
            if draft.get(Kind.BUCKET, key) is None:
                raise Conflict(f"{key!r} is not there")
            draft.drop(Kind.BUCKET, key)

        return apply

    async def later(n: int) -> None:
        for _ in range(n):
            await asyncio.sleep(0)
        await here.change(NETWORKS, WHERE, take(b"%d" % n))

    await asyncio.gather(*(later(n) for n in range(40)))
    assert set(await rows(store)) == {b"first"}


async def test_rows_in_memory_are_bounded_and_what_was_forgotten_is_read_again(
    store: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "ROWS", 100)
    parts = Partitions(store, now_us)
    for net in range(20):
        await asyncio.gather(*(parts.change(NETWORKS, (net,), put(bytes([key]))) for key in range(30)))
    assert [net for net in range(20) if parts.peek(NETWORKS, (net,))] == [17, 18, 19]
    for net in range(20):
        assert len((await parts.view(NETWORKS, (net,))).all(Kind.BUCKET)) == 30
    assert [net for net in range(20) if parts.peek(NETWORKS, (net,))] == [17, 18, 19]


class Late(SqliteStore):
    """The answer to the first batch is lost. It happens before the n-th serial read or batch that follows: a server may
    begin what it was sent long after its client has given up, and no serial read settles what has not begun."""

    def __init__(self, path: Path, after: int) -> None:
        super().__init__(path)
        self.after = after
        self.held: Batch | None = None

    async def step(self) -> None:
        self.after -= 1
        if not self.after and self.held is not None:
            await super().commit(self.held)

    async def read(self, *arguments: Any, **more: Any) -> Partition:
        if more.get("serial"):
            await self.step()
        return await super().read(*arguments, **more)

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        if self.held is None:
            self.held = batch
            raise UnknownOutcome("no answer")
        await self.step()
        return await super().commit(batch, before)


@pytest.mark.parametrize("after", range(1, 6))
async def test_a_batch_that_a_server_begins_late_happens_once(tmp_path: Path, after: int) -> None:
    store = Late(tmp_path / "s.db", after)
    await store.open()
    parts = Partitions(store, now_us)

    def count(draft: Draft, rev: int) -> None:
        mark: Mark | None = draft.get(Kind.BUCKET, b"n")
        draft.put(Kind.BUCKET, b"n", Mark(str(int(mark.value) + 1 if mark else 1).encode()))

    for _ in range(3):
        await parts.change(NETWORKS, WHERE, count)
    assert store.after < 1, "the late batch was tried"
    view = await parts.view(NETWORKS, WHERE, fresh=True)
    assert view.get(Kind.BUCKET, b"n").value == b"3"
    await store.close()


async def test_a_batch_happened_when_others_have_changed_some_of_its_rows_since(tmp_path: Path) -> None:
    """Else it is done again over what they did."""
    store = Late(tmp_path / "s.db", 1)
    await store.open()
    first, second = Partitions(store, now_us), Partitions(store, now_us)
    tried = []

    def two(draft: Draft, rev: int) -> None:
        tried.append(rev)
        draft.put(Kind.BUCKET, b"a", Mark(b"first"))
        draft.put(Kind.BUCKET, b"b", Mark(b"first"))

    serial = store.step

    async def changed_meanwhile() -> None:
        await serial()
        if not store.after:
            await second.change(NETWORKS, WHERE, put(b"a", b"second"))

    store.step = changed_meanwhile  # type: ignore[method-assign]
    await first.change(NETWORKS, WHERE, two)
    view = await first.view(NETWORKS, WHERE, fresh=True)
    assert [view.get(Kind.BUCKET, key).value for key in (b"a", b"b")] == [b"second", b"first"]
    assert len(tried) == 1
    await store.close()
