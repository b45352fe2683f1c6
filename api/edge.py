"""What surrounds every request: its identity and caller, the answer to an error, the count of what happened.

Used by all handlers; nothing below the edge knows of HTTP, and nothing that a client sends ends in a 5xx.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Protocol, cast

from litestar import Request, asgi
from litestar import route as http_route
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, ControllerRouterHandler, HTTPScope, Method, Receive, Scope, Send

from api import headers
from api.answers import Answer, failure, problem, straight
from api.auth.identity import Anybody, Identity
from api.metrics import Meter
from observability.stages import Change, now_us, request_id
from observability.tracing import Observer, begin
from observability.tracing import Request as Traced
from planes.management.caller import Caller
from planes.management.services import Cloud
from planes.model.errors import AlcorError, Forbidden, Invalid, TooLarge, Unauthorized
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

    __slots__ = ("_largest", "_receive", "headers", "scope", "who")

    def __init__(self, scope: HTTPScope, receive: Receive, given: dict[str, str], who: Caller, largest: int) -> None:
        self.scope = scope
        self.headers = given
        self.who = who
        self._receive = receive
        self._largest = largest

    @property
    def id(self) -> bytes:
        return self.who.change.id

    @property
    def base(self) -> str:
        """This API's URL, as the caller wrote it."""
        return base(self.scope)

    @property
    def query(self) -> bytes:
        return self.scope["query_string"]

    def part(self, name: str) -> str:
        """A variable part of the path."""
        return str(self.scope["path_params"].get(name, ""))

    def header(self, name: bytes) -> str:
        """One that is rarely asked for; `name` in lower case."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), "")

    async def body(self) -> bytes:
        """All of it. Raises TooLarge, and Invalid when the client is gone before its end."""
        way = straight(self.scope)
        if way is not None and (whole := way.body()) is not None:
            return self._bounded(whole, len(whole))
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Invalid("The request ended before its body did.", "HTTPBadRequest")
            size += len(message["body"])
            parts.append(self._bounded(message["body"], size))
            more = message["more_body"]
        return b"".join(parts)

    def _bounded(self, part: bytes, size: int) -> bytes:
        """The part, if all up to its end is so small that it is taken."""
        if size > self._largest:
            raise TooLarge(f"The body is larger than {self._largest} bytes.")
        return part


def method(scope: HTTPScope) -> str:
    """As a label: a client may invent others."""
    found: str = scope["method"]
    return found if found in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH") else "other"


def base(scope: HTTPScope) -> str:
    """Where the client finds us, for links in answers; a proxy says by `X-Forwarded-Proto` that TLS ends with it."""
    request = Request[Any, Any, Any](scope)
    url, scheme = request.base_url, request.headers.get("x-forwarded-proto", "")
    return str(url.with_replacements(scheme=scheme) if scheme in ("http", "https") else url).rstrip("/")


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
        #: what answers requests for a path without variable parts
        self.straight: dict[str, ASGIApp] = {}

    def route(
        self, paths: Sequence[str], acts: Mapping[str, tuple[str, Act]], access: Access
    ) -> ControllerRouterHandler:
        """These paths by method: what is done is called so, and done so. The first path names them in metrics.

        Collections stand straight on ASGI: what the framework does for its own handlers costs a tenth of a create. Its
        ASGI routes have no variable parts, so single objects are routes of the usual kind. `straight` has the former,
        for who need not ask the framework at all: it knows more spellings of a path.
        """
        name, allowed = paths[0].replace(":str}", "}"), ", ".join(sorted(acts))

        async def raw(scope: Any, receive: Receive, send: Send) -> None:
            known = acts.get(scope["method"])
            answer: Reply = (
                self._other(scope, allowed)
                if known is None
                else (await self.call(scope, receive, name, *known, access))
            )
            await answer(scope, receive, send)

        async def usual(request: AnyRequest) -> ASGIApp:
            return await self.call(request.scope, request.receive, name, *acts[request.scope["method"]], access)

        if any("{" in path for path in paths):
            return http_route(list(paths), http_method=cast("list[Method]", list(acts)), status_code=200)(usual)
        self.straight.update(dict.fromkeys(paths, raw))
        return asgi(list(paths), copy_scope=False)(raw)

    def _other(self, scope: HTTPScope, allowed: str) -> Answer:
        """A method that these paths have not."""
        id_, allow = Change().id, [(b"allow", allowed.encode())]
        if scope["method"] == "OPTIONS":
            answer = Answer(b"", id_, 204, allow)
        else:
            answer = problem(405, _TYPES[405], _WORDS[405], id_, allow)
        self.meter.count(method(scope), "", answer.status, 0)
        return answer

    async def call(
        self, scope: HTTPScope, receive: Receive, route: str, what: str, act: Act, access: Access = Access.TENANTS
    ) -> Reply:
        """Do what a request asks; whatever happens becomes an answer."""
        given = headers.read(scope["headers"])
        change = begin(what, given.get("traceparent", ""), self.settings.trace_ratio)
        try:
            identity = ANYBODY if access is Access.ALL else self.identity
            who = identity.known(given) or await identity.find(given)
            if not who.writes and scope["method"] not in _READING and access is not Access.ALL:
                raise Forbidden("The role reader may only read.")
            if access is Access.OPERATORS and not who.admin and identity is not ANYBODY:
                raise Forbidden("Only an administrator may see this.")
            caller = Caller(who.project, who.admin, change)
            answer: Reply = await act(Call(scope, receive, given, caller, self.settings.body_max))
        except Unauthorized as error:
            where = self.identity.where
            uri = where if "://" in where else base(scope) + where
            challenge = (b"www-authenticate", f'Keystone uri="{uri}"'.encode())
            answer = problem(error.status, error.type_name, str(error), change.id, (challenge,))
        except AlcorError as error:
            answer = failure(error, change.id)
        except Exception as error:
            answer = self.broken(error, change)
        verb, took = scope["method"], now_us() - change.begun
        self.meter.count(verb, route, answer.status, took)
        self.observer.answered(change, verb, route, scope["path"], answer.status, took)
        return answer

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
