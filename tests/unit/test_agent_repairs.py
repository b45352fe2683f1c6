"""What somebody else removes from the kernel comes back, is told, and is not fought for without end."""

import asyncio

from planes.data.driver import RemoteSpec
from planes.data.memory.kernel import Kernel
from planes.model.addresses import vtep_mac
from tests.support.clock import run, until
from tests.support.world import NET, World, ip, two_hosts


def test_damage_is_repaired_and_told() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1", "h2")
        world.network()
        port = world.port(2, "h1")
        world.port(3, "h2")
        await world.settle()
        whole, kernel = world.dump("h1"), world.fabric.kernel(bytes((192, 0, 2, 1)))
        state = world.agents["h1"].state
        for key in (("port", NET, port.id), ("network", NET, b"")):
            kernel.damage(key)
            assert world.dump("h1") != whole
            await asyncio.sleep(5)
            assert world.dump("h1") == whole
        assert state.context.counters["repaired"] == state.context.counters["damaged"] > 1
        assert "repaired" in "".join(state._reasons())
        await asyncio.sleep(61)
        assert not list(state._reasons())
        state.validate()
        await world.stop()

    run(main())


def test_what_is_damaged_again_and_again_has_to_wait() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        port = world.port(2, "h1")
        await world.settle()
        key = ("port", NET, port.id)
        kernel, driver = world.fabric.kernel(bytes((192, 0, 2, 1))), world.drivers["h1"]
        before = len(driver.history)
        for _ in range(600):
            if port.id.hex() in world.dump("h1"):
                kernel.damage(key)
            await asyncio.sleep(1)
        assert 5 < len(driver.history) - before < 40
        assert "again and again" in "".join(world.agents["h1"].state._reasons())
        world.agents["h1"].state.validate()
        await asyncio.sleep(120)
        assert port.id.hex() in world.dump("h1")
        await world.stop()

    run(main())


def test_nothing_is_looked_at_while_the_driver_works() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        driver = world.drivers["h1"]
        driver.latency = 3.0  # longer than a look is apart
        for number in range(2, 6):
            world.port(number, "h1")
            await asyncio.sleep(2.5)
        await world.settle()
        assert not world.agents["h1"].bugs
        await world.stop()

    run(main())


def kernel_of(world: World, n: int) -> Kernel:
    return world.fabric.kernel(bytes((192, 0, 2, n)))


def test_what_nobody_put_is_removed_and_told_and_what_was_changed_is_put_again() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        there = world.port(9, "h2")
        await world.settle()
        whole, held = world.dump("h1"), kernel_of(world, 1).networks[NET]
        state = world.agents["h1"].state
        for spec in (RemoteSpec(NET, ip(200), vtep_mac(2)), RemoteSpec(NET, there.ips[0], vtep_mac(7))):
            held.put(spec)
            assert world.dump("h1") != whole
            await asyncio.sleep(5)
            assert world.dump("h1") == whole
            state.validate()
        counters = state.context.counters
        assert (counters["surplus"], counters["damaged"], counters["repaired"]) == (1, 2, 2)
        assert counters["damaged_remote"] == 2
        assert "repaired" in "".join(state._reasons())
        await world.stop()

    run(main())


def test_what_a_new_life_did_not_see_of_its_kernel_goes_when_it_is_found_and_control_has_told() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        stays, goes = world.port(9, "h2"), world.port(10, "h2")
        await world.settle()
        await world.agents["h1"].close()
        world.delete(goes)
        kernel = kernel_of(world, 1)
        kernel.unlisted = {("remote", NET, stays.ips[0]), ("remote", NET, goes.ips[0])}
        before = kernel.dump()
        refused = True
        world.control.refuse = lambda subject: refused and subject.endswith((".host", ".network", ".group"))
        agent = await world.start_agent("h1")
        await asyncio.sleep(20)
        assert kernel.dump() == before, "nothing is removed before control has told"
        assert not kernel.unlisted
        refused = False
        await until(lambda: agent.state.in_sync(), 30)
        await asyncio.sleep(1)
        assert goes.ips[0] not in kernel.networks[NET].remotes
        assert stays.ips[0] in kernel.networks[NET].remotes
        assert agent.state.context.counters["surplus"] == 2
        assert "too much" not in "".join(agent.state._reasons())
        await world.stop()

    run(main())


def test_what_was_missed_and_is_found_in_sync_goes_too() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        goes = world.port(10, "h2")
        await world.settle()
        await world.agents["h1"].close()
        world.delete(goes)
        kernel_of(world, 1).unlisted = {("remote", NET, goes.ips[0])}
        agent = await world.start_agent("h1")
        await until(lambda: agent.state.in_sync(), 30)
        assert goes.ips[0] in kernel_of(world, 1).networks[NET].remotes
        await asyncio.sleep(5)
        assert goes.ips[0] not in kernel_of(world, 1).networks[NET].remotes
        assert agent.state.context.counters["surplus"] == 1
        await world.stop()

    run(main())


def test_what_somebody_puts_again_and_again_is_not_fought_for_without_end() -> None:
    async def main() -> None:
        world = World()
        await two_hosts(world)
        await world.settle()
        strange = RemoteSpec(NET, ip(200), vtep_mac(2))
        held, driver = kernel_of(world, 1).networks[NET], world.drivers["h1"]
        before = len(driver.history)
        for _ in range(600):
            held.put(strange)
            await asyncio.sleep(1)
        assert 5 < len(driver.history) - before < 40
        world.agents["h1"].state.validate()
        await asyncio.sleep(120)
        assert strange.ip not in held.remotes
        assert world.agents["h1"].state.in_sync()
        await world.stop()

    run(main())
