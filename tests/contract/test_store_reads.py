"""What every store must find: by prefix, after a key, among values, in order, a page at a time."""

import random
from typing import Any

import pytest

from planes.store.protocol import Batch, Store, Value, Values, Write
from planes.store.schema import BY_HOST, BY_PROJECT, FEED, HOSTS, PORT_STATUS, PORTS, Table
from tests.support.stores import batch, bucket, fresh, sample

KEYS: list[Values] = [(kind, bytes([a, b])) for kind in (-1, 1, 2) for a in (0, 1, 255) for b in (0, 255)]
STATUS_KEYS: list[Values] = [(bytes([a]), host) for a in (0, 9, 200) for host in ("", "a", "ab", "é", "\U0001f600")]


async def _filled(store: Store, table: Table, keys: list[Values]) -> Values:
    where: Values = tuple(next(fresh) if kind == "bigint" else f"p{next(fresh)}" for _, kind in table.partition)
    columns = sample(table, 1)["columns"]
    shuffled = random.Random(1).sample(keys, len(keys))
    if table.guard:
        await store.commit(Batch(table, where, None, {table.guard: 1}, [(*key, *columns) for key in shuffled]))
    else:
        await store.write([Write(table, where, key, columns, 1) for key in shuffled])
    return where


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        (PORTS, KEYS),
        (PORT_STATUS, STATUS_KEYS),
        (BY_HOST, [(bytes([n]),) for n in (0, 1, 127, 128, 255)]),
        (FEED, [(at, bytes([n])) for at in (-5, 0, 7, 2**40) for n in (0, 255)]),
    ],
    ids=lambda value: value.name if isinstance(value, Table) else "",
)
async def test_prefix_after_and_limit(store: Store, table: Table, keys: list[Values]) -> None:
    where = await _filled(store, table, keys)
    width = len(table.clustering)
    ordered: list[Any] = sorted(keys)
    starts: list[Values] = [(), *{key[:n] for key in ordered for n in range(1, width + 1)}]
    for prefix in starts:
        for after in starts:
            expected = [
                key for key in ordered if key[: len(prefix)] == prefix and (not after or key[: len(after)] > after)
            ]
            for limit in (0, 1, 3):
                found = await store.read(table, where, prefix=prefix, after=after, limit=limit)
                got = [row[:width] for row in found.rows]
                assert got == expected[: limit or None], (prefix, after, limit)
                assert found.exists == (bool(table.guard) or bool(expected))


@pytest.mark.parametrize(
    ("table", "keys", "prefix", "absent"),
    [(PORTS, KEYS, (1,), b"none"), (PORTS, KEYS, (), 99), (PORT_STATUS, STATUS_KEYS, (), b"none")],
    ids=["behind a prefix", "numbers", "with more behind"],
)
async def test_among(store: Store, table: Table, keys: list[Values], prefix: Values, absent: Value) -> None:
    where, width = await _filled(store, table, keys), len(table.clustering)
    ordered: list[Any] = sorted(keys)
    values: list[Any] = sorted({key[len(prefix)] for key in ordered if key[: len(prefix)] == prefix})
    for some in (values, values[:1], values[::2], [absent], [values[-1], absent, values[0], values[0]]):
        expected = [key for key in ordered if key[: len(prefix)] == prefix and key[len(prefix)] in some]
        for limit in (0, 1, 3):
            found = await store.read(table, where, prefix=prefix, among=tuple(some), limit=limit)
            assert [row[:width] for row in found.rows] == expected[: limit or None], (some, limit)
            assert found.exists == (bool(table.guard) or bool(expected))


async def test_many_among_many(store: Store) -> None:
    where, keys = bucket(), [n.to_bytes(4, "big") for n in range(2000)]
    await store.commit(batch(where, None, 1, *keys))
    found = await store.read(PORTS, where, prefix=(1,), among=tuple(keys[::3]))
    assert [row[1] for row in found.rows] == keys[::3]


async def test_a_long_partition_comes_whole_and_in_order(store: Store) -> None:
    where = bucket()
    keys = [n.to_bytes(4, "big") for n in range(3000)]
    await store.commit(batch(where, None, 1, *keys))
    found = await store.read(PORTS, where)
    assert [row[1] for row in found.rows] == keys
    assert found.statics[0] == 1
    assert [row[1] for row in (await store.read(PORTS, where, prefix=(1,), after=(1, keys[9]))).rows] == keys[10:]
    assert [row[1] for row in (await store.read(PORTS, where, after=(1, keys[9]), limit=990)).rows] == keys[10:1000]


