"""The echo: seconds after each change, look at what it names, finish or undo what is half done, publish again.

One mechanism for a crashed instance, a lost message, a missing index row, a dangling claim. Called by the plane every
few seconds. It never invents: everything that it publishes or repairs was read from the store just before.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from planes.control import fence, goals, reads
from planes.control.feed import PARTS, Entry, Feed
from planes.control.ground import Ground
from planes.control.hosts import Hosts
from planes.control.indexes import Index, drops, index_rows, is_mark, marks, puts, unneeded
from planes.control.release import Releases, unsaid
from planes.control.snapshots import Snapshots
from planes.goalstate.messages import Gone, ObjectKind
from planes.model.addresses import bucket
from planes.model.enums import Kind
from planes.model.errors import AlcorError
from planes.model.ids import Id, bucket_of, home_of, number_of, place_of, text
from planes.model.resources import Address, AddressState, NetworkState, Port, PortState
from planes.store.partitions import Done
from planes.store.protocol import Store, Write
from planes.store.rows import Mark, decode
from planes.store.schema import BY_HOST, BY_PROJECT, GROUPS, NETWORKS, PORTS, TABLES
from planes.store.slots import Slots
from planes.store.views import Draft, View

log = logging.getLogger(__name__)
_TABLES = {table.name: table for table in TABLES}
#: a void row is only needed while its creator may still be under way, µs
VOID_LIFE = 3600 * 1_000_000


#: ports that are looked at together: a few reads tell of all of one bucket; the loop is held for some milliseconds
TOGETHER = 256
#: objects that are looked at side by side
AT_ONCE = 64


class Echo:
    """Second looks."""

    def __init__(
        self,
        store: Store,
        ground: Ground,
        hosts: Hosts,
        releases: Releases,
        snapshots: Snapshots,
        slots: Slots,
        feed: Feed,
        now: Callable[[], int],
        quotas: Callable[[int], tuple[str, int]],
    ) -> None:
        self._store = store
        self._ground = ground
        self._partitions = ground.partitions
        self._hosts = hosts
        self._releases = releases
        self._snapshots = snapshots
        self._slots = slots
        self._feed = feed
        self._now = now
        self._quotas = quotas
        self._room = asyncio.Semaphore(AT_ONCE)
        self.counters = {"echoed": 0, "undone": 0, "again": 0, "given_up": 0}

    async def turn(self) -> None:
        """Look at everything that is due in the parts that this instance holds."""
        # Side by side, so that the leases of all parts are renewed by few writes to the disk.
        parts = await asyncio.gather(*(self._due(part) for part in range(PARTS)))
        quiet = await self._quiet(entry for due, _ in parts for _, entry in due)
        await asyncio.gather(*(self._part(part, *each, quiet) for part, each in enumerate(parts)))

    async def _due(self, part: int) -> tuple[list[tuple[bytes, Entry]], int]:
        try:
            return await self._feed.due(part)
        except AlcorError as error:
            log.warning("echo of part %d put off: %s", part, error)
            return [], 0

    async def _part(self, part: int, due: Sequence[tuple[bytes, Entry]], position: int, quiet: Collection[int]) -> None:
        self.counters["echoed"] += len(due)
        try:
            if position:
                left = [(id_, entry) for id_, entry in due if id(entry) not in quiet]
                await self._feed.settle(part, position, bool(due), await self._look(left))
        except AlcorError as error:
            log.warning("echo of part %d put off: %s", part, error)

    async def _quiet(self, entries: Iterable[Entry]) -> set[int]:
        """By `id()`, the creations since which nothing has happened to a port: told once more, many by few reads.

        There is nothing to mend, and nothing is done between what is read and what is said: whatever else a port
        needs, it needs on its own.
        """
        done: set[int] = set()
        for some in _together(entry for entry in entries if _is_quiet(entry)):
            try:
                rows = await reads.current_ports(self._partitions, (id_ for entry in some for id_ in entry.ids))
                same = [entry for entry in some if all(_is_untouched(rows.get(id_)) for id_ in entry.ids)]
                ports = [rows[id_] for entry in same for id_ in entry.ids]
                await self._tell(ports, await self._acked(ports))
                done.update(map(id, same))
            except AlcorError as error:
                log.info("echo of %d changes one by one: %s", len(some), error)
            await asyncio.sleep(0)
        return done

    async def _look(self, due: Sequence[tuple[bytes, Entry]]) -> list[Write]:
        """What is to be looked at again. One after the other only what is about the same object: a busy partition's
        changes are all in one part, and each may wait for the store several times.
        """
        objects: dict[bytes, list[Entry]] = {}
        for id_, entry in due:
            objects.setdefault(id_, []).append(entry)
        found = await asyncio.gather(*(self._entries(id_, entries) for id_, entries in objects.items()))
        return [write for writes in found for write in writes]

    async def _entries(self, id_: bytes, entries: Sequence[Entry]) -> list[Write]:
        later: list[Write] = []
        async with self._room:
            for entry in entries:
                try:
                    finished = await self.finish(entry)
                except AlcorError as error:
                    log.warning("echo of %s put off: %s", text(id_), error)
                    finished = False
                if not finished:
                    again = self._feed.again(id_, entry)
                    self.counters["again" if again else "given_up"] += 1
                    if again:
                        later.append(again)
        return later

    async def finish(self, entry: Entry) -> bool:
        """Finish or undo one change and publish it once more; False: look again later. Raises AlcorError."""
        if entry.kind == Kind.PORT:
            return await self._ports(entry)
        if entry.kind == Kind.NETWORK:
            return await self._network(entry)
        if entry.kind == Kind.SUBNET:
            return await self._subnet(entry)
        return await self._group(entry)

    # -- ports ------------------------------------------------------------------------------------------------------

    async def _acked(self, ports: Iterable[Port]) -> set[bytes]:
        """Those of whose last revision their host has told."""
        rows = {port.id: port for port in ports}
        said = await reads.statuses(self._store, rows.values())
        return {id_ for id_, status in said.items() if status.applied >= rows[Id(id_)].goal_rev}

    async def _ports(self, entry: Entry) -> bool:
        rows = await reads.ports(self._store, entry.ids)
        acked = await self._acked(rows.values())
        calm: list[Port] = []
        finished = True
        for id_ in entry.ids:
            port = rows.get(id_)
            if port is None:
                await self._absent(entry, id_)
            elif port.state == PortState.LIVE and not port.leaving and not port.releasing:
                calm.append(port)
            else:
                finished &= await self._port(port, entry, id_ in acked)
        return await self._calm(calm, entry, acked) and finished

    async def _port(self, port: Port, entry: Entry, acked: bool) -> bool:
        """A port that exists; True when nothing of it is left half done."""
        if port.state == PortState.DELETING or port.leaving:
            await self._tidy(entry, port.id, port)
            holder = port.leaving or port.host
            gone = acked and not port.leaving
            if gone or not holder or (self._hosts.dead(holder) and await self._hosts.fence(holder)):
                await (self._releases.arrive(port) if port.state == PortState.LIVE else self._releases.finish(port))
                return True
            self._ground.publish_port(port)
            await self._neighbours([port])
            return False
        tidy = await self._calm([port], entry, {port.id} if acked else set())
        if port.releasing and self._hosts.dead(port.host) and await self._hosts.fence(port.host):
            await self._releases.let_go(port.id, port.host, port.goal_rev)
        return tidy

    async def _calm(self, ports: Sequence[Port], entry: Entry, acked: Collection[bytes]) -> bool:
        """Live ports that wait for no host: what they claimed is confirmed and told once more."""
        tidy, writes, named = True, [], _marks(entry)
        for port in ports:
            tidy &= await self._tidy(entry, port.id, port)
            await self._confirm(port)
            right = marks(port)
            await self._unmark(entry, port.id, [mark for mark in named if mark not in right])
            writes += self._index(port, entry)
        if writes:
            await self._store.write(writes)
        await self._tell(ports, acked)
        return tidy

    async def _tell(self, ports: Sequence[Port], acked: Collection[bytes]) -> None:
        for port in ports:
            if port.host and port.id not in acked:
                self._ground.publish_port(port)
        await self._neighbours(ports)

    def _index(self, port: Port, entry: Entry) -> list[Write]:
        """The index names the port where it is, and not where an operation that failed wanted it to be.

        The rows of one that was created and never changed came with its feed row, before it.
        """
        rows = index_rows(port)
        wrong = [row for row in _named(entry) if row[2] == (port.id,) and row not in rows]
        if not wrong and (not entry.index or (entry.create and port.rev == port.created)):
            return []
        stamp = self._now()
        before = stamp - self._feed.window  # a later change, about to commit, may have put it there again
        return [*puts(rows, stamp), *drops(wrong, before)]

    async def _unmark(self, entry: Entry, id_: bytes, rows: Sequence[Index]) -> None:
        """Marks that a change named go where no port of the bucket needs them: its creation failed, or it was deleted
        and whoever removed it did not come to that. Somebody may just be about to need one: he is stopped.
        """
        if not rows:
            return

        async def change(apply: Callable[[Draft, int], list[Index]]) -> Done[list[Index]]:
            return await self._ground.change_bucket(entry.network, *place_of(id_), apply)

        def stopped(draft: Draft, _: int) -> list[Index]:
            if left := unneeded(draft, rows):
                fence.stop(draft)
            return left

        spare = (await change(lambda draft, _: unneeded(draft, rows))).value
        if any([(await self._store.read(table, where, prefix=key)).rows for table, where, key in spare]):
            done = await change(stopped)
            await self._store.write(drops(done.value, done.rev))

    async def _neighbours(self, ports: Sequence[Port]) -> None:
        """Tell their networks where these ports are."""
        wanted: dict[tuple[bytes, int, int], list[bytes]] = {}
        homes: dict[tuple[int, int], list[Port]] = {}
        for port in ports:
            homes.setdefault(place_of(port.id), []).append(port)
            for _, ip in port.fixed:
                wanted.setdefault((port.network, number_of(port.id), bucket(ip)), []).append(ip)
        for (network, *place), ips in wanted.items():
            where = (place[0], place[1])
            rows = await reads.current_addresses(self._partitions, where, ips, homes.get(where, ()))
            told = [goals.neighbour(network, ip, row) for ip, row in rows.items() if row.state != AddressState.CLAIMED]
            self._ground.publisher.network(network, told, ())
        for network, host in {(port.network, port.host) for port in ports if port.host}:
            if (peer := self._hosts.peer(network, host)) is not None:
                self._ground.publisher.network(network, (peer,), ())

    async def _confirm(self, port: Port) -> None:
        """Addresses outside the home bucket that were claimed and never confirmed (rule D5)."""
        for _, ip in port.fixed:
            if bucket(ip) != bucket_of(port.id):
                await confirm_address(self._ground, port, ip)

    async def _absent(self, entry: Entry, id_: bytes) -> None:
        """No such port: it was never committed, or is long released. Either way nothing of it may stay."""
        number, home = place_of(id_)
        if entry.create and not await self._lived(id_):
            await self._ground.change_bucket(entry.network, number, home, self._void(id_, Kind.PORT, id_))
            self.counters["undone"] += 1
            if (await self._ground.bucket_view(number, home)).get(Kind.PORT, id_) is not None:
                return
        await self._tidy(entry, id_, None)
        await self._unmark(entry, id_, _marks(entry))
        await self._unindex(entry, id_)

    async def _tidy(self, entry: Entry, id_: bytes, port: Port | None) -> bool:
        """Free what was claimed outside the home bucket for a port that does not have it.

        A young claim may be that of a later change, which is about to commit: False, look again.
        """
        young = self._now() - self._feed.window
        spared: set[bytes] = set()
        kept = {ip for _, ip in port.fixed} | set(port.releasing) | {port.mac} if port else set()

        def apply(draft: Draft, rev: int) -> None:
            for ip, row in list(draft.all(Kind.IP)):
                if row.port != id_ or ip in kept or row.state == AddressState.FREE:
                    continue
                if port is not None and row.state == AddressState.CLAIMED and row.since > young:
                    spared.add(ip)
                else:
                    free = Address(Id(id_), row.subnet, row.mac, "", 0, AddressState.FREE, self._now(), rev)
                    draft.put(Kind.IP, ip, free)
            for mac, owner in list(draft.all(Kind.MAC)):
                if owner.port == id_ and mac not in kept:
                    if port is not None and owner.since > young:
                        spared.add(mac)
                    else:
                        draft.drop(Kind.MAC, mac)

        for where in entry.buckets:
            await self._ground.change_bucket(entry.network, number_of(Id(id_)), where, apply)
        return not spared

    async def _lived(self, id_: bytes) -> bool:
        """Whether an address of its home bucket was a port's last: then it was committed, and its creator is done."""
        rows = (await self._ground.bucket_view(*place_of(id_))).all(Kind.IP).values()
        return any(row.port == id_ and row.state != AddressState.CLAIMED for row in rows)

    async def _indexed(self, entry: Entry, id_: bytes) -> bool:
        """Whether the project's index still names the object: if not, its creator never got far enough to commit."""
        for name, partition, key in entry.index:
            if name == BY_PROJECT.name and key == (id_,):
                return bool((await self._store.read(BY_PROJECT, partition, prefix=key)).rows)
        return True

    async def _unindex(self, entry: Entry, id_: bytes) -> None:
        stamp = self._now()
        mine = [row for row in _named(entry) if row[2] == (id_,)]
        hosts = [str(part[0]) for table, part, _ in mine if table is BY_HOST]
        await self._store.write(drops(mine, stamp) + unsaid(Id(id_), hosts, stamp))
        resource, limit = self._quotas(entry.kind)
        await self._slots.free_quota(entry.project, resource, [id_], limit)

    def _void(self, id_: bytes, kind: int, key: bytes) -> Callable[[Draft, int], None]:
        """Creators stop at their own void row; raising the counter stops a batch that is still under way."""

        def apply(draft: Draft, rev: int) -> None:
            if draft.get(kind, key) is None:
                draft.put(Kind.VOID, id_, Mark(rev=rev))
            for old, mark in list(draft.all(Kind.VOID)):
                if mark.rev and mark.rev + VOID_LIFE < self._now():
                    draft.drop(Kind.VOID, old)

        return apply

    # -- networks, subnets, groups ----------------------------------------------------------------------------------

    async def _network(self, entry: Entry) -> bool:
        id_ = Id(entry.ids[0])
        number = number_of(id_)
        view = await self._ground.network_view(number, fresh=True)
        row = view.get(Kind.NETWORK)
        if row is not None and row.id == id_:
            if view.statics.get("state") == NetworkState.DELETING:
                await self._undelete(id_, number, view)
            self._ground.publisher.network(id_, (goals.network(row),), ())
            return True
        if entry.create and view.statics.get("state") != NetworkState.DELETING:
            self._ground.partitions.forget(NETWORKS, (number,))
            await self._ground.partitions.change(NETWORKS, (number,), self._void(id_, Kind.NETWORK, b""))
            if (await self._ground.network(number)) is not None:
                return True
            self.counters["undone"] += 1
        else:
            gone = Gone(ObjectKind.NETWORK, id_, id_, view.top)
            self._ground.publisher.network(id_, (gone,), ())
            if not await self.clear_network(id_):
                return False
        if entry.vni_block >= 0:
            await self._slots.free_vni(entry.vni_block, id_)
        await self._unindex(entry, id_)
        return True

    async def _undelete(self, id_: Id, number: int, view: View) -> None:
        """A deletion that was cut off before its commit point: creators may come back."""
        for key in view.all(Kind.BUCKET):
            await self._ground.change_bucket(id_, number, int.from_bytes(key, "big"), fence.unseal)
        await self._ground.change_network(id_, number, fence.set_state(NetworkState.ACTIVE))
        self.counters["undone"] += 1

    async def clear_network(self, id_: Id) -> bool:
        """Remove what is left of a deleted network; False while a host has not let go of one of its ports."""
        number = number_of(id_)
        view = await self._ground.network_view(number, fresh=True)
        for key in view.all(Kind.BUCKET):
            where = (number, int.from_bytes(key, "big"))
            read = await self._store.read(PORTS, where, prefix=(int(Kind.PORT),))
            for row in read.rows:
                await self._port(decode(Kind.PORT, row[3]), Entry(Kind.PORT, ()), acked=False)
            if (await self._store.read(PORTS, where, prefix=(int(Kind.PORT),), limit=1)).rows:
                return False
            await self._ground.partitions.change(PORTS, where, fence.empty)
        await self._ground.partitions.change(NETWORKS, (number,), fence.empty)
        return True

    async def _subnet(self, entry: Entry) -> bool:
        id_ = Id(entry.ids[0])
        number = number_of(id_)
        view = await self._ground.network_view(number, fresh=True)
        row = view.get(Kind.SUBNET, id_)
        if row is not None and not row.deleting:
            self._ground.publisher.network(row.network, (goals.subnet(row),), ())
            return True
        if row is not None:  # a deletion that was cut off before its commit point
            await self._ground.change_network(row.network, number, fence.mark_subnet(id_, deleting=False))
            self.counters["undone"] += 1
            return True
        if entry.create and await self._indexed(entry, id_):
            await self._ground.change_network(entry.network, number, self._void(id_, Kind.SUBNET, id_))
        await self._unindex(entry, id_)
        return True

    async def _group(self, entry: Entry) -> bool:
        id_ = Id(entry.ids[0])
        item = await self._snapshots.group(id_)
        if item is not None:
            where = (GROUPS, (home_of(id_),))
            view = await self._ground.partitions.view(*where)
            if view.statics.get("state") == NetworkState.DELETING:  # a deletion that was cut off
                await self._ground.partitions.change(*where, fence.set_group_state(NetworkState.ACTIVE))
                self.counters["undone"] += 1
            self._ground.publisher.group(id_, (item,))
            return True
        if entry.create and await self._indexed(entry, id_):
            self._ground.partitions.forget(GROUPS, (home_of(id_),))
            await self._ground.partitions.change(GROUPS, (home_of(id_),), self._void(id_, Kind.GROUP, b""))
        await self._unindex(entry, id_)
        return True


