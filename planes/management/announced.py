"""Around a collection: what it does becomes an event for integrators and a finished change for operators.

Made by `cloud.Cloud`, a line for each collection; the collection itself knows nothing of it. Only what succeeded is
told, and only after it is stored.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from observability.stages import request_id
from planes.control.plane import ControlPlane
from planes.goalstate.messages import Event
from planes.management.caller import Caller
from planes.management.ports import Ports
from planes.management.services import Resource
from planes.model.ids import text
from planes.model.views import PortView, View

V = TypeVar("V", bound=View)


class Announced(Generic[V]):
    """A collection whose changes are told. `resource` is the REST API's singular."""

    def __init__(self, plane: ControlPlane, resource: str, inner: Resource) -> None:
        self._plane = plane
        self._resource = resource
        self._inner = inner
        self.get, self.list = inner.get, inner.list  # nothing to tell

    async def create(self, who: Caller, wanted: Sequence[Any]) -> list[V]:
        views: list[V] = await self._inner.create(who, wanted)
        self._told(who, "create", views)
        return views

    async def update(self, who: Caller, id: str, wanted: Any, if_match: int | None) -> V:
        view: V = await self._inner.update(who, id, wanted, if_match)
        self._told(who, "update", [view])
        return view

    async def delete(self, who: Caller, id: str, if_match: int | None) -> Any:
        row = await self._inner.delete(who, id, if_match)
        now = self._plane.now()
        key = text(row.id) if hasattr(row, "id") else row.name
        network = getattr(row, "network", b"")
        # Revisions follow the clock; should it have been set back, the row's own still was the last but this.
        revision = max(now, getattr(row, "rev", 0) + 1)
        event = Event(
            key,
            revision,
            now,
            getattr(row, "name", ""),
            network=text(network) if network else "",
            host=getattr(row, "host", ""),
            change=request_id(who.change.id),
            took=now - who.change.begun,
        )
        self._tell(who, getattr(row, "project", ""), "delete", [event])
        return row

    def _told(self, who: Caller, verb: str, views: Sequence[View]) -> None:
        now, change = self._plane.now(), who.change
        id_, took = request_id(change.id), now - change.begun
        by_project: dict[str, list[Event]] = {}
        for view in views:
            by_project.setdefault(getattr(view, "project_id", ""), []).append(self._event(view, now, id_, took))
        for project, events in by_project.items():
            self._tell(who, project, verb, events)

    def _event(self, view: Any, now: int, change: str, took: int) -> Event:
        return Event(
            getattr(view, "id", "") or getattr(view, "name", ""),
            getattr(view, "revision_number", now),
            now,
            getattr(view, "name", ""),
            getattr(view, "status", ""),
            getattr(view, "status_reason", ""),
            getattr(view, "network_id", ""),
            getattr(view, "host_id", ""),
            change,
            took,
        )

    def _tell(self, who: Caller, project: str, verb: str, events: Sequence[Event]) -> None:
        change = who.change
        if not change.count:  # nobody follows it to hosts: it has come to its end
            change.concerns(project, events[0].id, len(events))
            self._plane.changes.follow(change)
        self._plane.teller.tell(project, self._resource, verb, events)


class AnnouncedPorts(Announced[PortView]):
    """Ports can also be waited for."""

    def __init__(self, plane: ControlPlane, inner: Ports) -> None:
        super().__init__(plane, "port", inner)
        self.settled = inner.settled
        self.gone = inner.gone

    def _event(self, view: PortView, now: int, change: str, took: int) -> Event:
        """The same; ports are many, and have all of it."""
        status, reason = view.status, view.status_reason
        return Event(
            view.id, view.revision_number, now, view.name, status, reason, view.network_id, view.host_id, change, took
        )
