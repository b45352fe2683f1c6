"""Spans of a host's own work: what it received and programmed for a change, with the kernel's transactions; its
pulls, syncs and registrations; what it repaired.

Made by `agent.main` where there is an address to export to, called by `agent.runtime`. A change's spans belong to the
trace that its message bears, and are exported where that was sampled; what the agent does of its own accord is sampled
by ratio, and always when slow or failed, and repairs always. It decides nothing else, and never waits.
"""

import random
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from agent.core.instructions import Program, Request, Traced
from observability.export import Exporter
from observability.spans import (
    SLOW,
    Attributes,
    Context,
    Span,
    new_id,
    new_trace,
    of_exchange,
    of_stage,
    parse,
)
from observability.stages import Stage, StageLike
from planes.data.driver import SpecKey, Transaction

#: kernel transactions that a program shows: the longest
SHOWN = 8
#: programs that an answer may be about
RECENT = 16
#: requests that are worth a span
_KINDS = ("pull", "sync", "register")


class _Programmed:
    """What the driver did. `shown`: the span that has its kernel transactions."""

    def __init__(self, stage: Stage, counts: Attributes, transactions: Sequence[Transaction]) -> None:
        self.stage = stage
        self.counts = counts
        self.transactions = transactions
        self.shown: Context | None = None


class Tracer:
    """One host's. `ratio`: the share of its own work that is traced."""

    def __init__(self, exporter: Exporter, host: str, ratio: float) -> None:
        self.exporter = exporter
        self._host = host
        self._ratio = ratio
        self._program: _Programmed | None = None
        #: what was programmed lately: a port is answered for when all that it needs is there, which may be later
        self._recent: deque[_Programmed] = deque(maxlen=RECENT)
        #: what an audit found, when it began and ended, until it is programmed again
        self._lost: frozenset[SpecKey] = frozenset()
        self._audit = Stage("audit", 0, 0)

    def close(self) -> None:
        """Send what waits; blocks for a moment."""
        self.exporter.close()

    # -- requests ---------------------------------------------------------------------------------------------------

    def ask(self, request: Request) -> Context | None:
        """The context of a request's span; None: it gets none, whatever comes of it."""
        if request.tag[0] not in _KINDS:
            return None
        return Context(new_trace(), new_id(), random.random() < self._ratio)

    def asked(self, request: Request, own: Context, start: int, end: int, error: str) -> None:
        """The answer came, or none did."""
        if own.sampled or error or end - start >= SLOW:
            more = {"alcor.host": self._host}
            name = str(request.tag[0])
            self.exporter.put(lambda: [of_exchange(name, request.subject, own, "", start, end - start, error, more)], 1)

    # -- the kernel -------------------------------------------------------------------------------------------------

    def programmed(
        self, program: Program, errors: Mapping[SpecKey, str], start: int, end: int, done: Sequence[Transaction]
    ) -> None:
        """The driver is done; whose work it was is said next, by `answered`, or by nobody: `settled`."""
        counts = {
            "alcor.puts": len(program.puts), "alcor.drops": len(program.drops), "alcor.transactions": len(done)
        }  # fmt: skip
        stage = Stage("program", start, end - start, self._host, next(iter(errors.values()), ""))
        self._program = _Programmed(stage, counts, done)
        self._recent.append(self._program)
        lost = self._lost
        if lost and (
            any(spec.key in lost or ("network", spec.network, b"") in lost for spec in program.puts)
            or not lost.isdisjoint(program.drops)
        ):
            self._lost = frozenset()
            self._repaired(self._program, self._audit, {"alcor.lost": len(lost)})

    def answered(self, answer: Traced) -> None:
        """A change's objects are in the kernel, or were refused."""
        own = parse(answer.trace)
        if own is None:
            return
        receive = Stage("receive", answer.sent, answer.received - answer.sent, self._host)
        stage = Stage("program", answer.received, answer.done - answer.received, self._host, answer.error)
        context = Context(own.trace, new_id())
        mine = next((work for work in self._recent if work.stage.start == answer.started), None)
        links, transactions = self._claim(mine, context)
        counts = {"alcor.object_count": answer.objects, **(mine.counts if mine else {})}

        def make() -> list[Span]:
            spans = self._work(stage, context, own.span, counts, links, transactions)
            return [*spans, of_stage(receive, own.trace, new_id(), own.span)]

        self.exporter.put(make, 2 + len(transactions))

    def audited(self, lost: Collection[SpecKey], start: int, end: int) -> None:
        """The driver looked for damage."""
        if lost:
            self._lost = self._lost.union(lost)
            self._audit = Stage("audit", start, end - start, self._host)

    def settled(self) -> None:
        """Nobody else is answered for what was programmed last."""
        work, self._program = self._program, None
        if work is None or work.shown is not None:
            return
        stage = work.stage
        if random.random() < self._ratio or stage.error or stage.duration >= SLOW:
            own = Context(new_trace(), new_id())
            _, transactions = self._claim(work, own)
            self.exporter.put(lambda: self._work(stage, own, "", work.counts, (), transactions), 1 + len(transactions))

    def _repaired(self, work: _Programmed, audit: Stage, more: Attributes) -> None:
        root, own = Context(new_trace(), new_id()), Context("", new_id())
        own = Context(root.trace, own.span)
        _, transactions = self._claim(work, own)
        stage = work.stage
        whole = Stage("repair", audit.start, stage.start + stage.duration - audit.start, self._host, stage.error)

        def make() -> list[Span]:
            return [
                self._span(whole, root, "", more),
                of_stage(audit, root.trace, new_id(), root.span),
                *self._work(stage, own, root.span, work.counts, (), transactions),
            ]

        self.exporter.put(make, 3 + len(transactions))

    def _claim(self, work: _Programmed | None, own: Context) -> tuple[tuple[Context, ...], Sequence[Transaction]]:
        """The kernel transactions are shown once; other traces that took part link to where."""
        if work is None:
            return (), ()
        if work.shown is not None:
            return (work.shown,), ()
        work.shown = own
        longest = sorted(work.transactions, key=lambda each: -each.duration)[:SHOWN]
        return (), sorted(longest, key=lambda each: each.start)

    def _work(
        self, stage: Stage, own: Context, parent: str, counts: Attributes, links: tuple[Context, ...],
        transactions: Sequence[Transaction],
    ) -> list[Span]:  # fmt: skip
        whole = self._span(stage, own, parent, counts, links)
        return [
            whole,
            *(
                Span(own.trace, new_id(), own.span, each.what, each.start, each.duration,
                     attributes={"alcor.host": self._host, "alcor.messages": each.messages})
                for each in transactions
            ),
        ]  # fmt: skip

    def _span(
        self, stage: StageLike, own: Context, parent: str, more: Attributes, links: tuple[Context, ...] = ()
    ) -> Span:
        attributes = {"alcor.host": self._host, **more}
        return Span(
            own.trace, own.span, parent, stage.name, stage.start, stage.duration, attributes=attributes,
            error=stage.error, links=links,
        )  # fmt: skip
