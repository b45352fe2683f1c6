"""Numbers of group sets (rule I2) under storms: two instances, far more sets than numbers, commits that take days.

Whatever they do, at every instant each port that is in the store has its own set's number, and no two sets have one.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest

from planes.control import numbers
from planes.model.errors import AlcorError
from planes.model.views import PortView
from planes.store.schema import PORTS
from tests.support import invariants
from tests.support.numbers import DAY, Two, play

SEEDS = 400 if os.environ.get("PROFILE") == "long" else 20
SETS, WORKERS, STEPS = "abcdef", 3, 25


class Storm:
    """What the workers of two instances share."""

    def __init__(self, two: Two, rng: random.Random) -> None:
        self.two = two
        self.rng = rng
        self.ports: list[PortView] = []
        self.over = False
        self.made = 0

    async def watch(self) -> None:
        """At every instant, but for those at which nothing can have happened."""
        store = self.two.store
        while not self.over:
            wrong = store._at_once(invariants.numbers(store._inner))
            assert wrong == [], wrong
            await asyncio.sleep(self.rng.choice((0.003, 0.003, 0.1, 3600)))

    async def work(self, by: int) -> None:
        rng, two = self.rng, self.two
        for _ in range(STEPS):
            try:
                await self.step(by, rng.choice(SETS))
            except AlcorError:
                pass  # no number, no such port, another was faster
            await asyncio.sleep(rng.choice((0, 0.01, 3600, 3 * DAY, 8 * DAY)))
            if rng.random() < 0.2:
                parts = two.clouds[by].plane.partitions
                for where in [where for name, where in list(parts._desks) if name == "ports"]:
                    parts.forget(PORTS, where)

    async def step(self, by: int, names: str) -> None:
        rng, two = self.rng, self.two
        what = rng.random()
        if what < 0.35:
            self.ports.append(await two.port(names, by, f"10.0.{rng.choice((0, 4, 8, 12))}.{rng.randrange(2, 250)}"))
            self.made += 1
        elif what < 0.6 and self.ports:
            await two.drop(self.ports.pop(rng.randrange(len(self.ports))), by)
        elif what < 0.75 and self.ports:
            await two.wear(rng.choice(self.ports), names, by)
        else:
            await two.look(by)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_two_sets_ever_have_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(numbers, "MAX_IDENTITY", 3)
    rng = random.Random(seed)

    async def story(two: Two) -> None:
        storm = Storm(two, rng)
        for door in two.doors:
            door.slow = lambda: rng.choice((0.1, DAY, 9 * DAY)) if rng.random() < 0.1 else 0.0
        watch = asyncio.create_task(storm.watch())
        await asyncio.gather(*(storm.work(n % 2) for n in range(2 * WORKERS)))
        storm.over = True
        await watch
        assert storm.made
        for door in two.doors:
            door.slow = lambda: 0.0
        await two.check()  # what was announced and refused leaves index rows, until the echo comes by

    play(tmp_path, story, seed=seed)
