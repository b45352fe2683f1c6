"""Lists of ports: which index leads to what is asked for, and the ports behind it (rule D10). Called by `ports`.

The project's index leads to buckets; these are read in the order of their ports' ids, as much of each as a page needs.
It only reads.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from planes.control import reads
from planes.control.indexes import LEADING, is_marked
from planes.control.reads import Status
from planes.management.caller import Caller
from planes.management.context import Context
from planes.management.project_index import BUCKETS
from planes.model.addresses import bucket, parse_ip
from planes.model.enums import Kind
from planes.model.errors import Invalid
from planes.model.ids import is_ours, number_of, parse, place_of
from planes.model.query import Listing, Query
from planes.model.resources import AddressState, Port, PortState
from planes.model.views import PortView
from planes.store.schema import BY_DEVICE

#: a list by network reads the network's buckets up to so many; beyond, the project's index is hardly longer
SMALL = 2
Show = Callable[[Port, Status | None], PortView]


class PortList:
    """One list, and the ports that were read for it and are not shown yet."""

    def __init__(self, context: Context, who: Caller, query: Query, show: Show) -> None:
        self._c = context
        self._who = who
        self._query = query
        self._show = show
        self._asked = {*query.filters.get("project_id", ()), *query.filters.get("tenant_id", ())}
        self._held: dict[bytes, Port] = {}

    async def page(self) -> Listing:
        led = await self._led()
        return await self._c.listed(self._who, Kind.PORT, self._query, self._views, led, self._expand)

    async def _led(self) -> Sequence[bytes] | None:
        """Ids that an index other than the project's leads to, in order; None: no such filter."""
        filters = self._query.filters
        if "id" in filters:
            return None
        addresses = [v.removeprefix("ip_address=") for v in filters.get("fixed_ips", ()) if v.startswith("ip_address=")]
        if "network_id" in filters and addresses:
            return await self._by_address(filters["network_id"], addresses)
        if "device_id" in filters and "" not in filters["device_id"]:
            ids: set[bytes] = set()
            for device in filters["device_id"]:
                read = await self._c.store.read(BY_DEVICE, (device,))
                ids.update(id_ for (id_,) in read.rows if isinstance(id_, bytes))
            return sorted(ids)
        if "name" in filters and "" not in filters["name"]:
            projects = await self._c.projects(self._who, Kind.PORT, self._query)
            named = await self._c.plane.names.find(projects, filters["name"])
            if named is not None:
                return named
        hosts = filters.get("binding:host_id", ())
        if hosts and "" not in hosts:
            return sorted({id_ for host in hosts for id_ in await reads.ids_on(self._c.store, host)})
        return await self._by_network(filters["network_id"]) if "network_id" in filters else None

    async def _by_network(self, networks: Sequence[str]) -> Sequence[bytes] | None:
        """Ids of the ports of small networks; None: not small, or not a network's id."""
        buckets: list[tuple[int, int]] = []
        for network in networks:
            try:
                number = number_of(parse(network))
            except Invalid:
                return None
            view = await self._c.ground.network_view(number, fresh=True)
            buckets += [(number, int.from_bytes(key, "big")) for key in view.all(Kind.BUCKET)]
            if len(buckets) > SMALL:
                return None
        for where in buckets:
            self._hold(await reads.current_ports_in(self._c.plane.partitions, where))
        return sorted(self._held)

    async def _by_address(self, networks: Sequence[str], addresses: Sequence[str]) -> Sequence[bytes]:
        ids: set[bytes] = set()
        for network in networks:
            number = number_of(parse(network, "network_id"))
            for value in addresses:
                ip = parse_ip(value, "fixed_ips")
                row = await reads.address(self._c.plane.partitions, (number, bucket(ip)), ip)
                if row is not None and row.state == AddressState.USED:
                    ids.add(row.port)
        return sorted(ids)

    async def _views(self, ids: Sequence[bytes]) -> list[PortView]:
        held = self._held
        rows = [held.pop(id_) for id_ in ids if id_ in held]
        if len(rows) < len(ids):
            left = set(ids).difference([port.id for port in rows])
            rows += (await reads.current_ports(self._c.plane.partitions, filter(is_ours, left))).values()
        seen = [port for port in rows if port.state == PortState.LIVE and self._who.sees(port.project)]
        said = await reads.statuses(self._c.store, seen)
        return [self._show(port, said.get(port.id)) for port in seen]

    async def _expand(self, keys: Sequence[bytes], after: bytes, limit: int) -> tuple[Sequence[bytes], bytes]:
        """The ports that keys of the project's index stand for: those of a bucket, or an older one by itself."""
        alone = [key for key in keys if not is_marked(key)]
        marks = {place_of(key): key[:LEADING] for key in keys if is_marked(key)}
        places, read = list(marks), list[tuple[list[Port], bool]]()
        for at in range(0, len(places), BUCKETS):
            read += await asyncio.gather(*(self._bucket(where, after, limit) for where in places[at : at + BUCKETS]))
        found: list[bytes] = []
        full: list[bytes] = []
        # Ids of buckets that begin alike lie among each other; those of the others come before or behind.
        for begin, alike in groupby(zip(marks.values(), read, strict=True), key=itemgetter(0)):
            if 0 < limit <= len(found):
                full.append(max(found))
                break
            for _, (ports, more) in alike:
                if more:
                    full.append(ports[-1].id)
                found += self._hold(port for port in ports if port.id[:LEADING] == begin)
        last = min(full, default=b"")  # behind it, what is missing of that bucket comes first
        return sorted([id_ for id_ in {*found, *alone} if id_ > after and (not last or id_ <= last)]), last

    async def _bucket(self, where: tuple[int, int], after: bytes, limit: int) -> tuple[list[Port], bool]:
        """Ports of a bucket behind an id, in order, and whether there may be more."""
        ports = await reads.current_ports_in(self._c.plane.partitions, where, after, limit)
        return ports, 0 < limit == len(ports)

    def _hold(self, ports: Iterable[Port]) -> list[bytes]:
        """Keep those that may be asked for until they are shown; their ids."""
        asked, sees = self._asked, self._who.sees
        kept = [port for port in ports if (port.project in asked if asked else sees(port.project))]
        self._held.update([(port.id, port) for port in kept])
        return [port.id for port in kept]
