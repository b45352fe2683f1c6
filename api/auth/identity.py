"""Who calls: from a request's headers to a project, and what its roles allow there.

Called by the edge for every request but those that anybody may send. An `Identity` is chosen by the setting `auth`;
what it found out is remembered for a while, so that a request mostly costs one look into a dictionary. Roles are
OpenStack's: `admin` sees and does everything, in every project; `member` reads and writes its own; `reader` reads it.
"""

import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Protocol

from msgspec import Struct

from api import headers
from planes.goalstate.subjects import check_project
from planes.model.errors import Forbidden

Given = dict[str, str]

#: each role and those that it implies
_IMPLIES = {
    "admin": frozenset({"admin", "member", "reader"}),
    "member": frozenset({"member", "reader"}),
    "reader": frozenset({"reader"}),
}
ROLES = tuple(_IMPLIES)
#: callers remembered
MOST = 10_000


class Who(Struct, frozen=True):
    """A caller: in which project, and with which rights."""

    project: str
    admin: bool
    writes: bool


class Identity(Protocol):
    """One way to know callers."""

    #: where tokens are to be had: a URL, or a path of this API
    where: str

    def known(self, given: Given) -> Who | None:
        """The caller, when nobody has to be asked."""

    async def find(self, given: Given) -> Who:
        """The caller. Raises Unauthorized, Forbidden, and Unavailable when it cannot be found out now."""


class Anybody:
    """No authentication: callers are who they say they are. For loopback, and for what everybody may see."""

    where = ""

    def known(self, given: Given) -> Who:
        roles = given.get("roles")
        if roles is None:
            return _tenant(given.get("project", ""))
        held = _split(roles)
        return Who(headers.project(given), "admin" in held, "reader" not in held or bool(held & {"admin", "member"}))

    async def find(self, given: Given) -> Who:
        return self.known(given)


@lru_cache(1000)
def _tenant(project: str) -> Who:
    """Who names a project and no roles. Raises Invalid for what cannot be a project."""
    return Who(headers.project({"project": project}), admin=False, writes=True)


def allowed(project: str, roles: Iterable[str], given: Given) -> Who:
    """The caller whose token is for that project with those roles.

    Headers may ask for less: `X-Roles` names the roles to act by; and who is an administrator may act in another
    project by `X-Project-Id`. Raises Forbidden when no role is left.
    """
    had = sorted(set(roles))
    held = _implied(role.lower() for role in had)
    if (asked := given.get("roles")) is not None:
        held = _implied(held & _split(asked))
        if not held:
            raise Forbidden(f"X-Roles asks for {asked:.80}; the token's roles are {', '.join(had) or 'none'}.")
    if not held:
        raise Forbidden(f"The token's roles ({', '.join(had)[:80] or 'none'}) are none of {', '.join(ROLES)}.")
    admin = "admin" in held
    if admin and (other := given.get("project")):
        project = check_project(other, "X-Project-Id")
    return Who(project, admin, "member" in held)


def _implied(roles: Iterable[str]) -> frozenset[str]:
    return frozenset[str]().union(*(_IMPLIES.get(role, ()) for role in roles))


def _split(roles: str) -> frozenset[str]:
    return frozenset(role.strip().lower() for role in roles.split(","))


class Remembered:
    """Callers by what their requests said, each until its time; the oldest goes when there are too many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._callers: dict[tuple[str, ...], tuple[Who, float]] = {}

    def get(self, given: Given) -> Who | None:
        found = self._callers.get(_key(given))
        return found[0] if found and found[1] > self._clock() else None

    def put(self, given: Given, who: Who, seconds: float) -> None:
        key = _key(given)
        self._callers.pop(key, None)  # what is put anew is the youngest
        self._callers[key] = who, self._clock() + seconds
        if len(self._callers) > MOST:
            del self._callers[next(iter(self._callers))]

    def clear(self) -> None:
        self._callers.clear()


def _key(given: Given) -> tuple[str, ...]:
    return given.get("token", ""), given.get("project", ""), given.get("roles", "*")
