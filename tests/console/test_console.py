"""The console as a person uses it: a real browser on a real cloud, what it shows compared with what the API says."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Route, expect

from api.assets import FOLDER
from tests.e2e.support import Up, eventually
from tests.support.browser import Tab, chromium

pytestmark = [pytest.mark.server, pytest.mark.kernel]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("console") / "data", hosts=2) as up:
        yield up


@pytest.fixture(scope="module")
def http(cloud: Up) -> Iterator[httpx.Client]:
    with cloud.client() as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser: Browser, cloud: Up) -> Iterator[Tab]:
    """A tab; nothing may have gone wrong in it unless the test says so."""
    found = Tab(browser, cloud.api)
    yield found
    found.close()
    assert found.trouble == []


def made(http: httpx.Client, kind: str, path: str = "", **fields: Any) -> dict[str, Any]:
    headers = {"Prefer": "wait=10"}
    answer = http.post(f"/v2.0/{path or kind + 's'}", json={kind: fields}, headers=headers)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()[kind]
    return found


@pytest.fixture(scope="module")
def network(http: httpx.Client) -> dict[str, Any]:
    found = made(http, "network", name="blue")
    made(http, "subnet", network_id=found["id"], cidr="10.7.0.0/24", ip_version=4, name="blue-4")
    return found


@pytest.fixture(scope="module")
def ports(http: httpx.Client, network: dict[str, Any]) -> list[dict[str, Any]]:
    names = [("one", "h1"), ("two", "h2"), ("three", "h2")]
    return [made(http, "port", network_id=network["id"], name=name, **{"binding:host_id": h}) for name, h in names]


def test_topology_shows_the_mesh_and_what_is_chosen(tab: Tab, ports: list[dict[str, Any]]) -> None:
    page = tab.open()
    expect(page.locator("[data-summary]")).to_have_text(re.compile(rf"2 hosts, \d+ networks?, {len(ports)} instances"))
    search = page.get_by_label("Find a host, network or instance")
    search.fill("h2")
    search.press("Enter")
    side = page.get_by_role("complementary")
    expect(side.get_by_role("heading", name="Instances (2)")).to_be_visible()
    side.get_by_role("button", name="blue").click()
    expect(side.get_by_role("heading", name="Spans 2 hosts")).to_be_visible()
    search.fill("three")
    search.press("Enter")
    expect(side.get_by_role("heading", name="three")).to_be_visible()
    side.get_by_role("link", name="three").click()
    expect(page.get_by_role("heading", name="three", level=1)).to_be_visible()


def test_a_click_on_a_host_chooses_it(tab: Tab, ports: list[dict[str, Any]]) -> None:
    page = tab.open()
    expect(page.locator("[data-summary]")).to_have_text(re.compile(f"{len(ports)} instances"))
    place = page.evaluate(
        """() => { const { view, placed } = alcorPicture, card = placed.cards.get("h2");
             return { x: view.x + (card.x + 60) * view.scale, y: view.y + (card.y + 10) * view.scale }; }"""
    )
    page.locator("canvas").click(position=place)
    expect(page.get_by_role("complementary").get_by_role("heading", name="h2")).to_be_visible()


def test_tables_say_what_the_api_says(tab: Tab, http: httpx.Client, ports: list[dict[str, Any]]) -> None:
    page = tab.open("ports")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(len(http.get("/v2.0/ports").json()["ports"]))
    for port in http.get("/v2.0/ports").json()["ports"]:
        row = page.locator(f'tr[data-id="{port["id"]}"]')
        for text in (port["name"], port["fixed_ips"][0]["ip_address"], port["mac_address"], port["binding:host_id"]):
            expect(row).to_contain_text(text)
        expect(row.locator(".status")).to_have_text(port["status"])
    page.keyboard.press("/")
    page.keyboard.type("two h2")
    expect(rows).to_have_count(1)
    assert page.url.endswith("#/ports?q=two+h2")
    page.get_by_role("searchbox").fill("nothing like this")
    expect(page.get_by_text("Nothing matches")).to_be_visible()
    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="name").click()
    expect(rows.first).to_contain_text("one")
    page.get_by_role("button", name="name").click()
    expect(rows.first).to_contain_text("two")
    for kind, count in (("networks", "networks"), ("subnets", "subnets"), ("security-groups", "security_groups")):
        page = tab.open(kind)
        expect(rows).to_have_count(len(http.get(f"/v2.0/{kind}").json()[count]))
    page = tab.open("hosts")
    expect(rows).to_have_count(2)
    expect(rows.first.locator(".status")).to_have_text("up")


def test_a_long_table_comes_in_parts(tab: Tab, http: httpx.Client, network: dict[str, Any]) -> None:
    crowd = made(http, "network", name="crowd")["id"]
    made(http, "subnet", network_id=crowd, cidr="10.8.0.0/22", ip_version=4)
    try:
        for _ in range(3):
            ports = [{"network_id": crowd} for _ in range(80)]
            assert http.post("/v2.0/ports", json={"ports": ports}).status_code == 201
        page = tab.open("ports")
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(200)
        page.get_by_role("searchbox").fill("10.8.")
        expect(page.get_by_text("Only the 200 that are loaded were searched.")).to_be_visible()
        page.get_by_role("searchbox").fill("")
        page.get_by_role("button", name="Load more").click()
        expect(rows).to_have_count(len(http.get("/v2.0/ports?fields=id").json()["ports"]))
        expect(page.get_by_role("button", name="Load more")).to_have_count(0)
    finally:
        for port in http.get(f"/v2.0/ports?network_id={crowd}&fields=id").json()["ports"]:
            http.delete(f"/v2.0/ports/{port['id']}").raise_for_status()
        http.delete(f"/v2.0/networks/{crowd}").raise_for_status()


def test_what_happens_appears_by_itself(tab: Tab, http: httpx.Client, network: dict[str, Any]) -> None:
    page = tab.open("ports")
    expect(page.get_by_role("heading", name="Ports")).to_be_visible()
    port = made(http, "port", network_id=network["id"], name="visitor", **{"binding:host_id": "h1"})
    row = page.locator(f'tr[data-id="{port["id"]}"]')
    expect(row.locator(".status")).to_have_text("ACTIVE")
    http.delete(f"/v2.0/ports/{port['id']}", headers={"Prefer": "wait=10"}).raise_for_status()
    expect(row).to_have_count(0)
    page = tab.open()
    port = made(http, "port", network_id=network["id"], name="guest", **{"binding:host_id": "h1"})
    feed = page.locator(".feed")
    expect(feed).to_contain_text("port guest created")
    expect(feed).to_contain_text("ACTIVE")
    http.delete(f"/v2.0/ports/{port['id']}", headers={"Prefer": "wait=10"}).raise_for_status()
    expect(feed).to_contain_text("port guest deleted")


def test_what_happens_while_the_map_loads_is_kept(tab: Tab, http: httpx.Client, network: dict[str, Any]) -> None:
    """The list is held back in the browser until the port, made after it was read, has been told of."""
    page = tab.page
    held: list[Route] = []
    page.route(re.compile(r"/v2\.0/ports\?"), lambda route: held.append(route))
    with page.expect_request(re.compile(r"/v2\.0/ports\?")):
        tab.open()
    assert held
    answer = held[0].fetch()
    port = made(http, "port", network_id=network["id"], name="between", **{"binding:host_id": "h1"})
    expect(page.locator(".feed")).to_contain_text("ACTIVE")
    held[0].fulfill(response=answer)
    before = len(answer.json()["ports"])
    expect(page.locator("[data-summary]")).to_have_text(re.compile(f" {before + 1} instances?"))
    http.delete(f"/v2.0/ports/{port['id']}", headers={"Prefer": "wait=10"}).raise_for_status()
    expect(page.locator("[data-summary]")).to_have_text(re.compile(f" {before} instances?"))


def test_a_port_tells_its_story(tab: Tab, http: httpx.Client, ports: list[dict[str, Any]]) -> None:
    port = http.get(f"/v2.0/ports/{ports[1]['id']}").json()["port"]
    change = http.get(f"/v2.0/alcor/changes/{port['id']}").json()["change"]
    page = tab.open(f"ports/{port['id']}")
    expect(page.get_by_role("heading", name="two", level=1)).to_be_visible()
    for text in (port["mac_address"], port["fixed_ips"][0]["ip_address"]):
        expect(page.locator("dl")).to_contain_text(text)
    shown = page.locator(".stage")
    expect(shown).to_have_count(len(change["stages"]))
    expected = {(stage["name"], stage["host"] or "control") for stage in change["stages"]}
    cells = [stage.locator("[role=cell]").all_inner_texts()[:2] for stage in shown.all()]
    assert {(name, where) for name, where in cells} == expected
    expect(page.get_by_role("table", name="Ports of the same network on this host")).to_contain_text("three")
    expect(page.get_by_role("table", name="Rules of default")).to_contain_text("egress")
    expect(page.get_by_role("table", name="Changes of this object")).to_contain_text("create port")


def test_changes_and_their_traces(tab: Tab, http: httpx.Client, network: dict[str, Any]) -> None:
    page = tab.open("changes")
    port = made(http, "port", network_id=network["id"], name="traced", **{"binding:host_id": "h2"})
    row = page.locator("tr", has_text=port["id"])
    expect(row).to_be_visible()
    expect(row.locator(".status")).to_have_text("ACTIVE")
    row.get_by_role("link", name="create port").click()
    expect(page.get_by_role("heading", name="create port")).to_be_visible()
    expect(page.locator(".stage.host")).to_have_count(4)
    page = tab.open("changes?resource=network")
    expect(page.locator("tbody")).to_contain_text("create network")
    expect(page.locator("tbody")).not_to_contain_text("create port")
    page.get_by_label("failed").check()
    expect(page.get_by_text("No changes")).to_be_visible()
    http.delete(f"/v2.0/ports/{port['id']}").raise_for_status()


def test_latency_shows_each_stage(tab: Tab, http: httpx.Client, ports: list[dict[str, Any]]) -> None:
    page = tab.open("latency")
    table = page.get_by_role("table", name="Percentiles by stage")
    stages = http.get("/v2.0/alcor/latency").json()["last_minutes"]
    assert "total" in stages
    for name in stages:
        expect(table).to_contain_text("whole change" if name == "total" else name)
    heat = page.get_by_role("application", name="Heat map")
    heat.focus()
    for key in ("ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    expect(page.locator("#heat-cell")).to_have_text(re.compile(r"up to .* changes; Enter shows them"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("From the heat map")).to_be_visible()


def test_a_network_is_made_in_the_console(tab: Tab, http: httpx.Client) -> None:
    page = tab.open("networks")
    page.get_by_role("button", name="New network").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("made-here")
    dialog.get_by_label("Subnet").fill("10.300.0.0/24")
    dialog.get_by_role("button", name="Create").click()
    expect(dialog.get_by_role("alert")).to_contain_text("10.300.0.0/24")
    expect(dialog.get_by_label("Subnet")).to_have_attribute("aria-invalid", "true")
    assert http.get("/v2.0/networks?name=made-here").json()["networks"] == []  # all or nothing
    dialog.get_by_label("Subnet").fill("10.30.0.0/24")
    dialog.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="made-here", level=1)).to_be_visible()
    (found,) = http.get("/v2.0/networks?name=made-here").json()["networks"]
    assert len(found["subnets"]) == 1
    page = tab.open("ports")
    page.get_by_role("button", name="New port").click()
    dialog.get_by_label("Name").fill("made-too")
    dialog.get_by_label("Network").select_option(found["id"])
    dialog.get_by_label("Host").select_option("h1")
    dialog.get_by_label("Address").fill("10.30.0.9")
    dialog.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="made-too", level=1)).to_be_visible()
    expect(page.locator(".bar .status")).to_have_text("ACTIVE")
    tab.trouble[:] = [said for said in tab.trouble if "400" not in said]  # the browser names each refusal


def test_a_group_and_its_rule_are_made_by_keyboard(tab: Tab, http: httpx.Client) -> None:
    page = tab.open("security-groups")
    page.get_by_role("button", name="New security group").focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_label("Name").focus()
    page.keyboard.type("by-hand")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="by-hand", level=1)).to_be_visible()
    page.get_by_role("button", name="New rule").click()
    page.get_by_role("dialog").get_by_label("Port", exact=True).fill("443")
    page.keyboard.press("Enter")
    expect(page.get_by_role("table", name="Rules of by-hand")).to_contain_text("443")
    (group,) = http.get("/v2.0/security-groups?name=by-hand").json()["security_groups"]
    assert [rule["port_range_max"] for rule in group["security_group_rules"] if rule["direction"] == "ingress"] == [443]
    page = tab.open("ports")
    page.locator("tbody a").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 2


def test_a_project_sees_its_own(tab: Tab, http: httpx.Client, ports: list[dict[str, Any]]) -> None:
    page = tab.open("ports")
    rows = page.locator("tbody tr")
    expect(rows.first).to_be_visible()
    page.get_by_role("textbox", name="Project").fill("stranger")
    page.get_by_role("textbox", name="Project").press("Enter")
    page.get_by_label("all projects").uncheck()
    expect(page.get_by_text("No ports yet")).to_be_visible()
    page.wait_for_selector("[data-state=live]")
    page.reload()
    expect(page.get_by_text("No ports yet")).to_be_visible()


def test_an_api_that_dies_is_told_and_comes_back(browser: Browser, cloud: Up, ports: list[dict[str, Any]]) -> None:
    tab = Tab(browser, cloud.api)
    page = tab.open("ports")
    rows = page.locator("tbody tr")
    expect(rows.first).to_be_visible()
    shown = rows.count()
    parts = cloud.ready["pids"]
    os.kill(parts["api"], signal.SIGKILL)  # `up` starts it again
    expect(page.locator("[data-state=offline]")).to_be_visible()
    expect(page.get_by_role("alert").first).to_contain_text("does not answer")
    assert rows.count() == shown
    page.wait_for_selector("[data-state=live]")
    expect(page.locator(".banner")).to_have_count(0)
    expect(rows).to_have_count(shown)
    tab.close()


def test_narrow_dark_and_labelled(browser: Browser, cloud: Up, ports: list[dict[str, Any]]) -> None:
    """On a phone nothing sticks out, each control has a name, and the whole weighs little."""
    tab = Tab(browser, cloud.api, scheme="dark", width=390, height=800)
    weight: list[int] = []
    tab.page.on("response", lambda answer: weight.append(len(answer.body())) if "/console" in answer.url else None)
    for place in ("", "networks", "ports", f"ports/{ports[0]['id']}", "hosts", "hosts/h1", "changes", "latency"):
        page = tab.open(place)
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("a, button, input, select, canvas")].filter((e) => {
                 const label = e.getAttribute("aria-label") || e.innerText || e.title || [...(e.labels || [])].map((l) => l.innerText).join("");
                 return !label.trim() && !e.querySelector("img[alt]"); }).map((e) => e.outerHTML)"""  # noqa: E501
        )
        assert nameless == []
    assert tab.trouble == []
    tab.close()
    assert 0 < sum(weight) < 700_000
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 700_000


