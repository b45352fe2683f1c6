"""What somebody damages by hand is found and mended; what is not ours is left alone."""

import subprocess

import pytest

from planes.data.driver import RemoteSpec, Spec, SpecKey
from planes.data.linux import namespaces
from planes.data.linux.skeleton import port_link_names
from planes.data.linux.surplus import Looks
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


async def surplus(host: Host, specs: list[Spec]) -> set[SpecKey]:
    """What the agent does with what is too much or otherwise than it was put: the former goes, the latter is put."""
    known = {spec.key: spec for spec in specs}
    more = await host.driver.surplus(known)
    await host.drop(*(more.keys() - known.keys()))
    await host.put(*(known[key] for key in more.keys() & known.keys()))
    return set(more)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("ip neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev vx nud permanent", ("remote", bytes((10, 0, 0, 200)))),
        ("ip neigh replace 10.0.0.104 lladdr 02:00:00:00:00:77 dev vx", ("remote", bytes((10, 0, 0, 104)))),
        ("bridge fdb add 02:00:00:00:00:77 dev vx dst 172.31.0.9", ("peer", bytes((2, 0, 0, 0, 0, 0x77)))),
        ("bridge fdb replace 02:00:00:00:00:02 dev vx dst 172.31.0.9", ("peer", bytes((2, 0, 0, 0, 0, 2)))),
        (f"ip neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev {NEAR} nud permanent", ("port", A.id)),
        (f"ip neigh replace 10.0.0.5 lladdr 02:00:00:00:00:77 dev {NEAR} nud permanent", ("port", A.id)),
    ],
)
async def test_what_is_too_much_or_not_as_it_was_put_is_found(
    world: World, command: str, found: tuple[str, bytes]
) -> None:
    one, specs = await settled(world)
    whole = state(one)
    assert await surplus(one, specs) == set()
    run(f"{one.cloud}-300", command)
    assert state(one) != whole
    assert await surplus(one, specs) == {(found[0], NET.network, found[1])}
    assert state(one) == whole
    assert await surplus(one, specs) == set()


async def test_what_somebody_adds_is_found_at_once_however_much_there_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, specs = await settled(world)
    await surplus(one, specs)
    monkeypatch.setattr(Looks, "choose", lambda *_: [])  # as on a host that has much
    name = f"{one.cloud}-300"
    added = RemoteSpec(NET.network, bytes((10, 0, 0, 200)), bytes((2, 0, 0, 0, 0, 2)))
    run(name, "ip neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev vx nud permanent")
    run(name, f"ip neigh add 10.0.0.201 lladdr 02:00:00:00:00:02 dev {NEAR} nud permanent")
    run(name, "ip neigh add 10.0.0.202 lladdr 02:00:00:00:00:02 dev vx nud permanent; ip neigh del 10.0.0.202 dev vx")
    assert await one.driver.audit() <= {("remote", NET.network, bytes((10, 0, 0, 202)))}
    assert await surplus(one, specs) == {added.key, A.key}
    await one.put(added)
    await one.drop(added.key)
    await one.driver.audit()
    assert await surplus(one, specs) == set(), "what we do ourselves is not told"


async def test_what_a_listing_left_out_at_the_start_is_found_later(world: World) -> None:
    one, specs = await settled(world)
    await one.restart()
    held = dict(await one.driver.held())
    left_out = specs[-1]
    del held[left_out.key]
    assert await one.driver.surplus(held) == {left_out.key: left_out}


async def test_neighbours_on_devices_of_others_are_not_too_many(world: World) -> None:
    one, specs = await settled(world)
    name = f"{one.cloud}-300"
    run(name, "ip link add mine type veth peer name yours && ip link set mine up && ip link set yours up")
    run(name, "ip link add pmine type vxlan id 9 dstport 4790 && ip link set pmine up")
    run(name, "ip neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev mine nud permanent")
    run(name, "ip neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev pmine nud permanent")
    run(name, "bridge fdb add 02:00:00:00:00:77 dev pmine dst 172.31.0.9")
    before = state(one)
    assert await surplus(one, specs) == set()
    await one.restart()
    assert await surplus(one, specs) == set()
    assert state(one) == before
    run(name, "ip link set vx alias foreign")
    await one.restart()
    run(name, "ip neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev vx nud permanent")
    assert await surplus(one, specs) == set(), "the device is somebody else's"


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


async def test_twenty_thousand_remotes_of_our_own_making_and_unmaking_are_no_damage(world: World) -> None:
    one, specs = await settled(world)
    many = [remote(NET, (0x0A40_0000 + n).to_bytes(4, "big"), world.hosts[1]) for n in range(20_000)]
    await one.put(*many)
    assert await one.driver.audit() == frozenset()
    for start in range(0, len(many), 4_096):
        await one.drop(*(spec.key for spec in many[start : start + 4_096]))
    assert await one.driver.audit() == frozenset()
    await one.put(many[0])
    await one.drop(many[0].key)
    await one.put(many[0])
    assert await one.driver.audit() == frozenset(), "it went and came back"
    run(f"{one.cloud}-300", "ip neigh del 10.0.0.104 dev vx")
    await one.drop(many[0].key)
    assert await one.driver.audit() == {("remote", NET.network, bytes((10, 0, 0, 104)))}
    assert await one.driver.audit() == frozenset()
    await one.put(*specs)
