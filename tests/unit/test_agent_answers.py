"""What the agent says of the kernel is what the kernel holds, whatever came first and whoever lived before."""

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from agent.core.plan import Plan
from agent.core.translate import Goals
from agent.core.wants import Wants
from planes.data.driver import Spec, SpecKey
from planes.data.memory.driver import MemoryDriver
from planes.goalstate.messages import Gone, Group, Identity, Network, ObjectKind, Peer, Port, Rule, Subnet
from tests.support.clock import run, until
from tests.support.world import DB, EGRESS_ALL, NET, WEB, World, id16, ip, mac


@pytest.mark.parametrize("remembers", [True, False])
def test_a_tombstone_is_not_answered_while_the_kernel_may_still_have_the_port(remembers: bool) -> None:
    """Rule S19: the agent starts anew and the data plane is not open yet when the tombstone comes."""

    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        kept, gone = world.port(2, "h1"), world.port(3, "h1")
        await world.settle()
        await world.agents["h1"].close()
        if not remembers:
            del world.keepers["h1"]
        agent = await world.start_agent("h1")
        world.drivers["h1"].broken = "not ready yet"
        await asyncio.sleep(11)
        world.delete(gone)
        await asyncio.sleep(3)
        assert gone.id.hex() in world.fabric.kernel(bytes((192, 0, 2, 1))).dump()
        said = world.control.status(gone.id)
        assert said is not None
        assert said.rev == gone.rev, "answered for the tombstone too early"
        world.drivers["h1"].broken = ""
        await world.settle()
        assert gone.id.hex() not in world.dump("h1")
        assert kept.id.hex() in world.dump("h1")
        said = world.control.status(gone.id)
        assert said is not None
        assert said.rev > gone.rev
        assert not agent.bugs
        await world.stop()

    run(main())


def test_members_of_a_remote_group_do_not_depend_on_what_came_first() -> None:
    """Rule S1: identities and groups may be known before their network is."""

    goals, plan = Goals("h1"), Plan(lambda *_: 1.0)
    wants = Wants(goals, plan)
    wants.opened(())
    rules = (EGRESS_ALL, Rule(False, 4, remote_group=DB), Rule(False, 6, remote_group=WEB))
    port = Port(id16(2), 1, NET, mac(2), (ip(2),), 1, (WEB,))
    for item in (Group(WEB, 1, rules), port, Identity(NET, 2, 1, (DB,)), Network(NET, 1, 100, 1450)):
        goals.put(item)
        wants.update({})
    assert [key for key in goals.needs(port) if key not in plan.desired] == []


def test_a_new_life_takes_nothing_away_while_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a snapshot has half of the subnets and of the members of a group: what works stays until all is known."""

    async def main() -> None:
        world = World()
        rules = (EGRESS_ALL, Rule(False, 4, remote_group=DB))
        await world.start("h1", "h2")
        world.network(rules=rules)
        c = world.control
        for third in range(1, 6):
            c.say(Subnet(NET, id16(900 + third), c.rev(), bytes((10, third, 0, 0)), 16, bytes((10, third, 0, 1))))
            c.say(Identity(NET, 10 + third, c.rev(), (DB, id16(0x50 + third))))
        for n in range(2, 8):
            world.port(n, "h1")
            world.port(n, "h2", third=1)
        await world.settle()
        await asyncio.sleep(10)
        before = world.dump("h1")
        await world.agents["h1"].close()
        seen: list[str] = []
        apply = MemoryDriver.apply

        async def watched(self: MemoryDriver, puts: Iterable[Spec], drops: Iterable[SpecKey]) -> Mapping[SpecKey, str]:
            errors = await apply(self, puts, drops)
            seen.append(self.dump())
            return errors

        monkeypatch.setattr(MemoryDriver, "apply", watched)
        agent = await world.start_agent("h1")
        await until(lambda: agent.state.in_sync(), 30)
        assert seen
        assert set(seen) == {before}
        await world.stop()

    run(main())


def test_a_peer_that_was_withdrawn_is_asked_for_while_addresses_lie_behind_it() -> None:
    """Rule S20: the message that announces its return may be lost, and no digest tells."""

    async def main() -> None:
        world = World()
        await world.start("h1", "h2")
        world.network()
        world.port(2, "h1")
        world.port(3, "h2")
        await world.settle()
        await asyncio.sleep(10)
        peer = world.control.peer(NET, "h2")
        assert isinstance(peer, Peer)
        state = world.agents["h1"].state
        stale = Gone(ObjectKind.PEER, NET, b"h2", peer.rev)
        entry = state.objects.get(peer.key)
        assert entry is not None
        entry.rev -= 1
        state._accept(stale, "", 0, 0)
        entry.rev -= 1
        state._settle()
        world.agents["h1"]._arm()
        await asyncio.sleep(120)
        assert "10.0.0.3 via" in world.dump("h1")
        await world.stop()

    run(main())
