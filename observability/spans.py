"""Spans as plain data, by OpenTelemetry's semantic conventions: of a request, of a change's stages, of a host's work.

Made by `observability.tracing` in the API and by `agent.tracing` on hosts, with the same names on both sides; sent by
`observability.export`. Pure: a finished change becomes spans afterwards, so that one that nobody samples costs nothing.

    POST /v2.0/ports            SERVER     the request, to its answer
      create port               INTERNAL   the whole change, to the last host's acknowledgement
        accept, validate        INTERNAL
        claim, write            CLIENT     the store
        publish                 PRODUCER   its context travels in the message
          receive   (a host)    CONSUMER
          program   (a host)    INTERNAL   its kernel transactions are its children
          ack       (a host)    CONSUMER
            active              CLIENT     the store
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum

from msgspec import Struct

from observability.stages import PUBLISH, REQUEST, WHOLE, Finished, StageLike, request_id

Attributes = Mapping[str, str | int]

#: µs from which something is slow, and exported whatever the ratio
SLOW = 1_000_000
#: hosts of one change that its trace shows: the failed and the slowest
HOSTS = 8


class Kind(IntEnum):
    """As OTLP numbers them."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Context(Struct, frozen=True, gc=False):
    """Which span: what a `traceparent` says."""

    trace: str
    span: str
    sampled: bool = True

    @property
    def header(self) -> str:
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"

    def sibling(self, place: str) -> str:
        """The id of the request's, the change's or the publishing's span, by that of any of them."""
        return self.span[:14] + place


class Span(Struct, frozen=True):
    """One interval: `start` in µs since the epoch, `duration` in µs. A non-empty `error` is its failed status."""

    trace: str
    id: str
    parent: str
    name: str
    start: int
    duration: int
    kind: Kind = Kind.INTERNAL
    attributes: Attributes = {}
    error: str = ""
    links: tuple[Context, ...] = ()

    @property
    def context(self) -> Context:
        return Context(self.trace, self.id)


def parse(header: str) -> Context | None:
    """The context that a W3C `traceparent` names, or None when it is not one."""
    parts = header.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
        return None
    try:
        numbers = [int(part, 16) for part in parts[:4]]
    except ValueError:
        return None
    if not numbers[1] or not numbers[2] or header != header.lower() or "_" in header:
        return None
    return Context(parts[1], parts[2], bool(numbers[3] & 1))


def new_id() -> str:
    return secrets.token_hex(8)


def new_trace() -> str:
    return secrets.token_hex(16)


def _messaging(operation: str, kind: str, destination: str) -> dict[str, str | int]:
    return {
        "messaging.system": "nats",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.template": destination,
    }


#: kind and attributes of a stage; what is not here is INTERNAL
_STAGES: dict[str, tuple[Kind, Attributes]] = {
    "claim": (Kind.CLIENT, {"db.operation.name": "write"}),
    "write": (Kind.CLIENT, {"db.operation.name": "commit"}),
    "active": (Kind.CLIENT, {"db.operation.name": "commit"}),
    "publish": (Kind.PRODUCER, _messaging("publish", "send", "goal.host.{host}")),
    "receive": (Kind.CONSUMER, _messaging("receive", "receive", "goal.host.{host}")),
    "ack": (Kind.CONSUMER, _messaging("ack", "process", "ack.{host}.{instance}")),
}


def of_request(
    own: Context, parent: str, method: str, route: str, path: str, status: int, start: int, duration: int, error: str,
    more: Attributes,
) -> Span:  # fmt: skip
    """The HTTP server's span. Only 5xx are failures of the server."""
    attributes: dict[str, str | int] = {
        "http.request.method": method, "url.path": path, "url.scheme": "http", "http.response.status_code": status,
    }  # fmt: skip
    if route:
        attributes["http.route"] = route
    if status >= 500:
        attributes["error.type"] = error.partition(":")[0] or str(status)
        error = error or f"HTTP {status}"
    return Span(
        own.trace, own.sibling(REQUEST), parent, f"{method} {route}".rstrip(), start, duration, Kind.SERVER,
        attributes | dict(more), error,
    )  # fmt: skip


def of_change(
    change: Finished, own: Context, store: str, elsewhere: Collection[str] = (), links: tuple[Context, ...] = ()
) -> list[Span]:
    """The change and its stages. The hosts `elsewhere` export what they did themselves.

    `links`: contexts under which some of its objects travelled, in messages that others' changes began.
    """
    begun = change.stages[0].start if change.stages else 0
    whole, publish = own.sibling(WHOLE), own.sibling(PUBLISH)
    hosts = _shown(change.stages)
    reason = next((stage.error for stage in change.stages if stage.error), "")
    attributes: dict[str, str | int] = {
        "alcor.request_id": request_id(change.id), "alcor.status": change.status, "alcor.project": change.project,
        "alcor.object_id": change.object, "alcor.object_count": change.count,
        "alcor.host_count": len({stage.host for stage in change.stages if stage.host}),
    }  # fmt: skip
    error = reason or (change.status if change.status == "ERROR" else "")
    spans = [
        Span(own.trace, whole, own.sibling(REQUEST), change.resource or "change", begun, change.total, Kind.INTERNAL,
             attributes, error)
    ]  # fmt: skip
    acks = {stage.host: new_id() for stage in change.stages if stage.name == "ack"}
    for stage in change.stages:
        theirs = stage.name in ("receive", "program") and stage.host in elsewhere
        if stage.host and (theirs or stage.host not in hosts):
            continue
        parent = (acks.get(stage.host, publish) if stage.name == "active" else publish) if stage.host else whole
        id_ = publish if stage.name == "publish" else acks[stage.host] if stage.name == "ack" else new_id()
        spans.append(of_stage(stage, own.trace, id_, parent, store, links if id_ == publish else ()))
    return spans


def of_stage(
    stage: StageLike, trace: str, id_: str, parent: str, store: str = "", links: tuple[Context, ...] = ()
) -> Span:
    """One stage, on the control plane or on a host."""
    kind, attributes = _STAGES.get(stage.name, (Kind.INTERNAL, {}))
    given = dict(attributes)
    if store and "db.operation.name" in given:
        given["db.system.name"] = store
    if stage.host:
        given["alcor.host"] = stage.host
    return Span(trace, id_, parent, stage.name, stage.start, stage.duration, kind, given, stage.error, links)


def of_exchange(
    name: str, subject: str, own: Context, parent: str, start: int, duration: int, error: str, more: Attributes,
    serving: bool = False,
) -> Span:  # fmt: skip
    """A request over the bus, as who asks sees it, or as who answers does."""
    attributes = {
        "messaging.system": "nats",
        "messaging.operation.name": name,
        "messaging.operation.type": "process" if serving else "send",
        "messaging.destination.name": subject,
    }
    kind = Kind.SERVER if serving else Kind.CLIENT
    return Span(own.trace, own.span, parent, name, start, duration, kind, attributes | dict(more), error)


def _shown(stages: Sequence[StageLike]) -> Collection[str]:
    """The hosts that a trace shows: all of a few, else those that failed, then those that took longest."""
    ends: dict[str, tuple[bool, int]] = {}
    for stage in stages:
        if stage.host:
            failed, end = ends.get(stage.host, (False, 0))
            ends[stage.host] = failed or bool(stage.error), max(end, stage.start + stage.duration)
    return sorted(ends, key=ends.__getitem__, reverse=True)[:HOSTS]
