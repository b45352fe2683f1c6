"""`alcor up` as a whole: one line when ready, packets between instances, deaths of every part, and nothing left."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.support import Up, alcor, alive, eventually, remains
from tests.support.ports import free_port

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    data = tmp_path_factory.mktemp("up") / "data"
    with Up(data) as cloud:
        cloud.network("blue", "10.0.0.0/24")
        cloud.done("vm", "create", "a", "--network", "blue", "--host", "h1")
        cloud.done("vm", "create", "b", "--network", "blue", "--host", "h2")
        yield cloud
    assert remains(data) == []


def address(cloud: Up, name: str) -> str:
    return next(str(row["ip"]) for row in cloud.done("vm", "list") if row["name"] == name)


def test_says_where_everything_is(cloud: Up) -> None:
    ready = cloud.ready
    assert set(ready) == {"api", "apis", "nats", "console", "hosts", "pids", "metrics", "data"}
    assert ready["apis"] == [ready["api"]]
    assert ready["hosts"] == ["h1", "h2"]
    assert set(ready["pids"]) == {"api", "nats", "h1", "h2"}
    assert all(alive(pid) for pid in ready["pids"].values())
    assert ready["data"] == str(cloud.data)
    host, port = ready["nats"].removeprefix("nats://").split(":")
    with socket.create_connection((host, int(port)), 2) as bus:
        assert bus.recv(5) == b"INFO "


def test_agents_run_inside_their_hosts(cloud: Up) -> None:
    ours = os.stat("/proc/self/ns/net").st_ino
    inside = {os.stat(f"/proc/{cloud.ready['pids'][name]}/ns/net").st_ino for name in ("h1", "h2")}
    assert len(inside | {ours}) == 3


def test_instances_reach_each_other_across_hosts(cloud: Up) -> None:
    found = eventually(lambda: cloud.ping("a", address(cloud, "b")).returncode == 0, 5, "ping")
    assert found


def test_a_network_that_is_down_carries_nothing_until_it_is_up(cloud: Up) -> None:
    target = address(cloud, "b")
    eventually(lambda: cloud.ping("a", target).returncode == 0, 5, "ping")
    with cloud.client() as http:
        (network,) = http.get("/v2.0/networks", params={"name": "blue"}).json()["networks"]
        path = f"/v2.0/networks/{network['id']}"
        down = http.put(path, json={"network": {"admin_state_up": False}}).raise_for_status().json()["network"]
        assert down["status"] == "DOWN"
        eventually(lambda: cloud.ping("a", target).returncode != 0, 5, "no packet passes")
        http.put(path, json={"network": {"admin_state_up": True}}).raise_for_status()
    eventually(lambda: cloud.ping("a", target).returncode == 0, 5, "packets pass again")


def test_list_and_exec(cloud: Up) -> None:
    rows = {row["name"]: row for row in cloud.done("vm", "list")}
    assert {name: (row["host"], row["status"], row["running"]) for name, row in rows.items() if name in "ab"} == {
        "a": ("h1", "ACTIVE", True),
        "b": ("h2", "ACTIVE", True),
    }
    assert cloud.alcor("vm", "exec", "a", "--", "sh", "-c", "exit 7").returncode == 7
    links = json.loads(cloud.alcor("vm", "exec", "a", "--", "ip", "-j", "address", "show", "eth0").stdout)
    assert links[0]["addr_info"][0]["local"] == rows["a"]["ip"]


def test_a_port_can_be_traced(cloud: Up) -> None:
    port = next(row["port_id"] for row in cloud.done("vm", "list") if row["name"] == "a")
    change = cloud.done("trace", port)
    names = [stage["name"] for stage in change["stages"]]
    assert {"accept", "validate", "write", "publish", "program", "ack"} <= set(names)
    shown = cloud.alcor("trace", port)
    assert shown.returncode == 0
    assert "program" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "c", "--network", "nowhere", "--host", "h1"), "no network 'nowhere'"),
        (("create", "c", "--network", "blue", "--host", "h9"), "no host 'h9'"),
        (("create", "c", "--network", "blue", "--host", "h1", "-g", "none"), "no security group 'none'"),
        (("create", "a", "--network", "blue", "--host", "h1"), "instance 'a' already"),
        (("create", "c", "--network", "blue", "--host", "h1", "--ip", "10.9.9.9"), "10.9.9.9"),
        (("delete", "nobody"), "no instance 'nobody'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_said(cloud: Up, arguments: tuple[str, ...], words: str) -> None:
    done = cloud.alcor("vm", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert [row["name"] for row in cloud.done("vm", "list")] == ["a", "b"]


def test_delete_takes_port_and_namespace_with_what_runs_there(cloud: Up) -> None:
    cloud.done("vm", "create", "gone", "--network", "blue", "--host", "h1")
    sleeper = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{_instance(cloud, 'gone')}", "sleep", "1000"], stdin=subprocess.DEVNULL
    )
    cloud.done("vm", "delete", "gone")
    assert sleeper.wait(5) == -signal.SIGKILL
    assert [row["name"] for row in cloud.done("vm", "list")] == ["a", "b"]
    assert not Path("/run/netns", _instance(cloud, "gone")).exists()


def _instance(cloud: Up, name: str) -> str:
    from cli.layout import Layout

    return Layout(str(cloud.data)).instance(name)


@pytest.mark.parametrize("part", ["h1", "api", "nats"])
def test_a_killed_part_comes_back_and_no_packet_is_lost(cloud: Up, part: str) -> None:
    target = address(cloud, "b")
    eventually(lambda: cloud.ping("a", target).returncode == 0, 5, "ping")
    command = ["nsenter", f"--net=/run/netns/{_instance(cloud, 'a')}", "ping", "-n", "-q", "-i0.02", "-w4", target]
    pinging = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    before = _pid(cloud, part)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: _pid(cloud, part) != before and _all_well(cloud), 20, f"{part} back")
    out, _ = pinging.communicate(timeout=15)
    assert " 0% packet loss" in out
    assert _pid(cloud, part) != before


def _pid(cloud: Up, part: str) -> int:
    return int(json.loads((cloud.data / "cloud.json").read_text())["pids"][part])


def _all_well(cloud: Up) -> bool:
    try:
        with cloud.client() as client:
            if client.get("/readyz").status_code != 200:
                return False
            hosts = client.get("/v2.0/alcor/hosts").raise_for_status().json()["hosts"]
    except httpx.HTTPError:
        return False
    return sorted(host["name"] for host in hosts if host["alive"]) == ["h1", "h2"]


def test_after_deaths_a_new_instance_works(cloud: Up) -> None:
    eventually(lambda: _all_well(cloud), 20, "all parts alive")
    cloud.done("vm", "create", "late", "--network", "blue", "--host", "h2")
    eventually(lambda: cloud.ping("late", address(cloud, "a")).returncode == 0, 5, "ping from a new instance")
    cloud.done("vm", "delete", "late")


def test_a_second_cloud_in_the_same_directory_is_refused(cloud: Up) -> None:
    done = alcor("up", "--data", str(cloud.data), "--api-port", str(free_port()))
    assert (done.returncode, done.stdout) == (1, "")
    assert "already running in" in done.stderr


def test_a_busy_port_is_named(cloud: Up, tmp_path: Path) -> None:
    done = alcor("up", "--data", str(tmp_path / "other"), "--api-port", str(cloud.port))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Port {cloud.port} on 127.0.0.1 is in use" in done.stderr
    assert remains(tmp_path / "other") == []


def test_two_clouds_do_not_meet(cloud: Up, tmp_path: Path) -> None:
    with Up(tmp_path / "twin") as twin:
        twin.network("blue", "10.0.0.0/24")
        twin.done("vm", "create", "a", "--network", "blue", "--host", "h1")
        assert [row["name"] for row in twin.done("vm", "list")] == ["a"]
        assert twin.ready["nats"] != cloud.ready["nats"]
        eventually(lambda: cloud.ping("a", address(cloud, "b")).returncode == 0, 5, "ping in the first cloud")
    assert remains(tmp_path / "twin") == []
    assert cloud.ping("a", address(cloud, "b")).returncode == 0


def test_an_end_leaves_nothing_and_the_next_start_knows_everything(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Up(data, hosts=2) as first:
        first.network("kept", "10.1.0.0/24")
        made = first.done("vm", "create", "x", "--network", "kept", "--host", "h1")
        first.done("vm", "create", "y", "--network", "kept", "--host", "h2")
        pids = first.ready["pids"].values()
        assert first.end(signal.SIGINT) == 0
    assert not [pid for pid in pids if alive(pid)]
    assert remains(data) == []
    with Up(data, hosts=2) as second:
        rows = {row["name"]: row for row in second.done("vm", "list")}
        assert rows["x"]["port_id"] == made["port_id"]
        assert {(row["status"], row["running"]) for row in rows.values()} == {("ACTIVE", True)}
        eventually(lambda: second.ping("x", str(rows["y"]["ip"])).returncode == 0, 5, "the instances are plugged again")
    with Up(data, hosts=1) as third:  # the host of one of them is not there now
        assert "instance y of the former life is not back" in third.said()
        assert {row["name"]: row["running"] for row in third.done("vm", "list")} == {"x": True, "y": False}


def test_a_killed_supervisor_takes_its_parts_along_and_the_next_start_cleans_up(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Up(data, hosts=1) as first:
        pids = list(first.ready["pids"].values())
        first.process.kill()
        first.process.wait()
        eventually(lambda: not [pid for pid in pids if alive(pid)], 5, "children die")
    assert remains(data) != []
    with Up(data, hosts=1) as second:
        assert second.end() == 0
    assert remains(data) == []


def test_ended_while_starting_leaves_nothing(tmp_path: Path) -> None:
    up = Up(tmp_path / "data")
    eventually(lambda: remains(tmp_path / "data"), 10, "the first namespace")
    assert up.end() == 0
    assert remains(tmp_path / "data") == []
    up.__exit__()
