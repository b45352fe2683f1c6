"""What the agent does when something was lost: joins, gaps, digests, beacons, epochs, restarts."""

import asyncio

import msgspec
import pytest

from agent.core.objects import Objects, Verdict
from agent.core.tops import Tops
from planes.bus.protocol import Event
from planes.goalstate import codec
from planes.goalstate.codec import Message
from planes.goalstate.messages import (
    VERSION,
    Envelope,
    Gone,
    Group,
    MessageKind,
    Neighbour,
    Network,
    ObjectKind,
    Page,
    Pull,
    Span,
    Subnet,
    Synced,
    What,
)
from planes.model.addresses import bucket
from tests.support.clock import run, until
from tests.support.world import EGRESS_ALL, NET, WEB, World, id16, ip, mac, two_hosts


def counters(world: World, host: str) -> dict[str, int]:
    return world.agents[host].state.context.counters


def test_a_lost_neighbour_message_is_noticed_by_the_next_one_without_waiting_for_a_sync() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        c = world.control
        c.put(Neighbour(NET, ip(50), c.rev(), "h2", 1))  # never published
        syncs = len(c.syncs)
        c.say(Neighbour(NET, ip(51), c.rev(), "h2", 1))
        await until(lambda: "10.0.0.50 via" in world.dump("h1"), 1)
        assert len(c.syncs) == syncs
        assert c.pulls[-1].what == What.BUCKET
        assert c.pulls[-1].since > 0
        await world.stop()

    run(main())


def test_a_message_out_of_order_is_waited_for_and_costs_no_pull() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        c = world.control
        first = c.put(Neighbour(NET, ip(50), c.rev(), "h2", 1))
        second = c.put(Neighbour(NET, ip(51), c.rev(), "h2", 1))
        pulls = len(c.pulls)
        c.publish(second)
        await asyncio.sleep(0.02)
        c.publish(first)
        await asyncio.sleep(1)
        assert len(c.pulls) == pulls
        assert "10.0.0.50 via" in world.dump("h1")
        await world.stop()

    run(main())


def test_a_loss_that_nothing_follows_is_found_by_the_sync() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        c = world.control
        c.put(Neighbour(NET, ip(50), c.rev(), "h2", 1))
        c.put(Group(WEB, c.rev(), (EGRESS_ALL, EGRESS_ALL)))
        lost = c.put(Gone(ObjectKind.PORT, b"", id16(2), c.rev()))[0]
        await until(lambda: c.status(id16(2)) is not None and c.status(id16(2)).rev == lost.rev, 900)  # type: ignore[union-attr]
        await until(lambda: "10.0.0.50" not in world.dump("h1"), 10)
        assert world.dump("h1") == ""
        await until(lambda: "10.0.0.50 via" not in world.dump("h2"), 10)
        await world.stop()

    run(main())


def test_a_message_lost_while_interest_spreads_is_found_by_the_second_look() -> None:
    async def main() -> None:
        world = World()
        world.broker.faults.interest = 0.5  # flush returns, messages do not come yet
        await world.start("h1")
        await asyncio.sleep(2)
        world.network()
        world.port(2, "h1")
        await asyncio.sleep(0.1)  # the snapshot has been pulled
        c = world.control
        c.put(Neighbour(NET, ip(51), c.rev(), "h1"))
        c.publish(c.put(Subnet(NET, id16(77), c.rev(), bytes((10, 1, 0, 0)), 24)))
        await asyncio.sleep(0.2)
        assert "10.1.0.0/24" not in world.dump("h1")
        await until(lambda: "10.1.0.0/24" in world.dump("h1"), 4)
        await world.stop()

    run(main())


def test_what_came_between_the_first_and_the_last_page_is_not_swept() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        c, state = world.control, world.agents["h1"].state
        for n in range(100, 120):
            c.say(Neighbour(NET, ip(n), c.rev(), "h2", 1))
        await world.settle()
        newer = Neighbour(NET, ip(60), c.rev(), "h2", 1)
        sent = False

        def between(subject: str, message: Message) -> bytes | None:
            nonlocal sent
            if isinstance(message, Page) and message.token and not sent:
                sent = True
                c.publish((newer, None))  # the snapshot was read before this row existed
            return None

        c.answer = between
        c.rows.pop((5, NET, ip(110)))
        state.scopes.pull_whole((What.NETWORK, NET))
        state.context.counters["swept"] = 0
        world.agents["h1"]._on_bus(Event("slow"))  # any event carries the pull out
        await world.settle()
        await asyncio.sleep(5)
        assert sent
        assert "10.0.0.60 via" in world.dump("h1")
        assert "10.0.0.110 via" not in world.dump("h1")
        await world.stop()

    run(main())


