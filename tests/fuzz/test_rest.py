"""Garbage from clients: requests that the OpenAPI document allows, requests that it forbids, and bent ones.

Whatever comes, no answer is a 5xx, an error names its reason in Neutron's format, answers are what the document says,
and what a refused request meant is as it was.
"""

import json
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api import openapi
from api.server import create_app
from planes.management.context import ManagementConfig
from planes.model.enums import Kind
from planes.model.resources import PortState
from planes.model.settings import Settings
from planes.store.protocol import Values
from planes.store.rows import decode
from tests.support.cloud import running
from tests.support.http import ADMIN, Api, client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = os.environ.get("PROFILE") == "long"
DRAWN, BENT = (8000, 40_000) if LONG else (800, 4000)
DOCUMENT = json.loads(openapi.document())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]
#: an answer without an end has tests of its own
OPERATIONS = [operation for operation in OPERATIONS if operation.path != "/v2.0/alcor/events"]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
#: so that a long run does not fill the cloud up; what is over is one more reason to refuse
QUOTAS = {"network": 40, "subnet": 60, "port": 200, "security_group": 40, "security_group_rule": 200}
_VISIBLE = {
    "networks": (Kind.NETWORK, Kind.SUBNET),
    "ports": (Kind.PORT,),
    "groups": (Kind.GROUP, Kind.RULE),
}
_HEADERS: tuple[list[tuple[bytes, bytes]], ...] = (
    [(b"prefer", b"wait=0")],
    [(b"if-match", b"revision_number=1")],
    [(b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")],
)
_NAMES = (b"prefer", b"if-match", b"traceparent", b"x-project-id", b"x-roles", b"content-type", b"content-length", b"x")
_BYTES = (
    b"", b"wait=99999999999", b"wait=-1", b"revision_number=99999999999999999999", b"*", b"00-zz-zz-01", b"ff-" * 30,
    b"../..", b"a b", "\u00e9".encode("latin-1"), b"member,reader", b"text/plain", b"x" * 5000,
)  # fmt: skip
_QUERIES = (
    "limit=-1", "limit=x", "limit=99999999999999999999", "marker=x", "sort_key=nothing", "sort_dir=up", "fields=",
    "fields=x,y", "page_reverse=perhaps", "id=1&id=2", "x=1", "fixed_ips=ip_address=1", "fixed_ips=", "%00=%ff",
    "network_id=", "admin_state_up=2", "mtu=x", "&&&===", "a=1&" * 300, "name=" + "x" * 3000, "limit=1&limit=2",
    "created_at=x", "binding:host_id=h1", "device_id=a", "revision_number=x",
)  # fmt: skip
_ID = "some id"
#: requests that are right, by method and path
_BODIES: dict[str, list[Any]] = {
    "POST/networks": [{"network": {"name": "n", "mtu": 1400}}, {"networks": [{}, {"shared": False}]}],
    "POST/subnets": [
        {"subnet": {"network_id": _ID, "cidr": "10.9.0.0/24", "ip_version": 4}},
        {"subnet": {"network_id": _ID, "cidr": "10.8.0.0/28", "gateway_ip": None, "allocation_pools": [
            {"start": "10.8.0.3", "end": "10.8.0.9"}]}},
    ],
    "POST/ports": [
        {"port": {"network_id": _ID, "binding:host_id": "h1", "fixed_ips": [{"ip_address": "10.0.0.77"}]}},
        {"ports": [{"network_id": _ID, "mac_address": "fa:16:3e:00:00:77"}, {"network_id": _ID}]},
        {"port": {"network_id": _ID, "allowed_address_pairs": [{"ip_address": "10.0.0.0/30"}], "name": "p"}},
    ],
    "POST/security-groups": [{"security_group": {"name": "g"}}],
    "POST/security-group-rules": [
        {"security_group_rule": {"security_group_id": _ID, "direction": "ingress", "protocol": "tcp",
                                 "port_range_min": 1, "port_range_max": 80, "remote_ip_prefix": "10.0.0.0/8"}},
    ],
    "PUT/networks/{id}": [{"network": {"name": "m", "admin_state_up": False}}],
    "PUT/ports/{id}": [{"port": {"name": "q", "binding:host_id": "h2", "fixed_ips": [{"ip_address": "10.0.0.99"}]}}],
    "PUT/security-groups/{id}": [{"security_group": {"name": "h"}}],
    "DELETE/ports/{id}": [{}],
    "DELETE/subnets/{id}": [{}],
    "DELETE/networks/{id}": [{}],
    "DELETE/security-groups/{id}": [{}],
}  # fmt: skip
#: what stands where something else is expected
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, 1e308, "", " ", "x" * 300, "ä\0\n\u202e", "\ud800", "10.0.0.0/8",
    "10.0.0.300", "::1", "fa:16:3e:00:00:01", "00000000-0000-0000-0000-000000000000", [], [[]], [None] * 50, {},
    {"a": [1]}, [[[[[[[[1]]]]]]]], "true", "%00", "*", "h1",
)  # fmt: skip


class Rig:
    """A cloud with something in it: of the fuzzer's own project, and of another that it must not touch."""

    def __init__(self, api: Api, path: Path) -> None:
        self.api = api
        self._file = sqlite3.connect(f"file:{path / 'store.db'}?mode=ro", uri=True)
        self.ids: list[str] = []

    async def fill(self) -> None:
        for project in ("demo", "guarded"):
            as_project = {"headers": {"X-Project-Id": project}}
            for cidr in ("10.0.0.0/24", "10.1.0.0/16"):
                net = await self.api.network(cidr, **as_project)
                wanted = {"network_id": net, "binding:host_id": "h1"}
                made = await self.api("POST", "/v2.0/ports", {"ports": [wanted] * 3}, 201, **as_project)
                self.ids += [net, *(port["id"] for port in made["ports"])]
            group = {"security_group": {"name": "web"}}
            made = await self.api("POST", "/v2.0/security-groups", group, 201, **as_project)
            self.ids.append(made["security_group"]["id"])
        await self.api("POST", "/v2.0/alcor/hosts", {"host": {"name": "h1"}}, 201, headers=ADMIN)

    def objects(self) -> dict[Values, Any]:
        """Everything that a client can see, as stored; what is being deleted does not count."""
        found: dict[Values, Any] = {}
        for table, kinds in _VISIBLE.items():
            marks = ",".join(str(int(kind)) for kind in kinds)
            for *where, kind, key, _, body in self._file.execute(f"SELECT * FROM {table} WHERE kind IN ({marks})"):
                row = decode(kind, body)
                if kind != Kind.PORT or row.state == PortState.LIVE:
                    found[*where, kind, key] = row
        return found

    async def send(self, method: str, path: str, **how: Any) -> httpx.Response:
        """The answer; AssertionError when it is none of ours, or a refusal that changed something."""
        before = self.objects()
        answer = await self.api.http.request(method, path, **how)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400 and method != "HEAD":  # which has no body
            error = msgspec.convert(answer.json(), dict[str, dict[str, str]])["NeutronError"]
            assert error["type"]
            assert error["message"]
            assert self.objects() == before, "a refused request changed something"
        return answer

    def guarded(self) -> dict[Values, Any]:
        return {where: row for where, row in self.objects().items() if getattr(row, "project", "guarded") == "guarded"}


@pytest.fixture
async def rig(memory_path: Path) -> AsyncIterator[Rig]:
    management = ManagementConfig(quotas=QUOTAS, release_wait=0.2)
    bounds = Settings(body_max=100_000, bulk_max=20)
    async with running(memory_path, management=management) as cloud, client(create_app(cloud, bounds)) as http:
        made = Rig(Api(http), memory_path)
        await made.fill()
        yield made


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def _cases() -> st.SearchStrategy[Case[Any]]:
    both = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    return st.sampled_from(OPERATIONS).flatmap(
        lambda operation: st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in both))
    )


