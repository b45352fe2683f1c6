"""Real servers that several test files use; each is started once per run, when the first test asks for it.

And what a run has in common: which tests there are, in which order files begin, how often garbage is looked for.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cassandra import CassandraServer
from tests.support.disk import forgetful


@pytest.fixture(scope="session")
def cassandra() -> Iterator[CassandraServer]:
    """A node with nothing in it but what tests of this process made; take a keyspace of your own."""
    with CassandraServer() as server:
        yield server


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """Like `tmp_path`, on a disk that forgets."""
    with forgetful() as path:
        yield path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of minutes are for PROFILE=long; without it they are not there, rather than skipped."""
    if os.environ.get("PROFILE") != "long":
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_collection_finish() -> None:
    """Thousands of small worlds come and go; looking for garbage after every 700 objects was a tenth of their time."""
    gc.collect()
    gc.freeze()  # modules stay
    gc.set_threshold(20_000, 10, 10)
