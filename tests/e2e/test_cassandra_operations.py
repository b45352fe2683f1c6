"""What docs/store.md tells an operator to do with a running cluster, done: with PROFILE=long only, some six minutes."""

import asyncio
import json
import tempfile
from pathlib import Path

import pytest

from cli.cassandra.node import CENTER, Node
from tests.e2e.parts import FAST, Parts, active, eventually
from tests.e2e.support import alcor
from tests.e2e.test_cassandra import Storm
from tests.support.cassandra import CassandraCluster, CassandraServer, PlacedNode, administer
from tests.support.ports import free_port

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.server,
    pytest.mark.timeout(1500),
    pytest.mark.long,
]

FOURTH, FIFTH = "127.0.0.4", "127.0.0.5"
#: of two data centers
BOTH = ("127.0.0.1", "127.0.0.2")


async def test_a_cluster_is_repaired_grows_and_has_a_dead_node_replaced_under_load(tmp_path: Path) -> None:
    with CassandraCluster() as cluster:
        await _operated(cluster, tmp_path / "data")


async def _operated(cluster: CassandraCluster, data: Path) -> None:
    first, url = cluster.nodes[0], cluster.nodes[0].url("alcor")
    async with Parts(data, hosts=1, store=url) as parts:
        parts.start("nats", "api", "h1")
        await parts.well("h1", within=120)
        network = await parts.network("10.0.0.0/16")
        storm = Storm(parts, network, (parts.api,))
        running = asyncio.create_task(storm.run())
        await storm.goes_on("before anything is done")
        for node in cluster.nodes:
            await _tool(node, "repair", "-full", "-pr", "alcor")
        await _tool(first, "repair", "--paxos-only", "alcor")
        await storm.goes_on("after the repair")

        fourth = cluster.join(FOURTH)
        await _up(fourth, 4)
        await storm.goes_on("with a fourth node")
        for node in cluster.nodes[:3]:
            await _tool(node, "cleanup", "alcor")
        assert not storm.wrong, storm.wrong
        assert not storm.late, storm.late

        third = cluster.nodes[2]
        third.kill()
        await storm.goes_on("without the third")
        await _up(cluster.join(FIFTH, replaces=third.address), 4)
        status = await _tool(first, "status", "alcor")
        assert third.address not in status, status
        await storm.goes_on("with a fifth in its place")
        await _tool(cluster.nodes[-1], "repair", "-full", "alcor")
        storm.over = True
        await running
        assert not storm.wrong, storm.wrong
        await active(parts, storm.made, 120)
        found = await parts.list(f"ports?network_id={network}")
        assert storm.made <= {port["id"] for port in found}
        assert not storm.gone & {port["id"] for port in found}
        addresses = [fixed["ip_address"] for port in found for fixed in port["fixed_ips"]]
        assert len(addresses) == len(set(addresses)) == len(found)
        parts.end("api")
    # A request refused at the moment of a death may leave index rows, which readers skip; nothing else.
    assert set(await _check(url)) <= {"index"}


async def test_a_second_data_center_holds_copies_and_takes_over(tmp_path: Path) -> None:
    port, storage = free_port(addresses=BOTH), free_port(addresses=BOTH)
    with tempfile.TemporaryDirectory(prefix="alcor-centers-") as directory:
        one, two = (
            CassandraServer(node=_placed(Path(directory) / center, port, storage, address, center), brief=True)
            for address, center in zip(BOTH, (CENTER, "dc2"), strict=True)
        )
        with one, two:
            await _taken_over(one, two, tmp_path / "data")


def _placed(directory: Path, port: int, storage: int, address: str, center: str) -> Node:
    return PlacedNode(directory, port, storage, address, BOTH, "400M", jmx=free_port(), center=center)


async def _taken_over(one: CassandraServer, two: CassandraServer, data: Path) -> None:
    url = f"cassandra://127.0.0.1:{one.port}/alcor?timeout=22&dc={CENTER}&replication=1"
    there = f"cassandra://127.0.0.2:{one.port}/alcor?timeout=22&dc=dc2"
    await asyncio.to_thread(_known, one)
    async with Parts(data / "one", hosts=1, store=url) as parts:
        parts.start("nats", "api")
        await parts.well(within=120)
        network = await parts.network("10.0.0.0/16")
        bulk = {"ports": [{"network_id": network} for _ in range(50)]}
        (await parts.http.post("/v2.0/ports", json=bulk)).raise_for_status()
        copies = f"{{'class': 'NetworkTopologyStrategy', '{CENTER}': 1, 'dc2': 1}}"
        await asyncio.to_thread(administer, one, f"ALTER KEYSPACE alcor WITH replication = {copies}")
        await parts.post("ports", network_id=network)  # while the other has not what was before
        await _tool(two, "rebuild", "--", CENTER)
        before = await parts.list("ports")
        parts.end("api")
    await _tool(one, "repair", "-full", "alcor")
    await _tool(one, "repair", "--paxos-only", "alcor")
    one.kill()
    assert await _check(there, "--fix") == []
    async with Parts(data / "two", hosts=1, store=there) as parts:
        parts.start("nats", "api")
        await parts.well(within=120)
        assert await parts.list("ports") == before
        await parts.post("ports", network_id=network)
        parts.end("api")


def _known(one: CassandraServer) -> None:
    async def both() -> bool:
        return one.knows(1)

    asyncio.run(eventually(both, 60, "the nodes know each other"))


async def _tool(node: CassandraServer, *arguments: str) -> str:
    """As an operator does, while everything else goes on; what was run is shown with `-s`."""
    now = asyncio.get_running_loop().time
    begun = now()
    said = await asyncio.to_thread(node.nodetool, *arguments)
    print(f"{node.address}$ nodetool {' '.join(arguments)}  # {now() - begun:.0f} s\n{said}")
    return said


async def _up(node: CassandraServer, nodes: int) -> None:
    """Until it answers, and counts so many that are up and have joined."""
    await asyncio.to_thread(node.wait)

    async def joined() -> bool:
        return (await _tool(node, "status", "alcor")).count("\nUN ") == nodes

    await eventually(joined, 240, f"{nodes} nodes up and normal")


async def _check(url: str, *options: str) -> list[str]:
    """The rules of what `store check` finds."""
    command = ("store", "check", "--json", *options)
    done = await asyncio.to_thread(
        alcor, *command, timeout=300, ALCOR_STORE=url, ALCOR_ECHO_FROM=FAST["ALCOR_ECHO_FROM"]
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [each["rule"] for each in json.loads(done.stdout)["found"]]
