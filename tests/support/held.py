"""A store whose commits of ports wait until a test lets them go on."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from planes.model.enums import Kind
from planes.store.protocol import Batch, Write
from planes.store.schema import PORTS
from planes.store.sqlite.store import SqliteStore


class Held(SqliteStore):
    """Batches that would put a port wait until they may go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go = asyncio.Event()
        self.go.set()
        self.waits = asyncio.Event()

    async def commit(self, batch: Batch, before: Sequence[Write] = ()) -> bool:
        if batch.table is PORTS and any(row[0] == Kind.PORT for row in batch.puts):
            self.waits.set()
            await self.go.wait()
        return await super().commit(batch, before)
