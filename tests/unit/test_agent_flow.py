"""The agent from message to kernel to ack, over the bus in memory, on virtual time."""

import asyncio

import pytest

from planes.goalstate.messages import Gone, Group, Identity, ObjectKind, Port, Rule, What
from tests.support.clock import run, until
from tests.support.world import DB, EGRESS_ALL, NET, WEB, World, id16, ip, mac

INGRESS_WEB = Rule(False, 4, 6, 80, 80, remote_group=WEB)


def test_a_port_is_programmed_and_acked_with_times() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        began = world.control._now()
        port = world.port(2, "h1")
        await until(lambda: world.control.status(port.id) is not None)
        said = world.control.status(port.id)
        assert said is not None
        assert (said.rev, said.error, said.kind) == (port.rev, "", ObjectKind.PORT)
        assert began <= said.sent <= said.received <= said.started <= said.done
        assert "identity 1" in world.dump("h1")
        await world.stop()

    run(main())


def test_packets_go_where_the_groups_say_and_nowhere_else() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1", "h2")
        c = world.control
        c.say(Group(DB, c.rev(), (INGRESS_WEB,)))
        c.say(Group(WEB, c.rev(), (EGRESS_ALL,)))
        world.network()
        web, db = world.port(2, "h1", WEB), world.port(3, "h2", DB)
        await world.settle()
        arrives = world.fabric.arrives
        assert arrives(NET, web.id, ip(2), ip(3), dport=80) == (db.id, "")
        assert arrives(NET, db.id, ip(3), ip(2), dport=40_000, sport=80) == (web.id, "")  # the reply
        assert arrives(NET, web.id, ip(2), ip(3), dport=22) == (None, "no rule (ingress)")
        assert arrives(NET, web.id, ip(9), ip(3), dport=80) == (None, "spoofed source")
        assert arrives(NET, db.id, ip(3), ip(2), dport=80) == (None, "no rule (egress)")
        await asyncio.sleep(6)
        told = {name: n for beat in world.control.beats[-4:] for name, n in beat.counters.items() if "dropped" in name}
        assert told == {"dropped_spoofed_ip": 1, "dropped_denied_egress": 1, "dropped_denied_ingress": 1}
        await world.stop()

    run(main())


def test_nothing_is_acked_before_its_groups_are_known() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        c = world.control
        unknown = id16(0x99)
        c.say(Identity(NET, 9, c.rev(), (unknown,)))
        port = Port(id16(5), c.rev(), NET, mac(5), (ip(5),), 9, (unknown,))
        c.say(port, "h1")
        await until(lambda: world.agents["h1"].state.context.counters["denied"] > 0)
        assert c.status(port.id) is None
        assert " policy 9" not in world.dump("h1")  # without it the port forwards nothing
        c.say(Group(unknown, c.rev(), (EGRESS_ALL,)))
        await until(lambda: c.status(port.id) is not None, 120)
        assert " policy 9" in world.dump("h1")
        await world.stop()

    run(main())


def test_a_failure_is_acked_with_its_reason_then_mended_and_acked_again() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        world.drivers["h1"].fail("port", "the kernel says no", times=2)
        port = world.port(2, "h1")
        await until(lambda: len(world.control.acked) > 0)
        assert [(item.rev, item.error) for _, item in world.control.acked] == [(port.rev, "the kernel says no")]
        await until(lambda: len(world.control.acked) > 1)
        assert [item.error for _, item in world.control.acked] == ["the kernel says no", ""]
        await world.stop()

    run(main())


def test_a_policy_that_fails_keeps_its_port_from_being_acked_as_applied() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        world.drivers["h1"].fail("policy", "no room", times=1)
        world.port(2, "h1")
        await until(lambda: len(world.control.acked) > 1)
        assert [item.error for _, item in world.control.acked] == ["no room", ""]
        await world.stop()

    run(main())


def test_deleting_the_last_port_leaves_an_empty_kernel_and_no_subscriptions() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        port = world.port(2, "h1")
        await world.settle()
        world.delete(port)
        await until(lambda: (said := world.control.status(port.id)) is not None and said.rev > port.rev)
        await world.settle()
        assert world.dump("h1") == ""
        assert list(world.agents["h1"].state.scopes.interests) == [(What.HOST, b"")]
        subjects = [each.pattern for each in world.broker.subscriptions.values() if each.bus.name == "h1"]
        assert sorted(subjects) == ["alcor.beacon.*", "alcor.goal.host.h1"]
        await world.stop()

    run(main())


def test_a_tombstone_of_a_port_that_never_was_is_acked() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        c = world.control
        c.say(Gone(ObjectKind.PORT, b"", id16(7), c.rev()), "h1")
        await until(lambda: c.status(id16(7)) is not None)
        await world.stop()

    run(main())


def test_a_lost_ack_is_repeated_until_it_is_stored_and_newer_ones_do_not_wait() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        deaf = True
        world.control.refuse = lambda subject: deaf and ".ack." in subject
        first = world.port(2, "h1")
        await until(lambda: world.agents["h1"].state.context.counters["acks_repeated"] >= 2)
        deaf = False
        second = world.port(3, "h1")
        await until(lambda: world.control.status(second.id) is not None, 2)
        await until(lambda: world.control.status(first.id) is not None)
        await world.settle()
        assert sorted(item.id for _, item in world.control.acked) == sorted([first.id, second.id])
        await world.stop()

    run(main())


def test_control_that_asks_again_is_answered_again() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        port = world.port(2, "h1")
        await world.settle()
        world.control.acked.clear()
        world.control.publish((port, None))
        await until(lambda: world.control.status(port.id) is not None)
        puts = [key for keys, _ in world.drivers["h1"].history for key in keys if key[0] == "port"]
        assert len(puts) == 1
        await world.stop()

    run(main())


