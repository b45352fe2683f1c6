"""Reading many ports at once: each that is asked for and there, whatever else its bucket holds, by few reads."""

import random
from pathlib import Path
from typing import Any

import pytest

from planes.control import reads
from planes.model.ids import parse
from planes.model.requests import PortCreate
from tests.support.cloud import caller, network_with_subnet, running


async def test_ports_of_a_bucket_are_read_together_and_none_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as cloud:
        network, _ = await network_with_subnet(cloud, "10.0.0.0/16")
        made = [
            parse(view.id)
            for _ in range(5)
            for view in await cloud.ports.create(caller(), [PortCreate(network_id=network.id)] * 60)
        ]
        store, count = cloud.plane.store, 0
        read = store.read

        async def counted(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            return await read(*args, **more)

        monkeypatch.setattr(store, "read", counted)
        assert set(await reads.ports(store, made)) == set(made)
        assert count == 2  # 200 at a time
        rng = random.Random(1)
        for size in (0, 1, 2, 30, 150, 299):
            wanted = rng.sample(made, size)
            absent = [parse(str(n).zfill(8) + wanted[0].hex()[8:]) for n in range(3)] if wanted else []
            assert set(await reads.ports(store, wanted + absent)) == set(wanted)
