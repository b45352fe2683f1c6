"""A store under test, and keys and rows to put into it; used by the contract suites."""

from collections.abc import Callable
from itertools import count
from typing import Any

from planes.store.protocol import Batch, Store, Values, Write
from planes.store.schema import BY_HOST, PORTS, Table

fresh = count(1)


class Rig:
    """A store, and a way to come back to the same data as a new process would."""

    def __init__(self, make: Callable[[], Store]) -> None:
        self._make = make
        self.store = make()

    async def reopen(self) -> Store:
        await self.store.close()
        self.store = self._make()
        await self.store.open()
        return self.store


def bucket() -> Values:
    """A partition of PORTS that no other test uses."""
    return (next(fresh), 0)


def batch(partition: Values, expect: int | None, top: int, *keys: bytes, **more: Any) -> Batch:
    """Put rows of kind 1 that all carry `top` as their body."""
    rows: list[Values] = [(1, key, top, str(top).encode()) for key in keys]
    return Batch(PORTS, partition, expect, {"top": top, **more}, rows)


def sample(table: Table, salt: int) -> dict[str, Values]:
    """Values of every column of a table."""
    made = {"bigint": salt, "text": f"t{salt}é", "blob": bytes([0, 255, salt % 256])}
    return {
        part: tuple(made[kind] for _, kind in getattr(table, part))  # type: ignore[misc]
        for part in ("partition", "clustering", "columns", "statics")
    }


def by_host(host: str, rev: int | None, stamp: int) -> Write:
    return Write(BY_HOST, (host,), (b"id",), None if rev is None else (rev,), stamp)
