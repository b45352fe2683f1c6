"""What an agent does with a kernel that a former life left behind."""

import asyncio

import msgspec
import pytest

from agent.core import wants
from agent.core.events import HOST
from agent.runtime import Agent
from planes.goalstate.messages import Group, Port, Subnet
from tests.support.clock import run, until
from tests.support.world import EGRESS_ALL, NET, WEB, World, id16, mac, two_hosts


async def back_without_groups(world: World) -> tuple[Agent, Port]:
    """An agent that comes back and gets no group; meanwhile a port of its own went, of which nobody knows any more."""
    await two_hosts(world)
    port = world.port(9, "h1")
    await world.settle()
    await world.agents["h1"].close()
    world.keepers.clear()
    world.delete(port)
    world.control.rows.pop(port.key)  # even its tombstone is forgotten
    world.control.refuse = lambda subject: subject.endswith(".group")
    agent = await world.start_agent("h1")
    await asyncio.sleep(20)
    return agent, port


def test_a_restart_changes_nothing_without_control_and_sweeps_only_when_in_sync() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        port = world.port(9, "h1")
        await world.settle()
        await asyncio.sleep(3)
        await world.agents["h1"].close()
        world.delete(port)
        before = world.fabric.kernel(bytes((192, 0, 2, 1))).dump()
        refused = True
        world.control.refuse = lambda subject: refused
        agent = await world.start_agent("h1")
        await asyncio.sleep(20)
        assert world.fabric.kernel(bytes((192, 0, 2, 1))).dump() == before
        assert not world.drivers["h1"].history
        refused = False
        await until(lambda: agent.state.in_sync(), 30)
        assert port.id.hex() not in world.dump("h1")
        said = world.control.status(port.id)
        assert said is not None
        assert said.rev > port.rev
        await world.stop()

    run(main())


def test_a_restart_without_a_file_keeps_what_the_kernel_has_until_the_snapshot_then_sweeps_leftovers() -> None:
    async def main() -> None:
        world = World()
        agent, port = await back_without_groups(world)
        assert port.id.hex() in world.dump("h1")  # a port still waits for its group: nothing may go
        assert id16(2).hex() in world.dump("h1")
        world.control.refuse = lambda subject: False
        await until(lambda: agent.state.in_sync(), 30)
        assert port.id.hex() not in world.dump("h1")
        assert id16(2).hex() in world.dump("h1")
        await world.stop()

    run(main())


def test_a_restart_drops_nothing_that_is_wanted_however_many_steps_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wants, "AT_ONCE", 3)

    async def main() -> None:
        world = World()
        await two_hosts(world)
        for n in range(20, 40):
            world.port(n, "h2")
        await world.settle()
        before = world.dump("h1")
        await world.agents["h1"].close()
        agent = await world.start_agent("h1")
        await until(lambda: agent.state.in_sync(), 30)
        assert world.dump("h1") == before
        assert {key[0] for keys, _ in world.drivers["h1"].history for key in keys} == {"network", "policy", "port"}
        assert [drops for _, drops in world.drivers["h1"].history if drops] == []
        await world.stop()

    run(main())


def test_a_group_that_is_heard_of_while_its_snapshot_is_missing_lets_nothing_go() -> None:
    async def main() -> None:
        world = World()
        agent, port = await back_without_groups(world)
        world.control.say(Group(WEB, world.control.rev(), (EGRESS_ALL,)))
        await asyncio.sleep(1)
        agent.state.scopes.pull_whole(HOST)  # at whose end is looked for what may go
        await asyncio.sleep(20)
        assert [drops for _, drops in world.drivers["h1"].history if drops] == []
        world.control.refuse = lambda subject: False
        await until(lambda: agent.state.in_sync(), 30)
        assert [drops for _, drops in world.drivers["h1"].history if drops] == [(("port", NET, port.id),)]
        await world.stop()

    run(main())


def test_a_rebooted_host_gets_its_kernel_back() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        before = world.dump("h1")
        await world.agents["h1"].close()
        world.fabric.reboot(bytes((192, 0, 2, 1)))
        await world.start_agent("h1")
        await world.settle()
        assert world.dump("h1") == before
        await world.stop()

    run(main())


def test_a_host_with_another_tunnel_end_costs_one_change_per_network() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        c = world.control
        calls = len(world.drivers["h1"].history)
        moved = c.peer(NET, "h2")
        c.publish((msgspec.structs.replace(moved, rev=moved.rev + 1, vtep=bytes((192, 0, 2, 99))), None))
        await until(lambda: "192.0.2.99" in world.dump("h1"), 1)
        assert [keys for keys, _ in world.drivers["h1"].history[calls:]] == [(("peer", NET, moved.mac),)]
        await world.stop()

    run(main())


def test_what_was_left_while_a_port_waited_goes_when_it_waits_no_more() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        gone = world.port(9, "h2")
        await world.settle()
        await world.agents["h1"].close()
        world.delete(gone)
        c = world.control
        waits = Port(id16(77), c.rev(), NET, mac(77), (bytes((10, 1, 0, 5)),), 1, (WEB,))
        c.publish(c.put(waits, "h1"))
        agent = await world.start_agent("h1")
        await asyncio.sleep(30)
        assert "waits for the subnet" in "".join(agent.state._reasons())
        assert "10.0.0.9 via" in world.dump("h1"), "a port still waits: nothing may go"
        c.say(Subnet(NET, id16(101), c.rev(), bytes((10, 1, 0, 0)), 16))
        await until(lambda: "10.0.0.9 via" not in world.dump("h1"), 30)
        await world.stop()

    run(main())