def test_a_stalled_kernel_neither_stops_reading_nor_lets_anything_pile_up() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        port = world.port(2, "h1")
        await world.settle()
        driver, state, c = world.drivers["h1"], world.agents["h1"].state, world.control
        driver.stall()
        beats = len(c.beats)
        for n in range(500):
            c.say(Port(port.id, c.rev(), NET, mac(n % 200), port.ips, 1, (WEB,)), "h1")
        await until(lambda: len(c.beats) >= beats + 10, 40)  # 30 s
        assert state.plan.waiting() < 20
        calls = len(driver.history)
        driver.resume()
        await world.settle()
        assert len(driver.history) - calls <= 3
        assert mac(499 % 200).hex(":") in world.dump("h1")
        await world.stop()

    run(main())


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x96\x01\x01\xa1x\x00\x00\xc4\x00", bytes(1000)])
def test_garbage_on_any_subject_is_counted_and_nothing_is_lost(data: bytes) -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        world.port(2, "h1")
        await world.settle()
        subjects = world.control.subjects
        targets = [subjects.host("h1"), subjects.network(NET), subjects.group(WEB), subjects.beacon("c1")]
        before = world.dump("h1")
        for subject in targets:
            world.control.bus.publish(subject, data)
        port = world.port(3, "h1")
        await until(lambda: world.control.status(port.id) is not None)
        counters = world.agents["h1"].state.context.counters
        assert counters["malformed"] + counters["unknown_version"] == len(targets)
        assert all(line in world.dump("h1") for line in before.splitlines())
        await world.stop()

    run(main())


def test_objects_that_make_no_sense_are_refused_with_a_reason() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        c = world.control
        bad = Port(id16(6), c.rev(), NET, b"\x01\x02", (ip(6),), 1, (WEB,))
        c.say(bad, "h1")
        await until(lambda: c.status(bad.id) is not None)
        said = c.status(bad.id)
        assert said is not None
        assert said.error == "malformed: MAC"
        c.put(Group(WEB, c.rev(), (Rule(False, 4, remote_first=b"xx"),)))
        world.port(7, "h1")
        await asyncio.sleep(1)
        c.bus.publish(c.subjects.network(NET), c.message([(Identity(NET, 70_000, c.rev(), ()), None)]))
        await asyncio.sleep(1)
        assert c.status(id16(7)) is None  # its group makes no sense, so it stays closed
        c.say(Group(WEB, c.rev(), (EGRESS_ALL,)))
        await until(lambda: c.status(id16(7)) is not None)
        await world.stop()

    run(main())


def test_an_object_of_another_scope_is_not_taken() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        world.port(2, "h1")
        await world.settle()
        c = world.control
        forged = Port(id16(8), c.rev(), NET, mac(8), (ip(8),), 1, (WEB,))
        c.bus.publish(c.subjects.network(NET), c.message([(forged, None)]))
        other = world.port(3, "h1")
        await until(lambda: c.status(other.id) is not None)
        assert id16(8).hex() not in world.dump("h1")
        assert world.agents["h1"].state.context.counters["malformed"] == 1
        await world.stop()

    run(main())


def test_a_port_keeps_working_while_its_new_revision_waits_for_a_group() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        first, second = world.port(2, "h1"), world.port(3, "h1")
        c = world.control
        c.say(Group(WEB, c.rev(), (EGRESS_ALL, Rule(False, 4))))
        await world.settle()
        unknown = id16(0x99)
        c.say(Identity(NET, 9, c.rev(), (WEB, unknown)))
        for port in (first, second):
            c.say(Port(port.id, c.rev(), NET, port.mac, port.ips, 9, (WEB, unknown)), "h1")
        await asyncio.sleep(5)
        assert world.fabric.arrives(NET, first.id, ip(2), ip(3)) == (second.id, "")
        said = c.status(first.id)
        assert said is not None
        assert said.rev == first.rev  # nothing is claimed that is not so
        c.say(Group(unknown, c.rev(), ()))
        await until(lambda: c.acked[-1][1].rev > second.rev, 120)
        await world.settle()
        dump = world.dump("h1")
        assert dump.count("identity 9") == 2
        assert " policy 1:" not in dump
        await world.stop()

    run(main())


def test_a_kernel_that_stalls_is_told_about_and_what_waits_for_it_is_bounded() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        agent, driver = world.agents["h1"], world.drivers["h1"]
        kept = world.port(2, "h1")
        await world.settle()
        driver.stall()
        c = world.control
        for round_ in range(30):  # each second, all of them change
            for n in range(3, 53):
                world.port(n, "h1", (WEB, DB)[round_ % 2])
            await asyncio.sleep(1)
        said = c.beats[-1]
        assert not said.in_sync
        assert any("the kernel has not finished in" in reason for reason in said.reasons)
        assert agent.state.plan.waiting() <= 3 * 50 + 10
        assert c.status(kept.id) is not None
        driver.resume()
        await world.settle()
        assert all((status := c.status(id16(n))) and not status.error for n in range(3, 53))
        await asyncio.sleep(5)
        assert c.beats[-1].reasons == ()
        await world.stop()

    run(main())


def test_a_port_that_is_just_coming_up_is_not_acked_as_gone() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        first = world.port(2, "h1")
        await world.settle()
        driver, c = world.drivers["h1"], world.control
        driver.stall()
        port = world.port(3, "h1")
        await asyncio.sleep(1)
        world.delete(port)
        await asyncio.sleep(5)
        assert c.status(port.id) is None
        driver.resume()
        await until(lambda: c.status(port.id) is not None)
        assert port.id.hex() not in world.dump("h1")
        assert first.id.hex() in world.dump("h1")
        await world.stop()

    run(main())
