"""Whether security groups are still there after ports that name them were committed (rule D4).

Called by `ports` after each commit; many that ask at once share a read.
"""

import asyncio
from collections.abc import Sequence

from planes.model.enums import Kind
from planes.model.errors import not_found
from planes.model.ids import Id, home_of, text
from planes.model.resources import NetworkState, Port
from planes.store.protocol import Store
from planes.store.schema import GROUPS


class GroupLooks:
    """One instance's looks at groups."""

    def __init__(self, store: Store) -> None:
        self._store = store
        #: those that began in this turn of the loop; None: cut off
        self._looks: dict[Id, asyncio.Future[bool | None]] = {}

    async def stand(self, ports: Sequence[Port]) -> None:
        """After the commit: every group must still be there (rule D4); raises SecurityGroupNotFound."""
        for group in {group for port in ports for group in port.groups}:
            look = self._looks.get(group)
            seen = None
            if look is not None:
                seen = look.result() if look.done() else await asyncio.shield(look)
            if not (await self._look(group) if seen is None else seen):
                raise not_found("security_group", text(group))

    async def _look(self, group: Id) -> bool:
        """What is seen counts for all who ask in this turn of the loop: their commits came before the look began.

        A plain read will do: a deletion that it does not see was acknowledged later, and looks for ports after that.
        """
        loop = asyncio.get_running_loop()
        look = self._looks[group] = loop.create_future()
        loop.call_soon(self._looks.pop, group, None)
        stands: bool | None = None
        try:
            read = await self._store.read(GROUPS, (home_of(group),), prefix=(int(Kind.GROUP),))
            stands = bool(read.rows) and read.statics[1] != NetworkState.DELETING
            return stands
        finally:
            look.set_result(stands)
