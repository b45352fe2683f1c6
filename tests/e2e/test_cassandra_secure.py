"""A Cassandra that asks who comes: roles with few rights, TLS, and what is said when either is wrong."""

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import httpx
import pytest

from cli.cassandra.node import CENTER
from planes.store.cassandra import cql
from planes.store.cassandra.store import CassandraStore
from planes.store.protocol import Batch, Unavailable, Values, Write
from planes.store.schema import FREE, GUARDED, TABLES
from tests.e2e.parts import eventually
from tests.e2e.support import ROOT, alcor, environment
from tests.support.cassandra import CassandraServer, SecureNode, administer
from tests.support.certificates import authority, signed
from tests.support.nats import NatsServer
from tests.support.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

_fresh = count(1)


class Secure:
    """The server, and URLs for it."""

    def __init__(self, directory: Path) -> None:
        self.ca = authority(directory, "ca")
        self.client = signed(self.ca, "client", "127.0.0.1")
        self.stranger = authority(directory, "stranger")
        signed(self.ca, "node", "127.0.0.1")
        self.node = SecureNode(directory, free_port(), free_port())
        self.server = CassandraServer(node=self.node, brief=True)

    def url(self, login: str = "alcor_api:other", keyspace: str = "alcor", **query: object) -> str:
        """An argument None leaves out what the query has by default."""
        pairs = {"dc": CENTER, "tls": self.ca, "cert": self.client, "key": self.client} | query
        asked = "&".join(f"{name}={value}" for name, value in pairs.items() if value is not None)
        return f"cassandra://{login}@127.0.0.1:{self.node.port}/{keyspace}?{asked}"


def documented() -> list[str]:
    """The statements that docs/store.md tells an operator to run, for a cluster of this one server."""
    found = re.search(r"```cql\n(.+?)```", (ROOT / "docs/store.md").read_text(), re.DOTALL)
    assert found
    here = found[1].replace("'dc1': 3", f"'{CENTER}': 1")
    assert here != found[1]
    return [statement.strip() for statement in here.split(";") if statement.strip()]


@pytest.fixture(scope="module")
def secure() -> Iterator[Secure]:
    """A server where an operator did what docs/store.md says, tables included."""
    with tempfile.TemporaryDirectory(prefix="alcor-secure-") as directory:
        made = Secure(Path(directory))
        with made.server:
            administer(made.server, *documented())
            early = said("store", "init", url=made.url())
            assert "User alcor_api has no CREATE permission" in early
            done = alcor("store", "init", ALCOR_STORE=made.url("alcor_schema:one"))
            assert done.returncode == 0, done.stderr
            assert "one@" not in done.stdout
            yield made


def said(*command: str, url: str) -> str:
    """The one sentence with which a command ends that cannot work."""
    done = alcor(*command, ALCOR_STORE=url, ALCOR_API_PORT=str(free_port()), ALCOR_NATS="nats://127.0.0.1:1")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in line
    assert ":other@" not in line
    return line


async def test_the_role_of_the_api_can_do_all_that_the_adapter_does_and_no_more(secure: Secure) -> None:
    store = CassandraStore(secure.url())
    await store.open()
    try:
        for table in GUARDED:
            partition = _values(table.partition)
            assert await store.commit(Batch(table, partition, None, {table.guard: 1}))
            assert (await store.read(table, partition, serial=True)).exists
            assert await store.partitions(table, limit=1)
        for table in FREE:
            row = Write(table, _values(table.partition), _values(table.clustering), _values(table.columns), 1)
            await store.write([row])
            assert (await store.read(table, row.partition)).rows
            await store.write([Write(table, row.partition, row.clustering, None, 2)])
            assert not (await store.read(table, row.partition)).rows
        assert abs(await store.now() / 1e6 - time.time()) < 60
        for forbidden in (
            "CREATE TABLE alcor.mine (name text PRIMARY KEY)",
            "ALTER TABLE alcor.feed WITH comment = ''",
            "DROP TABLE alcor.feed",
            "DROP KEYSPACE alcor",
            "CREATE ROLE friend",
        ):
            with pytest.raises(Unavailable, match="lacks a right: User alcor_api"):
                await store.session.execute(forbidden)
    finally:
        await store.close()
        administer(secure.server, *(f"TRUNCATE alcor.{table.name}" for table in TABLES))  # no cloud can read them


