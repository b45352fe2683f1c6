"""What an agent decides to do, as data; the shell does it and reports the outcome as an event."""

from collections.abc import Mapping

from msgspec import Struct

from agent.core.events import Scope, Tag
from planes.data.driver import Spec, SpecKey


class Listen(Struct, frozen=True):
    """Subscribe, then flush; `Listening` follows."""

    scope: Scope
    subject: str


class Unlisten(Struct, frozen=True):
    scope: Scope


class Request(Struct, frozen=True):
    """Ask; `Answered` follows."""

    tag: Tag
    subject: str
    data: bytes
    timeout: float


class Open(Struct, frozen=True):
    """Make the driver ready for the host with this number, and read what it holds; `Opened` follows."""

    number: int


class Program(Struct, frozen=True):
    """Have the driver apply; `Programmed` follows. There is never more than one."""

    puts: tuple[Spec, ...]
    drops: tuple[SpecKey, ...]


class Audit(Struct, frozen=True):
    """Have the driver look for damage; `Audited` follows. Never while a `Program` is under way.

    `known`: what it should find, which does not change until then.
    """

    known: Mapping[SpecKey, Spec | None]


class Saved(Struct, array_like=True, frozen=True):
    """What a new life must know of the former one (rule N16). Goal state is not kept: the kernel has what was applied,
    and anything older could bring back an address that this host has let go of, or a rule that was removed."""

    version: int
    host: str
    epoch: int


class Save(Struct, frozen=True):
    state: Saved


class Say(Struct, frozen=True):
    """Log. Level: info, warning or error."""

    level: str
    text: str


class Traced(Struct, frozen=True):
    """Objects that came under a context are answered for; the times (µs) are those of `Applied`."""

    trace: str
    sent: int
    received: int
    started: int
    done: int
    objects: int
    error: str


Instruction = Listen | Unlisten | Request | Open | Program | Audit | Save | Say | Traced
