"""Whether security groups are still there while ports that name them are committed (rule D4).

Called by `ports` and `port_create`; many that ask at once share a read. Who deletes a group marks it first, then goes
to every bucket that the group leads to and raises its counter. So a look may begin as soon as a bucket was read and the
group leads to it: a commit that comes after the deleter fails, and looks anew. Otherwise it begins after the commit.
"""

import asyncio
from collections.abc import Iterable, Sequence

from planes.model.enums import Kind
from planes.model.errors import not_found
from planes.model.ids import Id, home_of, text
from planes.model.resources import NetworkState, Port
from planes.store.protocol import Store
from planes.store.schema import GROUPS

#: group → whether it stands
Looks = dict[Id, asyncio.Task[bool]]


class GroupLooks:
    """One instance's looks at groups."""

    def __init__(self, store: Store) -> None:
        self._store = store
        #: those that began in this turn of the loop
        self._begun: Looks = {}

    def begin(self, groups: Iterable[Id]) -> Looks:
        """Look at these; one that begins in this turn of the loop, for whoever asks in it, reads in the next."""
        return {group: self._begun.get(group) or self._start(group) for group in groups}

    async def stand(self, ports: Sequence[Port], looks: Looks | None = None) -> None:
        """Every group of these must still be there, as of the looks or as of now; raises SecurityGroupNotFound."""
        for group, look in (looks or self.begin({group for port in ports for group in port.groups})).items():
            if not (look.result() if look.done() else await asyncio.shield(look)):
                raise not_found("security_group", text(group))

    def _start(self, group: Id) -> asyncio.Task[bool]:
        loop = asyncio.get_running_loop()
        look = self._begun[group] = loop.create_task(self._look(group))
        look.add_done_callback(_seen)
        loop.call_soon(self._begun.pop, group, None)
        return look

    async def _look(self, group: Id) -> bool:
        """A plain read will do: a deletion that it does not see was acknowledged later, and goes on after that."""
        read = await self._store.read(GROUPS, (home_of(group),), prefix=(int(Kind.GROUP),))
        return bool(read.rows) and read.statics[1] != NetworkState.DELETING


def _seen(look: asyncio.Task[bool]) -> None:
    """Whoever asked may be gone."""
    if not look.cancelled():
        look.exception()
