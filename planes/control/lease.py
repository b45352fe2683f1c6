"""A lease: work that one instance does at a time, and when it was last done.

Called by the background check. A lease ends by itself; its holder may lose it while it works, so the work must be safe
beside another's.
"""

import logging
from collections.abc import Callable
from typing import cast

from planes.store.protocol import Batch, Store, StoreError, Value
from planes.store.schema import LEASES

log = logging.getLogger(__name__)

#: how long it lives without renewal, µs
LIFE = 120_000_000


class Lease:
    """`now` is the store's: all instances have the same."""

    def __init__(self, store: Store, name: str, owner: str, now: Callable[[], int]) -> None:
        self._store = store
        self._name = name
        self._owner = owner
        self._now = now
        self._until = 0

    async def due(self, every: int) -> bool:
        """Whether the work was last done `every` µs ago. Where it never was, that time begins now."""
        read = await self._store.read(LEASES, (self._name,))
        if not read.exists:
            await self.hold(self._now())
            return False
        return cast(int, read.statics[2]) + every <= self._now()

    async def hold(self, done: int | None = None) -> bool:
        """Take or renew it; `done`: the work is. False: another instance has it, or nobody knows."""
        now = self._now()
        if done is None and self._until > now + LIFE // 3:
            return True
        read = await self._store.read(LEASES, (self._name,), serial=True)
        until, owner, was = cast(tuple[int, str, int], read.statics) if read.exists else (0, "", now)
        # One that ends later than any lease may was taken before the clock was set back.
        if now < until <= now + 2 * LIFE and owner != self._owner:
            return False
        self._until = max(now + LIFE, until + 1)
        statics: dict[str, Value] = {"until": self._until, "owner": self._owner, "done": was if done is None else done}
        try:
            if await self._store.commit(Batch(LEASES, (self._name,), until if read.exists else None, statics)):
                return True
        except StoreError as error:
            log.debug("lease %s: %s", self._name, error)
        self._until = 0
        return False
