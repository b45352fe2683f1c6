"""What a port's row tells of its addresses is not stored, and yet is there, as it was, for whoever reads it later.

`Bucket` is the store's side of one partition: it applies batches and knows nothing else.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from observability.stages import now_us
from planes.model.enums import Kind
from planes.model.ids import Id, first_at, home_of, is_ours, make_id, network_home, place_of, placed
from planes.model.resources import Address, AddressState, Body, Port, PortState
from planes.store.partitions import Partitions
from planes.store.protocol import Batch, Partition, UnknownOutcome, Values, Write
from planes.store.rows import own_addresses, tells, to_row
from planes.store.schema import PORTS
from planes.store.sqlite.store import SqliteStore
from planes.store.views import Draft, View, to_store

NET, HOME = 7, 0x0A000000 >> 10
WHERE = (NET, HOME)
SUBNET = Id(b"s" * 16)
IPS = [bytes((10, 0, 0, n)) for n in range(4)]
ELSEWHERE = bytes((10, 9, 0, 1))
MACS = [bytes((0xFA, 0x10, *IPS[0])), bytes((2, 0, 0, 0, 0, 1))]
IDS = [make_id(network_home(NET, HOME), n << 20) for n in range(3)]


def port(id_: Id, *ips: bytes, rev: int = 1, **more: Any) -> Port:
    fields: dict[str, Any] = {"identity": 3, "host": "h1", "created": rev, "rev": rev, "goal_rev": rev} | more
    return Port(id_, Id(b"n" * 16), "p", MACS[0], tuple((SUBNET, ip) for ip in ips), **fields)


class Bucket:
    """A partition, as memory and as rows."""

    def __init__(self, *rows: Values) -> None:
        self.rows = {cast(tuple[int, bytes], row[:2]): row for row in rows}
        self.view = self.read()

    def read(self) -> View:
        return View(PORTS, Partition((self.top, None, None), sorted(self.rows.values())))

    @property
    def top(self) -> int:
        return max((cast(int, row[2]) for row in self.rows.values()), default=0)

    def change(self, rev: int, edits: dict[tuple[int, bytes], Body | None]) -> list[Values]:
        """Commit edits; says what they put."""
        puts = to_store(self.view, edits, dict.fromkeys(edits, rev))
        drops = [where for where, body in edits.items() if body is None]
        self.view.merge(edits, Batch(PORTS, WHERE, None, {"top": rev}, puts, drops))
        self.rows.update({cast(tuple[int, bytes], row[:2]): row for row in puts})
        for where in drops:
            self.rows.pop(where, None)
        return puts

    def stored(self) -> list[bytes]:
        return [key for kind, key in self.rows if kind == Kind.IP]


def created(rev: int = 5, ip: bytes = IPS[0], **more: Any) -> tuple[Bucket, Port]:
    bucket, made = Bucket(), port(IDS[0], ip, rev=rev, **more)
    address = Address(made.id, SUBNET, made.mac, made.leaving or made.host, 3, AddressState.USED, rev, rev)
    bucket.change(rev, {(Kind.IP, ip): address, (Kind.PORT, made.id): made})
    return bucket, made


def test_a_new_port_is_one_row_and_its_address_is_read_from_it() -> None:
    bucket, made = created()
    assert list(bucket.rows) == [(Kind.PORT, made.id)]
    address = Address(made.id, SUBNET, made.mac, "h1", 3, AddressState.USED, 5, 5)
    assert bucket.view.get(Kind.IP, IPS[0]) == bucket.read().get(Kind.IP, IPS[0]) == address


@pytest.mark.parametrize(
    ("changed", "rows"),
    [
        ({"name": "new"}, 0),
        ({"admin_up": False, "goal_rev": 9}, 1),
        ({"host": "h2", "leaving": "h1", "goal_rev": 9}, 1),
        ({"state": PortState.DELETING, "goal_rev": 9}, 1),
        ({"identity": 4, "goal_rev": 9}, 1),
        ({"fixed": (), "goal_rev": 9}, 1),
        (None, 1),
    ],
)
def test_an_address_stays_as_it_is_when_its_port_alone_is_changed(changed: dict[str, Any] | None, rows: int) -> None:
    bucket, made = created()
    before = bucket.view.get(Kind.IP, IPS[0])
    bucket.change(9, {(Kind.PORT, made.id): None if changed is None else replace(made, rev=9, **changed)})
    assert len(bucket.stored()) == rows
    assert bucket.view.get(Kind.IP, IPS[0]) == bucket.read().get(Kind.IP, IPS[0]) == before
    assert all(row[2] == 5 for (kind, _), row in bucket.rows.items() if kind == Kind.IP)


def test_an_address_that_is_changed_with_its_port_needs_no_row_unless_it_has_one() -> None:
    bucket, made = created(host="")
    for rev, rows in ((9, 0), (12, 1)):
        host = f"h{rev}"
        edits: dict[tuple[int, bytes], Body | None] = {
            (Kind.PORT, made.id): replace(made, host=host, rev=rev, goal_rev=rev),
            (Kind.IP, IPS[0]): Address(made.id, SUBNET, made.mac, host, 3, AddressState.USED, rev, rev),
        }
        bucket.change(rev, edits)
        assert len(bucket.stored()) == rows
        assert bucket.view.get(Kind.IP, IPS[0]).host == bucket.read().get(Kind.IP, IPS[0]).host == host
        bucket.change(rev + 1, {(Kind.PORT, made.id): replace(made, host=host, goal_rev=rev + 1)})


def test_a_row_counts_whatever_the_port_tells() -> None:
    made, older = port(IDS[0], IPS[0], rev=9), Address(IDS[0], SUBNET, MACS[0], "h1", 3, AddressState.USED, 4, 4)
    bucket = Bucket(to_row(Kind.PORT, made.id, 9, made), to_row(Kind.IP, IPS[0], 4, older))
    assert bucket.view.get(Kind.IP, IPS[0]) == older
    free = replace(older, state=AddressState.FREE, host="", rev=12)
    bucket.change(12, {(Kind.IP, IPS[0]): free, (Kind.PORT, made.id): None})
    again = Address(IDS[1], SUBNET, MACS[0], "h1", 3, AddressState.USED, 20, 20)
    bucket.change(20, {(Kind.IP, IPS[0]): again, (Kind.PORT, IDS[1]): port(IDS[1], IPS[0], rev=20)})
    assert bucket.read().get(Kind.IP, IPS[0]) == bucket.view.get(Kind.IP, IPS[0]) == again
    assert bucket.stored() == [IPS[0]]


def test_an_address_that_has_a_row_is_not_put_again() -> None:
    bucket, made = created()
    for rev, puts in ((9, 2), (10, 1)):
        assert len(bucket.change(rev, {(Kind.PORT, made.id): replace(made, rev=rev, goal_rev=rev)})) == puts


def test_what_a_port_tells_and_nothing_denies_is_remembered_as_it_will_be_read() -> None:
    bucket, made = Bucket(), port(IDS[0], IPS[0])
    bucket.change(1, {(Kind.PORT, made.id): made})
    for kind in (Kind.IP, Kind.MAC):
        assert bucket.view.all(kind) == bucket.read().all(kind) != {}
    bucket.change(2, {(Kind.IP, IPS[0]): None})
    assert bucket.view.all(Kind.IP) == bucket.read().all(Kind.IP) != {}


def test_of_two_ports_that_have_one_address_no_edit_of_either_decides_by_itself() -> None:
    """Only damage makes it so; which of them tells of it must not change with the order of their ids."""
    first, second = port(IDS[0], IPS[0]), port(IDS[1], IPS[0])
    for asked in (second, replace(second, goal_rev=1, rev=9, admin_up=False)):
        bucket = Bucket(*(to_row(Kind.PORT, each.id, 1, each) for each in (first, second)))
        told = own_addresses(asked)[0][1]
        bucket.change(9, {(Kind.PORT, IDS[1]): asked, (Kind.IP, IPS[0]): told})
        assert bucket.view.get(Kind.IP, IPS[0]) == bucket.read().get(Kind.IP, IPS[0]) == told
        bucket = Bucket(to_row(Kind.PORT, second.id, 1, second))
        before = bucket.view.get(Kind.IP, IPS[0])
        bucket.change(9, {(Kind.PORT, IDS[0]): replace(first, rev=9)})
        assert bucket.view.get(Kind.IP, IPS[0]) == bucket.read().get(Kind.IP, IPS[0]) == before


def test_an_address_outside_its_port_s_home_has_a_row() -> None:
    bucket, made = Bucket(), port(IDS[0], IPS[0], ELSEWHERE)
    assert [ip for ip, _ in own_addresses(made)] == [IPS[0]]
    foreign = Address(make_id(network_home(NET, HOME + 1), 1), SUBNET, MACS[0], "h1", 3, AddressState.USED, 5, 5)
    assert len(bucket.change(5, {(Kind.IP, IPS[1]): foreign})) == 1


states = st.sampled_from(list(AddressState))
hosts = st.sampled_from(["", "h1", "h2"])


@st.composite
def edit(draw: st.DrawFn) -> list[Any]:
    """An operation: what becomes of one port, and of addresses with or without it."""
    what = draw(
        st.sampled_from(["create", "bind", "touch", "goal", "identity", "mac", "delete", "finish", "free", "any"])
    )
    return [what, draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(hosts), draw(states), draw(st.booleans())]


def play(bucket: Bucket, operation: list[Any], edits: dict[tuple[int, bytes], Body | None], rev: int) -> None:
    """The edits of an operation, on top of those of the same batch."""
    what, which, where, host, state, with_address = operation
    id_, ip = IDS[which], IPS[where]
    draft = Draft(bucket.view, edits, {})
    old: Port | None = draft.get(Kind.PORT, id_)
    present: Address | None = draft.get(Kind.IP, ip)
    fixed = [mine for _, mine in old.fixed] if old else []

    def used(owner: Port) -> None:
        for _, mine in owner.fixed:
            address = Address(owner.id, SUBNET, owner.mac, owner.leaving or owner.host, owner.identity)
            draft.put(Kind.IP, mine, replace(address, since=rev, rev=rev))

    if what == "create" and old is None and (present is None or present.state == AddressState.FREE):
        new = port(id_, ip, rev=rev, host=host)
        draft.put(Kind.PORT, id_, new)
        used(new)
    elif what == "any" and present is not None:
        draft.put(Kind.IP, ip, replace(present, state=state, host=host, rev=rev))
    elif old is not None and what in ("bind", "touch", "goal", "identity", "mac", "delete"):
        fields: dict[str, Any] = {
            "bind": {"host": host},
            "touch": {"name": f"{rev}"},
            "goal": {"admin_up": not old.admin_up},
            "identity": {"identity": rev},
            "mac": {"mac": MACS[where % 2]},
            "delete": {"state": PortState.DELETING},
        }[what]
        new = replace(old, rev=rev, goal_rev=old.goal_rev if what == "touch" else rev, **fields)
        draft.put(Kind.PORT, id_, new)
        if with_address and new.state == PortState.LIVE and what != "touch":
            used(new)
    elif old is not None and what in ("finish", "free"):
        if what == "finish":
            draft.drop(Kind.PORT, id_)
        elif old.state == PortState.LIVE:
            draft.put(Kind.PORT, id_, replace(old, fixed=(), rev=rev, goal_rev=rev))
        for mine in fixed:
            if with_address and (row := draft.get(Kind.IP, mine)) is not None:
                draft.put(Kind.IP, mine, replace(row, state=AddressState.FREE, rev=rev))
    edits.update(draft.edits)


@given(batches=st.lists(st.lists(edit(), min_size=1, max_size=4), max_size=12))
def test_what_is_remembered_is_what_is_read_and_no_address_changes_by_itself(batches: list[list[Any]]) -> None:
    bucket, rev = Bucket(), 10
    for operations in batches:
        edits: dict[tuple[int, bytes], Body | None] = {}
        expected = dict(bucket.view.all(Kind.IP))
        rev += 1
        for operation in operations:
            play(bucket, operation, edits, rev)
        expected |= {key: body for (kind, key), body in edits.items() if kind == Kind.IP}
        bucket.change(rev, edits)
        read, untold = bucket.read(), bucket.read()
        size = untold.rows
        assert bucket.view.all(Kind.IP) == read.all(Kind.IP) == expected
        assert {key: row for key in IPS if (row := untold.get(Kind.IP, key)) is not None} == expected
        assert [untold.get(Kind.MAC, key) for key in MACS] == [read.get(Kind.MAC, key) for key in MACS]
        assert untold.untold == bool(read.all(Kind.PORT)), "who wants one has not all told"
        assert size >= read.rows
        assert bucket.view.all(Kind.PORT) == read.all(Kind.PORT)
        assert bucket.view.stored == read.stored


@given(st.integers(0, 2**62 - 1), st.integers(0, 2**60 - 1), st.integers(0, 1023))
def test_a_place_in_an_id_changes_nothing_else_of_it(home: int, random: int, place: int) -> None:
    id_ = make_id(home, random)
    there = placed(id_, place)
    assert (home_of(there), is_ours(there)) == (home, True)
    assert (there[:2], there[4:], int.from_bytes(there[2:4], "big") >> 6) == (id_[:2], id_[4:], place)
    marked = Id(first_at(home, 0)[:2] + there[2:])
    assert first_at(home, place) <= marked
    assert place == 1023 or marked < first_at(home, place + 1)


def test_what_a_port_tells_is_what_is_taken_for_told() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        owner = port(
            IDS[0], IPS[0], rev=chance.randint(1, 2), host=chance.choice(["", "h1"]), state=chance.choice([0, 0, 1])
        )
        address = Address(
            chance.choice([IDS[0], IDS[0], IDS[1]]),
            SUBNET,
            chance.choice(MACS),
            chance.choice(["", "h1"]),
            3,
            chance.choice([1, 1, 3]),
            1,
            chance.randint(1, 2),
        )
        assert tells(owner, IPS[0], address) == ((IPS[0], address) in own_addresses(owner))


class Overtaken(SqliteStore):
    """The second batch never happens and has no answer; before anybody asks, somebody else's does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.count = 0
        self.other: Any = None

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        self.count += 1
        if self.count == 2:
            await self.other()
            raise UnknownOutcome("no answer")
        return await super().commit(batch, before)


