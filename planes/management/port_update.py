"""Changing ports: names, groups, addresses, MAC, host. Called by `ports`.

One conditional batch in the home bucket is the commit point; address rows elsewhere follow in batches of their own, and
the echo makes good what a crash leaves (rule D5). Re-binding is break before make: the new host is told only after the
old one has let go.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct
from msgspec.structs import replace

from planes.control.feed import Entry
from planes.control.indexes import Index, drops, index_rows, marks, names, own_rows, puts, unshared
from planes.management import addressing, port_plans
from planes.management.caller import Caller
from planes.management.context import Context, check_revision
from planes.management.groups import Groups
from planes.management.port_create import PortCreation
from planes.management.port_plans import Wish
from planes.model.addresses import bucket, ip_text, parse_mac
from planes.model.enums import Kind
from planes.model.errors import Conflict, not_found
from planes.model.ids import Id, bucket_of, number_of, text
from planes.model.requests import PortUpdate
from planes.model.resources import Address, AddressState, MacRow, Network, Port, PortState
from planes.store.protocol import Write
from planes.store.views import Draft

#: fields of the row whose change concerns a kernel
GOAL = ("admin_up", "security", "pairs", "groups", "identity", "host", "mac", "fixed")


class Wanted(Struct):
    """What an update comes to: plain fields, and addresses to add and remove."""

    network: Network
    fields: dict[str, Any]
    add: list[Wish] = []
    remove: list[bytes] = []
    claimed: list[tuple[Id, bytes]] = []  # added outside the home bucket
    order: list[bytes] = []  # of the addresses that were named
    marks: list[Write] = []  # of its new groups, where no other port has them there
    unmarked: list[Index] = []  # those of its old groups that no port needs any more


class PortChange:
    """The update operation of `ports`."""

    def __init__(self, context: Context, creation: PortCreation, groups: Groups) -> None:
        self._c = context
        self._creation = creation
        self._groups = groups

    async def update(self, who: Caller, old: Port, wanted: PortUpdate, if_match: int | None) -> Port:
        """Commit the change; returns the row as it then is."""
        check_revision(if_match, old.rev)
        asked = await self._wanted(who, old, wanted)
        who.change.mark("validate")
        if "groups" in asked.fields or "security" in asked.fields:
            await self._identity(old, asked)
        elsewhere = self._elsewhere(old, asked)
        planned = replace(old, **{key: asked.fields[key] for key in asked.fields if key != "leaving"})
        rows = [row for row in index_rows(planned) if row not in index_rows(old)]
        named = names([*index_rows(old), *rows])
        entry = Entry(Kind.PORT, (old.id,), False, old.network, old.project, named, tuple(sorted(elsewhere)))
        await self._c.announce(old.id, entry, puts(rows, self._c.now()))

        async def look() -> None:
            """At the groups, now that they lead here: whoever deletes one later stops this commit (rule D4)."""
            if "groups" in asked.fields:
                await self._groups.looks.stand([planned])

        await look()
        await self._claim(old, asked)
        self._creation.announce_peer(asked.network, planned.host)
        who.change.mark("claim")
        done = await self._creation.commits.waiting(
            asked.network,
            bucket_of(old.id),
            lambda draft, rev: self._apply(who, old, asked, if_match, draft, rev),
            lambda: asked.marks,
            renumber=lambda: self._identity(old, asked),
            look=look,
        )
        port: Port = done.value
        await self._follow_outside(old, port)
        gone = [row for row in own_rows(old) if row not in own_rows(port)]
        await self._c.write(drops(gone, self._c.now()) + drops(asked.unmarked, port.rev))
        return port

    # -- what is asked ----------------------------------------------------------------------------------------------

    async def _wanted(self, who: Caller, old: Port, wanted: PortUpdate) -> Wanted:
        network = await self._c.ground.network(number_of(old.id))
        if network is None:
            raise not_found("port", text(old.id))
        asked = Wanted(network, {})
        fields = asked.fields
        for theirs, ours in (("name", "name"), ("description", "description"), ("admin_state_up", "admin_up")):
            if (value := getattr(wanted, theirs)) is not UNSET:
                fields[ours] = value
        for name in ("device_id", "device_owner"):
            if (value := getattr(wanted, name)) is not UNSET:
                fields[name] = value or ""
        if wanted.profile is not UNSET:
            fields["profile"] = port_plans.profile(wanted.profile)
        if wanted.vnic_type is not UNSET:
            fields["vnic_type"] = port_plans.vnic_type(wanted.vnic_type)
        if wanted.host_id is not UNSET:
            fields["host"] = port_plans.host(wanted.host_id)
        if wanted.allowed_address_pairs is not UNSET:
            fields["pairs"] = port_plans.pairs(wanted.allowed_address_pairs)
        await self._security(who, old, wanted, fields)
        self._mac(old, wanted, fields)
        if wanted.fixed_ips is not UNSET:
            await self._fixed(old, wanted, asked)
        return asked

    async def _security(self, who: Caller, old: Port, wanted: PortUpdate, fields: dict[str, Any]) -> None:
        security = old.security if wanted.port_security_enabled is UNSET else wanted.port_security_enabled
        groups = old.groups
        if wanted.security_groups is not UNSET:
            groups = await port_plans.check_groups(self._c, wanted.security_groups, who.sees)
        if not security and (groups or fields.get("pairs", old.pairs)):
            raise Conflict(
                "Port has security groups or allowed address pairs. Cannot disable port security until they are "
                "removed.",
                "PortSecurityPortHasSecurityGroup",
            )
        if groups != old.groups:
            fields["groups"] = groups
        if security != old.security:
            fields["security"] = security

    def _mac(self, old: Port, wanted: PortUpdate, fields: dict[str, Any]) -> None:
        if wanted.mac_address is UNSET:
            return
        mac = parse_mac(wanted.mac_address, "mac_address")
        if mac == old.mac:
            return
        if old.host or old.leaving:
            raise Conflict(
                f"Unable to complete operation on port, port is already bound to host {old.host or old.leaving}; "
                "its MAC address cannot be changed.",
                "PortBound",
            )
        fields["mac"] = mac

    async def _fixed(self, old: Port, wanted: PortUpdate, asked: Wanted) -> None:
        assert wanted.fixed_ips is not UNSET
        view = await self._c.ground.network_view(number_of(old.id), fresh=True)
        keep: list[tuple[Id, bytes]] = []
        left = list(old.fixed)
        current = {ip for _, ip in old.fixed}
        for item in wanted.fixed_ips:
            same = [p for p in left if _matches(item.subnet_id, item.ip_address, p)]
            if same:
                keep.append(same[0])
                asked.order.append(same[0][1])
                left.remove(same[0])
                continue
            asked.add += port_plans.wishes((item,), view, asked.network)
            asked.order.append(asked.add[-1].ip)
        asked.remove = [ip for _, ip in left]
        if any(wish.ip in current for wish in asked.add):
            raise addressing.in_use(next(w.ip for w in asked.add if w.ip in current), asked.network.id)
        asked.fields["fixed"] = tuple(keep)

    async def _identity(self, old: Port, asked: Wanted) -> None:
        groups = asked.fields.get("groups", old.groups)
        security = asked.fields.get("security", old.security)
        number = await port_plans.identity(self._c, asked.network, groups) if security else 0
        if number != old.identity:
            asked.fields["identity"] = number
        else:
            asked.fields.pop("identity", None)

    # -- claims -----------------------------------------------------------------------------------------------------

    def _elsewhere(self, old: Port, asked: Wanted) -> set[int]:
        home = bucket_of(old.id)
        found = {bucket(ip) for _, ip in old.fixed} | {bucket(ip) for ip in asked.remove}
        for wish in asked.add:
            found.add(bucket(wish.ip) if wish.ip else home)
            if not wish.ip and not addressing.ranges(wish.subnet, home):
                found.update(list(addressing.buckets(wish.subnet))[:1])
        if "mac" in asked.fields:
            found |= {bucket(asked.fields["mac"]), bucket(old.mac)}
        return found - {home}

    async def _claim(self, old: Port, asked: Wanted) -> None:
        home, inside = bucket_of(old.id), []
        for wish in asked.add:
            where = bucket(wish.ip) if wish.ip else home
            if not wish.ip and not addressing.ranges(wish.subnet, home):
                where = next(addressing.buckets(wish.subnet))
            if where == home:
                inside.append(wish)
                continue
            await self._creation.register_bucket(asked.network, where)
            ip = await self._creation.claim_address(asked.network, old.id, where, wish)
            asked.claimed.append((wish.subnet.id, ip))
        asked.add = inside
        mac = asked.fields.get("mac")
        if mac and bucket(mac) != home:
            await self._creation.claim_mac(asked.network, old.id, mac)

    # -- the commit -------------------------------------------------------------------------------------------------

    def _apply(self, who: Caller, old: Port, asked: Wanted, if_match: int | None, draft: Draft, rev: int) -> Port:
        row: Port | None = draft.get(Kind.PORT, old.id)
        if row is None or row.state != PortState.LIVE:
            raise not_found("port", text(old.id))
        if row.rev != old.rev:
            check_revision(if_match, row.rev)
            if row.fixed != old.fixed or row.host != old.host or row.groups != old.groups:
                raise Conflict("The port was changed by another request meanwhile; try again.", "RetryRequest")
        fields = dict(asked.fields)
        if fields.get("identity"):
            groups = fields.get("groups", row.groups)
            self._creation.commits.parent(draft, asked.network, None)
            self._creation.commits.numbered(asked.network, bucket_of(row.id), groups, fields["identity"])
        self._bind(row, fields)
        if "fixed" in fields:
            found = fields["fixed"] + tuple(self._take(draft, row, asked, rev)) + tuple(asked.claimed)
            order = {ip: n for n, ip in enumerate(asked.order)}
            fields["fixed"] = tuple(sorted(found, key=lambda pair: order.get(pair[1], len(order))))
            fields["releasing"] = tuple(dict.fromkeys((*row.releasing, *asked.remove)))
        new = replace(row, **fields, updated=rev, rev=rev)
        if any(getattr(new, name) != getattr(row, name) for name in GOAL):
            new = replace(new, goal_rev=rev, change=who.change.id, traceparent=who.change.traceparent)
        if not (new.host or new.leaving):
            new = replace(new, releasing=())
        self._rows(draft, row, new, asked, rev)
        asked.marks, asked.unmarked = [], []
        if new.groups != row.groups:
            asked.marks = puts(unshared(draft, new.id, (new.project, *new.groups)), rev)
            alone = unshared(draft, row.id, (row.project, *row.groups))
            asked.unmarked = [mark for mark in alone if mark not in marks(new)]
        draft.put(Kind.PORT, row.id, new)
        return new

    def _bind(self, row: Port, fields: dict[str, Any]) -> None:
        """Another host: the present one must let go first."""
        if "host" in fields and fields["host"] != row.host and not row.leaving and row.host:
            fields["leaving"] = row.host

    def _take(self, draft: Draft, row: Port, asked: Wanted, rev: int) -> list[tuple[Id, bytes]]:
        found = []
        for wish in asked.add:
            self._creation.commits.parent(draft, asked.network, wish.subnet)
            ip = wish.ip or addressing.choose(draft, wish.subnet, bucket_of(row.id))
            if ip is None:
                raise Conflict("No more IP addresses available on the subnet.", "IpAddressGenerationFailure")
            addressing.take(draft, ip, row.id, row.network)
            draft.put(Kind.IP, ip, Address(row.id, wish.subnet.id, b"", "", 0, AddressState.CLAIMED, rev, rev))
            found.append((wish.subnet.id, ip))
        return found

    def _rows(self, draft: Draft, old: Port, new: Port, asked: Wanted, rev: int) -> None:
        """Address and MAC rows of the home bucket, as the new port has them."""
        home = bucket_of(new.id)
        host = new.leaving or new.host
        for subnet, ip in new.fixed:
            if bucket(ip) != home:
                continue
            row: Address | None = draft.get(Kind.IP, ip)
            wanted = Address(new.id, subnet, new.mac, host, new.identity, AddressState.USED)
            if row is None or replace(row, since=0, rev=0) != wanted:
                draft.put(Kind.IP, ip, replace(wanted, since=rev, rev=rev))
        state = AddressState.RELEASING if host else AddressState.FREE
        for ip in asked.remove:
            row = draft.get(Kind.IP, ip)
            if bucket(ip) == home and row is not None and row.port == new.id:
                draft.put(Kind.IP, ip, replace(row, state=state, since=self._c.now(), rev=rev))
        if new.mac != old.mac:
            if bucket(old.mac) == home:
                draft.drop(Kind.MAC, old.mac)
            if bucket(new.mac) == home:
                addressing.take_mac(draft, new.mac, new.id, new.network, rev)

    # -- after ------------------------------------------------------------------------------------------------------

    async def _follow_outside(self, old: Port, new: Port) -> None:
        """Rows in other buckets take over what the home batch decided."""
        home, host = bucket_of(new.id), new.leaving or new.host
        mine = {ip: subnet for subnet, ip in new.fixed}
        gone = [ip for _, ip in old.fixed if ip not in mine]
        for where in {bucket(ip) for ip in (*mine, *gone)} - {home}:

            def apply(draft: Draft, rev: int, where: int = where) -> None:
                for ip, subnet in mine.items():
                    row: Address | None = draft.get(Kind.IP, ip) if bucket(ip) == where else None
                    wanted = Address(new.id, subnet, new.mac, host, new.identity, AddressState.USED)
                    mine_still = row is not None and row.port == new.id and row.state <= AddressState.USED
                    if row is not None and mine_still and replace(row, since=0, rev=0) != wanted:
                        draft.put(Kind.IP, ip, replace(wanted, since=rev, rev=rev))

            await self._c.ground.change_bucket(new.network, number_of(new.id), where, apply)
        await self.mark_outside(new, gone, AddressState.RELEASING if host else AddressState.FREE)
        if new.mac != old.mac and bucket(old.mac) != home:

            def forget(draft: Draft, _: int) -> None:
                row: MacRow | None = draft.get(Kind.MAC, old.mac)
                if row is not None and row.port == new.id:
                    draft.drop(Kind.MAC, old.mac)

            await self._c.ground.change_bucket(new.network, number_of(new.id), bucket(old.mac), forget)

    async def mark_outside(self, port: Port, ips: Sequence[bytes], state: AddressState) -> None:
        """Addresses of a port outside its home bucket change state."""
        home = bucket_of(port.id)
        for where in {bucket(ip) for ip in ips} - {home}:

            def apply(draft: Draft, rev: int, where: int = where) -> None:
                for ip in ips:
                    row: Address | None = draft.get(Kind.IP, ip) if bucket(ip) == where else None
                    if row is not None and row.port == port.id and row.state == AddressState.USED:
                        draft.put(Kind.IP, ip, replace(row, state=state, since=self._c.now(), rev=rev))

            await self._c.ground.change_bucket(port.network, number_of(port.id), where, apply)

    async def after(self, old: Port, port: Port) -> None:
        """A re-bound port whose old host is dead does not wait for it."""
        hosts = self._c.plane.hosts
        if port.leaving and hosts.dead(port.leaving) and await hosts.fence(port.leaving):
            await self._c.plane.releases.arrive(port)


def _matches(subnet: Any, ip: Any, present: tuple[Id, bytes]) -> bool:
    """Whether a wish is what the port already has."""
    if ip is not UNSET and ip != ip_text(present[1]):
        return False
    return subnet is UNSET or subnet == text(present[0])
