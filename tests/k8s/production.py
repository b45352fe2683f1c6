"""Production values on a real kubelet, step by step as docs/deploy.md says: users, certificates, credentials, chart.

Called by `python -m tests.k8s`, after the development values have gone. Cassandra stands beside the cluster.
"""

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from cli.cassandra.node import Node
from tests.helm.charts import CHART, PRODUCTION, tool
from tests.k8s.cluster import ADDRESS, Cluster
from tests.k8s.talk import check, say
from tests.support.cassandra import CassandraServer

SPACE, RELEASE, NAME = "alcor", "cloud", "alcor-cloud"
PASSWORD = "correct horse"
PODS = {"api": 3, "nats": 3, "agent": 1}
#: where the chart looks for a node's own credentials
CREDENTIALS = Path("/etc/alcor/nats.creds")
#: the operator's own values. Two cores hold what six would: the preset asks for the nodes of a cloud.
MINE = f"""
networkPolicy: {{nodeCIDRs: [{ADDRESS}/32]}}
otlp: {{endpoint: ""}}
image: {{digest: ""}}
api: {{resources: {{requests: {{cpu: 20m}}}}}}
nats: {{resources: {{requests: {{cpu: 20m}}}}}}
agent: {{resources: {{requests: {{cpu: 20m}}}}}}
"""
#: what docs/deploy.md says that the certificate of NATS is for
NAMES = (f"*.{NAME}-nats-servers.{SPACE}.svc", f"{NAME}-nats.{SPACE}.svc")


def production(k: Cluster, sets: list[str]) -> None:
    """`sets`: which image, and where this node has its directories."""
    directory = k.directory / "operator"
    directory.mkdir()
    node = Node(k.directory / "cassandra", 9042, 7000, ADDRESS, heap="400M")
    with CassandraServer(node=node) as cassandra, _node_credentials():
        say("a Cassandra node answers, beside the cluster")
        k.kubectl("create", "namespace", SPACE)
        _prepare(k, directory, cassandra.url("alcor"))
        say("users, certificates and credentials are made; Secrets hold them")
        _install(k, directory, sets)
        said = k.helm("test", RELEASE, "-n", SPACE, "--logs", "--timeout", "120s")
        line = next((line for line in said.splitlines() if "port " in line), said)
        check("ACTIVE" in line, f"helm test: {line.strip()}")
        _as_a_user(k, directory)
        with client(k) as api:
            _closed(k, api)
            _recovers(k, api)
            _upgrades(k, api, directory, sets)


@contextmanager
def _node_credentials() -> Iterator[None]:
    """This machine is the node: nothing of it stays."""
    if CREDENTIALS.exists():
        raise SystemExit(f"{CREDENTIALS} belongs to somebody else")
    there = CREDENTIALS.parent.exists()
    CREDENTIALS.parent.mkdir(exist_ok=True)
    try:
        yield
    finally:
        CREDENTIALS.unlink(missing_ok=True)
        if not there:
            CREDENTIALS.parent.rmdir()


def alcor(directory: Path, *arguments: str, **env: str) -> None:
    command = [sys.executable, "-m", "cli.main", *arguments]
    subprocess.run(command, cwd=Path(__file__).parents[2], env=env, check=True, capture_output=True)


def _prepare(k: Cluster, d: Path, store: str) -> None:
    """All that the table of docs/deploy.md asks for."""
    env = {"PATH": "/usr/bin:/bin", "ALCOR_AUTH_USERS": f"{d}/users.json", "ALCOR_PASSWORD": PASSWORD}
    alcor(d, "user", "add", "admin", "--role", "admin:ops", **env)
    alcor(d, "user", "add", "alice", "--role", "member:blue", **env)
    alcor(d, "bus", "init", f"{d}/bus")
    alcor(d, "bus", "issue", "control", "api", "--keys", f"{d}/bus", "--out", f"{d}/nats.creds")
    alcor(d, "bus", "issue", "host", "node1", "--keys", f"{d}/bus", "--days", "90", "--out", str(CREDENTIALS))
    _certificates(d)
    (d / "url").write_text(store)
    _secret(k, "alcor-store", f"--from-file={d}/url")
    _secret(k, "alcor-users", f"--from-file={d}/users.json")
    _secret(k, "alcor-admin", "--from-literal=user=admin", f"--from-literal=password={PASSWORD}")
    _secret(k, "alcor-nats-tls", *(f"--from-file={d}/{name}" for name in ("tls.crt", "tls.key", "ca.crt")))
    _secret(k, "alcor-nats-server", f"--from-file={d}/bus/auth.conf")
    _secret(k, "alcor-nats-api", f"--from-file={d}/nats.creds")


