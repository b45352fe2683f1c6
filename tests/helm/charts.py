"""Charts rendered by the real helm. Missing tools are a failure: scripts/install brings them."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/alcor-mesh"
PRODUCTION = CHART / "ci/production-values.yaml"
DEV = CHART / "ci/dev-values.yaml"
VERSIONS = ("1.29", "1.33", "1.37")
#: kinds that only clusters with the operators know
APIS = (
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "cassandra.datastax.com/v1beta1",
)

Object = dict[str, Any]


def tool(name: str) -> str:
    path = Path(os.environ.get("ALCOR_TOOLS") or Path.home() / ".cache/alcor/tools") / name
    assert path.exists(), f"{path} is missing: run scripts/install"
    return str(path)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(
    preset: Path = PRODUCTION,
    *sets: str,
    release: str = "cloud",
    namespace: str = "default",
    version: str = VERSIONS[-1],
    apis: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    more = [word for value in sets for word in ("--set-json", value)] + [
        w for api in apis for w in ("--api-versions", api)
    ]
    place = ["--namespace", namespace, "--kube-version", version]
    return helm("template", release, str(CHART), "-f", str(preset), *place, *more)


def render(*arguments: Any, **options: Any) -> list[Object]:
    """The objects; fails with helm's words when it refuses."""
    done = template(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def one(objects: list[Object], kind: str, suffix: str = "") -> Object:
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{len(found)} of {kind} …{suffix}"
    return found[0]


def pods(objects: list[Object]) -> list[tuple[str, Object]]:
    """Name and pod spec of whatever runs pods."""
    found = [(o["metadata"]["name"], o["spec"]["template"]["spec"]) for o in objects if "template" in o.get("spec", {})]
    return found + [(o["metadata"]["name"], o["spec"]) for o in objects if o["kind"] == "Pod"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]