async def test_a_role_without_the_right_to_migrate_says_so_and_leaves_the_way_free(
    secure: Secure, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = f"from version {cql.VERSION} to {cql.VERSION + 1}"
    monkeypatch.setattr(cql, "MIGRATIONS", (*cql.MIGRATIONS, ("ALTER TABLE alcor.changes WITH comment = 'seen'",)))
    monkeypatch.setattr(cql, "VERSION", cql.VERSION + 1)
    words = f"Keyspace alcor cannot be brought {step}: ALTER TABLE alcor.changes: the role of setting store"
    for _ in range(2):  # the second would wait for the lease, had the first kept it
        with pytest.raises(Unavailable, match=f"^{words} lacks a right: User alcor_api has no ALTER permission"):
            await asyncio.wait_for(CassandraStore(secure.url()).open(), 30)


def _values(columns: tuple[tuple[str, str], ...]) -> Values:
    salt = next(_fresh)
    made: dict[str, int | str | bytes] = {"bigint": salt, "text": f"t{salt}", "blob": salt.to_bytes(4, "big")}
    return tuple(made[kind] for _, kind in columns)


@asynccontextmanager
async def api(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """An instance of the API, with a bus."""
    nats, port = NatsServer(), free_port()
    await nats.start()
    env = environment({"ALCOR_STORE": url, "ALCOR_NATS": nats.url, "ALCOR_API_PORT": str(port)})
    process = _started("api", env=env)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            await eventually(lambda: _ready(client), 60, "the API")
            yield client
    finally:
        process.kill()
        process.wait()
        nats.kill()


def _started(*command: str, env: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "cli.main", *command], cwd=ROOT, env=env)


async def _ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def test_an_api_serves_with_that_role_and_says_when_a_right_is_taken(secure: Secure) -> None:
    async with api(secure.url()) as client:
        network = (await client.post("/v2.0/networks", json={"network": {}})).raise_for_status().json()["network"]["id"]
        subnet = {"network_id": network, "cidr": "10.0.0.0/24", "ip_version": 4}
        (await client.post("/v2.0/subnets", json={"subnet": subnet})).raise_for_status()
        made = (await client.post("/v2.0/ports", json={"port": {"network_id": network}})).raise_for_status().json()
        listed = (await client.get("/v2.0/ports")).raise_for_status().json()["ports"]
        assert [port["id"] for port in listed] == [made["port"]["id"]]
        (await client.delete(f"/v2.0/ports/{made['port']['id']}")).raise_for_status()
        try:
            administer(secure.server, "REVOKE MODIFY ON KEYSPACE alcor FROM alcor_api")
            reason = await eventually(lambda: _refusal(client, "User alcor_api has no MODIFY permission"), 30)
            assert reason.startswith("The store does not answer: the role of setting store lacks a right: ")
        finally:
            administer(secure.server, "GRANT MODIFY ON KEYSPACE alcor TO alcor_api")
        await eventually(lambda: _ready(client), 30, "ready when the right is back")


async def _refusal(client: httpx.AsyncClient, words: str) -> str:
    """Why the API is not ready, once that names `words`."""
    answer = await client.get("/readyz")
    message = "" if answer.status_code == 200 else str(answer.json()["NeutronError"]["message"])
    return message if words in message else ""


_API = "alcor_api:other"
#: role and password, the rest of the URL, and what is said of it
WRONG: dict[str, tuple[str, dict[str, object], str]] = {
    "password": ("alcor_api:wrong", {}, "it refuses the role or the password of setting store."),
    "role": ("nobody:wrong", {}, "it refuses the role or the password of setting store."),
    "no role": ("", {}, "it wants a role and a password, which setting store does not name."),
    "no TLS": (_API, dict.fromkeys(("tls", "cert", "key")), "that wants TLS: tls in setting store."),
    "another authority": (_API, {"tls": "STRANGER"}, "does not hold against the file tls of setting store"),
    "no certificate": (_API, dict.fromkeys(("cert", "key")), "cert and key in setting store."),
    "no such file": (_API, {"tls": "/nowhere"}, "can be read from /nowhere"),
    "keyspace": (_API, {"keyspace": "nowhere"}, "keyspace nowhere does not exist; replication=3 creates it"),
    "right": (
        _API,
        {"keyspace": "nowhere", "replication": 1},
        "CREATE KEYSPACE nowhere: the role of setting store lacks a right: User alcor_api has no CREATE permission",
    ),
    "data center": (_API, {"dc": "dc7"}, f"no server is in data center dc7 (dc); they are in {CENTER}."),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_setting_is_one_sentence_that_names_it(secure: Secure, what: str) -> None:
    login, query, words = WRONG[what]
    strangers = {name: secure.stranger for name, value in query.items() if value == "STRANGER"}
    url = secure.url(login, **(query | strangers))  # type: ignore[arg-type]
    for command in (("store", "init"), ("api",)):
        assert words in said(*command, url=url)


def test_tls_to_a_server_without_is_said(cassandra: CassandraServer, secure: Secure) -> None:
    url = f"cassandra://127.0.0.1:{cassandra.port}/alone?dc={CENTER}&tls={secure.ca}"
    assert "it speaks without TLS, setting store says tls." in said("store", "init", url=url)


async def test_a_cluster_that_is_away_is_said(secure: Secure) -> None:
    async with api(secure.url()) as client:
        secure.server.kill()
        reason = await eventually(lambda: _refusal(client, "no server can be reached"), 60)
        assert reason.startswith("The store does not answer: no server can be reached")
        for command in (("store", "init"), ("api",)):
            line = await asyncio.to_thread(said, *command, url=secure.url())
            assert f"Setting store: Cassandra at 127.0.0.1:{secure.node.port}: it cannot be reached" in line
        secure.server.start()
        await eventually(lambda: _ready(client), 60, "ready when it is back")
