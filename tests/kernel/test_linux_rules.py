"""What rules and ports become, without a kernel: text and elements."""

import msgspec
import pytest

from planes.data.driver import PolicySpec, RuleSpec
from planes.data.linux.renewal import Renewal, renewal
from planes.data.linux.skeleton import TABLES, VERSION, Footprint, policy_text, port_footprint, port_link_names
from tests.kernel.support import ident, ip, mac, network, port

NET = network("net", 1)
ACCEPTED = {
    RuleSpec(False): "accept",
    RuleSpec(False, 6): "meta l4proto 6 accept",
    RuleSpec(False, 6, 22, 22): "meta l4proto 6 th dport 22-22 accept",
    RuleSpec(False, 17, 53, -1): "meta l4proto 17 th dport 53-53 accept",
    RuleSpec(False, 1, 8): "icmp type 8 accept",
    RuleSpec(False, 1, 3, 4): "icmp type 3 icmp code 4 accept",
    RuleSpec(False, 6, 1, 9, b"", ip("10.1.0.0"), 16): "ip saddr 10.1.0.0/16 meta l4proto 6 th dport 1-9 accept",
    RuleSpec(False, -1, -1, -1, b"", ip("0.0.0.0"), 0): "accept",
    RuleSpec(False, remote_group=ident("g")): f"meta mark @g_{ident('g').hex()} accept",
}


def rules_of(*rules: RuleSpec) -> tuple[list[str], list[str]]:
    """The accepting rules of what is sent, and of what is received."""
    lines = [line.split(maxsplit=5) for line in policy_text(PolicySpec(NET.network, 5, rules)).splitlines()]
    accepts = [line for line in lines if line[:2] == ["add", "rule"] and line[5].endswith("accept")]
    found = {chain: [line[5] for line in accepts if line[4] == chain] for chain in ("e5", "i5")}
    assert all(some.pop(0) == "ct state established accept" for some in found.values())
    assert found["i5"].pop(0) == "ct state related accept"
    return found["e5"], found["i5"]


@pytest.mark.parametrize(("rule", "text"), ACCEPTED.items())
def test_a_rule_accepts_what_it_says_in_its_direction_only(rule: RuleSpec, text: str) -> None:
    assert rules_of(rule) == ([], [text])


def test_what_is_sent_is_matched_by_destination() -> None:
    out = RuleSpec(True, 6, 80, 80, remote_first=ip("10.0.0.0"), remote_prefix=8)
    assert rules_of(out) == (["ip daddr 10.0.0.0/8 meta l4proto 6 th dport 80-80 accept"], [])


@pytest.mark.parametrize(
    "rule",
    [
        RuleSpec(True, remote_group=ident("g")),
        RuleSpec(False, -1, 80, 90),
        RuleSpec(False, 1, -1, 4),
        RuleSpec(False, 6, 90, 80),
    ],
)
def test_a_rule_that_makes_no_sense_or_cannot_be_judged_opens_nothing(rule: RuleSpec) -> None:
    assert rules_of(rule) == ([], [])


def test_names_fit_the_kernel_and_differ() -> None:
    names = {name for n in range(1_000) for name in port_link_names(ident(str(n)))}
    assert len(names) == 2_000
    assert all(len(name) == 12 for name in names)


def test_a_port_that_is_down_has_no_route_but_keeps_its_policy() -> None:
    spec = port(NET, "a", "10.0.0.5")
    up, down = port_footprint(spec), port_footprint(msgspec.structs.replace(spec, admin_up=False))
    assert up == Footprint(down.elements, frozenset({(ip("10.0.0.5"), spec.mac)}))
    assert not down.addresses


def test_an_allowed_prefix_is_one_range_in_both_tables() -> None:
    spec = port(NET, "a", "10.0.0.5")
    wider = msgspec.structs.replace(spec, pairs=((ip("10.0.4.0"), 22, mac(9)),))
    added = port_footprint(wider).elements - port_footprint(spec).elements
    ranges = {element for element in added if element.key_end}
    assert {element.set for element in added - ranges} == {"macs"}
    assert {(element.family, element.set) for element in ranges} == {(1, "ranges"), (3, "ranges")}
    assert {(element.key[-4:], element.key_end[-4:]) for element in ranges} == {(ip("10.0.4.0"), ip("10.0.7.255"))}


def test_another_release_is_renewed_in_three_steps_and_what_ports_and_policies_have_stays() -> None:
    group = f"g_{ident('g').hex()}"
    listing = (
        "table inet alcor {\n\tcounter former {\n\t\tpackets 1 bytes 2\n\t}\n\tcounter ipv6 {\n\t}\n"
        f"\tset macs {{\n\t\ttype ifname . ether_addr\n\t}}\n\tset {group} {{\n\t\ttype mark\n\t}}\n"
        "\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t\tcounter name ipv6 drop\n\t}\n"
        "\tchain forward {\n\t\ttype filter hook forward priority 5; policy drop;\n\t\tjump version_old\n\t}\n"
        "\tchain e5 {\n\t}\n\tchain i5 {\n\t}\n\tchain version_old {\n\t}\n}\n"
        "table arp alcor {\n\tset elders {\n\t\ttype ifname\n\t}\n"
        "\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n"
    )
    assert renewal(listing) == Renewal(
        begin="flush chain inet alcor input\nflush chain arp alcor input\n"
        "add chain inet alcor forward { policy accept; }\n" + TABLES,
        end="flush chain inet alcor forward\ndelete chain inet alcor forward\n" + f"add chain inet alcor {VERSION}",
        rest=(
            "delete set arp alcor elders",
            "flush chain inet alcor version_old\ndelete chain inet alcor version_old",
            "delete counter inet alcor former",
        ),
    )
