"""The second look at many changes of one place: side by side, but those of one object in their order."""

import asyncio
from pathlib import Path

import pytest

from planes.control.feed import Entry
from planes.model.requests import PortCreate, PortUpdate
from tests.support.cloud import caller, network_with_subnet, running

PORTS = 20


async def test_changes_of_one_bucket_are_looked_at_side_by_side_and_those_of_one_port_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as cloud:
        network, _ = await network_with_subnet(cloud)
        echo, jump = cloud.plane.echo, 0
        views = await cloud.ports.create(caller(), [PortCreate(network_id=network.id)] * PORTS)
        for name in ("one", "two"):
            for view in views:
                await cloud.ports.update(caller(), view.id, PortUpdate(name=name), None)
        now = echo._feed._now
        monkeypatch.setattr(echo._feed, "_now", lambda: now() + jump)
        jump = 60_000_000
        all_, under_way, seen = asyncio.Barrier(PORTS), set[bytes](), list[bytes]()
        finish = echo.finish

        async def watched(entry: Entry) -> bool:
            if entry.create:
                return await finish(entry)
            (id_,) = entry.ids
            assert id_ not in under_way
            under_way.add(id_)
            async with asyncio.timeout(10):
                await all_.wait()
            under_way.remove(id_)
            seen.append(id_)
            return await finish(entry)

        monkeypatch.setattr(echo, "finish", watched)
        await echo.turn()
        assert len(seen) == 2 * PORTS
        assert len(set(seen[:PORTS])) == PORTS