def test_a_thousand_hosts_stay_usable(tab: Tab) -> None:
    """The same picture with 1 000 hosts and 10 000 instances: how long painting takes, and from frame to frame.

    The browser draws what was painted only after it returns, so the time between frames is what a person feels. The
    slowest tenth of the paintings, and half of the gaps, are the machine's: who else works on it.
    """
    page = tab.open()
    longest = page.evaluate(
        """async () => {
             const { Picture } = await import("/console/mesh.js");
             const canvas = alcorPicture.canvas.cloneNode();
             alcorPicture.canvas.after(canvas);
             const picture = new Picture(canvas, () => {}), hosts = [], instances = new Map();
             for (let h = 0; h < 1000; h++) hosts.push({ name: `h${h}`, alive: h % 50 > 0, state: h % 50 ? "up" : "silent" });
             for (let i = 0; i < 10000; i++) instances.set(`i${i}`, { id: `i${i}`, name: "", network: `n${i % 40}`, host: `h${i % 1000}`, status: "ACTIVE" });
             picture.show(hosts, instances, new Map());
             const frames = [], gaps = [];
             let last = 0;
             for (const scale of [0, 1, 2]) {
               if (scale) picture.zoom(4);
               for (let n = 0; n < 30; n++) {
                 picture.pan(n % 2 ? 40 : -35, 10);
                 const now = await new Promise(requestAnimationFrame);
                 if (n) gaps.push(now - last); // the first waits for the zoom
                 last = now;
                 const began = performance.now();
                 picture.paint(began);
                 frames.push(performance.now() - began);
               }
             }
             frames.sort((a, b) => a - b);
             gaps.sort((a, b) => a - b);
             return { drawn: picture.placed.cards.size, painted: frames[79], gap: gaps[43], gap_most: gaps[86] };
           }"""  # noqa: E501
    )
    assert longest["drawn"] == 1000
    assert longest["painted"] < 100, longest
    assert longest["gap"] < 100, longest


