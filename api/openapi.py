"""The OpenAPI 3.1 document, made from the very Structs that decode requests and encode answers. Pure."""

from typing import Any

import msgspec
from msgspec import Struct

from api.answers import encode
from api.collections import COLLECTIONS, Collection
from planes.management.listing import OPAQUE, attributes
from planes.model.views import ChangeView, EventView

_REF = "#/components/schemas/{name}"
_UUID = {"type": "string", "format": "uuid"}
_ERROR = {
    "type": "object",
    "required": ["NeutronError"],
    "properties": {
        "NeutronError": {
            "type": "object",
            "required": ["type", "message", "detail"],
            "properties": {name: {"type": "string"} for name in ("type", "message", "detail")},
        }
    },
}
_PAGING = {
    "limit": ({"type": "integer", "minimum": 0}, "Objects in one page; 0: no limit."),
    "marker": ({"type": "string"}, "The last object of the page before."),
    "page_reverse": ({"type": "boolean"}, "The page before the marker."),
    "sort_key": ({"type": "array", "items": {"type": "string"}}, "Attributes to sort by."),
    "sort_dir": ({"type": "array", "items": {"enum": ["asc", "desc"]}}, "One direction for each sort key."),
    "fields": ({"type": "array", "items": {"type": "string"}}, "Attributes to return; absent: all."),
}
_HEADERS = {
    "X-Auth-Token": "Who calls, where authentication is on: a token of /v3/auth/tokens or of Keystone.",
    "X-Project-Id": "The caller's project, `demo` when absent; with a token only for administrators.",
    "X-Roles": "The caller's roles, `member` when absent; with a token those of its roles to act by.",
    "traceparent": "W3C trace context; the change continues that trace.",
}
_PREFER = "`wait=N`: answer when the hosts have applied the change, at most N seconds later."
_IF_MATCH = "`revision_number=N`: only if that revision is still current, else 412."


def document() -> bytes:
    """The whole document, encoded."""
    paths: dict[str, Any] = {}
    for collection in COLLECTIONS:
        paths |= _paths(collection)
    paths |= _others()
    return encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Alcor Mesh",
                "version": "v2.0",
                "description": "OpenStack Networking v2.0, and what this control plane adds under /v2.0/alcor.",
            },
            "paths": paths,
            "components": {"schemas": _schemas()},
        }
    )


def _schemas() -> dict[str, Any]:
    types = [type_ for c in COLLECTIONS for type_ in (c.create, c.update, c.view) if type_ is not None]
    unique = list(dict.fromkeys([*types, ChangeView, EventView]))
    _, found = msgspec.json.schema_components(unique, ref_template=_REF)
    return found | {"Error": _ERROR}


def _ref(type_: type[Struct] | str) -> dict[str, str]:
    return {"$ref": _REF.format(name=type_ if isinstance(type_, str) else type_.__name__)}


def _object(name: str, schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: schema, **more}}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _parameter(name: str, place: str, schema: Any, description: str = "") -> dict[str, Any]:
    found = {"name": name, "in": place, "required": place == "path", "schema": schema}
    return found | ({"description": description} if description else {})


def _header(name: str, description: str) -> dict[str, Any]:
    return _parameter(name, "header", {"type": "string"}, description)


def _answers(status: int, schema: Any | None, *errors: int) -> dict[str, Any]:
    headers = {
        "X-Openstack-Request-Id": {"schema": {"type": "string"}, "description": "Names the request and its trace."}
    }
    good: dict[str, Any] = {"description": "Done.", "headers": headers}
    if schema is not None:
        good["content"] = _json(schema)
    bad = {"description": "Refused; the message says why.", "headers": headers, "content": _json(_ref("Error"))}
    return {str(status): good} | {str(code): bad for code in errors}


