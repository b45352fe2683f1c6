"""The agent over a real nats-server: what it costs, and that it survives the server."""

import random
import statistics
import time
from pathlib import Path

import pytest

from agent.core.context import Options
from agent.core.state import AgentState
from agent.runtime import Agent
from agent.state_file import StateFile
from planes.bus.nats.bus import NatsBus
from planes.data.memory.driver import MemoryDriver
from planes.goalstate.messages import Applied, Neighbour, Port
from planes.model.errors import Conflict
from tests.support.clock import until
from tests.support.control import FakeControl
from tests.support.nats import NatsServer
from tests.support.world import NET, WEB, World, id16, ip, mac

pytestmark = pytest.mark.server


def now_us() -> int:
    return time.time_ns() // 1000


class RealWorld(World):
    """One agent and one control, each with a connection of its own to a real server."""

    def __init__(self, server: NatsServer, directory: Path) -> None:
        super().__init__()
        self.server = server
        self.keeper = StateFile(str(directory), "h1")
        self.control = FakeControl(NatsBus(server.url, "control"), now_us)

    async def start_agent(self, host: str = "h1", machine: str = "m", name: str = "") -> Agent:
        vtep = bytes((192, 0, 2, 1))
        state = AgentState(Options(host=host, machine=machine, vtep=vtep), random.random, self.keeper.load())
        self.drivers[host] = MemoryDriver(self.fabric)
        bus = NatsBus(self.server.url, host)
        agent = self.agents[host] = Agent(state, bus, self.drivers[host], vtep, now_us, self.keeper)
        await agent.start()
        return agent


async def test_ports_are_acked_the_server_dies_and_is_back_and_nothing_is_lost(tmp_path: Path) -> None:
    server = NatsServer()
    await server.start()
    world = RealWorld(server, tmp_path)
    try:
        await world.start("h1")
        c = world.control
        world.network()
        first = world.port(2, "h1")
        await until(lambda: c.status(first.id) is not None, 5)
        server.kill()
        await until(lambda: not c.bus.connected, 5)
        second = world.port(3, "h1")  # published into the void
        await server.start()
        await until(lambda: c.status(second.id) is not None, 10)
        assert world.dump("h1").count(" port ") == 2
        await until(lambda: world.keeper.path.exists(), 5)
    finally:
        await world.stop()
        server.kill()
    saved = world.keeper.load()
    assert saved is not None
    assert saved.epoch == 1


async def test_from_message_to_ack_takes_about_a_millisecond(tmp_path: Path) -> None:
    server = NatsServer()
    await server.start()
    world = RealWorld(server, tmp_path)
    try:
        await world.start("h1")
        c = world.control
        world.network()
        world.port(2, "h1")
        await world.settle()
        took: list[float] = []
        said: list[Applied] = []
        for n in range(100):
            port = Port(id16(5000 + n), c.rev(), NET, mac(n), (ip(n, 1),), 1, (WEB,))
            near = Neighbour(NET, ip(n, 1), c.rev(), "h1", 1, mac(n))
            began = time.perf_counter()
            c.acked.clear()
            c.publish(c.put(port, "h1"), c.put(near))
            await until(lambda: bool(c.acked), 5, step=0)
            said += [item for _, item in c.acked]
            took.append(time.perf_counter() - began)
        median = statistics.median(took)
        inside = statistics.median(item.done - item.received for item in said)
        print(f"message to stored ack: {median * 1e3:.2f} ms; received to programmed: {inside} µs")
        assert min(took) < 0.01
    finally:
        await world.stop()
        server.kill()


def test_a_state_file_that_is_broken_or_of_another_host_is_as_good_as_none(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path), "h1")
    assert file.load() is None
    file.path.write_bytes(b"\x93garbage")
    assert file.load() is None


def test_a_second_agent_of_a_host_on_one_machine_is_refused(tmp_path: Path) -> None:
    first, second = StateFile(str(tmp_path), "h1"), StateFile(str(tmp_path), "h1")
    first.lock()
    with pytest.raises(Conflict, match="Another agent of host h1"):
        second.lock()
    StateFile(str(tmp_path), "h2").lock()
