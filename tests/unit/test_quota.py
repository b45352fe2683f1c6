"""A place in a quota is found and given back in one block, however large the limit; it stays exact. 1 s."""

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from planes.model.errors import OverQuota
from planes.model.ids import make_id
from planes.store import slots
from planes.store.partitions import Partitions
from planes.store.schema import SLOTS
from planes.store.slots import Slots
from planes.store.sqlite.store import SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "quota.db")
    await store.open()
    yield store
    await store.close()


def _quota(store: SqliteStore) -> Slots:
    return Slots(Partitions(store, lambda: 1_800_000_000_000_000))


def _owners(count: int, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    return [make_id(7, rng.getrandbits(60)) for _ in range(count)]


async def _held(store: SqliteStore) -> list[bytes]:
    pages = [await store.read(SLOTS, where) for where in await store.partitions(SLOTS, limit=10_000)]
    return [cast(bytes, row[1]) for page in pages for row in page.rows]


async def test_of_a_large_limit_one_block_is_looked_at(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read, looks = store.read, list[object]()

    async def counted(*args: object, **options: object) -> object:
        looks.append(args)
        return await read(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "read", counted)
    monkeypatch.setattr(slots, "BLOCK", 8)
    owners = _owners(100)
    for act in ("claim_quota", "free_quota"):
        looks.clear()
        for owner in owners:  # each time another instance, that remembers nothing
            await getattr(_quota(store), act)("p", "port", [owner], 100_000)
        assert len(looks) <= 2 * len(owners)
    assert await _held(store) == []


async def test_every_place_of_every_block_is_given_and_no_more(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "BLOCK", 8)
    quota, owners = _quota(store), _owners(30)
    for owner in owners[:20]:
        await quota.claim_quota("p", "port", [owner], 30)
    with pytest.raises(OverQuota):
        await quota.claim_quota("p", "port", _owners(11, seed=2), 30)
    assert len(await _held(store)) == 20  # all or none
    await quota.claim_quota("p", "port", owners[20:], 30)
    assert sorted(await _held(store)) == [n.to_bytes(4, "big") for n in range(30)]
    with pytest.raises(OverQuota):
        await quota.claim_quota("p", "port", _owners(1, seed=3), 30)
    await quota.free_quota("p", "port", owners, 30)
    assert await _held(store) == []


async def test_a_place_from_under_another_limit_is_given_back(store: SqliteStore) -> None:
    """The limit says where the search begins, not what it finds."""
    owners = _owners(20)
    await _quota(store).claim_quota("p", "port", owners, 1024)
    await _quota(store).free_quota("p", "port", owners, 50_000)
    assert await _held(store) == []


async def test_no_place_below_a_limit_of_none(store: SqliteStore) -> None:
    with pytest.raises(OverQuota):
        await _quota(store).claim_quota("p", "port", _owners(1), 0)
    await _quota(store).claim_quota("p", "port", _owners(1), -1)
    await _quota(store).free_quota("p", "port", _owners(1), -1)
    assert await _held(store) == []
