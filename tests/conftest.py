"""Real servers that several test files use; each is started once per run, when the first test asks for it.

And what a run has in common: which tests there are, in which order files begin, how often garbage is looked for.
"""

import gc
import os
from collections.abc import Iterator

import pytest

from tests.support.cassandra import CassandraServer


@pytest.fixture(scope="session")
def cassandra() -> Iterator[CassandraServer]:
    """A node with nothing in it but what tests of this process made; take a keyspace of your own."""
    with CassandraServer() as server:
        yield server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of minutes are for PROFILE=long; without it they are not there, rather than skipped."""
    if os.environ.get("PROFILE") != "long":
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_collection_finish() -> None:
    """What is loaded by now stays; the rest is looked through as seldom as in the processes that are tested."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
