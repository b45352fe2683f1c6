"""Whatever is lost, doubled or reordered: after one sync the kernel is the one that the truth describes (rules S1–S7).

A history is a list of changes at control. Its messages are delivered in any order, some not at all, some twice. The
result is compared with the kernel of a host that learns the final truth by pulling it, having seen no message.
"""

import asyncio
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planes.bus.memory.bus import Faults
from planes.bus.protocol import Event
from planes.goalstate.messages import Gone, Group, Neighbour, ObjectKind, Port, Rule, Subnet
from tests.support.clock import run, until
from tests.support.world import DB, EGRESS_ALL, NET, OTHER_NET, WEB, World, id16, ip, mac

HOSTS = ("h1", "h2")
RULES = (EGRESS_ALL, Rule(False, 4, 6, 80, 80, remote_group=WEB), Rule(False, 4, 1), Rule(False, 6))


@dataclass(frozen=True)
class Change:
    """One change at control: what, and on which of a few objects."""

    what: str
    n: int
    host: str
    network: bytes
    group: bytes


changes = st.builds(
    Change,
    st.sampled_from(["create", "create", "delete", "regroup", "rule", "subnet"]),
    st.integers(2, 4),
    st.sampled_from(HOSTS),
    st.sampled_from([NET, OTHER_NET]),
    st.sampled_from([WEB, DB]),
)


class History:
    """Applies changes to control's rows; keeps the messages instead of sending them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.messages: list[tuple[str, bytes]] = []
        self._ports: dict[tuple[bytes, int], Port] = {}
        self._lives = 0

    def _keep(self, item: object, host: str = "") -> None:
        control = self.world.control
        stored = control.put(item, host)  # type: ignore[arg-type]
        self.messages.append((control.subject(stored[0]), control.message([stored])))

    def apply(self, change: Change) -> None:
        control, place = self.world.control, (change.network, change.n)
        port = self._ports.get(place)
        if change.what == "create" and port is None:
            self._lives += 1  # a new port on an address that may have been used before
            self._put(change, id16(1000 + self._lives), change.host)
        elif change.what == "regroup" and port is not None:
            self._put(change, port.id, control.port_host[port.id])
        elif change.what == "delete" and port is not None:
            del self._ports[place]
            self._keep(Gone(ObjectKind.PORT, b"", port.id, control.rev()))
            self._keep(Gone(ObjectKind.NEIGHBOUR, change.network, ip(change.n), control.rev()))
        elif change.what == "rule":
            self._keep(Group(change.group, control.rev(), RULES[: change.n]))
        elif change.what == "subnet":
            self._keep(Subnet(change.network, id16(50 + change.n), control.rev(), bytes((10, change.n, 0, 0)), 16))

    def _put(self, change: Change, id_: bytes, host: str) -> None:
        control = self.world.control
        identity = 1 if change.group == WEB else 2
        address = ip(change.n)
        port = Port(id_, control.rev(), change.network, mac(change.n), (address,), identity, (change.group,))
        self._ports[change.network, change.n] = port
        self._keep(port, host)
        self._keep(Neighbour(change.network, address, control.rev(), host, identity, mac(change.n)))


async def ground(world: World) -> None:
    for network, vni in ((NET, 100), (OTHER_NET, 200)):
        world.network(network, vni)


async def learned(history: list[Change]) -> dict[str, str]:
    """The kernels of hosts that pull the final truth."""
    world = World()
    await world.start(*HOSTS)
    for host in HOSTS:
        await world.agents[host].close()
    world.keepers.clear()
    await ground(world)
    kept = History(world)
    for change in history:
        kept.apply(change)
    for host in HOSTS:
        await world.start_agent(host)
    await world.settle()
    found = {host: world.dump(host) for host in HOSTS}
    await world.stop()
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(changes, min_size=1, max_size=14), st.data())
def test_any_delivery_and_one_sync_end_in_the_same_kernel(history: list[Change], data: st.DataObject) -> None:
    async def main() -> tuple[dict[str, str], dict[str, str]]:
        world = World()
        await world.start(*HOSTS)
        await ground(world)
        kept = History(world)
        for change in history:
            kept.apply(change)
        fates = data.draw(st.lists(st.integers(0, 2), min_size=len(kept.messages), max_size=len(kept.messages)))
        sent = [message for message, fate in zip(kept.messages, fates, strict=True) for _ in range(fate)]
        for subject, body in data.draw(st.permutations(sent)):
            world.control.bus.publish(subject, body)
            if data.draw(st.booleans()):
                await asyncio.sleep(0.1)
            for agent in world.agents.values():
                agent.state.validate()
        await asyncio.sleep(0.5)
        for agent in world.agents.values():
            agent._on_bus(Event("slow"))  # one sync
        await asyncio.sleep(5)
        await world.settle()
        found = {host: world.dump(host) for host in HOSTS}
        for port in kept._ports.values():
            said = world.control.status(port.id)
            assert said is not None
            assert (said.rev, said.error) == (port.rev, "")
        await world.stop()
        return found, await learned(history)

    found, expected = run(main())
    assert found == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(changes, min_size=1, max_size=14), st.integers(0, 1000))
def test_a_bad_network_and_restarts_end_in_the_same_kernel(history: list[Change], seed: int) -> None:
    async def main() -> tuple[dict[str, str], dict[str, str]]:
        world = World(seed, Faults(drop=0.2, duplicate=0.2, reorder=0.3, late=0.3))
        world.options = {"sync_every": 30.0}
        await world.control.start()
        for host in HOSTS:
            await world.start_agent(host)
        await ground(world)
        kept = History(world)
        chance = world.broker.random
        for change in history:
            kept.apply(change)
            for subject, body in kept.messages:
                world.control.bus.publish(subject, body)
            kept.messages.clear()
            await asyncio.sleep(chance.random())
            host = chance.choice(HOSTS)
            what = chance.randrange(12)
            if what == 0:
                await world.agents[host].close()
                await world.start_agent(host)
            elif what == 1:
                world.broker.cut(host)
                await asyncio.sleep(chance.random())
                world.broker.heal(host)
        world.broker.faults = Faults()
        await asyncio.sleep(90)
        await until(lambda: all(agent.state.in_sync() for agent in world.agents.values()), 120)
        found = {host: world.dump(host) for host in HOSTS}
        await world.stop()
        return found, await learned(history)

    found, expected = run(main())
    assert found == expected
