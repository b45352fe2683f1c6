"""Which requests and changes are traced, and the hand-over of those that are.

`Observer` is called by the REST edge when a request was answered and by the control plane when a change has come to its
end on all hosts: it counts all of them in the latency histograms, logs each change, and exports the sampled, the slow
and the failed. The choice is made at the head, by ratio or by the caller's `traceparent`; a change that turns out slow
or failed is exported afterwards, whole, from the same marks.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from msgspec import Struct

from observability.export import Exporter
from observability.latency import Latency
from observability.logs import log_changes
from observability.spans import (
    SLOW,
    Context,
    Span,
    new_id,
    of_change,
    of_exchange,
    of_request,
    parse,
)
from observability.stages import Change, Finished, request_id

K = TypeVar("K")
V = TypeVar("V")

#: requests whose change is under way, and that may yet turn out slow or failed; joined contexts kept
OPEN = 4096


class Request(Change):
    """A change that somebody asks for by HTTP. `parent`: the caller's span; `error`: why we failed, in words."""

    __slots__ = ("error", "parent")

    def __init__(self, resource: str, parent: Context | None, sampled: bool) -> None:
        super().__init__(resource, parent.trace if parent else "", sampled)
        self.parent = parent.span if parent else ""
        self.error = ""


class _Answered(Struct, frozen=True, gc=False):
    """What a request's span is made of."""

    own: Context
    parent: str
    id: bytes
    project: str
    error: str
    method: str
    route: str
    path: str
    status: int
    start: int
    took: int

    def spans(self) -> list[Span]:
        more = {"alcor.request_id": request_id(self.id), "alcor.project": self.project}
        return [
            of_request(
                self.own, self.parent, self.method, self.route, self.path, self.status, self.start, self.took,
                self.error, more,
            )
        ]  # fmt: skip


def begin(resource: str, header: str, ratio: float) -> Request:
    """A change at its beginning; continues the caller's trace and honours its sampling, else samples by the ratio."""
    parent = parse(header) if header else None
    sampled = parent.sampled if parent else ratio > 0 and random.random() < ratio
    return Request(resource, parent, sampled)


class Observer:
    """`store`: the database's name in spans. `traces`: whether a host exports spans of its own work."""

    def __init__(
        self,
        latency: Latency,
        exporter: Exporter | None = None,
        store: str = "",
        traces: Callable[[str], bool] = lambda host: False,
        slow: int = SLOW,
    ) -> None:
        self.latency = latency
        self.exporter = exporter
        self.traces = traces
        self._store = store
        self._slow = slow
        #: by change: its request, the span of which may yet be wanted; None: it is
        self._late: OrderedDict[bytes, _Answered | None] = OrderedDict()
        #: by (traceparent, host): the context under which that change's objects travelled to that host
        self._joined: OrderedDict[tuple[str, str], Context | None] = OrderedDict()

    # -- requests ---------------------------------------------------------------------------------------------------

    def answered(self, request: Request, method: str, route: str, path: str, status: int, took: int) -> None:
        """The answer to a request is ready, `took` µs after it came."""
        if self.exporter is None:
            return
        answered = _Answered(
            Context(request.trace_id, request.span_id), request.parent, request.id, request.project, request.error,
            method, route, path, status, request.begun, took,
        )  # fmt: skip
        if request.sampled or status >= 500 or took >= self._slow:
            self.exporter.put(answered.spans, 1)
        elif request.marks and status < 400:
            if self._late.pop(request.id, self) is None:
                self.exporter.put(answered.spans, 1)
            else:
                _keep(self._late, request.id, answered)

    def served(self, traceparent: str, subject: str, start: int, end: int, host: str, error: str = "") -> None:
        """A host's pull, sync or acknowledgement was answered."""
        asked = parse(traceparent)
        if self.exporter is not None and asked is not None and asked.sampled:
            own = Context(asked.trace, new_id())
            words = subject.split(".")
            name = "serve " + ("register" if words[-1] == "register" else words[1])
            more = {"alcor.host": host}
            self.exporter.put(
                lambda: [of_exchange(name, subject, own, asked.span, start, end - start, error, more, serving=True)], 1
            )

    # -- changes ----------------------------------------------------------------------------------------------------

    def joined(self, traceparent: str, host: str, carrier: str) -> None:
        """A change's objects travel to a host in another's message (empty: without a context)."""
        if self.exporter is not None:
            _keep(self._joined, (traceparent, host), parse(carrier) if carrier.endswith("1") else None)

    def __call__(self, changes: Sequence[Finished]) -> None:
        """These have come to their end."""
        self.latency.finished(changes)
        log_changes(changes)
        for change in changes:
            sampled = change.traceparent.endswith("1")
            chosen = sampled or change.status == "ERROR" or change.total >= self._slow
            if chosen:
                self.latency.traced(change)
            if self.exporter is not None:
                self._choose(self.exporter, change, sampled, chosen)

    def _choose(self, exporter: Exporter, change: Finished, sampled: bool, chosen: bool) -> None:
        """Export a change, with its request if that waits for it; of one that is not, the request is forgotten."""
        request = None if sampled else self._late.pop(change.id, None)
        if chosen:
            self._export(exporter, change, sampled)
            if request is not None:
                exporter.put(request.spans, 1)
            elif not sampled:
                _keep(self._late, change.id, None)

    def _export(self, exporter: Exporter, change: Finished, sampled: bool) -> None:
        own = parse(change.traceparent)
        if own is None:
            return
        elsewhere: set[str] = set()
        links: list[Context] = []
        for stage in change.stages if sampled else ():
            if stage.name == "receive":  # came by a message, which bore the context
                carrier = self._joined.pop((change.traceparent, stage.host), own)
                if carrier is own and self.traces(stage.host):
                    elsewhere.add(stage.host)
                elif carrier is not own and carrier is not None and carrier not in links:
                    links.append(carrier)
        make = partial(of_change, change, own, self._store, elsewhere, tuple(links))
        exporter.put(make, len(change.stages) + 1)

    def close(self) -> None:
        if self.exporter is not None:
            self.exporter.close()


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> None:
    kept[key] = value
    if len(kept) > OPEN:
        kept.popitem(last=False)
