"""Provisioning traces, events and latencies, as clients see them. Called by the REST edge through `services.Traces`."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

from msgspec import Struct

from planes.control import reads
from planes.control.changes import Brief, Record, done_of
from planes.control.watch import Told, Watcher
from planes.goalstate.messages import Done, Finished
from planes.management.caller import Caller
from planes.management.context import Context
from planes.model.errors import NotFound
from planes.model.ids import is_ours, parse
from planes.model.views import ChangeView, EventView, StageView, View


class Wanted(Struct, frozen=True):
    """Which of the recent changes. Empty and 0: all."""

    limit: int
    status: str = ""
    resource: str = ""  # "port", or with its verb, "create port"
    object: str = ""
    least: int = 0  # µs that it took

    def fits(self, record: Record | Brief) -> bool:
        return (
            record.total >= self.least
            and self.status in ("", record.status)
            and self.object in ("", record.object)
            and self.resource in ("", record.resource, record.resource.partition(" ")[2])
        )


class Traces:
    """What happened, and how long it takes."""

    def __init__(self, context: Context, latency: Callable[[], dict[str, Any]]) -> None:
        self._c = context
        self._latency = latency

    async def change(self, who: Caller, id: str) -> ChangeView:
        id_: bytes = parse(id.removeprefix("req-"), "change")
        if is_ours(id_):
            port = await reads.port(self._c.store, id_)
            if port is not None and who.sees(port.project):
                id_ = port.change
        record = await self._c.plane.changes.get(id_)
        if record is None or not who.sees(record.project):
            raise NotFound(f"Change {id} could not be found.", "ChangeNotFound")
        return change_view(record)

    def changes(self, who: Caller, wanted: Wanted) -> list[ChangeView]:
        """What this instance remembers of its own, the newest first."""
        found = self._c.plane.changes.recent(lambda each: who.sees(each.project) and wanted.fits(each))
        return [change_view(record) for record in islice(found, wanted.limit)]

    @asynccontextmanager
    async def watching(self, who: Caller) -> AsyncIterator[Watcher]:
        async with self._c.plane.watch.watching("" if who.admin else who.project) as watcher:
            yield watcher

    def latency(self) -> dict[str, Any]:
        return self._latency()


def change_view(record: Record) -> ChangeView:
    """The record in the words of the REST API."""
    return _done_view(record.project, done_of(record))


def told_views(told: Told) -> Sequence[View]:
    """What was told, in the words of the REST API."""
    if isinstance(told, Finished):
        return [_done_view(told.project, done) for done in told.changes]
    return [
        EventView(
            project_id=told.project,
            resource=told.resource,
            verb=told.verb,
            id=event.id,
            name=event.name,
            revision_number=event.revision,
            status=event.status,
            status_reason=event.reason,
            network_id=event.network,
            host=event.host,
            at_us=event.at,
            change=event.change,
            took_us=event.took,
        )
        for event in told.events
    ]


def _done_view(project: str, done: Done) -> ChangeView:
    return ChangeView(
        id=done.change,
        trace_id=done.trace,
        project_id=project,
        resource=done.what,
        object_id=done.object,
        count=done.count,
        status=done.status,
        stages=tuple(
            StageView(name=took.name, host=took.host, start_us=took.start, duration_us=took.duration, error=took.error)
            for took in done.stages
        ),
        total_us=done.took,
    )
