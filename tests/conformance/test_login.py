"""The real `openstack` command logs in: at an API with users of its own, and at a real Keystone in front of one."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.support import Up, alcor, eventually
from tests.support.keystone import PASSWORD, KeystoneServer

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(300)]


def openstack(url: str, user: str, password: str, project: str, *arguments: str, fails: bool = False) -> Any:
    """One command of a user; its answer, or what it complained of."""
    account = ["--os-username", user, "--os-password", password, "--os-project-name", project]
    domains = ["--os-user-domain-id", "default", "--os-project-domain-id", "default"]
    shown = () if arguments[1] in ("add", "delete", "revoke") else ("-f", "json")
    program = str(Path(sys.executable).with_name("openstack"))
    command = [program, "--os-auth-url", url, *account, *domains, *arguments, *shown]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode != 0) == fails, (arguments, done.stderr)
    if fails:
        return done.stderr
    return json.loads(done.stdout) if shown else ""


def test_users_of_our_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Up(data, hosts=1, arguments=("--auth", "embedded")) as up:
        password = (data / "admin-password").read_text().strip()
        url = f"{up.api}/v3"
        openstack(url, "admin", password, "demo", "network", "create", "green")
        openstack(
            url,
            "admin",
            password,
            "demo",
            *["subnet", "create", "s", "--network", "green", "--subnet-range", "10.0.0.0/24"],
        )
        account: dict[str, Any] = {"ALCOR_DATA": str(data), "ALCOR_USER": "admin", "ALCOR_PASSWORD": password}
        made = alcor("vm", "create", "web", "--network", "green", "--host", "h1", "--json", **account)
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["status"] == "ACTIVE"
        refused = alcor("vm", "list", ALCOR_DATA=str(data))
        assert (refused.returncode, "requires authentication" in refused.stderr) == (1, True)
        wrong = alcor("vm", "list", **account | {"ALCOR_PASSWORD": "something else"})
        assert (wrong.returncode, "User admin cannot log in" in wrong.stderr) == (1, True)

        added = alcor("user", "add", "bob", "--role", "reader:demo", "--json", ALCOR_DATA=str(data))
        bob = json.loads(added.stdout)["password"]
        time.sleep(1.1)  # the API looks at the file once a second
        listed = openstack(url, "bob", bob, "demo", "network", "list")
        assert [network["Name"] for network in listed] == ["green"]
        assert "may only read" in openstack(url, "bob", bob, "demo", "network", "create", "x", fails=True)
        assert alcor("user", "remove", "bob", ALCOR_DATA=str(data)).returncode == 0
        time.sleep(1.1)
        assert "401" in openstack(url, "bob", bob, "demo", "network", "list", fails=True)
        assert {row["user"] for row in json.loads(alcor("user", "list", "--json", ALCOR_DATA=str(data)).stdout)} == {
            "admin"
        }
    with Up(data, hosts=1, arguments=("--auth", "embedded")) as up:  # its users are still there, and its instances
        listed = alcor("vm", "list", "--json", **account)
        assert [(row["name"], row["running"]) for row in json.loads(listed.stdout)] == [("web", True)]


@pytest.fixture(scope="module")
def keystone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeystoneServer]:
    with KeystoneServer(tmp_path_factory.mktemp("keystone")) as server:
        yield server


def test_a_real_keystone(tmp_path: Path, keystone: KeystoneServer) -> None:
    account: dict[str, Any] = {"ALCOR_AUTH_URL": keystone.url, "ALCOR_USER": "admin", "ALCOR_PASSWORD": PASSWORD}
    with Up(tmp_path / "data", hosts=1, arguments=("--auth", "keystone"), **account) as up:

        def admin(*arguments: str) -> Any:
            return openstack(keystone.url, "admin", PASSWORD, "admin", *arguments)

        service = admin("service", "create", "network", "--name", "neutron")["id"]
        admin("endpoint", "create", service, "public", up.api)
        blue = admin("project", "create", "blue")["id"]
        admin("user", "create", "bob", "--password", "bob's password")
        admin("role", "add", "--user", "bob", "--project", "blue", "reader")
        admin("user", "create", "eve", "--password", "eve's password")
        admin("role", "add", "--user", "eve", "--project", "blue", "member")

        mine = openstack(keystone.url, "eve", "eve's password", "blue", "network", "create", "green")
        assert mine["project_id"] == blue
        listed = openstack(keystone.url, "bob", "bob's password", "blue", "network", "list")
        assert [network["Name"] for network in listed] == ["green"]
        refused = openstack(keystone.url, "bob", "bob's password", "blue", "network", "create", "x", fails=True)
        assert "may only read" in refused
        hosts = openstack(keystone.url, "eve", "eve's password", "blue", "token", "issue")
        token = {"X-Auth-Token": hosts["id"]}
        with httpx.Client(base_url=up.api, trust_env=False) as client:
            assert client.get("/v2.0/alcor/hosts", headers=token).status_code == 403
            assert client.get("/v2.0/networks", headers={"X-Auth-Token": "x" * 200}).status_code == 401
            issued = admin("token", "issue")["id"]
            keystone.kill()
            assert client.get("/v2.0/networks", headers=token).status_code == 200  # it was asked before
            away = eventually(lambda: client.get("/v2.0/networks", headers={"X-Auth-Token": issued}), 10)
            assert (away.status_code, "Keystone does not answer" in away.text) == (503, True)
            assert away.headers["Retry-After"]
