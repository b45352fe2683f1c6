"""What an agent can tell of itself, as metrics: read from the core's state, and counted at its one door.

Made by `agent.runtime`, which shows it every event and every instruction; read for each scrape and export. It decides
nothing and keeps nothing that grows.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent.core.events import Answered, Audited, Event, Programmed, Tag, Woke
from agent.core.instructions import Instruction, Program, Request
from agent.core.state import AgentState
from observability import families
from observability.latency import Counts
from observability.metrics import Metric
from planes.data.driver import ORDER

#: kinds of objects, the slowest to program first
_SLOWEST = ("network", "port", "policy", "members", "peer", "remote")
_KERNEL = ("nft", "netlink")


class Meter:
    """What goes in and out of one agent's core. `now_us`: wall clock in µs."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._asked: dict[Tag, int] = {}
        self._program: Program | None = None
        self._driver: Mapping[str, int] = {}
        self._drops: Mapping[str, int] = {}
        self.programs: dict[str, Counts] = {}
        self.programmed: Counter[tuple[str, str]] = Counter()
        self.requests: dict[tuple[str, str], Counts] = {}
        self.syncs = Counts()
        self._events: dict[type, Callable[[Any], None]] = {
            Answered: self._answered,
            Programmed: self._finished,
            Audited: self._audited,
            Woke: self._woke,
        }

    def did(self, instruction: Instruction) -> None:
        """An instruction is about to be carried out."""
        if isinstance(instruction, Request):
            self._asked[instruction.tag] = self._now_us()
        elif isinstance(instruction, Program):
            self._program = instruction

    def happened(self, event: Event) -> None:
        """An event is about to be handled."""
        if (count := self._events.get(type(event))) is not None:
            count(event)

    def _answered(self, event: Answered) -> None:
        begun = self._asked.pop(event.tag, None)
        if begun is None:
            return
        what, outcome = str(event.tag[0]), "failed" if event.data is None else "ok"
        self.requests.setdefault((what, outcome), Counts()).record(event.at - begun)
        if what == "sync" and event.data is not None:
            self.syncs.record(event.at - begun)

    def _finished(self, event: Programmed) -> None:
        program, self._program = self._program, None
        if program is None:
            return
        put = Counter(spec.key[0] for spec in program.puts)
        slowest = next((kind for kind in _SLOWEST if kind in put), "removal")
        self.programs.setdefault(slowest, Counts()).record(event.done - event.started)
        failed = Counter(key[0] for key in event.errors)
        for kind, count in (put + Counter(key[0] for key in program.drops)).items():
            self.programmed[kind, "ok"] += count - failed[kind]
            self.programmed[kind, "failed"] += failed[kind]

    def _audited(self, event: Audited) -> None:
        self._drops = event.drops or self._drops

    def _woke(self, event: Woke) -> None:
        self._driver = event.counters or self._driver

    def metrics(self, state: AgentState, bugs: int) -> Iterator[Metric]:
        """All of it, now."""
        counters = state.context.counters
        yield families.PROGRAM.each(self.programs)
        yield families.PROGRAMMED.each(self.programmed)
        yield families.KERNEL.each(self._transactions())
        yield families.SYNC.one(self.syncs)
        yield families.REQUEST.each(self.requests)
        yield families.DRIFT.each({kind: counters[f"damaged_{kind}"] for kind in ORDER})
        yield families.REPAIR_SECONDS.one(counters["repair_ms"] / 1000)
        yield families.DROPPED.each(self._drops)
        yield families.UNREADABLE.one(counters["malformed"] + counters["unknown_version"])
        yield families.BUGS.one(bugs)
        for name, family in families.CORE.items():
            yield family.one(counters[name])
        yield from _state(state)

    def _transactions(self) -> dict[tuple[str, str], int]:
        found = {}
        for kind in _KERNEL:
            failed = self._driver.get(f"{kind}_failed", 0)
            found[kind, "ok"], found[kind, "failed"] = self._driver.get(kind, 0) - failed, failed
        return found


def _state(state: AgentState) -> Iterator[Metric]:
    """How things are."""
    views = state.goals.networks.values()
    ports = sum(len(view.ports) for view in views)
    build, error = state.acks.unsettled()
    yield families.IN_SYNC.one(int(state.in_sync()))
    yield families.REGISTERED.one(int(state.context.epoch > 0))
    yield families.ONLINE.one(int(state.context.online))
    yield families.AGENT_PORTS.each({"active": max(0, ports - build - error), "build": build, "error": error})
    yield families.OBJECTS.each(
        {
            "network": sum(view.network is not None for view in views),
            "subnet": sum(len(view.subnets) for view in views),
            "port": ports,
            "neighbour": sum(len(view.neighbours) for view in views),
            "peer": sum(len(view.peers) for view in views),
            "identity": sum(len(view.identities) for view in views),
            "group": len(state.goals.groups),
        }
    )
    plan = state.plan
    yield families.AGENT_QUEUE.each(
        {
            "kernel": plan.waiting(),
            "failed": len(plan.failed),
            "acks": state.acks.waiting(),
            "pulls": len(state.scopes.pulls),
        }
    )
