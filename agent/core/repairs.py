"""What is not as it should be in the kernel, mostly since somebody else did it: noticed, mended, told.

Part of `AgentState`: says when the driver should look, has the plan put again what is damaged, and says how long it
was. It gives way, more and more, to who damages the same thing again and again.
"""

from collections.abc import Iterable, Iterator, Mapping

from agent.core.context import Context
from agent.core.instructions import Audit, Say
from agent.core.plan import Plan
from planes.data.driver import Spec, SpecKey

#: seconds between two looks
EVERY = 2.0
#: seconds for which a repair is told, and after which damage to the same thing is not "again"
TOLD = 60.0
#: repairs of one thing within that time before it has to wait
PATIENCE = 3


class Repairs:
    """Damage under repair, and what was repaired lately."""

    def __init__(self, context: Context, plan: Plan) -> None:
        self._context = context
        self._plan = plan
        self._auditing = False
        self._due = False
        #: damaged, since
        self._broken: dict[SpecKey, float] = {}
        #: how often lately, and when last; only of things that were damaged within `TOLD`
        self._often: dict[SpecKey, tuple[int, float]] = {}
        self._last = ""
        self._last_at = 0.0

    @property
    def busy(self) -> bool:
        """The driver is looking; it has one caller at a time."""
        return self._auditing

    def opened(self) -> None:
        """The driver is ready, and what it holds was just read."""
        self._auditing = self._due = False
        self._broken.clear()
        self._context.timers.set(("audit",), self._context.now + EVERY)

    def closed(self) -> None:
        """The driver is being opened anew."""
        self._auditing = False
        self._context.timers.cancel(("audit",))

    def due(self) -> None:
        """It is time to look, as soon as the driver is free."""
        self._due = True

    def look(self) -> None:
        """Have the driver look, if it is time and it is free."""
        if self._due and not self._auditing and self._plan.busy is None:
            self._due, self._auditing = False, True
            self._context.out.append(Audit(self._plan.applied))

    def audited(self, lost: Iterable[SpecKey], more: Mapping[SpecKey, Spec | None]) -> bool:
        """What the driver found. What is not as it should be anyway is not damage. True: something may be too much."""
        self._auditing = False
        self.settle()  # also what turned out to be wanted as it is
        context, now = self._context, self._context.now
        context.timers.set(("audit",), now + EVERY)
        self._often = {key: (n, at) for key, (n, at) in self._often.items() if now - at < TOLD}
        there = self._plan.more(more)
        surplus = [key for key in there if key not in self._plan.desired]
        found = self._plan.damaged(lost) + there
        for key in found:
            self._broken.setdefault(key, now)
            tries = self._often.get(key, (0, now))[0] + 1
            self._often[key] = (tries, now)
            if tries > PATIENCE:
                self._plan.put_off(key, "somebody damages it again and again", now, tries - PATIENCE)
        context.counters["damaged"] += len(found)
        context.counters["surplus"] += len(surplus)
        context.counters.update(f"damaged_{key[0]}" for key in found)
        for what in self._said(found):
            context.out.append(Say("warning", what))
        return bool(surplus)

    def _said(self, keys: Iterable[SpecKey]) -> Iterator[str]:
        """What is wrong with these."""
        surplus: list[SpecKey] = []
        damaged: list[SpecKey] = []
        for key in keys:
            (damaged if key in self._plan.desired else surplus).append(key)
        if damaged:
            yield f"{_names(damaged)} in the kernel: damaged by somebody else"
        if surplus:
            yield f"{_names(surplus)} in the kernel: too much, nobody here has put it or knows that it was put"

    def settle(self) -> None:
        """What is as it should be again was repaired."""
        done = [key for key in self._broken if self._plan.holds(key)]
        if not done:
            return
        now = self._context.now
        took = now - min(self._broken.pop(key) for key in done)
        self._context.counters["repaired"] += len(done)
        self._context.counters["repair_ms"] += round(took * 1000)
        self._last = f"{_names(done)} in the kernel: repaired {took * 1000:.0f} ms after it was found damaged"
        self._last_at = now
        self._context.out.append(Say("info", self._last))

    def reasons(self) -> Iterator[str]:
        """For health: what is damaged, and what was lately."""
        for what in self._said(self._broken):
            yield f"{what}, being repaired"
        ago = self._context.now - self._last_at
        if self._last and ago < TOLD:
            yield f"{self._last}, {ago:.0f} s ago"


def _names(keys: list[SpecKey]) -> str:
    """The first, and how many more."""
    kind, network, what = min(keys)
    first = f"{kind} {(what or network).hex()}"
    return first if len(keys) == 1 else f"{first} and {len(keys) - 1} more"