async def test_an_address_that_another_gave_the_same_row_is_no_proof_that_a_batch_happened(tmp_path: Path) -> None:
    store = Overtaken(tmp_path / "s.db")
    await store.open()
    here, there = Partitions(store, now_us), Partitions(store, now_us)
    where = place_of(IDS[0])

    def create(draft: Draft, rev: int) -> None:
        made = port(IDS[0], IPS[0], rev=rev)
        draft.put(Kind.IP, IPS[0], own_addresses(made)[0][1])
        draft.put(Kind.PORT, IDS[0], made)

    def change(draft: Draft, rev: int, **fields: Any) -> None:
        draft.put(Kind.PORT, IDS[0], replace(draft.get(Kind.PORT, IDS[0]), rev=rev, goal_rev=rev, **fields))

    async def other() -> None:
        await there.change(PORTS, where, lambda draft, rev: change(draft, rev, admin_up=False))

    store.other = other
    await here.change(PORTS, where, create)
    address = here.peek(PORTS, where).get(Kind.IP, IPS[0])  # type: ignore[union-attr]
    await here.change(PORTS, where, lambda draft, rev: change(draft, rev, pairs=(("10.0.0.9", ""),)))
    view = await here.view(PORTS, where, fresh=True)
    found: Port = view.get(Kind.PORT, IDS[0])
    assert (found.admin_up, found.pairs) == (False, (("10.0.0.9", ""),))
    assert view.get(Kind.IP, IPS[0]) == address
    assert view.stored == {IPS[0]}
    await store.close()
