"""What must hold in the store whenever nothing is under way: no claim without owner, no index row without object."""

from typing import Any, cast

from planes.control.indexes import Index, index_rows, is_mark, marks, part_of
from planes.model.enums import Kind
from planes.model.ids import number_of, place_of
from planes.model.resources import AddressState, NumberState, Port, PortState
from planes.store.protocol import Store
from planes.store.schema import (
    BY_DEVICE,
    BY_GROUP,
    BY_HOST,
    BY_NAME,
    BY_PROJECT,
    GROUPS,
    NETWORKS,
    PORTS,
    SLOTS,
    Table,
)
from planes.store.views import View

Found = dict[bytes, Any]


async def _views(store: Store, table: Table) -> dict[tuple[Any, ...], View]:
    return {where: View(table, await store.read(table, where)) for where in await store.partitions(table)}


async def violations(store: Store) -> list[str]:
    """Everything that is wrong, in words."""
    networks, ports, groups = [await _views(store, table) for table in (NETWORKS, PORTS, GROUPS)]
    objects: Found = {}
    for view in networks.values():
        if (row := view.get(Kind.NETWORK)) is not None:
            objects[row.id] = row
        objects |= view.all(Kind.SUBNET)
    for view in ports.values():
        objects |= view.all(Kind.PORT)
    for view in groups.values():
        if (row := view.get(Kind.GROUP)) is not None:
            objects[row.id] = row
        objects |= view.all(Kind.RULE)
    wrong = _addresses(ports, objects) + _numbers(networks, ports)
    wrong += await _indexes(store, objects)
    wrong += await _slots(store, objects)
    wrong += [f"subnet {id_.hex()} is half deleted" for id_, row in objects.items() if getattr(row, "deleting", False)]
    for kind, views in ((Kind.NETWORK, networks), (Kind.GROUP, groups)):
        half = [where for where, view in views.items() if view.statics["state"] and view.get(kind)]
        wrong += [f"{kind.name} {where} is half deleted" for where in half]
    return wrong


def _addresses(ports: dict[tuple[Any, ...], View], objects: Found) -> list[str]:
    wrong: list[str] = []
    held: dict[tuple[int, bytes], bytes] = {}
    for (number, bucket), view in ports.items():
        for ip, row in view.all(Kind.IP).items():
            if row.state == AddressState.FREE:
                continue
            held[number, ip] = row.port
            owner = objects.get(row.port)
            if owner is None:
                wrong.append(f"address {ip.hex()} belongs to {row.port.hex()}, which is not there")
            elif ip not in [mine for _, mine in owner.fixed] and ip not in owner.releasing:
                wrong.append(f"address {ip.hex()} is not one of its port's")
            elif row.state == AddressState.CLAIMED:
                wrong.append(f"address {ip.hex()} was claimed and never confirmed")
        for mac, row in view.all(Kind.MAC).items():
            if row.port not in objects or objects[row.port].mac != mac:
                wrong.append(f"MAC {mac.hex()} in bucket {bucket} is nobody's")
    for id_, port in objects.items():
        if isinstance(port, Port) and port.state == PortState.LIVE:
            for _, ip in port.fixed:
                if held.get((number_of(port.id), ip)) != id_:
                    wrong.append(f"port {id_.hex()} does not hold its address {ip.hex()}")
    return wrong


async def numbers(store: Store) -> list[str]:
    """What is wrong with the numbers of group sets; nothing ever may be, whatever is under way."""
    return _numbers(await _views(store, NETWORKS), await _views(store, PORTS))


def _numbers(networks: dict[tuple[Any, ...], View], ports: dict[tuple[Any, ...], View]) -> list[str]:
    """A port's number is its set's alone, and means something (rules I1, I2)."""
    wrong: list[str] = []
    meaning: dict[tuple[int, int], tuple[bytes, ...]] = {}
    for (net,), view in networks.items():
        for row in view.all(Kind.IDENTITY).values():
            if (net, row.number) in meaning:
                wrong.append(f"number {row.number} of network {net} has two meanings")
            meaning[net, row.number] = row.groups if row.state < NumberState.RESTING else ()
    for (net, _), view in ports.items():
        for id_, port in view.all(Kind.PORT).items():
            if port.security and meaning.get((net, port.identity)) != port.groups:
                wrong.append(f"port {id_.hex()} has the number {port.identity}, which is not its groups'")
    return wrong


async def _indexes(store: Store, objects: Found) -> list[str]:
    wrong, present = [], set()
    marked: set[Index] = {row for item in objects.values() if isinstance(item, Port) for row in marks(item)}
    for table in (BY_PROJECT, BY_HOST, BY_DEVICE, BY_NAME, BY_GROUP):
        for where in await store.partitions(table):
            for row in (await store.read(table, where)).rows:
                id_ = cast(bytes, row[0])
                present.add((table.name, where, id_))
                if is_mark((table, where, (id_,))):
                    if (table, where, (id_,)) not in marked:
                        wrong.append(f"{table.name} {where} leads to {place_of(id_)}, where no port needs it")
                    continue
                item = objects.get(id_)
                if item is None:
                    wrong.append(f"{table.name} {where} names {id_!r}, which is not there")
                elif isinstance(item, Port) and (table, where, row[:1]) not in index_rows(item):
                    wrong.append(f"{table.name} {where} names {id_!r}, which is not of it")
    for id_, item in objects.items():
        if isinstance(item, Port):
            rows = [(table.name, where, key[0]) for table, where, key in index_rows(item)]
        elif hasattr(item, "group"):
            continue
        else:
            kind = Kind.SUBNET if hasattr(item, "first") else Kind.NETWORK if hasattr(item, "vni") else Kind.GROUP
            rows = [(BY_PROJECT.name, (item.project, int(kind), part_of(id_)), id_)]
        wrong += [f"{row} is missing" for row in rows if row not in present]
    return wrong


async def _slots(store: Store, objects: Found) -> list[str]:
    wrong = []
    for where, view in (await _views(store, SLOTS)).items():
        if where[0] == "host":
            continue
        for key, slot in view.all(Kind.SLOT).items():
            if slot.owner and slot.owner not in objects:
                wrong.append(f"slot {where} {int.from_bytes(key, 'big')} belongs to nobody")
    return wrong
