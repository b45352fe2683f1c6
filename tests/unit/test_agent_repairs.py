"""What somebody else removes from the kernel comes back, is told, and is not fought for without end."""

import asyncio

from tests.support.clock import run
from tests.support.world import NET, World


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
