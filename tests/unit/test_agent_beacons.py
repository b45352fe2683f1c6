"""Control was away and is back: its first beacon is the sign to say again what nobody answered."""

import asyncio

from planes.goalstate.messages import Port
from tests.support.clock import run, until
from tests.support.world import World


async def unheard() -> tuple[World, Port]:
    """A world in which a port's ack has found nobody for so long that it is tried twice a minute at most."""
    world = World()
    await world.start("h1")
    world.network()
    await world.settle()
    world.control.refuse = lambda subject: ".ack." in subject
    port = world.port(2, "h1")
    await asyncio.sleep(100)
    acks = world.agents["h1"].state.acks
    await until(lambda: not acks._under_way, 20)
    assert world.control.status(port.id) is None
    world.control.refuse = lambda _: False
    return world, port


def test_acks_that_found_nobody_go_again_at_the_next_beacon() -> None:
    async def main() -> None:
        world, port = await unheard()
        world.control.beacon()
        await until(lambda: world.control.status(port.id) is not None, 1)
        await world.stop()

    run(main())


def test_acks_that_found_nobody_go_again_when_another_is_confirmed() -> None:
    async def main() -> None:
        world, port = await unheard()
        other = world.port(3, "h1")
        await until(lambda: world.control.status(other.id) is not None, 1)
        await until(lambda: world.control.status(port.id) is not None, 1)
        await world.stop()

    run(main())


def test_many_acks_that_find_nobody_at_once_are_one_try() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        await world.settle()
        away, asked = True, list[float]()

        def refuse(subject: str) -> bool:
            if ".ack." in subject:
                asked.append(asyncio.get_running_loop().time())
            return away and ".ack." in subject

        world.control.refuse = refuse
        for n in range(2, 10):
            world.port(n, "h1")
            await asyncio.sleep(0.01)  # each by itself
        await until(lambda: len(asked) >= 8, 5)
        begun = asked[0]
        await until(lambda: asked[-1] > begun + 1 and len(asked) > 8, 8)  # and not half a minute later
        await world.stop()

    run(main())


def test_who_could_not_register_asks_again_at_the_next_beacon() -> None:
    async def main() -> None:
        world = World()
        await world.control.start()
        away = True
        world.control.refuse = lambda subject: away
        agent = await world.start_agent("h1")
        await asyncio.sleep(60)
        await until(lambda: agent.state.membership._unheard, 20)  # nothing is on its way
        away = False
        world.control.beacon()
        await until(lambda: agent.state.context.epoch == 1, 1)
        await world.stop()

    run(main())
