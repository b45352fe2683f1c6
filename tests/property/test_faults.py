"""A fault at every await of store, bus and driver in turn: an error, an unknown outcome, death before or after.

One story of a few ports on two hosts runs once to count the awaits, then once per await and way to fail. What the
client was told must then be so, every kernel must be what the store says, and nothing may be left over.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest

from planes.control.plane import ControlConfig
from tests.support.chance import from_seed
from tests.support.clients import Clients
from tests.support.clock import run
from tests.support.disk import forgetful
from tests.support.gate import Fault, Gate
from tests.support.invariants import violations
from tests.support.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = os.environ.get("PROFILE") == "long"
#: every how many awaits a fault is tried, beginning with another one for each kind
STRIDE = 1 if LONG else 5
STORY = ("create", "create", "bulk", "rule", "move", "regroup", "address", "delete", "admin", "move", "delete")


async def play(path: Path, gate: Gate) -> list[tuple[str, str]]:
    mesh = Mesh(path, control=ControlConfig(echo_every=15.0), gate=gate)
    await mesh.start(instances=("c1", "c2"), hosts=("h1", "h2", "h3"))
    clients = Clients(mesh)
    await clients.prepare()
    gate.open = True
    for n, what in enumerate(STORY):
        await clients.ask(what, random.Random(n))
        await asyncio.sleep(0.2)
    await asyncio.sleep(2)
    gate.open = False
    await asyncio.sleep(3)
    await mesh.settle()
    await mesh.check()
    await clients.told_the_truth()
    assert mesh.doubles == []
    assert await violations(mesh.store) == []
    await mesh.stop()
    return gate.calls


def played(gate: Gate) -> list[tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch, forgetful() as path:
        from_seed(patch, 1)
        return run(play(path, gate))


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_at_any_await_loses_nothing_and_leaves_nothing(fault: Fault) -> None:
    calls = played(Gate())
    assert {call.split(".")[0] for _, call in calls} == {"store", "bus", "driver"}
    for at in range(list(Fault).index(fault), len(calls), STRIDE):
        part, call = calls[at]
        try:
            played(Gate(at, fault))
        except BaseException as error:
            error.add_note(f"{fault} at await {at}: {call} of {part}")
            raise
