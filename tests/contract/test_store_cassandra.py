"""What only the Cassandra store does: the partition of each statement, how a schema comes about, what is counted."""

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import count, product

import pytest

from planes.model.errors import Invalid
from planes.store.cassandra import bridge, cql
from planes.store.cassandra.session import READ, WRITE
from planes.store.cassandra.store import CassandraStore
from planes.store.cassandra.url import parse
from planes.store.protocol import Batch, StoreError, Unavailable, Values, Write
from planes.store.schema import BY_HOST, BY_PROJECT, FREE, GUARDED, HOSTS, PORTS, TABLES, Table
from tests.support.cassandra import CassandraServer

pytestmark = pytest.mark.server
KEYSPACE = "alone"
_fresh = count(1)


@pytest.fixture
async def store(cassandra: CassandraServer) -> AsyncIterator[CassandraStore]:
    made = CassandraStore(cassandra.url(KEYSPACE))
    await made.open()
    yield made
    await made.close()


def statements(table: Table) -> list[str]:
    """Every statement that the adapter can make for a table, but the scan of its partition keys."""
    made = cql.of(KEYSPACE, table.name)
    width = len(table.clustering)
    texts = []
    for prefix, beyond, limited in product(range(width + 1), range(width + 1), (False, True)):
        if prefix + beyond <= width:
            texts.append(made.read(prefix, beyond, False, limited))
        if prefix < width and not beyond:
            texts.append(made.read(prefix, 0, True, limited))
    if table.columns:
        texts.append(made.row)
    if table.guard:
        texts.append(made.statics)
        texts += [made.guard((table.guard,)), made.guard(tuple(name for name, _ in table.statics))]
        texts += [made.put, made.drop] if width else []
    else:
        texts += [made.write, made.erase]
    return texts


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
async def test_every_statement_names_its_whole_partition_and_filters_nothing(
    store: CassandraStore, table: Table
) -> None:
    for text in statements(table):
        assert "ALLOW FILTERING" not in text.upper()
        await store.session.prepare(text)
        prepared = store.session.texts[text]
        assert prepared.routing_key_indexes is not None, text  # the server knows the partition from the values alone
        assert len(prepared.routing_key_indexes) == len(table.partition), text


async def test_only_the_scan_of_partition_keys_goes_to_every_server(store: CassandraStore) -> None:
    """What ran, not what might: an open, one of every call, and then every text that was prepared."""
    for table in GUARDED:
        partition = values(table.partition)
        await store.commit(Batch(table, partition, None, {table.guard: 1}))
        await store.read(table, partition, serial=True)
        (found,) = await store.partitions(table, limit=1)
        await store.partitions(table, after=found, limit=1)
    for table in FREE:
        row = Write(table, values(table.partition), values(table.clustering), values(table.columns), 1)
        await store.write([row])
        await store.read(table, row.partition, prefix=row.clustering[:1])
        if table.columns:
            await store.row(table, row.partition, row.clustering)
    await store.now()
    everywhere = {text for text, prepared in store.session.texts.items() if prepared.routing_key_indexes is None}
    ways = [(following, limited) for following in (False, True) for limited in (False, True)]
    made = [cql.of(KEYSPACE, table.name) for table in TABLES]
    scans = {each.partitions(following=f, limited=n) for each in made for f, n in ways}
    assert everywhere <= scans
    assert all(
        re.fullmatch(
            r"SELECT DISTINCT [a-z, ]+ FROM alone\.[a-z_]+( WHERE token\([a-z, ]+\) > token\([?, ]+\))? LIMIT \?", text
        )
        for text in everywhere
    )


def values(columns: tuple[tuple[str, str], ...]) -> Values:
    salt = next(_fresh)
    made: dict[str, int | str | bytes] = {"bigint": salt, "text": f"t{salt}", "blob": salt.to_bytes(4, "big")}
    return tuple(made[kind] for _, kind in columns)


async def test_rows_of_one_partition_share_a_request_and_a_batch_is_one(store: CassandraStore) -> None:
    net, counts = next(_fresh), store.session.counts
    rows: list[Values] = [(1, bytes([n]), 1, b"") for n in range(32)]
    assert await store.commit(Batch(PORTS, (net, 0), None, {"top": 1}, rows))
    assert counts["conditional"] == 1
    counts.clear()
    project = f"p{net}"
    await store.write([Write(BY_PROJECT, (project, 1, n % 4), (bytes([n]),), (), 1) for n in range(100)])
    assert counts == {WRITE: 4}
    counts.clear()
    await store.read(PORTS, (net, 0), prefix=(1, b"\x03"))
    assert counts == {READ: 1}
    counts.clear()
    await store.read(PORTS, (net, 0), prefix=(2,))  # nothing: guard, rows and guard again, so that it is of one moment
    assert counts == {READ: 4}


async def test_a_row_alone_is_one_request_also_where_it_is_not_and_asks_for_its_columns_only(
    store: CassandraStore,
) -> None:
    where, counts = (next(_fresh), 0), store.session.counts
    assert await store.commit(Batch(PORTS, where, None, {"top": 1}, [(1, b"a", 1, b"")]))
    counts.clear()
    for key in (b"a", b"b"):
        await store.row(PORTS, where, (1, key))
    assert counts == {READ: 2}
    asked = store.session.texts[cql.of(KEYSPACE, PORTS.name).row].result_metadata
    assert [column[2] for column in asked] == [name for name, _ in PORTS.columns]


