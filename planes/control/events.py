"""Tells integrators and consoles what happened: events of resources, of their status, and finished changes.

Called by management after a commit and by the acks; what is told in one turn of the loop about one kind of thing leaves
as one message. Nothing waits for it, nothing is kept: who was away asks the REST API, and revisions say what is newer.
What must never happen: that an event that cannot be sent fails or slows the change that it is about.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from planes.bus.protocol import Bus, BusError
from planes.goalstate import codec
from planes.goalstate.messages import Done, Event, Events, Finished
from planes.goalstate.subjects import Subjects

T = TypeVar("T", Event, Done)

#: finished changes of one message: nine stages on eight hosts each fit
CHANGES = 64


class Teller:
    """One instance's outgoing events."""

    def __init__(self, bus: Bus, subjects: Subjects, instance: str) -> None:
        self._bus = bus
        self._subjects = subjects
        self._instance = instance
        self._pending: dict[tuple[str, str, str], list[Event]] = {}
        self.counters = {"events": 0, "events_unsent": 0}

    def tell(self, project: str, resource: str, verb: str, events: Sequence[Event]) -> None:
        """Say it at the end of this turn of the loop; in order, per object."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self.flush)
        self._pending.setdefault((project, resource, verb), []).extend(events)

    def flush(self) -> None:
        """Send what was told."""
        pending, self._pending = self._pending, {}
        for (project, resource, verb), events in pending.items():
            subject = self._subjects.event(project, resource, verb)
            for start in range(0, len(events), codec.MAX_OBJECTS):
                part = tuple(events[start : start + codec.MAX_OBJECTS])
                self._send(subject, partial(Events, project, resource, verb), part)

    def finished(self, changes: Sequence[tuple[str, Done]]) -> None:
        """Changes that have come to their end, each with its project."""
        by_project: dict[str, list[Done]] = {}
        for project, done in changes:
            by_project.setdefault(project, []).append(done)
        for project, ended in by_project.items():
            subject = self._subjects.event(project, "change", "finished")
            for start in range(0, len(ended), CHANGES):
                part = tuple(ended[start : start + CHANGES])
                self._send(subject, partial(Finished, project), part)

    def _send(self, subject: str, message: Callable[[tuple[T, ...]], Events | Finished], items: tuple[T, ...]) -> None:
        """As one message, or as several when that is too large: a change of many hosts is."""
        data = codec.encode(message(items), self._instance)
        if len(data) > codec.MAX_MESSAGE and (half := len(items) // 2):
            self._send(subject, message, items[:half])
            self._send(subject, message, items[half:])
            return
        try:
            if len(data) > codec.MAX_MESSAGE:
                raise BusError("larger than a message may be")
            self._bus.publish(subject, data)
            self.counters["events"] += len(items)
        except BusError:
            self.counters["events_unsent"] += len(items)
