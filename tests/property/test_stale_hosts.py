"""A host that goes, comes back elsewhere, or loses its ports leaves nothing of itself on the others (rules S9, S20).

In the kernels of the others no neighbour leads to it and no forwarding entry, in any order of what happened, and with
messages lost meanwhile. Played on the memory driver; `e2e/test_lives.py` has the same on real kernels.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planes.bus.memory.bus import Faults
from planes.control.plane import ControlConfig
from planes.model.addresses import ip_text
from planes.model.errors import AlcorError
from planes.model.requests import NetworkCreate, PortCreate, PortUpdate, SubnetCreate
from tests.support.chance import from_seed
from tests.support.clock import run
from tests.support.cloud import caller
from tests.support.disk import forgetful
from tests.support.invariants import violations
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LONG = os.environ.get("PROFILE") == "long"
STAYING, LEAVING = ("h1", "h2"), "h3"
#: what becomes of the ports of the host, and of itself
PORTS = ("delete", "move")
LIVES = ("gone", "elsewhere", "up")


class Story:
    """Two networks with ports on every host; the last host's go one by one, and so may it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.theirs: list[str] = []

    async def prepare(self, count: int) -> None:
        cloud = self.mesh.clouds["c1"]
        for cidr in ("10.0.0.0/24", "10.1.0.0/24"):
            (network,) = await cloud.networks.create(caller(), [NetworkCreate()])
            await cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr=cidr)])
            for host in (*STAYING, *[LEAVING] * count):
                (port,) = await cloud.ports.create(caller(), [PortCreate(network_id=network.id, host_id=host)])
                if host == LEAVING:
                    self.theirs.append(port.id)

    async def live(self, what: str) -> None:
        if what == "up":
            return
        await self.mesh.stop_agent(LEAVING)
        if what == "elsewhere":
            await self.mesh.start_agent(LEAVING, vtep=bytes((192, 0, 2, 99)))

    async def empty(self, fates: list[str]) -> None:
        """Every port of the host is deleted, or is on another host."""
        for id_, fate in zip(self.theirs, fates, strict=True):
            cloud = self.mesh.clouds[random.choice(("c1", "c2"))]
            while True:
                try:
                    if fate == "delete":
                        await cloud.ports.delete(caller(), id_, None)
                    else:
                        await cloud.ports.update(caller(), id_, PortUpdate(host_id=random.choice(STAYING)), None)
                    break
                except AlcorError as error:
                    if error.status == 404:  # it was done, and nobody said so
                        break
                    await asyncio.sleep(1)

    def left(self) -> list[str]:
        """Lines of the others' kernels that name the host's tunnel end or its MAC."""
        row = next(iter(self.mesh.clouds.values())).plane.hosts.get(LEAVING)
        assert row is not None
        ends = {ip_text(row.vtep), "192.0.2.3", "192.0.2.99"}
        return [
            f"{host}: {line}"
            for host in STAYING
            for line in self.mesh.held(host).splitlines()
            if line.split()[1] == "peer" and ends & set(line.split())
        ]


async def play(path: Path, life: str, fates: list[str], first: bool, faults: Faults) -> None:
    mesh = Mesh(path, control=ControlConfig(echo_every=15.0))
    await mesh.start()
    story = Story(mesh)
    await story.prepare(len(fates) // 2)
    await asyncio.sleep(5)
    assert len(story.left()) == 2 * len(STAYING)
    mesh.broker.faults = faults
    if first:
        await story.live(life)
    await story.empty(fates)
    if not first:
        await story.live(life)
    await asyncio.sleep(5)
    mesh.heal()
    await mesh.settle()
    assert story.left() == []
    await mesh.check()
    assert mesh.doubles == []
    assert await violations(mesh.store) == []
    await mesh.stop()


@settings(
    max_examples=400 if LONG else 40,
    derandomize=not LONG,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(
    life=st.sampled_from(LIVES),
    fates=st.integers(1, 3).flatmap(lambda n: st.lists(st.sampled_from(PORTS), min_size=2 * n, max_size=2 * n)),
    first=st.booleans(),
    faults=st.builds(Faults, drop=st.sampled_from((0.0, 0.2)), reorder=st.sampled_from((0.0, 0.3))),
)
def test_nothing_of_a_host_stays_on_the_others(life: str, fates: list[str], first: bool, faults: Faults) -> None:
    with pytest.MonkeyPatch.context() as patch, forgetful() as path:
        from_seed(patch, len(fates))
        run(play(path, life, fates, first, faults))
