"""What every host should hold, computed from the store's rows alone: the truth that kernels are compared with."""

from agent.core.translate import Goals
from planes.control import goals
from planes.control.hosts import HostRow, _row
from planes.data.driver import ORDER, Spec
from planes.goalstate.messages import Gone, Object
from planes.model.enums import Kind
from planes.model.resources import AddressState, HostState, PortState
from planes.store.protocol import Store, Value, Values
from planes.store.schema import GROUPS, HOSTS, NETWORKS, PORTS, Table
from planes.store.views import View


async def views(store: Store, table: Table) -> dict[Values, View]:
    found = await store.partitions(table)
    return {where: View(table, await store.read(table, where)) for where in found}


async def hosts(store: Store) -> dict[str, HostRow]:
    """Every host's row."""
    names = [str(where[0]) for where in await store.partitions(HOSTS)]
    rows = {name: _row(name, await store.read(HOSTS, (name,))) for name in names}
    return {name: row for name, row in rows.items() if row is not None}


async def objects(store: Store, host: str) -> list[Object]:
    """Every object that this host should know, made from the rows that the store has now."""
    found: list[Object] = []
    networks = {where[0]: view for where, view in (await views(store, NETWORKS)).items()}
    mine: set[Value] = set()
    carriers: dict[bytes, set[str]] = {}
    buckets = await views(store, PORTS)
    for (number, _), view in buckets.items():
        for port in view.all(Kind.PORT).values():
            if port.host == host and not port.leaving and port.state == PortState.LIVE:
                found.append(goals.port(port))
                mine.add(number)
    for number in mine:
        view = networks[number]
        network = view.get(Kind.NETWORK)
        found.append(goals.network(network))
        found += [goals.subnet(row) for row in view.all(Kind.SUBNET).values() if not row.deleting]
        found += [goals.identity(network.id, row) for row in view.all(Kind.IDENTITY).values()]
        for (where, _), bucket in buckets.items():
            for ip, row in bucket.all(Kind.IP).items():
                if where == number and row.state != AddressState.CLAIMED:
                    found.append(goals.neighbour(network.id, ip, row))
                    carriers.setdefault(network.id, set()).add(row.host)
    known = await hosts(store)
    for network_id, names in carriers.items():
        for name in filter(None, names):
            row = known.get(name)
            if row is not None and row.state == HostState.UP:
                found.append(goals.peer(network_id, name, row.rev, row.epoch, row.vtep, row.body.number))
    for view in (await views(store, GROUPS)).values():
        group = view.get(Kind.GROUP)
        if group is not None:
            found.append(goals.group(group, view.all(Kind.RULE).values(), view.top))
    return [item for item in found if not isinstance(item, Gone)]


async def specs(store: Store, host: str) -> list[Spec]:
    """What the host's driver should have been told, in the order in which things come to life."""
    known = Goals(host)
    for item in await objects(store, host):
        known.put(item)
    known.settle()
    found = [spec for key in known.changed() if (spec := known.spec(key)) is not None]
    return sorted(found, key=lambda spec: ORDER.index(spec.key[0]))
