"""The bridge to the Cassandra driver: an answer that comes twice, as that of a read which two servers were asked."""

import asyncio
from typing import Any, cast

from planes.store.cassandra.bridge import Bridge


class Answers:
    """A driver's session whose every request is answered by two servers."""

    def execute_async(self, statement: Any, parameters: Any, **how: Any) -> "Answers":
        return self

    has_more_pages = False

    def add_callbacks(self, good: Any, bad: Any, callback_args: Any, errback_args: Any) -> None:
        for rows in ([(1,)], [(2,)]):
            good(rows, *callback_args)


async def test_a_second_answer_is_of_no_consequence() -> None:
    bridge = Bridge(cast(Any, Answers()))
    asked = [bridge.submit("SELECT", (), "read") for _ in range(5)]
    asked[3].cancel()
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert [each if isinstance(each, BaseException) else each.rows for each in done[:3]] == [[(1,)]] * 3
    assert (await asyncio.wait_for(bridge.submit("SELECT", (), "read"), 1)).rows == [(1,)]
    await asyncio.wait_for(bridge.idle(), 1)
    assert bridge._flying == 0
