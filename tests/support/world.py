"""A small cloud in memory: one broker, one scripted control, agents with fake kernels, and objects to give them."""

import asyncio
import random

from agent.core.context import Options
from agent.core.instructions import Saved
from agent.core.state import AgentState
from agent.runtime import Agent
from planes.bus.memory.bus import Faults, MemoryBroker, MemoryBus
from planes.data.memory.driver import MemoryDriver
from planes.data.memory.fabric import Fabric
from planes.goalstate.messages import (
    Gone,
    Group,
    Identity,
    Neighbour,
    Network,
    ObjectKind,
    Port,
    Rule,
    Subnet,
)
from tests.support.clock import now_us, until
from tests.support.control import FakeControl


def id16(n: int) -> bytes:
    """An id."""
    return n.to_bytes(16, "big")


NET, OTHER_NET = id16(0xA), id16(0xB)
WEB, DB = id16(0x10), id16(0x11)
EGRESS_ALL = Rule(True, 4)


def ip(n: int, third: int = 0) -> bytes:
    """10.0.<third>.<n>."""
    return bytes((10, 0, third, n))


def mac(n: int) -> bytes:
    return bytes((0xFA, 0x16, 0x3E, 0, 0, n))


class Keeper:
    """A state file in memory."""

    def __init__(self) -> None:
        self.saved: Saved | None = None

    def save(self, saved: Saved) -> None:
        self.saved = saved


class World:
    """Everything, on one broker. `h1` has tunnel end 192.0.2.1, and so on."""

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.broker = MemoryBroker(seed, faults)
        self.control = FakeControl(MemoryBus(self.broker, "control"), now_us)
        self.fabric = Fabric()
        self.agents: dict[str, Agent] = {}
        self.drivers: dict[str, MemoryDriver] = {}
        self.keepers: dict[str, Keeper] = {}
        self.options: dict[str, object] = {}

    async def start(self, *hosts: str) -> None:
        await self.control.start()
        for host in hosts:
            await self.start_agent(host)
        await until(lambda: all(self.agents[host].state.in_sync() for host in hosts), 30)

    async def start_agent(self, host: str, machine: str = "", name: str = "") -> Agent:
        """`name`: what the test calls it, when two agents go by one host name."""
        vtep = bytes((192, 0, 2, int(host[1:])))
        name = name or host
        options = Options(host=host, machine=machine or f"machine-{name}", vtep=vtep, **self.options)  # type: ignore[arg-type]
        keeper = self.keepers.setdefault(name, Keeper())
        state = AgentState(options, random.Random(host).random, keeper.saved)
        driver = self.drivers[name] = MemoryDriver(self.fabric)
        agent = self.agents[name] = Agent(
            state, MemoryBus(self.broker, name), driver, vtep, now_us, keeper if name == host else None
        )
        await agent.start()
        return agent

    async def stop(self) -> None:
        for agent in self.agents.values():
            agent.state.validate()
            await agent.close()
            assert not agent.bugs
        await self.control.bus.close()

    async def settle(self, within: float = 60.0) -> None:
        """Until what was published has arrived, every agent is in sync and every ack is stored."""
        await asyncio.sleep(0.2)
        await until(lambda: all(a.state.in_sync() and not a.state.acks.waiting() for a in self.agents.values()), within)

    def dump(self, host: str) -> str:
        return self.drivers[host].dump()

    # -- objects ----------------------------------------------------------------------------------------------------

    def network(self, network: bytes = NET, vni: int = 100, rules: tuple[Rule, ...] = (EGRESS_ALL,)) -> None:
        """A network 10.0.0.0/16 with the groups WEB (identity 1) and DB (identity 2), stored and published."""
        c = self.control
        c.say(Network(network, c.rev(), vni, 1450))
        c.say(Subnet(network, id16(vni), c.rev(), bytes((10, 0, 0, 0)), 16, ip(1)))
        c.say(Identity(network, 1, c.rev(), (WEB,)))
        c.say(Identity(network, 2, c.rev(), (DB,)))
        for group in (WEB, DB):
            if (7, group, group) not in c.rows:
                c.say(Group(group, c.rev(), rules))

    def port(self, n: int, host: str, group: bytes = WEB, network: bytes = NET, third: int = 0) -> Port:
        """Port `n` with address 10.0.<third>.<n>, stored and published as control does it."""
        c = self.control
        identity = 1 if group == WEB else 2
        item = Port(id16(1000 * third + n), c.rev(), network, mac(n), (ip(n, third),), identity, (group,))
        near = Neighbour(network, ip(n, third), c.rev(), host, identity, mac(n))
        stored = [c.put(item, host), c.put(near)]
        c.publish(*stored)
        return item

    def delete(self, port: Port) -> None:
        """Delete a port: its tombstone to the host, its addresses to the network."""
        c = self.control
        c.say(Gone(ObjectKind.PORT, b"", port.id, c.rev()), c.port_host[port.id])
        for address in port.ips:
            c.say(Gone(ObjectKind.NEIGHBOUR, port.network, address, c.rev()))


async def two_hosts(world: World) -> None:
    """A network with a port on each of two hosts."""
    await world.start("h1", "h2")
    world.network()
    world.port(2, "h1")
    world.port(3, "h2")
    await world.settle()
    await asyncio.sleep(10)
    await world.settle()
