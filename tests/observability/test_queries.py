"""Every query of dashboards and alerts, by a real Prometheus, over what a running cloud exports: nothing is empty.

The cloud does all that the panels are about: changes that succeed and fail, requests that are refused, damage by
others, packets with a stolen source. What stays empty all the same is named below, with the reason.
"""

import asyncio
import math
import re
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from planes.data.linux import namespaces
from tests.e2e.parts import Parts, eventually
from tests.observability.prom import ALERTS, BOARDS, RUNBOOKS, Query, alerts, blocks, filled, names, panels, queries
from tests.support.prometheus import Prometheus, Sample

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(120)]

#: the range of every rate; it covers all that the test does
WINDOW = "60s"
ROUNDS = 4
#: what queries pick and this cloud need not export; in panels, 0 stands for it
QUIET = {
    'alcor_http_request_duration_seconds_count{status=~"5.."}': "no request fails while the store is there",
    'alcor_store_operation_duration_seconds_count{outcome=~"error|unknown"}': "its store does not fail",
}
_SELECTOR = re.compile(r"\b(?:alcor|process)_\w+(?:\{[^}]*\})?")


@asynccontextmanager
async def working(folder: Path) -> AsyncIterator[tuple[Parts, Prometheus]]:
    """A cloud, and a Prometheus that has seen it do everything."""
    async with Parts(folder / "cloud", hosts=3, env={"ALCOR_SYNC_EVERY": "1"}) as parts:
        parts.parts["h3"] = replace(parts.parts["h3"], argv=["prlimit", "--nofile=56:56", *parts.parts["h3"].argv])
        await parts.up()
        agents = [parts.parts[host].env for host in parts.hosts]
        targets = {
            "api": [parts.api.removeprefix("http://")],
            "agents": [f"{env['ALCOR_METRICS_HOST']}:{env['ALCOR_METRICS_PORT']}" for env in agents],
        }
        with Prometheus(folder, targets, [ALERTS]) as prometheus:
            await eventually(lambda: _silent(prometheus), 10, "no alert, since all is well")
            await _work(parts)
            yield parts, prometheus


async def _silent(prometheus: Prometheus) -> bool:
    return not prometheus.get("/alerts")["alerts"]


async def _work(parts: Parts) -> None:
    network = await parts.network()
    await parts.instance("a", network, "h1")
    (name,) = namespaces.names(f"{parts.layout.cloud('h1')}-")
    inside = parts.layout.instance("a")
    _run(inside, "ip address add 10.9.9.9/32 dev eth0")
    for _ in range(ROUNDS):
        made = [await parts.port(network, host) for host in ("h1", "h2")]
        failing = [await parts.network() for _ in range(3)]
        for each in failing:
            await parts.post("ports", 5, network_id=each, **{"binding:host_id": "h3"})
        assert (await parts.http.get("/v2.0/ports/none")).status_code == 404
        _run(name, "nft flush chain inet alcor prerouting")
        _run(inside, "ping -c 3 -i 0.05 -W 1 -I 10.9.9.9 10.0.0.1 || true")
        assert (await parts.http.delete(f"/v2.0/ports/{made[0]['id']}")).status_code == 204
        await asyncio.sleep(1.5)


def _run(namespace: str, script: str) -> None:
    subprocess.run(["nsenter", f"--net=/run/netns/{namespace}", "sh", "-ec", script], check=True, capture_output=True)


async def test_nothing_is_empty(tmp_path: Path) -> None:
    async with working(tmp_path) as (parts, prometheus):
        assert (await parts.list("ports?status=ERROR")) != [], "h3 was to fail"
        found = {query: _ask(prometheus, query, parts) for query in queries()}
        assert [str(query) for query, samples in found.items() if not _shows(query, samples)] == []
        assert _quiet(prometheus) <= set(QUIET)
        _rules_are_well(prometheus)
        await _exemplars_lead_to_changes(parts, prometheus)


def _ask(prometheus: Prometheus, query: Query, parts: Parts) -> list[Sample]:
    return prometheus.query(filled(query, WINDOW, parts.api.removeprefix("http://")))


HEATMAPS = {(board.stem, panel["title"]) for board in BOARDS for panel in panels(board) if panel["type"] == "heatmap"}


def _shows(query: Query, samples: list[Sample]) -> bool:
    """There is a number; in a heat map, one that has a colour."""
    values = [value for _, value in samples if not math.isnan(value)]
    return any(values) if (query.board, query.panel) in HEATMAPS else bool(values)


def _quiet(prometheus: Prometheus) -> set[str]:
    """What panels, alerts and runbooks pick, and nothing of it exists: a label's value that is never told, say."""
    expressions = [query.expr.replace('instance=~"$instance"', "") for query in queries()]
    expressions += [rule["expr"] for rule in alerts()]
    expressions += [line for runbook in RUNBOOKS.glob("*.md") for line in blocks(runbook, "promql")]
    picked = {part.replace("{, ", "{") for expr in expressions for part in _SELECTOR.findall(expr) if names(part)}
    return {selector for selector in picked if not prometheus.query(selector)}


def _rules_are_well(prometheus: Prometheus) -> None:
    """They are evaluated without error, and what happened is about to be told."""
    rules = [rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]]
    assert [(rule["name"], rule.get("lastError", "")) for rule in rules if rule["health"] != "ok"] == []
    told = {rule["name"]: rule["alerts"][0]["annotations"] for rule in rules if rule["alerts"]}
    assert told.keys() >= {"AlcorChangesFailing", "AlcorPortsInError"}
    assert [notes for notes in told.values() if "error expanding" in str(notes)] == []


async def _exemplars_lead_to_changes(parts: Parts, prometheus: Prometheus) -> None:
    """A dot on the heat map is the trace of a request that asked for one."""
    trace = secrets.token_hex(16)
    body = {"port": {"network_id": await parts.network(), "binding:host_id": "h2"}}
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    assert (await parts.http.post("/v2.0/ports", json=body, headers=headers)).status_code == 201

    async def seen() -> bool:
        data = prometheus.get("/query_exemplars", query="alcor_change_duration_seconds_bucket", start="0", end="1e10")
        return trace in {dot["labels"]["trace_id"] for series in data for dot in series["exemplars"]}

    await eventually(seen, 10, f"an exemplar of trace {trace}")