@settings(
    max_examples=DRAWN,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(case=_cases(), place=st.integers(0, 99), known=st.booleans())
async def test_requests_drawn_from_the_document(rig: Rig, case: Case[Any], place: int, known: bool) -> None:
    guarded = rig.guarded()
    how = _for_httpx(case, rig.ids[place % len(rig.ids)] if known else "")
    note(f"{how}")
    answer = await rig.send(**how)
    if case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE:
        # the document cannot say that `fields` leaves attributes out
        checks = CHECKS[:-1] if "fields" in (case.query or {}) else CHECKS
        case.validate_response(answer, checks=checks)
    if "x-roles" not in {name.lower() for name in how["headers"]}:
        assert rig.guarded() == guarded


def _for_httpx(case: Case[Any], known: str) -> dict[str, Any]:
    """The request, its ids replaced by one that exists, so that it comes further than to a 404."""
    sent = case.as_transport_kwargs(base_url="http://test:9696")
    url, body = sent["url"], sent.get("data")
    if "json" in sent:
        body = json.dumps(_with_id(sent["json"], known))
    if known and "key" in case.path_parameters:
        url = url.rsplit("/", 1)[0] + "/" + known
    headers = {**sent["headers"], "X-Project-Id": "demo", "Content-Type": "application/json"}
    params = [(name, value) for name, given in (sent.get("params") or {}).items() for value in _values(given)]
    return {"method": sent["method"], "path": url, "headers": headers, "params": params, "content": body}


def _values(given: Any) -> list[str]:
    return [str(value).encode("utf-8", "replace").decode() for value in (given if isinstance(given, list) else [given])]


def _with_id(tree: Any, known: str) -> Any:
    if isinstance(tree, Mapping):
        return {
            name: known if known and name.endswith("_id") and isinstance(value, str) else _with_id(value, known)
            for name, value in tree.items()
        }
    return [_with_id(item, known) for item in tree] if isinstance(tree, list) else tree


async def test_bent_requests(rig: Rig) -> None:
    """Requests that were right, with one to three things wrong anywhere in them."""
    chance = random.Random(os.environ.get("SEED", "7"))
    guarded = rig.guarded()
    for number in range(BENT):
        method, path, headers, body = _right(rig, chance)
        for _ in range(chance.choice((1, 1, 2, 3))):
            method, path, headers, body = _bend(method, path, headers, body, chance)
        story = f"number {number}: {method} {path!r} {headers} {body[:300]!r}"
        try:
            await rig.send(method, path, headers=headers, content=body)
            assert rig.guarded() == guarded, "another project's objects changed"
        except Exception as error:
            raise AssertionError(story) from error
    assert (await rig.api.http.get("/healthz")).status_code == 200
    assert await rig.api("GET", "/v2.0/networks")


_Request = tuple[str, str, list[tuple[bytes, bytes]], bytes]


def _right(rig: Rig, chance: random.Random) -> _Request:
    """One that would be taken."""
    id_ = chance.choice(rig.ids)
    headers = [(b"content-type", b"application/json"), (b"x-project-id", b"demo")]
    if chance.random() < 0.2:
        headers += chance.choice(_HEADERS)
    if chance.random() < 0.3:
        collection = chance.choice(("networks", "subnets", "ports", "security-groups", "alcor/hosts"))
        query = chance.choice(
            ("", "?limit=2", "?fields=id", "?sort_key=id&sort_dir=desc", f"?marker={id_}", f"?id={id_}")
        )
        return "GET", f"/v2.0/{collection}{chance.choice(('', '/' + id_))}{query}", headers, b""
    where = chance.choice(list(_BODIES))
    method, _, path = where.partition("/")
    body = json.dumps(_with_id(chance.choice(_BODIES[where]), id_)).encode()
    return method, f"/v2.0/{path.replace('{id}', id_)}", headers, body


def _bend(method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes, chance: random.Random) -> _Request:
    way = chance.randrange(8)
    if way == 0:
        at = chance.randrange(len(body) + 1)
        body = body[:at] + chance.randbytes(chance.randrange(4)) + body[at + chance.randrange(3) :]
    elif way == 1:
        at = chance.randrange(1, len(path) + 1)
        path = path[:at] + chance.choice(("%00", "%ff", "/", "?", "&", "=", "%2e%2e", "é", ".json", "'")) + path[at:]
    elif way == 2:
        headers = [*headers, (chance.choice(_NAMES), chance.choice(_BYTES))]
    elif way == 3:
        path += chance.choice("?&") + chance.choice(_QUERIES)
    elif way == 4:
        method = chance.choice(("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "X"))
    else:
        body = _restructured(body, chance)
    return method, path, headers, body


def _restructured(body: bytes, chance: random.Random) -> bytes:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return chance.choice((b"[" * 5000, b'{"port":' * 500, b"null", b"1", b'"x"', b"", b"{}", b"\xef\xbb\xbf{}"))
    node = tree
    while isinstance(node, dict | list) and node:
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        if chance.random() < 0.5 or not isinstance(node[key], dict | list) or not node[key]:
            _change(node, key, chance)
            break
        node = node[key]
    return json.dumps(tree).encode()


def _change(node: Any, key: Any, chance: random.Random) -> None:
    way = chance.randrange(4)
    if way == 0 and isinstance(node, dict):
        node[chance.choice(("x", "id", "status", "tenant_id", "__class__", "", key + "\0"))] = node.pop(key)
    elif way == 1:
        del node[key]
    else:
        node[key] = chance.choice(ODD)
