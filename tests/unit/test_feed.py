"""Who reads a part of the feed, what that costs while nothing happens, and how another takes over (rule D6)."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from planes.control.feed import LEASE, Entry, Feed
from planes.model.enums import Kind
from planes.store.faulty import Call, Fault, FaultyStore
from planes.store.schema import FEED, LEASES
from planes.store.sqlite.store import SqliteStore

SECOND = 1_000_000
WINDOW = 10 * SECOND
#: seconds between two turns, as instances have them
TURN = 5
PART = 7
ID = bytes((PART, *range(15)))


class Rig(FaultyStore):
    """A store whose clock stands still until the test moves it, and which counts what is asked of it."""

    def __init__(self, inner: SqliteStore) -> None:
        self.time = 1_800_000_000 * SECOND
        self.calls: Counter[tuple[str, str]] = Counter()
        super().__init__(inner, self._count)

    def _count(self, call: Call) -> Fault:
        self.calls[call.op, call.table] += 1
        return Fault.NONE

    def feed(self, name: str) -> Feed:
        return Feed(self, name, lambda: self.time, WINDOW)

    async def turn(self, feed: Feed, seconds: int = TURN) -> list[bytes]:
        """Let time pass and look at the part; what was due there."""
        self.time += seconds * SECOND
        due, position = await feed.due(PART)
        if position:
            await feed.settle(PART, position, bool(due), [])
        return [id_ for id_, _ in due]

    async def announce(self, feed: Feed) -> None:
        await self.write([feed.row(ID, Entry(Kind.PORT, (ID,)))])

    async def lease(self) -> tuple[int, str, int]:
        until, owner, done = (await self._inner.read(LEASES, (f"feed/{PART}",))).statics
        assert isinstance(until, int)
        assert isinstance(owner, str)
        assert isinstance(done, int)
        return until, owner, done


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(SqliteStore(tmp_path / "store.db", threaded=False))
    await rig.open()
    yield rig
    await rig.close()


async def test_while_nothing_happens_a_lease_is_renewed_by_one_write_when_half_of_it_is_over(store: Rig) -> None:
    feed = store.feed("a")
    await store.turn(feed)
    store.calls.clear()
    turns = 60
    for _ in range(turns):
        await store.turn(feed)
    most = turns * TURN * SECOND // (LEASE // 2)
    assert turns // 6 < store.calls["commit", LEASES.name] <= most
    assert store.calls["read", LEASES.name] == 0
    assert store.calls["read", FEED.name] <= turns + turns * TURN // 60, "a minute is read again"
    assert not any(op == "write" for op, _ in store.calls)


@pytest.mark.parametrize("apart", [1, 5, 10, 12, 14, 15, 16, 20, 29])
async def test_turns_that_are_less_than_a_lease_apart_never_let_it_run_out(store: Rig, apart: int) -> None:
    feed = store.feed("a")
    for _ in range(100 // apart + 3):
        await store.turn(feed, apart)
        assert (await store.lease())[0] > store.time + apart * SECOND


async def test_what_was_due_is_looked_at_once_and_that_is_known_at_once(store: Rig) -> None:
    feed = store.feed("a")
    await store.turn(feed)
    await store.announce(feed)
    found = [await store.turn(feed) for _ in range(6)]
    assert [due for due in found if due] == [[ID]]
    await store.announce(feed)
    announced = store.time
    while await store.turn(feed) != [ID]:
        pass
    assert (await store.lease())[2] >= announced
    after = store.feed("b")
    store.time += LEASE
    assert await store.turn(after) == []


async def test_another_instance_asks_again_when_the_lease_ends_and_takes_over_when_its_holder_is_gone(
    store: Rig,
) -> None:
    first, second = store.feed("a"), store.feed("b")
    await store.turn(first)
    await store.turn(second, 0)
    store.calls.clear()
    turns = 24
    for _ in range(turns):
        await store.turn(first)
        assert await second.due(PART) == ([], 0)
    assert 0 < store.calls["read", LEASES.name] <= 1 + turns * TURN * SECOND // (LEASE // 2)
    await store.announce(first)
    dead = store.time  # and nobody has heard of it yet
    while await store.turn(second) != [ID]:
        assert store.time < dead + LEASE + 2 * TURN * SECOND
    assert (await store.lease())[1] == "b"


async def test_who_lost_its_lease_while_it_slept_looks_whose_it_is(store: Rig) -> None:
    first, second = store.feed("a"), store.feed("b")
    await store.turn(first)
    store.time += 2 * LEASE
    await store.turn(second, 0)
    assert [await first.due(PART) for _ in range(2)] == [([], 0)] * 2
    assert (await store.lease())[1] == "b"


async def test_a_lease_from_before_the_clock_was_set_back_is_taken(store: Rig) -> None:
    first, second = store.feed("a"), store.feed("b")
    await store.turn(first)
    await store.turn(second, 0)
    store.time -= 3600 * SECOND
    await store.turn(second)
    assert (await store.lease())[1] == "b"
