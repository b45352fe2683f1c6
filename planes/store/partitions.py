"""Changing one partition of a guarded table: many callers, one conditional batch at a time.

Called by management and control. A caller hands in an operation, a plain function from the partition's state to edits;
operations that arrive while a batch is under way leave together in the next one (at most 128), so that contention makes
batches larger instead of retries more (rule D2). Rows are kept in memory, so many at most; the compare-and-set is what
validates them. An operation may run several times and must have no effect but its edits. An unknown outcome is settled
by a serial read before anything else is tried (rule D5).
"""

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar, cast

from msgspec import Struct

from planes.model.errors import AlcorError
from planes.model.errors import Unavailable as Busy
from planes.model.resources import Body
from planes.store.protocol import Batch, Partition, Store, StoreError, Unavailable, UnknownOutcome, Value, Values, Write
from planes.store.schema import Table
from planes.store.views import Draft, View, to_store

BATCH = 128
#: a batch that others overtake is tried so often, and for so many seconds at least; the longest wait in between
ATTEMPTS = 8
PATIENCE, LONGEST = 10.0, 0.1
#: seconds for which a conflict makes an instance leave room for another
RIVAL = 1.0
#: partitions kept in memory, and rows of them all: one takes about 360 bytes, a bucket has 3 000
KEPT, ROWS = 1024, 1_000_000
#: operations that may wait for one partition
QUEUE = 4096

T = TypeVar("T")
Where = tuple[str, Values]


class Done(Struct, Generic[T], frozen=True):
    """What an operation came to: its result, the revision it drew, and the counter just before it."""

    value: T
    rev: int
    prev: int


Apply = Callable[[Draft, int], T]
Prepare = Callable[[], Awaitable[None]]
Before = Callable[[], Sequence[Write]]


class _Waiting:
    __slots__ = ("apply", "before", "future", "prepare", "weight")

    def __init__(
        self,
        apply: Apply[Any],
        prepare: Prepare | None,
        before: Before | None,
        weight: int,
        future: "asyncio.Future[Done[Any]]",
    ) -> None:
        self.apply = apply
        self.prepare = prepare
        self.before = before
        self.weight = weight
        self.future = future


class _Built(Struct):
    """One batch: what it writes, the writes that precede it, and what it makes of the view."""

    batch: Batch
    before: list[Write]
    edits: dict[tuple[int, bytes], Body | None]


class _Desk:
    """One partition: its view and the operations that wait for it."""

    __slots__ = ("loading", "queue", "reading", "rivalled", "rows", "took", "view", "worker")

    def __init__(self) -> None:
        self.view: View | None = None
        self.rows = 0  # of the view when it was last counted
        #: held while a fresh read runs; the read that has not begun yet, for all who ask meanwhile
        self.reading = asyncio.Lock()
        self.loading: asyncio.Task[View] | None = None
        self.queue: deque[_Waiting] = deque()
        self.worker: asyncio.Task[None] | None = None
        #: until when another instance is thought to work here too, by the loop's clock (0: none was ever met); s that
        #: the last batch took
        self.rivalled = 0.0
        self.took = 0.0


