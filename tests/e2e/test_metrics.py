"""What a running cloud exports: that the document tells all of it, that the figures are true, and that OTLP has them.

About 30 s, most of it the wait for the first export.
"""

from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from cli.up import METRICS_PORT
from observability.exposition import OPENMETRICS
from tests.e2e.parts import Parts, eventually
from tests.support.collector import MetricsCollector
from tests.support.metrics import agree, documented, exported, parsed

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(120)]

Samples = dict[tuple[str, tuple[str, ...]], Any]


async def scrape(url: str, openmetrics: bool = False) -> str:
    accept = f"{OPENMETRICS}; version=1.0.0" if openmetrics else "text/plain"
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        answer = await http.get(f"{url}/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(accept.partition(";")[0])
    return answer.raise_for_status().text


async def samples(url: str) -> Samples:
    """By name and values of labels."""
    families = parsed(await scrape(url, openmetrics=True), openmetrics=True)
    return {(one.name, tuple(one.labels.values())): one for family in families for one in family.samples}


async def test_what_is_exported_is_what_is_documented(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=2) as parts, MetricsCollector(host=parts.wires.machine) as collector:
        for name, part in parts.parts.items():
            env = {**part.env, "ALCOR_OTLP": collector.url, "ALCOR_TRACE_RATIO": "1"}
            parts.parts[name] = replace(part, env=env)
        await parts.up()
        network = await parts.network()
        made = [await parts.port(network, host) for host in ("h1", "h2", "h1")]
        assert (await parts.http.delete(f"/v2.0/ports/{made[2]['id']}")).status_code == 204
        assert (await parts.http.get("/v2.0/ports/x")).status_code == 404
        agents = {name: f"http://{vtep}:{METRICS_PORT}" for name, vtep in parts.wires.vteps.items()}
        tables = documented()
        for url, table in (
            (parts.api, tables["API"]),
            (agents["h1"], tables["Agent"]),
            (agents["h2"], tables["Agent"]),
        ):
            for openmetrics in (False, True):
                agree(exported(await scrape(url, openmetrics), openmetrics=openmetrics), table | tables["Both"])

        await eventually(lambda: _counted(parts.api), 10, "both hosts tell of their port")
        api = await samples(parts.api)
        assert api["alcor_change_duration_seconds_count", ("create port", "ACTIVE")].value == 3
        assert api["alcor_host_ack_duration_seconds_count", ()].value >= 4
        assert {labels for name, labels in api if name == "alcor_host_ack_lag_seconds"} == {("h1",), ("h2",)}
        assert api["alcor_store_operation_duration_seconds_count", ("commit", "ok")].value > 3

        agent = await samples(agents["h1"])
        assert agent["alcor_agent_in_sync", ()].value == agent["alcor_agent_registered", ()].value == 1
        assert agent["alcor_agent_ports", ("active",)].value == 1
        assert agent["alcor_agent_objects", ("neighbour",)].value == 2
        assert agent["alcor_agent_programmed_total", ("port", "ok")].value >= 2
        assert agent["alcor_agent_program_duration_seconds_count", ("network",)].value >= 1
        assert agent["alcor_agent_kernel_transactions_total", ("nft", "ok")].value >= 1
        assert agent["alcor_agent_kernel_transactions_total", ("netlink", "ok")].value >= 1
        assert agent["alcor_agent_request_duration_seconds_count", ("ack", "ok")].value >= 1
        assert agent["alcor_spans_dropped_total", ()].value == 0

        last = await parts.port(network, "h2")
        trace = (await parts.get(f"alcor/changes/{last['id']}"))["trace_id"]
        api = await samples(parts.api)
        assert trace in {one.exemplar.labels["trace_id"] for one in api.values() if one.exemplar}

        for service, table in (("alcor-api", tables["API"]), ("alcor-agent", tables["Agent"])):
            await eventually(partial(_taken, collector, service), 25, f"an export of {service}")
            assert collector.taken[service].keys() <= (table | tables["Both"]).keys()
        assert "alcor_stage_duration_seconds" in collector.taken["alcor-api"]
        assert "alcor_agent_in_sync" in collector.taken["alcor-agent"]
        assert collector.resources["alcor-agent"]["host.name"] in agents


async def _counted(url: str) -> bool:
    found = await samples(url)
    return all(
        found[name, labels].value == 2
        for name, labels in (
            ("alcor_hosts", ("alive",)),
            ("alcor_hosts_in_sync", ()),
            ("alcor_ports", ("active",)),
        )
    )


async def _taken(collector: MetricsCollector, service: str) -> bool:
    return service in collector.taken
