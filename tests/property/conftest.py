"""What several property tests on a real Cassandra use."""

import asyncio
from collections.abc import Iterator

import pytest

from planes.store.cassandra.store import CassandraStore
from tests.support.cassandra import CassandraServer


@pytest.fixture(scope="session")
def parent(cassandra: CassandraServer) -> Iterator[CassandraStore]:
    """Whose sockets all instances use; its keyspace is `property`."""
    store = CassandraStore(cassandra.url("property"))
    asyncio.run(store.open())
    yield store
    asyncio.run(store.close())
