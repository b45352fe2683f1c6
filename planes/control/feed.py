"""The feed: what was about to change, written before anything else, read again a few seconds later (rule D6).

Management writes a row before each change; the echo reads those that are 10 s old. The rows are spread over 64 parts;
a part is read by the instance that holds its lease, from the position that the lease remembers.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from planes.model.resources import Body
from planes.store.protocol import Batch, Store, StoreError, Value, Write
from planes.store.schema import FEED, LEASES

log = logging.getLogger(__name__)

PARTS = 64
MINUTE = 60_000_000
#: how long a lease lives without renewal, µs
LEASE = 30_000_000
#: how far back an instance looks where nobody ever read, µs
BACKWARD = 10 * MINUTE
#: rows of a part after which no further minute is looked at
MOST = 1000
#: delays after which an unfinished change is looked at again, µs after the first look
AGAIN = (0, 50_000_000, 590_000_000)


class Entry(Body, frozen=True):
    """One feed row's args: which objects, and what to undo for those that never came to be."""

    kind: int  # of the objects
    ids: tuple[bytes, ...]
    create: bool = False
    network: bytes = b""
    project: str = ""
    index: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = ()  # (table, partition, clustering)
    buckets: tuple[int, ...] = ()  # where addresses or a MAC may have been claimed outside the home bucket
    vni_block: int = -1  # where a network has its VNI; −1: not to be freed
    attempt: int = 0


_decode = msgspec.msgpack.Decoder(Entry).decode
_encode = msgspec.msgpack.Encoder().encode


class Feed:
    """Writes rows, and reads those whose time has come. `now` is the store's: all instances have the same."""

    def __init__(self, store: Store, instance: str, now: Callable[[], int], window: int) -> None:
        self._store = store
        self._instance = instance
        self._now = now
        self.window = window  # µs that a row must be old
        self._held: dict[int, tuple[int, int]] = {}  # part: (until, done)
        self._others: dict[int, int] = {}  # part: until when another instance has it, as of the last look

    def row(self, id_: bytes, entry: Entry) -> Write:
        """The write that announces a change; at most 5 s before its commit."""
        return self._row(self._now(), id_, entry)

    def again(self, id_: bytes, entry: Entry) -> Write | None:
        """The write that brings an unfinished change back later; None: it has been tried often enough."""
        if entry.attempt >= len(AGAIN):
            return None
        return self._row(self._now() + AGAIN[entry.attempt], id_, replace(entry, attempt=entry.attempt + 1))

    def _row(self, at: int, id_: bytes, entry: Entry) -> Write:
        return Write(FEED, (at // MINUTE, id_[0] % PARTS), (at, id_), (int(entry.kind), _encode(entry)), at)

    async def due(self, part: int) -> tuple[list[tuple[bytes, Entry]], int]:
        """Rows of a part whose time has come, if this instance holds its lease, and the position after them."""
        lease = await self._lease(part)
        if lease is None:
            return [], 0
        until = self._now() - self.window
        # A clock that was set back must not hide what comes, nor one that was set forward make us look for years.
        done = max(min(lease[1], until), until - FEED.ttl * 1_000_000)
        found: list[tuple[bytes, Entry]] = []
        for minute in range(done // MINUTE, until // MINUTE + 1):
            read = await self._store.read(FEED, (minute, part), after=(done,) if done // MINUTE == minute else ())
            for row in read.rows:
                at, id_, _, args = cast(tuple[int, bytes, int, bytes], row)
                if done < at <= until:
                    found.append((id_, _decode(args)))
            if len(found) >= MOST:  # what is left of a long time away comes with the next turns
                return found, min(until, (minute + 1) * MINUTE - 1)
            await asyncio.sleep(0)
        return found, until

    async def settle(self, part: int, position: int, found: bool, later: Sequence[Write]) -> None:
        """What was due up to `position` is done, but for what `later` brings back. `found`: something was due.

        Where nothing was, the position is written when the lease is half over: who takes over before that looks at
        nothing once more. Then turns that are less than a lease apart never let it run out.
        """
        if later:
            await self._store.write(later)
        lease = self._held.get(part)
        if lease is None:
            return
        if found or lease[0] <= self._now() + LEASE // 2:
            await self._renew(part, lease[0], position)
        else:
            self._held[part] = (lease[0], position)

    async def _lease(self, part: int) -> tuple[int, int] | None:
        """(until, done) of the lease if it is ours, taking it when it has run out."""
        now, held = self._now(), self._held.get(part)
        if held is not None:
            if held[0] > now + LEASE // 3:
                return held
            return await self._renew(part, *held)
        if _runs(self._others.get(part), now):
            return None  # a lease is never given back, so there is nothing to read before it ends
        read = await self._store.read(LEASES, (f"feed/{part}",), serial=True)
        never = (None, "", now - BACKWARD)
        until, owner, done = cast("tuple[int | None, str, int]", read.statics if read.exists else never)
        if until is not None and owner != self._instance and _runs(until, now):
            self._others[part] = until
            return None
        return await self._renew(part, until, done)

    async def _renew(self, part: int, expect: int | None, done: int) -> tuple[int, int] | None:
        until = max(self._now() + LEASE, (expect or 0) + 1)
        statics: dict[str, Value] = {"until": until, "owner": self._instance, "done": done}
        try:
            if await self._store.commit(Batch(LEASES, (f"feed/{part}",), expect, statics)):
                self._held[part] = (until, done)
                return self._held[part]
        except StoreError as error:
            log.debug("lease of part %d: %s", part, error)
        self._held.pop(part, None)
        return None


def _runs(until: int | None, now: int) -> bool:
    """Whether a lease is alive; one that ends later than any lease may was taken before the clock was set back."""
    return until is not None and now < until <= now + 2 * LEASE
