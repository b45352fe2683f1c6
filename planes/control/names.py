"""Where ports are found by their names, and whether all are: those of a cloud that is older than this index are in it
only when a check has walked every table (`alcor store check --fix`, or the one in the background).

Called by management (lists) and by the check. A list must never miss a port: until the index is whole nobody reads it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import cast

from planes.control.indexes import NAME_PARTS
from planes.store.protocol import Batch, Store, StoreError
from planes.store.schema import BY_NAME, LEASES, PORTS

log = logging.getLogger(__name__)

#: the row of `leases` that says that the index is whole; nobody holds it
_WHOLE = ("index by_name",)
#: ports of one name that are worth a look of their own; with more, most of a project has it
BOUND = 1000


class Names:
    """The index, as one instance reads it. `now`: µs."""

    def __init__(self, store: Store, now: Callable[[], int]) -> None:
        self._store = store
        self._now = now
        self._known = False

    async def open(self) -> None:
        """Before anything is created: in a new cloud the index is whole from the beginning."""
        if not await self._is_whole() and not await self._store.partitions(PORTS, limit=1):
            await self.whole()

    async def find(self, projects: Sequence[str], names: Sequence[str]) -> list[bytes] | None:
        """Ids of the projects' ports of these names, in order; None: the index cannot tell, or there are many."""
        if not await self._is_whole():
            return None
        where = [(project, name, part) for project in projects for name in set(names) for part in range(NAME_PARTS)]
        found: set[bytes] = set()
        for at in range(0, len(where), 4 * NAME_PARTS):
            some = where[at : at + 4 * NAME_PARTS]
            for read in await asyncio.gather(*(self._store.read(BY_NAME, key, limit=BOUND) for key in some)):
                found.update(cast(bytes, row[0]) for row in read.rows)
                if len(read.rows) == BOUND:
                    return None
        return sorted(found)

    async def _is_whole(self) -> bool:
        if not self._known:
            self._known = (await self._store.read(LEASES, _WHOLE)).exists
        return self._known

    async def whole(self) -> None:
        """From now on the index may be relied on: every port has been looked at."""
        try:
            await self._store.commit(Batch(LEASES, _WHOLE, None, {"until": 1, "owner": "", "done": self._now()}))
            self._known = True
        except StoreError as error:
            log.debug("index of names: %s", error)
