"""Rows of one partition that come together leave together; what becomes of a request becomes of all in it."""

import asyncio

import pytest

from planes.store.cassandra.session import Line
from planes.store.cassandra.sharing import BYTES, ROW, TOGETHER, Sharing
from planes.store.protocol import Unavailable


class Server:
    """Holds each request until it is let go."""

    def __init__(self) -> None:
        self.sent: list[list[Line]] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def send(self, lines: list[Line]) -> None:
        self.sent.append(lines)
        await self.go.wait()
        if self.error:
            raise self.error


def line(n: int) -> Line:
    return ("INSERT", (n,))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_in_one_turn_or_while_a_request_is_under_way_shares_the_next() -> None:
    server = Server()
    sharing = Sharing(server.send, 4)
    first = [sharing.add("a", [line(n)]) for n in range(3)]
    await turn()
    other = sharing.add("b", [line(100)])
    await turn()
    assert server.sent == [[line(0), line(1), line(2)], [line(100)]]
    later = [sharing.add("a", [line(n), line(n)]) for n in range(3, 6)]
    await turn()
    assert len(server.sent) == 2
    assert not any(future.done() for future in (*first, other))
    server.go.set()
    await asyncio.wait([*first, other, *later])
    assert server.sent[2:] == [[line(3), line(3), line(4), line(4)], [line(5), line(5)]]
    await sharing.idle()


async def test_partitions_of_one_turn_share_a_request_as_far_as_it_holds_them() -> None:
    server = Server()
    sharing = Sharing(server.send, 100)
    first = [sharing.add(n, [line(n)]) for n in range(TOGETHER + 1)]
    large = sharing.add("large", [("INSERT", (bytes(BYTES),))])
    many = sharing.add("many", [line(n) for n in range(BYTES // ROW)])
    traces = sharing.add("traces", [line(n) for n in range(TOGETHER)], TOGETHER)
    await turn()
    assert [len(lines) for lines in server.sent] == [TOGETHER, 1, 1, BYTES // ROW, TOGETHER]
    later = [sharing.add(n, [line(n + 100)]) for n in range(2)]  # their partitions are under way
    server.go.set()
    await asyncio.wait([*first, large, many, traces, *later])
    assert server.sent[5:] == [[line(100)], [line(101)]]
    await sharing.idle()


async def test_an_error_is_everybodys_in_the_request_and_nobody_elses() -> None:
    server = Server()
    server.go.set()
    server.error = Unavailable("no")
    sharing = Sharing(server.send, 4)
    failed = [sharing.add("a", [line(n)]) for n in range(2)]
    await asyncio.wait(failed)
    for future in failed:
        with pytest.raises(Unavailable, match="no"):
            future.result()
    server.error = None
    await sharing.add("a", [line(9)])
    sharing.add("a", [line(10)]).cancel()  # who gives up takes nothing back
    await sharing.idle()
    assert server.sent[-1] == [line(10)]
