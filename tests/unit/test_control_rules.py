"""Control's side of the rules, with the agents as they are: each test fails when its rule is taken out of control."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from planes.bus.protocol import Incoming
from planes.control import numbers, reads
from planes.goalstate import codec
from planes.goalstate.messages import Ack, Applied, Goal, Gone, Identity, Object, ObjectKind, Port, Register, Span
from planes.model.errors import Conflict
from planes.model.ids import parse
from planes.model.requests import FixedIp, GroupCreate, NetworkCreate, PortCreate, PortUpdate, SubnetCreate
from planes.model.views import NetworkView, PortView
from planes.store.faulty import Fault, FaultyStore
from planes.store.sqlite.store import SqliteStore
from tests.support.clock import now_us, run
from tests.support.cloud import caller, running
from tests.support.mesh import Mesh

Story = Callable[[Mesh], Awaitable[None]]


def play(path: Path, story: Story, **how: object) -> None:
    async def main() -> None:
        mesh = Mesh(path, **how)  # type: ignore[arg-type]
        await mesh.start(hosts=("h1", "h2"))
        await story(mesh)
        await mesh.stop()

    run(main())


async def network(mesh: Mesh, by: str = "c1") -> NetworkView:
    (made,) = await mesh.clouds[by].networks.create(caller(), [NetworkCreate()])
    await mesh.clouds[by].subnets.create(caller(), [SubnetCreate(network_id=made.id, cidr="10.0.0.0/24")])
    return made


async def port(mesh: Mesh, net: NetworkView, host: str, ip: str = "", by: str = "c1") -> PortView:
    fixed = {"fixed_ips": (FixedIp(ip_address=ip),)} if ip else {}
    wanted = PortCreate(network_id=net.id, host_id=host, **fixed)  # type: ignore[arg-type]
    (made,) = await mesh.clouds[by].ports.create(caller(), [wanted])
    return made


async def status(mesh: Mesh, id_: str, by: str = "c1") -> str:
    return str((await mesh.clouds[by].ports.get(caller(), id_)).status)


def test_nothing_is_published_that_is_not_stored(tmp_path: Path) -> None:
    """S3: a batch that the store refuses leaves no trace on the bus; one that it takes is published after."""

    class Switch:
        on = False

    def plan(call: object) -> Fault:
        refused = Switch.on and call.op == "commit" and call.table == "ports"  # type: ignore[attr-defined]
        return Fault.REFUSE if refused else Fault.NONE

    async def story(mesh: Mesh) -> None:
        net, heard = await network(mesh), list[Incoming]()
        cloud = mesh.clouds["c1"]
        await cloud.plane.bus.subscribe(cloud.plane.subjects.network(parse(net.id)), heard.append)
        await cloud.plane.bus.subscribe(cloud.plane.subjects.host("h1"), heard.append)
        Switch.on = True
        with pytest.raises(Exception, match="store does not answer"):
            await port(mesh, net, "h1", "10.0.0.9")
        Switch.on = False
        await asyncio.sleep(0.2)
        goals = [codec.decode(message.data, Goal)[1] for message in heard]
        kinds = {item.key[0] for goal in goals for item in goal.objects}
        assert not kinds & {ObjectKind.PORT, ObjectKind.NEIGHBOUR}
        await port(mesh, net, "h1", "10.0.0.9")
        await asyncio.sleep(0.2)
        rows = {row.id: row.goal_rev for row in await mesh.ports()}
        goals = [codec.decode(message.data, Goal)[1] for message in heard]
        ports = [item for goal in goals for item in goal.objects if item.key[0] == ObjectKind.PORT]
        assert {item.key[2]: item.rev for item in ports} == rows

    play(tmp_path, story, store=FaultyStore(SqliteStore(tmp_path / "store.db"), plan))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2)])
def test_only_the_binding_hosts_ack_of_the_present_revision_makes_a_port_active(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    """S14: acks of an older and the present revision, by this host and another, in any order."""

    async def story(mesh: Mesh) -> None:
        net = await network(mesh)
        mesh.broker.mute("h1")
        made = await port(mesh, net, "h1")
        id_, acks = parse(made.id), mesh.clouds["c2"].plane.acks
        rev = (await reads.ports(mesh.store, [id_]))[id_].goal_rev
        said = [("h1", rev - 1), ("h1", rev), ("h2", rev), ("h2", rev + 1)]
        seen = set()
        for n in order:
            host, applied = said[n]
            await acks.store(host, [Applied(ObjectKind.PORT, b"", id_, applied)])
            seen.add(said[n])
            assert await status(mesh, made.id) == ("ACTIVE" if ("h1", rev) in seen else "BUILD")
        mesh.heal()

    play(tmp_path, story)


def test_when_the_author_dies_before_the_ack_another_instance_keeps_it(tmp_path: Path) -> None:
    """S15: the ack goes on until somebody has stored it, whoever published the port."""

    async def story(mesh: Mesh) -> None:
        net = await network(mesh)
        mesh.drivers["h1"].stall()
        made = await port(mesh, net, "h1", by="c1")
        await asyncio.sleep(0.1)
        await mesh.kill_control("c1")
        mesh.drivers["h1"].resume()
        await asyncio.sleep(5)
        assert await status(mesh, made.id, "c2") == "ACTIVE"
        assert not mesh.agents["h1"].state.acks.waiting()

    play(tmp_path, story)


def test_who_waits_on_the_author_hears_of_acks_that_another_instance_stored(tmp_path: Path) -> None:
    """S15: the waiter is on c1, the ack is taken by c2."""

    async def story(mesh: Mesh) -> None:
        net = await network(mesh)
        mesh.broker.faults.lose = lambda client, subject: client == "c1" and subject.startswith("alcor.ack")
        made = await port(mesh, net, "h1", by="c1")
        began = now_us()
        (view,) = await mesh.clouds["c1"].ports.settled(caller(), [made], 30)
        assert now_us() - began < 2_000_000
        assert view.status == "ACTIVE"
        assert mesh.clouds["c2"].plane.acks.counters["acks"] >= 1
        mesh.heal()

    play(tmp_path, story)


def test_what_a_former_life_says_does_not_count(tmp_path: Path) -> None:
    """S16: messages of a lower epoch are refused, with the present one."""

    async def story(mesh: Mesh) -> None:
        plane = mesh.clouds["c1"].plane
        await mesh.kill_control("c2")
        await asyncio.sleep(11)  # by now c1 has read who registered with c2
        epoch = plane.hosts.epoch("h1")
        await mesh.stop_agent("h1")
        await mesh.start_agent("h1")
        await asyncio.sleep(1)
        assert plane.hosts.epoch("h1") == epoch + 1
        before, refused = plane.acks.counters["acks"], plane.counters["refused"]
        ack = Ack((Applied(ObjectKind.PORT, b"", parse("0" * 8 + "-0000-8000-8000-" + "0" * 12), 1),))
        bus = mesh.agents["h2"]._bus
        await bus.request(plane.subjects.ack("h1", plane.instance), codec.encode(ack, "h1", epoch), 1.0)
        assert (plane.acks.counters["acks"], plane.counters["refused"]) == (before, refused + 1)

    play(tmp_path, story)


def test_a_registration_that_is_repeated_costs_no_epoch(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as cloud:
            hosts = cloud.plane.hosts
            first = Register("h1", "machine", bytes((192, 0, 2, 1)), attempt=b"one")
            granted = await hosts.register(first)
            assert granted.epoch == 1
            assert await hosts.register(first) == granted
            next_life = Register("h1", "machine", bytes((192, 0, 2, 1)), granted.epoch, attempt=b"two")
            assert (await hosts.register(next_life)).epoch == 2

    asyncio.run(main())


def test_an_address_is_not_given_away_while_its_host_may_use_it(tmp_path: Path) -> None:
    """S19, S20: a partitioned host keeps the address until it is fenced; back again it drops it and is announced."""

    async def story(mesh: Mesh) -> None:
        net = await network(mesh)
        await port(mesh, net, "h2", "10.0.0.7")
        first = await port(mesh, net, "h1", "10.0.0.5")
        await port(mesh, net, "h1", "10.0.0.8")
        await asyncio.sleep(1)
        mesh.broker.mute("h1")
        await mesh.clouds["c1"].ports.delete(caller(), first.id, None)
        began = now_us()
        with pytest.raises(Conflict, match=r"10\.0\.0\.5 is in use") as caught:
            await port(mesh, net, "h2", "10.0.0.5")
        assert caught.value.type_name == "IpAddressInUse"
        assert 5_000_000 <= now_us() - began < 6_000_000
        await asyncio.sleep(60)
        assert mesh.clouds["c1"].plane.hosts.dead("h1")
        second = await port(mesh, net, "h2", "10.0.0.5")
        assert " peer " not in mesh.drivers["h2"].dump()
        await asyncio.sleep(2)
        assert await status(mesh, second.id) == "ACTIVE"
        assert "10.0.0.5" in mesh.drivers["h1"].dump()  # nobody sends there any more
        mesh.heal()
        await mesh.settle()
        await mesh.check()
        assert " peer " in mesh.drivers["h2"].dump()

    play(tmp_path, story)


def test_a_host_that_has_just_registered_is_not_taken_for_dead(tmp_path: Path) -> None:
    """S20: it has had no time to beat."""

    async def story(mesh: Mesh) -> None:
        net = await network(mesh)
        made = await port(mesh, net, "h1")
        await asyncio.sleep(20)
        for plane in (cloud.plane for cloud in mesh.clouds.values()):
            mesh.broker.faults.lose = lambda _, subject: ".beat." in subject
            await mesh.stop_agent("h1")
            await mesh.start_agent("h1")
            await asyncio.sleep(1)
            assert not await plane.hosts.fence("h1")
            assert await status(mesh, made.id) == "ACTIVE"
            mesh.heal()
            await asyncio.sleep(20)

    play(tmp_path, story)


def test_an_instance_whose_clock_is_wrong_says_so(tmp_path: Path) -> None:
    """S22."""

    async def story(mesh: Mesh) -> None:
        assert await mesh.clouds["c1"].health.ready() == []
        for ahead in (3_600_000_000, -3_600_000_000):
            mesh.store.ahead = ahead
            (reason,) = await mesh.clouds["c1"].health.ready()
            assert "clock" in reason
        mesh.store.ahead = 400_000
        assert await mesh.clouds["c1"].health.ready() == []

    play(tmp_path, story)


def test_many_objects_leave_in_bounded_messages(tmp_path: Path) -> None:
    """S23, S7: 1 000 objects at once; each message holds 256 at most, and no part claims the stretch of all."""

    async def story(mesh: Mesh) -> None:
        plane, heard, scope = mesh.clouds["c1"].plane, list[Incoming](), bytes(16)
        await plane.bus.subscribe(plane.subjects.network(scope), heard.append)
        items = [Gone(ObjectKind.NEIGHBOUR, scope, n.to_bytes(4, "big"), n + 1) for n in range(1000)]
        plane.publisher.network(scope, items, (Span(0, 0, 1000),))
        await asyncio.sleep(0.1)
        parts = [codec.decode(message.data, Goal)[1] for message in heard]
        assert sum(len(part.objects) for part in parts) == 1000
        assert all(len(part.objects) <= codec.MAX_OBJECTS and not part.spans for part in parts)
        assert all(len(message.data) <= codec.MAX_MESSAGE for message in heard)

    play(tmp_path, story)


def test_an_older_object_does_not_take_a_newers_place_in_a_message(tmp_path: Path) -> None:
    """S1, S7: the echo may hand over what it read before the change that is about to leave."""

    async def story(mesh: Mesh) -> None:
        plane, heard, scope = mesh.clouds["c1"].plane, list[Incoming](), bytes(16)
        await plane.bus.subscribe(plane.subjects.network(scope), heard.append)
        for rev in (2, 1):
            plane.publisher.network(scope, [Gone(ObjectKind.NEIGHBOUR, scope, b"ip", rev)], ())
        await asyncio.sleep(0.1)
        (message,) = heard
        assert [item.rev for item in codec.decode(message.data, Goal)[1].objects] == [2]

    play(tmp_path, story)


def test_groups_have_numbers_that_never_change_their_meaning(tmp_path: Path) -> None:
    """I1, I2, I3: another set, another number, a rising one; it is out before the port that needs it."""

    async def story(mesh: Mesh) -> None:
        net, cloud = await network(mesh), mesh.clouds["c1"]
        groups = [(await cloud.groups.create(caller(), [GroupCreate(name=name)]))[0].id for name in "abc"]
        order: list[Object] = []

        def heard(message: Incoming) -> None:
            goal = codec.decode(message.data, Goal)[1]
            order.extend(goal.objects)

        await cloud.plane.bus.subscribe(cloud.plane.subjects.network(parse(net.id)), heard)
        await cloud.plane.bus.subscribe(cloud.plane.subjects.host("h1"), heard)
        made = await port(mesh, net, "h1")
        meaning: dict[int, tuple[bytes, ...]] = {}
        for group in (*groups, groups[0]):
            await cloud.ports.update(caller(), made.id, PortUpdate(security_groups=(group,)), None)
            await asyncio.sleep(0.2)
            row = (await mesh.ports())[0]
            assert meaning.setdefault(row.identity, row.groups) == row.groups
        assert len(meaning) == len(groups)
        assert sorted(meaning) == list(meaning)
        known: set[int] = set()
        for item in order:
            if isinstance(item, Identity):
                known.add(item.number)
            elif isinstance(item, Port):
                assert item.identity in known

    play(tmp_path, story)


def test_when_all_numbers_are_given_away_a_new_set_is_refused_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2: no number is given away twice, also not one that no port has any more."""
    monkeypatch.setattr(numbers, "MAX_IDENTITY", 3)

    async def story(mesh: Mesh) -> None:
        net, cloud = await network(mesh), mesh.clouds["c1"]
        groups = [(await cloud.groups.create(caller(), [GroupCreate(name=name)]))[0].id for name in "abcd"]

        async def wear(group: str, by: str = "c1") -> int:
            wanted = PortUpdate(security_groups=(group,))
            await mesh.clouds[by].ports.update(caller(), made.id, wanted, None)
            return (await mesh.ports())[0].identity

        wanted = PortCreate(network_id=net.id, host_id="h1", security_groups=(groups[0],))
        (made,) = await cloud.ports.create(caller(), [wanted])
        numbers = [await wear(group) for group in groups[:3]]
        assert numbers == [1, 2, 3]
        for by in ("c1", "c2"):
            with pytest.raises(Conflict, match="no number left for another set of security groups") as caught:
                await wear(groups[3], by)
            assert caught.value.type_name == "OverQuota"
        assert [await wear(group, "c2") for group in groups[:3]] == numbers

    play(tmp_path, story)


