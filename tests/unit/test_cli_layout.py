"""Names of a cloud, its lock, its description, and the choice of its underlay's addresses."""

import ipaddress
import os
from pathlib import Path

import pytest

from cli import underlay
from cli.errors import Failure
from cli.layout import Description, Layout


def test_names_follow_from_the_directory_alone(tmp_path: Path) -> None:
    one, same, other = Layout(f"{tmp_path}/a"), Layout(f"{tmp_path}/b/../a"), Layout(f"{tmp_path}/b")
    assert one.tag == same.tag != other.tag
    assert len(one.uplink) <= 15
    assert len(one.cloud("h64")) <= 12


def test_tells_its_own_namespaces_from_all_others(tmp_path: Path) -> None:
    one, other = Layout(f"{tmp_path}/a"), Layout(f"{tmp_path}/b")
    own = [one.net, one.host("h1"), f"{one.cloud('h12')}-16777215", one.instance("web-1")]
    assert all(one.is_ours(name) for name in own)
    assert not any(other.is_ours(name) for name in own)
    assert not one.is_ours(f"am{one.tag}0-net")


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a b", "x" * 64])
def test_an_instance_name_cannot_leave_its_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(Failure, match="no name for an instance"):
        Layout(str(tmp_path)).instance(name)


def test_one_cloud_per_directory(tmp_path: Path) -> None:
    first = Layout(str(tmp_path))
    first.hold()
    with pytest.raises(Failure, match="already running"):
        Layout(str(tmp_path)).hold()


def test_a_description_counts_only_while_its_process_lives(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    with pytest.raises(Failure, match="No cloud is running"):
        layout.running()
    here = Description("http://127.0.0.1:1", "nats://x", layout.tag, ("h1",), os.getpid(), {"api": 1})
    layout.describe(here)
    assert layout.running() == here
    layout.describe(Description("http://127.0.0.1:1", "nats://x", layout.tag, ("h1",), 2**22 + 1, {}))
    with pytest.raises(Failure, match="No cloud is running"):
        layout.running()


def test_clouds_get_different_subnets_and_give_them_back() -> None:
    with underlay._claimed_subnet(7) as one, underlay._claimed_subnet(7) as two:
        assert one != two
        assert all(subnet.subnet_of(underlay._RANGE) for subnet in (one, two))
    with underlay._claimed_subnet(7) as again:
        assert again == one


def test_a_subnet_that_the_machine_routes_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ipaddress.IPv4Network("198.18.0.0/21")
    monkeypatch.setattr(underlay, "_routed", lambda: [taken])
    with underlay._claimed_subnet(0) as subnet:
        assert not subnet.overlaps(taken)
    monkeypatch.setattr(underlay, "_routed", lambda: [ipaddress.IPv4Network("198.16.0.0/12")])
    with pytest.raises(Failure, match="in use"), underlay._claimed_subnet(0):
        pass
