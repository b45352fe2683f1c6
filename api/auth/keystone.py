"""Callers by an OpenStack Keystone: it is asked about each token that is new here, with that token itself.

So no credentials of a service are needed. Answers are remembered for a minute: a token that is revoked works that long.
"""

import asyncio
import logging
import ssl
from datetime import datetime
from typing import Any, Self

import httpx
import msgspec
from msgspec import Struct

from api.auth.identity import Given, Remembered, Who, allowed
from planes.goalstate.subjects import check_project
from planes.model.errors import Forbidden, Invalid, Unauthorized, Unavailable

log = logging.getLogger(__name__)

#: seconds for which an answer holds; for one question; questions at once, and waiting
REMEMBER, PATIENCE, AT_ONCE, WAITING = 60.0, 5.0, 16, 256
#: characters of a token
LONGEST = 8192
REQUIRED = "The request you have made requires authentication."


class _Named(Struct):
    id: str = ""
    name: str = ""


class _Token(Struct):
    expires_at: datetime
    project: _Named | None = None
    roles: list[_Named] = []


class _Body(Struct):
    token: _Token


class Keystone:
    """The users of a Keystone at `url`, such as https://keystone.example/v3."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.where = url.rstrip("/")
        self._http = client
        self._seen = Remembered()
        self._asking: dict[str, asyncio.Task[_Token]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    @classmethod
    def at(cls, url: str, ca: str) -> Self:
        """`ca`: a file; empty: the usual ones. Raises Invalid for a file that holds no certificates."""
        try:
            trusted = ssl.create_default_context(cafile=ca) if ca else True
        except (OSError, ssl.SSLError) as error:
            raise Invalid(
                f"Setting auth_ca is '{ca:.200}', which holds no certificates that can be read: {error}."
            ) from None
        return cls(url, httpx.AsyncClient(timeout=PATIENCE, trust_env=False, verify=trusted))

    def known(self, given: Given) -> Who | None:
        return self._seen.get(given)

    async def find(self, given: Given) -> Who:
        text = given.get("token", "")
        if not text or len(text) > LONGEST or not text.isascii():
            raise Unauthorized(REQUIRED)
        token = await self._ask_once(text)
        if token.project is None:
            raise Forbidden("The token is not for a project.")
        project = check_project(token.project.id, "the token's project")
        who = allowed(project, [role.name for role in token.roles], given)
        left = (token.expires_at - datetime.now(token.expires_at.tzinfo)).total_seconds()
        if left <= 0:
            raise Unauthorized("The token is good no longer.")
        self._seen.put(given, who, min(REMEMBER, left))
        return who

    async def relay(self, body: bytes) -> httpx.Response:
        """Ask for a token as the caller would; the console knows no other address. Raises Unavailable."""
        async with self._slots:
            return await self._call("POST", content=body, headers={"Content-Type": "application/json"})

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask_once(self, text: str) -> _Token:
        """Requests that come with the same new token ask once."""
        task = self._asking.get(text)
        if task is None:
            if len(self._asking) >= WAITING:
                raise Unavailable("Too many tokens are being checked at once.")
            task = self._asking[text] = asyncio.create_task(self._ask(text), name="ask Keystone")
            task.add_done_callback(lambda _: self._asking.pop(text, None))
        return await asyncio.shield(task)

    async def _ask(self, text: str) -> _Token:
        async with self._slots:
            answer = await self._call("GET", headers={"X-Auth-Token": text, "X-Subject-Token": text})
        if answer.status_code in (401, 403, 404):
            raise Unauthorized(REQUIRED)
        if answer.status_code != 200:
            raise Unavailable(f"Keystone answers {answer.status_code} when asked about a token.")
        try:
            return msgspec.json.decode(answer.content, type=_Body).token
        except msgspec.DecodeError as error:
            raise Unavailable(f"Keystone's answer about a token makes no sense: {error}.") from None

    async def _call(self, method: str, **arguments: Any) -> httpx.Response:
        for last in (method != "GET", True):  # a connection that was kept may just have been closed: read again
            try:
                return await self._http.request(method, f"{self.where}/auth/tokens", **arguments)
            except httpx.HTTPError as error:
                if last or isinstance(error, httpx.TimeoutException):
                    log.warning("Keystone at %s does not answer: %r", self.where, error)
                    raise Unavailable(f"Keystone does not answer: {type(error).__name__}.") from None
        raise AssertionError