def _named(entry: Entry) -> list[Index]:
    """The index rows that a change named."""
    return [(_TABLES[name], where, key) for name, where, key in entry.index]


def _marks(entry: Entry) -> list[Index]:
    """Those of them that lead to a bucket."""
    return [row for row in _named(entry) if is_mark(row)] if entry.kind == Kind.PORT else []


def _is_quiet(entry: Entry) -> bool:
    """Whether it may be looked at with others: it claimed nothing outside its ports' home."""
    return entry.kind == Kind.PORT and entry.create and not entry.buckets


def _is_untouched(port: Port | None) -> bool:
    return port is not None and port.rev == port.created


def _together(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The same in parts: those of one bucket beside each other."""
    some: list[Entry] = []
    count = 0
    for entry in sorted(entries, key=lambda entry: entry.ids[0][8:]):
        if some and count + len(entry.ids) > TOGETHER:
            yield some
            some, count = [], 0
        some.append(entry)
        count += len(entry.ids)
    if some:
        yield some


async def confirm_address(ground: Ground, port: Port, ip: bytes) -> None:
    """A claimed address whose port is committed becomes its own."""

    def apply(draft: Draft, rev: int) -> None:
        row: Address | None = draft.get(Kind.IP, ip)
        if row is not None and row.port == port.id and row.state == AddressState.CLAIMED:
            host = port.leaving or port.host
            used = Address(port.id, row.subnet, port.mac, host, port.identity, AddressState.USED, rev, rev)
            draft.put(Kind.IP, ip, used)

    await ground.change_bucket(port.network, number_of(port.id), bucket(ip), apply)
