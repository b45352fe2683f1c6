"""What integrators and consoles are told: every change of every resource, to those who may see it, in order."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from api.stream import written
from observability.stages import request_id
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.bus.protocol import Incoming
from planes.control.watch import WAITING, Watcher
from planes.goalstate import codec
from planes.goalstate.messages import Ack, Applied, Event, Events, Finished, ObjectKind, Ok, Register, Registered
from planes.goalstate.subjects import ANY, Subjects
from planes.management.cloud import Cloud
from planes.model.errors import Invalid, NotFound, Unavailable
from planes.model.ids import parse
from planes.model.requests import GroupCreate, HostCreate, NetworkUpdate, PortCreate, PortUpdate
from tests.support.cloud import caller, network_with_subnet, running
from tests.support.http import ADMIN, Api, serving

SUBJECTS = Subjects()


async def eventually(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not met():  # noqa: ASYNC110 – the loop's own turns are what is waited for
            await asyncio.sleep(0.001)


class Ear:
    """An integrator: all events that it hears, as (subject's end, event)."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.bus = MemoryBus(broker, "integrator")
        self.told: list[tuple[str, Any]] = []
        self.changes: list[Any] = []
        self.messages = 0

    async def listen(self, subject: str = SUBJECTS.events) -> None:
        await self.bus.connect()
        await self.bus.subscribe(subject, self._heard)

    def _heard(self, message: Incoming) -> None:
        place = message.subject.removeprefix("alcor.event.")
        if place.endswith(".change.finished"):
            self.changes += codec.decode(message.data, Finished)[1].changes
        else:
            self.messages += 1
            self.told += [(place, event) for event in codec.decode(message.data, Events)[1].events]

    async def until(self, number: int) -> list[tuple[str, Any]]:
        await eventually(lambda: len(self.told) >= number)
        return self.told


class Host:
    """A host that answers for ports when it is told to."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.bus = MemoryBus(broker, "h1")

    async def register(self) -> None:
        await self.bus.connect()
        asked = Register("h1", "machine", b"\x0a\0\0\1")
        data = await self.bus.request(SUBJECTS.pull("h1", "register"), codec.encode(asked, "h1"), 5)
        self.epoch = codec.decode(data, Registered)[1].epoch

    async def answer(self, view: Any, author: str, error: str = "") -> None:
        change = b"" if author == ANY else parse(self.change)
        item = Applied(ObjectKind.PORT, parse(view.id), parse(view.id), view.revision_number, error, change)
        ack = codec.encode(Ack((item,)), "h1", self.epoch)
        assert not codec.decode(await self.bus.request(SUBJECTS.ack("h1", author), ack, 5), Ok)[1].again

    change = ""


@pytest.fixture
async def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def cloud(tmp_path: Path, broker: MemoryBroker) -> AsyncIterator[Cloud]:
    async with running(tmp_path, broker=broker) as found:
        yield found


@pytest.fixture
async def ear(broker: MemoryBroker) -> Ear:
    found = Ear(broker)
    await found.listen()
    return found


async def test_each_verb_of_each_resource_is_told_once_and_in_order(cloud: Cloud, ear: Ear) -> None:
    network, _ = await network_with_subnet(cloud)
    await cloud.networks.update(caller(), network.id, NetworkUpdate(name="new"), None)
    (port,) = await cloud.ports.create(caller(), [PortCreate(network_id=network.id, name="eth0")])
    await cloud.ports.update(caller(), port.id, PortUpdate(name="eth1"), None)
    await cloud.ports.delete(caller(), port.id, None)
    (group,) = await cloud.groups.create(caller(), [GroupCreate(name="web")])
    await cloud.groups.delete(caller(), group.id, None)
    await cloud.networks.delete(caller(), network.id, None)
    told = await ear.until(9)
    assert [place for place, _ in told] == [
        "demo.network.create",
        "demo.subnet.create",
        "demo.network.update",
        "demo.port.create",
        "demo.port.update",
        "demo.port.delete",
        "demo.security_group.create",
        "demo.security_group.delete",
        "demo.network.delete",
    ]
    eth = [event for place, event in told if ".port." in place]
    assert [event.name for event in eth] == ["eth0", "eth1", "eth1"]
    assert {event.id for event in eth} == {port.id}
    assert {event.network for event in eth} == {network.id}
    assert eth[0].revision < eth[1].revision < eth[2].revision
    assert [event.status for event in eth] == ["DOWN", "DOWN", ""]
    assert told[-1][1].id == network.id


async def test_what_fails_is_not_told(cloud: Cloud, ear: Ear) -> None:
    network, _ = await network_with_subnet(cloud)
    with pytest.raises(Invalid):
        await cloud.ports.create(caller(), [PortCreate(network_id=network.id, mac_address="no")])
    with pytest.raises(NotFound):
        await cloud.ports.delete(caller("other"), network.id, None)
    (port,) = await cloud.ports.create(caller(), [PortCreate(network_id=network.id)])
    assert [place for place, _ in await ear.until(3)][2:] == ["demo.port.create"]
    assert ear.told[2][1].id == port.id


async def test_a_bulk_is_one_message_and_each_project_hears_its_own(cloud: Cloud, broker: MemoryBroker) -> None:
    mine, other = Ear(broker), Ear(broker)
    await mine.listen(SUBJECTS.event("demo", "*", "*"))
    await other.listen(SUBJECTS.event("team.b", "*", "*"))
    network, _ = await network_with_subnet(cloud)
    await mine.until(2)
    mine.messages = 0
    await cloud.ports.create(caller(), [PortCreate(network_id=network.id) for _ in range(100)])
    assert len(await mine.until(102)) == 102
    assert mine.messages == 1
    (group,) = await cloud.groups.create(caller("team.b"), [GroupCreate(name="b")])
    told = await other.until(1)
    assert [(place, event.id) for place, event in told] == [("team%2Eb.security_group.create", group.id)]
    assert len(mine.told) == 102


async def test_hosts_belong_to_no_project(cloud: Cloud, ear: Ear) -> None:
    await cloud.hosts.create(caller(admin=True), [HostCreate(name="h9")])
    await cloud.hosts.delete(caller(admin=True), "h9", None)
    assert [(place, event.id) for place, event in await ear.until(2)] == [
        ("%.host.create", "h9"),
        ("%.host.delete", "h9"),
    ]


@pytest.mark.parametrize(("error", "status"), [("", "ACTIVE"), ("no kernel", "ERROR")])
@pytest.mark.parametrize("own", [True, False])
async def test_a_hosts_answer_is_told_as_the_ports_status(
    cloud: Cloud, ear: Ear, broker: MemoryBroker, error: str, status: str, own: bool
) -> None:
    """Also when the host took the port by itself and names nobody."""
    host = Host(broker)
    await host.register()
    network, _ = await network_with_subnet(cloud)
    who = caller()
    (port,) = await cloud.ports.create(who, [PortCreate(network_id=network.id, host_id="h1")])
    host.change = who.change.id.hex()
    await host.answer(port, cloud.plane.instance if own else ANY, error)
    place, event = (await ear.until(4))[3]
    assert (place, event.id, event.status, event.reason) == ("demo.port.status", port.id, status, error)
    assert (event.host, event.network, event.revision) == ("h1", network.id, port.revision_number)
    assert bool(event.took) == own
    await cloud.ports.delete(caller(), port.id, None)
    assert [place for place, _ in await ear.until(5)][4:] == ["demo.port.delete"]


async def test_an_answer_that_another_instance_keeps_ends_the_change_of_its_author(
    cloud: Cloud, ear: Ear, broker: MemoryBroker
) -> None:
    """All instances take acks in turn: the author's clients, its histograms and its repeats must hear of each."""
    host = Host(broker)
    await host.register()
    network, _ = await network_with_subnet(cloud)
    second = MemoryBus(broker, "second")
    await second.connect()
    who = caller()
    (port,) = await cloud.ports.create(who, [PortCreate(network_id=network.id, host_id="h1")])
    item = Applied(
        ObjectKind.PORT,
        parse(port.id),
        parse(port.id),
        port.revision_number,
        change=who.change.id,
        done=who.change.last,
    )
    theirs = await cloud.plane.acks.store("h1", [item], "another")  # as the instance that keeps it for its author does
    assert theirs is not None
    assert (await cloud.plane.changes.get(who.change.id)).status == "ACTIVE"  # type: ignore[union-attr]
    # and the author, told over the bus, goes on though it kept nothing itself
    late = caller()
    (port,) = await cloud.ports.create(late, [PortCreate(network_id=network.id, host_id="h1")])
    id_ = parse(port.id)
    assert await cloud.plane.changes.get(late.change.id) is not None
    assert cloud.plane.changes.waiting[0] == 1
    said = theirs.__class__(
        "h1", (Applied(ObjectKind.PORT, id_, id_, port.revision_number, change=late.change.id),), 1, 2
    )
    second.publish(SUBJECTS.stored(cloud.plane.instance), codec.encode(said, "another"))
    await second.flush()
    await eventually(lambda: not cloud.plane.changes.waiting[0])
    assert ("h1", (ObjectKind.PORT, id_, id_)) not in cloud.plane.publisher._awaited[0]


async def test_finished_changes_are_told_with_their_stages(cloud: Cloud, ear: Ear) -> None:
    network, _ = await network_with_subnet(cloud)
    who = caller()
    await cloud.ports.create(who, [PortCreate(network_id=network.id) for _ in range(3)])
    await eventually(lambda: len(ear.changes) >= 3)
    done = ear.changes[-1]
    assert (done.change, done.count, done.status) == (request_id(who.change.id), 3, "ACTIVE")
    assert {"validate", "claim", "write"} <= {stage.name for stage in done.stages}


# -- over HTTP --


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def test_recent_changes_newest_first_and_only_ones_own(api: Api) -> None:
    network = await api.network()
    port = (await api("POST", "/v2.0/ports", {"port": {"network_id": network}}, 201))["port"]
    await api.network(headers={"X-Project-Id": "other"})
    found = (await api("GET", "/v2.0/alcor/changes"))["changes"]
    assert [change["resource"] for change in found] == ["create port", "create subnet", "create network"]
    assert (found[0]["object_id"], found[0]["project_id"], found[0]["count"]) == (port["id"], "demo", 1)
    assert len((await api("GET", "/v2.0/alcor/changes", headers=ADMIN))["changes"]) == 5
    for query, number in (
        ("limit=2", 2),
        ("resource=port", 1),
        ("resource=create%20subnet", 1),
        (f"id={port['id']}", 1),
        ("status=ERROR", 0),
        ("min_us=60000000", 0),
    ):
        assert len((await api("GET", f"/v2.0/alcor/changes?{query}"))["changes"]) == number, query
    for query, named in (
        ("limit=x", "Limit"),
        ("limit=1001", "1000"),
        ("status=GOOD", "status"),
        ("colour=red", "colour"),
    ):
        _, message = await api.refused("GET", f"/v2.0/alcor/changes?{query}", 400)
        assert named in message


async def test_the_trace_of_another_project_is_not_found(api: Api) -> None:
    network = await api.network(headers={"X-Project-Id": "other"})
    change = (await api("GET", "/v2.0/alcor/changes", headers=ADMIN))["changes"][0]
    assert (change["project_id"], bool(network)) == ("other", True)
    await api.refused("GET", f"/v2.0/alcor/changes/{change['id']}", 404)
    await api("GET", f"/v2.0/alcor/changes/{change['id']}", headers={"X-Project-Id": "other"})
    await api("GET", f"/v2.0/alcor/changes/{change['id']}", headers=ADMIN)


# -- streams --


def _events(project: str, number: int = 1) -> Events:
    return Events(project, "port", "create", tuple(Event(str(n), n, n) for n in range(number)))


async def test_a_watcher_hears_its_project_only_and_learns_that_it_was_too_slow() -> None:
    mine, every = Watcher("demo"), Watcher("")
    for watcher in (mine, every):
        watcher.take(_events("demo"))
        watcher.take(_events("other"))
    assert [each.project for each in (await mine.next(0))[0]] == ["demo"]
    assert [each.project for each in (await every.next(0))[0]] == ["demo", "other"]
    for _ in range(WAITING + 5):
        mine.take(_events("demo"))
    told, missed = await mine.next(0)
    assert missed
    assert len(told) < 5
    assert written(told, missed).startswith(b"event: lagged\n")
    assert await mine.next(0) == ([], False)


async def test_the_bus_is_listened_to_only_while_somebody_watches(cloud: Cloud) -> None:
    watch = cloud.plane.watch
    async with watch.watching("demo") as watcher:
        await network_with_subnet(cloud)
        told: list[Any] = []
        async with asyncio.timeout(5):
            while len(told) < 2:
                told += [each for each in (await watcher.next(5))[0] if isinstance(each, Events)]
        assert [(each.resource, each.verb) for each in told] == [("network", "create"), ("subnet", "create")]
        watch.close()
        assert watcher.closed
    assert watch._subscription is None


async def test_over_the_bound_and_without_a_bus_a_stream_is_refused(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = cloud.plane.watch
    monkeypatch.setattr("planes.control.watch.WATCHERS", 1)
    async with watch.watching("a"):
        with pytest.raises(Unavailable, match="1 event streams"):
            async with watch.watching("b"):
                pass
    await cloud.plane.bus.close()
    with pytest.raises(Unavailable, match="NATS"):
        async with watch.watching("a"):
            pass
