"""What somebody does by hand to a host's kernel, and a host that runs out of descriptors: noticed, told, mended."""

import asyncio
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from planes.data.linux import namespaces
from planes.data.linux.skeleton import port_link_names
from planes.model.ids import parse
from tests.e2e.kernels import settled
from tests.e2e.parts import Parts, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(180)]

#: seconds within which traffic must flow again, on a machine that has other work
SOON = 15.0
#: seconds that such a machine, and the next beat, may add to those that a rule allows
SLACK = 5.0
#: ms from when the agent noticed; it looks every 2 s
REPAIR_MS = 3000


async def test_damage_by_hand_is_repaired_and_reported_and_what_is_foreign_stays(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=2) as parts:
        await parts.up()
        network = await parts.network()
        await parts.instance("a", network, "h1")
        there = await parts.instance("b", network, "h2")
        (port,) = [port for port in await parts.list("ports") if port["device_id"] == "a"]
        near = port_link_names(parse(port["id"]))[0]
        (name,) = namespaces.names(f"{parts.layout.cloud('h1')}-")
        _run(name, "ip link add mine type veth peer name yours; ip link set mine up; ip addr add 192.0.2.9/24 dev mine")
        _run(name, "ip route add 198.51.100.0/24 dev mine; nft add table ip mine; nft add chain ip mine c")
        namespaces.create(stranger := f"{parts.layout.cloud('h1')}-x")
        try:
            await eventually(lambda: _ping(parts, there), 10, "the first ping")
            _run(name, "ip neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev mine nud permanent")
            for too_much in (
                "ip neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev vx nud permanent",
                "bridge fdb add 02:00:00:00:00:77 dev vx dst 172.31.0.9",
            ):
                began = time.monotonic()
                await _mended(parts, name, too_much)
                assert time.monotonic() - began < 5 + SLACK
                assert "10.0.0.200 dev vx" not in _run(name, "ip neigh")
            assert (await parts.host("h1"))["counters"]["surplus"] == 2
            assert "10.0.0.200 dev mine" in _run(name, "ip neigh")
            for damage in (
                "ip link del vx",
                "nft flush chain inet alcor prerouting",
                "ip neigh flush nud permanent",
                f"ip route del {port['fixed_ips'][0]['ip_address']}/32 dev {near}",
                "nft delete table inet alcor",
            ):
                await _mended(parts, name, damage)
                await eventually(lambda: _ping(parts, there), SOON, f"packets after {damage}")
            said = parts.said("h1")
            assert said.count("damaged by somebody else") >= 5
            assert said.count("too much") >= 2
            assert "192.0.2.9/24" in _run(name, "ip addr show mine")
            assert "198.51.100.0/24" in _run(name, "ip route")
            assert "chain c" in _run(name, "nft list table ip mine")
            assert stranger in namespaces.names(stranger)
            _run(name, "nft delete table ip mine && ip link del mine")
        finally:
            namespaces.delete(stranger)
        await asyncio.sleep(3)
        assert parts.end("api") == 0
        assert await settled(parts) == []


async def test_an_agent_without_descriptors_says_so_and_goes_on_when_there_are_some(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as parts:
        part = parts.parts["h1"]
        parts.parts["h1"] = replace(part, argv=["prlimit", "--nofile=56:56", *part.argv])
        await parts.up()
        ports = [await parts.port(await parts.network(), "h1", wait=5) for _ in range(16)]
        states = [port["status"] for port in ports]
        assert states[0] == "ACTIVE"
        assert states[-1] == "ERROR"
        assert "Too many open files" in ports[-1]["status_reason"]

        async def told() -> bool:
            host = await parts.host("h1")
            return host["alive"] and any("Too many open files" in reason for reason in host["reasons"])

        await eventually(told, 10, "the host tells why")
        for port in [port for port in ports if port["status"] == "ACTIVE"]:
            assert (await parts.http.delete(f"/v2.0/ports/{port['id']}")).status_code == 204

        async def others() -> bool:
            return [port["status"] for port in await parts.list("ports")].count("ACTIVE") >= 4

        await eventually(others, 60, "others have the room")
        assert (await parts.host("h1"))["epoch"] == 1


def _run(name: str, command: str) -> str:
    enter = ["nsenter", f"--net={namespaces.DIRECTORY}/{name}", "sh", "-c", command]
    return subprocess.run(enter, capture_output=True, text=True, check=True).stdout


async def _mended(parts: Parts, name: str, damage: str) -> None:
    """Do it, and wait until the host has told that it is repaired, and how long that took."""
    before = (await parts.host("h1"))["counters"]

    async def repaired() -> dict[str, Any]:
        host = await parts.host("h1")
        new = host["counters"].get("repaired", 0) > before.get("repaired", 0)
        return host if new and not host["counters"]["pending"] else {}

    _run(name, damage)
    host = await eventually(repaired, SOON, f"{damage} is repaired")
    assert any("repaired" in reason for reason in host["reasons"]), host["reasons"]
    assert host["counters"]["repair_ms"] - before.get("repair_ms", 0) < REPAIR_MS


async def _ping(parts: Parts, address: str) -> bool:
    command = ["nsenter", f"--net=/run/netns/{parts.layout.instance('a')}", "ping", "-n", "-q", "-c1", "-W1", address]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    return await process.wait() == 0
