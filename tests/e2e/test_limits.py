"""What is finite runs out: a host's ear, the disk, descriptors. It is said, nothing answered is lost, and it heals."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from planes.bus.nats.bus import NatsBus
from tests.e2e.kernels import settled
from tests.e2e.parts import Parts, active, done, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(120)]

MB = 1 << 20


async def test_an_agent_that_stops_reading_is_cut_off_and_catches_up(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=2, env={"ALCOR_DEAD_AFTER": "60"}) as parts:
        await parts.up()
        network = await parts.network()
        gone = await parts.port(network, "h1")
        before = {name: parts.memory(name) for name in ("nats", "h1", "api")}
        parts.pause("h1")
        made = [await parts.port(network, host, wait=0) for host in ("h1", "h2") * 10]
        assert (await parts.http.delete(f"/v2.0/ports/{gone['id']}")).status_code == 204
        bus = NatsBus(parts.nats, "flood")
        await bus.connect()
        for _ in range(300):
            bus.publish(f"alcor.goal.net.{network.replace('-', '')}", b"x" * 200_000)
            await bus.flush()
        await bus.close()
        await eventually(lambda: _cut_off(parts), 20, "the server cuts it off")
        most = {name: parts.memory(name) - before[name] for name in before}
        assert all(grown < 150 * MB for grown in most.values()), most
        parts.resume("h1")
        await active(parts, [port["id"] for port in made], 30)
        await done(parts)
        assert parts.memory("h1") - before["h1"] < 150 * MB
        await asyncio.sleep(3)
        assert parts.end("api") == 0
        assert await settled(parts) == []


async def _cut_off(parts: Parts) -> bool:
    return "Slow Consumer" in parts.said("nats")


@contextlib.contextmanager
def _small_disk(where: Path, size: int) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


async def test_a_full_disk(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk", 16 * MB) as disk:
        parts = Parts(tmp_path / "data", hosts=1)
        parts.database = disk / "alcor.db"
        async with parts:
            await parts.up()
            network = await parts.network()
            kept = [(await parts.port(network, "h1"))["id"] for _ in range(3)]
            _fill(disk / "ballast")
            refused = None
            for _ in range(2000):  # what the log still has room for
                body = {"port": {"network_id": network, "binding:host_id": "h1"}}
                answer = await parts.http.post("/v2.0/ports", json=body)
                if answer.status_code != 201:
                    refused = answer
                    break
                kept.append(answer.json()["port"]["id"])
            assert refused is not None
            assert refused.status_code == 503, refused.text
            error = refused.json()["NeutronError"]
            assert (error["type"], "disk is full" in error["message"]) == ("ServiceUnavailable", True)
            assert int(refused.headers["retry-after"]) >= 1
            assert (await parts.http.delete(f"/v2.0/ports/{kept[0]}")).status_code == 503
            ready = await parts.http.get("/readyz")
            assert (ready.status_code, "disk is full" in ready.text) == (503, True)
            assert (await parts.http.get("/healthz")).status_code == 200
            assert {port["id"] for port in await parts.list("ports")} == set(kept)
            await asyncio.sleep(2)  # beats, leases, acks: what goes on by itself fails by itself
            (disk / "ballast").unlink()
            await parts.well("h1")
            await active(parts, kept)
            later = await parts.port(network, "h1")
            assert later["status"] == "ACTIVE"
            assert (await parts.http.delete(f"/v2.0/ports/{kept[0]}")).status_code == 204
            assert {port["id"] for port in await parts.list("ports")} == {*kept[1:], later["id"]}
            await asyncio.sleep(8)  # the echo undoes what was announced and then refused
            await done(parts)
            assert parts.end("api") == 0
            assert await settled(parts) == []


async def test_no_descriptors_left(tmp_path: Path) -> None:
    async with Parts(tmp_path / "data", hosts=1) as parts:
        api = parts.parts["api"]
        parts.parts["api"] = replace(api, argv=("prlimit", "--nofile=64:64", *api.argv))
        await parts.up()
        network = await parts.network()
        where = urlsplit(parts.api)
        idle = [socket.create_connection((where.hostname or "", where.port or 0), 5) for _ in range(200)]
        try:
            made = await parts.port(network, "h1")  # on the connection that is there already
            assert len(os.listdir(f"/proc/{parts.processes['api'].pid}/fd")) >= 60
            assert made["status"] == "ACTIVE"
            parts.kill("nats")
            await asyncio.sleep(0.5)
            parts.start("nats")
            await asyncio.sleep(2)
        finally:
            for one in idle:
                one.close()
        await parts.well("h1")
        later = await parts.port(network, "h1")
        await active(parts, [made["id"], later["id"]])
        assert parts.processes["api"].poll() is None
        assert len(parts.said("api")) < MB
        assert parts.end("api") == 0
