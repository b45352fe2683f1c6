"""What can happen to an agent, as data; the shell turns timers, messages and outcomes into these.

Handed to `AgentState.handle`, and nothing else changes the state. Times called µs are wall clock.
"""

from collections.abc import Hashable, Mapping

from msgspec import Struct

from planes.data.driver import Spec, SpecKey
from planes.goalstate.messages import Key, What

#: what an agent is interested in as a whole: (`What` or 0 for beacons, id)
Scope = tuple[int, bytes]
HOST: Scope = (What.HOST, b"")
BEACONS: Scope = (0, b"")
#: names what a request was for, so that its answer finds the way back
Tag = tuple[Hashable, ...]


def scope_of(key: Key) -> Scope:
    """The scope that an object belongs to."""
    kind = key[0]
    if kind == 6:
        return HOST
    return (What.GROUP, key[1]) if kind == 7 else (What.NETWORK, key[1])


class Started(Struct, frozen=True):
    """The process is up; nothing is connected."""

    at: int  # µs


class Connected(Struct, frozen=True):
    """The bus is there. `again`: it was before, and messages may have been lost meanwhile."""

    again: bool


class Disconnected(Struct, frozen=True):
    """The bus is gone. Nothing changes in the kernel."""


class Slow(Struct, frozen=True):
    """The bus threw messages away."""


class Listening(Struct, frozen=True):
    """The subscription for a scope stands, and the server has seen it; or `error` says why it does not."""

    scope: Scope
    error: str = ""


class Arrived(Struct, frozen=True):
    """A message on a scope's subject."""

    scope: Scope
    data: bytes
    received: int  # µs
    trace: str = ""  # context of a message whose work is to be traced


class Answered(Struct, frozen=True):
    """The reply to a request; None: none came."""

    tag: Tag
    data: bytes | None
    at: int  # µs


class Opened(Struct, frozen=True):
    """The driver is ready and holds this; or `error` says why it is not."""

    held: Mapping[SpecKey, Spec | None]
    error: str = ""


class Programmed(Struct, frozen=True):
    """The driver is done with what it was given; reasons for what failed."""

    errors: dict[SpecKey, str]
    started: int  # µs
    done: int  # µs


class Audited(Struct, frozen=True):
    """The driver has looked for damage: what may be no longer as applied; a network's key stands for all of it.

    `drops`: packets that it has dropped so far, by reason. `more`: what is there beyond what was known, as it is.
    """

    lost: frozenset[SpecKey]
    drops: dict[str, int]
    more: Mapping[SpecKey, Spec | None]


class Woke(Struct, frozen=True):
    """A timer may be due. `counters`: the driver's own, for health."""

    counters: dict[str, int]


Event = (
    Started | Connected | Disconnected | Slow | Listening | Arrived | Answered | Opened | Programmed | Audited | Woke
)
