"""What the driver should hold against what it does hold, and what to hand it next.

Called by `AgentState`. One entry per key, the newest wins, so what waits is bounded by what exists (rule S21). It knows
nothing of why something is wanted. What an earlier process left behind is dropped only when somebody says so (S6).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from agent.core.instructions import Program
from planes.data.driver import ORDER, Spec, SpecKey

#: seconds before something that failed is tried again, first and most
RETRY_FIRST, RETRY_MOST = 1.0, 60.0
#: a kernel takes so much longer for one of these than for a route or a member; the driver has one caller at a time, so
#: that the next program must not be far away
COST = {"port": 8, "network": 64}
#: of a program that brings something, this part at most removes: who waits for a port does not wait for removals
SHARE = 4


#: what a program is made of: by key what to put, None: to drop
Chosen = dict[SpecKey, Spec | None]


class Failure:
    __slots__ = ("due", "text", "tries")

    def __init__(self, text: str, tries: int, due: float) -> None:
        self.text = text
        self.tries = tries
        self.due = due


class Plan:
    """Wanted, held and what differs."""

    def __init__(self, backoff: Callable[[int, float, float], float]) -> None:
        self._backoff = backoff
        self.desired: dict[SpecKey, Spec] = {}
        #: None: it exists, what it looks like is unknown
        self.applied: dict[SpecKey, Spec | None] = {}
        self.failed: dict[SpecKey, Failure] = {}
        #: held since before this process, and not wanted so far
        self.leftover: set[SpecKey] = set()
        self.busy: Program | None = None
        #: what the driver is working on, drops (None) before puts: nobody knows what it holds of these
        self._at_work: Chosen = {}
        #: what differs, by kind, in the order in which it came: to be put, as desired, and to be dropped
        self._to_put: dict[str, Chosen] = {kind: {} for kind in ORDER}
        self._to_drop: dict[str, Chosen] = {kind: {} for kind in ORDER}
        #: when something that failed should be tried again; may be too early, never too late
        self.retry_at: float | None = None

    def _mark(self, key: SpecKey) -> None:
        spec = self.desired.get(key)
        there, elsewhere = (self._to_put, self._to_drop) if spec is not None else (self._to_drop, self._to_put)
        there[key[0]][key] = spec
        elsewhere[key[0]].pop(key, None)

    def want(self, key: SpecKey, spec: Spec | None) -> None:
        """From now on this should exist, or not."""
        if self.desired.get(key) == spec:
            return
        if spec is None:
            del self.desired[key]
        else:
            self.desired[key] = spec
            self.leftover.discard(key)
        self.failed.pop(key, None)
        self._mark(key)

    def want_all(self, kind: str, specs: Mapping[SpecKey, Spec]) -> None:
        """From now on these of one kind should exist; many at once."""
        news = {key: spec for key, spec in specs.items() if self.desired.get(key) != spec}
        self.desired.update(news)
        self._to_put[kind].update(news)
        if self.leftover:
            self.leftover.difference_update(news)
        for known in (self._to_drop[kind], self.failed):
            for key in news if known else ():
                known.pop(key, None)

    def opened(self, held: Mapping[SpecKey, Spec | None]) -> None:
        """The driver is ready and holds this; None: of unknown content."""
        self.applied = dict(held)
        self.leftover = held.keys() - self.desired.keys()
        self.failed.clear()
        self.busy, self._at_work = None, {}
        for key in self.desired:
            self._mark(key)

    def give_up(self, keys: Iterable[SpecKey]) -> None:
        """Nothing wants these leftovers: they may go."""
        for key in keys:
            self.leftover.discard(key)
            if key not in self.desired:
                self._mark(key)

    def next(self, limit: int) -> Program | None:
        """What to hand to the driver now; None while it is busy or nothing differs."""
        if self.busy is not None:
            return None
        fresh = self._choose(self._to_put, ORDER, limit)
        drops = self._choose(self._to_drop, ORDER[::-1], limit // SHARE if fresh else limit)
        if fresh or drops:
            self.busy = Program(tuple(cast("dict[SpecKey, Spec]", fresh).values()), tuple(drops))
            self._at_work = drops | fresh
        return self.busy

    def _choose(self, waiting: Mapping[str, Chosen], kinds: Iterable[str], room: int) -> Chosen:
        """Up to `room` objects, kind by kind, where a slow one counts for many; one at least."""
        chosen: Chosen = {}
        for kind in kinds:
            cost = COST.get(kind, 1)
            taken = self._take(waiting[kind], room // cost or not chosen) if waiting[kind] else {}
            room -= len(taken) * cost
            chosen.update(taken)
        return chosen

    def _take(self, waiting: Chosen, limit: int) -> Chosen:
        """Remove from what waits the first `limit` that differ, and those met on the way that do not."""
        taken: Chosen = {}
        met: list[SpecKey] = []
        applied = self.applied
        for key, spec in waiting.items():
            if len(taken) >= limit:
                break
            met.append(key)
            if applied.get(key) != spec if spec is not None else key in applied:
                taken[key] = spec
        if len(met) == len(waiting):
            waiting.clear()  # forgets the places of what was removed, which would be walked over each time
        for key in met if waiting else ():
            del waiting[key]
        return taken

    def done(self, errors: Mapping[SpecKey, str], now: float) -> list[SpecKey]:
        """The driver is done with the last program. Returns its keys."""
        program, self.busy = self.busy, None
        work, self._at_work = self._at_work, {}
        if program is None:
            return []
        if not errors and not self.failed:  # nearly always
            self.applied.update(work)
            for key in program.drops:
                del self.applied[key]
            return list(work)
        recovered: set[bytes] = set()
        room = False
        for key, spec in work.items():
            if key in errors:
                self._fail(key, errors[key], now)
                continue
            if self.failed.pop(key, None) is not None and key[0] in ("network", "members", "policy", "peer"):
                recovered.add(key[1])
            if spec is None:
                self.applied.pop(key, None)
                room = room or key[0] == "network"
            else:
                self.applied[key] = spec
        for key, failure in self.failed.items():
            if key[1] in recovered or (room and key[0] == "network"):  # what it may have needed is there now
                failure.due = now
        self._set_retry()
        return list(work)

    def _fail(self, key: SpecKey, text: str, now: float) -> None:
        tries = self.failed[key].tries + 1 if key in self.failed else 0
        self.applied[key] = None  # who knows how far it came
        self.failed[key] = Failure(text, tries, now + self._backoff(tries, RETRY_FIRST, RETRY_MOST))

    def retry(self, now: float) -> None:
        """Try again what failed and has waited long enough."""
        for key, failure in self.failed.items():
            if failure.due <= now:
                failure.due = now + RETRY_MOST
                self._mark(key)
        self._set_retry()

    def _set_retry(self) -> None:
        self.retry_at = min((failure.due for failure in self.failed.values()), default=None)

    def damaged(self, lost: Iterable[SpecKey]) -> list[SpecKey]:
        """These may be no longer as applied. Returns those that were, and are put again."""
        named = set(lost)
        whole = {key[1] for key in named if key[0] == "network"}
        if whole:
            named.update(key for key in self.applied if key[1] in whole)
        found = [key for key in named if key in self.desired and self.holds(key)]
        for key in found:
            self.applied[key] = None
            self._mark(key)
        return found

    def more(self, there: Mapping[SpecKey, Spec | None]) -> list[SpecKey]:
        """The driver holds these too, or otherwise than was known. Returns those that it is not known to be right in.

        What nobody wants is a leftover like those of a former life: dropped when somebody says so, and not before.
        """
        found = []
        for key, spec in there.items():
            if key in self.applied and self.applied[key] == spec:
                continue
            self.applied[key] = spec
            if key not in self.desired:
                self.leftover.add(key)
                found.append(key)
            elif spec is None or self.desired[key] != spec:
                self._mark(key)
                found.append(key)
        return found

    def put_off(self, key: SpecKey, why: str, now: float, tries: int) -> None:
        """Not at once, but after a while."""
        self._to_put[key[0]].pop(key, None)
        self.leftover.discard(key)
        self.failed[key] = Failure(why, tries, now + self._backoff(tries, RETRY_FIRST, RETRY_MOST))
        self._set_retry()

    def error(self, keys: Iterable[SpecKey]) -> str:
        """Why one of these cannot be brought about, as far as was tried."""
        return next((self.failed[key].text for key in keys if key in self.failed), "")

    def holds(self, key: SpecKey) -> bool:
        """The driver has exactly what is wanted, and is not changing it."""
        if key in self._at_work:
            return False
        spec = self.desired.get(key)
        return key not in self.applied if spec is None else self.applied.get(key) == spec

    def waiting(self) -> int:
        """How many things differ and are not being worked on."""
        return sum(len(keys) for each in (self._to_put, self._to_drop) for keys in each.values())

    def validate(self) -> None:
        """Invariants, for tests: whatever differs is known to differ."""
        for key in self.desired.keys() | self.applied.keys():
            known = key in self._at_work or key in self.failed or key in self.leftover
            known = known or key in self._to_put[key[0]] or key in self._to_drop[key[0]]
            assert self.holds(key) or known, key
        assert all(self.desired[key] is spec for waiting in self._to_put.values() for key, spec in waiting.items())
        assert not self.leftover & self.desired.keys()