def test_an_unknown_version_is_counted_and_starts_no_resync_loop() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        c = world.control
        await asyncio.sleep(30)

        def newer(subject: str, message: Message) -> bytes | None:
            if not isinstance(message, Page):
                return None
            body = msgspec.msgpack.encode(message)
            return msgspec.msgpack.encode(Envelope(VERSION + 1, MessageKind.REPLY, "c1", 0, 0, body))

        c.answer = newer
        before = world.dump("h1")
        c.put(Neighbour(NET, ip(50), c.rev(), "h2", 1))
        c.rows[7, WEB, WEB] = Group(WEB, c.rev(), ())
        data = msgspec.msgpack.encode(Envelope(VERSION + 1, MessageKind.GOAL, "c1", 0, 0, b"\x90"))
        for subject in (c.subjects.host("h1"), c.subjects.network(NET), c.subjects.group(WEB)):
            c.bus.publish(subject, data)
        pulls, syncs = len(c.pulls), len(c.syncs)
        await asyncio.sleep(3600)
        assert counters(world, "h1")["unknown_version"] >= 3
        assert len(c.pulls) - pulls <= 2 * 2 * 3
        assert len(c.syncs) - syncs <= 2 * 10
        assert world.dump("h1") == before
        await world.stop()

    run(main())


def test_a_control_that_lies_about_a_digest_is_humoured_once_an_hour() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        c = world.control
        c.answer = lambda subject, message: (
            codec.encode(Synced((Pull(What.GROUP, WEB),)), "c1") if isinstance(message, Synced) else None
        )
        await asyncio.sleep(100)
        pulls = len(c.pulls)
        await asyncio.sleep(4 * 3600)
        assert len(c.pulls) - pulls <= 2 * (RUNNING + 5)
        assert any("differs from the store" in reason for reason in c.beats[-1].reasons)
        await world.stop()

    run(main())


RUNNING = 3


def test_after_a_reconnect_the_agent_catches_up_with_what_it_missed() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        before = world.dump("h1")
        world.broker.cut("h1")
        port = world.port(9, "h1")
        await asyncio.sleep(60)
        assert world.dump("h1") == before
        world.broker.heal("h1")
        await until(lambda: world.control.status(port.id) is not None, 5)
        await world.stop()

    run(main())


def test_a_control_instance_that_was_unheard_and_comes_back_means_a_sync() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        beacons = asyncio.create_task(world.control.beacons())
        await asyncio.sleep(60)
        syncs = len(world.control.syncs)
        world.broker.mute("h1")  # nobody notices
        port = world.port(9, "h1")
        await asyncio.sleep(100)
        assert world.control.status(port.id) is None
        world.broker.heal("h1")
        await until(lambda: world.control.status(port.id) is not None, 45)
        assert len(world.control.syncs) > syncs
        beacons.cancel()
        await world.stop()

    run(main())


def test_a_higher_epoch_stops_the_agent_and_exactly_one_of_twins_programs() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        twin = await world.start_agent("h1", machine="machine-h1", name="twin1")  # a clone of the machine
        await until(lambda: twin.state.in_sync(), 10)
        await until(lambda: world.agents["h1"].state.membership.superseded, 4)
        applies = len(world.drivers["h1"].history)
        port = world.port(9, "h1")
        await until(lambda: world.control.status(port.id) is not None, 2)
        assert len(world.drivers["h1"].history) == applies
        assert world.agents["h1"].state.context.epoch == 0
        await world.stop()

    run(main())


def test_a_twin_on_another_machine_is_refused_and_changes_nothing() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        twin = await world.start_agent("h1", machine="another", name="twin1")
        await asyncio.sleep(30)
        assert not twin.state.context.epoch
        assert world.drivers["twin1"].history == []
        assert any("refused" in reason for reason in twin.state.membership.reasons())
        await world.stop()

    run(main())


def test_a_host_that_was_fenced_registers_anew() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        world.control.hosts["h1"].epoch += 1
        await until(lambda: world.agents["h1"].state.membership.superseded, 5)
        await until(lambda: world.agents["h1"].state.in_sync(), 15)
        await world.stop()

    run(main())


