"""What hosts answer: kept, then confirmed; and those who wait for it (rules S14, S15).

Called by the plane with decoded acks. All instances share the acks as a queue group and answer after storing; the
author of the goal, whose clients wait for it, is then told by `stored.<author>`. A host can only ack ports that are
bound to it: the status row carries its name, and only the row of the binding host counts.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

import msgspec

from observability.lags import Lags
from observability.stages import request_id
from planes.control import reads
from planes.control.changes import Changes
from planes.control.events import Teller
from planes.control.ground import Ground
from planes.control.publisher import Publisher
from planes.control.reads import Report, Status
from planes.control.release import Releases
from planes.goalstate.messages import Applied, Event, ObjectKind, Stored
from planes.goalstate.subjects import ANY
from planes.model.enums import Status as Word
from planes.model.ids import common_text, is_ours, place_of, text
from planes.model.resources import HostState, Port, PortState
from planes.store.protocol import Store, Write
from planes.store.schema import PORT_STATUS

log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode

#: requests that may wait for hosts at once
WAITERS = 10_000
#: µs that a revision may be ahead of this instance's clock; clocks have been known to jump
FUTURE = 86_400_000_000


class Acks:
    """Status of ports, and who waits for it."""

    def __init__(
        self,
        store: Store,
        ground: Ground,
        publisher: Publisher,
        releases: Releases,
        changes: Changes,
        teller: Teller,
        now: Callable[[], int],
    ) -> None:
        self._store = store
        self._ground = ground
        self._publisher = publisher
        self._releases = releases
        self._changes = changes
        self._teller = teller
        self._now = now
        self._waiters: dict[bytes, set[asyncio.Event]] = {}
        self.lags = Lags()
        self.counters = {"acks": 0}

    async def store(self, host: str, items: Iterable[Applied], author: str = "") -> Stored | None:
        """Keep what a host answered, then do what waited for it. Raises StoreError: the host will ask again.

        `author`: the instance that the host names, empty for this one; another is to be told what is returned.
        """
        heard = self._now()
        # Revisions follow the clock: one of the far future would answer for all that is still to come.
        latest, kind = heard + FUTURE, int(ObjectKind.PORT)
        taken = [item for item in items if item.kind == kind and item.rev < latest and is_ours(item.id)]
        well = _encode(Report("", heard))
        await self._store.write([_write(host, item, heard, well) for item in taken])
        stored = self._now()
        self.counters["acks"] += len(taken)
        self.lags.record(host, [heard - item.sent for item in taken if item.sent])
        for item in taken:
            if not item.error and not self._releases.is_settled(item.id, item.rev):
                await self._releases.let_go(item.id, host, item.rev)
        said = Stored(host, tuple(taken), heard, stored)
        self.kept(said)
        if author == ANY:
            await self._tell_all(host, taken)
        return said if taken and author else None

    def kept(self, said: Stored) -> None:
        """Acks to this instance's goals are stored, by it or by another: those who waited for them go on."""
        for item in said.items:
            self._publisher.acked(said.host, (item.kind, item.scope, item.id), item.rev)
            answered = self._changes.answered(said.host, item, said.heard, said.stored)
            if answered is not None:
                change, port = answered
                self._tell(port, said.host, item, said.stored, change.id, said.stored - change.begun)
            for event in self._waiters.get(item.id, ()):
                event.set()

    @property
    def waiting(self) -> int:
        """Requests that wait here."""
        return sum(map(len, self._waiters.values()))

    async def _tell_all(self, host: str, items: Sequence[Applied]) -> None:
        """Status of ports that a host took by itself, as after its restart: nobody here knows them."""
        ports = await reads.ports(self._store, [item.id for item in items])
        for item in items:
            port = ports.get(item.id)
            if port is not None and port.host == host:
                self._tell(port, host, item, self._now(), item.change, 0)

    def _tell(self, port: Port, host: str, item: Applied, at: int, change: bytes, took: int) -> None:
        """A port's status has changed; of one that is being deleted there is nothing more to say."""
        if port.state == PortState.DELETING:
            return
        status = word(port, Status(item.rev, item.error, 0))
        event = Event(
            text(port.id),
            port.rev,
            at,
            port.name,
            status,
            item.error,
            common_text(port.network),
            host,
            request_id(change) if change else "",
            took,
        )
        self._teller.tell(port.project, "port", "status", (event,))

    async def wait(self, ids: Iterable[bytes], seconds: float) -> None:
        """Return when every port is settled (ACTIVE, ERROR, DOWN or gone), at most `seconds` later."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        for id_ in ids:
            if len(self._waiters) >= WAITERS:
                return
            event = asyncio.Event()
            self._waiters.setdefault(id_, set()).add(event)
            try:
                while not await self._is_settled(id_):
                    left = deadline - loop.time()
                    if left <= 0:
                        return
                    try:
                        async with asyncio.timeout(min(left, 1.0)):
                            await event.wait()
                    except TimeoutError:
                        pass
                    event.clear()
            finally:
                self._waiters[id_].discard(event)
                if not self._waiters[id_]:
                    del self._waiters[id_]

    async def _is_settled(self, id_: bytes) -> bool:
        port = await reads.port(self._store, id_)
        if port is None:
            return True
        if port.state == PortState.DELETING or port.leaving:
            return False
        return word(port, await reads.status(self._store, port)) != Word.BUILD


def word(port: Port, status: Status | None) -> str:
    """Neutron's status of a port (rule S14)."""
    if not port.host or not port.admin_up:
        return Word.DOWN
    if status is not None and status.applied >= port.goal_rev and not port.leaving:
        return Word.ERROR if status.error else Word.ACTIVE
    return Word.BUILD


def reason(port: Port, status: Status | None, state: int | None, alive: bool) -> str:
    """Why a port is not ACTIVE, in words; empty when it is. `state`: its host's, None when the host is unknown."""
    said = word(port, status)
    if said == Word.ERROR and status is not None:
        return status.error
    if said == Word.DOWN:
        return "The port has no host." if not port.host else "The port is administratively down."
    if said == Word.ACTIVE:
        return ""
    if port.leaving:
        return f"Host {port.leaving} has not let go of the port yet."
    if state is None:
        return f"Host {port.host} is unknown: no agent of that name has registered."
    if state == HostState.PLANNED:
        return f"Host {port.host} is planned: its agent has not registered yet."
    if not alive:
        return f"The agent of host {port.host} does not answer."
    return f"Host {port.host} is programming the port."


def _write(host: str, item: Applied, now: int, well: bytes) -> Write:
    """`well`: the body that says so."""
    columns = (item.rev, 1, _encode(Report(item.error, now))) if item.error else (item.rev, 0, well)
    # The revision leads, so that a late ack of an old one never hides a newer; within one revision, time decides.
    stamp = (item.rev << 12) + min(max(now - item.rev, 0) // 50_000, 4095)
    return Write(PORT_STATUS, place_of(item.id), (item.id, host), columns, stamp)
