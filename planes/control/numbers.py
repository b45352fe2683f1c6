"""What becomes of the numbers of group sets: they rise until all were spent, then one that rested is given away (I2).

`give` is called by management for a set that has no number, or whose number is on its way out. `Numbers` is called by
the daily check: in a network whose numbers are nearly spent it finds those that no port has. A number is *doubted* in
the network's partition first; then every bucket is made to require that its creators know that, and is looked at in the
same batch; what no bucket has is certainly nobody's, so hosts are told that it means nothing, and it *rests*. After
that, looked at once more, it is *free*. Whoever wants the old set before another has the number takes it back by
compare-and-set. A number must never change hands without all of that, and never on what an instance remembers.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from msgspec.structs import replace

from planes.control import fence
from planes.control.ground import Ground
from planes.model.enums import Kind
from planes.model.errors import AlcorError
from planes.model.ids import Id, text
from planes.model.resources import AddressState, Identity, Network, NetworkState, NumberState
from planes.store.partitions import BATCH, Apply
from planes.store.protocol import Store
from planes.store.rows import decode
from planes.store.schema import NETWORKS, PORTS
from planes.store.views import Draft, View

log = logging.getLogger(__name__)

MAX_IDENTITY = 65535
#: share of the numbers from which on the unused ones are looked for, and so many at most are kept for new sets
NEARLY, SPARE = 0.9, 4096

Rows = Mapping[bytes, Identity]
Pause = Callable[[], Awaitable[None]]
#: a row of another state, at a revision
Into = Callable[[Identity, int], Identity]


def give(draft: Draft, key: bytes, groups: tuple[Id, ...], rev: int) -> int | None:
    """In a network's draft: the number of a set, which from now on is used; None: there is none left."""
    present: Identity | None = draft.get(Kind.IDENTITY, key)
    if present is not None:
        if present.state != NumberState.USED:
            draft.put(Kind.IDENTITY, key, _used(present, rev))
        return present.number
    rows = list(draft.all(Kind.IDENTITY))
    number = 1 + max((row.number for _, row in rows), default=0)
    if number > MAX_IDENTITY:
        free = [(row.since, row.number, old) for old, row in rows if row.state == NumberState.FREE]
        if not free:
            return None
        _, number, old = min(free)
        draft.drop(Kind.IDENTITY, old)
    draft.put(Kind.IDENTITY, key, Identity(number, groups, rev))
    return number


def _used(row: Identity, rev: int) -> Identity:
    """It means what it meant; hosts that were told otherwise are told anew, by a higher revision."""
    told = rev if row.state >= NumberState.RESTING else row.rev
    return replace(row, rev=told, state=NumberState.USED, since=0)


def _doubted(row: Identity, rev: int) -> Identity:
    return replace(row, state=NumberState.DOUBTED, since=rev)


def _free(row: Identity, _: int) -> Identity:
    return replace(row, state=NumberState.FREE)


