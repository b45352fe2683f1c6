"""Creating ports: claims first, then one conditional batch per port, then publication (docs/store.md, order of writes).

Called by `ports`. Before the commit nothing is visible; after it nothing is undone, but a bulk request is all or none.
A crash between any two writes is undone or finished by the echo.
"""

import secrets
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from msgspec import Struct

from planes.control import fence
from planes.control.echo import confirm_address
from planes.control.feed import Entry
from planes.control.indexes import Index, drops, names, own_rows, puts, unshared
from planes.management import addressing, port_plans
from planes.management.commits import Commits
from planes.management.context import Context
from planes.management.group_looks import Looks
from planes.management.groups import Groups
from planes.management.port_plans import Fields, Wish
from planes.model.addresses import BUCKET_SHIFT, bucket, ip_int, place
from planes.model.enums import Kind
from planes.model.errors import Conflict
from planes.model.ids import Id, bucket_of, network_home, placed, text
from planes.model.resources import Address, AddressState, Network, Port, PortState, Subnet
from planes.store.partitions import BATCH, Apply
from planes.store.protocol import Write
from planes.store.schema import BY_GROUP
from planes.store.views import Draft

#: how often a full bucket makes a port start over in another one
MOVES = 64
#: (network, host) pairs whose peer this instance has announced
ANNOUNCED = 100_000


class BucketFull(Exception):
    """No address of the subnet is left in this bucket."""


class Plan(Struct):
    """One port on its way: where it will live and what it has claimed elsewhere."""

    fields: Fields
    network: Network
    id: Id
    identity: int
    inside: list[Wish]  # addresses to choose or take in the home bucket
    elsewhere: list[tuple[int, Wish]]  # addresses to claim in other buckets
    outside: dict[bytes, Wish] = {}  # what was claimed there
    announced: bool = False  # the feed and the indexes name it
    taking: tuple[tuple[int, int], ...] = ()  # (network, bucket) of each address that it has not got yet
    looks: Looks | None = None  # at its groups, begun before its commit


