"""What is SQLite's own: the file and its lock, group commit, pauses, purging, and disks that fail."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from planes.store.protocol import Batch, StoreError, Unavailable, UnknownOutcome, Values, Write
from planes.store.schema import BY_GROUP, BY_HOST, FEED, PORTS, PROJECTS, Table
from planes.store.sqlite import file, sql, writer
from planes.store.sqlite.store import PAGE, TOMBSTONE_US, SqliteStore


def batch(bucket: int, expect: int | None, top: int, *keys: bytes, size: int = 0) -> Batch:
    rows: list[Values] = [(1, key, top, bytes(size)) for key in keys]
    return Batch(PORTS, (1, bucket), expect, {"top": top}, rows)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "deep" / "store.db", clock)
    await made.open()
    yield made
    await made.close()


def outside(store: SqliteStore) -> sqlite3.Connection:
    """Another program's connection to the same file."""
    return sqlite3.connect(store._path, isolation_level=None, timeout=0)


def transactions(store: SqliteStore) -> list[str]:
    """The BEGINs and COMMITs from here on."""
    seen: list[str] = []
    assert store._writing is not None
    store._writing.set_trace_callback(lambda text: seen.append(text) if text.startswith(("BEGIN", "COMMIT")) else None)
    return seen


# transactions


async def test_what_waits_together_leaves_in_one_transaction(store: SqliteStore) -> None:
    seen = transactions(store)
    assert all(await asyncio.gather(*(store.commit(batch(n, None, 1)) for n in range(100))))
    assert seen.count("COMMIT") == 1


async def test_what_a_caller_awaits_step_by_step_is_as_many_transactions(store: SqliteStore) -> None:
    seen = transactions(store)

    async def steps(bucket: int) -> None:
        for top in range(1, 6):
            await store.commit(batch(bucket, top - 1 or None, top))
            await store.write([Write(BY_HOST, ("h",), (bytes([bucket]),), (top,), top)])

    await asyncio.gather(*(steps(n) for n in range(8)))
    assert seen.count("COMMIT") >= 10


async def test_nothing_is_answered_before_its_commit_has_returned(store: SqliteStore) -> None:
    seen = transactions(store)
    assert await store.commit(batch(1, None, 1))
    assert seen == ["BEGIN IMMEDIATE", "COMMIT"]
    with outside(store) as other:
        assert other.execute("SELECT top FROM ports_static").fetchall() == [(1,)]
    other.close()


async def test_a_losing_batch_takes_nobody_along(store: SqliteStore) -> None:
    await store.commit(batch(1, None, 1))
    batches = (batch(0, None, 1, b"a"), batch(1, 9, 10, b"a"), batch(2, None, 1))
    assert await asyncio.gather(*map(store.commit, batches)) == [True, False, True]
    assert (await store.read(PORTS, (1, 1))).rows == []


async def test_a_job_that_sqlite_cannot_take_fails_alone(store: SqliteStore) -> None:
    poison = Batch(PROJECTS, ("\ud800",), None, {"top": 1})
    results = await asyncio.gather(
        store.commit(batch(0, None, 1)), store.commit(poison), store.commit(batch(1, None, 1)), return_exceptions=True
    )
    assert results[0] is True
    assert results[2] is True
    assert isinstance(results[1], Unavailable)


