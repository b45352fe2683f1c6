"""Ids of a project's objects in order, out of its index, as many as a page needs (rule D10).

Called by `context` for every list that no other index leads to. It only reads.
"""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import groupby
from typing import Any, cast

from msgspec import Struct

from planes.control.indexes import LEADING, mark_of, part_of
from planes.model.addresses import BUCKET_SHIFT
from planes.model.enums import Kind
from planes.store.protocol import Store
from planes.store.schema import BY_PROJECT

#: rows that a list may read for one page (rule D10), and how many it reads at a time
LIST_BOUND = 10_000
LIST_CHUNK = 500
#: parts of an index, by the first bits of an id, and of how many a list reads at a time
PARTS, ABREAST = 64, 16
#: how many parts a long page begins with: one after the other they would be as many round trips
WIDE = 4
#: buckets that are read side by side
BUCKETS = 32

#: (keys of an index, an id, a number): ids that the keys stand for, in order, behind the id, of about so many objects
#: (0: all), and behind which more may come (empty: no more)
Expand = Callable[[Sequence[bytes], bytes, int], Awaitable[tuple[Sequence[bytes], bytes]]]


class Asked(Struct, frozen=True):
    """Whose objects of which kind, behind (`backward`: before) which id, and how many at a time."""

    projects: Sequence[str]
    kind: int
    marker: bytes = b""
    backward: bool = False
    size: int = LIST_CHUNK


class ProjectIndex:
    """The table `by_project`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def names(self, asked: Asked) -> bool:
        """Whether the index leads to the marker, though its object may be gone."""
        id_, kind = asked.marker, asked.kind
        keys = (id_, mark_of(id_)) if kind == Kind.PORT else (id_,)
        where = [(project, int(kind), part_of(id_)) for project in asked.projects]
        return any([(await self._store.read(BY_PROJECT, part, among=keys)).rows for part in where])

    async def ids(self, asked: Asked, expand: Expand | None = None) -> AsyncIterator[Sequence[bytes]]:
        """Ids in order, from the marker on, some at a time.

        `expand`: where keys stand for several objects, whose ids begin as the key does.
        """
        if expand is None:
            async for keys in self._keys(asked, asked.marker):
                for start in range(0, len(keys), LIST_CHUNK):
                    yield keys[start : start + LIST_CHUNK]
            return
        found = seen = looked = 0
        width = (asked.size >> BUCKET_SHIFT) + 1
        inside = bool(asked.marker)
        async for keys in self._keys(asked, asked.marker[:LEADING]):
            groups = [list(alike) for _, alike in groupby(keys, lambda key: key[:LEADING])]
            while groups:
                some, groups = groups[:width], groups[width:]
                left = asked.size - found if asked.marker else asked.size
                size, before = left if left > 0 else LIST_CHUNK, found
                async for ids in _expanded([key for group in some for key in group], asked, size, expand):
                    found += len(ids)
                    yield ids
                if inside:  # how much of the first one lies behind the marker says nothing of the others
                    inside, width = False, (max(0, asked.size - found) >> BUCKET_SHIFT) + 1
                    continue
                looked, seen = looked + len(some), seen + found - before
                width = _width(asked.size - found, looked, seen)

    async def _keys(self, asked: Asked, marker: bytes) -> AsyncIterator[list[bytes]]:
        """Keys in order, from the marker on, those that begin alike never apart: the parts of the index follow each
        other as the keys do.

        Of a part at most a chunk is read at once; parts that hold little are read many at once.
        """
        size, backward = max(LIST_CHUNK, asked.size), asked.backward
        first = part_of(marker) if marker else PARTS - 1 if backward else 0
        parts = list(range(first, -1, -1) if backward else range(first, PARTS))
        width = WIDE if asked.size >= LIST_CHUNK else 1
        while parts:
            some, parts = parts[:width], parts[width:]
            pages = await asyncio.gather(*(self._part(asked, part, marker, size) for part in some))
            width = min(ABREAST, width * 2) if sum(map(len, pages)) < LIST_CHUNK else 1
            done: list[bytes] = []
            for part, keys in zip(some, pages, strict=True):
                more = len(keys) == size and not backward
                while more:
                    cut = bisect_left(keys, keys[-1][:LEADING])
                    if done or cut:
                        yield done + keys[:cut]
                    page = await self._part(asked, part, keys[-1], size)
                    done, keys, more = [], keys[cut:] + page, len(page) == size
                done += keys
            if done:
                yield done

    async def _part(self, asked: Asked, part: int, marker: bytes, size: int) -> list[bytes]:
        """The next keys of a part of the index, behind the marker; backward, all of them that begin no later."""
        found: set[bytes] = set()
        for project in asked.projects:
            beyond: dict[str, Any] = {} if asked.backward else {"after": (marker,) if marker else (), "limit": size}
            read = await self._store.read(BY_PROJECT, (project, int(asked.kind), part), **beyond)
            found.update(cast(bytes, row[0]) for row in read.rows)
        if asked.backward:
            return sorted((id_ for id_ in found if not marker or id_[: len(marker)] <= marker), reverse=True)
        return sorted(found)[:size]


async def _expanded(keys: Sequence[bytes], asked: Asked, size: int, expand: Expand) -> AsyncIterator[Sequence[bytes]]:
    """What some keys stand for, from the marker on, so many first."""
    marker = asked.marker
    if asked.backward:
        ids, _ = await expand(keys, b"", 0)
        yield [id_ for id_ in reversed(ids) if not marker or id_ < marker]
        return
    ids, last = await expand(keys, marker, size)
    yield ids
    while last:
        size = min(2 * size, LIST_BOUND)
        ids, last = await expand(keys, last, size)
        yield ids


def _width(left: int, looked: int, seen: int) -> int:
    """How many groups of keys are likely to have what is left of a page, after so many with what was seen in them;
    where a page is full, most did not suit."""
    return BUCKETS if left <= 0 else max(1, min(BUCKETS, -(-left * looked // max(1, seen))))
