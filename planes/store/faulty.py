"""A store that fails as real ones do: refusals, unknown outcomes, late application, death between any two writes.

Wraps any adapter; for tests of whatever stands on a store, and for drills on a running cloud. What happens to a call is
decided by a `Plan`, so a run is repeated exactly by its seed or script. It never invents an outcome that the protocol
does not allow: a refused write has not happened. A serial read may leave a late commit as it is, for a server may begin
it later still; only a counter that was raised meanwhile stops it (rule D5).
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from msgspec import Struct

from planes.store.protocol import Batch, Partition, Store, Unavailable, UnknownOutcome, Values, Write, in_turn
from planes.store.schema import Table

T = TypeVar("T")


class Fault(StrEnum):
    NONE = "none"
    REFUSE = "refuse"  # Unavailable; it did not happen
    LOSE = "lose"  # UnknownOutcome; it did not happen and never will
    HIDE = "hide"  # UnknownOutcome; it did happen
    LATE = "late"  # UnknownOutcome; it happens at some later call, or when settled, or never; a write row by row
    KILL_BEFORE = "kill before"  # the process dies just before
    KILL_AFTER = "kill after"  # the process dies just after


class Call(Struct, frozen=True):
    """One call: `op` is commit, write or read; `n` counts writes (commits among them) and reads, each from 0."""

    op: str
    n: int
    table: str


Plan = Callable[[Call], Fault]


class Killed(BaseException):
    """The process is dead: from here on every call of it raises this. Not an Exception, so that nothing handles it."""


def script(faults: Mapping[int, Fault]) -> Plan:
    """Faults at given writes, by their number; reads always answer."""
    return lambda call: Fault.NONE if call.op == "read" else faults.get(call.n, Fault.NONE)


def seeded(seed: int, rates: Mapping[Fault, float], reads: float = 0.0) -> Plan:
    """Each write fails in each way with that probability; a share `reads` of the reads is refused."""
    rng = random.Random(seed)
    faults, weights = [*rates, Fault.NONE], [*rates.values(), 1.0 - sum(rates.values())]
    if min(weights) < 0 or not 0 <= reads <= 1:
        raise ValueError("the probabilities must be from 0 to 1 in all")

    def plan(call: Call) -> Fault:
        if call.op == "read":
            return Fault.REFUSE if rng.random() < reads else Fault.NONE
        return rng.choices(faults, weights)[0]

    return plan


_Late = Batch | Write


class FaultyStore:
    """`seed` decides when a late write happens, and whether it ever does; or a generator does, such as hypothesis's."""

    def __init__(self, inner: Store, plan: Plan, seed: int | random.Random = 0) -> None:
        self._inner = inner
        self._plan = plan
        self._rng = seed if isinstance(seed, random.Random) else random.Random(seed)
        self._late: list[_Late] = []
        self._writes = self._reads = 0
        self.killed = asyncio.Event()

    @property
    def writes(self) -> int:
        """How many writes were tried so far."""
        return self._writes

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    async def now(self) -> int:
        self._alive()
        return await self._inner.now()

    async def read(
        self,
        table: Table,
        partition: Values,
        *,
        prefix: Values = (),
        after: Values = (),
        among: Values = (),
        limit: int = 0,
        serial: bool = False,
    ) -> Partition:
        await self._before_read(table)
        if serial:
            await self.settle(table, partition)
        return await self._inner.read(
            table, partition, prefix=prefix, after=after, among=among, limit=limit, serial=serial
        )

    async def row(self, table: Table, partition: Values, key: Values) -> Values | None:
        await self._before_read(table)
        return await self._inner.row(table, partition, key)

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        if before:
            return await in_turn(self, batch, before)
        fault = await self._before("commit", batch.table)
        if fault is Fault.LATE:
            self._late.append(batch)
        if fault in (Fault.LOSE, Fault.LATE):
            raise UnknownOutcome("No answer to a commit (injected).")
        applied = await self._inner.commit(batch)
        self._after(fault)
        return applied

    async def write(self, writes: Sequence[Write]) -> None:
        fault = await self._before("write", writes[0].table if writes else None)
        if fault is Fault.LATE:
            self._late += writes
        if fault in (Fault.LOSE, Fault.LATE):
            raise UnknownOutcome("No answer to a write (injected).")
        await self._inner.write(writes)
        self._after(fault)

    async def partitions(self, table: Table, *, after: Values = (), limit: int = 0) -> list[Values]:
        self._alive()
        return await self._inner.partitions(table, after=after, limit=limit)

    async def settle(self, table: Table | None = None, partition: Values | None = None) -> None:
        """Late writes happen now, or never will: all, or most of the conditional ones of one partition."""
        due: list[_Late] = []
        kept: list[_Late] = []
        for late in self._late:
            mine = isinstance(late, Batch) and late.table is table and late.partition == partition
            begun = mine and self._rng.random() < 0.7
            (due if begun or table is None else kept).append(late)
        self._late = kept
        for late in due:
            if self._rng.random() < 0.8:
                await self._apply(late)

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do `work` as a process that may be killed on the way: its result, or None if it was."""
        task = asyncio.ensure_future(work)
        death = asyncio.ensure_future(self.killed.wait())
        await asyncio.wait((task, death), return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if not self.killed.is_set():
            return await task
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # seen; whatever a dead process would have said
        return None

    async def _before_read(self, table: Table) -> None:
        self._alive()
        n, self._reads = self._reads, self._reads + 1
        fault = self._plan(Call("read", n, table.name))
        if fault is Fault.KILL_BEFORE:
            self._kill()
        if fault is not Fault.NONE:
            raise Unavailable("The store refuses to read (injected).")
        await self._stir()

    async def _before(self, op: str, table: Table | None) -> Fault:
        self._alive()
        n, self._writes = self._writes, self._writes + 1
        fault = self._plan(Call(op, n, table.name if table else ""))
        await self._stir()
        if fault is Fault.KILL_BEFORE:
            self._kill()
        if fault is Fault.REFUSE:
            raise Unavailable("The store refuses to write (injected).")
        return fault

    def _after(self, fault: Fault) -> None:
        if fault is Fault.KILL_AFTER:
            self._kill()
        if fault is Fault.HIDE:
            raise UnknownOutcome("The answer was lost (injected).")

    async def _stir(self) -> None:
        """Any call may find that one late write has happened meanwhile."""
        if self._late and self._rng.random() < 0.3:
            await self._apply(self._late.pop(self._rng.randrange(len(self._late))))

    async def _apply(self, late: _Late) -> None:
        if isinstance(late, Batch):
            await self._inner.commit(late)  # its condition may no longer hold: then it has not happened
        else:
            await self._inner.write([late])

    def _alive(self) -> None:
        if self.killed.is_set():
            raise Killed

    def _kill(self) -> NoReturn:
        self.killed.set()
        raise Killed