def test_an_instance_decides_by_what_the_store_has_now(tmp_path: Path) -> None:
    """D2: c2 remembers a bucket from before; what c1 did to it since is neither missing nor in the way."""

    async def story(mesh: Mesh) -> None:
        net = await network(mesh)
        remembered = await port(mesh, net, "h1", "10.0.0.5", by="c2")
        later = await port(mesh, net, "h1", "10.0.0.6", by="c1")
        await mesh.clouds["c2"].ports.update(caller(), later.id, PortUpdate(name="x"), None)
        await mesh.clouds["c2"].ports.delete(caller(), later.id, None)
        await mesh.clouds["c1"].ports.delete(caller(), remembered.id, None)
        await asyncio.sleep(1)
        began = now_us()
        await port(mesh, net, "h2", "10.0.0.5", by="c2")
        await port(mesh, net, "h2", "10.0.0.6", by="c1")
        assert now_us() - began < 1_000_000

    play(tmp_path, story)


def test_an_address_taken_off_a_port_and_given_back_stays_its_own(tmp_path: Path) -> None:
    """S19: the host's ack of the change frees only what the port does not have."""

    async def story(mesh: Mesh) -> None:
        net, update = await network(mesh), mesh.clouds["c1"].ports.update
        made = await port(mesh, net, "h1", "10.0.0.5")
        await asyncio.sleep(0.5)
        mesh.broker.mute("h1")
        for ip in ("10.0.0.6", "10.0.0.5"):
            await update(caller(), made.id, PortUpdate(fixed_ips=(FixedIp(ip_address=ip),)), None)
        mesh.heal()
        await mesh.settle()
        await mesh.check()
        with pytest.raises(Conflict):
            await port(mesh, net, "h2", "10.0.0.5")
        await port(mesh, net, "h2", "10.0.0.6")

    play(tmp_path, story)


def test_with_its_host_a_port_leaves_the_addresses_that_were_taken_off_it(tmp_path: Path) -> None:
    """S19: unbound before the host answered for the change; the tombstone's ack frees them."""

    async def story(mesh: Mesh) -> None:
        net, update = await network(mesh), mesh.clouds["c1"].ports.update
        made = await port(mesh, net, "h1", "10.0.0.5")
        await asyncio.sleep(0.5)
        mesh.broker.mute("h1")
        await update(caller(), made.id, PortUpdate(fixed_ips=(FixedIp(ip_address="10.0.0.6"),)), None)
        await update(caller(), made.id, PortUpdate(host_id=""), None)
        mesh.heal()
        await mesh.settle()
        await mesh.check()
        await port(mesh, net, "h2", "10.0.0.5")

    play(tmp_path, story)
