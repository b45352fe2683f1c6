"""What is written to a connection in one turn of the loop leaves at once, in order, and before its end."""

import asyncio
from typing import Any, cast

from api.protocol import Joining


class Wire:
    """What arrives at a transport."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.heard.append(data)

    def close(self) -> None:
        self.heard.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.heard


async def test_head_and_body_are_one_write() -> None:
    wire = Wire()
    joining = Joining(cast(Any, wire), asyncio.get_running_loop())
    joining.write(b"head ")
    joining.write(b"body")
    assert wire.heard == []
    await asyncio.sleep(0)
    assert wire.heard == [b"head body"]
    joining.write(b"more")
    await asyncio.sleep(0)
    assert wire.heard == [b"head body", b"more"]


async def test_nothing_is_lost_at_the_end() -> None:
    wire = Wire()
    joining = Joining(cast(Any, wire), asyncio.get_running_loop())
    joining.write(b"last words")
    joining.close()
    assert wire.heard == [b"last words", b"closed"]
    assert joining.is_closing()
    await asyncio.sleep(0)
    assert wire.heard == [b"last words", b"closed"]
