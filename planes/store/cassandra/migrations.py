"""Bring a keyspace to this version's schema: once, whoever starts first, however many start.

Called by the Cassandra store when it opens. A lease in `meta` (a row with a life, renewed before every statement) lets
one process work; the others wait for the version. Every statement may be repeated, so a process that dies on the way is
followed by the next as soon as its lease ends. A process without the right to change the schema can open a keyspace
that is ready. Whoever waits says so in the log, once; every way to fail is one sentence.
"""

import asyncio
import logging
import random
import secrets
from contextlib import suppress

from planes.model.errors import Invalid
from planes.store.cassandra import cql
from planes.store.cassandra.session import READ, SERIAL, CassandraSession
from planes.store.cassandra.url import Address
from planes.store.protocol import StoreError, Unavailable, UnknownOutcome

log = logging.getLogger(__name__)

#: seconds that a lease lives unless it is renewed; the longest a statement may take is two thirds of it
LEASE = 90
#: seconds: how long others wait for an owner who goes on, and how long they look on before they say so
PATIENCE, SILENCE = 300.0, 2.0
#: looks for a table that another process is creating
TRIES = 20


async def migrate(session: CassandraSession, address: Address) -> None:
    """Raises Invalid for a keyspace that is not there; Unavailable for one that cannot be used, and says why."""
    name = address.keyspace
    if not await _exists(session, name):
        if not address.replicas:
            raise Invalid(f"Setting store: keyspace {name} does not exist; replication=3 creates it.")
        await session.execute(cql.keyspace(name, address.replicas))
    if not await _exists(session, name, "meta"):
        await session.execute(cql.meta(name))
    await _visible(session, name)
    await _up_to_date(session, name)
    await _check(session, name)


async def _up_to_date(session: CassandraSession, name: str) -> None:
    """Migrate, or wait for whoever does."""
    loop = asyncio.get_running_loop()
    owner, begun, told = secrets.token_hex(8), loop.time(), False
    while (version := await _version(session, name)) != cql.VERSION:
        if await _lease(session, name, owner):
            await _work(session, name, owner, version)
            continue
        waited = loop.time() - begun
        if waited > PATIENCE:
            raise Unavailable(
                f"Keyspace {name}: another process has held its migration for {PATIENCE:.0f} s and it is not done."
            )
        if waited > SILENCE and not told:
            told = True
            log.warning(
                f"Keyspace {name} is being migrated by another process, or by one that died less than {LEASE} s ago:"
                f" waiting for version {cql.VERSION}, {PATIENCE:.0f} s at most."
            )
        await asyncio.sleep(random.uniform(0.1, 0.5))


async def _work(session: CassandraSession, name: str, owner: str, version: int | None) -> None:
    """Statement by statement, each under a fresh lease; then the version. The lease is given back, also on failure."""
    statements = cql.create(name)
    if version:
        statements = [text for step in cql.MIGRATIONS[version - 1 :] for text in step] + statements
    mine = [(f"UPDATE {name}.meta SET version = ? WHERE name = ? IF version = ?", (cql.VERSION, "schema", version))]
    try:
        for text in statements:
            await _keep(session, name, owner)
            await session.execute(text)
        await _keep(session, name, owner)
        await session.conditional(mine)
    except Unavailable as error:
        change = f"from version {version} to" if version else "to version"
        raise Unavailable(f"Keyspace {name} cannot be brought {change} {cql.VERSION}: {error}") from error
    finally:
        with suppress(StoreError):  # it ends by itself
            await session.conditional([(f"DELETE FROM {name}.meta WHERE name = ? IF owner = ?", ("migrator", owner))])


async def _visible(session: CassandraSession, name: str) -> None:
    """Until a server can use `meta`: whoever lost the race to create it may see its row before the server knows it."""
    for left in reversed(range(TRIES)):
        try:
            await _version(session, name)
            return
        except Unavailable:
            if not left:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.2))


async def _version(session: CassandraSession, name: str) -> int | None:
    """None: no tables yet."""
    rows = await session.rows(SERIAL, (f"SELECT version FROM {name}.meta WHERE name = ?", ("schema",)))
    version: int | None = rows[0][0] if rows else None
    if version is not None and version > cql.VERSION:
        raise Unavailable(
            f"Keyspace {name} has version {version}, this program knows {cql.VERSION}: the program is too old for it."
        )
    return version


async def _lease(session: CassandraSession, name: str, owner: str) -> bool:
    """Whether the right to migrate is ours. Not to know is no: it ends by itself."""
    insert = f"INSERT INTO {name}.meta (name, owner) VALUES (?, ?) IF NOT EXISTS USING TTL {LEASE}"
    try:
        return await session.conditional([(insert, ("migrator", owner))])
    except UnknownOutcome:
        return False


async def _keep(session: CassandraSession, name: str, owner: str) -> None:
    renew = f"UPDATE {name}.meta USING TTL {LEASE} SET owner = ? WHERE name = ? IF owner = ?"
    if not await session.conditional([(renew, (owner, "migrator", owner))]):
        raise Unavailable(f"Keyspace {name}: another process took over its migration; start again.")


async def _exists(session: CassandraSession, keyspace: str, table: str = "") -> bool:
    if table:
        text = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?"
        return bool(await session.rows(READ, (text, (keyspace, table))))
    text = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?"
    return bool(await session.rows(READ, (text, (keyspace,))))


async def _check(session: CassandraSession, name: str) -> None:
    """Every table has the columns that the statements name."""
    text = "SELECT table_name, column_name FROM system_schema.columns WHERE keyspace_name = ?"
    found: dict[str, set[str]] = {}
    for table, column in await session.rows(READ, (text, (name,))):
        found.setdefault(table, set()).add(column)
    for table, columns in cql.shapes().items():
        if found.get(table) != columns:
            raise Unavailable(f"Keyspace {name}: table {table} does not have the columns of version {cql.VERSION}.")
