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

#: ports made in one go: what the loop's thread does without a pause
MOST = 64

Ask = tuple[Fields, "asyncio.Future[Port]"]


class PortGather:
    """Those of one instance. `make`: all of some ports, in their order, or none."""

    def __init__(self, make: Callable[[Sequence[Fields]], Awaitable[list[Port]]]) -> None:
        self._make = make
        #: by network and project: what was asked for in this turn of the loop
        self._asked: dict[tuple[Id, str], list[Ask]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone = False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not (self._alone or self._tasks or self._asked)

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
        loop = asyncio.get_running_loop()
        where = (fields.network.id, fields.project)
        asked = self._asked.get(where)
        if asked is None or len(asked) >= MOST:
            asked = self._asked[where] = []
            loop.call_soon(self._begin, where, asked)
        future: asyncio.Future[Port] = loop.create_future()
        asked.append((fields, future))
        return future

    def _begin(self, where: tuple[Id, str], asked: list[Ask]) -> None:
        if self._asked.get(where) is asked:
            del self._asked[where]
        task = asyncio.create_task(self._run(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, asked: list[Ask]) -> None:
        try:
            ports = await self._make([fields for fields, _ in asked])
        except AlcorError as error:
            if len(asked) > 1 and not isinstance(error, Unavailable):
                await asyncio.gather(*(self._run([one]) for one in asked))
            else:  # of what was perhaps made nothing may be made again
                _fail(asked, error)
        except Exception as error:
            _fail(asked, error)
        except BaseException as error:  # the process is ending: nobody may wait for ever
            _fail(asked, error)
            raise
        else:
            for (_, future), port in zip(asked, ports, strict=True):
                if not future.done():
                    future.set_result(port)


def _fail(asked: list[Ask], error: BaseException) -> None:
    for _, future in asked:
        if not future.done():
            future.set_exception(error)
