"""The machine room of every kernel test, emptied whatever happens."""

from collections.abc import AsyncIterator

import pytest

from tests.kernel.support import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    try:
        yield made
    finally:
        await made.close()
