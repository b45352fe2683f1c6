"""Policy of every pod that the chart renders; each exception is named with its reason."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.helm.charts import DEV, PRODUCTION, Object, containers, pods, render

Rule = Callable[[Object, Object], bool]


def _security(container: Object) -> dict[str, Any]:
    return dict(container.get("securityContext", {}))


#: name → (pod, container) → holds
RULES: dict[str, Rule] = {
    "not root": lambda _, c: _security(c).get("runAsNonRoot") is True,
    "not privileged": lambda _, c: not _security(c).get("privileged"),
    "no escalation": lambda _, c: _security(c).get("allowPrivilegeEscalation") is False,
    "capabilities dropped": lambda _, c: _security(c).get("capabilities", {}).get("drop") == ["ALL"],
    "seccomp": lambda _, c: _security(c).get("seccompProfile", {}).get("type") == "RuntimeDefault",
    "read-only root": lambda _, c: _security(c).get("readOnlyRootFilesystem") is True,
    "memory bounded": lambda _, c: "memory" in c.get("resources", {}).get("limits", {}),
    "cpu requested": lambda _, c: "cpu" in c.get("resources", {}).get("requests", {}),
    "image pinned": lambda _, c: "@sha256:" in c["image"] or not c["image"].endswith((":latest", ":")),
    "own network": lambda pod, _: not pod.get("hostNetwork"),
    "own processes": lambda pod, _: not pod.get("hostPID") and not pod.get("hostIPC"),
    "no token": lambda pod, _: pod.get("automountServiceAccountToken") is False,
    "nothing of the node": lambda pod, _: not [v for v in pod.get("volumes", []) if "hostPath" in v],
    "liveness": lambda _, c: "livenessProbe" in c,
    "readiness": lambda _, c: "readinessProbe" in c,
}
NODE = "the agent is the node's network: its namespaces, its underlay address, its state over updates"
SHARE = "mounts under /run/netns are shared with the node only by a privileged container; setpriv drops the rest"
EXITS = "an agent serves nobody; it ends when it cannot work, and control sees its beats"
SHORT = "runs once"
#: (container, rule) → why not
SKIPPED = {
    ("agent", "not root"): NODE,
    ("agent", "not privileged"): SHARE,
    ("agent", "no escalation"): SHARE,
    ("agent", "capabilities dropped"): SHARE,
    ("agent", "seccomp"): SHARE,
    ("agent", "own network"): NODE,
    ("agent", "nothing of the node"): NODE,
    ("agent", "liveness"): EXITS,
    ("agent", "readiness"): EXITS,
    ("migrate", "liveness"): SHORT,
    ("migrate", "readiness"): SHORT,
    ("port", "liveness"): SHORT,
    ("port", "readiness"): SHORT,
}
#: one pod holds all, so what the agent needs of the node is the others' too
SHARED = {("single", rule) for rule in ("own network", "nothing of the node")} | {("test", "own network")}


@pytest.mark.parametrize("preset", [DEV, PRODUCTION], ids=["dev", "production"])
def test_every_container_keeps_the_policy(preset: Any) -> None:
    broken: set[tuple[str, str]] = set()
    for name, pod in pods(render(preset)):
        for container in containers(pod):
            for rule, holds in RULES.items():
                shared = preset == DEV and (name.rsplit("-", 1)[1], rule) in SHARED
                if not holds(pod, container) and not shared:
                    broken.add((container["name"], rule))
    broken.discard(("nats", "readiness")) if preset == DEV else None  # nobody finds it by a Service there
    assert broken - SKIPPED.keys() == set()
    if preset == PRODUCTION:
        assert SKIPPED.keys() - broken == set(), "skips that nothing needs"