class Partitions:
    """All guarded partitions that this instance works on."""

    def __init__(self, store: Store, now: Callable[[], int], rng: random.Random | None = None) -> None:
        self.store = store
        self.now = now
        self._rng = rng or random.Random()
        self._desks: OrderedDict[Where, _Desk] = OrderedDict()
        self._rows = 0
        self.conflicts = 0

    async def view(self, table: Table, partition: Values, *, fresh: bool = False) -> View:
        """The partition as this instance knows it; `fresh`: as the store has it now. Raises Unavailable (503)."""
        desk = self._desk(table, partition)
        if desk.view is not None and not fresh:
            return desk.view
        # Many are refused at once when a bucket fills up: they share a read, but only one that began after they asked.
        if desk.loading is None:
            desk.loading = asyncio.create_task(self._read(desk, table, partition))
        return await asyncio.shield(desk.loading)

    async def _read(self, desk: _Desk, table: Table, partition: Values) -> View:
        """Read the partition; nobody else may join once it begins. A view that is as new stays: commits may have
        made it so meanwhile.

        An older one must go, also under a running worker: that might answer with refusals alone, which no lost race
        would correct.
        """
        async with desk.reading:
            desk.loading = None
            known = desk.view
            if known is not None and await self._holds(table, partition, known):
                known.hints.clear()  # what was looked for in vain is looked for anew
                return known
            view = await self._load(table, partition)
            if desk.view is None or view.top > desk.view.top:
                desk.view = view
                self._count((table.name, partition), desk)
            return view

    def peek(self, table: Table, partition: Values) -> View | None:
        """The partition as this instance knows it at this instant; None when it does not."""
        desk = self._desks.get((table.name, partition))
        return desk.view if desk else None

    async def current(self, table: Table, partition: Values) -> View | None:
        """The partition as the store has it now, if this instance knows it so: one short read says it, if it is known.

        Not while something is under way here: the store may be ahead then.
        """
        desk = self._desks.get((table.name, partition))
        if desk is None or desk.worker is not None or (view := desk.view) is None:
            return None
        return view if await self._holds(table, partition, view) and desk.view is view else None

    def forget(self, table: Table, partition: Values) -> None:
        """Read it anew next time."""
        desk = self._desks.get((table.name, partition))
        if desk is not None and desk.worker is None:
            desk.view = None

    async def change(
        self,
        table: Table,
        partition: Values,
        apply: Apply[T],
        prepare: Prepare | None = None,
        before: Before | None = None,
        weight: int = 1,
    ) -> Done[T]:
        """Run `apply(draft, revision)` and commit its edits. What `apply` raises comes back; nothing happens.

        A commit proves that what this instance remembered was right; a refusal, and a finding that there is nothing to
        do, prove nothing, so they are decided anew on what the store has now. `prepare` is awaited before `apply` runs
        again: it re-reads what `apply` relies on. `before` gives the writes that must be there before the edits are; it
        is asked at each try, just before the batch leaves, and not at all when nothing is edited. `weight`: objects
        that the operation changes, of which a batch holds `BATCH` at most (or one operation). Raises Unavailable (503)
        when the store does not answer or the race is lost too often.
        """
        remembered = self.peek(table, partition) is not None
        try:
            done = await self._submit(table, partition, apply, prepare, before, weight)
        except Exception as error:
            if not remembered or isinstance(error, Busy):
                raise
        else:
            if done.rev != done.prev or not remembered:
                return done
        await self.view(table, partition, fresh=True)
        if prepare is not None:
            await prepare()
        return await self._submit(table, partition, apply, prepare, before, weight)

    def _submit(
        self,
        table: Table,
        partition: Values,
        apply: Apply[T],
        prepare: Prepare | None,
        before: Before | None,
        weight: int,
    ) -> "asyncio.Future[Done[T]]":
        """Queue an operation; who gives up waiting for it does not undo it."""
        desk = self._desk(table, partition)
        if len(desk.queue) >= QUEUE:
            raise Busy("Too many changes wait for the same partition.")
        future: asyncio.Future[Done[T]] = asyncio.get_running_loop().create_future()
        desk.queue.append(_Waiting(apply, prepare, before, weight, future))
        if desk.worker is None:
            desk.worker = asyncio.create_task(self._work(desk, table, partition), name=f"{table.name}{partition}")
        return future

    async def idle(self) -> None:
        """Return when nothing is under way."""
        while workers := [desk.worker for desk in self._desks.values() if desk.worker is not None]:
            await asyncio.wait(workers)

    def _desk(self, table: Table, partition: Values) -> _Desk:
        where = (table.name, partition)
        desk = self._desks.get(where)
        if desk is None:
            desk = self._desks[where] = _Desk()
            if len(self._desks) > KEPT:
                self._evict()
        else:
            self._desks.move_to_end(where)
        return desk

    def _evict(self) -> bool:
        """Forget what was not asked for for the longest time and nobody works on, if there is any."""
        for where, desk in self._desks.items():
            if desk.worker is None:
                del self._desks[where]
                self._rows -= desk.rows
                return True
        return False

    def _count(self, where: Where, desk: _Desk) -> None:
        """After its view changed."""
        if self._desks.get(where) is desk:
            rows = desk.view.rows if desk.view is not None else 0
            self._rows += rows - desk.rows
            desk.rows = rows
            while self._rows > ROWS and self._evict():
                pass

    async def _load(self, table: Table, partition: Values) -> View:
        return View(table, await self._stored(table, partition))

    async def _holds(self, table: Table, partition: Values, view: View) -> bool:
        """Whether the store has nothing newer than the view: every batch raises the counter, so one row tells."""
        top = view.top
        found = View(table, await self._stored(table, partition, limit=1))
        return found.top == top == view.top and bool(found.statics) == bool(view.statics)

    async def _stored(self, table: Table, partition: Values, limit: int = 0) -> Partition:
        try:
            return await self.store.read(table, partition, limit=limit)
        except StoreError as error:
            raise Busy(f"The store does not answer: {error}") from error

    async def _work(self, desk: _Desk, table: Table, partition: Values) -> None:
        taken: list[_Waiting] = []
        try:
            while desk.queue:
                taken = _take(desk.queue)
                try:
                    await self._attempt(desk, table, partition, taken)
                    if desk.rivalled:
                        await self._yield(desk)
                except Exception as error:
                    desk.view = None
                    _fail(taken, error)
        except BaseException as error:  # the process is ending: nobody may wait for ever
            _fail([*taken, *desk.queue], error)
            desk.queue.clear()
            raise
        finally:
            desk.worker = None
            self._count((table.name, partition), desk)

    async def _attempt(self, desk: _Desk, table: Table, partition: Values, taken: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        begun, attempt = loop.time(), 0
        while attempt < ATTEMPTS or loop.time() < begun + PATIENCE:
            if desk.view is None:
                desk.view = await self._load(table, partition)
                if attempt:
                    taken = await _prepared(taken)
            built, done = self._build(desk.view, table, partition, taken)
            taken = [waiting for waiting, _ in done]
            if built is None:
                _answer(done)
                return
            if await self._commit(desk, built):
                if desk.rivalled:
                    desk.took = loop.time() - begun
                if desk.view is not None:
                    desk.view.merge(built.edits, built.batch)
                _answer(done)
                return
            self.conflicts += 1
            desk.rivalled = loop.time() + RIVAL
            await asyncio.sleep(self._rng.uniform(0, min(0.002 * 2**attempt, LONGEST)))
            attempt += 1
        raise Busy("Too many concurrent changes of the same partition; try again.")

    async def _yield(self, desk: _Desk) -> None:
        """Leave another instance time to read and write: who has just won knows the partition, and would win again."""
        if desk.rivalled > asyncio.get_running_loop().time():
            await asyncio.sleep(self._rng.uniform(0, 2 * min(desk.took, RIVAL / 2)))
        else:
            desk.rivalled = 0.0

    def _build(
        self, view: View, table: Table, partition: Values, taken: list[_Waiting]
    ) -> tuple[_Built | None, list[tuple[_Waiting, Done[Any]]]]:
        """Run the operations on a view. Those that raise are answered; the others make one batch (None: no edits)."""
        edits: dict[tuple[int, bytes], Body | None] = {}
        before: list[Write] = []
        revs: dict[tuple[int, bytes], int] = {}
        statics: dict[str, Value] = {}
        done: list[tuple[_Waiting, Done[Any]]] = []
        top, now = view.top, self.now()
        for waiting in taken:
            rev = max(top + 1, now)
            draft = Draft(view, edits, statics)
            try:
                value = waiting.apply(draft, rev)
            except Exception as error:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
                continue
            if draft.edits or draft.set:
                edits.update(draft.edits)
                revs.update(dict.fromkeys(draft.edits, rev))
                statics.update(draft.set)
                if waiting.before is not None:
                    before += waiting.before()
                done.append((waiting, Done(value, rev, top)))
                top = rev
            else:
                done.append((waiting, Done(value, top, top)))
        if top == view.top:
            return None, done
        statics["top"] = top
        batch = Batch(
            table,
            partition,
            view.top if view.statics else None,
            statics,
            to_store(view, edits, revs),
            [where for where, body in edits.items() if body is None],
        )
        return _Built(batch, before, edits), done

    async def _commit(self, desk: _Desk, built: _Built) -> bool:
        """Whether the batch happened. When it did not, the view is forgotten, or is what a serial read found."""
        try:
            if await self.store.commit(built.batch, built.before):
                return True
            desk.view = None
            return False
        except UnknownOutcome:
            desk.view = None
            return await self._settle(desk, built.batch)
        except Unavailable as error:
            raise Busy(f"The store does not answer: {error}") from error

    async def _settle(self, desk: _Desk, batch: Batch) -> bool:
        """After an unknown outcome: did it happen? If not, it never will, because the counter is raised first."""
        table = batch.table
        # Rows of a revision of its own: nobody else draws it. An address that merely got a row has an older one.
        own = [put for put in batch.puts if cast(int, put[2]) > (batch.expect or 0)]
        for attempt in range(ATTEMPTS):
            try:
                read = await self.store.read(table, batch.partition, serial=True)
                rows = {row[:2]: row for row in read.rows}
                view = View(table, read)
                # One row of it is enough: others may have changed the rest since.
                left = any(rows.get(put[:2]) == put for put in own)
                gone = not own and not any(key in rows for key in batch.drops)
                if (left or gone) and view.top >= cast(int, batch.statics["top"]):
                    return True
                fence = Batch(
                    table,
                    batch.partition,
                    view.top if view.statics else None,
                    {"top": max(view.top, cast(int, batch.statics["top"])) + 1},
                )
                if await self.store.commit(fence):
                    desk.view = None
                    return False
            except StoreError:
                await asyncio.sleep(self._rng.uniform(0.005, 0.01 * 2**attempt))
        raise Busy("The outcome of a change could not be learned; the echo will settle it.")


def _take(queue: deque[_Waiting]) -> list[_Waiting]:
    """The operations of the next batch."""
    taken = [queue.popleft()]
    weight = taken[0].weight
    while queue and weight + queue[0].weight <= BATCH:
        weight += queue[0].weight
        taken.append(queue.popleft())
    return taken


async def _prepared(taken: list[_Waiting]) -> list[_Waiting]:
    """Let each operation re-read what it relies on; those whose preparation fails are answered and dropped."""
    left = []
    for waiting in taken:
        try:
            if waiting.prepare is not None:
                await waiting.prepare()
            left.append(waiting)
        except AlcorError as error:
            if not waiting.future.done():
                waiting.future.set_exception(error)
    return left


def _fail(waiting: Iterable[_Waiting], error: BaseException) -> None:
    for each in waiting:
        if not each.future.done():
            each.future.set_exception(error)


def _answer(done: list[tuple[_Waiting, Done[Any]]]) -> None:
    for waiting, result in done:
        if not waiting.future.done():
            waiting.future.set_result(result)
