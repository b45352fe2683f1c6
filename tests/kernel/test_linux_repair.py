"""What somebody damages by hand is found and mended; what is not ours is left alone."""

import subprocess

import pytest

from planes.data.driver import Spec
from planes.data.linux import namespaces
from planes.data.linux.skeleton import port_link_names
from tests.kernel.support import Host, World, members, network, open_policy, peer, port, remote

pytestmark = pytest.mark.kernel

NET = network("net", 300)
A, B = port(NET, "a", "10.0.0.5"), port(NET, "b", "10.0.0.6")
NEAR = port_link_names(A.id)[0]


def state(host: Host) -> str:
    """Everything that the namespace holds, without counters and numbers."""
    name = f"{host.cloud}-300"
    parts = (
        # whether there is a carrier is nobody's damage
        "ip -br link | sed 's/UNKNOWN\\|LOWERLAYERDOWN\\|DOWN\\|UP//;s/NO-CARRIER,\\|,LOWER_UP//g;s/,M-DOWN//'",
        "ip neigh",
        "bridge fdb",
        "ip route | sed 's/ linkdown//'",
        "ip -4 -br addr | awk '{$2=\"\"; print}'",
    )
    listed = [line for part in parts for line in run(name, part).splitlines()]
    listed = [" ".join(word.split("@")[0] for word in line.split()) for line in listed]
    listed = [line for line in listed if "self permanent" not in line or "dst" in line]
    rules = run(name, "nft -s list ruleset").replace("\t", " ").splitlines()
    return "\n".join(sorted(listed) + sorted(rules))


def run(name: str, command: str) -> str:
    enter = ["nsenter", f"--net={namespaces.DIRECTORY}/{name}", "sh", "-c", command]
    done = subprocess.run(enter, capture_output=True, text=True, check=True)
    return done.stdout


async def settled(world: World) -> tuple[Host, list[Spec]]:
    one, two = await world.start(2)
    specs: list[Spec] = [NET, members(NET, "some", 1, 2), open_policy(NET), A, B, peer(NET, two)]
    specs += [remote(NET, bytes((10, 0, 0, n)), two) for n in range(100, 110)]
    await one.put(*specs)
    assert await one.driver.audit() == frozenset(), "a quiet kernel wakes nobody"
    return one, specs


async def mend(host: Host, specs: list[Spec]) -> set[str]:
    """What the agent does with an audit; the kinds that were found."""
    lost = await host.driver.audit()
    whole = any(key[0] == "network" for key in lost)
    await host.put(*[spec for spec in specs if whole or spec.key in lost])
    return {key[0] for key in lost}


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (f"ip link del {NEAR}", "port"),
        (f"ip link set {NEAR} down", "port"),
        (f"ip route del 10.0.0.5/32 dev {NEAR}", "port"),
        ("ip link del vx", "network"),
        ("ip link set vx down", "network"),
        ("ip neigh del 10.0.0.104 dev vx", "remote"),
        ("ip neigh flush nud permanent", "remote"),
        ("bridge fdb del $(bridge fdb show dev vx | grep dst | cut -d' ' -f1) dev vx", "peer"),
        ("ip addr del 10.0.0.1/32 dev lo", "network"),
        ("ip route del 10.0.0.0/24 dev vx", "network"),
        ("nft flush ruleset", "network"),
        ("nft delete table arp alcor", "network"),
        ("nft flush chain inet alcor prerouting", "network"),
        ("nft flush set inet alcor speakers", "port"),
        ("nft flush chain inet alcor i1", "policy"),
        (f"nft flush set inet alcor g_{members(NET, 'some').group.hex()}", "members"),
    ],
)
async def test_damage_is_found_and_mended(world: World, command: str, found: str) -> None:
    one, specs = await settled(world)
    whole = state(one)
    run(f"{one.cloud}-300", command)
    assert state(one) != whole
    assert found in await mend(one, specs)
    await mend(one, specs)
    assert state(one) == whole
    assert await one.driver.audit() == frozenset(), "what we mend is no damage"


async def test_a_namespace_that_lost_its_name_gets_it_back(world: World) -> None:
    one, specs = await settled(world)
    whole = state(one)
    namespaces.delete(f"{one.cloud}-300")
    assert await mend(one, specs) == {"network"}
    assert state(one) == whole


async def test_what_is_not_ours_is_left_alone(world: World) -> None:
    one, specs = await settled(world)
    name = f"{one.cloud}-300"
    run(name, "ip link add mine type veth peer name yours && ip link set mine up && ip addr add 192.0.2.9/24 dev mine")
    run(name, "ip route add 198.51.100.0/24 dev mine && ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev mine")
    run(name, "nft add table ip mine")
    before = state(one)
    assert await mend(one, specs) == set()
    run(name, "ip link del vx")
    await mend(one, specs)
    assert state(one) == before
    run(name, "ip route del 198.51.100.0/24 dev mine && ip addr del 192.0.2.9/24 dev mine && ip link del mine")
    assert await one.driver.audit() == frozenset()


async def test_a_thousand_ports_of_our_own_making_and_unmaking_are_no_damage(world: World) -> None:
    one, _ = await settled(world)
    ports = [port(NET, f"many{n}", f"10.0.{1 + n // 250}.{n % 250}") for n in range(1000)]
    await one.put(*ports)
    assert await one.driver.audit() == frozenset()
    await one.drop(*(spec.key for spec in ports))
    assert await one.driver.audit() == frozenset()
