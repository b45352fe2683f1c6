"""The part of Keystone's API v3 that clients need to get a token: of our own users, or relayed to a Keystone.

Mounted by `api.server` in the modes that need it. Bodies and errors are Keystone's, so that `openstack`, openstacksdk
and keystoneauth log in as everywhere.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from api.answers import Answer, Headers, encode
from api.auth.embedded import REQUIRED, Embedded, Token, time_of
from api.auth.identity import Identity
from api.auth.keystone import Keystone
from api.edge import Access, Call, Edge
from planes.model.errors import AlcorError, Invalid, TooLarge, Unauthorized, Unavailable

#: bytes of a request for a token
LONGEST = 16_384
TOKENS = "/v3/auth/tokens"
_DOMAIN = {"id": "default", "name": "Default"}
_TITLES = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 413: "Request Entity Too Large"}


class _Named(Struct):
    id: str = ""
    name: str = ""


class _User(Struct):
    id: str = ""
    name: str = ""
    password: str = ""


class _Password(Struct):
    user: _User


class _Known(Struct):
    id: str


class _Identity(Struct):
    methods: list[str]
    password: _Password | None = None
    token: _Known | None = None


class _Scope(Struct):
    project: _Named | None = None


class _Auth(Struct):
    identity: _Identity
    scope: _Scope | str | None = None


class _Wanted(Struct):
    auth: _Auth


def routes(edge: Edge, identity: Identity) -> list[ControllerRouterHandler]:
    """None where nobody logs in."""
    if isinstance(identity, Embedded):
        return _embedded(edge, identity)
    if isinstance(identity, Keystone):
        return [_route(edge, TOKENS, POST=("issue token", _relay(identity)))]
    return []


Act = Callable[[Call], Awaitable[Answer]]


def _route(edge: Edge, path: str, **acts: tuple[str, Act]) -> ControllerRouterHandler:
    return edge.route((path,), {method: (what, _answered(act)) for method, (what, act) in acts.items()}, Access.ALL)


def _answered(act: Act) -> Act:
    """The same; errors as Keystone words them."""

    async def answered(call: Call) -> Answer:
        try:
            return await act(call)
        except AlcorError as error:
            return _problem(error, call.id)

    return answered


def _embedded(edge: Edge, identity: Embedded) -> list[ControllerRouterHandler]:
    tokens = Tokens(identity)
    return [
        _route(edge, "/v3", GET=("show identity version", tokens.version)),
        _route(edge, TOKENS, POST=("issue token", tokens.issue), GET=("check token", tokens.check)),
        _route(edge, "/v3/auth/projects", GET=("list own projects", tokens.projects)),
        _route(edge, "/v3/auth/catalog", GET=("show catalog", tokens.catalog)),
    ]


class Tokens:
    """Tokens of our own users."""

    def __init__(self, identity: Embedded) -> None:
        self._users = identity

    async def version(self, call: Call) -> Answer:
        links = [{"rel": "self", "href": f"{call.base}/v3/"}]
        media = [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}]
        found = {"id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z", "links": links}
        return Answer(encode({"version": found | {"media-types": media}}), call.id)

    async def issue(self, call: Call) -> Answer:
        auth = (await _wanted(call)).auth
        name = await self._proven(auth.identity)
        text, token = self._users.issue(name, self._project(name, auth.scope))
        return Answer(encode({"token": self._view(token, call, auth.identity.methods)}), call.id, 201, _subject(text))

    async def check(self, call: Call) -> Answer:
        """What a token says; asked with that token or another that is valid."""
        self._users.read(call.headers.get("token", ""))
        subject = call.headers.get("subject", "")
        return Answer(
            encode({"token": self._view(self._users.read(subject), call, ["password"])}),
            call.id,
            200,
            _subject(subject),
        )

    async def projects(self, call: Call) -> Answer:
        token = self._users.read(call.headers.get("token", ""))
        found = [
            {"id": name, "name": name, "domain_id": _DOMAIN["id"], "enabled": True, "is_domain": False}
            for name in self._users.projects(token.sub)
        ]
        return Answer(encode({"projects": found, "links": {"self": f"{call.base}/v3/auth/projects"}}), call.id)

    async def catalog(self, call: Call) -> Answer:
        self._users.read(call.headers.get("token", ""))
        return Answer(encode({"catalog": _catalog(call.base)}), call.id)

    async def _proven(self, identity: _Identity) -> str:
        """The user's name. Raises Unauthorized."""
        if identity.methods == ["password"] and identity.password:
            user = identity.password.user
            await self._users.log_in(user.name or user.id, user.password)
            return user.name or user.id
        if identity.methods == ["token"] and identity.token:
            return self._users.read(identity.token.id).sub
        raise Unauthorized("Log in by method password, or token for another project.")

    def _project(self, name: str, scope: _Scope | str | None) -> str:
        if isinstance(scope, _Scope):
            if scope.project is None or not (asked := scope.project.id or scope.project.name):
                raise Unauthorized("A token is for a project: scope.project names it by id or name.")
            return asked
        found = self._users.projects(name)
        if not found:
            raise Unauthorized(REQUIRED)
        return found[0]

    def _view(self, token: Token, call: Call, methods: list[str]) -> dict[str, Any]:
        return {
            "methods": methods,
            "user": {"id": token.sub, "name": token.sub, "domain": _DOMAIN, "password_expires_at": None},
            "project": {"id": token.project, "name": token.project, "domain": _DOMAIN},
            "roles": [{"id": role, "name": role} for role in self._users.roles(token.sub, token.project)],
            "is_domain": False,
            "audit_ids": [token.jti],
            "catalog": _catalog(call.base),
            "issued_at": time_of(token.iat),
            "expires_at": time_of(token.exp),
        }


def _relay(identity: Keystone) -> Act:
    async def relay(call: Call) -> Answer:
        answer = await identity.relay(await _body(call))
        token = answer.headers.get("X-Subject-Token", "")
        return Answer(answer.content, call.id, answer.status_code, _subject(token) if token else ())

    return relay


async def _body(call: Call) -> bytes:
    body = await call.body()
    if len(body) > LONGEST:
        raise TooLarge(f"The body is larger than {LONGEST} bytes.")
    return body


async def _wanted(call: Call) -> _Wanted:
    try:
        return msgspec.json.decode(await _body(call), type=_Wanted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"Invalid request for a token: {error}.") from None


def _catalog(base: str) -> list[dict[str, Any]]:
    return [_service("network", "neutron", base), _service("identity", "keystone", f"{base}/v3")]


def _service(kind: str, name: str, url: str) -> dict[str, Any]:
    endpoints = [
        {"id": f"{kind}-{where}", "interface": where, "region": "default", "region_id": "default", "url": url}
        for where in ("public", "internal", "admin")
    ]
    return {"id": kind, "type": kind, "name": name, "endpoints": endpoints}


def _subject(token: str) -> Headers:
    return ((b"x-subject-token", token.encode()), (b"vary", b"X-Auth-Token"))


def _problem(error: AlcorError, id_: bytes) -> Answer:
    """Keystone's error body."""
    body = {"code": error.status, "title": _TITLES.get(error.status, "Service Unavailable"), "message": str(error)}
    retry = ((b"retry-after", str(error.retry_after).encode()),) if isinstance(error, Unavailable) else ()
    return Answer(encode({"error": body}), id_, error.status, retry)
