"""Every store by turns."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from planes.store.cassandra.store import CassandraStore
from planes.store.protocol import Store
from planes.store.sqlite.store import SqliteStore
from tests.support.stores import Rig


@pytest.fixture(params=["sqlite", "sqlite without a thread", pytest.param("cassandra", marks=pytest.mark.server)])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param.startswith("sqlite"):
        threaded = request.param == "sqlite"
        made = Rig(lambda: SqliteStore(tmp_path / "store.db", threaded=threaded))
    else:
        url = request.getfixturevalue("cassandra").url("contract")
        made = Rig(lambda: CassandraStore(url))
    await made.store.open()
    yield made
    await made.store.close()


@pytest.fixture
def store(rig: Rig) -> Store:
    return rig.store
