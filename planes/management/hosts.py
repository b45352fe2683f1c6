"""Hosts, as operators see them. Called by the REST edge through `services.Resource`; the work is control's.

Only administrators change hosts; with authentication only they see them.
"""

import asyncio
from collections.abc import Sequence

from msgspec import UNSET

from planes.control.hosts import HostRow
from planes.management.caller import Caller
from planes.management.context import Context, iso
from planes.management.listing import matches, no_marker, page
from planes.model.addresses import ip_text
from planes.model.errors import not_found
from planes.model.query import Listing, Query
from planes.model.requests import HostCreate, HostUpdate
from planes.model.resources import HostState
from planes.model.views import HostView

#: hosts looked at before others have their turn
PAUSE = 200
_STATES = {HostState.FENCED: "fenced", HostState.PLANNED: "planned"}


class Hosts:
    """The collection `alcor/hosts`; a host's id is its name."""

    def __init__(self, context: Context) -> None:
        self._hosts = context.plane.hosts
        self._c = context

    async def create(self, who: Caller, wanted: Sequence[HostCreate]) -> list[HostView]:
        rows = await self._c.all_or_none(
            wanted,
            lambda item: self._hosts.plan(item.name, item.description),
            lambda row: self._hosts.forget(row.name),
        )
        return [self._view(row) for row in rows]

    async def get(self, who: Caller, id: str) -> HostView:
        await self._hosts.fetch(id)
        row = self._hosts.get(id)
        if row is None:
            raise not_found("host", id)
        return self._view(row)

    async def list(self, who: Caller, query: Query) -> Listing:
        rows = sorted(self._hosts.all(), key=lambda row: row.name, reverse=query.page_reverse)
        if query.sort:
            return page(await self._matching(rows, query, 0), query)
        if query.marker:
            place = next((n for n, row in enumerate(rows) if row.name == query.marker), None)
            if place is None:
                raise no_marker(query.marker)
            rows = rows[place + 1 :]
        views = list(await self._matching(rows, query, query.limit))
        more = bool(query.limit) and len(views) > query.limit
        items = views[: query.limit or None]
        return Listing(items[::-1] if query.page_reverse else items, more)

    async def _matching(self, rows: Sequence[HostRow], query: Query, most: int) -> Sequence[HostView]:
        """Those that pass the filters, in order; looks no further than one more than `most` (0: all)."""
        views: list[HostView] = []
        for number, row in enumerate(rows, 1):
            if number % PAUSE == 0:
                await asyncio.sleep(0)
            if matches(view := self._view(row), query.filters):
                views.append(view)
            if most and len(views) > most:
                break
        return views

    async def update(self, who: Caller, id: str, wanted: HostUpdate, if_match: int | None) -> HostView:
        if wanted.description is UNSET:
            return await self.get(who, id)
        row = await self._hosts.describe(id, wanted.description)
        if row is None:
            raise not_found("host", id)
        return self._view(row)

    async def delete(self, who: Caller, id: str, if_match: int | None) -> HostView:
        view = await self.get(who, id)
        await self._hosts.forget(id)
        return view

    def _view(self, row: HostRow) -> HostView:
        pulse = self._hosts.pulse(row.name)
        alive, silence = self._hosts.alive(row.name), self._hosts.silence(row.name)
        missing = (f"Its agent has not been heard for {silence:.0f} s; its traffic goes on.",) if silence else ()
        beat = pulse.beat if pulse else None
        return HostView(
            name=row.name,
            description=row.body.description,
            state=_STATES.get(HostState(row.state), "silent" if not alive else "late" if silence else "up"),
            alive=alive,
            underlay_address=ip_text(row.vtep) if row.vtep else "",
            number=row.body.number,
            epoch=row.epoch,
            cell=row.cell,
            capabilities=row.body.capabilities,
            version=row.body.version,
            ports=beat.ports if beat else 0,
            registered_at=iso(row.body.registered) if row.body.registered else None,
            last_beat=iso(pulse.at) if pulse else None,
            last_sync=iso(beat.last_sync) if beat and beat.last_sync else None,
            counters=dict(beat.counters) if beat else {},
            reasons=(*missing, *(beat.reasons if beat else ())),
        )
