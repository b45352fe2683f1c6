"""Control and agents as they are: whatever the network loses and whoever dies, all end where the store is.

A schedule is a list of operations of clients and of troubles, with the time between them: messages are dropped, doubled
and overtaken, hosts and instances are cut off, agents and instances are killed wherever they are. Then the network
heals; after one echo and one sync every kernel is what the rows say, what was answered is so, every port is answered
for, no address was ever live on two hosts, and the talking stops (rules S1, S3, S14 to S16, S18, S19, D5, D6).

A schedule that fails is shrunk and printed whole; it repeats exactly under the same PYTHONHASHSEED.
"""

import asyncio
import os
import random
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planes.bus.memory.bus import Faults
from planes.control.plane import ControlConfig
from tests.support.chance import from_seed
from tests.support.clients import HOSTS, Clients
from tests.support.clock import run
from tests.support.disk import forgetful
from tests.support.invariants import violations
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = os.environ.get("PROFILE") == "long"
SCHEDULES = 3000 if LONG else 250
#: a schedule that fails is made smaller where there is time for it
PHASES = (Phase.generate, Phase.shrink) if LONG else (Phase.generate,)

ASK = ("create", "create", "create", "move", "move", "regroup", "address", "admin", "delete", "rule", "bulk")
TROUBLE = ("cut", "mute", "agent", "reboot", "kill control", "cut control")
#: what happens, what decides its details, and seconds until the next step
Step = tuple[str, int, float]

steps = st.tuples(
    st.sampled_from((*ASK, *ASK, *TROUBLE)), st.integers(0, 9999), st.sampled_from((0.0, 0.01, 0.1, 0.3, 1.0, 3.0))
)
faults = st.builds(
    Faults,
    drop=st.sampled_from((0.0, 0.1)),
    reorder=st.sampled_from((0.0, 0.3)),
    late=st.sampled_from((0.05, 0.5)),
    duplicate=st.sampled_from((0.0, 0.2)),
)


class Troubles:
    """What befalls hosts and instances; two of the same kind wait for each other."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._busy: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def befall(self, what: str, chance: random.Random) -> None:
        name = chance.choice(("c1", "c2") if "control" in what else HOSTS)
        async with self._busy[name]:
            if what in ("cut", "mute", "cut control"):
                getattr(self.mesh.broker, what.split()[0])(name)
                await asyncio.sleep(chance.choice((0.5, 3.0, 20.0)))
                self.mesh.broker.heal(name)
            elif what == "kill control":
                await self.mesh.kill_control(name)
                await asyncio.sleep(chance.random() * 3)
                await self.mesh.start_control(name)
            else:
                await self._agent(what, name, chance)

    async def _agent(self, what: str, host: str, chance: random.Random) -> None:
        vtep = self.mesh.agents[host]._vtep
        await self.mesh.stop_agent(host)
        if what == "reboot":
            self.mesh.fabric.reboot(vtep)
            del self.mesh.keepers[host]
        await asyncio.sleep(chance.random())
        await self.mesh.start_agent(host)


async def play(path: Path, schedule: list[Step], faults: Faults) -> None:
    mesh = Mesh(path, control=ControlConfig(echo_every=15.0))
    await mesh.start(hosts=HOSTS)
    clients, troubles = Clients(mesh), Troubles(mesh)
    await clients.prepare()
    mesh.broker.faults = faults
    async with asyncio.TaskGroup() as running:
        for what, choice, gap in schedule:
            act = troubles.befall if what in TROUBLE else clients.ask
            running.create_task(act(what, random.Random(choice)))
            await asyncio.sleep(gap)
    mesh.heal()
    await mesh.settle()
    await mesh.check()
    await clients.told_the_truth()
    assert mesh.doubles == []
    assert await violations(mesh.store) == []
    await at_rest(mesh)
    await mesh.stop()


async def at_rest(mesh: Mesh) -> None:
    """When nothing changes, only beats, beacons and syncs are said, and no ack."""
    await asyncio.sleep(20)
    acks = sum(cloud.plane.acks.counters["acks"] for cloud in mesh.clouds.values())
    goals = sum(cloud.plane.publisher.counters["published"] for cloud in mesh.clouds.values())
    await asyncio.sleep(20)
    assert sum(cloud.plane.acks.counters["acks"] for cloud in mesh.clouds.values()) == acks
    assert sum(cloud.plane.publisher.counters["published"] for cloud in mesh.clouds.values()) == goals


@pytest.mark.parametrize("length", [8, 15, 25, 40])
def test_all_end_where_the_store_is_and_the_talking_stops(length: int) -> None:
    @settings(
        max_examples=SCHEDULES,
        derandomize=not LONG,
        database=None,
        deadline=None,
        print_blob=True,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedule=st.lists(steps, min_size=length // 2, max_size=length), faults=faults)
    def replayed(schedule: list[Step], faults: Faults) -> None:
        with pytest.MonkeyPatch.context() as patch, forgetful() as path:
            from_seed(patch, length)
            run(play(path, schedule, faults))

    replayed()