class PortCreation:
    """The create operation of `ports`."""

    def __init__(self, context: Context, groups: Groups) -> None:
        self._c = context
        self._groups = groups
        self.commits = Commits(context)
        self._announced: OrderedDict[tuple[bytes, str], int] = OrderedDict()
        self._spread = secrets.randbits(16)
        self._quarantine = int(context.config.quarantine * 1e6)
        #: (network, bucket) → addresses that requests under way will take there
        self._taking: dict[tuple[int, int], int] = {}
        #: subnet → bucket that had room last
        self._last: dict[bytes, int] = {}

    # -- claim ------------------------------------------------------------------------------------------------------

    async def plan_all(self, fields: Sequence[Fields], plans: list[Plan]) -> None:
        """Plan these in their order; `plans` has what was planned before a failure too. `landed` must follow."""
        end = 0
        while len(plans) < len(fields):
            plan = await self.plan(fields[len(plans)])
            plans.append(plan)
            if end < len(plans):
                end = len(plans)
                while end < len(fields) and port_plans.alike(fields[end], plan.fields):
                    end += 1
            if end > len(plans):
                plans += self._more(plan, fields[len(plans) : end])

    def _more(self, plan: Plan, fields: Sequence[Fields]) -> list[Plan]:
        """Plans like the one that was just made, as many as its bucket has room for beside what others will take.

        Nothing is awaited in between: the bucket is registered and the groups have that number for these too.
        """
        ground, spot = self._c.ground, plan.taking[0]
        view, rested = ground.known_bucket(*spot), self._c.now() - self._quarantine
        if view is None:
            return []
        beside = self._taking.get(spot, 0)
        room = addressing.room(view, plan.inside[0].subnet, spot[1], rested, beside + len(fields)) - beside
        count = max(0, min(room, len(fields)))
        self._taking[spot] = beside + count
        home = network_home(*spot)
        return [
            Plan(each, plan.network, self._c.new_id(home), plan.identity, plan.inside, [], taking=plan.taking)
            for each in fields[:count]
        ]

    async def plan(self, fields: Fields, avoid: frozenset[int] = frozenset()) -> Plan:
        """Choose the home bucket, and so the id; register the bucket if it is new. `landed` must follow."""
        home = port_plans.home_bucket(fields.mac, fields.wishes)
        wishes = list(fields.wishes)
        if home is None:
            home = 0
            if wishes:
                home, wishes[0] = await self._open_bucket(fields, wishes[0], avoid)
        inside, elsewhere = [], []
        for wish in wishes:
            where = bucket(wish.ip) if wish.ip else home
            if not wish.ip and not addressing.ranges(wish.subnet, home):
                where, wish = await self._open_bucket(fields, wish, avoid)
            if where == home:
                inside.append(wish)
            else:
                elsewhere.append((where, wish))
        taking = [home for _ in inside] + [where for where, _ in elsewhere]
        for where in {home, *taking}:
            await self.register_bucket(fields.network, where)
        identity = await self._number(fields)
        id_ = self._c.new_id(network_home(fields.network.number, home))
        spots = tuple([(fields.network.number, where) for where in taking])
        for spot in spots:
            self._taking[spot] = self._taking.get(spot, 0) + 1
        return Plan(fields, fields.network, id_, identity, inside, elsewhere, taking=spots)

    async def _number(self, fields: Fields) -> int:
        if not fields.security:
            return 0
        return await port_plans.identity(self._c, fields.network, fields.groups)

    def landed(self, plans: Sequence[Plan]) -> None:
        """These have their addresses, or need none any more."""
        for plan in plans:
            for spot in plan.taking:
                self._taking[spot] -= 1
                if not self._taking[spot]:
                    del self._taking[spot]
            plan.taking = ()

    async def _open_bucket(self, fields: Fields, wish: Wish, avoid: frozenset[int]) -> tuple[int, Wish]:
        """A bucket with room for an address of the subnet, or of another subnet of the network when it is full."""
        ground, now, number = self._c.ground, self._c.now(), fields.network.number
        view = ground.known_network(number) or await ground.network_view(number)
        subnets = [wish.subnet]
        if not isinstance(fields.wanted.fixed_ips, tuple):
            subnets = port_plans.subnets_of(view) or subnets
        rested = now - self._quarantine
        # First beside what others are about to take; whether they do is not known, so then without.
        for before, share in ((rested, True), (rested, False), (now, False)):
            for subnet in subnets:
                for where in self._from_last(subnet):
                    if where in avoid:
                        continue
                    known = await ground.bucket_view(number, where)
                    beside = self._taking.get((number, where), 0) if share else 0
                    if addressing.room(known, subnet, where, before, beside + 1) > beside:
                        self._last[subnet.id] = where
                        return where, Wish(subnet)
        raise exhausted(fields.network)

    def _from_last(self, subnet: Subnet) -> Iterator[int]:
        """Buckets of a subnet: the one that had room last and those behind it, else from where this instance begins.

        Not from the first again: those are full, and may be more than are kept in memory.
        """
        last, start = self._last.get(subnet.id), 0
        if last is not None and addressing.ranges(subnet, last):
            yield last
            start = last + 1
        elif self._c.config.instance_spread:
            first, end = subnet.pools[0][0] >> BUCKET_SHIFT, subnet.pools[-1][1] >> BUCKET_SHIFT
            start = first + self._spread % (end - first + 1)
        yield from (where for where in addressing.buckets(subnet) if where >= start)
        yield from (where for where in addressing.buckets(subnet) if where < start)

    async def register_bucket(self, network: Network, where: int) -> None:
        """Make the bucket known to whoever deletes the network or takes a snapshot of it."""
        key = where.to_bytes(4, "big")
        ground = self._c.ground
        view = ground.known_network(network.number) or await ground.network_view(network.number)
        if view.get(Kind.BUCKET, key) is None:
            await self._c.ground.change_network(network.id, network.number, fence.open_bucket(where))

    async def claim(self, plans: Sequence[Plan]) -> None:
        """Claim what lies outside the home buckets: quota, addresses. Who needs none is announced with the commit.

        More than a batch holds are announced together, ahead of all their batches.
        """
        hosts = {(plan.network.id, plan.fields.host): plan.network for plan in plans if plan.fields.host}
        for (_, host), network in hosts.items():
            self.announce_peer(network, host)
        limit = self._c.limit(Kind.PORT)
        claiming = [plan for plan in plans if plan.elsewhere or limit >= 0 or len(plans) > BATCH]
        if not claiming:
            return
        for both in {(plan.network.id, plan.fields.project) for plan in claiming}:
            here = [plan for plan in claiming if (plan.network.id, plan.fields.project) == both]
            await self._c.write(self._announcement(here, []))
            for plan in here:
                plan.announced = True
        for project in {plan.fields.project for plan in claiming}:
            owners = [plan.id for plan in claiming if plan.fields.project == project]
            await self._c.slots.claim_quota(project, "port", owners, limit)
        for plan in claiming:
            for where, wish in plan.elsewhere:
                plan.outside[await self.claim_address(plan.network, plan.id, where, wish)] = wish

    def _announcement(self, plans: Sequence[Plan], marks: list[Index]) -> list[Write]:
        """A feed row for plans of a network and project, beside the index rows of their own; it names `marks` too."""
        rows = [row for plan in plans for row in own_rows(self._draft_port(plan))]
        entry = Entry(
            Kind.PORT,
            tuple([plan.id for plan in plans]),
            True,
            plans[0].network.id,
            plans[0].fields.project,
            names(rows + marks),
            tuple({where for plan in plans for where, _ in plan.elsewhere}),
        )
        return [self._c.feed.row(plans[0].id, entry), *puts(rows, self._c.now())]

    def _before(self, plans: Sequence[Plan], marks: list[Index], rev: int) -> list[Write]:
        """What must be there before these are: the announcement, unless it went ahead and named all; their marks.

        Where their groups lead to the bucket already, it is time to look at these.
        """
        looks = None
        if not marks or BY_GROUP not in [table for table, _, _ in marks]:
            groups = plans[0].fields.groups
            if len(plans) > 1:
                groups = tuple({group for plan in plans for group in plan.fields.groups})
            looks = self._groups.looks.begin(groups)
        for plan in plans:
            plan.looks = looks
        left = plans if marks else [plan for plan in plans if not plan.announced]
        announcement = self._announcement(left, marks) if left else []
        return announcement + puts(marks, rev) if marks else announcement

    def _unmarked(self, draft: Draft, plans: Sequence[Plan]) -> list[Index]:
        """Marks that the bucket needs for these and has not yet."""
        id_, first = plans[0].id, plans[0].fields
        if len(plans) == 1:
            return unshared(draft, id_, (first.project, *first.groups))
        kinds = {(plan.fields.project, plan.fields.groups) for plan in plans}
        return unshared(draft, id_, list({name for project, groups in kinds for name in [project, *groups]}))

    def _draft_port(self, plan: Plan) -> Port:
        fields = plan.fields
        return Port(
            plan.id,
            plan.network.id,
            fields.project,
            fields.mac,
            (),
            fields.groups,
            host=fields.host,
            name=fields.wanted.name,
            device_id=fields.wanted.device_id or "",
        )

    def announce_peer(self, network: Network, host: str) -> None:
        """Make sure that whoever hears of an address on this host knows where the host is."""
        row = self._c.plane.hosts.get(host) if host else None
        if row is None or self._announced.get((network.id, host)) == row.rev:
            return
        peer = self._c.plane.hosts.peer(network.id, host)
        if peer is not None:
            self._c.ground.publisher.network(network.id, (peer,), ())
            self._announced[network.id, host] = row.rev
            if len(self._announced) > ANNOUNCED:
                self._announced.popitem(last=False)

    async def claim_address(self, network: Network, port: Id, where: int, wish: Wish) -> bytes:
        """Claim a given or chosen address in its own bucket, for a port whose home is elsewhere."""

        def apply(draft: Draft, rev: int) -> bytes:
            self.commits.parent(draft, network, wish.subnet)
            ip = wish.ip or addressing.choose(draft, wish.subnet, where)
            if ip is None:
                raise exhausted(network)
            addressing.take(draft, ip, port, network.id)
            draft.put(Kind.IP, ip, Address(port, wish.subnet.id, b"", "", 0, AddressState.CLAIMED, rev, rev))
            return ip

        return (await self.commits.waiting(network, where, apply)).value

    # -- write ------------------------------------------------------------------------------------------------------

    async def commit(self, plan: Plan) -> Port:
        """One port; in another bucket when the one that was chosen is full meanwhile."""
        for _ in range(MOVES):
            try:
                return (await self.commit_together([plan]))[0]
            except BucketFull:
                await self._move(plan)
        raise exhausted(plan.network)

    async def commit_together(self, plans: Sequence[Plan]) -> list[Port]:
        """Ports of one home bucket in one batch, with their addresses, MACs and the counter: all or none.

        Raises BucketFull when it has not room for all.
        """
        network, where = plans[0].network, bucket_of(plans[0].id)
        unmarked: tuple[list[Index], int] = [], 0

        def make(draft: Draft, rev: int) -> list[Port]:
            nonlocal unmarked
            unmarked = self._unmarked(draft, plans), rev
            making = _Making(where, rev)
            ids = [plan.id for plan in plans] if len(plans) > 1 else []
            if ids and draft.lacks(Kind.PORT, ids) and draft.lacks(Kind.VOID, ids):
                return [self._make(plan, draft, making) for plan in plans]
            return [_present(plan, draft) or self._make(plan, draft, making) for plan in plans]

        async def renumber() -> None:
            for plan in plans:
                plan.identity = await self._number(plan.fields)

        return (
            await self.commits.waiting(
                network, where, make, lambda: self._before(plans, *unmarked), len(plans), renumber
            )
        ).value

    def _make(self, plan: Plan, draft: Draft, making: "_Making") -> Port:
        fields, network, home, rev = plan.fields, plan.network, making.home, making.rev
        mac = fields.mac
        if not plan.inside:
            self._stands(draft, network, None, making)
        if fields.security and (numbered := (fields.groups, plan.identity)) not in making.seen:
            self.commits.numbered(network, home, *numbered)
            making.seen.add(numbered)
        if mac and bucket(mac) == home:
            addressing.take_mac(draft, mac, plan.id, network.id, rev)
        fixed: list[tuple[Id, bytes]] = []
        for wish in plan.inside:
            subnet, ip = wish.subnet, wish.ip
            self._stands(draft, network, subnet, making)
            if not ip and not (ip := addressing.choose(draft, subnet, home) or b""):
                raise BucketFull
            if not (fixed or plan.announced or fields.mac):  # nobody knows the id yet
                plan.id = placed(plan.id, place(ip))
            if wish.ip:
                addressing.take(draft, ip, plan.id, network.id)
            mac = mac or addressing.make_mac(draft, ip_int(ip), plan.id)
            used = Address(plan.id, subnet.id, mac, fields.host, plan.identity, AddressState.USED, rev, rev)
            draft.put(Kind.IP, ip, used)
            fixed.append((subnet.id, ip))
        mac = mac or addressing.make_mac(draft, home << BUCKET_SHIFT | plan.id[1], plan.id)
        if plan.outside:
            order = [wish.ip for wish in fields.wishes]
            fixed += [(wish.subnet.id, ip) for ip, wish in plan.outside.items()]
            fixed.sort(key=lambda pair: order.index(pair[1]) if pair[1] in order else len(order))
        port = _port(plan, mac, tuple(fixed), making)
        draft.put(Kind.PORT, plan.id, port)
        return port

    def _stands(self, draft: Draft, network: Network, subnet: Subnet | None, making: "_Making") -> None:
        """The network and the subnet are still there: once for each in a run."""
        known = subnet.id if subnet is not None else b""
        if known not in making.seen:
            self.commits.parent(draft, network, subnet)
            making.seen.add(known)

    async def _move(self, plan: Plan) -> None:
        """The home bucket filled up meanwhile: start over in another one, under another id."""
        full = bucket_of(plan.id)
        if port_plans.home_bucket(plan.fields.mac, plan.fields.wishes) is not None:
            raise exhausted(plan.network)
        await self.withdraw([plan])
        self.landed([plan])
        plan.inside, plan.elsewhere = [], []
        new = await self.plan(plan.fields, frozenset({full}))
        plan.id, plan.inside, plan.elsewhere, plan.outside = new.id, new.inside, new.elsewhere, {}
        plan.identity, plan.taking, plan.announced = new.identity, new.taking, False
        await self.claim([plan])

    async def withdraw(self, plans: Sequence[Plan]) -> None:
        """Take back what plans have claimed but not committed; what is forgotten here is found by the echo."""
        claiming = [plan for plan in plans if plan.announced]
        rows = [row for plan in claiming for row in own_rows(self._draft_port(plan))]
        await self._c.write(drops(rows, self._c.now()))
        for plan in claiming:
            for ip in plan.outside:
                undo = _unclaim(plan.id, ip)
                await self._c.ground.change_bucket(plan.network.id, plan.network.number, bucket(ip), undo)
            await self._c.slots.free_quota(plan.fields.project, "port", [plan.id], self._c.limit(Kind.PORT))

    # -- after ------------------------------------------------------------------------------------------------------

    async def confirm(self, port: Port) -> None:
        """Addresses outside the home bucket become the port's own."""
        for _, ip in port.fixed:
            if bucket(ip) != bucket_of(port.id):
                await confirm_address(self._c.ground, port, ip)

    async def claim_mac(self, network: Network, port: Id, mac: bytes) -> None:
        """A given MAC whose bucket is not the port's home."""
        where = bucket(mac)
        await self.register_bucket(network, where)

        def apply(draft: Draft, rev: int) -> None:
            self.commits.parent(draft, network, None)
            addressing.take_mac(draft, mac, port, network.id, rev)

        await self.commits.waiting(network, where, apply)


