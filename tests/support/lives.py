"""Death of a part that lives in the same process as all others: its tasks end where they are."""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")
_LIFE: ContextVar["Lives | None"] = ContextVar("life", default=None)


def _factory(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], context: Any = None) -> asyncio.Task[T]:
    task = asyncio.Task(work, loop=loop, context=context)
    life = context.get(_LIFE) if context is not None else _LIFE.get()
    if life is not None:
        life.tasks.add(task)
    return task


class Lives:
    """The tasks of one part, and all that they start."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        loop.set_task_factory(_factory)  # type: ignore[arg-type]

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do `work` as this part; None if it dies on the way."""
        token = _LIFE.set(self)
        try:
            task = asyncio.get_running_loop().create_task(work)
        finally:
            _LIFE.reset(token)
        await asyncio.wait((task,))
        return None if task.cancelled() else task.result()

    async def end(self) -> None:
        """All of it ends now."""
        while tasks := sorted((task for task in self.tasks if not task.done()), key=lambda task: task.get_name()):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