def _secret(k: Cluster, name: str, *sources: str) -> None:
    k.kubectl("-n", SPACE, "create", "secret", "generic", name, *sources)


def _certificates(d: Path) -> None:
    """A CA, and one certificate for all servers of NATS."""
    names = ",".join(f"DNS:{name}" for name in NAMES)
    (d / "ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
    for command in (
        f"req -x509 -newkey rsa:2048 -nodes -keyout {d}/ca.key -out {d}/ca.crt -days 30 -subj /CN=ca",
        f"req -newkey rsa:2048 -nodes -keyout {d}/tls.key -out {d}/tls.csr -subj /CN=nats",
        f"x509 -req -in {d}/tls.csr -CA {d}/ca.crt -CAkey {d}/ca.key -CAcreateserial -out {d}/tls.crt -days 30 "
        f"-extfile {d}/ext",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)


def _install(k: Cluster, d: Path, sets: list[str], *more: str) -> None:
    began = time.monotonic()
    (d / "mine.yaml").write_text(MINE)
    common = ("-n", SPACE, "-f", str(PRODUCTION), "-f", f"{d}/mine.yaml", *sets, *more, "--wait", "--timeout", "300s")
    k.helm("upgrade", "--install", RELEASE, str(CHART), *common)
    k.until("three pods of the API, as the autoscaler wants", lambda: ready(k) == PODS)
    pods = ready(k)
    check(pods == PODS, f"production values: {pods} in {time.monotonic() - began:.0f} s")


def ready(k: Cluster) -> dict[str, int]:
    """Ready pods by component."""
    found: dict[str, int] = {}
    for pod in k.get("pods", "-n", SPACE)["items"]:
        component = pod["metadata"]["labels"].get("app.kubernetes.io/component", "")
        fine = all(each["ready"] for each in pod["status"].get("containerStatuses", ())) and component != "test"
        if fine and "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] == "Running":
            found[component] = found.get(component, 0) + 1
    return found


@contextmanager
def client(k: Cluster) -> Iterator[httpx.Client]:
    """The API by its Service's address, as an administrator who acts for tenant blue."""
    address = k.get("service", "-n", SPACE, f"{NAME}-api")["spec"]["clusterIP"]
    with httpx.Client(base_url=f"http://{address}:9696", timeout=40, trust_env=False) as api:
        api.headers["X-Auth-Token"] = log_in(api, "admin", "ops")
        api.headers["X-Project-Id"] = "blue"
        yield api


def log_in(api: httpx.Client, name: str, project: str) -> str:
    user = {"name": name, "password": PASSWORD, "domain": {"id": "default"}}
    identity = {"methods": ["password"], "password": {"user": user}}
    scope = {"project": {"name": project, "domain": {"id": "default"}}}
    answer = api.post("/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}})
    return str(answer.raise_for_status().headers["X-Subject-Token"])


def _as_a_user(k: Cluster, d: Path) -> None:
    """By a forwarded port and the `openstack` command."""
    forward = [tool("kubectl"), "--kubeconfig", f"{k.directory}/kubeconfig", "-n", SPACE, "port-forward"]
    program = str(Path(sys.executable).with_name("openstack"))
    names = {"AUTH_URL": "http://127.0.0.1:9696/v3", "USERNAME": "admin", "PASSWORD": PASSWORD, "PROJECT_NAME": "ops"}
    names |= {"USER_DOMAIN_ID": "default", "PROJECT_DOMAIN_ID": "default"}
    env = {"PATH": "/usr/bin:/bin"} | {f"OS_{name}": value for name, value in names.items()}
    process = subprocess.Popen([*forward, f"svc/{NAME}-api", "9696"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it listens
        command = [program, "network", "create", "blue", "-f", "value", "-c", "status"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        check(done.stdout.strip() == "ACTIVE", f"openstack network create blue: {done.stdout.strip() or done.stderr}")
    finally:
        process.kill()
        process.wait()


def _closed(k: Cluster, api: httpx.Client) -> None:
    """Who is nobody gets nothing."""
    url = f"{api.base_url}/v2.0/networks"
    check(httpx.get(url, trust_env=False).status_code == 401, "the API answers 401 without a token")
    alice = {"X-Auth-Token": log_in(api, "alice", "blue")}
    hosts = httpx.get(f"{api.base_url}/v2.0/alcor/hosts", headers=alice, trust_env=False)
    check(hosts.status_code == 403, "hosts are not for tenants")
    probe = "import nats,asyncio,os;asyncio.run(nats.connect(os.environ['ALCOR_NATS'],allow_reconnect=False))"
    said = k.kubectl("exec", "-n", SPACE, f"deploy/{NAME}-api", "--", "python", "-c", probe, fails=True, errors=True)
    check("uthorization" in said, "NATS refuses a client without credentials, by TLS and its Service's name")
    metrics = k.get("endpoints", "-n", SPACE, f"{NAME}-api-metrics")["subsets"][0]["addresses"][0]["ip"]
    text = httpx.get(f"http://{metrics}:9697/metrics", trust_env=False).text
    check("alcor_hosts" in text, "scrapers have the API's metrics on a port of their own")


def _ports(api: httpx.Client) -> tuple[str, dict[str, Any]]:
    network = api.post("/v2.0/networks", json={"network": {}}).raise_for_status().json()["network"]["id"]
    api.post("/v2.0/subnets", json={"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.1.0.0/16"}})
    return network, {"port": {"network_id": network, "binding:host_id": "node1"}}


def _active(api: httpx.Client, wanted: dict[str, Any]) -> bool:
    try:
        made = api.post("/v2.0/ports", json=wanted, headers={"Prefer": "wait=20"})
    except httpx.TransportError:
        return False
    return made.status_code == 201 and made.json()["port"]["status"] == "ACTIVE"


def _recovers(k: Cluster, api: httpx.Client) -> None:
    """A pod of each kind goes; a password changes."""
    _, wanted = _ports(api)
    check(_active(api, wanted), "a port by the API's Service: ACTIVE")
    for component in ("api", "nats", "agent"):
        pods = k.get("pods", "-n", SPACE, "-l", f"app.kubernetes.io/component={component}")["items"]
        k.kubectl("delete", "pod", "-n", SPACE, pods[0]["metadata"]["name"], "--wait=false")
        k.until(f"a port after a pod of {component} was deleted", lambda: _active(api, wanted))
        k.until("all pods are back", lambda: ready(k) == PODS)
        say(f"a pod of {component} was deleted: ports become ACTIVE, and it is back")
    users = json.loads((k.directory / "operator/users.json").read_text())
    del users["users"]["alice"]
    data = {"users.json": base64.b64encode(json.dumps(users).encode()).decode()}
    token = log_in(api, "alice", "blue")
    k.kubectl("patch", "secret", "-n", SPACE, "alcor-users", "-p", json.dumps({"data": data}))

    def out() -> bool:
        """Of every instance that answers."""
        found = (httpx.get(f"{api.base_url}/v2.0/networks", headers=headers, trust_env=False) for _ in range(6))
        return {answer.status_code for answer in found} == {401}

    headers = {"X-Auth-Token": token}
    k.until("a user who left the Secret is out", out, 180)
    say("a user who was taken out of the Secret is out")


def _uids(k: Cluster) -> set[str]:
    """Which pods there are of what the chart keeps running."""
    pods = k.get("pods", "-n", SPACE, "-l", "app.kubernetes.io/component in (api,nats,agent)")["items"]
    return {pod["metadata"]["uid"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def _upgrades(k: Cluster, api: httpx.Client, d: Path, sets: list[str]) -> None:
    """Every pod is replaced while a client creates ports."""
    network, wanted = _ports(api)
    made: list[str] = []
    refused: list[str] = []
    over = threading.Event()
    before = _uids(k)

    def create() -> None:
        with httpx.Client(base_url=api.base_url, headers=api.headers, timeout=40, trust_env=False) as mine:
            while not over.is_set():
                try:
                    answer = mine.post("/v2.0/ports", json=wanted)
                except httpx.TransportError as error:
                    refused.append(repr(error))
                    continue
                if answer.status_code == 201:
                    made.append(answer.json()["port"]["id"])
                else:
                    refused.append(answer.text)
                time.sleep(0.02)

    thread = threading.Thread(target=create)
    thread.start()
    try:
        _install(k, d, sets, "--set", "settings.beat_every=4", "--set", "nats.maxConnections=9999")
        k.until("all pods are new", lambda: ready(k) == PODS)
    finally:
        over.set()
        thread.join()
    replaced = not before & _uids(k)
    text = f"helm upgrade replaced every pod under a client: {len(made)} creates answered, {len(refused)} not"
    check(replaced, text)

    def settled() -> bool:
        found = api.get("/v2.0/ports", params={"network_id": network}).json()["ports"]
        return set(made) <= {port["id"] for port in found if port["status"] == "ACTIVE"}

    k.until("every answered create is ACTIVE", settled)
    check(made, "every answered create is ACTIVE")