def _paths(c: Collection) -> dict[str, Any]:
    shared = [_header(name, text) for name, text in _HEADERS.items()]
    key = _parameter("key", "path", _UUID if c.key == "id" else {"type": "string"})
    one, many = _object(c.singular, _ref(c.view)), {"type": "array", "items": _ref(c.view)}
    page = _object(c.plural, many, **{f"{c.plural}_links": {"type": "array", "items": {"type": "object"}}})
    changes = [_header("If-Match", _IF_MATCH)]
    prefer = [_header("Prefer", _PREFER)] if c.waits else []
    body = {
        "oneOf": [
            _object(c.singular, _ref(c.create)),
            _object(c.plural, {"type": "array", "items": _ref(c.create), "minItems": 1}),
        ]
    }
    collection = {
        "parameters": shared,
        "get": _operation(c, "list", _query(c), _answers(200, page, 400)),
        "post": _operation(
            c,
            "create",
            prefer,
            _answers(201, {"oneOf": [one, _object(c.plural, many)]}, 400, 403, 404, 409, 413, 503),
            body,
        ),
    }
    member = {
        "parameters": [key, *shared],
        "get": _operation(c, "show", [_query(c)[-1]], _answers(200, one, 400, 404)),
        "delete": _operation(c, "delete", changes + prefer, _answers(204, None, 400, 403, 404, 409, 412, 503)),
    }
    if c.update is not None:
        answers = _answers(200, one, 400, 403, 404, 409, 412, 413, 503)
        member["put"] = _operation(c, "update", changes + prefer, answers, _object(c.singular, _ref(c.update)))
    return {c.path: collection, c.path + "/{key}": member}


def _operation(c: Collection, verb: str, parameters: list[Any], answers: Any, body: Any = None) -> dict[str, Any]:
    name = c.plural if verb == "list" else c.singular
    found = {"operationId": f"{verb}_{name}", "tags": [c.plural], "parameters": parameters, "responses": answers}
    return found | ({"requestBody": {"required": True, "content": _json(body)}} if body else {})


def _query(c: Collection) -> list[dict[str, Any]]:
    text = {"type": "array", "items": {"type": "string"}}
    filters = [
        _parameter(name, "query", text, "Filter; several values are alternatives.")
        for name, attribute in attributes(c.view).items()
        if attribute.kind != OPAQUE
    ]
    return filters + [_parameter(name, "query", schema, text_) for name, (schema, text_) in _PAGING.items()]


def _others() -> dict[str, Any]:
    """What is not a collection."""
    anything = {"type": "object"}
    plain = {
        "/": ("list_versions", "API versions."),
        "/v2.0": ("list_resources", "Collections."),
        "/v2.0/extensions": ("list_extensions", "Extensions of OpenStack Networking that are implemented."),
        "/v2.0/alcor/latency": ("show_latency", "Latency of every stage since start and for the last minutes."),
        "/healthz": ("show_health", "The process is alive."),
        "/readyz": ("show_readiness", "Store and bus are usable; 503 with the reasons when not."),
    }
    found: dict[str, Any] = {
        path: {"get": {"operationId": name, "summary": text, "responses": _answers(200, anything)}}
        for path, (name, text) in plain.items()
    }
    key = _parameter("key", "path", {"type": "string"}, "A request id, or a port id for its last change.")
    answers = _answers(200, _object("change", _ref(ChangeView)), 400, 404)
    found["/v2.0/alcor/changes/{key}"] = {
        "parameters": [key],
        "get": {"operationId": "show_change", "summary": "The trace of a change.", "responses": answers},
    }
    stage = _parameter("stage", "query", {"type": "string"}, "One of the stages, or total, which is the default.")
    found["/v2.0/alcor/latency/history"] = {
        "parameters": [stage],
        "get": {
            "operationId": "show_latency_history",
            "summary": "How often a stage took how long, in slots of ten seconds: a heat map of ten minutes.",
            "responses": _answers(200, anything, 400),
        },
    }
    return found | _live()


def _live() -> dict[str, Any]:
    """What happened lately, and what happens."""
    shared = [_header(name, text) for name, text in _HEADERS.items()]
    whole, word = {"type": "integer", "minimum": 0}, {"type": "string"}
    filters = [
        _parameter("limit", "query", whole | {"maximum": 1000}, "How many; absent: 1000."),
        _parameter("status", "query", {"enum": ["ACTIVE", "ERROR", "BUILD"]}, "Only these."),
        _parameter("resource", "query", word, "`port`, or with its verb: `create port`."),
        _parameter("id", "query", word, "Changes of this object."),
        _parameter("min_us", "query", whole, "Only those that took this long, in µs."),
    ]
    recent = _answers(200, _object("changes", {"type": "array", "items": _ref(ChangeView)}), 400)
    stream = _answers(200, None, 503)
    stream["200"]["content"] = {"text/event-stream": {"schema": _ref(EventView)}}
    return {
        "/v2.0/alcor/changes": {
            "parameters": shared,
            "get": {
                "operationId": "list_changes",
                "summary": "The latest changes that this instance made, the newest first.",
                "parameters": filters,
                "responses": recent,
            },
        },
        "/v2.0/alcor/events": {
            "parameters": shared,
            "get": {
                "operationId": "stream_events",
                "summary": "What happens, as server-sent events without an end; `event: change` carries a change.",
                "responses": stream,
            },
        },
    }
