"""What every management module works with: the control plane's parts, the limits, and a few small makers.

Made by `cloud.build`; holds no state of its own.
"""

import asyncio
import datetime
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from msgspec import Struct

from planes.control.feed import Entry
from planes.control.indexes import SHARED, part_of
from planes.control.plane import ControlPlane
from planes.management.caller import Caller
from planes.management.listing import matches, no_marker, page
from planes.management.project_index import LIST_BOUND, LIST_CHUNK, Asked, Expand, ProjectIndex
from planes.model.enums import Kind
from planes.model.errors import Invalid, PreconditionFailed, Unavailable
from planes.model.ids import LAST_BITS, TURN_BITS, Id, leading, make_id, parse
from planes.model.query import Listing, Query
from planes.store.protocol import StoreError, Values, Write
from planes.store.schema import BY_PROJECT

#: resource names of quotas, by kind
RESOURCES = {
    Kind.NETWORK: "network",
    Kind.SUBNET: "subnet",
    Kind.PORT: "port",
    Kind.GROUP: "security_group",
    Kind.RULE: "security_group_rule",
}

T = TypeVar("T")


class ManagementConfig(Struct, frozen=True):
    """What an operator may set."""

    quotas: dict[str, int] = {}  # by resource name; absent: −1, no limit
    mtu: int = 1450  # the largest that fits the underlay
    release_wait: float = 5.0  # seconds that a request for an address waits for its former host (rule S19)
    quarantine: float = 60.0  # seconds before a freed address is chosen again without need
    rules_per_group: int = 100
    instance_spread: bool = True  # instances start at different buckets


