"""Provisioning traces and latencies, as clients see them. Called by the REST edge through `services.Traces`."""

from collections.abc import Callable
from typing import Any

from planes.control import reads
from planes.control.changes import Record
from planes.management.caller import Caller
from planes.management.context import Context
from planes.model.errors import NotFound
from planes.model.ids import is_ours, parse, text
from planes.model.views import ChangeView, StageView


class Traces:
    """What happened to a change, and how long changes take."""

    def __init__(self, context: Context, latency: Callable[[], dict[str, Any]]) -> None:
        self._c = context
        self._latency = latency

    async def change(self, who: Caller, id: str) -> ChangeView:
        id_: bytes = parse(id.removeprefix("req-"), "change")
        if is_ours(id_):
            port = (await reads.ports(self._c.store, [id_])).get(id_)
            if port is not None and who.sees(port.project):
                id_ = port.change
        record = await self._c.plane.changes.get(id_)
        if record is None:
            raise NotFound(f"Change {id} could not be found.", "ChangeNotFound")
        return change_view(record)

    def latency(self) -> dict[str, Any]:
        return self._latency()


def change_view(record: Record) -> ChangeView:
    """The record in the words of the REST API."""
    return ChangeView(
        id="req-" + text(record.id),
        trace_id=record.trace_id,
        resource=record.resource,
        status=record.status,
        stages=tuple(
            StageView(
                name=stage.name, host=stage.host, start_us=stage.start, duration_us=stage.duration, error=stage.error
            )
            for stage in record.stages
        ),
        total_us=record.total,
    )
