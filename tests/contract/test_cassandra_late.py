"""A server that begins what it was sent after its client has given up: nothing is done twice, nothing is lost."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Sequence

import pytest

from observability.stages import now_us
from planes.model.enums import Kind
from planes.model.errors import Unavailable
from planes.store.cassandra.store import CassandraStore
from planes.store.partitions import Partitions
from planes.store.protocol import Batch, UnknownOutcome, Write
from planes.store.rows import Mark
from planes.store.schema import NETWORKS
from planes.store.views import Draft
from tests.support.cassandra import CassandraServer

pytestmark = pytest.mark.server

#: partitions with a counter each, and how often the server is stopped
COUNTERS, STOPS = range(1, 9), 3


class Asking(CassandraStore):
    """It counts the batches that got no answer."""

    unknown = 0

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        try:
            return await super().commit(batch, before)
        except UnknownOutcome:
            self.unknown += 1
            raise


async def test_a_stopped_server_does_what_it_was_sent_once(cassandra: CassandraServer) -> None:
    """Its clients give up after a second; what they sent waits in its sockets, and is begun when it goes on."""
    patient = CassandraStore(cassandra.url("late"))
    await patient.open()  # makes the tables
    await patient.close()
    store = Asking(cassandra.node.url("late", timeout=1))
    await store.open()
    work = Counting(Partitions(store, now_us))
    tasks = [asyncio.create_task(work.count(net)) for net in COUNTERS]
    try:
        for _ in range(STOPS):
            await work.goes_on()
            os.kill(cassandra.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(1.5)
            finally:
                os.kill(cassandra.pid, signal.SIGCONT)
        await work.goes_on()
    finally:
        work.over = True
        await asyncio.gather(*tasks)
    assert store.unknown >= STOPS, "no batch was left without an answer"
    for net in COUNTERS:
        view = await work.parts.view(NETWORKS, (net,), fresh=True)
        found = int(view.get(Kind.BUCKET, b"n").value)
        assert work.sure[net] <= found <= work.sure[net] + work.unsure[net], (net, work.unsure[net])
    await store.close()


class Counting:
    """Counters that are raised by one, again and again: `sure` counts what was answered, `unsure` what was not."""

    def __init__(self, parts: Partitions) -> None:
        self.parts = parts
        self.sure: Counter[int] = Counter()
        self.unsure: Counter[int] = Counter()
        self.over = False
        self._progress = asyncio.Condition()

    async def count(self, net: int) -> None:
        while not self.over:
            try:
                await self.parts.change(NETWORKS, (net,), _more)
            except Unavailable:
                self.unsure[net] += 1
                await asyncio.sleep(0.05)
                continue
            async with self._progress:
                self.sure[net] += 1
                self._progress.notify_all()

    async def goes_on(self) -> None:
        wanted = self.sure.total() + 2 * len(COUNTERS)
        async with self._progress:
            await self._progress.wait_for(lambda: self.sure.total() >= wanted)


def _more(draft: Draft, rev: int) -> None:
    mark: Mark | None = draft.get(Kind.BUCKET, b"n")
    draft.put(Kind.BUCKET, b"n", Mark(str(int(mark.value) + 1 if mark else 1).encode()))
