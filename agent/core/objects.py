"""The revision map: of each key the highest revision seen, present or tombstone (rules S1, S2, S6).

Called by `AgentState` with whatever comes by message or page. It never looks into an object beyond key and revision.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum

from agent.core.events import Scope, scope_of
from planes.goalstate.messages import WHOLE, Gone, Key, Object, ObjectKind
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


class Entry:
    """`item` is None for a tombstone. `swept`: nobody deleted it, a whole snapshot did not have it.

    `gen`: the latest pull that had begun when it was last heard of. `named`: the latest one whose pages had it.
    """

    __slots__ = ("died", "gen", "item", "named", "rev", "swept")

    def __init__(self, rev: int, gen: int, named: int) -> None:
        self.rev = rev
        self.gen = gen
        self.named = named
        self.item: Object | None = None
        self.died = 0.0
        self.swept = False


class Objects:
    """All that was received, by scope."""

    def __init__(self, most: int, tombstone_life: float) -> None:
        self._most = most
        self._life = tombstone_life
        self._scopes: dict[Scope, dict[Key, Entry]] = {}
        self._graves: deque[tuple[float, Key]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, key: Key) -> Entry | None:
        return self._scopes.get(scope_of(key), {}).get(key)

    def present(self, scope: Scope) -> Iterator[Object]:
        """What exists in a scope."""
        return (entry.item for entry in self._scopes.get(scope, {}).values() if entry.item is not None)

    def everything(self) -> list[Object]:
        """What exists."""
        return [item for scope in self._scopes for item in self.present(scope)]

    def offer(self, item: Object, gen: int, now: float, named: int = 0) -> Verdict:
        """Take an object or tombstone if it is newer; either way it was heard of after pull `gen` had begun.

        `named`: the pull whose page had it; 0: a message did. What was swept comes back with an equal revision only by
        a later page: pages are read from the store.
        """
        key = item.key
        where = scope_of(key)
        scope = self._scopes.get(where)
        if scope is None:
            scope = self._scopes[where] = {}
        entry = scope.get(key)
        if entry is None:
            if self._count >= self._most:
                return Verdict.FULL
            entry = scope[key] = Entry(item.rev, gen, named)
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
        for key, entry in self._scopes.get(scope, {}).items():
            if entry.item is None or entry.named >= gen:
                continue
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
        entries = self._scopes.pop(scope, {})
        self._count -= len(entries)
        return [entry.item for entry in entries.values() if entry.item is not None]

    def expire(self, now: float) -> None:
        """Forget tombstones that are old enough."""
        while self._graves and self._graves[0][0] + self._life <= now:
            died, key = self._graves.popleft()
            scope = self._scopes.get(scope_of(key), {})
            entry = scope.get(key)
            if entry is not None and entry.item is None and entry.died == died:
                del scope[key]
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
        assert self._count == sum(len(scope) for scope in self._scopes.values())
        for scope, entries in self._scopes.items():
            for key, entry in entries.items():
                assert scope_of(key) == scope
                assert entry.item is None or (entry.item.key == key and entry.item.rev == entry.rev)