async def test_a_caller_that_gives_up_before_the_transaction_withdraws(store: SqliteStore) -> None:
    task = asyncio.create_task(store.commit(batch(1, None, 1)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, store.commit(batch(2, None, 1)), return_exceptions=True)
    assert not (await store.read(PORTS, (1, 1), serial=True)).exists


async def test_too_many_waiting_writes_are_refused(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "QUEUE", 10)
    results = await asyncio.gather(*(store.commit(batch(n, None, 1)) for n in range(15)), return_exceptions=True)
    assert results[:10] == [True] * 10
    assert all(isinstance(result, Unavailable) and "wait" in str(result) for result in results[10:])
    assert await store.commit(batch(20, None, 1))


async def test_a_long_read_lets_others_run(store: SqliteStore) -> None:
    rows = 20 * PAGE
    await store.commit(batch(1, None, 1, *(n.to_bytes(4, "big") for n in range(rows))))
    reading = asyncio.create_task(store.read(PORTS, (1, 1)))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= rows // PAGE


async def test_a_long_read_hides_no_new_commit_from_others(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.commit(batch(1, None, 1, *(n.to_bytes(4, "big") for n in range(3 * PAGE))))
    go_on = asyncio.Event()

    async def pause(_: float) -> None:
        await go_on.wait()

    monkeypatch.setattr(asyncio, "sleep", pause)
    reading = asyncio.create_task(store.read(PORTS, (1, 1)))
    assert await store.commit(batch(1, 1, 2))
    assert (await store.read(PORTS, (1, 1), limit=1)).statics[0] == 2
    assert not reading.done()
    go_on.set()
    assert (await reading).statics[0] == 1
    assert len((await reading).rows) == 3 * PAGE


async def test_a_commit_between_the_statics_and_the_rows_of_a_read_is_not_seen_by_half(store: SqliteStore) -> None:
    await store.commit(batch(1, None, 1, b"a"))
    other = outside(store)

    def interfere(text: str) -> None:
        if "FROM ports " in text:
            other.executescript("BEGIN; UPDATE ports SET rev = 2; UPDATE ports_static SET top = 2; COMMIT")

    assert store._reading is not None
    store._reading.set_trace_callback(interfere)
    found = await store.read(PORTS, (1, 1))
    store._reading.set_trace_callback(None)
    other.close()
    assert (found.statics[0], found.rows[0][2]) == (1, 1)
    assert (await store.read(PORTS, (1, 1))).statics[0] == 2


@pytest.mark.parametrize("table", [PORTS, BY_GROUP], ids=lambda table: table.name)
async def test_reads_seek_and_never_sort(store: SqliteStore, table: Table) -> None:
    statements, connection = sql.of(table.name), outside(store)
    width = len(table.clustering)
    texts = [statements.read(p, a, 0) for p in range(width + 1) for a in range(width - p + 1)]
    texts += [statements.read(p, 0, 4) for p in range(width)]
    texts += [statements.partitions(True)] + ([] if table.guard else [statements.purge, sql.of(FEED.name).purge])
    for text in texts:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", (1,) * text.count("?"))]
        assert any("SEARCH" in step for step in plan), (text, plan)
        assert not any("TEMP B-TREE FOR ORDER" in step for step in plan), (text, plan)
    after = connection.execute(f"EXPLAIN QUERY PLAN {statements.partitions(True)}", (1,) * 3).fetchall()
    assert ">(?,?)" in after[0][3]
    connection.close()


# purging


async def test_rows_go_when_their_table_says_so_and_not_before(store: SqliteStore, clock: Clock) -> None:
    feed = [Write(FEED, (1, 0), (n, b"id"), (1, b""), 1) for n in range(450)]
    await store.write([*feed, Write(BY_HOST, ("h",), (b"id",), (1,), 1)])
    clock.now += FEED.ttl * 1_000_000 - 1
    assert await store.purge() == 0
    assert len((await store.read(FEED, (1, 0))).rows) == 450
    clock.now += 2
    assert await store.purge() == 450
    assert (await store.read(FEED, (1, 0))).rows == []
    assert (await store.read(BY_HOST, ("h",))).rows == [(b"id", 1)]


async def test_a_tombstone_is_kept_a_day(store: SqliteStore, clock: Clock) -> None:
    def write(stamp: int, columns: Values | None) -> list[Write]:
        return [Write(BY_HOST, ("h",), (b"id",), columns, stamp)]

    await store.write(write(9, (1,)))
    await store.write(write(10, None))
    clock.now += TOMBSTONE_US - 1
    assert await store.purge() == 0
    await store.write(write(9, (1,)))
    assert not (await store.read(BY_HOST, ("h",))).exists
    clock.now += 2
    assert await store.purge() == 1
    await store.write(write(9, (2,)))
    assert (await store.read(BY_HOST, ("h",))).rows == [(b"id", 2)]


async def test_a_row_written_anew_outlives_its_tombstone(store: SqliteStore, clock: Clock) -> None:
    await store.write([Write(BY_HOST, ("h",), (b"id",), None, 1)])
    await store.write([Write(BY_HOST, ("h",), (b"id",), (5,), 2)])
    clock.now += 2 * TOMBSTONE_US
    assert await store.purge() == 0
    assert (await store.read(BY_HOST, ("h",))).rows == [(b"id", 5)]


# the file


async def test_a_second_store_on_the_same_file_is_refused_until_the_first_is_closed(store: SqliteStore) -> None:
    second = SqliteStore(store._path)
    with pytest.raises(Unavailable, match=f"in use by another process .pid {os.getpid()}"):
        await second.open()
    await store.close()
    await second.open()
    await second.close()


async def test_a_newer_version_is_refused(store: SqliteStore) -> None:
    await store.close()
    connection = outside(store)
    connection.execute(f"PRAGMA user_version = {sql.VERSION + 1}")
    connection.close()
    with pytest.raises(Unavailable, match=f"version {sql.VERSION + 1}"):
        await store.open()


async def test_a_table_of_another_shape_is_refused(store: SqliteStore) -> None:
    await store.close()
    connection = outside(store)
    connection.execute("ALTER TABLE ports ADD COLUMN colour TEXT")
    connection.close()
    with pytest.raises(Unavailable, match="Table ports"):
        await store.open()


async def test_older_files_are_migrated_once(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.commit(batch(1, None, 1))
    await store.close()
    monkeypatch.setattr(sql, "MIGRATIONS", (*sql.MIGRATIONS, ("UPDATE ports_static SET top = top + 1",)))
    monkeypatch.setattr(sql, "VERSION", sql.VERSION + 1)
    for _ in range(2):
        await store.open()
        assert (await store.read(PORTS, (1, 1))).statics[0] == 2
        await store.close()


async def test_a_file_that_is_no_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 50)
    with pytest.raises(Unavailable, match="This is not a database"):
        await SqliteStore(path).open()
    path.write_bytes(b"")
    again = SqliteStore(path)  # the lock was given back
    await again.open()
    await again.close()


async def test_a_directory_that_cannot_be_made_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be opened"):
        await SqliteStore(tmp_path / "file" / "x.db").open()


async def test_a_lock_of_another_program_is_waited_for(store: SqliteStore) -> None:
    other = outside(store)
    other.execute("BEGIN IMMEDIATE")
    task = asyncio.create_task(store.commit(batch(1, None, 1)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    other.execute("ROLLBACK")
    other.close()
    assert await task


async def test_a_lock_that_stays_is_unavailable_and_leaves_no_trace(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PATIENCE", 0.0)
    other = outside(store)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="Another program has locked the database"):
        await store.commit(batch(1, None, 1))
    other.execute("ROLLBACK")
    other.close()
    assert await store.commit(batch(1, None, 1))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)


@pytest.mark.kernel
async def test_a_full_disk_is_unavailable_and_recovers_by_itself(disk: Path) -> None:
    store = SqliteStore(disk / "store.db")
    try:
        await store.open()
        kept: list[int] = []

        async def fill() -> None:
            for n in range(400):
                assert await store.commit(batch(n, None, 1, b"a", b"b", size=8000))
                kept.append(n)

        with pytest.raises(Unavailable, match="The disk is full"):
            await fill()
        assert 5 < len(kept) < 399
        assert not (await store.read(PORTS, (1, len(kept)))).exists
        enlarge(disk)
        assert await store.commit(batch(len(kept), None, 1, b"a"))
        for n in kept:
            assert len((await store.read(PORTS, (1, n))).rows) == 2
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("code", "committing", "raised"),
    [
        (sqlite3.SQLITE_FULL, True, Unavailable),
        (sqlite3.SQLITE_IOERR_WRITE, True, Unavailable),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, True, Unavailable),
        (sqlite3.SQLITE_IOERR_FSYNC, True, UnknownOutcome),
        (sqlite3.SQLITE_IOERR_FSYNC, False, Unavailable),
        (sqlite3.SQLITE_CORRUPT, False, Unavailable),
    ],
)
def test_a_commit_is_unknown_only_if_its_last_write_may_be_on_the_disk(
    code: int, committing: bool, raised: type[StoreError]
) -> None:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    assert type(file.meaning(error, committing)) is raised


# death


CHILD = """
import asyncio, sys
from planes.store.protocol import Batch, Write
from planes.store.schema import BY_HOST, PORTS
from planes.store.sqlite.store import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    async def work(n):
        for top in range(1, 10**9):
            rows = [(kind, b"k", top, bytes(50)) for kind in range(5)]
            assert await store.commit(Batch(PORTS, (1, n), top - 1 or None, {"top": top}, rows))
            print(n, top, "c", flush=True)
            await store.write([Write(BY_HOST, ("h",), (bytes([n]),), (top,), top)])
            print(n, top, "w", flush=True)
    await asyncio.gather(*(work(n) for n in range(8)))

asyncio.run(main())
"""


def start(path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("lines", [1, 50, 333])
async def test_after_a_kill_what_was_answered_is_there_and_batches_are_whole(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "store.db"
    child = start(path)
    assert child.stdout is not None
    try:
        said = [child.stdout.readline() for _ in range(lines)]
        with pytest.raises(Unavailable, match=f"pid {child.pid}"):
            await SqliteStore(path).open()
    finally:
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
    said += [line for line in rest.splitlines() if line.endswith(("c", "w"))]
    answered = [(int(n), int(top), what.strip()) for n, top, what in (line.split(" ") for line in said)]
    store = SqliteStore(path)
    await store.open()  # the lock died with its holder
    try:
        written = {row[0]: row[1] for row in (await store.read(BY_HOST, ("h",))).rows}
        for n in range(8):
            tops = [top for m, top, what in answered if m == n and what == "c"]
            writes = [top for m, top, what in answered if m == n and what == "w"]
            found = await store.read(PORTS, (1, n))
            top = found.statics[0] or 0
            assert isinstance(top, int)
            assert top in (max(tops, default=0), max(tops, default=0) + 1)
            assert [row[2] for row in found.rows] == [top] * (5 if top else 0)
            assert written.get(bytes([n]), 0) in (max(writes, default=0), max(writes, default=0) + 1)
    finally:
        await store.close()
