"""Subnets of a network (IPv4): create, read, change, delete. Called by the REST edge through `services.Resource`.

Subnets live in their network's partition, so that an overlap is found exactly, whoever else is at it. Deleting one
raises the counters of its buckets before it looks for addresses in use (rule D3).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from planes.control import fence, reads
from planes.control.feed import Entry
from planes.control.indexes import Index, drops, names, puts
from planes.management.caller import Caller
from planes.management.context import Context, asked_project, check_revision, iso
from planes.model.addresses import BUCKET_SHIFT, cidr_last, cidr_text, ip_bytes, ip_int, ip_text, parse_cidr, parse_ip
from planes.model.enums import Kind
from planes.model.errors import Conflict, Forbidden, Invalid, not_found
from planes.model.ids import Id, network_home, number_of, parse, text
from planes.model.query import Listing, Query
from planes.model.requests import HostRoute, Pool, SubnetCreate, SubnetUpdate
from planes.model.resources import Address, AddressState, Network, NetworkState, Subnet
from planes.model.views import HostRouteView, PoolView, SubnetView
from planes.store.views import Draft, View

#: the largest subnet: beyond it a subnet would have more buckets than one deletion should walk
MIN_PREFIX = 8
MAX_PREFIX = 30
MAX_SUBNETS = 256


class Subnets:
    """The collection `subnets`."""

    def __init__(self, context: Context) -> None:
        self._c = context

    async def create(self, who: Caller, wanted: Sequence[SubnetCreate]) -> list[SubnetView]:
        rows = await self._c.all_or_none(wanted, lambda item: self._create(who, item), self._undo)
        who.change.mark("write")
        return [_view(row) for row in rows]

    async def _create(self, who: Caller, wanted: SubnetCreate) -> Subnet:
        c, project = self._c, who.owner(asked_project(wanted))
        network = await self._network(who, wanted.network_id)
        if not who.sees(network.project):
            raise Forbidden(f"Network {wanted.network_id} belongs to another project.")
        id_ = c.new_id(network_home(network.number))
        row = plan(wanted, id_, network, project)
        who.change.mark("validate")
        index: list[Index] = [c.project_index(Kind.SUBNET, id_, project)]
        entry = Entry(Kind.SUBNET, (id_,), True, network.id, project, names(index))
        await c.announce(id_, entry, puts(index, c.now()))
        await c.slots.claim_quota(project, "subnet", [id_], c.limit(Kind.SUBNET))
        who.change.mark("claim")

        def apply(draft: Draft, rev: int) -> Subnet:
            if draft.get(Kind.NETWORK) is None or draft.static("state") == NetworkState.DELETING:
                raise not_found("network", wanted.network_id)
            if draft.get(Kind.VOID, id_) is not None:
                raise Conflict("The request took too long and was undone; send it again.", "RetryRequest")
            others = [subnet for _, subnet in draft.all(Kind.SUBNET) if subnet.id != id_]
            if len(others) >= MAX_SUBNETS:
                raise Conflict(f"A network has at most {MAX_SUBNETS} subnets.", "OverQuota")
            for other in others:
                if other.first <= cidr_last(row.first, row.prefix) and row.first <= cidr_last(
                    other.first, other.prefix
                ):
                    raise Invalid(
                        f"Invalid input for operation: Requested subnet with cidr: {cidr_text(row.first, row.prefix)} "
                        f"for network: {wanted.network_id} overlaps with another subnet "
                        f"({cidr_text(other.first, other.prefix)}, {text(other.id)}).",
                        "OverlappingSubnets",
                    )
            new = replace(row, created=rev, updated=rev, rev=rev, change=who.change.id)
            draft.put(Kind.SUBNET, id_, new)
            return new

        return (await c.ground.change_network(network.id, network.number, apply, who.change.traceparent)).value

    async def _undo(self, row: Subnet) -> None:
        await self._delete(row)

    async def _network(self, who: Caller, id: str) -> Network:
        id_ = parse(id, "network_id")
        network = (await self._c.ground.network_view(number_of(id_), fresh=True)).get(Kind.NETWORK)
        if network is None or network.id != id_ or not who.sees(network.project, network.shared):
            raise not_found("network", id)
        found: Network = network
        return found

    async def _find(self, who: Caller, id: str) -> tuple[Subnet, Network]:
        id_ = parse(id, "subnet_id")
        view = await self._c.ground.network_view(number_of(id_), fresh=True)
        row: Subnet | None = view.get(Kind.SUBNET, id_)
        network: Network | None = view.get(Kind.NETWORK)
        if row is None or network is None or row.deleting or not who.sees(row.project, network.shared):
            raise not_found("subnet", id)
        return row, network

    async def get(self, who: Caller, id: str) -> SubnetView:
        return _view((await self._find(who, id))[0])

    async def list(self, who: Caller, query: Query) -> Listing:
        async def views(ids: Sequence[bytes]) -> list[SubnetView]:
            found = []
            for id_ in ids:
                view = await self._c.ground.network_view(number_of(Id(id_)), fresh=True)
                row: Subnet | None = view.get(Kind.SUBNET, id_)
                network: Network | None = view.get(Kind.NETWORK)
                if row is None or network is None or row.deleting:
                    continue
                if who.sees(row.project, network.shared):
                    found.append(_view(row))
            return found

        ids: list[bytes] | None = None
        if asked := query.filters.get("network_id"):
            ids = []
            for value in asked:
                view = await self._c.ground.network_view(number_of(parse(value, "network_id")), fresh=True)
                ids += view.all(Kind.SUBNET)
            ids.sort()
        return await self._c.listed(who, Kind.SUBNET, query, views, ids)

    async def update(self, who: Caller, id: str, wanted: SubnetUpdate, if_match: int | None) -> SubnetView:
        row, network = await self._find(who, id)
        if not who.sees(row.project):
            raise Forbidden(f"Subnet {id} belongs to another project.")
        changes = _changes(wanted, row)
        who.change.mark("validate")
        if "gateway" in changes:
            await self._gateway_is_free(row, changes["gateway"])
        entry = Entry(Kind.SUBNET, (row.id,), network=network.id, project=row.project)
        await self._c.write([self._c.feed.row(row.id, entry)])

        def apply(draft: Draft, rev: int) -> Subnet:
            old: Subnet | None = draft.get(Kind.SUBNET, row.id)
            if old is None or old.deleting:
                raise not_found("subnet", id)
            check_revision(if_match, old.rev)
            new = replace(old, **changes, updated=rev, rev=rev, change=who.change.id)
            draft.put(Kind.SUBNET, row.id, new)
            return new

        done = await self._c.ground.change_network(network.id, network.number, apply, who.change.traceparent)
        who.change.mark("write")
        return _view(done.value)

    async def _gateway_is_free(self, row: Subnet, gateway: bytes) -> None:
        if not gateway or gateway == row.gateway:
            return
        where = (number_of(row.id), ip_int(gateway) >> BUCKET_SHIFT)
        address = await reads.address(self._c.plane.partitions, where, gateway)
        if address is not None and address.state != AddressState.FREE:
            raise Conflict(
                f"Current gateway ip {ip_text(gateway)} already in use by port {text(address.port)}. Unable to update.",
                "GatewayIpInUse",
            )

    async def delete(self, who: Caller, id: str, if_match: int | None) -> Subnet:
        row, _ = await self._find(who, id)
        if not who.sees(row.project):
            raise Forbidden(f"Subnet {id} belongs to another project.")
        check_revision(if_match, row.rev)
        who.change.mark("validate")
        await self._delete(row)
        who.change.mark("write")
        return row

    async def _delete(self, row: Subnet) -> None:
        c, number = self._c, number_of(row.id)
        index: list[Index] = [c.project_index(Kind.SUBNET, row.id, row.project)]
        entry = Entry(Kind.SUBNET, (row.id,), False, row.network, row.project, names(index))
        await c.write([c.feed.row(row.id, entry)])
        marked = await c.ground.change_network(row.network, number, fence.mark_subnet(row.id, deleting=True))
        view = await c.ground.network_view(number, fresh=True)
        try:
            for key in view.all(Kind.BUCKET):
                bucket = int.from_bytes(key, "big")
                if row.first >> BUCKET_SHIFT <= bucket <= cidr_last(row.first, row.prefix) >> BUCKET_SHIFT:
                    # Whoever is about to commit an address here must look again, and finds the subnet marked.
                    await c.ground.change_bucket(row.network, number, bucket, fence.require(marked.rev))
                    if in_use(await reads.bucket(c.plane.partitions, (number, bucket)), row.id):
                        raise Conflict(
                            f"Unable to complete operation on subnet {text(row.id)}: One or more ports have an IP "
                            "allocation from this subnet.",
                            "SubnetInUse",
                        )
        except BaseException:
            await c.ground.change_network(row.network, number, fence.mark_subnet(row.id, deleting=False))
            raise

        def apply(draft: Draft, _: int) -> None:
            old: Subnet | None = draft.get(Kind.SUBNET, row.id)
            if old is not None and not old.deleting:
                raise Conflict("The request took too long and was undone; send it again.", "RetryRequest")
            draft.drop(Kind.SUBNET, row.id)

        done = await c.ground.change_network(row.network, number, apply)
        await c.write(drops(index, done.rev))
        await c.slots.free_quota(row.project, "subnet", [row.id], c.limit(Kind.SUBNET))


def in_use(bucket: View, subnet: bytes) -> bool:
    """Whether an address of the subnet is claimed or used in a bucket."""
    rows: Iterable[Address] = bucket.all(Kind.IP).values()
    return any(row.subnet == subnet and row.state <= AddressState.USED for row in rows)


def plan(wanted: SubnetCreate, id_: Id, network: Network, project: str) -> Subnet:
    """The row that a request asks for; raises Invalid that names the field. Pure."""
    if wanted.ip_version != 4:
        raise Invalid(f"Invalid input for ip_version. Reason: '{wanted.ip_version}' is not offered; only 4 is.")
    for name in ("subnetpool_id", "segment_id", "ipv6_address_mode", "ipv6_ra_mode", "prefixlen"):
        if getattr(wanted, name) not in (None, UNSET):
            raise Invalid(f"Invalid input for {name}. Reason: it is not offered; give cidr.")
    if wanted.use_default_subnetpool is True:
        raise Invalid("Invalid input for use_default_subnetpool. Reason: subnet pools are not offered; give cidr.")
    if wanted.cidr is UNSET:
        raise Invalid("Invalid input for cidr. Reason: it is required: a subnet needs an IPv4 prefix.")
    first, prefix = parse_cidr(wanted.cidr, "cidr")
    if not MIN_PREFIX <= prefix <= MAX_PREFIX:
        raise Invalid(f"Invalid input for cidr. Reason: '/{prefix}' is not between /{MIN_PREFIX} and /{MAX_PREFIX}.")
    if first >> 28 in (0xE, 0xF) or first >> 24 in (0, 127) or first >> 16 == 0xA9FE:
        raise Invalid(f"Invalid input for cidr. Reason: '{wanted.cidr}' is not unicast address space for tenants.")
    unset = wanted.gateway_ip is UNSET
    gateway = ip_bytes(first + 1) if unset else _gateway(wanted.gateway_ip, first, prefix)  # type: ignore[arg-type]
    asked = wanted.allocation_pools
    pools = _pools(asked, first, prefix, gateway) if asked else default_pools(first, prefix, gateway)
    return Subnet(
        id_,
        network.id,
        project,
        first,
        prefix,
        gateway,
        pools,
        wanted.name,
        wanted.description,
        wanted.enable_dhcp,
        _dns(wanted.dns_nameservers),
        _routes(wanted.host_routes),
    )


def _gateway(asked: str | None, first: int, prefix: int) -> bytes:
    if not asked:
        return b""
    gateway = parse_ip(asked, "gateway_ip")
    if not first < ip_int(gateway) < cidr_last(first, prefix):
        raise Invalid(f"Invalid input for gateway_ip. Reason: '{asked}' is not a host of {cidr_text(first, prefix)}.")
    return gateway


def default_pools(first: int, prefix: int, gateway: bytes) -> tuple[tuple[int, int], ...]:
    """Every host address but the gateway's."""
    low, high = first + 1, cidr_last(first, prefix) - 1
    if not gateway:
        return ((low, high),)
    at = ip_int(gateway)
    return tuple((a, b) for a, b in ((low, at - 1), (at + 1, high)) if a <= b)


