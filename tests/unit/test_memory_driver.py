"""The fake kernel behaves as the real one must, or what is tested with it means nothing."""

import asyncio

import pytest

from planes.data.driver import (
    DriverError,
    MembersSpec,
    NetworkSpec,
    PeerSpec,
    PolicySpec,
    PortSpec,
    RemoteSpec,
    RuleSpec,
    Spec,
)
from planes.data.memory.driver import MemoryDriver
from planes.data.memory.fabric import Fabric
from planes.model.addresses import vtep_mac
from tests.support.world import NET, OTHER_NET, WEB, id16, ip, mac

VTEPS = {1: bytes((192, 0, 2, 1)), 2: bytes((192, 0, 2, 2))}
OPEN = (RuleSpec(False), RuleSpec(True))
P1, P2 = id16(1), id16(2)


async def host(fabric: Fabric, n: int, *specs: Spec, network: bytes = NET, vni: int = 100) -> MemoryDriver:
    driver = MemoryDriver(fabric)
    await driver.open(VTEPS[n], vtep_mac(n))
    assert await driver.apply([NetworkSpec(network, vni, 1450), *specs], []) == {}
    return driver


def port(n: int, identity: int = 1, **more: object) -> PortSpec:
    return PortSpec(NET, id16(n), mac(n), (ip(n),), identity, **more)  # type: ignore[arg-type]


def remote(n: int, on: int) -> tuple[Spec, Spec]:
    return PeerSpec(NET, vtep_mac(on), VTEPS[on]), RemoteSpec(NET, ip(n), vtep_mac(on))


async def pair(fabric: Fabric, here: tuple[RuleSpec, ...], there: tuple[RuleSpec, ...], *more: Spec) -> None:
    """Port 1 on host 1 with identity 1, port 2 on host 2 with identity 2."""
    await host(fabric, 1, PolicySpec(NET, 1, here), port(1), *remote(2, 2))
    await host(fabric, 2, PolicySpec(NET, 2, there), port(2, 2), *remote(1, 1), *more)


async def test_a_port_before_its_policy_forwards_nothing() -> None:
    fabric = Fabric()
    driver = await host(fabric, 1, PolicySpec(NET, 2, OPEN), port(1), port(2, 2))
    assert fabric.arrives(NET, P1, ip(1), ip(2)) == (None, "no policy (egress)")
    assert fabric.arrives(NET, P2, ip(2), ip(1)) == (None, "no policy (ingress)")
    await driver.apply([PolicySpec(NET, 1, OPEN)], [])
    assert fabric.arrives(NET, P1, ip(1), ip(2)) == (P2, "")


async def test_replies_pass_and_nothing_else_comes_back() -> None:
    fabric = Fabric()
    await pair(fabric, (RuleSpec(True),), (RuleSpec(False, 6, 80, 80),))
    assert fabric.arrives(NET, P2, ip(2), ip(1), sport=80, dport=40_000) == (None, "no rule (egress)")
    assert fabric.arrives(NET, P1, ip(1), ip(2), dport=80) == (P2, "")
    assert fabric.arrives(NET, P2, ip(2), ip(1), sport=80, dport=40_000) == (P1, "")
    assert fabric.arrives(NET, P2, ip(2), ip(1), sport=81, dport=40_000) == (None, "no rule (egress)")


async def test_remote_groups_match_the_identity_in_the_packet() -> None:
    fabric = Fabric()
    rules = (RuleSpec(False, remote_group=WEB),)
    await pair(fabric, OPEN, rules, MembersSpec(NET, WEB, frozenset({7})))
    assert fabric.arrives(NET, P1, ip(1), ip(2)) == (None, "no rule (ingress)")
    driver = MemoryDriver(fabric)
    await driver.open(VTEPS[2], vtep_mac(2))
    await driver.apply([MembersSpec(NET, WEB, frozenset({1}))], [])
    assert fabric.arrives(NET, P1, ip(1), ip(2)) == (P2, "")


@pytest.mark.parametrize(
    ("rule", "protocol", "dport", "passes"),
    [
        (RuleSpec(False, 6, 80, 90), 6, 85, True),
        (RuleSpec(False, 6, 80, 90), 6, 91, False),
        (RuleSpec(False, 6, 80, 90), 17, 85, False),
        (RuleSpec(False, remote_first=ip(0), remote_prefix=24), 17, 1, True),
        (RuleSpec(False, remote_first=ip(0, 1), remote_prefix=24), 17, 1, False),
        (RuleSpec(False, remote_first=bytes(4), remote_prefix=0), 17, 1, True),
    ],
)
async def test_rules_match_protocol_ports_and_prefix(rule: RuleSpec, protocol: int, dport: int, passes: bool) -> None:
    fabric = Fabric()
    await pair(fabric, (RuleSpec(True),), (rule,))
    assert (fabric.arrives(NET, P1, ip(1), ip(2), protocol, dport)[0] == P2) is passes


