"""Lists over HTTP: filters, fields, pages with links, sorting, and what cannot be asked."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.http import ADMIN, Api, serving


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


@pytest.fixture
async def ports(api: Api) -> list[dict[str, object]]:
    """Five ports in one network, by id."""
    network = await api.network()
    wanted = [{"network_id": network, "name": f"p{n}", "device_id": f"d{n % 2}"} for n in range(5)]
    made = (await api("POST", "/v2.0/ports", {"ports": wanted}, 201))["ports"]
    return sorted(made, key=lambda port: str(port["id"]))


async def names(api: Api, query: str) -> list[str]:
    return sorted(port["name"] for port in (await api("GET", f"/v2.0/ports?{query}"))["ports"])


async def test_filters(api: Api, ports: list[dict[str, object]]) -> None:
    assert await names(api, "name=p1&name=p3") == ["p1", "p3"]
    assert await names(api, "name=p1&device_id=d0") == []
    assert await names(api, "admin_state_up=True&device_id=d1") == ["p1", "p3"]
    assert await names(api, "admin_state_up=0") == []
    assert await names(api, "binding:host_id=") == [f"p{n}" for n in range(5)]
    assert await names(api, f"fixed_ips=ip_address={ports[0]['fixed_ips'][0]['ip_address']}") == [ports[0]["name"]]  # type: ignore[index]
    assert await names(api, "network_id=none") == []
    assert await names(api, "id=p1") == []
    assert await names(api, f"revision_number={ports[2]['revision_number']}&name={ports[2]['name']}") == [
        ports[2]["name"]
    ]


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("foo=1", "foo"),
        ("binding:profile=x", "binding:profile"),
        ("admin_state_up=maybe", "maybe"),
        ("revision_number=x", "revision_number"),
        ("fixed_ips=10.0.0.2", "fixed_ips"),
        ("limit=-1", "-1"),
        ("limit=x", "'x'"),
        ("sort_key=nope", "nope"),
        ("sort_key=fixed_ips", "fixed_ips"),
        ("sort_key=name&sort_dir=up", "up"),
        ("sort_key=name&sort_dir=asc&sort_dir=asc", "sort_dirs"),
        ("page_reverse=perhaps", "perhaps"),
        ("limit=2&marker=00000000-0000-0000-0000-000000000000", "00000000"),
        ("&".join(f"name={n}" for n in range(1001)), "1000"),
    ],
)
async def test_what_cannot_be_asked_is_named(api: Api, ports: list[dict[str, object]], query: str, word: str) -> None:
    _, message = await api.refused("GET", f"/v2.0/ports?{query}", 400)
    assert word in message


async def test_fields(api: Api, ports: list[dict[str, object]]) -> None:
    found = (await api("GET", "/v2.0/ports?fields=id&fields=name,binding:vnic_type&fields=nope&name=p0"))["ports"]
    assert [set(port) for port in found] == [{"id", "name", "binding:vnic_type"}]
    one = (await api("GET", f"/v2.0/ports/{ports[0]['id']}?fields=name"))["port"]
    assert one == {"name": ports[0]["name"]}


@pytest.mark.parametrize("sort", ["", "&sort_key=name&sort_dir=desc"])
async def test_pages_forth_and_back(api: Api, ports: list[dict[str, object]], sort: str) -> None:
    ids = [port["id"] for port in ports]
    if sort:
        ids = [port["id"] for port in sorted(ports, key=lambda port: str(port["name"]), reverse=True)]
    url, pages, answer = f"/v2.0/ports?limit=2{sort}", [], {}
    while url:
        answer = await api("GET", url)
        pages.append([port["id"] for port in answer["ports"]])
        url = link(answer, "next")
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    back = await api("GET", link(answer, "previous"))
    assert [port["id"] for port in back["ports"]] == ids[2:4]
    first = await api("GET", link(back, "previous"))
    assert [port["id"] for port in first["ports"]] == ids[:2]
    assert link(first, "previous") == ""


def link(answer: dict[str, list[dict[str, str]]], rel: str) -> str:
    """Path and query of a link of a page; empty when there is none."""
    href = next((each["href"] for each in answer.get("ports_links", ()) if each["rel"] == rel), "")
    parts = urlsplit(href)
    return f"{parts.path}?{parts.query}" if href else ""


async def test_an_unpaged_list_has_no_links(api: Api, ports: list[dict[str, object]]) -> None:
    assert set(await api("GET", "/v2.0/ports")) == {"ports"}


async def test_hosts_are_paged_and_sorted_as_everything_else(api: Api) -> None:
    for n in (3, 1, 5, 2, 4):
        wanted = {"host": {"name": f"h{n}", "description": f"rack {n % 2}"}}
        await api("POST", "/v2.0/alcor/hosts", wanted, 201, headers=ADMIN)

    async def listed(query: str) -> list[str]:
        return [host["name"] for host in (await api("GET", f"/v2.0/alcor/hosts?{query}"))["hosts"]]

    assert await listed("") == ["h1", "h2", "h3", "h4", "h5"]
    assert await listed("limit=2&marker=h2") == ["h3", "h4"]
    assert await listed("limit=2&marker=h4&page_reverse=true") == ["h2", "h3"]
    assert await listed("sort_key=description&sort_key=name&sort_dir=asc&sort_dir=desc") == [
        "h4",
        "h2",
        "h5",
        "h3",
        "h1",
    ]
    assert await listed("sort_key=name&sort_dir=desc&limit=2&marker=h4") == ["h3", "h2"]
    assert await listed("limit=1&state=planned&marker=h4") == ["h5"]
    _, message = await api.refused("GET", "/v2.0/alcor/hosts?marker=h9", 400)
    assert message == "Invalid input for marker. Reason: 'h9' could not be found."
