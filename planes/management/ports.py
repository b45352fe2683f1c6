"""Ports: create, read, list, delete, and waiting for their hosts. Called by the REST edge through `services.Ports`.

Updates are in `port_update`, creation in `port_create`.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from msgspec.structs import replace

from planes.control import reads
from planes.control.acks import reason, word
from planes.control.feed import Entry
from planes.control.indexes import index_rows, names
from planes.control.reads import Status
from planes.management import port_plans
from planes.management.caller import Caller
from planes.management.context import Context, check_revision, iso
from planes.management.groups import Groups
from planes.management.port_checks import PortChecks
from planes.management.port_create import BucketFull, Plan, PortCreation
from planes.management.port_gather import PortGather
from planes.management.port_lists import PortList
from planes.management.port_plans import Fields
from planes.management.port_update import PortChange
from planes.model.addresses import bucket, ip_text, mac_text
from planes.model.enums import Kind
from planes.model.enums import Status as Word
from planes.model.errors import AlcorError, Unavailable, not_found
from planes.model.ids import Id, bucket_of, common_text, is_ours, parse, place_of, text
from planes.model.query import Listing, Query
from planes.model.requests import PortCreate, PortUpdate
from planes.model.resources import Address, AddressState, Port, PortState
from planes.model.views import AddressPairView, FixedIpView, PortView
from planes.store.partitions import BATCH
from planes.store.views import Draft

T = TypeVar("T")
#: `binding:vif_details`: of a bound port, by whether it has port security, and of one that is not
_DETAILS, _NO_DETAILS = {secure: {"port_filter": secure} for secure in (False, True)}, dict[str, Any]()


class Ports:
    """The collection `ports`."""

    def __init__(self, context: Context, groups: Groups) -> None:
        self._c = context
        self._creation = PortCreation(context, groups)
        self._groups = groups
        self._change = PortChange(context, self._creation, groups)
        self._gather = PortGather(self._make)
        #: of requests that came in this turn of the loop, by what their callers see and own
        self._begun: dict[tuple[str, bool], PortChecks] = {}

    # -- create -----------------------------------------------------------------------------------------------------

    async def create(self, who: Caller, wanted: Sequence[PortCreate]) -> list[PortView]:
        change, checks = who.change, self._checks(who)
        fields = [await checks.check(item, change) for item in wanted]
        change.mark("validate")
        gathered = len(fields) == 1 and port_plans.at_choice(fields[0])
        ports = [await self._gather.made(fields[0])] if gathered else await self._make(fields)
        traceparent = change.traceparent
        for port in ports:
            if port.host or port.leaving:
                self._c.ground.publish_port(port, traceparent)
        self._follow(who, ports)
        return [self._view(port, None) for port in ports]

    def _checks(self, who: Caller) -> PortChecks:
        """While others are under way the same for all of one turn of the loop whose callers see and own the same."""
        if self._gather.idle:
            return PortChecks(self._c, self._groups, who)
        key = (who.project, who.admin)
        checks = self._begun.get(key)
        if checks is None:
            checks = self._begun[key] = PortChecks(self._c, self._groups, who)
            asyncio.get_running_loop().call_soon(self._begun.pop, key)
        return checks

    async def _make(self, fields: Sequence[Fields]) -> list[Port]:
        """All of them, or none."""
        creation, plans = self._creation, list[Plan]()
        changes = {id(each.change): each.change for each in fields}.values()
        try:
            await creation.plan_all(fields, plans)
            await self._claim(plans)
            for change in changes:
                change.mark("claim")
            ports = await self._commit(plans)
        finally:
            creation.landed(plans)
        for change in changes:
            change.mark("write")
        return ports

    async def _claim(self, plans: Sequence[Plan]) -> None:
        try:
            await self._creation.claim(plans)
        except AlcorError as error:
            await self._give_up(plans, error)
            raise

    async def _commit(self, plans: Sequence[Plan]) -> list[Port]:
        """All of them, or none."""
        creation = self._creation
        ports = [await self._one(plans[0])] if len(plans) == 1 else await self._many(plans)
        try:
            for looks in [plans[0].looks] if len(plans) == 1 else {id(p.looks): p.looks for p in plans}.values():
                await self._groups.looks.stand(ports, looks)
        except AlcorError:
            await self._undo(ports)
            raise
        for plan, port in zip(plans, ports, strict=True):
            if plan.outside:
                await creation.confirm(port)
        return ports

    async def _many(self, plans: Sequence[Plan]) -> list[Port]:
        """Those of one home bucket together, all of them side by side."""
        done = await _all(self._share(share) for share in _shares(plans))
        made = {port.id: port for item in done if not isinstance(item, BaseException) for port in item}
        ports = [made[plan.id] for plan in plans if plan.id in made]
        if failed := [item for item in done if isinstance(item, BaseException)]:
            await self._undo(ports)
            raise failed[0]
        return ports

    async def _share(self, plans: Sequence[Plan]) -> list[Port]:
        """Plans of one home bucket: at once, or one by one when the bucket has not room for all."""
        if len(plans) > 1:
            try:
                return await self._creation.commit_together(plans)
            except BucketFull:
                pass
            except AlcorError as error:
                await self._give_up(plans, error)
                raise
        done = await _all(self._one(plan) for plan in plans)
        ports = [item for item in done if isinstance(item, Port)]
        if failed := [item for item in done if isinstance(item, BaseException)]:
            await self._undo(ports)
            raise failed[0]
        return ports

    async def _undo(self, ports: Sequence[Port]) -> None:
        for port in ports:
            await asyncio.shield(self._delete(port, port.change))

    async def _one(self, plan: Plan) -> Port:
        try:
            return await self._creation.commit(plan)
        except AlcorError as error:
            await self._give_up([plan], error)
            raise

    async def _give_up(self, plans: Sequence[Plan], error: AlcorError) -> None:
        """Take claims back; but where a commit may have happened, the echo finds out and finishes or undoes it."""
        if not isinstance(error, Unavailable):
            await asyncio.shield(self._creation.withdraw(plans))

    def _follow(self, who: Caller, ports: Sequence[Port], published: bool = True) -> None:
        """The change ends when the hosts of these ports have answered, or now when nothing was said to them."""
        who.change.mark("publish")
        who.change.concerns(ports[0].project, text(ports[0].id), len(ports))
        awaited = [port for port in ports if port.host or port.leaving] if published else ()
        self._c.plane.changes.follow(who.change, awaited)

    # -- read -------------------------------------------------------------------------------------------------------

    async def find(self, who: Caller, id: str) -> Port:
        """The live port, read from the store; raises PortNotFound."""
        id_ = parse(id, "port_id")
        port = await reads.port(self._c.store, id_) if is_ours(id_) else None
        if port is None or port.state != PortState.LIVE or not who.sees(port.project):
            raise not_found("port", id)
        return port

    async def get(self, who: Caller, id: str) -> PortView:
        return await self._shown(await self.find(who, id))

    async def _shown(self, port: Port) -> PortView:
        return self._view(port, await reads.status(self._c.store, port))

    async def list(self, who: Caller, query: Query) -> Listing:
        return await PortList(self._c, who, query, self._view).page()

    # -- change and delete ------------------------------------------------------------------------------------------

    async def update(self, who: Caller, id: str, wanted: PortUpdate, if_match: int | None) -> PortView:
        old = await self.find(who, id)
        port = await self._change.update(who, old, wanted, if_match)
        who.change.mark("write")
        changed = port.goal_rev != old.goal_rev
        if changed:
            self._c.ground.publish_port(port, who.change.traceparent)
            await self._change.after(old, port)
        self._follow(who, [port], changed)
        return await self._shown(port)

    async def delete(self, who: Caller, id: str, if_match: int | None) -> Port:
        port = await self.find(who, id)
        check_revision(if_match, port.rev)
        who.change.mark("validate")
        gone = await self._delete(port, who.change.id, who.change.traceparent)
        who.change.mark("write")
        self._follow(who, [gone or port], gone is not None)
        return port

    async def _delete(self, port: Port, change: bytes, traceparent: str = "") -> Port | None:
        """Mark the port deleted; None when there was no host to wait for and it is gone already."""
        c = self._c
        entry = Entry(
            Kind.PORT,
            (port.id,),
            False,
            port.network,
            port.project,
            names(index_rows(port)),
            tuple({bucket(ip) for _, ip in port.fixed if bucket(ip) != bucket_of(port.id)}),
        )

        def apply(draft: Draft, rev: int) -> Port:
            row: Port | None = draft.get(Kind.PORT, port.id)
            if row is None or row.state != PortState.LIVE:
                raise not_found("port", text(port.id))
            for _, ip in row.fixed:
                address: Address | None = draft.get(Kind.IP, ip)
                if address is not None and address.port == row.id:
                    draft.put(Kind.IP, ip, replace(address, state=AddressState.RELEASING, rev=rev))
            new = replace(row, state=PortState.DELETING, rev=rev, goal_rev=rev, updated=rev, change=change)
            draft.put(Kind.PORT, row.id, new)
            return new

        number, home = place_of(port.id)
        done = await c.ground.change_bucket(
            port.network, number, home, apply, None, traceparent, lambda: [c.feed.row(port.id, entry)]
        )
        row = done.value
        await self._change.mark_outside(row, [ip for _, ip in row.fixed], AddressState.RELEASING)
        holder = row.leaving or row.host
        if not holder or (c.plane.hosts.dead(holder) and await c.plane.hosts.fence(holder)):
            await c.plane.releases.finish(row)
            return None
        c.ground.publish_port(row, traceparent)
        return row

    # -- waiting ----------------------------------------------------------------------------------------------------

    async def settled(self, who: Caller, views: Sequence[Any], seconds: float) -> Sequence[PortView]:
        ids = [parse(view.id) for view in views]
        await self._c.plane.acks.wait(ids, seconds)
        rows = await reads.ports(self._c.store, ids)
        said = await reads.statuses(self._c.store, rows.values())
        return [
            self._view(rows[id_], said.get(id_)) if id_ in rows else view for id_, view in zip(ids, views, strict=True)
        ]

    async def gone(self, who: Caller, id: str, seconds: float) -> None:
        await self._c.plane.acks.wait([parse(id)], seconds)

    # -- views ------------------------------------------------------------------------------------------------------

    def _view(self, port: Port, status: Status | None) -> PortView:
        said, why = word(port, status), ""
        if said != Word.ACTIVE:
            hosts, name = self._c.plane.hosts, port.host
            host = hosts.get(name) if name else None
            why = reason(port, status, host.state if host else None, bool(name) and hosts.answers(name))
        created = iso(port.created)
        # With as many keywords as it has fields, the call would cost five times as much.
        return PortView(
            text(port.id),
            port.name,
            port.description,
            port.project,
            port.project,  # as tenant_id
            common_text(port.network),
            mac_text(port.mac),
            tuple([FixedIpView(subnet_id=common_text(s), ip_address=ip_text(ip)) for s, ip in port.fixed]),
            _texts(port.groups),
            _pairs(port) if port.pairs else (),
            port.security,
            port.admin_up,
            said,
            why,
            port.device_id,
            port.device_owner,
            port.host,
            port.vnic_type,
            "tap" if port.host else "unbound",
            _DETAILS[port.security] if port.host else _NO_DETAILS,
            port.profile,
            (),  # extra_dhcp_opts
            (),  # tags
            created_at=created,
            updated_at=created if port.updated == port.created else iso(port.updated),
            revision_number=port.rev,
        )


@lru_cache(4096)
def _texts(ids: tuple[Id, ...]) -> tuple[str, ...]:
    """Of groups that many ports are in."""
    return tuple([text(id_) for id_ in ids])


def _pairs(port: Port) -> tuple[AddressPairView, ...]:
    return tuple([AddressPairView(ip_address=ip, mac_address=mac or mac_text(port.mac)) for ip, mac in port.pairs])


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T | BaseException]:
    """Side by side, with what each raised; one alone needs no task."""
    parts = list(work)
    if len(parts) > 1:
        return await asyncio.gather(*parts, return_exceptions=True)
    try:
        return [await parts[0]]
    except Exception as error:
        return [error]


def _shares(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Plans by network, home bucket and project, at most as many together as a batch holds."""
    shares: dict[tuple[bytes, str], list[Plan]] = {}
    for plan in plans:
        where = (plan.id[8:], plan.fields.project)
        if where in shares:
            shares[where].append(plan)
        else:
            shares[where] = [plan]
    return [share[start : start + BATCH] for share in shares.values() for start in range(0, len(share), BATCH)]
