"""Real servers that several test files use; each is started once per run, when the first test asks for it."""

from collections.abc import Iterator

import pytest

from tests.support.cassandra import CassandraServer


@pytest.fixture(scope="session")
def cassandra() -> Iterator[CassandraServer]:
    """A node with nothing in it but what tests of this process made; take a keyspace of your own."""
    with CassandraServer() as server:
        yield server