def test_what_was_said_to_a_former_life_is_not_heard_in_the_next() -> None:
    """It may be superseded by what only the former life knew: a tombstone that it has answered for."""

    async def main() -> None:
        world = World()
        await two_hosts(world)
        c = world.control
        port = world.port(9, "h1")
        await world.settle()
        late = c.message([(port, None)], c.hosts["h1"].epoch)
        world.delete(port)
        await world.settle()
        del c.rows[port.key], c.port_host[port.id]
        await world.agents["h1"].close()
        agent = await world.start_agent("h1")
        await until(lambda: agent.state.in_sync(), 30)
        c.bus.publish(c.subjects.host("h1"), late)
        await asyncio.sleep(1)
        assert port.id.hex() not in world.dump("h1")
        await world.stop()

    run(main())


def test_a_fenced_host_registers_anew_also_when_its_turn_came_while_it_was_offline() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        world.control.hosts["h1"].epoch += 1
        await until(lambda: world.agents["h1"].state.membership.superseded, 5)
        world.broker.cut("h1")
        await asyncio.sleep(30)
        world.broker.heal("h1")
        await until(lambda: world.agents["h1"].state.in_sync(), 15)
        await world.stop()

    run(main())


def test_a_neighbour_whose_peer_is_unknown_waits_and_asks_for_it() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        world.port(2, "h1")
        await world.settle()
        await asyncio.sleep(5)
        await world.start_agent("h2")
        await asyncio.sleep(1)
        c = world.control
        c.say(Neighbour(NET, ip(40), c.rev(), "h2", 1, mac(40)))
        await until(lambda: "10.0.0.40 via" in world.dump("h1"), 1)
        await world.stop()

    run(main())


def test_tombstones_are_remembered_then_forgotten() -> None:
    objects = Objects(10, 600.0)
    network = Network(NET, 5, 1, 1450)
    assert objects.offer(network, 1, 0.0) is Verdict.NEWER
    assert objects.offer(Gone(1, NET, NET, 7), 1, 0.0) is Verdict.NEWER
    objects.expire(599.0)
    assert objects.offer(msgspec.structs.replace(network, rev=6), 1, 599.0) is Verdict.OLDER
    objects.expire(600.0)
    assert len(objects) == 0
    assert objects.expires() is None


def test_more_objects_than_the_bound_are_refused() -> None:
    objects = Objects(1, 600.0)
    assert objects.offer(Network(NET, 5, 1, 1450), 1, 0.0) is Verdict.NEWER
    assert objects.offer(Network(id16(1), 5, 1, 1450), 1, 0.0) is Verdict.FULL


def test_what_was_swept_comes_back_by_a_page_only() -> None:
    objects = Objects(10, 600.0)
    network = Network(NET, 5, 1, 1450)
    objects.offer(network, 1, 0.0)
    assert objects.sweep((What.NETWORK, NET), 2, 0.0, {}) == [network]
    assert objects.offer(network, 2, 0.0) is Verdict.SAME
    assert objects.offer(network, 2, 0.0, named=3) is Verdict.NEWER


def test_what_was_heard_while_a_pull_ran_is_swept_when_the_pull_read_beyond_it_and_did_not_name_it() -> None:
    """Its tombstone was lost, and the page brings the counter beyond both: no gap would ever show."""
    objects = Objects(10, 600.0)
    old, new = Neighbour(NET, ip(5), 10, "h2", 1, mac(5)), Neighbour(NET, ip(6), 30, "h2", 1, mac(6))
    named = Neighbour(NET, ip(7), 9, "h2", 1, mac(7))
    for item in (old, new, named):
        objects.offer(item, 2, 0.0)
    objects.offer(named, 2, 0.0, named=2)
    assert objects.sweep((What.NETWORK, NET), 2, 0.0, {bucket(ip(5)): 20}) == [old]


def test_a_message_about_what_a_snapshot_showed_to_be_gone_is_too_late() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        c = world.control
        late = Neighbour(NET, ip(77), c.rev(), "h2", 1, mac(77))
        held = world.dump("h1")
        world.port(9, "h2")
        world.agents["h1"].state.scopes.pull_whole((What.NETWORK, NET))
        await world.settle()
        assert world.dump("h1") != held
        held = world.dump("h1")
        c.bus.publish(c.subjects.network(NET), c.message([(late, None)]))
        await asyncio.sleep(1)
        assert world.dump("h1") == held
        await world.stop()

    run(main())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_stretches_in_any_order_close_the_gap(order: tuple[int, ...]) -> None:
    spans = [Span(3, 0, 10), Span(3, 10, 12), Span(3, 12, 20)]
    tops = Tops()
    for n in order:
        tops.take([spans[n]])
    assert tops.known == {3: 20}
    assert tops.gaps() == []


def test_a_missing_stretch_is_a_gap() -> None:
    tops = Tops()
    tops.take([Span(3, 0, 10), Span(3, 12, 20)])
    assert (tops.known, tops.gaps()) == ({3: 10}, [3])