class _Making(Struct):
    """One run of a commit's operation."""

    home: int
    rev: int
    #: subnets (b"": the network alone) and numbered groups that were found to stand: they do until the run is over
    seen: set[object] = set()


def _present(plan: Plan, draft: Draft) -> Port | None:
    """The port, if an earlier run has made it; raises Conflict when it was undone."""
    present: Port | None = draft.get(Kind.PORT, plan.id)
    if present is None and draft.get(Kind.VOID, plan.id) is not None:
        raise Conflict("The request took too long and was undone; send it again.", "RetryRequest")
    return present


def _port(plan: Plan, mac: bytes, fixed: tuple[tuple[Id, bytes], ...], making: _Making) -> Port:
    """In the order of the fields: with so many keywords a call goes by a dict, and costs five times as much."""
    fields, wanted, rev = plan.fields, plan.fields.wanted, making.rev
    return Port(
        plan.id,
        plan.network.id,
        fields.project,
        mac,
        fixed,
        fields.groups,
        plan.identity,
        fields.host,
        "",  # leaving
        wanted.name,
        wanted.description,
        wanted.device_id or "",
        wanted.device_owner or "",
        fields.vnic_type,
        wanted.admin_state_up,
        fields.security,
        fields.pairs,
        fields.profile,
        PortState.LIVE,
        rev,  # created
        updated=rev,
        rev=rev,
        goal_rev=rev,
        change=fields.change.id,
        traceparent=fields.change.traceparent,
    )


def exhausted(network: Network) -> Conflict:
    """Neutron's error when no address is left."""
    return Conflict(f"No more IP addresses available on network {text(network.id)}.", "IpAddressGenerationFailure")


def _unclaim(port: Id, ip: bytes) -> Apply[None]:
    def apply(draft: Draft, rev: int) -> None:
        row: Address | None = draft.get(Kind.IP, ip)
        if row is not None and row.port == port and row.state == AddressState.CLAIMED:
            draft.put(Kind.IP, ip, Address(port, row.subnet, b"", "", 0, AddressState.FREE, 0, rev))

    return apply