class Context:
    """The parts and limits."""

    def __init__(self, plane: ControlPlane, config: ManagementConfig) -> None:
        self.plane = plane
        self.config = config
        self.store = plane.store
        self._index = ProjectIndex(plane.store)
        self.ground = plane.ground
        self.slots = plane.slots
        self.feed = plane.feed
        self.now = plane.now
        #: ids are unique, not secret: no system call for each
        self._random = random.Random(secrets.token_bytes(32))
        self._turn = self._random.getrandbits(TURN_BITS)

    def new_id(self, home: int) -> Id:
        """A new id. Those that one instance makes of a home, one after the other, are in order."""
        self._turn = (self._turn + 1) % (1 << TURN_BITS)
        return make_id(home, leading(home) | self._turn << LAST_BITS | self._random.getrandbits(LAST_BITS))

    def limit(self, kind: int) -> int:
        return self.config.quotas.get(RESOURCES[Kind(kind)], -1)

    async def announce(self, id_: Id, entry: Entry, index: Sequence[Write]) -> None:
        """Feed row and index rows, side by side: what precedes every creation."""
        await self.write([self.feed.row(id_, entry), *index])

    async def write(self, writes: Sequence[Write]) -> None:
        """Idempotent writes; tried again once, then 503."""
        try:
            await self.store.write(writes)
        except StoreError:
            try:
                await self.store.write(writes)
            except StoreError as error:
                raise Unavailable(f"The store does not answer: {error}") from error

    def project_index(self, kind: int, id_: Id, project: str) -> tuple[Any, Values, Values]:
        return (BY_PROJECT, (project, int(kind), part_of(id_)), (id_,))

    async def all_or_none(
        self, wanted: Sequence[Any], one: Callable[[Any], Awaitable[T]], undo: Callable[[T], Awaitable[None]]
    ) -> list[T]:
        """Create one after the other; when one fails, the others are deleted."""
        made: list[T] = []
        try:
            for item in wanted:
                made.append(await one(item))  # noqa: PERF401 – what was made before a failure must be known
        except BaseException:
            for done in reversed(made):
                await asyncio.shield(undo(done))
            raise
        return made

    async def listed(
        self,
        who: Caller,
        kind: int,
        query: Query,
        views: Callable[[Sequence[bytes]], Awaitable[list[Any]]],
        ids: Sequence[bytes] | None = None,
        expand: Expand | None = None,
    ) -> Listing:
        """A page of a project's objects of one kind, or of `ids` when an index already led to them (rule D10).

        `expand`: what keys of the project's index stand for.
        """
        if ids is None and "id" in query.filters:
            ids = sorted({parse(value, "id") for value in query.filters["id"]})
        projects = [] if ids is not None else await self.projects(who, kind, query)
        if query.sort and query.sort != (("id", False),):
            source = _slices(ids) if ids is not None else self._index.ids(Asked(projects, kind), expand)
            return await self._sorted(source, query, views)
        marker, backward = b"", query.page_reverse
        if query.marker:
            marker = parse(query.marker, "marker")
            known = marker in ids if ids is not None else await self._index.names(Asked(projects, kind, marker))
            if not known and not await views([marker]):
                raise no_marker(query.marker)
        if ids is not None:
            left = [id_ for id_ in ids if not marker or (id_ < marker if backward else id_ > marker)]
            source = _slices(left[::-1] if backward else left)
        else:
            size = min(query.limit + 1, LIST_BOUND) if query.limit else LIST_BOUND
            source = self._index.ids(Asked(projects, kind, marker, backward, size), expand)
        found: list[Any] = []
        read, stopped = 0, False
        async for chunk in _gathered(source, query.limit):
            read += len(chunk)
            by_id = {view.id: view for view in await views(chunk) if matches(view, query.filters)}
            found += [by_id[key] for key in sorted(by_id, reverse=backward)]
            stopped = bool(query.limit) and (len(found) > query.limit or (read >= LIST_BOUND and bool(found)))
            if stopped:
                break
        items = found[: query.limit] if query.limit else found
        return Listing(list(reversed(items)) if backward else items, stopped)

    async def _sorted(
        self, source: AsyncIterator[Sequence[bytes]], query: Query, views: Callable[..., Awaitable[list[Any]]]
    ) -> Listing:
        ids: list[bytes] = []
        async for chunk in source:
            ids += chunk
            if len(ids) > LIST_BOUND:
                raise Invalid(f"Sorting by anything but id is limited to {LIST_BOUND} objects; filter first.")
        rows = [view async for chunk in _slices(ids) for view in await views(chunk)]
        return page([view for view in rows if matches(view, query.filters)], query)

    async def projects(self, who: Caller, kind: int, query: Query) -> list[str]:
        """Whose objects a list holds: the caller's and the shared, or what an administrator asks for."""
        asked = query.filters.get("project_id", ()) + query.filters.get("tenant_id", ())
        if not who.admin:
            return [who.project, SHARED] if kind == Kind.NETWORK else [who.project]
        if asked:
            return sorted(set(asked))
        every = await self.store.partitions(BY_PROJECT)
        return sorted({str(partition[0]) for partition in every if partition[1] == kind})


async def _gathered(source: AsyncIterator[Sequence[bytes]], limit: int) -> AsyncIterator[Sequence[bytes]]:
    """The same ids, as many together as a page needs, then more: ports of one bucket are read together."""
    size = min(limit + 1, LIST_BOUND) if limit else LIST_BOUND
    held: list[bytes] = []
    async for chunk in source:
        held += chunk
        while len(held) >= size:
            yield held[:size]
            held, size = held[size:], max(size, min(2 * size, LIST_CHUNK))
    if held:
        yield held


async def _slices(ids: Sequence[bytes]) -> AsyncIterator[Sequence[bytes]]:
    for start in range(0, len(ids), LIST_CHUNK):
        yield ids[start : start + LIST_CHUNK]


def iso(us: int) -> str:
    """Neutron's spelling of a time: whole seconds, UTC."""
    return _spelled(us // 1_000_000)


@lru_cache(4096)
def _spelled(second: int) -> str:
    return datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_revision(if_match: int | None, current: int) -> None:
    """Raise PreconditionFailed when the revision that the client named is no longer current."""
    if if_match is not None and if_match != current:
        raise PreconditionFailed(f"Constraint of revision_number={if_match} does not match {current}.")


def asked_project(wanted: Any) -> str:
    """`project_id` of a request, under either of its names."""
    for name in ("project_id", "tenant_id"):
        value = getattr(wanted, name, None)
        if isinstance(value, str):
            return value
    return ""
