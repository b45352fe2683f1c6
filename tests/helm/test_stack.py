"""The umbrella, resolved with stand-ins of the same names and versions that print the values they are given."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.charts import CHART, PRODUCTION, helm

STACK = CHART.parent / "alcor-mesh-stack"
CHARTS = yaml.safe_load((STACK / "Chart.yaml").read_text())["dependencies"]
ECHO = """apiVersion: v1
kind: ConfigMap
metadata: {name: echo-{{ .Chart.Name }}}
data: {values: {{ .Values | toJson | quote }}}
"""


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A copy with every dependency in charts/."""
    found = tmp_path / "stack"
    shutil.copytree(STACK, found)
    shutil.copytree(CHART, found / "charts/alcor-mesh")
    for chart in CHARTS[1:]:
        place = found / "charts" / chart["name"] / "templates"
        place.mkdir(parents=True)
        head = {"apiVersion": "v2", "name": chart["name"], "version": chart["version"]}
        (place.parent / "Chart.yaml").write_text(json.dumps(head))
        (place / "echo.yaml").write_text(ECHO)
    own = yaml.safe_load(PRODUCTION.read_text())
    del own["nats"]["auth"]["serverSecret"], own["otlp"]
    (found / "own.yaml").write_text(yaml.safe_dump({"alcor-mesh": own}))
    return found


def _render(stack: Path, *sets: str) -> dict[str, dict[str, Any]]:
    more = [word for value in sets for word in ("--set", value)]
    done = helm("template", "cloud", str(stack), "-f", str(stack / "own.yaml"), "--kube-version", "1.37", *more)
    assert done.returncode == 0, done.stderr
    return {f"{o['kind']}/{o['metadata']['name']}": o for o in yaml.safe_load_all(done.stdout) if o}


def test_versions_are_exact_and_everything_foreign_is_conditional() -> None:
    for chart in CHARTS:
        assert all(part.isdigit() for part in chart["version"].split("."))
        assert ("condition" in chart) == (chart["name"] != "alcor-mesh")
    assert CHARTS[0]["version"] == yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]


def test_parts_find_each_other(stack: Path) -> None:
    objects = _render(stack)
    settings = objects["ConfigMap/alcor-cloud-settings"]["data"]
    echoes = {
        name: json.loads(o["data"]["values"]) for name, o in objects.items() if name.startswith("ConfigMap/echo-")
    }
    assert settings["ALCOR_NATS"] == f"tls://{echoes['ConfigMap/echo-nats']['fullnameOverride']}:4222"
    collector = next(echo for name, echo in echoes.items() if "collector" in name)
    assert settings["ALCOR_OTLP"] == f"http://{collector['fullnameOverride']}:4318"
    exporter = collector["config"]["exporters"]["otlp_http/jaeger"]["endpoint"]
    assert exporter == f"http://{echoes['ConfigMap/echo-jaeger']['fullnameOverride']}:4318"
    assert "StatefulSet/alcor-cloud-nats" not in objects


@pytest.mark.parametrize("chart", CHARTS[1:], ids=lambda chart: chart["name"])
def test_each_part_can_be_switched(stack: Path, chart: dict[str, str]) -> None:
    off = set(_render(stack, f"{chart['condition']}=false"))
    on = set(_render(stack, f"{chart['condition']}=true"))
    assert len(on - off) == 1
