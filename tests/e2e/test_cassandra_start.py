"""Programs that start on a keyspace of another version: together, after one that was killed, or too early or late.

About 15 seconds on two cores, beside the start of the node that all tests share.
"""

import asyncio
import logging
import signal
import subprocess
import sys

import pytest

from planes.store.cassandra import cql, migrations
from planes.store.cassandra.session import SERIAL, CassandraSession
from planes.store.cassandra.store import CassandraStore
from tests.e2e.support import ROOT, alcor, environment
from tests.support.cassandra import CassandraServer
from tests.support.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

#: seconds that the lease of a program lives which dies in the middle of a migration
SHORT = 6
DIES = f"""
import asyncio, os, signal, sys
from planes.store.cassandra import migrations
from planes.store.cassandra.session import CassandraSession
from planes.store.cassandra.store import CassandraStore
migrations.LEASE = {SHORT}
execute = CassandraSession.execute
async def dies(self, text):
    await execute(self, text)
    if ".ports " in text:
        os.kill(os.getpid(), signal.SIGKILL)
CassandraSession.execute = dies
asyncio.run(CassandraStore(sys.argv[1]).open())
"""


async def test_many_bring_an_older_keyspace_up_and_one_does_the_work(
    cassandra: CassandraServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, done = cassandra.url("rolled"), []
    await _opened(url)
    monkeypatch.setattr(cql, "MIGRATIONS", (*cql.MIGRATIONS, ("ALTER TABLE rolled.changes WITH comment = 'seen'",)))
    monkeypatch.setattr(cql, "VERSION", cql.VERSION + 1)
    execute = CassandraSession.execute

    async def counted(self: CassandraSession, text: str) -> None:
        done.append(text)
        await execute(self, text)

    monkeypatch.setattr(CassandraSession, "execute", counted)
    await asyncio.gather(*(_opened(url) for _ in range(4)))
    assert done.count("ALTER TABLE rolled.changes WITH comment = 'seen'") == 1


async def test_what_was_killed_in_the_middle_is_followed_when_its_lease_ends(
    cassandra: CassandraServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = cassandra.url("killed")
    died = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", DIES, url], cwd=ROOT, env=environment({}), timeout=120, check=False
    )
    assert died.returncode == -signal.SIGKILL
    with caplog.at_level(logging.WARNING, migrations.__name__):
        await _opened(url)
    (said,) = caplog.messages
    assert said.startswith("Keyspace killed is being migrated by another process, or by one that died less than ")


async def test_who_is_not_done_is_not_waited_for_for_ever(
    cassandra: CassandraServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cassandra.url("stuck")
    await _opened(url)
    store = CassandraStore(url)
    await store.open()
    lease = "INSERT INTO stuck.meta (name, owner) VALUES (?, ?) IF NOT EXISTS"
    assert await store.session.conditional([(lease, ("migrator", "another"))])
    await store.close()
    monkeypatch.setattr(cql, "VERSION", cql.VERSION + 1)
    monkeypatch.setattr(migrations, "PATIENCE", 1.0)
    with pytest.raises(Exception, match="Keyspace stuck: another process has held its migration for 1 s"):
        await _opened(url)


async def test_a_program_older_than_the_keyspace_says_so(cassandra: CassandraServer) -> None:
    url = cassandra.url("ahead")
    store = CassandraStore(url)
    await store.open()
    text = "UPDATE ahead.meta SET version = ? WHERE name = ? IF version = ?"
    assert await store.session.conditional([(text, (cql.VERSION + 1, "schema", cql.VERSION))])
    assert not await store.session.rows(SERIAL, ("SELECT owner FROM ahead.meta WHERE name = ?", ("migrator",)))
    await store.close()
    words = f"Keyspace ahead has version {cql.VERSION + 1}, this program knows {cql.VERSION}: the program is too old"
    for command in (("store", "init"), ("api",)):
        done = await asyncio.to_thread(
            alcor, *command, ALCOR_STORE=url, ALCOR_API_PORT=str(free_port()), ALCOR_NATS="nats://127.0.0.1:1"
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert words in line


async def _opened(url: str) -> None:
    store = CassandraStore(url)
    await store.open()
    await store.close()
