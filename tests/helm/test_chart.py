"""The chart as helm renders it: valid for three Kubernetes versions, refuses what is wrong, holds what the docs say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from planes.model.settings import PREFIX, Settings, load
from tests.helm.charts import (
    APIS,
    CHART,
    DEV,
    PRODUCTION,
    ROOT,
    VERSIONS,
    Object,
    containers,
    helm,
    one,
    pods,
    render,
    template,
)
from tests.support.nats import binary

OPERATOR = ('store.mode="operator"', 'store.operator.storageClass="fast"')
#: production, with these values changed
TOGGLES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "external bus": ('nats.mode="external"', 'nats.url="tls://a:4222,tls://b:4222"', 'nats.auth.serverSecret=""'),
    "no TLS": ("nats.tls.enabled=false",),
    "shared credentials": ('nats.auth.agentPath=""', 'nats.auth.agentSecret="agents"'),
    "no autoscaling": ("api.autoscaling.enabled=false",),
    "no policies": ("networkPolicy.enabled=false",),
    "no migration": ("store.migrate=false",),
    "placed": (
        'api.nodeSelector={"a":"b"}',
        'api.tolerations=[{"operator":"Exists"}]',
        'imagePullSecrets=[{"name":"r"}]',
    ),
    "registry": ('imagePullSecrets=[{"name":"r"}]', 'image.digest=""', 'image.tag="1"'),
    "extra": ('api.extraEnv=[{"name":"A","value":"b"}]', 'agent.extraEnv=[{"name":"A","value":"b"}]'),
    "callers": ('networkPolicy.apiFrom=[{"namespaceSelector":{}}]', 'api.service.annotations={"a":"b"}'),
    "operator": OPERATOR,
    "keystone": ('auth.mode="keystone"', 'auth.url="https://keystone.example/v3"', 'auth.secret.name=""'),
    "keystone with its CA": ('auth.mode="keystone"', 'auth.url="https://k/v3"', 'auth.caSecret="keystone-ca"'),
    "scrapers": ('networkPolicy.metricsFrom=[{"namespaceSelector":{}}]', "api.metricsPort=9100"),
}
#: without what is copied from observability/
BARE = ("monitoring.dashboards.enabled=false", "monitoring.rules=false")
#: kinds without a schema here: only their presence and shape is asserted
CUSTOM = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "CassandraDatacenter"}


@pytest.mark.parametrize("preset", sorted((CHART / "ci").glob("*.yaml")), ids=lambda path: path.stem)
def test_lint_finds_nothing(preset: Path) -> None:
    done = helm("lint", "--strict", str(CHART), "-f", str(preset))
    assert done.returncode == 0, done.stdout + done.stderr


def _valid(objects: list[Object], version: str) -> None:
    for found in objects:
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_preset_and_toggle_is_valid(version: str) -> None:
    _valid(render(DEV, version=version), version)
    for sets in TOGGLES.values():
        _valid(render(PRODUCTION, *sets, version=version, apis=APIS), version)


@pytest.mark.parametrize("release", ["n", "1e3", "true", "0", "a.b", "a" * 53, "alcor"])
def test_odd_release_names(release: str) -> None:
    objects: list[Object] = []
    for preset in (DEV, PRODUCTION):
        objects = render(preset, release=release, namespace="1234")
        _valid(objects, VERSIONS[-1])
        for found in objects:
            assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", found["metadata"]["name"])
            assert found["metadata"]["namespace"] == "1234"
            assert all(isinstance(value, str) for value in found["metadata"]["labels"].values())
    names = [found["metadata"]["name"] for found in objects]
    assert len({(o["kind"], o["metadata"]["name"]) for o in objects}) == len(names)


def test_releases_that_begin_alike_do_not_collide() -> None:
    first, second = (render(DEV, release="a" * 52 + last)[0]["metadata"]["name"] for last in "xy")
    assert first != second


REFUSED = {
    'topology="both"': "/topology",
    "api.replicaz=3": "replicaz",
    "api.replicas=0": "/api/replicas",
    'agent.maxUnavailable="0%"': "/agent/maxUnavailable",
    'cloud.name="Alcor"': "/cloud/name",
    "cloud.mtu=500": "/cloud/mtu",
    'settings={"quota_prot":1}': "quota_prot",
    'settings={"api_host":"0.0.0.0"}': "api_host",
    'log="loud"': "/log",
    "nats.replicas=2": "/nats/replicas",
    'image.digest="sha256:12"': "/image/digest",
    'store.secret.name=""': "store.secret.name",
    'store.mode="sqlite"': "store.mode",
    'store.mode="operator"': "store.operator.storageClass",
    'nats.tls.secret=""': "nats.tls.secret",
    'nats.mode="external"': "nats.url",
    'nats.auth.apiSecret=""': "nats.auth.apiSecret",
    'nats.auth.agentPath=""': "nats.auth.agentPath",
    'nats.auth.agentSecret="x"': "nats.auth.agentSecret",
    "networkPolicy.nodeCIDRs=[]": "networkPolicy.nodeCIDRs",
    'networkPolicy.nodeCIDRs=["all"]': "/networkPolicy/nodeCIDRs",
    'auth.mode="none"': "auth.mode",
    'auth.mode="keystone"': "auth.url",
    'auth.secret.name=""': "auth.secret.name",
    'auth.url="keystone"': "/auth/url",
    "api.autoscaling.max=2": "api.autoscaling.min",
}


@pytest.mark.parametrize("value", REFUSED)
def test_a_wrong_value_is_refused_by_name(value: str) -> None:
    done = template(PRODUCTION, value)
    assert done.returncode != 0
    assert REFUSED[value] in done.stderr


def test_without_values_the_missing_one_is_named() -> None:
    done = helm("template", "n", str(CHART))
    assert done.returncode != 0
    assert "auth.secret.name is required" in done.stderr
    done = template(PRODUCTION, *OPERATOR)
    assert done.returncode != 0
    assert "CassandraDatacenter" in done.stderr


def _environment(objects: list[Object], container: Object) -> dict[str, str]:
    """What a container's process gets; what Kubernetes fills in is given a likely value."""
    filled = {
        "spec.nodeName": "node-1.example",
        "status.hostIP": "192.0.2.7",
        "metadata.name": "alcor-cloud-api-7c9d8b-x2x4z",
        "url": "cassandra://c1/alcor",
    }
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        found |= next(o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == name)["data"]
    for item in container.get("env", []):
        source = item.get("valueFrom", {})
        origin = source.get("fieldRef", {}).get("fieldPath") or source.get("secretKeyRef", {}).get("key")
        found[item["name"]] = item["value"] if origin is None else filled.get(origin, "secret")
    return found