async def test_more_than_may_wait_is_refused_at_once_and_the_rest_is_answered(
    store: CassandraStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "FLIGHT", 8)
    monkeypatch.setattr(bridge, "QUEUE", 40)
    host = f"h{next(_fresh)}"
    await store.read(BY_HOST, (host,))
    results = await asyncio.gather(*(store.read(BY_HOST, (host,)) for _ in range(200)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, Unavailable)]
    assert len(refused) == 200 - 48
    assert "wait for Cassandra" in str(refused[0])
    assert not (await store.read(BY_HOST, (host,))).exists


async def test_many_start_at_once_and_one_makes_the_schema(cassandra: CassandraServer) -> None:
    stores = [CassandraStore(cassandra.url("together")) for _ in range(4)]
    try:
        await asyncio.gather(*(each.open() for each in stores))
        results = await asyncio.gather(*(each.commit(Batch(HOSTS, ("h",), None, {"rev": 1})) for each in stores))
        assert sorted(results) == [False, False, False, True]
    finally:
        await asyncio.gather(*(each.close() for each in stores))


async def test_a_keyspace_of_a_newer_program_is_refused(
    cassandra: CassandraServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = CassandraStore(cassandra.url("newer"))
    await first.open()
    text = "UPDATE newer.meta SET version = ? WHERE name = ? IF version = ?"
    assert await first.session.conditional([(text, (cql.VERSION + 1, "schema", cql.VERSION))])
    await first.close()
    with pytest.raises(Unavailable, match="too old"):
        await CassandraStore(cassandra.url("newer")).open()


async def test_an_older_keyspace_is_brought_up(cassandra: CassandraServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CassandraStore(cassandra.url("older"))
    await first.open()
    await first.close()
    monkeypatch.setattr(
        cql,
        "MIGRATIONS",
        (
            *cql.MIGRATIONS,
            ("ALTER TABLE older.changes WITH comment = 'seen'",),
        ),
    )
    monkeypatch.setattr(cql, "VERSION", cql.VERSION + 1)
    for _ in range(2):
        store = CassandraStore(cassandra.url("older"))
        await store.open()
        text = "SELECT comment FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?"
        assert (await store.session.rows(READ, (text, ("older", "changes")))) == [("seen",)]
        await store.close()


async def test_a_keyspace_is_not_made_without_a_word_on_its_copies(cassandra: CassandraServer) -> None:
    url = f"cassandra://{cassandra.address}:{cassandra.port}/nowhere?dc=datacenter1"
    with pytest.raises(Invalid, match="replication"):
        await CassandraStore(url).open()


async def test_nobody_there_is_a_sentence() -> None:
    with pytest.raises(Unavailable, match=r"Setting store: Cassandra at 127\.0\.0\.1:1: it cannot be reached"):
        await CassandraStore("cassandra://127.0.0.1:1/alone").open()


@pytest.mark.timeout(400)  # two starts of a server, which busy cores stretch
async def test_a_server_that_was_away_is_found_again_and_has_what_was_answered() -> None:
    """A server of its own, killed in the middle of commits: every answer holds, no unknown outcome happens twice."""
    with CassandraServer(commitlog="batch") as server:
        store = CassandraStore(server.url(KEYSPACE))
        await store.open()
        sure: dict[int, int] = {}
        unsure: dict[int, int] = {}

        async def write(net: int) -> None:
            top = 0
            try:
                while True:
                    if await store.commit(Batch(PORTS, (net, 0), top or None, {"top": top + 1})):
                        top += 1
                        sure[net] = top
            except StoreError as error:
                if not isinstance(error, Unavailable):
                    unsure[net] = top + 1

        tasks = [asyncio.create_task(write(net)) for net in range(1, 9)]
        while len(sure) < 8 or min(sure.values()) < 5:
            await asyncio.wait(tasks, timeout=0.05)
        server.kill()
        await asyncio.gather(*tasks)
        with pytest.raises(Unavailable):
            await store.read(PORTS, (1, 0))
        server.start()
        await _back(store)
        for net, top in sure.items():
            found = (await store.read(PORTS, (net, 0), serial=True)).statics[0]
            assert found == top or (net in unsure and found == unsure[net])
        await store.close()


async def _back(store: CassandraStore) -> None:
    for _ in range(300):
        try:
            await store.now()
            return
        except StoreError:
            await asyncio.sleep(0.1)
    raise AssertionError("the store did not come back")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("cassandra:///k", "must be cassandra://"),
        ("cassandra://h:no/k", "not a port"),
        ("cassandra://h/Not-One", "not a keyspace"),
        ("cassandra://h/k?colour=red", "no 'colour'"),
        ("cassandra://h/k?replication=3", "needs dc"),
        ("cassandra://h/k?dc=a&replication=x", "replication is 'x'"),
        ("cassandra://h/k?timeout=0", "timeout"),
        ("cassandra://h/k?cert=a", "belong together"),
    ],
)
def test_a_wrong_address_is_a_clear_error(url: str, words: str) -> None:
    with pytest.raises(Invalid, match=re.escape(words)):
        parse(url)


def test_an_address_has_all_its_parts() -> None:
    found = parse("cassandra://me:p%40ss@h1,h2:9043/alcor?dc=a&replication=3,b:2&tls=/ca.pem")
    assert (found.hosts, found.port, found.keyspace) == (("h1", "h2"), 9043, "alcor")
    assert (found.user, found.password, found.dc, found.tls) == ("me", "p@ss", "a", "/ca.pem")
    assert found.replicas == (("a", 3), ("b", 2))
    assert parse("cassandra://h/k?dc=a&rf=3").replicas == (("a", 3),)
