"""A state directory that is full: said once, not at each attempt, and said again when it fills up once more."""

from pathlib import Path

import pytest

from agent.core.context import Options
from agent.core.instructions import Save, Saved
from agent.core.state import AgentState
from agent.runtime import Agent
from agent.state_file import StateFile
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.data.memory.driver import MemoryDriver
from planes.data.memory.fabric import Fabric
from planes.goalstate.messages import VERSION

VTEP = bytes((192, 0, 2, 1))


def test_a_full_state_directory_is_said_once_and_recovers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = StateFile(str(tmp_path), "h1")
    state = AgentState(Options(host="h1", machine="m", vtep=VTEP), lambda: 0.5)
    bus = MemoryBus(MemoryBroker(0, None), "h1")
    agent = Agent(state, bus, MemoryDriver(Fabric()), VTEP, lambda: 0, keeper)
    beside = keeper.path.with_suffix(".new")

    def save(epoch: int) -> Saved | None:
        agent._save(Save(Saved(VERSION, "h1", epoch)))
        return keeper.load()

    beside.symlink_to("/dev/full")  # each write there fails as on a full disk
    for epoch in (1, 2, 3):
        assert save(epoch) is None
    assert [record.message for record in caplog.records] == [
        "this life's epoch cannot be kept: [Errno 28] No space left on device"
    ]
    beside.unlink()
    assert save(4) == Saved(VERSION, "h1", 4)
    beside.symlink_to("/dev/full")
    assert save(5) == Saved(VERSION, "h1", 4)  # the file is replaced whole or not at all
    assert len(caplog.records) == 2
