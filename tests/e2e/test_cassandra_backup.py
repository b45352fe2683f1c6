"""A backup of a cluster and its return, step by step as docs/store.md has it: all that was there, and nothing else.

About 25 seconds on two cores: one node, one instance of the API, and `nodetool` some twenty times.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cassandra.node import Node
from planes.store.schema import TABLES
from tests.e2e.parts import FAST, Parts
from tests.e2e.support import alcor
from tests.support.cassandra import CassandraServer, administer
from tests.support.ports import free_port

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(600)]

TAG, PORTS = "nightly", 60


@pytest.fixture
def server() -> Iterator[CassandraServer]:
    directory = Path(tempfile.mkdtemp(prefix="alcor-cassandra-"))
    with CassandraServer(node=Node(directory, free_port(), free_port(), jmx=free_port()), brief=True) as made:
        yield made


async def test_a_dropped_keyspace_comes_back_from_its_snapshot(server: CassandraServer, tmp_path: Path) -> None:
    url, saved = server.url("alcor"), tmp_path / "saved"
    async with Parts(tmp_path / "data", hosts=1, store=url) as parts:
        parts.start("nats", "api")
        await parts.well(within=120)
        network = await parts.network("10.0.0.0/16")
        made = [{"network_id": network, "name": f"p{number}"} for number in range(PORTS)]
        (await parts.http.post("/v2.0/ports", json={"ports": made})).raise_for_status()
        gone = [port["id"] for port in (await parts.list("ports"))[:10]]
        for port in gone:
            (await parts.http.delete(f"/v2.0/ports/{port}")).raise_for_status()
        before = await parts.list("ports")
        server.nodetool("snapshot", "-t", TAG, "alcor")
        for snapshot in server.node.directory.glob(f"data/alcor/*/snapshots/{TAG}"):
            shutil.copytree(snapshot, saved / snapshot.parent.parent.name.rpartition("-")[0])
        server.nodetool("clearsnapshot", "-t", TAG, "alcor")
        late = await parts.post("ports", network_id=network)  # after the backup: lost
        parts.end("api")

        administer(server, "DROP KEYSPACE alcor")
        assert alcor("store", "init", ALCOR_STORE=url, timeout=120).returncode == 0
        for table in TABLES:
            server.nodetool("import", "--copy-data", "alcor", table.name, str(saved / table.name))
        server.nodetool("repair", "-full", "alcor")
        assert _check(url, "--fix") == []

        parts.start("api")
        await parts.well(within=120)
        assert await parts.list("ports") == before
        assert (await parts.http.get(f"/v2.0/ports/{late['id']}")).status_code == 404
        again = await parts.post("ports", network_id=network)
        taken = {fixed["ip_address"] for port in before for fixed in port["fixed_ips"]}
        assert again["fixed_ips"][0]["ip_address"] not in taken
        parts.end("api")
    assert _check(url) == []


def _check(url: str, *options: str) -> list[object]:
    """What `store check` finds."""
    command = ("store", "check", "--json", *options)
    done = alcor(*command, timeout=180, ALCOR_STORE=url, ALCOR_ECHO_FROM=FAST["ALCOR_ECHO_FROM"])
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[object] = json.loads(done.stdout)["found"]
    return found