def _pools(asked: Sequence[Pool], first: int, prefix: int, gateway: bytes) -> tuple[tuple[int, int], ...]:
    pools = []
    for n, pool in enumerate(asked):
        name = f"allocation_pools[{n}]"
        start, end = ip_int(parse_ip(pool.start, name + ".start")), ip_int(parse_ip(pool.end, name + ".end"))
        if start > end:
            raise Invalid(f"Invalid input for {name}. Reason: start {pool.start} is above end {pool.end}.")
        if not first < start <= end < cidr_last(first, prefix):
            raise Conflict(
                f"The allocation pool {pool.start}-{pool.end} spans beyond the subnet cidr {cidr_text(first, prefix)}.",
                "OutOfBoundsAllocationPool",
            )
        if gateway and start <= ip_int(gateway) <= end:
            raise Conflict(
                f"Gateway ip {ip_text(gateway)} conflicts with allocation pool {pool.start}-{pool.end}.",
                "GatewayConflictWithAllocationPools",
            )
        pools.append((start, end))
    pools.sort()
    for (_, end), (start, _) in pairwise(pools):
        if start <= end:
            raise Conflict("Invalid input for allocation_pools: two pools overlap.", "OverlappingAllocationPools")
    return tuple(pools)


def _dns(asked: Sequence[str]) -> tuple[str, ...]:
    return tuple(ip_text(parse_ip(value, "dns_nameservers")) for value in asked)


