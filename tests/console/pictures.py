"""Pictures for README and docs/console.md: `python -m tests.console.pictures`. A real cloud, a real browser."""

import tempfile
from pathlib import Path

import httpx

from tests.e2e.support import ROOT, Up
from tests.support.browser import Tab, chromium

FOLDER = ROOT / "docs" / "images"
#: (project, network, range, names of its instances)
STORY = (
    ("shop", "web", "10.0.0.0/24", 9),
    ("shop", "data", "10.0.1.0/24", 6),
    ("bank", "core", "10.0.0.0/24", 7),
    ("bank", "edge", "10.0.1.0/24", 5),
)


def fill(http: httpx.Client, hosts: int) -> str:
    """Two tenants with the same ranges; the request id of a port's creation."""
    last = ""
    for project, name, cidr, count in STORY:
        who = {"X-Project-Id": project, "X-Roles": "member"}
        network = _made(http, who, "networks", "network", {"name": name})["id"]
        _made(http, who, "subnets", "subnet", {"network_id": network, "cidr": cidr, "ip_version": 4, "name": name})
        for number in range(count):
            host = f"h{(3 * number + number // hosts + len(name)) % hosts + 1}"
            port = {"network_id": network, "name": f"{name}-{number + 1}", "binding:host_id": host}
            answer = http.post("/v2.0/ports", json={"port": port}, headers={**who, "Prefer": "wait=10"})
            answer.raise_for_status()
            last = answer.headers["X-Openstack-Request-Id"]
    return last


def _made(http: httpx.Client, who: dict[str, str], path: str, key: str, fields: dict[str, object]) -> dict[str, str]:
    answer = http.post(f"/v2.0/{path}", json={key: fields}, headers=who).raise_for_status()
    made: dict[str, str] = answer.json()[key]
    return made


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Up(Path(folder) / "data", hosts=5) as cloud:
        with cloud.client() as http:
            change = fill(http, 5)
        with chromium() as browser:
            for name, place, scheme, width, height in (
                ("topology", "", "light", 1280, 760),
                ("topology-dark", "", "dark", 1280, 760),
                ("trace", f"changes/{change}", "light", 1280, 760),
                ("latency", "latency", "dark", 1280, 900),
                ("phone", "", "dark", 390, 760),
            ):
                tab = Tab(browser, cloud.api, scheme, width, height)
                page = tab.open(place)
                page.wait_for_timeout(1500)
                page.screenshot(path=FOLDER / f"{name}.png")
                tab.close()


if __name__ == "__main__":
    main()
