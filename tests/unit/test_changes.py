"""Changes end with the answer of their hosts, also when a later revision is all that a host answers for."""

import asyncio
from pathlib import Path

import pytest

from observability.stages import Change
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.bus.protocol import Incoming
from planes.control import changes
from planes.control.changes import Changes, Record
from planes.control.events import Teller
from planes.goalstate import codec
from planes.goalstate.messages import Applied, Done, Finished, ObjectKind, Took
from planes.goalstate.subjects import Subjects
from planes.model.ids import Id
from planes.model.resources import Port
from planes.store.sqlite.store import SqliteStore

PORT, OTHER = Id(b"\xa0" + bytes(15)), Id(b"\xa0" + bytes(14) + b"\1")


class Followed:
    """Changes, and those that have ended."""

    def __init__(self, path: Path) -> None:
        self.ended: list[Record] = []
        teller = Teller(MemoryBus(MemoryBroker(), "c1"), Subjects(), "c1")
        self.changes = Changes(SqliteStore(path / "unused.db"), teller, self.ended.extend)

    def follow(self, what: str, *ports: tuple[Id, int]) -> Change:
        change = Change(what)
        self.changes.follow(change, [_port(id_, rev) for id_, rev in ports])
        return change

    def answer(self, id_: Id, rev: int, change: Change | None = None, error: str = "") -> Change | None:
        item = Applied(ObjectKind.PORT, b"", id_, rev, error, change.id if change else b"", 1, 2, 3, 4)
        found = self.changes.answered("h1", item, 5, 6)
        return found[0] if found else None

    @property
    def told(self) -> list[tuple[str, str]]:
        self.changes.tell(100)
        return [(record.resource, record.status) for record in self.ended]


def _port(id_: Id, rev: int) -> Port:
    return Port(id_, Id(bytes(16)), "demo", bytes(6), (), rev=rev, goal_rev=rev, host="h1")


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path)


def test_an_answer_for_a_revision_ends_the_changes_before_it(followed: Followed) -> None:
    followed.follow("create", (PORT, 1))
    followed.follow("update", (PORT, 2))
    last = followed.follow("update again", (PORT, 3))
    later = followed.follow("delete", (PORT, 4))
    assert followed.answer(PORT, 3, last) is last
    assert sorted(followed.told) == [("create", "ACTIVE"), ("update", "ACTIVE"), ("update again", "ACTIVE")]
    assert followed.changes.waiting[0] == 1
    assert followed.answer(PORT, 4, later) is later
    assert (followed.changes.waiting[0], followed.changes._last) == (0, {})


def test_a_bulk_waits_for_each_of_its_ports(followed: Followed) -> None:
    bulk = followed.follow("create", (PORT, 1), (OTHER, 1))
    update = followed.follow("update", (OTHER, 2))
    assert followed.answer(OTHER, 2, update) is update
    assert followed.told == [("update", "ACTIVE")]
    assert followed.answer(PORT, 1, bulk, "no room") is bulk
    assert followed.told[1:] == [("create", "ERROR")]


def test_an_older_answer_ends_nothing_newer(followed: Followed) -> None:
    create = followed.follow("create", (PORT, 1))
    followed.follow("update", (PORT, 2))
    assert followed.answer(PORT, 1, create) is create
    assert followed.answer(PORT, 9) is None
    assert followed.answer(OTHER, 9) is None
    assert followed.changes.waiting[0] == 1


def test_what_is_followed_is_bounded(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "FOLLOWED", 3)
    last = Change()
    for number in range(10):
        last = followed.follow(f"create {number}", (PORT, number), (OTHER, number))
    assert followed.changes.waiting[0] == 3
    assert followed.told[0] == ("create 0", "BUILD")
    followed.answer(PORT, 9, last)
    followed.answer(OTHER, 9, last)
    assert (followed.changes.waiting[0], followed.changes._last) == (0, {})


async def test_what_is_too_large_for_a_message_is_told_in_several() -> None:
    broker = MemoryBroker()
    ear, mouth = MemoryBus(broker, "ear"), MemoryBus(broker, "c1")
    heard: list[Finished] = []

    def hear(message: Incoming) -> None:
        heard.append(codec.decode(message.data, Finished)[1])

    for bus in (ear, mouth):
        await bus.connect()
    await ear.subscribe(Subjects().event("demo", "change", "finished"), hear)
    teller = Teller(mouth, Subjects(), "c1")

    def done(name: str, hosts: int) -> tuple[str, Done]:
        stages = tuple(Took("program", f"host-{n}.example.org", 10**15, 10**6) for n in range(hosts))
        return "demo", Done(name, "0" * 32, "create port", "x", 1, "ACTIVE", 5, stages)

    teller.finished([*(done(f"c{n}", 1500) for n in range(10)), done("huge", 20_000)])
    await mouth.flush()
    await asyncio.sleep(0)
    assert [each.change for body in heard for each in body.changes] == [f"c{n}" for n in range(10)]
    assert len(heard) > 1
    assert teller.counters == {"events": 10, "events_unsent": 1}