class Numbers:
    """One instance's. `now` is the store's time; `rest`: µs."""

    def __init__(self, store: Store, ground: Ground, now: Callable[[], int], rest: int) -> None:
        self._store = store
        self._ground = ground
        self._now = now
        self._rest = rest

    async def tend(self, number: int, pause: Pause) -> None:
        """Bring the numbers of one network a step further, if nearly all are spent. `pause` is awaited now and then.

        Safe beside another instance that does the same: each step is taken by rows that still are what was read.
        """
        read = await self._store.read(NETWORKS, (number,), prefix=(int(Kind.IDENTITY),))
        if len(read.rows) < NEARLY * MAX_IDENTITY:
            return
        view = await self._ground.network_view(number, fresh=True)
        network: Network | None = view.get(Kind.NETWORK)
        if network is None or view.statics.get("state") == NetworkState.DELETING:
            return
        try:
            await self._look(network, view, pause)
            await self._withdraw(network, pause)
        except AlcorError as error:
            log.warning("numbers of network %s are looked at later: %s", text(network.id), error)

    async def _look(self, network: Network, view: View, pause: Pause) -> None:
        """What ports have is used; of the rest, enough is doubted, and what has rested is free."""
        used: set[int] = set()
        rows: Rows = dict(view.all(Kind.IDENTITY))
        for bucket in _buckets(view):
            for kind in (Kind.PORT, Kind.IP):  # an address without a row has its port's number
                read = await self._store.read(PORTS, (network.number, bucket), prefix=(int(kind),))
                used |= _numbers(kind, (decode(kind, row[3]) for row in read.rows))
            await pause()
        unused: dict[int, dict[bytes, Identity]] = {state: {} for state in NumberState}
        for key, row in sorted(rows.items(), key=lambda item: item[1].rev):
            if row.number not in used:
                unused[row.state][key] = row
        back = {k: row for k, row in rows.items() if row.number in used and row.state >= NumberState.RESTING}
        if count := await self._turn(network, back, _used, pause):
            # By an instance of a version that knows no states.
            log.warning("network %s: %d numbers are used though they rested", text(network.id), count)
        rested = self._now() - self._rest
        ripe = {key: row for key, row in unused[NumberState.RESTING].items() if row.since <= rested}
        freed = await self._turn(network, ripe, _free, pause)
        idle = unused.pop(NumberState.USED)
        room = max(0, SPARE - sum(map(len, unused.values())))
        await self._turn(network, dict(islice(idle.items(), room)), _doubted, pause)
        if freed:
            log.info("network %s: %d numbers may be given to other sets", text(network.id), freed)

    async def _withdraw(self, network: Network, pause: Pause) -> None:
        """What is doubted and certainly nobody's rests from now on.

        The view is read after the doubts were written; a bucket that is registered later is committed into only by
        those who know the network as it is then (`port_plans.numbered`).
        """
        view = await self._ground.network_view(network.number, fresh=True)
        doubted: Rows = {k: row for k, row in view.all(Kind.IDENTITY).items() if row.state == NumberState.DOUBTED}
        if not doubted:
            return
        used: set[int] = set()
        look = _fenced(view.top)
        for bucket in _buckets(view):
            used |= (await self._ground.change_bucket(network.id, network.number, bucket, look)).value
            await pause()

        def resting(row: Identity, rev: int) -> Identity:
            return replace(row, rev=rev, state=NumberState.RESTING, since=self._now())

        await self._turn(network, {k: row for k, row in doubted.items() if row.number in used}, _used, pause)
        nobodys = {k: row for k, row in doubted.items() if row.number not in used}
        if count := await self._turn(network, nobodys, resting, pause):
            log.info("network %s: %d numbers rest, which no port has", text(network.id), count)

    async def _turn(self, network: Network, rows: Rows, into: Into, pause: Pause) -> int:
        """Change the state of those of these rows that still are what was read, a batch at a time; says how many."""
        left, count = iter(rows.items()), 0
        while some := list(islice(left, BATCH)):
            count += (await self._ground.change_network(network.id, network.number, _turned(some, into))).value
            await pause()
        return count


def _turned(rows: Iterable[tuple[bytes, Identity]], into: Into) -> Apply[int]:
    def apply(draft: Draft, rev: int) -> int:
        same = [(key, row) for key, row in rows if draft.get(Kind.IDENTITY, key) == row]
        for key, row in same:
            draft.put(Kind.IDENTITY, key, into(row, rev))
        return len(same)

    return apply


def _fenced(rev: int) -> Apply[set[int]]:
    """Raise a bucket's counter and what it requires, and say which numbers it holds, in one batch."""
    require = fence.require(rev)

    def apply(draft: Draft, own: int) -> set[int]:
        require(draft, own)
        ports, addresses = [[row for _, row in draft.all(kind)] for kind in (Kind.PORT, Kind.IP)]
        return _numbers(Kind.PORT, ports) | _numbers(Kind.IP, addresses)

    return apply


def _numbers(kind: Kind, rows: Iterable[Any]) -> set[int]:
    """Those that ports hold, also those that go, and those of their addresses, which hosts were told."""
    return {row.identity for row in rows if kind == Kind.PORT or row.state != AddressState.FREE}


def _buckets(view: View) -> list[int]:
    return [int.from_bytes(key, "big") for key in view.all(Kind.BUCKET)]
