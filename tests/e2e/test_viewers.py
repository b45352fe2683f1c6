"""Traces where a person looks at them: in a Zipkin that `alcor up` starts, and in a collector of the user's own."""

import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.support import Up, alive, eventually, remains
from tests.support.otlp import Collector

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(240)]

STAGES = {"accept", "validate", "claim", "write", "publish", "receive", "program", "ack", "active"}
BOTH = {"alcor-api", "alcor-agent"}


def change(cloud: Up) -> dict[str, Any]:
    """A port is made on a host that knows its network; the API's word about that."""
    cloud.network("blue", "10.0.0.0/24")
    cloud.done("vm", "create", "a", "--network", "blue", "--host", "h1")
    port = cloud.done("vm", "create", "b", "--network", "blue", "--host", "h1")["port_id"]
    found: dict[str, Any] = cloud.done("trace", port)
    return found


def test_zipkin_shows_every_stage_of_a_port(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Up(data, 1, ("--zipkin",), patience=200) as cloud:
        made = change(cloud)
        pid = cloud.ready["pids"]["zipkin"]
        with httpx.Client(base_url=cloud.ready["zipkin"], timeout=20, trust_env=False) as http:
            assert http.get("/zipkin/").status_code == 200

            def whole() -> list[dict[str, Any]]:
                answer = http.get(f"/api/v2/trace/{made['trace_id']}")
                spans: list[dict[str, Any]] = answer.json() if answer.status_code == 200 else []
                services = {span["localEndpoint"]["serviceName"] for span in spans}
                return spans if {span["name"] for span in spans} >= {*STAGES, "netlink"} and services == BOTH else []

            spans = eventually(whole, 20, "the whole trace")
            (root,) = (span for span in spans if "parentId" not in span)
            assert (root["name"], root["kind"]) == ("post /v2.0/ports", "SERVER")
            assert set(http.get("/api/v2/services").json()) == BOTH
        recent = cloud.done("trace", "--limit", "5")
        assert made["id"] in [each["id"] for each in recent]
        assert cloud.done("trace", "--failed") == []
        assert cloud.done("trace", "--slow", "60000") == []
        shown = cloud.alcor("trace").stdout.splitlines()
        assert shown[0].startswith("BEGAN ")
        (line,) = (line for line in shown if made["id"] in line)
        assert "create port" in line
        assert "ACTIVE" in line
        assert line.endswith("h1")
        assert cloud.end(signal.SIGINT) == 0
        assert not alive(pid)
    assert remains(data) == []


def test_a_collector_on_loopback_hears_hosts_in_namespaces_too(tmp_path: Path) -> None:
    with (
        Collector() as collector,
        Up(tmp_path / "data", 1, ("--otlp", collector.address), ALCOR_TRACE_RATIO="1") as cloud,
    ):
        made = change(cloud)
        collector.wait(lambda _: {span.service for span in collector.trace(made["trace_id"])} == BOTH)
        collector.wait(lambda _: {span.name for span in collector.trace(made["trace_id"])} >= STAGES)