async def test_nobody_speaks_as_another_unless_allowed_to() -> None:
    fabric = Fabric()
    await host(
        fabric,
        1,
        PolicySpec(NET, 1, OPEN),
        port(1, pairs=((ip(0, 9), 24, b""),)),
        port(2),
        PortSpec(NET, id16(3), mac(3), (ip(3),), 0, security=False),
    )
    assert fabric.arrives(NET, P1, ip(77), ip(2)) == (None, "spoofed source")
    assert fabric.arrives(NET, P1, ip(5, 9), ip(2)) == (P2, "")
    assert fabric.arrives(NET, id16(3), ip(77), ip(2)) == (P2, "")


async def test_networks_with_the_same_addresses_do_not_meet() -> None:
    fabric = Fabric()
    await host(fabric, 1, PolicySpec(NET, 1, OPEN), port(1))
    twin = PortSpec(OTHER_NET, id16(9), mac(2), (ip(2),), 1)
    await host(fabric, 1, PolicySpec(OTHER_NET, 1, OPEN), twin, network=OTHER_NET, vni=200)
    assert fabric.arrives(NET, P1, ip(1), ip(2)) == (None, "no route")


async def test_a_port_that_is_down_or_gone_gets_nothing() -> None:
    fabric = Fabric()
    driver = await host(fabric, 1, PolicySpec(NET, 1, OPEN), port(1), port(2, admin_up=False))
    assert fabric.arrives(NET, P1, ip(1), ip(2)) == (None, "the receiver is down")
    assert fabric.arrives(NET, P2, ip(2), ip(1)) == (None, "the sender is down")
    await driver.apply([], [port(2).key])
    assert fabric.arrives(NET, P1, ip(1), ip(2)) == (None, "no route")
    assert fabric.arrives(NET, P2, ip(2), ip(1)) == (None, "no such port")


async def test_dump_tells_kernels_apart_and_applying_again_changes_nothing() -> None:
    fabric = Fabric()
    specs = [PolicySpec(NET, 1, OPEN), port(1), *remote(2, 2), MembersSpec(NET, WEB, frozenset({2, 1}))]
    driver = await host(fabric, 1, *specs)
    before = driver.dump()
    await driver.apply(reversed(specs), [("port", OTHER_NET, P1), ("remote", NET, ip(99))])
    assert driver.dump() == before
    assert before.count("\n") == 5
    await driver.apply([PolicySpec(NET, 1, OPEN[:1])], [])
    assert driver.dump() != before


async def test_what_is_held_survives_the_driver_and_a_drop_of_a_network_takes_all_of_it() -> None:
    fabric = Fabric()
    driver = await host(fabric, 1, PolicySpec(NET, 1, OPEN), port(1))
    held = await driver.held()
    await driver.close()
    again = MemoryDriver(fabric)
    await again.open(VTEPS[1], vtep_mac(1))
    assert await again.held() == held != {}
    await again.apply([], [("network", NET, b"")])
    assert await again.held() == {}


async def test_faults_are_reported_per_key_and_do_not_stop_others() -> None:
    fabric = Fabric()
    driver = await host(fabric, 1)
    driver.fail("port", "no")
    assert await driver.apply([port(1), port(2), PolicySpec(OTHER_NET, 1, ())], []) == {
        port(1).key: "no",
        ("policy", OTHER_NET, b"\0\1"): f"no network {OTHER_NET.hex()}",
    }
    assert port(2).key in await driver.held()
    assert await driver.apply([NetworkSpec(OTHER_NET, 100, 1450)], []) == {
        ("network", OTHER_NET, b""): f"VNI 100 is in use by {NET.hex()}"
    }
    broken = MemoryDriver(fabric)
    broken.broken = "no privilege"
    with pytest.raises(DriverError, match="no privilege"):
        await broken.open(VTEPS[1], vtep_mac(1))


async def test_a_stall_lasts_until_it_is_lifted_and_one_caller_at_a_time_is_insisted_on() -> None:
    fabric = Fabric()
    driver = await host(fabric, 1)
    driver.stall()
    work = asyncio.ensure_future(driver.apply([port(1)], []))
    await asyncio.sleep(0)
    with pytest.raises(AssertionError, match="one caller"):
        await driver.apply([], [])
    assert not work.done()
    driver.resume()
    assert await work == {}
