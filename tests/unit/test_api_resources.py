"""The collections over HTTP, on a real cloud: create, bulk, show, list, update, delete, and who may see what."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.http import ADMIN, Api, serving

OTHER = {"X-Project-Id": "other"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def test_the_life_of_a_port(api: Api) -> None:
    network = await api.network()
    port = (await api("POST", "/v2.0/ports", {"port": {"network_id": network, "name": "p"}}, 201))["port"]
    assert port["fixed_ips"][0]["ip_address"] == "10.0.0.2"
    assert port["binding:vif_type"] == "unbound"
    path = f"/v2.0/ports/{port['id']}"
    assert (await api("GET", path + ".json"))["port"] == port
    changed = (await api("PUT", path, {"port": {"name": "q", "admin_state_up": "false"}}))["port"]
    assert (changed["name"], changed["admin_state_up"]) == ("q", False)
    assert changed["revision_number"] > port["revision_number"]
    await api("DELETE", path, expect=204)
    kind, _ = await api.refused("GET", path, 404)
    assert kind == "PortNotFound"


async def test_bulk_creation_answers_in_order_and_in_the_same_shape(api: Api) -> None:
    network = await api.network()
    wanted = [{"network_id": network, "name": f"p{n}"} for n in range(5)]
    ports = (await api("POST", "/v2.0/ports", {"ports": wanted}, 201))["ports"]
    assert [port["name"] for port in ports] == [f"p{n}" for n in range(5)]
    wanted[3]["fixed_ips"] = [{"ip_address": "10.0.0.2"}]  # type: ignore[assignment]
    await api.refused("POST", "/v2.0/ports", 409, {"ports": wanted})
    assert len((await api("GET", "/v2.0/ports"))["ports"]) == 5


async def test_vpcs_are_networks(api: Api) -> None:
    vpc = (await api("POST", "/v2.0/vpcs", {"vpc": {"name": "v"}}, 201))["vpc"]
    assert (await api("GET", f"/v2.0/networks/{vpc['id']}"))["network"] == vpc
    assert [item["id"] for item in (await api("GET", "/v2.0/vpcs"))["vpcs"]] == [vpc["id"]]
    network = (await api("POST", "/v2.0/vpcs", {"network": {"name": "w"}}, 201))["network"]
    assert (await api("GET", f"/v2.0/vpcs/{network['id']}"))["vpc"] == network


async def test_groups_and_rules(api: Api) -> None:
    group = (await api("POST", "/v2.0/security-groups", {"security_group": {"name": "g"}}, 201))["security_group"]
    wanted = {"security_group_id": group["id"], "direction": "ingress", "protocol": "tcp", "port_range_min": "80"}
    rule = await api(
        "POST", "/v2.0/security-group-rules", {"security_group_rule": wanted | {"port_range_max": 80}}, 201
    )
    id_ = rule["security_group_rule"]["id"]
    assert rule["security_group_rule"]["port_range_min"] == 80
    found = await api("GET", f"/v2.0/security-group-rules?security_group_id={group['id']}&direction=ingress")
    assert [item["id"] for item in found["security_group_rules"]] == [id_]
    await api.refused("PUT", f"/v2.0/security-group-rules/{id_}", 405, {"security_group_rule": {}})
    await api("DELETE", f"/v2.0/security-group-rules/{id_}", expect=204)


async def test_a_project_sees_its_own_and_an_administrator_all(api: Api) -> None:
    network = await api.network()
    assert (await api("GET", f"/v2.0/networks/{network}"))["network"]["project_id"] == "demo"
    await api.refused("GET", f"/v2.0/networks/{network}", 404, headers=OTHER)
    assert (await api("GET", "/v2.0/networks", headers=OTHER))["networks"] == []
    await api("GET", f"/v2.0/networks/{network}", headers=OTHER | ADMIN)
    foreign = {"network": {"project_id": "other"}}
    await api.refused("POST", "/v2.0/networks", 403, foreign)
    made = await api("POST", "/v2.0/networks", foreign, 201, headers={"X-Roles": "member, admin"})
    assert made["network"]["project_id"] == "other"


async def test_a_revision_guards_updates_and_deletions(api: Api) -> None:
    network = await api.network()
    path = f"/v2.0/networks/{network}"
    rev = (await api("GET", path))["network"]["revision_number"]
    body = {"network": {"name": "x"}}
    stale = {"If-Match": f"revision_number={rev - 1}"}
    kind, _ = await api.refused("PUT", path, 412, body, headers=stale)
    assert kind == "RevisionNumberConstraintFailed"
    await api.refused("DELETE", path, 412, headers=stale)
    await api.refused("PUT", path, 400, body, headers={"If-Match": "*"})
    await api("PUT", path, body, headers={"If-Match": f"revision_number={rev}"})


async def test_a_wait_is_acknowledged_only_when_asked(api: Api) -> None:
    network = await api.network()
    body = {"port": {"network_id": network}}
    plain = await api.http.post("/v2.0/ports", json=body)
    assert "Preference-Applied" not in plain.headers
    waited = await api.http.post("/v2.0/ports", json=body, headers={"Prefer": "respond-async, wait=1"})
    assert (waited.status_code, waited.headers["Preference-Applied"]) == (201, "wait=1")
    path = f"/v2.0/ports/{waited.json()['port']['id']}"
    gone = await api.http.delete(path, headers={"Prefer": "wait=100"})
    assert (gone.status_code, gone.headers["Preference-Applied"]) == (204, "wait=60")


async def test_a_change_can_be_traced_by_request_id(api: Api) -> None:
    network = await api.network()
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    answer = await api.http.post("/v2.0/ports", json={"port": {"network_id": network}}, headers=headers)
    id_ = answer.headers["X-Openstack-Request-Id"]
    change = (await api("GET", f"/v2.0/alcor/changes/{id_}"))["change"]
    assert (change["id"], change["trace_id"]) == (id_, trace)
    assert [stage["name"] for stage in change["stages"]][:2] == ["accept", "validate"]
    await api.refused("GET", "/v2.0/alcor/changes/req-00000000-0000-0000-0000-000000000000", 404)


async def test_hosts_can_be_planned_in_bulk(api: Api) -> None:
    wanted = {"hosts": [{"name": "h1"}, {"name": "h2", "description": "rack 2"}]}
    await api("POST", "/v2.0/alcor/hosts", wanted, 201, headers=ADMIN)
    hosts = (await api("GET", "/v2.0/alcor/hosts", headers=ADMIN))["hosts"]
    assert {host["name"]: host["alive"] for host in hosts} == {"h1": False, "h2": False}
    assert (await api("GET", "/v2.0/alcor/hosts/h2", headers=ADMIN))["host"]["description"] == "rack 2"
