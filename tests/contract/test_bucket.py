"""A bucket as two instances change it by turns: what each remembers is what it would read, from every store."""

import random
from typing import cast

from msgspec.structs import replace

from observability.stages import now_us
from planes.control import reads
from planes.model.enums import Kind
from planes.model.ids import Id, make_id, network_home
from planes.model.resources import Address, AddressState, Port, PortState
from planes.store.partitions import Partitions
from planes.store.protocol import Store
from planes.store.rows import own_addresses
from planes.store.schema import PORTS
from planes.store.views import Draft
from tests.support.stores import fresh

SUBNET = Id(b"s" * 16)
IPS = [bytes((10, 0, 0, n)) for n in range(40)]
HOME = 0x0A000000 >> 10


class Changes:
    """Operations as the management plane makes them, on ports and addresses drawn by chance."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self._ids = [make_id(network_home(number, HOME), n << 20) for n in range(30)]
        self._chance = chance
        #: every address as it was last put
        self.addresses: dict[bytes, Address] = {}

    def any(self, draft: Draft, rev: int) -> None:
        id_, ip = self._chance.choice(self._ids), self._chance.choice(IPS)
        port: Port | None = draft.get(Kind.PORT, id_)
        if port is None:
            present: Address | None = draft.get(Kind.IP, ip)
            if present is None or present.state == AddressState.FREE:
                mac = bytes((0xFA, 0x10)) + ip
                new = Port(id_, Id(b"n" * 16), "p", mac, ((SUBNET, ip),), host="h", rev=rev, goal_rev=rev)
                self._put(draft, new, told=True)
        elif port.state == PortState.DELETING:
            draft.drop(Kind.PORT, id_)
            self._state(draft, port, AddressState.FREE, rev)
        elif self._chance.random() < 0.2:
            self._put(draft, replace(port, state=PortState.DELETING, rev=rev, goal_rev=rev), told=False)
            self._state(draft, port, AddressState.RELEASING, rev)
        elif self._chance.random() < 0.5:
            self._put(draft, replace(port, admin_up=not port.admin_up, rev=rev, goal_rev=rev), told=False)
        else:
            self._put(draft, replace(port, identity=port.identity + 1, rev=rev, goal_rev=rev), told=True)

    def _put(self, draft: Draft, port: Port, *, told: bool) -> None:
        draft.put(Kind.PORT, port.id, port)
        for ip, address in own_addresses(port) if told else ():
            draft.put(Kind.IP, ip, address)

    def _state(self, draft: Draft, port: Port, state: AddressState, rev: int) -> None:
        for _, ip in port.fixed:
            draft.put(Kind.IP, ip, replace(draft.get(Kind.IP, ip), state=state, rev=rev))

    async def made(self, parts: Partitions, where: tuple[int, int]) -> None:
        """One of them is committed; it may be tried several times."""
        edits: dict[bytes, Address] = {}

        def apply(draft: Draft, rev: int) -> None:
            self.any(draft, rev)
            edits.clear()
            edits.update({key: cast(Address, body) for (kind, key), body in draft.edits.items() if kind == Kind.IP})

        await parts.change(PORTS, where, apply)
        self.addresses |= edits


async def test_a_bucket_is_what_was_made_of_it_whoever_remembers_or_reads_it(store: Store) -> None:
    where = (next(fresh), HOME)
    instances, changes = [Partitions(store, now_us) for _ in range(2)], Changes(where[0], random.Random(1))
    for turn in range(120):
        instance = instances[turn // 5 % 2]
        await changes.made(instance, where)
        known = instance.peek(PORTS, where)
        assert known is not None
        read = await reads.bucket(Partitions(store, now_us), where)
        assert known.all(Kind.IP) == read.all(Kind.IP) == changes.addresses
        assert known.all(Kind.PORT) == read.all(Kind.PORT)
        assert known.stored == read.stored
    rows = (await store.read(PORTS, where, prefix=(int(Kind.IP),))).rows
    assert 0 < len(rows) < len(changes.addresses), "both kinds were seen"


async def test_what_is_asked_of_addresses_is_found_with_and_without_a_row(store: Store) -> None:
    where = (next(fresh), HOME)
    here, changes = Partitions(store, now_us), Changes(where[0], random.Random(2))
    for _ in range(100):
        await changes.made(here, where)
    for parts in (here, Partitions(store, now_us)):
        for count in (2, 40):
            parts.forget(PORTS, where) if parts is not here else None
            ports = await reads.current_ports(parts, [row.port for row in changes.addresses.values()])
            asked = {ip: row for ip, row in list(changes.addresses.items())[:count] if row.state == AddressState.USED}
            assert await reads.current_addresses(parts, where, list(asked), ports.values()) == asked
    stored = (await reads.bucket(here, where)).stored
    assert set(await reads.stored_addresses(store, where, IPS)) == stored
