"""All chance from one seed, all time from the virtual clock: for tests that must be repeatable to the last choice.

Sets of bytes and strings have an order that Python draws at its start; only with PYTHONHASHSEED is that the same again.
"""

import random
import secrets

import pytest

from observability import stages
from tests.support.clock import now_us


def from_seed(patch: pytest.MonkeyPatch, seed: int) -> None:
    """Until the patch is undone, `secrets` and every generator without a seed of its own draw from `seed`."""
    source = random.Random(seed)

    class Seeded(random.Random):
        def __init__(self, x: object = None) -> None:
            super().__init__(source.getrandbits(64) if x is None else x)  # type: ignore[arg-type]

    patch.setattr(stages, "_random", random.Random(seed))
    patch.setattr(stages, "now_us", now_us)
    patch.setattr(random, "Random", Seeded)
    patch.setattr(secrets, "randbits", source.getrandbits)
    patch.setattr(secrets, "token_bytes", source.randbytes)
    patch.setattr(secrets, "token_hex", lambda count: source.randbytes(count).hex())
