"""The real `openstack` command and openstacksdk against a running cloud: what their users do, unchanged."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import Up, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("conformance") / "data") as cloud:
        yield cloud


def openstack(cloud: Up, *arguments: str, fails: bool = False) -> Any:
    """One command; its answer, or what it complained of."""
    shown = () if arguments[1] in ("delete", "set") else ("-f", "json")
    program = Path(sys.executable).with_name("openstack")
    command = [str(program), "--os-auth-type", "none", "--os-endpoint", cloud.api, *arguments, *shown]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode != 0) == fails, done.stderr
    if fails:
        return done.stderr
    return json.loads(done.stdout) if shown else done.stdout


def test_a_network_from_creation_to_deletion(cloud: Up) -> None:
    network = openstack(cloud, "network", "create", "green", "--description", "first")
    assert network["status"] == "ACTIVE"
    subnet = openstack(cloud, "subnet", "create", "--network", "green", "--subnet-range", "10.0.0.0/24", "green-v4")
    assert (subnet["cidr"], subnet["gateway_ip"]) == ("10.0.0.0/24", "10.0.0.1")
    openstack(cloud, "network", "set", "green", "--description", "second")
    shown = openstack(cloud, "network", "show", "green")
    assert (shown["description"], shown["subnets"]) == ("second", [subnet["id"]])
    port = openstack(cloud, "port", "create", "--network", "green", "--host", "h1", "p1")
    assert port["fixed_ips"][0]["subnet_id"] == subnet["id"]
    eventually(lambda: openstack(cloud, "port", "show", "p1")["status"] == "ACTIVE", 20, "the port is active")
    assert [row["Name"] for row in openstack(cloud, "port", "list", "--network", "green")] == ["p1"]
    assert "in use" in openstack(cloud, "network", "delete", "green", fails=True)
    openstack(cloud, "port", "delete", "p1")
    openstack(cloud, "network", "delete", "green")
    assert openstack(cloud, "network", "list") == []


def test_a_security_group_with_rules(cloud: Up) -> None:
    group = openstack(cloud, "security", "group", "create", "web")
    rule = openstack(
        cloud, "security", "group", "rule", "create", "--protocol", "tcp", "--dst-port", "80:81", group["id"]
    )
    assert (rule["port_range_min"], rule["port_range_max"], rule["direction"]) == (80, 81, "ingress")
    rules = openstack(cloud, "security", "group", "rule", "list", "web")
    assert rule["id"] in {row["ID"] for row in rules}
    assert {"default", "web"} <= {row["Name"] for row in openstack(cloud, "security", "group", "list")}


def test_the_sdk(cloud: Up) -> None:
    program = (
        "import json, sys, openstack\n"
        f"cloud = openstack.connection.Connection(auth_type='none', endpoint={cloud.api!r})\n"
        "network = cloud.network.create_network(name='sdk')\n"
        "subnet = cloud.network.create_subnet(network_id=network.id, cidr='10.7.0.0/24', ip_version=4)\n"
        "ports = cloud.network.create_ports([{'network_id': network.id, 'name': f'p{n}'} for n in range(5)])\n"
        "found = list(cloud.network.ports(network_id=network.id, name='p3'))\n"
        "for port in cloud.network.ports(network_id=network.id): cloud.network.delete_port(port)\n"
        "cloud.network.delete_network(network)\n"
        "print(json.dumps([len(list(ports)), found[0].name, cloud.network.find_network('sdk')]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [5, "p3", None]
