"""Who a host is: twins, a host that was away for longer than the living may be, one that comes back elsewhere."""

import asyncio
from pathlib import Path

import pytest

from cli.underlay import _ip
from planes.bus.nats.bus import NatsBus
from planes.bus.protocol import Incoming
from planes.data.linux import namespaces
from planes.goalstate import codec
from planes.goalstate.messages import Goal, Neighbour, Peer
from planes.model.addresses import ip_text, vtep_mac
from tests.e2e.kernels import dump, settled
from tests.e2e.parts import Parts, active, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(120)]


async def test_another_machine_of_the_same_name_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=2) as parts:
        parts.add("twin", "h2", ALCOR_HOST="h1", ALCOR_MACHINE="another")
        parts.start("nats", "api", "h1")
        await parts.well("h1")
        port = await parts.port(await parts.network(), "h1")
        parts.start("twin")
        await eventually(lambda: _says(parts, "twin", "host h1 is alive on another machine"), 10, "refused")
        parts.kill("twin")
        # An instance of control that has just started has heard nobody yet: that is no reason to believe the twin.
        parts.kill("api")
        parts.pause("h1")
        parts.start("api")
        await eventually(lambda: parts.http.get("/readyz"), 10, "the API")
        before = parts.said("twin").count("is alive on another machine")
        parts.start("twin")
        await eventually(lambda: _says(parts, "twin", "is alive on another machine", before + 1), 10, "refused again")
        parts.kill("twin")
        parts.resume("h1")
        await parts.well("h1")
        assert (await parts.host("h1"))["epoch"] == 1
        assert namespaces.names(f"{parts.layout.cloud('h2')}-") == []
        parts.kill("h1")
        await eventually(lambda: _silent(parts, "h1"), 10, "h1 is silent")
        await asyncio.sleep(3)
        parts.start("twin")
        await parts.well("h1")
        assert (await parts.host("h1"))["epoch"] == 2
        await active(parts, [port["id"]])
        assert len(namespaces.names(f"{parts.layout.cloud('h2')}-")) == 1


