"""The revision map: of each key the highest revision seen, present or tombstone (rules S1, S2, S6).

Called by `AgentState` with whatever comes by message or page. It never looks into an object beyond key and revision.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum

from msgspec import Struct

from agent.core.events import Scope, scope_of
from planes.goalstate.messages import WHOLE, Gone, Key, Neighbour, Object, ObjectKind, What
from planes.model.addresses import bucket


class Verdict(Enum):
    NEWER = 1  # it counts
    SAME = 2  # seen before
    OLDER = 3  # superseded
    FULL = 4  # no room


def part_of(key: Key) -> int | None:
    """Whose counter its revision is of: a bucket's, the network's own, or (peers, ports, groups) no part's."""
    if key[0] == ObjectKind.NEIGHBOUR:
        return bucket(key[2])
    return WHOLE if key[0] in (ObjectKind.NETWORK, ObjectKind.SUBNET, ObjectKind.IDENTITY) else None


class Entry(Struct, eq=False, gc=False):
    """`item` is None for a tombstone. `swept`: nobody deleted it, a whole snapshot did not have it.

    `gen`: the latest pull that had begun when it was last heard of. `named`: the latest one whose pages had it.
    """

    rev: int
    gen: int
    named: int
    item: Object | None = None
    died: float = 0.0
    swept: bool = False


#: of one kind, by id
Entries = dict[bytes, Entry]


class Objects:
    """All that was received, by scope."""

    def __init__(self, most: int, tombstone_life: float) -> None:
        self._most = most
        self._life = tombstone_life
        self._scopes: dict[Scope, dict[int, Entries]] = {}
        self._graves: deque[tuple[float, Key]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, key: Key) -> Entry | None:
        return self._entries(scope_of(key), key[0]).get(key[2])

    def _entries(self, scope: Scope, kind: int) -> Entries:
        kinds = self._scopes.get(scope)
        return kinds.get(kind, {}) if kinds is not None else {}

    def _all(self, scope: Scope) -> list[Entry]:
        return [entry for entries in self._scopes.get(scope, {}).values() for entry in entries.values()]

    def _place(self, scope: Scope, kind: int) -> Entries:
        """The same, to add to."""
        return self._scopes.setdefault(scope, {}).setdefault(kind, {})

    def present(self, scope: Scope, kind: int) -> Iterator[Object]:
        """What exists of a kind in a scope."""
        return (entry.item for entry in self._entries(scope, kind).values() if entry.item is not None)

    def everything(self) -> list[Object]:
        """What exists."""
        return [item for scope, kinds in self._scopes.items() for kind in kinds for item in self.present(scope, kind)]

    def begin(
        self, network: bytes, items: Iterable[Object], gen: int, named: int
    ) -> tuple[list[Neighbour], list[Object]]:
        """Take those of a page's objects that are a network's neighbours of which nothing is known: nearly all of a
        first snapshot. These, and the others, which have to be offered."""
        entries = self._place((What.NETWORK, network), ObjectKind.NEIGHBOUR)
        room = self._most - self._count
        taken: list[Neighbour] = []
        others: list[Object] = []
        for item in items:
            if isinstance(item, Neighbour) and item.network == network and item.ip not in entries and len(taken) < room:
                entries[item.ip] = Entry(item.rev, gen, named, item)
                taken.append(item)
            else:
                others.append(item)
        self._count += len(taken)
        return taken, others

    def offer(self, item: Object, gen: int, now: float, named: int = 0) -> Verdict:
        """Take an object or tombstone if it is newer; either way it was heard of after pull `gen` had begun.

        `named`: the pull whose page had it; 0: a message did. What was swept comes back with an equal revision only by
        a later page: pages are read from the store.
        """
        key = item.key
        entries = self._place(scope_of(key), key[0])
        entry = entries.get(key[2])
        if entry is None:
            if self._count >= self._most:
                return Verdict.FULL
            entry = entries[key[2]] = Entry(item.rev, gen, named)
            self._count += 1
        else:
            entry.gen, entry.named = max(entry.gen, gen), max(entry.named, named)
            revived = entry.swept and named and item.rev == entry.rev
            if item.rev <= entry.rev and not revived:
                return Verdict.SAME if item.rev == entry.rev else Verdict.OLDER
        entry.rev = item.rev
        entry.swept = False
        if isinstance(item, Gone):
            self._bury(key, entry, now)
        else:
            entry.item = item
        return Verdict.NEWER

    def sweep(
        self, scope: Scope, gen: int, now: float, tops: Mapping[int, int], part: int | None = None
    ) -> list[Object]:
        """Remove what pull `gen` showed not to exist; says what. `part`: only what that part counts.

        It did not name it, and it was either not heard of since the pull began or is no newer than what the pull
        read of its part (`tops`): then whatever was heard of it has been deleted meanwhile.
        """
        gone: list[Object] = []
        for entry in self._all(scope):
            if entry.item is None or entry.named >= gen:
                continue
            key = entry.item.key
            own = part_of(key)
            if part is not None and own != part:
                continue
            if entry.gen >= gen and (own is None or entry.rev > tops.get(own, 0)):
                continue
            gone.append(entry.item)
            entry.swept = True
            self._bury(key, entry, now)
        return gone

    def forget(self, scope: Scope) -> list[Object]:
        """Drop a scope that is no longer of interest; says what existed there."""
        entries = self._all(scope)
        self._scopes.pop(scope, None)
        self._count -= len(entries)
        return [entry.item for entry in entries if entry.item is not None]

    def expire(self, now: float) -> None:
        """Forget tombstones that are old enough."""
        while self._graves and self._graves[0][0] + self._life <= now:
            died, key = self._graves.popleft()
            entries = self._entries(scope_of(key), key[0])
            entry = entries.get(key[2])
            if entry is not None and entry.item is None and entry.died == died:
                del entries[key[2]]
                self._count -= 1

    def expires(self) -> float | None:
        """When the next tombstone is old enough."""
        return self._graves[0][0] + self._life if self._graves else None

    def _bury(self, key: Key, entry: Entry, now: float) -> None:
        entry.item = None
        entry.died = now
        self._graves.append((now, key))

    def validate(self) -> None:
        """Invariants, for tests."""
        assert self._count == sum(len(entries) for kinds in self._scopes.values() for entries in kinds.values())
        for scope, kinds in self._scopes.items():
            for kind, entries in kinds.items():
                for id_, entry in entries.items():
                    item = entry.item
                    assert item is None or (scope_of(item.key) == scope and item.rev == entry.rev)
                    assert item is None or (item.key[0], item.key[2]) == (kind, id_)
