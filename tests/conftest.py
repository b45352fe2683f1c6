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

HERE = Path(__file__).parent
#: files of a minute and more, longest first. Workers take files in turn: one that is taken last keeps a worker busy for
#: minutes while the other has nothing to do
FIRST = (
    "property/test_mesh.py",
    "e2e/test_cassandra.py",
    "fuzz/test_messages.py",
    "e2e/test_storm.py",
    "e2e/test_lives.py",
    "property/test_faults.py",
    "e2e/test_cassandra_backup.py",
    "unit/test_api_process.py",
    "e2e/test_history.py",
)


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
    """Tests of minutes are for PROFILE=long; without it they are not there, rather than skipped. Several workers begin
    with the longest files.
    """
    if os.environ.get("PROFILE") != "long":
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {HERE / name: place for place, name in enumerate(FIRST)}
        items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    """Thousands of small worlds come and go; looking for garbage after every 700 objects was a tenth of their time."""
    gc.collect()
    gc.freeze()  # modules stay
    gc.set_threshold(20_000, 10, 10)