async def test_a_second_agent_on_the_same_machine_supersedes_the_first(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as parts:
        await parts.up()
        network = await parts.network()
        port = await parts.port(network, "h1")
        parts.add("same", "h1")
        parts.start("same")
        assert parts.processes.pop("same").wait(15) == 1
        assert "Another agent of host h1 runs on this machine" in parts.said("same")
        parts.add("second", "h1", ALCOR_STATE=str(tmp_path / "elsewhere"))
        parts.start("second")
        await eventually(lambda: _says(parts, "h1", "it changes nothing any more"), 10, "the first gives way")
        assert (await parts.host("h1"))["epoch"] == 2
        later = await parts.port(network, "h1")
        await active(parts, [port["id"], later["id"]])


async def test_a_host_that_was_paused_is_fenced_and_registers_anew(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=2) as parts:
        await parts.up()
        network = await parts.network()
        kept, gone = [await parts.port(network, "h1") for _ in range(2)]
        parts.pause("h1")
        assert (await parts.http.delete(f"/v2.0/ports/{gone['id']}")).status_code == 204
        await eventually(lambda: _state(parts, "h1", "fenced"), 30, "h1 is fenced")
        # Its address may be given away: whatever still sends there goes to the new place.
        taken = await parts.port(network, "h2", fixed_ips=gone["fixed_ips"])
        assert taken["status"] == "ACTIVE"
        waiting = await parts.port(network, "h1", wait=0)
        parts.resume("h1")
        await eventually(lambda: _state(parts, "h1", "up"), 20, "h1 is up again")
        await active(parts, [kept["id"], taken["id"], waiting["id"]])
        assert (await parts.host("h1"))["epoch"] == 2
        await asyncio.sleep(3)  # the digest after the pull
        assert parts.end("api") == 0
        assert await settled(parts) == []


async def test_control_that_was_asleep_itself_fences_nobody(tmp_path: Path) -> None:
    """What hosts said meanwhile has yet to be read when the echo of a delete is long due."""
    async with Parts(tmp_path / "data", hosts=1) as parts:
        await parts.up()
        network = await parts.network()
        gone = [await parts.port(network, "h1") for _ in range(3)]
        parts.pause("h1")
        for port in gone:
            assert (await parts.http.delete(f"/v2.0/ports/{port['id']}")).status_code == 204
        parts.pause("api")
        parts.resume("h1")
        await asyncio.sleep(7)
        parts.resume("api")
        await parts.well("h1")
        await asyncio.sleep(4)
        host = await parts.host("h1")
        assert (host["epoch"], host["state"], host["ports"]) == (1, "up", 0)


async def test_a_host_that_comes_back_under_another_address_is_told_once_per_network(tmp_path: Path) -> None:
    env = {"ALCOR_ECHO_FROM": "60", "ALCOR_ECHO_TO": "120"}
    async with Parts(tmp_path / "data", hosts=2, env=env) as parts:
        await parts.up()
        networks = [await parts.network() for _ in range(3)]
        addresses = []
        for number, network in enumerate(networks):
            await parts.instance(f"a{number}", network, "h1")
            addresses.append(await parts.instance(f"b{number}", network, "h2"))
        goals: list[Goal] = []
        bus = NatsBus(parts.nats, "test")
        await bus.connect()

        def heard(message: Incoming) -> None:
            goals.append(codec.decode(message.data, Goal)[1])

        await bus.subscribe("alcor.goal.net.>", heard)
        await bus.flush()
        parts.kill("h2")
        former, new = parts.wires.vteps["h2"], str(parts.wires.subnet[99])
        prefix = parts.wires.subnet.prefixlen
        _ip(f"addr del {former}/{prefix} dev u0", f"addr add {new}/{prefix} dev u0", namespace=parts.layout.host("h2"))
        parts.add("moved", "h2", ALCOR_VTEP=new)
        parts.start("moved")
        await parts.well("h2")
        for number, address in enumerate(addresses):
            await eventually(lambda n=number, to=address: _ping(parts, f"a{n}", to), 10, "packets reach the new end")  # type: ignore[misc]
        await bus.close()
        told = [item for goal in goals for item in goal.objects if isinstance(item, Peer) and item.host == "h2"]
        assert len(told) == len(goals) == len(networks)
        assert {ip_text(item.vtep) for item in told} == {new}
        assert not any(isinstance(item, Neighbour) for goal in goals for item in goal.objects)
        await asyncio.sleep(3)
        assert parts.end("api") == 0
        assert await settled(parts) == []


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "gone for good"])
async def test_nothing_of_a_host_without_ports_stays_on_the_others(tmp_path: Path, dead: bool) -> None:
    async with Parts(tmp_path / "data", hosts=3) as parts:
        await parts.up()
        network = await parts.network()
        kept = [await parts.port(network, host) for host in ("h1", "h2")]
        moved, gone = [await parts.port(network, "h3") for _ in range(2)]
        end = f"tunnel {vtep_mac((await parts.host('h3'))['number']).hex(':')} {parts.wires.vteps['h3']}"
        await eventually(lambda: _carry(parts, {"h1", "h2"}, end), 10, "h3 is known")
        if dead:
            parts.kill("h3")
        body = {"port": {"binding:host_id": "h1"}}
        assert (await parts.http.put(f"/v2.0/ports/{moved['id']}", json=body)).status_code == 200
        assert (await parts.http.delete(f"/v2.0/ports/{gone['id']}")).status_code == 204
        await eventually(lambda: _carry(parts, set(), end), 40, "h3 is forgotten")
        await active(parts, [port["id"] for port in (*kept, moved)])
        await asyncio.sleep(3)
        assert parts.end("api") == 0
        assert [line for line in await settled(parts) if not line.startswith("h3")] == []


async def _carry(parts: Parts, hosts: set[str], line: str) -> bool:
    """Whether just these of the first two hosts have this line in their kernels."""
    names = {host: namespaces.names(f"{parts.layout.cloud(host)}-") for host in ("h1", "h2")}
    return {host for host, found in names.items() if any(line in dump(name) for name in found)} == hosts


async def _says(parts: Parts, name: str, words: str, times: int = 1) -> bool:
    return parts.said(name).count(words) >= times


async def _silent(parts: Parts, host: str) -> bool:
    return not (await parts.host(host))["alive"]


async def _state(parts: Parts, host: str, state: str) -> bool:
    return bool((await parts.host(host))["state"] == state)


async def _ping(parts: Parts, name: str, address: str) -> bool:
    command = ["nsenter", f"--net=/run/netns/{parts.layout.instance(name)}", "ping", "-n", "-q", "-c1", "-W1", address]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    return await process.wait() == 0
