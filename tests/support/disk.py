"""A disk that forgets, for tests that are not about disks: each step of a store on a real one waits for it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")


@contextmanager
def forgetful() -> Iterator[Path]:
    """A new directory in memory, where there is any; gone when the block is left."""
    with tempfile.TemporaryDirectory(prefix="alcor-test-", dir=_MEMORY if _MEMORY.is_dir() else None) as path:
        yield Path(path)
