"""What every management module works with: the control plane's parts, the limits, and a few small makers.

Made by `cloud.build`; holds no state of its own.
"""

import asyncio
import datetime
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from msgspec import Struct

from planes.control.feed import Entry
from planes.control.plane import ControlPlane
from planes.control.release import SHARED, part_of
from planes.management.caller import Caller
from planes.management.listing import matches, no_marker, page
from planes.model.enums import Kind
from planes.model.errors import Invalid, PreconditionFailed, Unavailable
from planes.model.ids import RANDOM_BITS, Id, make_id, parse
from planes.model.query import Listing, Query
from planes.store.protocol import StoreError, Values, Write
from planes.store.schema import BY_PROJECT

#: rows that a list may read for one page (rule D10), and how many it reads at a time
LIST_BOUND = 10_000
LIST_CHUNK = 500

#: ids in a row that share their first byte, and so the partitions of the feed and of the indexes
ALIKE = 128

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
        self.ground = plane.ground
        self.slots = plane.slots
        self.feed = plane.feed
        self.now = plane.now
        #: ids are unique, not secret: no system call for each
        self._random = random.Random(secrets.token_bytes(32))
        self._first = self._left = 0

    def new_id(self, home: int) -> Id:
        """Ids that are made one after the other begin alike: their index rows lie together and are written together."""
        if not self._left:
            self._first, self._left = self._random.getrandbits(8) << (RANDOM_BITS - 8), ALIKE
        self._left -= 1
        return make_id(home, self._first | self._random.getrandbits(RANDOM_BITS - 8))

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
    ) -> Listing:
        """A page of a project's objects of one kind, or of `ids` when an index already led to them (rule D10)."""
        if ids is None:
            ids = await self._indexed(who, kind, query)
        backward = query.page_reverse
        if query.sort and query.sort != (("id", False),):
            if len(ids) > LIST_BOUND:
                raise Invalid(f"Sorting by anything but id is limited to {LIST_BOUND} objects; filter first.")
            rows = await self._in_chunks(ids, views)
            return page([view for view in rows if matches(view, query.filters)], query)
        if query.marker:
            marker = parse(query.marker, "marker")
            if marker not in ids and not await views([marker]):
                raise no_marker(query.marker)
            ids = [id_ for id_ in ids if (id_ < marker if backward else id_ > marker)]
        ordered = list(reversed(ids)) if backward else list(ids)
        found: list[Any] = []
        read = 0
        for start in range(0, len(ordered), LIST_CHUNK):
            chunk = ordered[start : start + LIST_CHUNK]
            read += len(chunk)
            by_id = {view.id: view for view in await views(chunk) if matches(view, query.filters)}
            found += [by_id[key] for key in sorted(by_id, reverse=backward)]
            if query.limit and len(found) > query.limit:
                break
            if read >= LIST_BOUND and query.limit and found:
                break
        more = bool(query.limit) and (len(found) > query.limit or read < len(ordered))
        items = found[: query.limit] if query.limit else found
        return Listing(list(reversed(items)) if backward else items, more)

    async def _in_chunks(
        self, ids: Sequence[bytes], views: Callable[[Sequence[bytes]], Awaitable[list[Any]]]
    ) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(ids), LIST_CHUNK):
            found += await views(ids[start : start + LIST_CHUNK])
        return found

    async def _indexed(self, who: Caller, kind: int, query: Query) -> list[bytes]:
        """Ids from the project index, in order: the caller's and the shared, or what an administrator asks for."""
        if "id" in query.filters:
            return sorted({parse(value, "id") for value in query.filters["id"]})
        asked = query.filters.get("project_id", ()) + query.filters.get("tenant_id", ())
        if not who.admin:
            projects: Iterable[str] = {who.project, SHARED} if kind == Kind.NETWORK else {who.project}
        elif asked:
            projects = set(asked)
        else:
            every = await self.store.partitions(BY_PROJECT)
            projects = {str(partition[0]) for partition in every if partition[1] == kind}
        found: set[bytes] = set()
        for project in projects:
            for part in range(64):
                read = await self.store.read(BY_PROJECT, (project, int(kind), part))
                found.update(row[0] for row in read.rows)  # type: ignore[misc]
        return sorted(found)


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
