"""The alerts: each fires on what it is for and on nothing else, by Prometheus' own engine, and has its runbook."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from api.openapi import document
from cli.main import cli
from tests.observability.prom import ALERTS, ROOT, RUNBOOKS, alerts, blocks, known, names, parsed, promtool

NAMES = [rule["alert"] for rule in alerts()]
API, AGENT = 'job="api",instance="a"', 'job="agent",instance="h1"'
CHANGE, HTTP = "alcor_change_duration_seconds", "alcor_http_request_duration_seconds"
LAG, STORE = "alcor_loop_lag_seconds", "alcor_store_operation_duration_seconds"
DROPPED, FOUND = "alcor_agent_dropped_packets_total", "alcor_agent_drift_found_total"
KERNEL = "alcor_agent_kernel_transactions_total"

#: what `$API` may be followed by, with the parameters of its query
ROUTES: dict[re.Pattern[str], set[str]] = {re.compile("/(metrics|readyz|healthz|console)"): set()}
for _path, _methods in json.loads(document())["paths"].items():
    _parameters = _methods.get("get", {}).get("parameters", ())
    ROUTES[re.compile(re.sub(r"\{\w+\}", "[^/]+", _path))] = {each["name"] for each in _parameters if "name" in each}

Series = dict[str, str]


def const(value: float) -> str:
    return f"{value:g}+0x200"


def per_minute(value: float) -> str:
    return f"0+{value:g}x200"


def ratio(metric: str, bad: str, good: str, share: float) -> Series:
    """Two counters of one histogram, the first with this share of both."""
    return {
        f"{metric}_count{{{bad}}}": per_minute(1000 * share),
        f"{metric}_count{{{good}}}": per_minute(1000 * (1 - share)),
    }


def slow(metric: str, labels: str, bound: float, share: float) -> Series:
    """A histogram with this share of its samples above the bound."""
    labels = f"{labels}," if labels else ""
    return {
        f'{metric}_bucket{{{labels}le="{bound:g}"}}': per_minute(1000 * (1 - share)),
        f'{metric}_bucket{{{labels}le="{2 * bound:g}"}}': per_minute(1000),
        f'{metric}_bucket{{{labels}le="+Inf"}}': per_minute(1000),
    }


def hosts(alive: int, silent: int) -> Series:
    """As two instances tell it."""
    return {
        f'alcor_hosts{{instance="{name}",state="{state}"}}': const(count)
        for name in "ab"
        for state, count in (("alive", alive), ("silent", silent), ("planned", 100))
    }


def up(value: int) -> Series:
    return {f"up{{{API}}}": const(value)}


#: when to look, where 40 minutes are not enough
LATER = {"AlcorFileDescriptors": "150m"}
#: alert: what makes it fire, and what is nearly that
CASES: dict[str, tuple[Series, Series]] = {
    "AlcorApiDown": (up(0), {f"alcor_changes_open{{{API}}}": const(0)}),
    "AlcorApiInstanceDown": (
        up(0) | {f"alcor_changes_open{{{API}}}": "0x25 stale"},
        up(1) | {f"alcor_changes_open{{{API}}}": const(0), 'up{job="other",instance="a"}': const(0)},
    ),
    "AlcorApiErrors": (
        ratio(HTTP, 'status="503"', 'status="200"', 0.02),
        ratio(HTTP, 'status="404"', 'status="200"', 0.5),
    ),
    "AlcorLoopLag": (slow(LAG, API, 0.25, 0.05), slow(LAG, API, 0.1, 0.005)),
    "AlcorQueueFilling": (
        {f'alcor_agent_queue_depth{{{AGENT},queue="kernel"}}': const(20_000)},
        {f'alcor_queue_depth{{{API},queue="changes"}}': const(9_000)},
    ),
    "AlcorFileDescriptors": (
        {f"process_open_fds{{{API}}}": per_minute(20), f"alcor_changes_open{{{API}}}": const(0)},
        {f"process_open_fds{{{API}}}": const(900), f"alcor_changes_open{{{API}}}": const(0)}
        | {'process_open_fds{job="other",instance="a"}': per_minute(20)},
    ),
    "AlcorSpansDropped": (
        {f"alcor_spans_dropped_total{{{API}}}": per_minute(6), f"alcor_spans_failed_total{{{API}}}": const(0)},
        {f"alcor_spans_dropped_total{{{API}}}": const(5), f"alcor_spans_failed_total{{{API}}}": const(7)},
    ),
    "AlcorProvisioningSlow": (slow(CHANGE, "", 6, 0.02), slow(CHANGE, "", 4, 0.005)),
    "AlcorChangesFailing": (
        ratio(CHANGE, 'status="ERROR"', 'status="ACTIVE"', 0.03),
        ratio(CHANGE, 'status="ERROR"', 'status="ACTIVE"', 0.01),
    ),
    "AlcorPortsInError": (
        {'alcor_ports{instance="a",state="error"}': const(1)},
        {'alcor_ports{instance="a",state="error"}': const(0), 'alcor_ports{instance="a",state="silent"}': const(9)},
    ),
    "AlcorHostSilent": (hosts(99, 1), hosts(100, 0)),
    "AlcorHostsSilentMany": (hosts(80, 20), hosts(99, 6)),
    "AlcorHostSlow": (
        {'alcor_host_ack_lag_seconds{instance="a",host="h1"}': const(12)},
        {'alcor_host_ack_lag_seconds{instance="a",host="h1"}': const(8)},
    ),
    "AlcorAgentOutOfSync": (
        {f"alcor_agent_in_sync{{{AGENT}}}": const(0)},
        {f"alcor_agent_in_sync{{{AGENT}}}": "0+0x30 1+0x2 0+0x40"},
    ),
    "AlcorAgentBugs": (
        {f"alcor_agent_bugs_total{{{AGENT}}}": "0+0x25 1+0x70"},
        {f"alcor_agent_bugs_total{{{AGENT}}}": const(3)},
    ),
    "AlcorDriftRepeats": (
        {f'{FOUND}{{{AGENT},kind="links"}}': per_minute(1)},
        {f'{FOUND}{{{AGENT},kind="links"}}': "0+0x20 500+0x70"},
    ),
    "AlcorKernelRefuses": (
        {f'{KERNEL}{{{AGENT},kind="nft",outcome="failed"}}': per_minute(1)},
        {f'{KERNEL}{{{AGENT},kind="nft",outcome="ok"}}': per_minute(100)},
    ),
    "AlcorSpoofedPackets": (
        {f'{DROPPED}{{{AGENT},reason="spoofed_ip"}}': per_minute(1200)},
        {f'{DROPPED}{{{AGENT},reason="denied_ingress"}}': per_minute(120_000)},
    ),
    "AlcorStoreSlow": (slow(STORE, 'operation="commit"', 0.6, 0.02), slow(STORE, 'operation="commit"', 0.2, 0.02)),
    "AlcorStoreFailing": (
        ratio(STORE, 'outcome="unknown"', 'outcome="ok"', 0.02),
        ratio(STORE, 'outcome="refused"', 'outcome="ok"', 0.2),
    ),
    "AlcorBusDisconnected": (
        {f"alcor_bus_connected{{{API}}}": const(0), f"alcor_changes_open{{{API}}}": const(0)},
        {f"alcor_bus_connected{{{AGENT}}}": const(0)},
    ),
}


def test_rules_are_valid() -> None:
    done = promtool("check", "rules", ALERTS)
    assert done.returncode == 0, done.stderr


def test_the_example_of_a_configuration_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/observability.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (example,) = [each for each in examples if "scrape_configs" in each]
    (tmp_path / "prometheus.yml").write_text(example.replace("/path/to", str(ROOT)))
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_fires_on_what_it_is_for_and_on_nothing_else(tmp_path: Path) -> None:
    assert set(CASES) == set(NAMES)
    groups = [
        _group(name, series, fires) for name, both in CASES.items() for series, fires in zip(both, (1, 0), strict=True)
    ]
    path = tmp_path / "cases.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": groups}))
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def _group(name: str, series: Series, fires: int) -> dict[str, Any]:
    """After a while the alert fires once, or not at all."""
    firing = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
    return {
        "interval": "1m",
        "input_series": [{"series": name_, "values": values} for name_, values in series.items()],
        "promql_expr_test": [
            {"expr": firing, "eval_time": LATER.get(name, "40m"), "exp_samples": [{"labels": "{}", "value": fires}]}
        ],
    }


@pytest.mark.parametrize("rule", alerts(), ids=NAMES)
def test_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
    assert "for" in rule
    assert names(rule["expr"]) <= known()


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == set(NAMES)
    index = re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \|", (RUNBOOKS / "README.md").read_text(), re.MULTILINE)
    assert index == [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]


@pytest.mark.parametrize("name", NAMES)
def test_runbooks_name_what_exists(name: str, tmp_path: Path) -> None:
    text = (runbook := RUNBOOKS / f"{name}.md").read_text()
    assert re.findall(r"^#+ (.+)$", text, re.MULTILINE) == [name, "Meaning", "Impact", "Look", "Act"]
    assert names(text) <= known()
    for path in re.findall(r"\]\((?:\.\./)?([\w/.-]+\.md)", text):
        assert (RUNBOOKS / path).exists() or (ROOT / "docs" / path).exists(), path
    done = parsed(blocks(runbook, "promql"), tmp_path)
    assert done.returncode == 0, done.stderr
    for command in blocks(runbook, ""):
        for path, filters in re.findall(r"\$API(/[^\s'\"?]+)\??([^\s'\"]*)", command):
            known_ = next((parameters for route, parameters in ROUTES.items() if route.fullmatch(path)), None)
            assert known_ is not None, command
            assert set(re.findall(r"([\w:]+)=", filters)) <= known_, command
        if command.startswith("alcor "):
            _accepted(command.split("#")[0].split()[1:])


def _accepted(words: list[str]) -> None:
    """The command line has this command with these options; it is not run."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    known_ = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known_
