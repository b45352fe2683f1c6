"""How long each kernel transaction of an apply takes. Around every one of them; two clock reads each.

What is not part of an apply (dumps, take-over, audits) is not kept: then nobody gathers.
"""

import time
from contextvars import ContextVar
from types import TracebackType

from planes.data.driver import Transaction

#: transactions kept of one apply
MOST = 256
_taken: ContextVar[list[Transaction] | None] = ContextVar("taken", default=None)


def gather() -> list[Transaction]:
    """From now on, in this task and in the threads that it waits for, transactions are added to this list."""
    taken: list[Transaction] = []
    _taken.set(taken)
    return taken


class timed:
    """A block that is one transaction of so many messages."""

    __slots__ = ("_begun", "_messages", "_what")

    def __init__(self, what: str, messages: int) -> None:
        self._what = what
        self._messages = messages

    def __enter__(self) -> None:
        self._begun = time.time_ns()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        taken = _taken.get()
        if taken is not None and len(taken) < MOST:
            begun, ended = self._begun // 1000, time.time_ns() // 1000
            taken.append(Transaction(self._what, self._messages, begun, ended - begun))
