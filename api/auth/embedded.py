"""Callers by the file of users: checks passwords, signs tokens and reads them again.

A token is a JWT that names user and project; what the user may do is read from the file as it then is. So any instance
that has the file accepts the tokens of all, and who is taken out of the file, or gets another password, is out within
a second.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import jwt
import msgspec
from msgspec import Struct

from api.auth import users
from api.auth.identity import Given, Remembered, Who, allowed
from planes.model.errors import AlcorError, Unauthorized, Unavailable

log = logging.getLogger(__name__)

#: passwords that are checked, and that wait for it
AT_ONCE, WAITING = 2, 32
#: seconds between looks at the file; for which a caller is remembered
LOOK, REMEMBER = 1.0, 60.0
_ALGORITHM = "HS256"
REQUIRED = "The request you have made requires authentication."


class Token(Struct, frozen=True):
    """What a token says; times are Unix seconds."""

    sub: str  # the user
    project: str
    gen: str  # of the user's password
    iat: int
    exp: int
    jti: str


class Embedded:
    """The users of one file."""

    where = "/v3"

    def __init__(
        self, path: Path, life: float, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        """`life`: seconds that a token is good for. Raises Invalid for a file that is not one of users."""
        self._path = path
        self._life = life
        self._clock, self._now = clock, now
        self._users = users.read(path)
        self._stamp = _stamp(path)
        self._looked = clock()
        self._seen = Remembered(clock)
        self._checking = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    def known(self, given: Given) -> Who | None:
        self._look()
        return self._seen.get(given)

    async def find(self, given: Given) -> Who:
        token = self.read(given.get("token", ""))
        who = allowed(token.project, self.roles(token.sub, token.project), given)
        self._seen.put(given, who, min(REMEMBER, token.exp - self._now()))
        return who

    async def log_in(self, name: str, password: str) -> None:
        """Raises Unauthorized, which does not tell whether there is such a user, and Unavailable when too many try."""
        self._look()
        user = self._users.users.get(name)
        if self._waiting >= WAITING:
            raise Unavailable("Too many users log in at once.")
        self._waiting += 1
        try:
            async with self._checking:
                same = await asyncio.to_thread(users.matches, user, password)
        finally:
            self._waiting -= 1
        if not same:
            log.warning("wrong password for user %.64s", name)
            raise Unauthorized(REQUIRED)

    def projects(self, name: str) -> list[str]:
        """Where a user has a role; the first is the one for who names none."""
        self._look()
        user = self._users.users.get(name)
        return list(user.projects) if user else []

    def roles(self, name: str, project: str) -> list[str]:
        """Raises Unauthorized when there are none."""
        user = self._users.users.get(name)
        if user is None or project not in user.projects:
            raise Unauthorized(f"User {name:.64} has no role in project {project:.80}.")
        return list(user.projects[project])

    def issue(self, name: str, project: str) -> tuple[str, Token]:
        """A token for a user who has proven to be one. Raises Unauthorized when the project is none of theirs."""
        self.roles(name, project)
        now = int(self._now())
        user = self._users.users[name]
        token = Token(name, project, users.generation(user), now, now + int(self._life), secrets.token_urlsafe(12))
        return jwt.encode(msgspec.to_builtins(token), self._users.key, _ALGORITHM), token

    def read(self, text: str) -> Token:
        """What a token says. Raises Unauthorized for none, a forged one, and one that is good no longer."""
        self._look()
        try:
            claims = jwt.decode(text, self._users.key, [_ALGORITHM], options={"verify_exp": False, "verify_iat": False})
            token = msgspec.convert(claims, Token)
        except (jwt.PyJWTError, msgspec.ValidationError, UnicodeError):
            raise Unauthorized(REQUIRED) from None
        user = self._users.users.get(token.sub)
        if token.exp <= self._now() or user is None or users.generation(user) != token.gen:
            raise Unauthorized("The token is good no longer.")
        return token

    def _look(self) -> None:
        """Read the file again when it has changed; one that makes no sense changes nothing."""
        if self._clock() - self._looked < LOOK:
            return
        self._looked = self._clock()
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._users = users.read(self._path)
        except AlcorError as error:
            log.error("%s The users of before remain.", error)
            return
        self._seen.clear()
        log.info("read the file of users again: %d users", len(self._users.users))


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes when the file does; zeros while it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size


def time_of(seconds: int) -> str:
    """As Keystone writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
