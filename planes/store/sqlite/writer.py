"""Group commit: whatever waits leaves in one transaction, and each job in it is decided on its own.

Called by the SQLite store, in the loop's thread. Statements run in the loop's thread: they touch memory, and a second
thread would have to win the interpreter's lock back after every one of them. Only COMMIT, which waits for the disk,
runs in a thread of its own; what arrives meanwhile makes the next transaction. Nothing is answered before its COMMIT
has returned, so a caller's consecutive steps are never in one transaction. Without that thread each job is a
transaction of its own, durable when `submit` returns: for a disk that does not make anybody wait.
"""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from planes.store.protocol import StoreError, Unavailable
from planes.store.sqlite.file import meaning, rollback

#: jobs that may wait
QUEUE = 10_000
#: rows that one transaction takes before it leaves; what the loop's thread does in one go
ROWS = 512
#: a lock held by another program is waited for, so long in all and so long at a time
PATIENCE = 2.0
PAUSE = 0.01

Run = Callable[[sqlite3.Connection], Any]


class _Job:
    __slots__ = ("answer", "future", "rows", "run", "where")

    def __init__(self, run: Run, rows: int, where: object, future: "asyncio.Future[Any]") -> None:
        self.run = run
        self.rows = rows
        self.where = where
        self.future = future
        self.answer: Any = None


class Writer:
    """Owns the one connection that writes."""

    def __init__(self, connection: sqlite3.Connection, threaded: bool = True) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Job] = deque()
        self._scheduled = False
        self._flying: list[_Job] = []
        self._blocked_since = 0.0
        #: the last transaction did not reach the disk
        self.failing = False
        self._work: SimpleQueue[bool] = SimpleQueue()
        self._idle: list[asyncio.Future[None]] = []
        self._thread = threading.Thread(target=self._commits, name="sqlite-commit", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether anything is accepted and not yet answered."""
        return bool(self._queue or self._flying)

    def changes(self, where: object) -> bool:
        """Whether a job that was submitted for this partition is not yet answered."""
        return any(job.where == where for job in (*self._flying, *self._queue))

    def submit(self, run: Run, rows: int, where: object = None) -> "asyncio.Future[Any]":
        """`run` inside the next transaction; its result once that is durable. Raises Unavailable when too much waits.

        A caller that is cancelled before its transaction began withdraws the job.
        """
        if len(self._queue) >= QUEUE:
            raise Unavailable(f"More than {QUEUE} writes wait for the disk.")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.append(_Job(run, rows, where, future))
        if not self._scheduled and not self._flying:
            if self._thread is None:
                self._begin()
            else:
                self._scheduled = True
                self._loop.call_soon(self._begin)
        return future

    async def close(self) -> None:
        """Finish what was accepted, then end the thread."""
        while self.busy:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(waiter)
            await waiter
        if self._thread is not None:
            self._work.put(False)
            self._thread.join()

    def _begin(self) -> None:
        self._scheduled = False
        jobs = self._take()
        if jobs:
            self._transaction(jobs)
        if not self._flying:
            self._next()

    def _take(self) -> list[_Job]:
        jobs: list[_Job] = []
        rows = 0
        while self._queue and rows < ROWS:
            job = self._queue.popleft()
            if not job.future.done():
                jobs.append(job)
                rows += job.rows
        return jobs

    def _transaction(self, jobs: list[_Job]) -> None:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._blocked(jobs, error)
            return
        self._blocked_since = 0.0
        job = jobs[0]
        try:
            for job in jobs:
                job.answer = job.run(connection)
        except Exception as error:
            rollback(connection)
            self._without(jobs, job, error)
            return
        self._flying = jobs
        if self._thread is None:
            self._committed(self._commit())
        else:
            self._work.put(True)

    def _without(self, jobs: list[_Job], culprit: _Job, error: Exception) -> None:
        """A disk error stops everybody; any other only the job that raised it: the rest begin anew, without it."""
        if isinstance(error, sqlite3.OperationalError):
            self.failing = True
            self._fail(jobs, meaning(error))
            return
        self._fail([culprit], meaning(error))
        self._queue.extendleft(reversed([job for job in jobs if job is not culprit]))

    def _blocked(self, jobs: list[_Job], error: sqlite3.Error) -> None:
        now = self._loop.time()
        self._blocked_since = self._blocked_since or now
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_BUSY or now - self._blocked_since > PATIENCE:
            self._blocked_since = 0.0
            self.failing = True
            self._fail(jobs, meaning(error))
            return
        self._queue.extendleft(reversed(jobs))
        self._scheduled = True
        self._loop.call_later(PAUSE, self._begin)

    def _commits(self) -> None:
        """The thread: one COMMIT after another."""
        while self._work.get():
            error = self._commit()
            try:
                self._loop.call_soon_threadsafe(self._committed, error)
            except RuntimeError:
                return  # the loop is gone, and with it whoever waited

    def _commit(self) -> sqlite3.Error | None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            rollback(self._connection)
            return error
        return None

    def _committed(self, error: sqlite3.Error | None) -> None:
        jobs, self._flying = self._flying, []
        self.failing = error is not None
        if error is not None:
            self._fail(jobs, meaning(error, committing=True))
        else:
            for job in jobs:
                if not job.future.done():
                    job.future.set_result(job.answer)
        self._next()

    def _fail(self, jobs: list[_Job], error: StoreError) -> None:
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(type(error)(*error.args))

    def _next(self) -> None:
        if self._scheduled:
            return
        if self._queue:
            self._scheduled = True
            self._loop.call_soon(self._begin)
            return
        waiters, self._idle = self._idle, []
        for waiter in waiters:
            waiter.set_result(None)
