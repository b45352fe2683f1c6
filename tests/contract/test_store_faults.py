"""The wrapper that makes stores fail, around each of them."""

from collections.abc import Mapping
from typing import Any

import pytest

from planes.store.faulty import Fault, FaultyStore, Killed, script, seeded
from planes.store.protocol import Batch, Store, Unavailable, UnknownOutcome, Values
from planes.store.schema import BY_HOST, PORTS
from tests.support.stores import batch, bucket, by_host, fresh


async def _top(store: Store, where: Values, serial: bool = False) -> Any:
    return (await store.read(PORTS, where, serial=serial)).statics[0]


@pytest.mark.parametrize(
    ("fault", "raised", "applied"),
    [
        (Fault.REFUSE, Unavailable, False),
        (Fault.LOSE, UnknownOutcome, False),
        (Fault.HIDE, UnknownOutcome, True),
        (Fault.KILL_BEFORE, Killed, False),
        (Fault.KILL_AFTER, Killed, True),
    ],
)
async def test_each_fault_does_what_its_name_says(
    store: Store, fault: Fault, raised: type[BaseException], applied: bool
) -> None:
    where, host = bucket(), f"h{next(fresh)}"
    with pytest.raises(raised):
        await FaultyStore(store, script({0: fault})).commit(batch(where, None, 1))
    with pytest.raises(raised):
        await FaultyStore(store, script({0: fault})).write([by_host(host, 1, 1)])
    assert (await store.read(PORTS, where)).exists == applied
    assert (await store.read(BY_HOST, (host,))).exists == applied


async def _happened(store: Store, where: Values, rev: int) -> bool:
    """Whether the commit that was to be `rev` has happened; if not, it never will, for the counter is raised (D5)."""
    while True:
        try:
            top = await _top(store, where, serial=True)
            if top == rev:
                return True
            if await store.commit(Batch(PORTS, where, top, {"top": max(top or 0, rev) + 1})):
                return False
        except (Unavailable, UnknownOutcome):
            continue


async def test_a_late_commit_happens_later_until_the_counter_is_raised(store: Store) -> None:
    outcomes = set()
    for seed in range(12):
        where = bucket()
        faulty = FaultyStore(store, script({0: Fault.LATE}), seed)
        with pytest.raises(UnknownOutcome):
            await faulty.commit(batch(where, None, 1))
        happened = await _happened(faulty, where, 1)
        outcomes.add(happened)
        for _ in range(20):
            await faulty.commit(batch(bucket(), None, 1))
        assert await _top(faulty, where) == (1 if happened else 2)
    assert outcomes == {False, True}


async def test_a_serial_read_alone_does_not_settle_a_late_commit(store: Store) -> None:
    later = 0
    for seed in range(20):
        where = bucket()
        faulty = FaultyStore(store, script({0: Fault.LATE}), seed)
        with pytest.raises(UnknownOutcome):
            await faulty.commit(batch(where, None, 1))
        seen = await _top(faulty, where, serial=True)
        for _ in range(20):
            await faulty.read(BY_HOST, ("x",))
        later += await _top(faulty, where) != seen
    assert later


async def test_a_late_commit_may_happen_before_any_later_write(store: Store) -> None:
    where = bucket()
    faulty = FaultyStore(store, script({0: Fault.LATE}), seed=3)
    with pytest.raises(UnknownOutcome):
        await faulty.commit(batch(where, None, 1))
    for _ in range(30):
        await faulty.write([by_host("x", 1, 1)])
    assert await _top(store, where) == 1


async def test_a_late_write_of_many_rows_may_happen_in_part(store: Store) -> None:
    found = set()
    for seed in range(12):
        hosts = [f"h{next(fresh)}" for _ in range(4)]
        faulty = FaultyStore(store, script({0: Fault.LATE}), seed)
        with pytest.raises(UnknownOutcome):
            await faulty.write([by_host(host, 1, 1) for host in hosts])
        for _ in range(4):
            await faulty.read(BY_HOST, ("x",))
        found.add(sum([(await store.read(BY_HOST, (host,))).exists for host in hosts]))
    assert found & {1, 2, 3}


async def test_a_killed_process_does_nothing_more(store: Store) -> None:
    done: list[int] = []

    async def work(faulty: FaultyStore, net: int) -> None:
        for n in range(5):
            await faulty.commit(batch((net, n), None, 1))
            done.append(n)

    for dead_at in range(5):
        net = next(fresh)
        done.clear()
        faulty = FaultyStore(store, script({dead_at: Fault.KILL_AFTER}))
        await faulty.run(work(faulty, net))
        assert faulty.killed.is_set()
        assert done == list(range(dead_at))
        assert [(await store.read(PORTS, (net, n))).exists for n in range(5)] == [n <= dead_at for n in range(5)]
        with pytest.raises(Killed):
            await faulty.read(PORTS, (net, 0))


async def test_a_run_that_is_not_killed_returns_its_result(store: Store) -> None:
    faulty = FaultyStore(store, script({}))
    assert await faulty.run(faulty.commit(batch(bucket(), None, 1))) is True


async def test_a_seed_repeats_a_run_exactly(store: Store) -> None:
    rates: Mapping[Fault, float] = {Fault.REFUSE: 0.2, Fault.LOSE: 0.2, Fault.HIDE: 0.2, Fault.LATE: 0.2}

    async def history(seed: int) -> list[str]:
        where = bucket()
        faulty, seen, top = FaultyStore(store, seeded(seed, rates, reads=0.1), seed), [], None
        for n in range(1, 60):
            try:
                top = await _top(faulty, where, serial=n % 2 == 0)
                seen.append(str(await faulty.commit(batch(where, top, n * 100))))
            except (Unavailable, UnknownOutcome) as error:
                seen.append(type(error).__name__)
        return seen

    first = await history(1)
    assert first == await history(1)
    assert first != await history(2)
    assert {"True", "Unavailable", "UnknownOutcome"} <= set(first)


async def test_through_every_fault_settled_commits_lose_nothing(store: Store) -> None:
    """A caller that settles each unknown outcome by a raised counter (rule D5) counts exactly."""
    where, added = bucket(), 0
    rates = {Fault.REFUSE: 0.1, Fault.LOSE: 0.1, Fault.HIDE: 0.15, Fault.LATE: 0.15}
    faulty = FaultyStore(store, seeded(7, rates), 7)
    top: Any = None
    for n in range(1, 150):
        key, rev = n.to_bytes(2, "big"), 10 * n
        try:
            added += await faulty.commit(batch(where, top, rev, key))
        except Unavailable:
            pass
        except UnknownOutcome:
            added += await _happened(faulty, where, rev)
        top = await _top(faulty, where, serial=True)
    await faulty.settle()
    found = await store.read(PORTS, where)
    assert len(found.rows) == added > 50
    assert max(row[2] for row in found.rows) <= found.statics[0]  # type: ignore[type-var, operator]


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        seeded(1, {Fault.LOSE: 0.7, Fault.HIDE: 0.7})
