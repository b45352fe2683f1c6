"""Killed between any two statements to a real Cassandra, or left in the dark about one: `store check` mends the rest.

Each story runs once to count its statements, reads too, then once per statement with a fault there, each time in a
network of its own, the remains of the former runs beside it. Then a fresh store on the same keyspace is checked.
"""

import asyncio
import os
from typing import Any

import pytest

from planes.management.context import ManagementConfig
from planes.model.errors import AlcorError
from planes.store.cassandra.store import CassandraStore
from tests.property.test_crash import STORIES, Log, prepared, start, told_the_truth
from tests.support.cassandra import CassandraServer
from tests.support.invariants import violations
from tests.support.wire import Fault, Wire, instance

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(3600)]

#: every how many statements a fault is tried, beginning with another one for each kind
LONG = os.environ.get("PROFILE") == "long"
STRIDE = 1 if LONG else 12
#: room for all runs, and every object takes a place in its quota
ROOM = 8192 if LONG else 1024
MANAGEMENT = ManagementConfig(quotas=dict.fromkeys(("port", "network", "subnet", "security_group"), ROOM))
#: µs after which the check comes: by then nobody waits for a host any more
LATER = 3_600_000_000


class Runs:
    """Stories, each told by an instance that one fault befalls."""

    def __init__(self, parent: CassandraStore) -> None:
        self._parent = parent
        self.log = Log()

    async def one(self, story: Any, fault: Fault | None, at: int) -> int:
        """Returns how many statements left."""
        cloud = await start(instance(Wire(self._parent)), MANAGEMENT)
        ids = await prepared(cloud)
        wire = Wire(self._parent, at, fault)

        async def told() -> None:
            cloud = await start(instance(wire), MANAGEMENT)
            try:
                await story(cloud, ids, self.log)
            except AlcorError:
                assert fault is not None
            await cloud.plane.partitions.idle()

        await wire.run(told())
        return wire.sent


@pytest.mark.parametrize("fault", list(Fault))
async def test_a_fault_at_any_statement_leaves_nothing_that_the_check_does_not_mend(
    cassandra: CassandraServer, parent: CassandraStore, fault: Fault
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # what the dead never learned concerns nobody
    runs = Runs(parent)
    for story in STORIES:
        statements = await runs.one(story, None, -1)
        assert statements > 10
        for at in range(list(Fault).index(fault) * STRIDE // len(Fault), statements + 2, STRIDE):
            await runs.one(story, fault, at)
    after = CassandraStore(cassandra.url("property"))
    cloud = await start(after, MANAGEMENT, LATER)
    try:
        report = await cloud.plane.check.run(fix=True, width=16)
        assert report.found, "nothing was left to mend: the faults did nothing"
        assert [finding.says for finding in report.left] == []
        assert await violations(after) == []
        assert [finding.says for finding in (await cloud.plane.check.run(fix=False, width=16)).found] == []
        await told_the_truth(cloud, runs.log)
    finally:
        await after.close()
