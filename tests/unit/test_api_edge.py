"""What a client may send and what it gets to hear: bodies, errors, headers, discovery, health, metrics, OpenAPI."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.app import check
from api.bodies import Bodies
from api.collections import COLLECTIONS
from api.server import create_app
from observability.latency import Latency
from observability.tracing import Observer
from planes.goalstate import asyncapi
from planes.model.errors import Invalid, Unavailable
from planes.model.settings import Settings
from tests.support.cloud import running
from tests.support.http import ADMIN, Api, client, serving

NETWORK = "0" * 32


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path, Settings(body_max=20_000, bulk_max=3)) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "networks",
            {"network": {"admin_state_up": 5}},
            "Invalid input for admin_state_up. Reason: Expected bool, got int.",
        ),
        (
            "networks",
            {"networks": [{}, {"name": 5}]},
            "Invalid input for networks[1].name. Reason: Expected str, got int.",
        ),
        ("networks", {"network": {"foo": 1, "bar": 2}}, "Unrecognized attribute(s) 'bar, foo'"),
        ("networks", {"network": {"id": NETWORK}}, "Attribute 'id' not allowed in POST"),
        (
            "networks",
            {"network": {"project_id": "a/b"}},
            "Invalid input for project_id. Reason: 'a/b' is not a valid project.",
        ),
        (
            "networks",
            {"network": {"project_id": "*"}},
            "Invalid input for project_id. Reason: '*' is not a valid project.",
        ),
        ("networks", {"net": {}}, "Unable to find 'network' in request body"),
        ("networks", {"network": {}, "networks": [{}]}, "Unrecognized attribute(s) 'networks'"),
        ("networks", {"network": []}, "Invalid input for network. Reason: an object is expected."),
        ("networks", {"networks": {}}, "Invalid input for networks. Reason: a list of objects is expected."),
        ("networks", {"networks": []}, "Resources required"),
        ("networks", {}, "Resource body required"),
        ("networks", [], "Resource body required"),
        ("ports", {"port": {}}, "Failed to parse request. Required attribute 'network_id' not specified"),
        (
            "ports",
            {"ports": [{"network_id": NETWORK, "fixed_ips": [{"subnet": "x"}]}]},
            "Unrecognized attribute(s) 'ports[0].fixed_ips[0].subnet'",
        ),
        (
            "ports",
            {"port": {"network_id": NETWORK, "binding:profile": {"a": "x" * 5000}}},
            "Invalid input for binding:profile. Reason: it is larger than 4096 bytes.",
        ),
    ],
)
async def test_a_refused_body_names_the_attribute_and_the_rule(api: Api, path: str, body: Any, message: str) -> None:
    assert await api.refused("POST", f"/v2.0/{path}", 400, body) == ("HTTPBadRequest", message)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b'{"port": {"name": "\xff"}}',
        b'{"unknown": {"network_id": "\xff"}}',
        b'{"port":{"network_id":"%b","binding:profile":{"a":%b}}}' % (NETWORK.encode(), b"[" * 5000 + b"]" * 5000),
        b'{"port":{"network_id":"%b","binding:profile":{"a":%b}}}' % (NETWORK.encode(), b"9" * 40),
        b'{"port":{"network_id":"%b","binding:profile":{"a":%b}}}' % (NETWORK.encode(), b"9" * 400),
        b'{"port":{"network_id":"%b","name":"\\ud800"}}' % NETWORK.encode(),
        b'{"port":{"network_id":"%b","binding:profile":{"\\ud800":1}}}' % NETWORK.encode(),
    ],
)
async def test_no_body_ends_in_a_failure_of_ours(api: Api, raw: bytes) -> None:
    await api.refused("POST", "/v2.0/ports", 400, content=raw)


async def test_what_cannot_be_changed_is_said(api: Api) -> None:
    for body, name in (({"network_id": NETWORK}, "network_id"), ({"status": "ACTIVE"}, "status")):
        _, message = await api.refused("PUT", f"/v2.0/ports/{NETWORK}", 400, {"port": body})
        assert message == f"Cannot update read-only attribute {name}"


async def test_size_and_number_are_bounded(api: Api) -> None:
    body = {"network": {"description": "x" * 20_000}}
    kind, _ = await api.refused("POST", "/v2.0/networks", 413, body)
    assert kind == "HTTPRequestEntityTooLarge"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    await api.refused("POST", "/v2.0/networks", 413, content=chunks())
    await api.refused("POST", "/v2.0/networks", 413, {"networks": [{}] * 4})


async def test_strings_pass_for_booleans_and_numbers() -> None:
    subnets = next(each for each in COLLECTIONS if each.plural == "subnets")
    wanted = Bodies(subnets, 1).create(
        msgspec.json.encode({"subnet": {"network_id": NETWORK, "ip_version": "4", "enable_dhcp": "False"}})
    )
    assert (wanted.items[0].ip_version, wanted.items[0].enable_dhcp) == (4, False)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/v2.0/routers", 404), ("PATCH", "/v2.0/ports", 405), ("HEAD", "/v2.0/ports", 405)],
)
async def test_unknown_paths_and_methods(api: Api, method: str, path: str, status: int) -> None:
    answer = await api.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["X-Openstack-Request-Id"].startswith("req-")


@pytest.mark.parametrize("project", ["a b", "a/b", "*", "x" * 65, "é"])
async def test_a_project_has_few_characters(api: Api, project: str) -> None:
    headers = [(b"X-Project-Id", project.encode())]
    _, message = await api.refused("GET", "/v2.0/networks", 400, headers=headers)
    assert message.startswith("Invalid input for X-Project-Id.")


async def test_an_id_that_is_none_is_not_found(api: Api) -> None:
    assert await api.refused("GET", "/v2.0/ports/p1", 404) == ("PortNotFound", "Port p1 could not be found.")
    assert (await api.refused("DELETE", "/v2.0/vpcs/v", 404))[0] == "NetworkNotFound"


async def test_discovery(api: Api) -> None:
    (version,) = (await api("GET", "/"))["versions"]
    assert version["links"][0]["href"] == "http://test:9696/v2.0/"
    here = await api("GET", "/v2.0/")
    assert here["version"] == version
    assert {each["collection"] for each in here["resources"]} >= {"networks", "ports", "security_groups"}
    aliases = [each["alias"] for each in (await api("GET", "/v2.0/extensions"))["extensions"]]
    assert "security-group" in aliases
    assert (await api("GET", "/v2.0/extensions/binding.json"))["extension"]["alias"] == "binding"
    assert (await api.refused("GET", "/v2.0/extensions/router", 404))[0] == "ExtensionNotFound"


async def test_the_southbound_contract_is_served(api: Api) -> None:
    answer = await api.http.get("/asyncapi.yaml")
    assert answer.headers["content-type"] == "application/yaml"
    assert answer.json() == asyncapi.document()


async def test_metrics_count_requests_and_stages(api: Api) -> None:
    await api("POST", "/v2.0/networks", {"network": {}}, 201)
    await api("GET", "/v2.0/ports/x", expect=404)
    await api("GET", "/elsewhere/x", expect=404)
    text = (await api.http.get("/metrics")).text
    name = "alcor_http_request_duration_seconds_count"
    assert f'{name}{{method="POST",route="/v2.0/networks",status="201"}} 1' in text
    assert f'{name}{{method="GET",route="/v2.0/ports/{{key}}",status="404"}} 1' in text
    assert f'{name}{{method="GET",route="",status="404"}} 1' in text
    assert "elsewhere" not in text


async def test_health(api: Api) -> None:
    await api("GET", "/healthz")
    await api("GET", "/readyz")


async def test_the_document_describes_every_route_and_resolves(api: Api) -> None:
    document = await api("GET", "/schema")
    assert document["openapi"].startswith("3.1")
    assert {"get", "post"} <= document["paths"]["/v2.0/ports"].keys()
    assert "put" not in document["paths"]["/v2.0/security-group-rules/{key}"]
    assert "binding:host_id" in document["components"]["schemas"]["PortCreate"]["properties"]
    names = set(document["components"]["schemas"])
    references = {each.rpartition("/")[2] for each in _references(document)}
    assert references <= names
    identifiers = [
        op["operationId"] for item in document["paths"].values() for m, op in item.items() if m != "parameters"
    ]
    assert len(identifiers) == len(set(identifiers))


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        here = [value["$ref"]] if "$ref" in value else []
        return here + [found for each in value.values() for found in _references(each)]
    return [found for each in value for found in _references(each)] if isinstance(value, list) else []


async def test_failures_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path) as cloud:

        async def broken(*_: Any) -> Any:
            raise KeyError("secret")

        async def away(*_: Any) -> Any:
            raise Unavailable("The store does not answer.", retry_after=7)

        cloud.networks.create = broken  # type: ignore[assignment, method-assign]
        cloud.networks.get = away  # type: ignore[assignment]
        async with client(create_app(cloud, observer=Observer(Latency()))) as http:
            answer = await http.post("/v2.0/networks", json={"network": {}})
            assert answer.status_code == 500
            assert "secret" not in answer.text
            id_ = answer.headers["X-Openstack-Request-Id"]
            assert any(id_ in record.getMessage() and record.exc_info for record in caplog.records)
            answer = await http.get(f"/v2.0/networks/{NETWORK}", headers=ADMIN)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")


@pytest.mark.parametrize(
    "settings",
    [
        Settings(store="sqlite:///x", api_host="0.0.0.0"),
        Settings(store="sqlite:///x", api_host="example.org"),
        Settings(store="sqlite:///x", auth="keystone"),
        Settings(store="sqlite:///x", auth="keystone", auth_url="keystone"),
        Settings(store="sqlite:///x", auth="keystone", auth_url="https://k/v3", auth_ca="/etc/hostname"),
        Settings(store="sqlite:///x", auth="keystone", auth_url="https://k/v3", auth_ca="/nowhere/ca.crt"),
        Settings(store="sqlite:///x", auth="embedded"),
        Settings(store="sqlite:///x", auth="embedded", auth_users="/nowhere/users.json"),
        Settings(store="redis://x"),
    ],
)
def test_it_refuses_to_run_open(settings: Settings) -> None:
    with pytest.raises(Invalid):
        check(settings)
    check(Settings(store="sqlite:///x", api_host="::1"))


async def test_the_heat_map_names_stages(tmp_path: Path) -> None:
    latency = Latency()
    latency.record("total", 300)
    latency.record("write", 100)
    async with running(tmp_path) as cloud, client(create_app(cloud, Settings(), Observer(latency))) as http:
        api = Api(http)
        found = await api("GET", "/v2.0/alcor/latency/history")
        assert (found["stage"], found["slot_seconds"], len(found["slots"])) == ("total", 10, 60)
        assert {len(slot["counts"]) for slot in found["slots"]} == {len(found["bounds_us"]) + 1}
        write = await api("GET", "/v2.0/alcor/latency/history?stage=write")
        for stage, place in ((found, 5), (write, 2)):
            (counts,) = (slot["counts"] for slot in stage["slots"] if any(slot["counts"]))
            assert counts.index(1) == place
        words = (await api.refused("GET", "/v2.0/alcor/latency/history?stage=wriet", 400))[1]
        assert "'wriet' is not one of accept," in words