def test_files_are_those_of_the_folder_alone(http: httpx.Client) -> None:
    page = http.get("/console")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert http.get("/console", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    for file in FOLDER.rglob("*"):
        if file.is_file():
            assert http.get(f"/console/{file.relative_to(FOLDER)}").content == file.read_bytes()
    for path in ("nothing.js", "..%2fapp.py", "%2e%2e/app.py", "vendor"):
        assert http.get(f"/console/{path}").status_code == 404
    assert _foreign(FOLDER) == []


def _foreign(folder: Path) -> list[str]:
    """Addresses of other machines in what is served."""
    own = [path for path in folder.rglob("*") if path.suffix in (".js", ".css", ".html") and "vendor" not in path.parts]
    links = [link for file in own for link in re.findall(r"https?://[^\"' )]+", file.read_text())]
    return [link for link in links if not link.startswith("http://www.w3.org/")]


def test_hosts_that_fall_silent_are_seen(tab: Tab, cloud: Up) -> None:
    page = tab.open("hosts")
    status = page.locator('tr[data-id="h2"] .status')
    expect(status).to_have_text("up")
    pids = eventually(lambda: cloud.ready["pids"].get("h2"))
    os.kill(pids, signal.SIGSTOP)
    try:
        expect(status).to_have_text("late")  # the first missing beat is told
        expect(status).to_have_attribute("title", re.compile("not been heard for [3-9] s"))
        expect(status).to_have_text("silent")
    finally:
        os.kill(pids, signal.SIGCONT)
    expect(status).to_have_text("up")
