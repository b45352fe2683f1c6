"""`make test-k8s`: the chart on a real Kubernetes. Exits 1 with a sentence at the first thing that does not hold.

1. Production values on 20 nodes that kwok plays: install, roll the agents, what a ServiceAccount may, uninstall.
2. Development values on a real kubelet: the chart's own test makes a port ACTIVE; then the agent is ended and started
   again, and its namespaces are the same.
3. Production values on it, with Services and names, by the steps of docs/deploy.md (`production.py`).

`real` leaves out the first, `production` the first two.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.helm.charts import CHART, DEV, PRODUCTION
from tests.k8s import image
from tests.k8s.cluster import ADDRESS, Cluster
from tests.k8s.production import production
from tests.k8s.talk import check, say

NODES = 20
#: NET_ADMIN, NET_RAW, SYS_ADMIN
CAPABILITIES = 1 << 12 | 1 << 13 | 1 << 21
INSIDE = "ALCOR_K8S_INSIDE"
IMAGE = "localhost/alcor-mesh:test"


def outside() -> int:
    """Run this again in a network namespace of its own."""
    name = f"alcork8s{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            "link set lo up",
            "link add br0 type bridge",
            f"addr add {ADDRESS}/24 dev br0",
            "link set br0 up",
        ):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        subprocess.run(["ip", "-n", name, "route", "add", "default", "dev", "br0"], check=True)
        command = ["nsenter", f"--net=/run/netns/{name}", sys.executable, "-m", "tests.k8s", *sys.argv[1:]]
        return subprocess.run(command, env=os.environ | {INSIDE: "1"}, check=False).returncode
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@contextmanager
def cluster() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="ak8s-", dir="/tmp"))
    found = Cluster(directory)
    try:
        yield found
    except BaseException:
        shutil.copytree(directory, "/tmp/alcor-k8s-logs", ignore=_only_logs, dirs_exist_ok=True)
        say("logs of the parts are in /tmp/alcor-k8s-logs")
        raise
    finally:
        found.close()
        shutil.rmtree(directory, ignore_errors=True)


def _only_logs(_: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".log")]


def rollout(k: Cluster) -> None:
    """Production values over nodes that kwok plays."""
    k.fake_nodes(NODES)
    say(f"{NODES} nodes are Ready")
    common = [str(CHART), "-n", "net", "-f", str(PRODUCTION), "--set", "agent.maxUnavailable=25%", "--wait"]
    k.helm("install", "1e3", *common, "--create-namespace", "--timeout", "120s")
    ready = k.get("daemonset", "-n", "net")["items"][0]["status"]["numberReady"]
    check(ready == NODES, f"installed as release 1e3: {ready} agents, migration Job done, API and NATS ready")
    before = {pod["metadata"]["uid"] for pod in agents(k)}
    began = time.monotonic()
    k.helm("upgrade", "1e3", *common, "--set", "settings.beat_every=4", "--timeout", "180s")
    k.kubectl("rollout", "status", "daemonset", "-n", "net", "alcor-1e3-agent", "--timeout=180s")
    after = {pod["metadata"]["uid"] for pod in agents(k)}
    took = time.monotonic() - began
    check(len(after) == NODES and not before & after, f"upgrade rolled all {NODES} agents in {took:.0f} s")
    budget = k.get("pdb", "-n", "net", "alcor-1e3-nats")["status"]
    check(budget["disruptionsAllowed"] == 1, "PodDisruptionBudget of NATS allows one of three")
    account = "system:serviceaccount:net:alcor-1e3-agent"
    may = k.kubectl("auth", "can-i", "list", "pods", "--as", account, fails=True).strip()
    check(may == "no", "the agent's ServiceAccount may not even list pods")
    k.helm("uninstall", "1e3", "-n", "net", "--wait")
    kinds = "pods,services,daemonsets,deployments,statefulsets,poddisruptionbudgets,networkpolicies"
    k.until("all is gone", lambda: not k.kubectl("get", kinds, "-n", "net", "-o", "name"))
    say("uninstalled; nothing is left")
    k.kubectl("delete", "nodes", "--all")


def agents(k: Cluster) -> list[dict[str, dict[str, str]]]:
    found = k.get("pods", "-n", "net", "-l", "app.kubernetes.io/component=agent")["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def node(k: Cluster) -> tuple[Path, list[str]]:
    """A real kubelet with our image. Returns where its network namespaces are, and what the chart must be told."""
    file = k.directory / "image.tar"
    image.write(file, IMAGE)
    pause = k.directory / "pause.tar"
    image.write(pause, "localhost/pause:1", command=["sleep", "1000000000"])
    say(f"image written: {file.stat().st_size >> 20} MiB")
    namespaces = k.directory / "netns"
    namespaces.mkdir()
    subprocess.run(["mount", "--bind", str(namespaces), str(namespaces)], check=True)
    subprocess.run(["mount", "--make-shared", str(namespaces)], check=True)
    k.real_node(file, pause)
    say("node1 is Ready: a real kubelet")
    where = {"agent.netnsPath": namespaces, "agent.statePath": k.directory / "state", "cloud.name": "kube"}
    sets = [word for key, value in where.items() for word in ("--set", f"{key}={value}")]
    pull = ["--set", "image.repository=localhost/alcor-mesh,image.tag=test,image.pullPolicy=Never"]
    return namespaces, sets + pull


def real(k: Cluster, namespaces: Path, sets: list[str]) -> None:
    """Development values on it."""
    k.helm(
        "install",
        "n",
        str(CHART),
        "-n",
        "dev",
        "--create-namespace",
        "-f",
        str(DEV),
        *sets,
        "--wait",
        "--timeout",
        "120s",
    )
    say("release n is installed: NATS, API and agent run")
    said = k.helm("test", "n", "-n", "dev", "--logs", "--timeout", "120s")
    line = next((line for line in said.splitlines() if "port " in line), said)
    check("ACTIVE" in line, f"helm test: {line.strip()}")
    survives(k, namespaces)
    k.helm("uninstall", "n", "-n", "dev", "--wait")


def survives(k: Cluster, namespaces: Path) -> None:
    """An agent that ends and is started again: its namespaces are the same, and ports are still made."""
    api = httpx.Client(base_url="http://127.0.0.1:9696/v2.0", headers={"X-Roles": "admin"}, timeout=40, trust_env=False)
    network = api.post("/networks", json={"network": {}}).json()["network"]["id"]
    api.post("/subnets", json={"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.1.0.0/24"}})

    def port() -> str:
        wanted = {"network_id": network, "binding:host_id": "node1"}
        made = api.post("/ports", json={"port": wanted}, headers={"Prefer": "wait=30"}).json()["port"]
        return str(made["status"])

    check(port() == "ACTIVE", "a port by the API: ACTIVE")
    before = {path.name: path.stat().st_ino for path in namespaces.iterdir()}
    check(before, f"its namespace is the node's: {', '.join(before)}")
    inside = ("exec", "-n", "dev", "deploy/alcor-n-single", "-c", "agent", "--")
    status = k.kubectl(*inside, "python", "-c", "print(open('/proc/1/status').read())")
    bound = next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd"))
    check(
        int(bound, 16) == CAPABILITIES, f"the agent is bounded to capabilities {bound}: NET_ADMIN, NET_RAW, SYS_ADMIN"
    )
    k.kubectl(*inside, "sh", "-c", "kill 1")
    k.until("the agent's container was started again", lambda: restarts(k) == 1)
    check(port() == "ACTIVE", "the agent was ended and started again; a second port: ACTIVE")
    after = {path.name: path.stat().st_ino for path in namespaces.iterdir()}
    check(after == before, "the namespaces are those of before, not new ones")
    api.close()


def restarts(k: Cluster) -> int:
    pod = k.get("pods", "-n", "dev", "-l", "app.kubernetes.io/component=single")["items"][0]
    return sum(c["restartCount"] for c in pod["status"]["containerStatuses"] if c["name"] == "agent" and c["ready"])


def main() -> int:
    if INSIDE not in os.environ:
        return outside()
    with cluster() as k:
        k.control_plane()
        say("Kubernetes is ready")
        wanted = sys.argv[1:]
        if not wanted:
            rollout(k)
        namespaces, sets = node(k)
        if "production" not in wanted:
            real(k, namespaces, sets)
        k.services()
        production(k, sets)
    say("all of it holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