async def test_what_was_written_is_read(store: Store) -> None:
    where = bucket()
    for top in range(1, 50):
        assert await store.commit(batch(where, top - 1 or None, top, b"a"))
        assert (await store.read(PORTS, where, serial=top % 2 == 0)).statics[0] == top


@pytest.mark.parametrize(("table", "keys"), [(PORTS, KEYS), (PORT_STATUS, STATUS_KEYS)], ids=["guarded", "free"])
async def test_a_row_alone_is_found_by_its_whole_key(store: Store, table: Table, keys: list[Values]) -> None:
    where = await _filled(store, table, keys[1:])
    for key in keys[1:]:
        assert await store.row(table, where, key) == sample(table, 1)["columns"]
    assert await store.row(table, where, keys[0]) is None
    assert await store.row(table, bucket(), keys[1]) is None


async def test_a_row_that_went_is_not_found_and_one_that_changed_is_as_it_was_left(store: Store) -> None:
    where, key = bucket(), (b"id", "h1")
    await store.commit(batch(where, None, 1, b"a", b"b"))
    await store.commit(Batch(PORTS, where, 1, {"top": 2}, [(1, b"a", 2, None)], [(1, b"b")]))
    assert [await store.row(PORTS, where, (1, name)) for name in (b"a", b"b")] == [(2, None), None]
    for stamp, columns in enumerate([(1, 0, b"x"), (2, 0, None), None], 1):
        await store.write([Write(PORT_STATUS, where, key, columns, stamp)])
        assert await store.row(PORT_STATUS, where, key) == columns


@pytest.mark.parametrize(
    ("table", "partition", "key"),
    [
        (PORTS, (1,), (1, b"")),
        (PORTS, (1, "0"), (1, b"")),
        (PORTS, (1, 0), (1,)),
        (PORTS, (1, 0), (1, b"", 1)),
        (PORTS, (1, 0), (1, None)),
        (BY_PROJECT, ("p", 1, 0), (b"id",)),
        (HOSTS, ("h",), ()),
    ],
)
async def test_a_row_is_asked_for_by_a_whole_key_and_of_a_table_with_columns(
    store: Store, table: Table, partition: Values, key: Values
) -> None:
    with pytest.raises(ValueError, match=table.name):
        await store.row(table, partition, key)


@pytest.mark.parametrize(
    "bad",
    [
        {"partition": (1,)},
        {"partition": (1, "0")},
        {"prefix": (1, b"", 1)},
        {"prefix": (b"",)},
        {"after": ("x",)},
        {"after": (None,)},
        {"limit": -1},
        {"prefix": (1,), "among": ("x",)},
        {"prefix": (1,), "among": (b"x",), "after": (1,)},
        {"prefix": (1, b"x"), "among": (b"x",)},
    ],
)
async def test_a_read_that_makes_no_sense_is_a_clear_error(store: Store, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ports"):
        await store.read(PORTS, **{"partition": (1, 0), **bad})


async def test_lists_by_project_keep_kinds_and_parts_apart(store: Store) -> None:
    project = f"p{next(fresh)}"
    await store.write([Write(BY_PROJECT, (project, kind, 0), (bytes([kind]),), (), 1) for kind in (1, 2)])
    assert (await store.read(BY_PROJECT, (project, 1, 0))).rows == [(b"\x01",)]


@pytest.mark.parametrize("table", [PORTS, BY_PROJECT, BY_HOST, HOSTS], ids=lambda table: table.name)
async def test_partition_keys_come_in_pages_each_once(store: Store, table: Table) -> None:
    wanted: set[Values] = set()
    for n in range(7):
        salt = next(fresh)
        kinds: dict[str, int | str | bytes] = {"bigint": salt, "text": f"page{salt}", "blob": bytes([n])}
        where = tuple(kinds[kind] for _, kind in table.partition)
        wanted.add(where)
        if table.guard:
            await store.commit(Batch(table, where, None, {table.guard: 1}))
        else:
            rows = [(*(kinds[kind] for _, kind in table.clustering[:-1]), bytes([row])) for row in range(3)]
            await store.write([Write(table, where, row, tuple(1 for _ in table.columns), 1) for row in rows])
    found: list[Values] = []
    while page := await store.partitions(table, after=found[-1] if found else (), limit=3):
        assert len(page) <= 3
        found += page
    assert len(found) == len(set(found))
    assert wanted <= set(found)
    assert sorted(found, key=repr) == sorted(await store.partitions(table), key=repr)
