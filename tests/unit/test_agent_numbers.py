"""A number that changes its meaning (rule I2), at the hosts: whatever they heard in whatever order, the last counts."""

import asyncio
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path

import pytest

from planes.control import numbers
from planes.control.plane import ControlConfig
from planes.goalstate.messages import Gone, Identity, Object, ObjectKind, Rule
from planes.model.ids import number_of, parse
from planes.model.requests import GroupCreate, NetworkCreate, PortCreate, RuleCreate, SubnetCreate
from planes.model.views import PortView
from tests.support.clock import run
from tests.support.cloud import caller
from tests.support.mesh import Mesh
from tests.support.world import DB, EGRESS_ALL, NET, WEB, World

NUMBER = 5
REST = 30.0


def members(dump: str, group: bytes) -> str:
    """Whom a rule that names this group admits on a host."""
    (line,) = [line for line in dump.splitlines() if f" members {group.hex()} " in line]
    return line.partition("= ")[2]


ORDERS = [order for count in (1, 2, 3) for order in permutations(range(3), count)]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_an_agent_ends_with_the_new_meaning_alone_whatever_it_hears_of_the_three(
    order: Sequence[int], again: bool
) -> None:
    """Meaning, tombstone, new meaning: any of them in any order, once or twice; what was lost is found by a sync."""

    async def main() -> None:
        world = World()
        await world.start("h1", "h2")
        rules = (EGRESS_ALL, Rule(False, 4, remote_group=WEB), Rule(False, 4, remote_group=DB))
        world.network(rules=rules)
        world.port(2, "h1")
        world.port(3, "h2", DB)
        await world.settle()
        c = world.control
        told: list[Object] = [
            Identity(NET, NUMBER, c.rev(), (WEB,)),
            Gone(ObjectKind.IDENTITY, NET, NUMBER.to_bytes(2, "big"), c.rev()),
            Identity(NET, NUMBER, c.rev(), (DB,)),
        ]
        stored = [c.put(item) for item in told]
        for n, _ in product(order, range(1 + again)):
            c.publish(stored[n])
            await asyncio.sleep(0.01)
            for host in ("h1", "h2"):
                both = [str(NUMBER) in members(world.dump(host), group) for group in (WEB, DB)]
                assert both != [True, True]
                if 2 in order[: order.index(n) + 1]:
                    assert both == [False, True]
        await asyncio.sleep(700)  # whatever was lost, a sync has come by
        await world.settle()
        for host in ("h1", "h2"):
            assert members(world.dump(host), WEB) == "[1]"
            assert members(world.dump(host), DB) == f"[2, {NUMBER}]"
        await world.stop()

    run(main())


@pytest.mark.parametrize("deaf", ["never", "to the end", "to the next meaning", "to both"])
def test_hosts_admit_nobody_by_a_number_that_rests_and_its_new_owners_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: str
) -> None:
    monkeypatch.setattr(numbers, "MAX_IDENTITY", 3)

    async def main() -> None:
        mesh = Mesh(tmp_path, control=ControlConfig(number_rest=REST))
        await mesh.start(hosts=("h1", "h2"))
        cloud = mesh.clouds["c1"]
        (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
        await cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr="10.0.0.0/24")])
        own, old, new, other = [
            (await cloud.groups.create(caller(), [GroupCreate(name=name)]))[0].id for name in "abcd"
        ]
        for remote in (old, new):
            rule = RuleCreate(security_group_id=own, direction="ingress", remote_group_id=remote)
            await cloud.rules.create(caller(), [rule])

        async def port(host: str, group: str, by: str = "c1") -> PortView:
            wanted = PortCreate(network_id=network.id, host_id=host, security_groups=(group,))
            (made,) = await mesh.clouds[by].ports.create(caller(), [wanted])
            await asyncio.sleep(1)
            return made

        async def look() -> None:
            await cloud.plane.check._numbers.tend(number_of(parse(network.id)), lambda: asyncio.sleep(0))
            await asyncio.sleep(1)

        def admitted() -> list[str]:
            return [members(mesh.held("h1"), parse(group)) for group in (old, new)]

        async def told(when: str) -> None:
            """h1 hears now what it could not hear."""
            if deaf == when:
                mesh.heal()
                await mesh.settle()

        await port("h1", own)
        gone = await port("h2", old)
        await port("h2", other)
        assert admitted() == ["[2]", "[]"]
        await cloud.ports.delete(caller(), gone.id, None)
        await asyncio.sleep(1)
        if deaf in ("to the end", "to both"):
            mesh.broker.mute("h1")
        await look()
        await told("to the end")
        assert admitted() == (["[2]", "[]"] if deaf == "to both" else ["[]", "[]"])
        await asyncio.sleep(REST)
        await look()
        if deaf == "to the next meaning":
            mesh.broker.mute("h1")
        await port("h2", new, by="c2")
        await told("to the next meaning")
        await told("to both")
        assert admitted() == ["[]", "[2]"]
        await mesh.settle()
        await mesh.check()
        await mesh.stop()

    run(main())
