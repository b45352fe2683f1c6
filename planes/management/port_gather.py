"""Single ports that are asked for at the same time are made together, as a bulk that has many callers.

Called by `ports` with requests that were checked. Each learns what became of its own port alone: where all do not
succeed together, each is made by itself, so that nobody fails for another's sake. Nothing is told or answered here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from planes.management.port_plans import Fields
from planes.model.errors import AlcorError, Unavailable
from planes.model.ids import Id
from planes.model.resources import Port
from planes.store.partitions import BATCH

#: ports made in one go: as many as a batch holds
MOST = BATCH

Ask = tuple[Fields, "asyncio.Future[Port]"]


class PortGather:
    """Those of one instance. `make`: all of some ports, in their order, or none."""

    def __init__(self, make: Callable[[Sequence[Fields]], Awaitable[list[Port]]]) -> None:
        self._make = make
        #: by network and project: who makes ports there, and what was asked for meanwhile
        self._workers: dict[tuple[Id, str], asyncio.Task[None]] = {}
        self._asked: dict[tuple[Id, str], list[Ask]] = {}
        self._alone = False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not (self._alone or self._workers)

    async def made(self, fields: Fields) -> Port:
        """The port, once it is made: at once while nothing else is under way, else with what comes together."""
        if not self.idle:
            return await self._joined(fields)
        self._alone = True
        try:
            return (await self._make([fields]))[0]
        finally:
            self._alone = False

    def _joined(self, fields: Fields) -> "asyncio.Future[Port]":
        """Who gives up waiting for it does not undo it."""
        where = (fields.network.id, fields.project)
        future: asyncio.Future[Port] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(where, []).append((fields, future))
        if where not in self._workers:
            self._workers[where] = asyncio.create_task(self._work(where))
        return future

    async def _work(self, where: tuple[Id, str]) -> None:
        """One group after the other: the next is what came meanwhile."""
        try:
            while asked := self._asked.pop(where, []):
                if left := asked[MOST:]:
                    self._asked[where] = left
                await self._run(asked[:MOST])
        except BaseException as error:  # the process is ending: nobody may wait for ever
            _fail(self._asked.pop(where, []), error)
            raise
        finally:
            del self._workers[where]

    async def _run(self, asked: list[Ask]) -> None:
        try:
            ports = await self._make([fields for fields, _ in asked])
        except AlcorError as error:
            if len(asked) > 1 and not isinstance(error, Unavailable):
                await asyncio.gather(*(self._run([one]) for one in asked))
            else:  # of what was perhaps made nothing may be made again
                _fail(asked, error)
        except BaseException as error:
            _fail(asked, error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), port in zip(asked, ports, strict=True):
                if not future.done():
                    future.set_result(port)


def _fail(asked: list[Ask], error: BaseException) -> None:
    for _, future in asked:
        if not future.done():
            future.set_exception(error)
