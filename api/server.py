"""The REST edge as an application: every route, and how errors look. Chooses no adapter; `api.app` hands it a cloud."""

import re
from typing import Any
from urllib.parse import parse_qsl

from litestar import Litestar, Response
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, ControllerRouterHandler, ExceptionHandlersMap
from msgspec import json

from api import discovery, openapi, queries
from api.answers import Answer, encode, problem
from api.assets import Assets
from api.auth.identity import Identity
from api.auth.routes import routes as tokens
from api.collections import COLLECTIONS
from api.edge import ANYBODY, Access, Act, AnyRequest, Call, Edge, framework_problem, method
from api.handlers import routes
from api.metrics import Meter
from api.stream import Stream, open_stream
from observability import exposition
from observability.latency import Latency
from observability.stages import STAGES, Change
from observability.tracing import Observer, begin
from planes.goalstate import asyncapi
from planes.management.services import Cloud
from planes.model.errors import Invalid, NotFound
from planes.model.settings import Settings

DEFAULTS = Settings()
#: hosts as they are usually written
_HOST = re.compile(rb"[0-9A-Za-z.:\[\]-]*").fullmatch


class Api(Litestar):
    """The framework's application, with a way past it where the path alone says what is to be done.

    It would find the same there, and prepare for failures that the edge makes answers of: a twentieth of a create.
    What looks unusual is left to its judgement.
    """

    def __init__(self, straight: dict[str, ASGIApp], **more: Any) -> None:
        super().__init__(**more)
        self._straight = straight

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        straight = self._straight.get(scope.get("path", ""))
        if straight is not None and _HOST(next((value for name, value in scope["headers"] if name == b"host"), b"")):
            return straight(scope, receive, send)
        return super().__call__(scope, receive, send)