@pytest.mark.parametrize("preset", [DEV, PRODUCTION], ids=["dev", "production"])
def test_every_variable_is_a_setting_that_loads(preset: Path) -> None:
    objects = render(preset, 'settings={"quota_port":500,"echo_from":2.5}')
    checked = 0
    for _, pod in pods(objects):
        for container in containers(pod):
            environment = _environment(objects, container)
            if any(name.startswith(PREFIX) for name in environment):
                loaded = load(None, environment, {})
                assert loaded.unknown == ()
                checked += 1
                if "envFrom" in container:
                    assert (loaded.settings.quota_port, loaded.settings.echo_from) == (500, 2.5)
    assert checked == 3


def test_free_settings_are_those_that_no_value_sets() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    free = set(schema["properties"]["settings"]["propertyNames"]["enum"])
    fields = set(Settings.__struct_fields__)
    assert free <= fields
    # of a part or of the command line
    own = {"api", "data", "instance", "host", "vtep", "machine", "state", "user", "password"}
    text = "".join(path.read_text() for path in (CHART / "templates").glob("*.*"))
    assert {name for name in fields - free - own if f"{PREFIX}{name.upper()}" not in text} == set()


def test_agents_keep_namespaces_and_state_over_an_update() -> None:
    daemons = one(render(), "DaemonSet")
    pod = daemons["spec"]["template"]["spec"]
    agent = pod["containers"][0]
    assert pod["hostNetwork"]
    assert pod["priorityClassName"] == "system-node-critical"
    assert daemons["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "10%"
    mounts = {mount["name"]: mount for mount in agent["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts["netns"]["mountPropagation"] == "Bidirectional"
    assert volumes["netns"]["hostPath"]["path"] == "/run/netns" == mounts["netns"]["mountPath"]
    assert volumes["state"]["hostPath"]["path"] == "/run/alcor" == mounts["state"]["mountPath"]
    assert agent["command"][:3] == ["setpriv", "--bounding-set", "-all,+net_admin,+net_raw,+sys_admin"]


def test_api_drains_before_it_ends() -> None:
    objects = render()
    deployment = one(objects, "Deployment", "-api")
    pod = deployment["spec"]["template"]["spec"]
    drain = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= drain + 10  # api.app.DRAIN
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in deployment["spec"], "the autoscaler's number would be overwritten at each upgrade"
    assert one(objects, "PodDisruptionBudget", "-api")["spec"]["maxUnavailable"] == 1
    assert {c["topologyKey"] for c in pod["topologySpreadConstraints"]} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }


def test_nothing_is_granted_and_no_secret_is_in_clear() -> None:
    for sets in TOGGLES.values():
        objects = render(PRODUCTION, *sets, apis=APIS)
        assert not [o for o in objects if "Role" in o["kind"] or o["kind"] == "Secret"]
        for _, pod in pods(objects):
            assert pod["automountServiceAccountToken"] is False


def test_monitors_only_where_the_cluster_knows_them() -> None:
    assert not [o for o in render() if o["kind"] in CUSTOM]
    assert one(render(apis=APIS), "ServiceMonitor")["spec"]["endpoints"][0]["path"] == "/metrics"
    agents = one(render(apis=APIS), "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    container = one(render(apis=APIS), "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    assert agents["port"] == container["ports"][0]["name"]
    assert agents["relabelings"][0]["targetLabel"] == "instance"
    silent = render(PRODUCTION, "agent.metricsPort=0", apis=APIS)
    assert not [o for o in silent if o["kind"] == "PodMonitor"]
    center = one(render(PRODUCTION, *OPERATOR, apis=APIS), "CassandraDatacenter")
    assert center["spec"]["storageConfig"]["cassandraDataVolumeClaimSpec"]["storageClassName"] == "fast"


@pytest.mark.parametrize("sets", ["tls.enabled=false", 'auth.serverSecret=""'])
def test_nats_takes_its_configuration(sets: str, tmp_path: Path) -> None:
    """The server itself judges; its TLS files are made here, its accounts left out."""
    config = one(render(PRODUCTION, f"nats.{sets}"), "ConfigMap", "-nats")["data"]["nats.conf"]
    (tmp_path / "auth").mkdir()
    (tmp_path / "tls").mkdir()
    (tmp_path / "auth/auth.conf").write_text("")
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=n",
    ]
    keys = [*make, "-keyout", str(tmp_path / "tls/tls.key"), "-out", str(tmp_path / "tls/tls.crt")]
    subprocess.run(keys, check=True, capture_output=True)
    (tmp_path / "tls/ca.crt").write_bytes((tmp_path / "tls/tls.crt").read_bytes())
    (tmp_path / "nats.conf").write_text(config.replace("/etc/nats/", f"{tmp_path}/"))
    command = [binary(), "-t", "-c", str(tmp_path / "nats.conf")]
    done = subprocess.run(command, capture_output=True, text=True, env={"POD_NAME": "n-0"}, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_made_from_other_files_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/chart", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_dashboards_and_alerts_are_shipped_as_they_are() -> None:
    objects = render(apis=APIS)
    shipped = [o for o in objects if o["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    assert {name: text for o in shipped for name, text in o["data"].items()} == {
        path.name: path.read_text() for path in (ROOT / "observability/dashboards/json").iterdir()
    }
    alerts = yaml.safe_load((ROOT / "observability/alerts/alcor.yaml").read_text())
    assert one(objects, "PrometheusRule")["spec"] == alerts
    assert not [o for o in render(PRODUCTION, *BARE, apis=APIS) if o in shipped or o["kind"] == "PrometheusRule"]


@pytest.mark.parametrize("preset", [DEV, PRODUCTION], ids=["dev", "production"])
def test_golden(preset: Path) -> None:
    """Whatever changes a render changes this file in the same commit: delete it and run the test to write it anew."""
    golden = Path(__file__).parent / "golden" / f"{preset.stem}.yaml"
    done = template(preset, *BARE, apis=APIS)
    if not golden.exists():
        golden.write_text(done.stdout)
    assert golden.read_text() == done.stdout
