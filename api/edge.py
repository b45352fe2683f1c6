"""What surrounds every request: its identity and caller, the answer to an error, the count of what happened.

Used by all handlers; nothing below the edge knows of HTTP, and nothing that a client sends ends in a 5xx.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any, Protocol

from litestar import Request
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send

from api import headers
from api.answers import Answer, failure, problem
from api.auth.identity import Anybody, Identity
from api.metrics import Meter
from observability.stages import now_us, request_id
from observability.tracing import Observer, begin
from observability.tracing import Request as Traced
from planes.management.caller import Caller
from planes.management.services import Cloud
from planes.model.errors import AlcorError, Forbidden, TooLarge, Unauthorized
from planes.model.settings import Settings

log = logging.getLogger(__name__)

AnyRequest = Request[Any, Any, Any]


class Reply(Protocol):
    """An answer, whole or a stream: an ASGI application that knows its status."""

    @property
    def status(self) -> int: ...
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


Act = Callable[["Call"], Awaitable[Reply]]

#: Neutron's type names of what the framework finds
_TYPES = {404: "HTTPNotFound", 405: "HTTPMethodNotAllowed", 413: "HTTPRequestEntityTooLarge"}
_READING = ("GET", "HEAD", "OPTIONS")
ANYBODY = Anybody()
_WORDS = {404: "The resource could not be found.", 405: "The method is not allowed for this resource."}


class Access(Enum):
    """Who may ask."""

    ALL = auto()
    TENANTS = auto()
    OPERATORS = auto()  #: administrators; whoever is there, without authentication


class Call:
    """One request in hand. A plain object, made for every request."""

    __slots__ = ("headers", "request", "who")

    def __init__(self, request: AnyRequest, given: dict[str, str], who: Caller) -> None:
        self.request = request
        self.headers = given
        self.who = who

    @property
    def id(self) -> bytes:
        return self.who.change.id

    @property
    def base(self) -> str:
        """This API's URL, as the caller wrote it."""
        return base(self.request)

    async def body(self) -> bytes:
        return await self.request.body()


def base(request: AnyRequest) -> str:
    return str(request.base_url).rstrip("/")


class Edge:
    """The cloud, as handlers see it, and what they share."""

    def __init__(
        self, cloud: Cloud, settings: Settings, observer: Observer, meter: Meter, identity: Identity = ANYBODY
    ) -> None:
        self.cloud = cloud
        self.settings = settings
        self.observer = observer
        self.meter = meter
        self.identity = identity
        self._waiting: Counter[str] = Counter()

    async def call(
        self, request: AnyRequest, route: str, what: str, act: Act, access: Access = Access.TENANTS
    ) -> Reply:
        """Do what a request asks; whatever happens becomes an answer."""
        given = headers.read(request.scope["headers"])
        change = begin(what, given.get("traceparent", ""), self.settings.trace_ratio)
        try:
            identity = ANYBODY if access is Access.ALL else self.identity
            who = identity.known(given) or await identity.find(given)
            if not who.writes and request.scope["method"] not in _READING and access is not Access.ALL:
                raise Forbidden("The role reader may only read.")
            if access is Access.OPERATORS and not who.admin and identity is not ANYBODY:
                raise Forbidden("Only an administrator may see this.")
            answer: Reply = await act(Call(request, given, Caller(who.project, who.admin, change)))
        except Unauthorized as error:
            where = self.identity.where
            uri = where if "://" in where else base(request) + where
            challenge = (b"www-authenticate", f'Keystone uri="{uri}"'.encode())
            answer = problem(error.status, error.type_name, str(error), change.id, (challenge,))
        except AlcorError as error:
            answer = failure(error, change.id)
        except HTTPException as error:
            answer = self._refused(error, change)
        except Exception as error:
            answer = self.broken(error, change)
        method, took = request.scope["method"], now_us() - change.begun
        self.meter.count(method, route, answer.status, took)
        self.observer.answered(change, method, route.replace(":str}", "}"), request.scope["path"], answer.status, took)
        return answer

    def _refused(self, error: HTTPException, change: Traced) -> Answer:
        """What the framework found while the body was read."""
        if error.status_code == 413:
            return failure(TooLarge(f"The body is larger than {self.settings.body_max} bytes."), change.id)
        return framework_problem(error, change.id)

    def broken(self, error: Exception, change: Traced) -> Answer:
        """A failure of ours: the client learns the request's id, the log and the trace learn why."""
        ids = {"request_id": request_id(change.id), "trace_id": change.trace_id}
        log.error("request %s (%s) failed", ids["request_id"], change.resource, exc_info=error, extra=ids)
        change.error = f"{type(error).__name__}: {error}"[:400]
        message = "Request Failed: internal server error while processing your request."
        return problem(500, "HTTPInternalServerError", message, change.id)

    async def waiting(self, call: Call, act: Callable[[int], Awaitable[Any]], otherwise: Any) -> tuple[Any, int]:
        """Wait for hosts as `Prefer` asks: (what `act` returns, seconds granted), or (`otherwise`, 0) without waiting.

        A project that already has as many waiting requests as it may is answered at once: a preference is a wish.
        """
        seconds = headers.wait(call.headers, self.settings.wait_max)
        project = call.who.project
        if not seconds or self._waiting[project] >= self.settings.waiters_max:
            return otherwise, 0
        self._waiting[project] += 1
        try:
            return await act(seconds), seconds
        finally:
            self._waiting[project] -= 1
            if not self._waiting[project]:
                del self._waiting[project]


def framework_problem(error: HTTPException, id_: bytes) -> Answer:
    """An error of the framework's own, such as an unknown path, in Neutron's shape."""
    status = error.status_code
    allowed = [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items() if k.lower() == "allow"]
    return problem(status, _TYPES.get(status, "HTTPBadRequest"), _WORDS.get(status, error.detail), id_, allowed)