def create_app(
    cloud: Cloud,
    settings: Settings = DEFAULTS,
    observer: Observer | None = None,
    meter: Meter | None = None,
    identity: Identity = ANYBODY,
) -> Litestar:
    """The application. `settings` gives bounds and the trace ratio; what is not given measures for itself."""
    observer = observer or Observer(Latency())
    edge = Edge(cloud, settings, observer, meter or Meter(observer.latency), identity)
    handlers = [handler for collection in COLLECTIONS for handler in routes(edge, collection)]
    return Api(
        edge.straight,
        route_handlers=[
            *handlers,
            *_discovery(edge),
            *_alcor(edge),
            *_process(edge),
            *_console(edge),
            *tokens(edge, identity),
        ],
        exception_handlers=_errors(edge),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


def _errors(edge: Edge) -> ExceptionHandlersMap:
    """Answers to what fails outside a handler: unknown paths, wrong methods, and whatever nobody thought of."""

    def refused(request: AnyRequest, error: HTTPException) -> Response[bytes]:
        return framed(request, framework_problem(error, Change().id))

    def broken(request: AnyRequest, error: Exception) -> Response[bytes]:
        change = begin("request", "", 0.0)
        answer = edge.broken(error, change)
        edge.observer.answered(change, method(request.scope), "", request.scope["path"], answer.status, 0)
        return framed(request, answer)

    def framed(request: AnyRequest, answer: Answer) -> Response[bytes]:
        edge.meter.count(method(request.scope), "", answer.status, 0)
        headers = {name.decode(): value.decode() for name, value in answer.headers if name != b"content-length"}
        return Response(answer.body, status_code=answer.status, headers=headers)

    return {HTTPException: refused, Exception: broken}


def _get(edge: Edge, what: str, act: Act, *paths: str, access: Access = Access.TENANTS) -> ControllerRouterHandler:
    """A route that is read."""
    return edge.route(paths, {"GET": (what, act)}, access)


def _discovery(edge: Edge) -> list[ControllerRouterHandler]:
    async def versions(call: Call) -> Answer:
        return Answer(encode({"versions": discovery.versions(call.base)}), call.id)

    async def resources(call: Call) -> Answer:
        base = call.base
        # openstacksdk, when this is its endpoint, looks for "version" here; Neutron's own clients for "resources".
        found = {"version": discovery.versions(base)[0], "resources": discovery.resources(base)}
        return Answer(encode(found), call.id)

    async def extensions(call: Call) -> Answer:
        return Answer(encode({"extensions": discovery.extensions()}), call.id)

    async def extension(call: Call) -> Answer:
        alias = call.part("alias").removesuffix(".json")
        if (found := discovery.extension(alias)) is None:
            raise NotFound(f"Extension with alias {alias:.80} does not exist", "ExtensionNotFound")
        return Answer(encode({"extension": found}), call.id)

    return [
        _get(edge, "list versions", versions, "/", access=Access.ALL),
        _get(edge, "list resources", resources, "/v2.0"),
        _get(edge, "list extensions", extensions, "/v2.0/extensions", "/v2.0/extensions.json"),
        _get(edge, "show extension", extension, "/v2.0/extensions/{alias:str}"),
    ]


def _alcor(edge: Edge) -> list[ControllerRouterHandler]:
    async def change(call: Call) -> Answer:
        view = await edge.cloud.traces.change(call.who, call.part("key"))
        return Answer(encode({"change": view}), call.id)

    async def changes(call: Call) -> Answer:
        wanted = queries.wanted_changes(call.query)
        return Answer(encode({"changes": edge.cloud.traces.changes(call.who, wanted)}), call.id)

    async def events(call: Call) -> Stream:
        return await open_stream(edge.cloud.traces, call)

    async def latency(call: Call) -> Answer:
        return Answer(encode(edge.cloud.traces.latency()), call.id)

    async def history(call: Call) -> Answer:
        stage = dict(parse_qsl(call.query.decode("latin-1"))).get("stage", "total")
        if stage not in (*STAGES, "total"):
            raise Invalid(f"Invalid input for stage. Reason: '{stage:.80}' is not one of {', '.join(STAGES)}, total.")
        return Answer(encode(edge.observer.latency.history(stage)), call.id)

    return [
        _get(edge, "show change", change, "/v2.0/alcor/changes/{key:str}"),
        _get(edge, "list changes", changes, "/v2.0/alcor/changes"),
        _get(edge, "stream events", events, "/v2.0/alcor/events"),
        _get(edge, "show latency", latency, "/v2.0/alcor/latency"),
        _get(edge, "show latency history", history, "/v2.0/alcor/latency/history"),
    ]


def _console(edge: Edge) -> list[ControllerRouterHandler]:
    assets = Assets()

    async def file(call: Call) -> Answer:
        path = call.part("path").strip("/")
        known = call.header(b"if-none-match").encode("latin-1")
        if (found := assets.answer(path, known, call.id)) is None:
            raise NotFound(f"The console has no file {path:.80}.", "HTTPNotFound")
        return found

    return [
        _get(edge, "show console", file, "/console", "/console/{path:path}", access=Access.ALL),
    ]


def _process(edge: Edge) -> list[ControllerRouterHandler]:
    document = openapi.document()
    # JSON is YAML
    southbound = json.format(json.encode(asyncapi.document(edge.settings.prefix)), indent=2)

    async def schema(call: Call) -> Answer:
        return Answer(document, call.id)

    async def messages(call: Call) -> Answer:
        return Answer(southbound, call.id, kind=b"application/yaml")

    async def alive(call: Call) -> Answer:
        return Answer(b'{"status":"alive"}', call.id)

    async def ready(call: Call) -> Answer:
        if reasons := await edge.cloud.health.ready():
            return problem(503, "ServiceUnavailable", " ".join(reasons), call.id, [(b"retry-after", b"1")])
        return Answer(b'{"status":"ready"}', call.id)

    async def metrics(call: Call) -> Answer:
        accept = call.header(b"accept")
        text, kind = exposition.answer(edge.meter.registry.collect(), accept)
        return Answer(text.encode(), call.id, kind=kind.encode())

    return [
        _get(edge, "show schema", schema, "/schema", "/schema/openapi.json", access=Access.ALL),
        _get(edge, "show messages", messages, "/asyncapi.yaml", access=Access.ALL),
        _get(edge, "show health", alive, "/healthz", access=Access.ALL),
        _get(edge, "show readiness", ready, "/readyz", access=Access.ALL),
        _get(edge, "show metrics", metrics, "/metrics", access=Access.OPERATORS),
    ]