def _routes(asked: Sequence[HostRoute]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (cidr_text(*parse_cidr(route.destination, "host_routes")), ip_text(parse_ip(route.nexthop, "host_routes")))
        for route in asked
    )


def _changes(wanted: SubnetUpdate, row: Subnet) -> dict[str, Any]:
    """Fields of the row that a request changes; raises Invalid. Pure."""
    fields = {"name": "name", "description": "description", "enable_dhcp": "dhcp"}
    changes = {ours: value for theirs, ours in fields.items() if (value := getattr(wanted, theirs)) is not UNSET}
    if wanted.gateway_ip is not UNSET:
        changes["gateway"] = _gateway(wanted.gateway_ip, row.first, row.prefix)
    gateway = changes.get("gateway", row.gateway)
    if wanted.allocation_pools is not UNSET:
        changes["pools"] = _pools(wanted.allocation_pools, row.first, row.prefix, gateway)
    elif gateway and any(start <= ip_int(gateway) <= end for start, end in row.pools):
        raise Conflict(
            f"Gateway ip {ip_text(gateway)} conflicts with allocation pools of the subnet.",
            "GatewayConflictWithAllocationPools",
        )
    if wanted.dns_nameservers is not UNSET:
        changes["dns"] = _dns(wanted.dns_nameservers)
    if wanted.host_routes is not UNSET:
        changes["routes"] = _routes(wanted.host_routes)
    return changes


def _view(row: Subnet) -> SubnetView:
    return SubnetView(
        id=text(row.id),
        name=row.name,
        description=row.description,
        project_id=row.project,
        tenant_id=row.project,
        network_id=text(row.network),
        cidr=cidr_text(row.first, row.prefix),
        gateway_ip=ip_text(row.gateway) if row.gateway else None,
        allocation_pools=tuple(PoolView(start=ip_text(ip_bytes(a)), end=ip_text(ip_bytes(b))) for a, b in row.pools),
        enable_dhcp=row.dhcp,
        dns_nameservers=row.dns,
        host_routes=tuple(HostRouteView(destination=d, nexthop=n) for d, n in row.routes),
        created_at=iso(row.created),
        updated_at=iso(row.updated),
        revision_number=row.rev,
    )
