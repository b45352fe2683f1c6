"""Networks (VPCs): create, read, change, delete. Called by the REST edge through `services.Resource`.

A network is a row in a partition of its own; deleting it first seals its buckets, so that no port can be committed
there any more (rule D3), and ends when every host has let go of what it had.
"""

import secrets
from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import replace

from planes.control import fence
from planes.control.feed import Entry
from planes.control.indexes import SHARED, Index, drops, names, puts
from planes.management.caller import Caller
from planes.management.context import Context, asked_project, check_revision, iso
from planes.model.enums import Kind, Status
from planes.model.errors import Conflict, Forbidden, Invalid, not_found
from planes.model.ids import NUMBER_BITS, Id, network_home, number_of, parse, text
from planes.model.query import Listing, Query
from planes.model.requests import NetworkCreate, NetworkUpdate
from planes.model.resources import Network, NetworkState
from planes.model.views import NetworkView
from planes.store.schema import NETWORKS, PORTS
from planes.store.slots import VNI_BLOCK
from planes.store.views import Draft, View

MIN_MTU = 68


class Networks:
    """The collection `networks`, also known as `vpcs`."""

    def __init__(self, context: Context) -> None:
        self._c = context

    async def create(self, who: Caller, wanted: Sequence[NetworkCreate]) -> list[NetworkView]:
        for item in wanted:
            self._check(who, item)
        who.change.mark("validate")
        rows = await self._c.all_or_none(wanted, lambda item: self._create(who, item), self._undo)
        who.change.mark("write")
        return [_view(row, ()) for row in rows]

    def _check(self, who: Caller, wanted: NetworkCreate) -> None:
        who.owner(asked_project(wanted))
        provider = (wanted.provider_network_type, wanted.provider_physical_network, wanted.provider_segmentation_id)
        if (wanted.shared or any(value not in (None, UNSET) for value in provider)) and not who.admin:
            raise Forbidden("Only an administrator may set shared or provider attributes of a network.")
        if wanted.provider_network_type not in (None, UNSET, "vxlan"):
            raise Invalid("Invalid input for provider:network_type. Reason: only 'vxlan' is offered.")
        if wanted.provider_physical_network not in (None, UNSET):
            raise Invalid("Invalid input for provider:physical_network. Reason: vxlan networks have none.")
        if wanted.provider_segmentation_id not in (None, UNSET):
            raise Invalid("Invalid input for provider:segmentation_id. Reason: it is chosen by the system.")
        if wanted.router_external:
            raise Invalid("Invalid input for router:external. Reason: external networks are not offered.")
        self._mtu(wanted.mtu)

    def _mtu(self, asked: object) -> int:
        if not asked or not isinstance(asked, int):
            return self._c.config.mtu
        if not MIN_MTU <= asked <= self._c.config.mtu:
            raise Invalid(
                f"Invalid input for mtu. Reason: '{asked}' is not between {MIN_MTU} and {self._c.config.mtu}."
            )
        return asked

    async def _create(self, who: Caller, wanted: NetworkCreate) -> Network:
        c, project = self._c, who.owner(asked_project(wanted))
        number = secrets.randbits(NUMBER_BITS)
        id_ = c.new_id(network_home(number))
        index: list[Index] = [c.project_index(Kind.NETWORK, id_, project)]
        if wanted.shared:
            index.append(c.project_index(Kind.NETWORK, id_, SHARED))
        vni = None
        while vni is None:
            block = c.slots.vni_block()
            named = names(index)
            entry = Entry(Kind.NETWORK, (id_,), True, id_, project, named, vni_block=block)
            await c.announce(id_, entry, puts(index, c.now()))
            vni = await c.slots.claim_vni(block, id_, int(c.plane.config.vni_quarantine * 1e6))
        await c.slots.claim_quota(project, "network", [id_], c.limit(Kind.NETWORK))
        who.change.mark("claim")

        def apply(draft: Draft, rev: int) -> Network:
            if draft.get(Kind.VOID, id_) is not None or draft.static("state") == NetworkState.DELETING:
                raise Conflict("The request took too long and was undone; send it again.", "RetryRequest")
            row = Network(
                id_,
                number,
                vni,
                project,
                wanted.name,
                wanted.description,
                wanted.admin_state_up,
                wanted.shared,
                self._mtu(wanted.mtu),
                wanted.port_security_enabled,
                rev,
                rev,
                rev,
                who.change.id,
                wanted.availability_zone_hints,
            )
            draft.put(Kind.NETWORK, b"", row)
            draft.set["state"] = int(NetworkState.ACTIVE)
            return row

        # Nobody can be interested in a network that did not exist: nothing is published.
        return (await c.ground.change_network(id_, number, apply, announce=False)).value

    async def _undo(self, row: Network) -> None:
        await self._delete(row)

    async def _find(self, who: Caller, id: str, *, fresh: bool = False) -> tuple[Network, View]:
        id_ = parse(id, "network_id")
        view = await self._c.ground.network_view(number_of(id_), fresh=fresh)
        row: Network | None = view.get(Kind.NETWORK)
        if row is None or row.id != id_ or not who.sees(row.project, row.shared):
            raise not_found("network", id)
        return row, view

    async def get(self, who: Caller, id: str) -> NetworkView:
        row, view = await self._find(who, id, fresh=True)
        return _view(row, _subnets(view))

    async def list(self, who: Caller, query: Query) -> Listing:
        async def views(ids: Sequence[bytes]) -> list[NetworkView]:
            found = []
            for id_ in ids:
                view = await self._c.ground.network_view(number_of(Id(id_)), fresh=True)
                row: Network | None = view.get(Kind.NETWORK)
                if row is not None and row.id == id_ and who.sees(row.project, row.shared):
                    found.append(_view(row, _subnets(view)))
            return found

        return await self._c.listed(who, Kind.NETWORK, query, views)

    async def update(self, who: Caller, id: str, wanted: NetworkUpdate, if_match: int | None) -> NetworkView:
        row, view = await self._find(who, id, fresh=True)
        if not who.sees(row.project):
            raise Forbidden(f"Network {id} belongs to another project.")
        if wanted.shared is not UNSET and wanted.shared != row.shared and not who.admin:
            raise Forbidden("Only an administrator may change shared.")
        if wanted.router_external is True:
            raise Invalid("Invalid input for router:external. Reason: external networks are not offered.")
        fields = {"name": "name", "description": "description", "admin_state_up": "admin_up", "shared": "shared"}
        fields |= {"port_security_enabled": "port_security"}
        changes = {ours: value for theirs, ours in fields.items() if (value := getattr(wanted, theirs)) is not UNSET}
        if wanted.mtu is not UNSET:
            changes["mtu"] = self._mtu(wanted.mtu)
        who.change.mark("validate")
        index: list[Index] = [self._c.project_index(Kind.NETWORK, row.id, SHARED)]
        entry = Entry(Kind.NETWORK, (row.id,), network=row.id, project=row.project)
        shared = wanted.shared is True and not row.shared
        await self._c.announce(row.id, entry, puts(index, self._c.now()) if shared else [])

        def apply(draft: Draft, rev: int) -> Network:
            old: Network | None = draft.get(Kind.NETWORK)
            if old is None:
                raise not_found("network", id)
            check_revision(if_match, old.rev)
            new = replace(old, **changes, updated=rev, rev=rev, change=who.change.id)
            draft.put(Kind.NETWORK, b"", new)
            return new

        done = await self._c.ground.change_network(row.id, row.number, apply, who.change.traceparent)
        if wanted.shared is False and row.shared:
            await self._c.write(drops(index, done.rev + 1))
        who.change.mark("write")
        return _view(done.value, _subnets(view))

    async def delete(self, who: Caller, id: str, if_match: int | None) -> Network:
        row, _ = await self._find(who, id, fresh=True)
        if not who.sees(row.project):
            raise Forbidden(f"Network {id} belongs to another project.")
        check_revision(if_match, row.rev)
        who.change.mark("validate")
        await self._delete(row)
        who.change.mark("write")
        return row

    async def _delete(self, row: Network) -> None:
        c, ground = self._c, self._c.ground
        index: list[Index] = [c.project_index(Kind.NETWORK, row.id, row.project)]
        index.append(c.project_index(Kind.NETWORK, row.id, SHARED))
        entry = Entry(
            Kind.NETWORK,
            (row.id,),
            False,
            row.id,
            row.project,
            names(index),
            vni_block=row.vni // VNI_BLOCK,
        )
        view = await ground.network_view(row.number, fresh=True)
        subnets = [(Kind.SUBNET, id_, subnet.project) for id_, subnet in view.all(Kind.SUBNET).items()]
        await c.write([c.feed.row(row.id, entry)])
        await c.plane.partitions.change(NETWORKS, (row.number,), fence.set_state(NetworkState.DELETING))
        view = await ground.network_view(row.number, fresh=True)
        buckets = [int.from_bytes(key, "big") for key in view.all(Kind.BUCKET)]
        try:
            for bucket in buckets:
                await c.plane.partitions.change(PORTS, (row.number, bucket), fence.seal(text(row.id)))
        except BaseException:
            for bucket in buckets:
                await ground.change_bucket(row.id, row.number, bucket, fence.unseal)
            await ground.change_network(row.id, row.number, fence.set_state(NetworkState.ACTIVE))
            raise

        def apply(draft: Draft, _: int) -> None:
            if draft.static("state") != NetworkState.DELETING:
                raise Conflict("The request took too long and was undone; send it again.", "RetryRequest")
            draft.drop(Kind.NETWORK, b"")
            for key, _row in list(draft.all(Kind.SUBNET)):
                draft.drop(Kind.SUBNET, key)

        await ground.change_network(row.id, row.number, apply)
        dangling = index + [c.project_index(kind, Id(id_), project) for kind, id_, project in subnets]
        await c.write(drops(dangling, c.now()))
        await c.slots.free_quota(row.project, "network", [row.id], c.limit(Kind.NETWORK))
        for _, id_, project in subnets:
            await c.slots.free_quota(project, "subnet", [id_], c.limit(Kind.SUBNET))
        if await c.plane.echo.clear_network(row.id):
            await c.slots.free_vni(row.vni // VNI_BLOCK, row.id)


def _subnets(view: View) -> tuple[str, ...]:
    return tuple(sorted(text(id_) for id_, row in view.all(Kind.SUBNET).items() if not row.deleting))


def _view(row: Network, subnets: tuple[str, ...]) -> NetworkView:
    return NetworkView(
        id=text(row.id),
        name=row.name,
        description=row.description,
        project_id=row.project,
        tenant_id=row.project,
        admin_state_up=row.admin_up,
        status=Status.ACTIVE if row.admin_up else Status.DOWN,
        shared=row.shared,
        subnets=subnets,
        mtu=row.mtu,
        port_security_enabled=row.port_security,
        provider_segmentation_id=row.vni,
        availability_zone_hints=row.availability_hints,
        created_at=iso(row.created),
        updated_at=iso(row.updated),
        revision_number=row.rev,
    )
