"""What every store must do. An adapter joins with one parameter of the fixture `rig`."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planes.store.faulty import Fault, FaultyStore, script
from planes.store.protocol import Batch, Partition, Store, Unavailable, Values, Write
from planes.store.schema import BY_GROUP, BY_HOST, FREE, GUARDED, HOSTS, PORT_STATUS, PORTS, Table
from tests.support.stores import Rig, batch, bucket, by_host, fresh, sample

# guarded tables


@pytest.mark.parametrize("table", GUARDED, ids=lambda table: table.name)
async def test_a_guarded_row_comes_back_as_it_was_put(rig: Rig, table: Table) -> None:
    has = sample(table, next(fresh))
    names = [name for name, _ in table.statics]
    statics = {**dict(zip(names, has["statics"], strict=True)), table.guard: 5}
    rows = [has["clustering"] + has["columns"]] if table.clustering else []
    assert await rig.store.commit(Batch(table, has["partition"], None, statics, rows))
    expected = Partition(tuple(statics[name] for name in names), rows)
    assert await rig.store.read(table, has["partition"]) == expected
    assert await (await rig.reopen()).read(table, has["partition"]) == expected


async def test_a_partition_that_was_never_written_does_not_exist(store: Store) -> None:
    assert await store.read(PORTS, bucket()) == Partition((None, None, None), [], False)
    assert await store.read(HOSTS, ("nobody",)) == Partition((None,) * 7, [], False)
    assert await store.read(BY_HOST, ("nobody",)) == Partition((), [], False)


async def test_expecting_nothing_holds_only_for_a_partition_that_does_not_exist(store: Store) -> None:
    where = bucket()
    assert await store.commit(batch(where, None, 1, b"a"))
    assert not await store.commit(batch(where, None, 2, b"b"))
    assert [row[1] for row in (await store.read(PORTS, where)).rows] == [b"a"]


async def test_expecting_a_value_never_holds_for_a_partition_that_does_not_exist(store: Store) -> None:
    where = bucket()
    assert not await store.commit(batch(where, 0, 1, b"a"))
    assert not (await store.read(PORTS, where)).exists


async def test_a_partition_without_rows_exists_by_its_statics(store: Store) -> None:
    where = bucket()
    await store.commit(batch(where, None, 1, b"a"))
    assert await store.commit(Batch(PORTS, where, 1, {"top": 2}, (), [(1, b"a")]))
    assert await store.read(PORTS, where) == Partition((2, None, None), [])
    assert not await store.commit(batch(where, None, 3))


async def test_a_batch_happens_whole_or_not_at_all(store: Store) -> None:
    where = bucket()
    await store.commit(batch(where, None, 1, b"a", b"b"))
    before = await store.read(PORTS, where)
    wrong = Batch(PORTS, where, 7, {"top": 9, "floor": 9}, [(1, b"c", 9, b"9"), (1, b"a", 9, b"9")], [(1, b"b")])
    assert not await store.commit(wrong)
    assert await store.read(PORTS, where) == before
    assert await store.commit(Batch(PORTS, where, 1, wrong.statics, wrong.puts, wrong.drops))
    rows: list[Values] = [(1, b"a", 9, b"9"), (1, b"c", 9, b"9")]
    assert await store.read(PORTS, where) == Partition((9, 9, None), rows)


async def test_nobody_sees_a_batch_without_the_writes_before_it(store: Store) -> None:
    where, host, top = bucket(), f"h{next(fresh)}", 200
    rows, over = range(1, top + 1), asyncio.Event()

    async def look() -> None:
        while not over.is_set():
            committed = [row[1] for row in (await store.read(PORTS, where)).rows]
            written = {row[0] for row in (await store.read(BY_HOST, (host,))).rows}
            assert written.issuperset(committed)
            await asyncio.sleep(0)

    watch = asyncio.create_task(look())
    for n in rows:
        key = n.to_bytes(2, "big")
        write = Write(BY_HOST, (host,), (key,), (n,), n)
        assert await store.commit(batch(where, n - 1 or None, n, key), [write])
    over.set()
    await watch
    assert len((await store.read(BY_HOST, (host,))).rows) == len((await store.read(PORTS, where)).rows) == top


async def test_a_batch_that_is_not_tried_because_its_writes_failed_certainly_did_not_happen(store: Store) -> None:
    where = bucket()
    for faults, written in (({0: Fault.REFUSE}, 0), ({0: Fault.HIDE}, 1), ({1: Fault.REFUSE}, 1)):
        host = f"h{next(fresh)}"
        with pytest.raises(Unavailable):
            await FaultyStore(store, script(faults)).commit(batch(where, None, 1, b"a"), [by_host(host, 1, 1)])
        assert len((await store.read(BY_HOST, (host,))).rows) == written
        assert not (await store.read(PORTS, where)).exists
    misfit = Write(PORTS, bucket(), (1, b"a"), (1, b""), 1)
    with pytest.raises(ValueError, match="guarded"):
        await store.commit(batch(where, None, 1), [misfit])


async def test_statics_that_a_batch_does_not_name_stay(store: Store) -> None:
    where = bucket()
    await store.commit(batch(where, None, 1, floor=3, sealed=1))
    await store.commit(batch(where, 1, 2, sealed=None))
    assert (await store.read(PORTS, where)).statics == (2, 3, None)


async def test_a_put_replaces_the_whole_row(store: Store) -> None:
    where = bucket()
    await store.commit(batch(where, None, 1, b"a"))
    await store.commit(Batch(PORTS, where, 1, {"top": 2}, [(1, b"a", None, None)]))
    assert (await store.read(PORTS, where)).rows == [(1, b"a", None, None)]


async def test_partitions_do_not_touch_each_other(store: Store) -> None:
    net = next(fresh)
    await store.commit(batch((net, 0), None, 1, b"a"))
    await store.commit(batch((net, 1), None, 5, b"a"))
    await store.commit(Batch(PORTS, (net, 0), 1, {"top": 2}, (), [(1, b"a")]))
    assert (await store.read(PORTS, (net, 0))).rows == []
    assert (await store.read(PORTS, (net, 1))).rows == [(1, b"a", 5, b"5")]


async def test_concurrent_commits_lose_no_update_and_tops_rise(store: Store) -> None:
    where = bucket()
    won: list[int] = []

    async def add(n: int) -> None:
        while True:
            found = await store.read(PORTS, where)
            top = found.statics[0] if found.exists else None
            assert top is None or isinstance(top, int)
            if await store.commit(batch(where, top, (top or 0) + 1, n.to_bytes(2, "big"))):
                won.append((top or 0) + 1)
                return

    await asyncio.gather(*(add(n) for n in range(64)))
    found = await store.read(PORTS, where)
    assert found.statics[0] == 64
    assert sorted(won) == list(range(1, 65))
    assert sorted(row[2] for row in found.rows) == sorted(won)  # type: ignore[type-var]
    assert len(found.rows) == 64


async def test_of_concurrent_commits_with_one_expectation_one_wins(store: Store) -> None:
    where = bucket()
    await store.commit(batch(where, None, 1))
    results = await asyncio.gather(*(store.commit(batch(where, 1, n, bytes([n]))) for n in range(2, 34)))
    assert results.count(True) == 1
    assert [row[1] for row in (await store.read(PORTS, where)).rows] == [bytes([2 + results.index(True)])]


async def test_a_read_is_of_one_moment(store: Store) -> None:
    """Every batch rewrites all rows with its top: a read that mixes two batches shows."""
    where = bucket()
    keys = [n.to_bytes(2, "big") for n in range(500)]
    await store.commit(batch(where, None, 1, *keys))
    writing = True

    async def write() -> None:
        nonlocal writing
        for top in range(2, 20):
            assert await store.commit(batch(where, top - 1, top, *keys))
        writing = False

    async def read() -> None:
        while writing:
            for found in (await store.read(PORTS, where), await store.read(PORTS, where, limit=20)):
                assert {row[2] for row in found.rows} == {found.statics[0]}
            await asyncio.sleep(0)

    await asyncio.gather(write(), read(), read())


@pytest.mark.parametrize(
    "bad",
    [
        Batch(PORTS, (1, 0), 5, {"top": 5}),
        Batch(PORTS, (1, 0), 5, {"top": 4}),
        Batch(PORTS, (1, 0), None, {"floor": 4}),
        Batch(PORTS, (1, 0), None, {"top": None}),
        Batch(PORTS, (1, 0), None, {"top": 1, "colour": 4}),
        Batch(PORTS, (1,), None, {"top": 1}),
        Batch(PORTS, (1, None), None, {"top": 1}),
        Batch(PORTS, (1, "0"), None, {"top": 1}),
        Batch(PORTS, (1, 2**63), None, {"top": 1}),
        Batch(PORTS, (1, 0), None, {"top": 1}, [(1, b"a", 1)]),
        Batch(PORTS, (1, 0), None, {"top": 1}, [(1, None, 1, b"")]),
        Batch(PORTS, (1, 0), None, {"top": 1}, [(1, b"a", b"1", b"")]),
        Batch(PORTS, (1, 0), None, {"top": 1}, (), [(1,)]),
        Batch(HOSTS, ("h",), None, {"rev": 1}, [()]),
        Batch(BY_HOST, ("h",), None, {"rev": 1}),
    ],
)
async def test_a_batch_that_does_not_fit_its_table_is_a_clear_error(store: Store, bad: Batch) -> None:
    with pytest.raises(ValueError, match=bad.table.name):
        await store.commit(bad)


# free tables


@pytest.mark.parametrize("table", FREE, ids=lambda table: table.name)
async def test_a_free_row_comes_back_as_it_was_written(rig: Rig, table: Table) -> None:
    has = sample(table, next(fresh))
    await rig.store.write([Write(table, has["partition"], has["clustering"], has["columns"], 1)])
    expected = Partition((), [has["clustering"] + has["columns"]])
    assert await rig.store.read(table, has["partition"]) == expected
    assert await (await rig.reopen()).read(table, has["partition"]) == expected


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ((1, 10), (2, 11), 2),  # the newer wins
        ((2, 11), (1, 10), 2),  # whatever the order
        ((1, 10), (None, 11), None),
        ((None, 11), (1, 10), None),  # an older write does not revive
        ((None, 10), (1, 11), 1),
        ((1, 11), (None, 10), 1),  # an older delete does not delete
        ((1, 10), (None, 10), None),  # the delete wins a tie
        ((None, 10), (1, 10), None),
        ((1, 10), (1, 10), 1),
    ],
)
async def test_the_highest_stamp_of_a_row_wins(
    rig: Rig, first: tuple[int | None, int], second: tuple[int | None, int], left: int | None
) -> None:
    host = f"h{next(fresh)}"
    await rig.store.write([by_host(host, *first)])
    await rig.store.write([by_host(host, *second)])
    found = await (await rig.reopen()).read(BY_HOST, (host,))
    assert found == Partition((), [] if left is None else [(b"id", left)], left is not None)


@pytest.mark.parametrize("count", [*range(12), 31, 32, 33, 77])
async def test_as_many_rows_as_there_are(store: Store, count: int) -> None:
    """Of a batch and of writes; of writes of one row in one call the highest stamp wins."""
    keys = [number.to_bytes(2, "big") for number in range(count)]
    rows: list[Values] = [(1, key, 1, key * 2) for key in keys]
    net, host = next(fresh), f"h{next(fresh)}"
    writes = [Write(BY_HOST, (host,), (key,), (stamp,), stamp) for stamp in (2, 3, 1) for key in keys]
    assert await store.commit(Batch(PORTS, (net, 0), None, {"top": 1}, rows), writes)
    assert (await store.read(PORTS, (net, 0))).rows == rows
    assert (await store.read(BY_HOST, (host,))).rows == [(key, 3) for key in keys]


async def test_many_writes_of_several_tables_at_once(store: Store) -> None:
    net, host = next(fresh), f"h{next(fresh)}"
    many = [Write(BY_HOST, (host,), (n.to_bytes(2, "big"),), (n,), 1) for n in range(1000)]
    many.append(Write(PORT_STATUS, (net, 0), (b"id", host), (1, 2, b""), 1))
    await store.write(many)
    await store.write([])
    assert [row[1] for row in (await store.read(BY_HOST, (host,))).rows] == list(range(1000))
    assert (await store.read(PORT_STATUS, (net, 0))).rows == [(b"id", host, 1, 2, b"")]


@pytest.mark.parametrize(
    "bad",
    [
        Write(BY_HOST, ("h",), (), (1,), 1),
        Write(BY_HOST, ("h",), (b"",), (1, 2), 1),
        Write(BY_HOST, (b"h",), (b"",), (1,), 1),
        Write(BY_HOST, ("h",), (b"",), (1,), -1),
        Write(BY_HOST, ("h",), (b"",), ("1",), 1),
        Write(PORTS, (1, 0), (1, b""), (1, b""), 1),
    ],
)
async def test_a_write_that_does_not_fit_its_table_is_a_clear_error(store: Store, bad: Write) -> None:
    with pytest.raises(ValueError, match=bad.table.name):
        await store.write([bad])


async def test_a_serial_read_settles_what_a_caller_gave_up(store: Store) -> None:
    """Whatever became of the abandoned commit at the serial read is what becomes of it for ever."""
    where = bucket()
    await store.commit(batch(where, None, 1))
    for top in range(2, 40):
        task = asyncio.create_task(store.commit(batch(where, top - 1, top)))
        for _ in range(top % 4):
            await asyncio.sleep(0)
        task.cancel()
        seen = await store.read(PORTS, where, serial=True)
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.002)
        assert (await store.read(PORTS, where)).statics == seen.statics
        if seen.statics[0] != top:
            assert await store.commit(batch(where, top - 1, top))


async def test_partitions_lists_every_key_once(store: Store) -> None:
    net = next(fresh)
    guarded = [(net, n) for n in range(450)]
    await asyncio.gather(*(store.commit(batch(where, None, 1, b"a", b"b")) for where in guarded))
    found = await store.partitions(PORTS)
    assert sorted(key for key in found if key[0] == net) == guarded
    assert len(set(found)) == len(found)
    group = next(fresh).to_bytes(4, "big")
    free = [(group, part) for part in range(5)]
    await store.write([Write(BY_GROUP, where, (bytes([n]),), (), 1) for where in free for n in range(30)])
    await store.write([Write(BY_GROUP, (group, 2), (bytes([n]),), None, 2) for n in range(30)])
    found = await store.partitions(BY_GROUP)
    assert sorted(key for key in found if key[0] == group) == [key for key in free if key[1] != 2]
    assert len(set(found)) == len(found)


async def test_the_clock_is_in_microseconds_and_goes_on(store: Store) -> None:
    first = await store.now()
    await asyncio.sleep(0.002)
    assert 1000 <= await store.now() - first < 60_000_000
    assert first > 1_700_000_000_000_000


# life


async def test_closing_finishes_what_was_accepted_and_refuses_the_rest(rig: Rig) -> None:
    where = bucket()
    tasks = [asyncio.create_task(rig.store.commit(batch((where[0], n), None, 1, b"a"))) for n in range(50)]
    await asyncio.sleep(0)
    await rig.store.close()
    assert await asyncio.gather(*tasks) == [True] * 50
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: rig.store.read(PORTS, where),
        lambda: rig.store.commit(batch(where, None, 1)),
        lambda: rig.store.write([by_host("h", 1, 1)]),
        lambda: rig.store.partitions(PORTS),
        rig.store.now,
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            await call()
    store = await rig.reopen()
    assert (await store.read(PORTS, (where[0], 49))).exists


async def test_opening_twice_and_closing_twice_do_no_harm(rig: Rig) -> None:
    await rig.store.open()
    where = bucket()
    assert await rig.store.commit(batch(where, None, 1))
    await rig.store.close()
    await rig.store.close()


# any history, against a dictionary


Step = tuple[int, int, dict[int, int], set[int]]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),  # partition
        st.integers(-1, 1),  # expectation: wrong, right, nothing
        st.dictionaries(st.integers(0, 6), st.integers(0, 99), max_size=5),
        st.sets(st.integers(0, 6), max_size=3),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_history_of_batches_ends_as_in_a_dictionary(rig: Rig, steps: list[Step]) -> None:
    net = next(fresh)
    tops: dict[int, int] = {}
    model: dict[int, dict[int, int]] = {}
    for where, guess, puts, drops in steps:
        top = tops.get(where)
        expect = {-1: (top or 0) + 5, 0: top, 1: None}[guess]
        keys = {key: value for key, value in puts.items() if key not in drops}
        rows: list[Values] = [(key, b"k", value, b"") for key, value in keys.items()]
        done = await rig.store.commit(
            Batch(PORTS, (net, where), expect, {"top": (top or 0) + 9}, rows, [(key, b"k") for key in drops])
        )
        assert done == (expect == top)
        if done:
            tops[where] = (top or 0) + 9
            kept = {key: value for key, value in model.get(where, {}).items() if key not in drops}
            model[where] = {**kept, **keys}
    for where in range(3):
        found = await rig.store.read(PORTS, (net, where))
        assert found.exists == (where in tops)
        assert found.statics[0] == tops.get(where)
        assert [(row[0], row[2]) for row in found.rows] == sorted(model.get(where, {}).items())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    writes=st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 9), st.integers(0, 6)), max_size=25),
    seed=st.integers(0, 99),
)
async def test_free_writes_end_alike_in_any_order(
    rig: Rig, writes: list[tuple[int, int | None, int]], seed: int
) -> None:
    """Up to live writes of equal stamp, which callers never make: a stamp is a revision."""
    distinct = list({(key, stamp, value is None): (key, value, stamp) for key, value, stamp in writes}.values())
    ends: list[list[Values]] = []
    for order in (distinct, random.Random(seed).sample(distinct, len(distinct))):
        net = next(fresh)
        for key, value, stamp in order:
            columns = None if value is None else (value, 0, b"")
            await rig.store.write([Write(PORT_STATUS, (net, 9), (bytes([key]), "h"), columns, stamp)])
        ends.append((await rig.store.read(PORT_STATUS, (net, 9))).rows)
    assert ends[0] == ends[1]
    best: dict[int, tuple[int, bool, int | None]] = {}
    for key, value, stamp in distinct:
        best[key] = max(best.get(key, (-1, False, None)), (stamp, value is None, value), key=lambda won: won[:2])
    assert [(row[0], row[2]) for row in ends[0]] == [
        (bytes([key]), value) for key, (_, _, value) in sorted(best.items()) if value is not None
    ]
