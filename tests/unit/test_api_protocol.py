"""What is answered in one turn of the loop leaves at its end, in order; a connection that is idle for long is closed.

The real protocol on a real loop, on a transport that only listens.
"""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from api.answers import Answer
from api.edge import Call
from api.protocol import Joining, Outbox, Protocol
from planes.model.errors import TooLarge
from tests.support.clock import until
from tests.support.cloud import caller

ID = bytes(16)
GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


class Wire(asyncio.Transport):
    """What arrives at a transport."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []

    def write(self, data: Any) -> None:
        self.heard.append(bytes(data))

    def close(self) -> None:
        self.heard.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.heard

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def connected(answer: Callable[[], Answer], keep_alive: float = 5) -> tuple[Protocol, Wire]:
    """A connection to a server that always answers so."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer()(scope, receive, send)

    config = uvicorn.Config(app, timeout_keep_alive=keep_alive, log_config=None, access_log=False)  # type: ignore[arg-type]
    config.load()
    protocol, wire = Protocol(config, ServerState(), {}), Wire()
    protocol.connection_made(wire)
    return protocol, wire


async def answered(wire: Wire, count: int) -> list[bytes]:
    """What was written, once it is so many pieces."""
    await until(lambda: len(wire.heard) >= count)
    await asyncio.sleep(0.01)
    return wire.heard


async def test_what_is_written_in_one_turn_leaves_at_its_end() -> None:
    first, second = Wire(), Wire()
    outbox = Outbox(asyncio.get_running_loop())
    one, other = Joining(first, outbox), Joining(second, outbox)
    one.write(b"head ")
    other.write(b"whole")
    one.write(b"body")
    assert first.heard == second.heard == []
    await asyncio.sleep(0)
    assert (first.heard, second.heard) == ([b"head body"], [b"whole"])
    one.write(b"more")
    await asyncio.sleep(0)
    assert first.heard == [b"head body", b"more"]


async def test_nothing_is_lost_at_the_end() -> None:
    wire = Wire()
    joining = Joining(wire, Outbox(asyncio.get_running_loop()))
    joining.write(b"last words")
    joining.close()
    assert wire.heard == [b"last words", b"closed"]
    assert joining.is_closing()
    await asyncio.sleep(0)
    assert wire.heard == [b"last words", b"closed"]


async def test_an_answer_is_one_write() -> None:
    protocol, wire = connected(lambda: Answer(b"{}", ID, 201, [(b"allow", b"GET")]))
    protocol.data_received(GET)
    (whole,) = await answered(wire, 1)
    head, _, body = whole.partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 201 Created",
        b"x-openstack-request-id: req-00000000-0000-0000-0000-000000000000",
        b"allow: GET",
        b"content-type: application/json",
        b"content-length: 2",
    ]
    protocol.data_received(GET)
    assert await answered(wire, 2) == [whole, whole]


async def test_without_a_body() -> None:
    protocol, wire = connected(lambda: Answer(b"", ID, 204))
    protocol.data_received(GET)
    (whole,) = await answered(wire, 1)
    assert whole.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert whole.endswith(b"\r\n\r\n")
    assert b"content-" not in whole


async def test_requests_one_behind_the_other() -> None:
    bodies = iter((b"1", b"2", b"3"))
    protocol, wire = connected(lambda: Answer(next(bodies), ID))
    protocol.data_received(GET * 3)
    assert [whole[-1:] for whole in await answered(wire, 3)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "request_", [b"GET /x HTTP/1.0\r\n\r\n", b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"]
)
async def test_the_last_answer_of_a_connection(request_: bytes) -> None:
    protocol, wire = connected(lambda: Answer(b"{}", ID))
    protocol.data_received(request_)
    whole, end = await answered(wire, 2)
    assert b"connection: close\r\n" in whole
    assert whole.endswith(b"\r\n\r\n{}")
    assert end == b"closed"


async def test_head_has_no_body() -> None:
    protocol, wire = connected(lambda: Answer(b"{}", ID))
    protocol.data_received(GET.replace(b"GET", b"HEAD"))
    (head,) = await answered(wire, 1)
    assert head.endswith(b"content-length: 2\r\n\r\n")


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b"])
async def test_no_header_breaks_out(value: bytes, caplog: pytest.LogCaptureFixture) -> None:
    protocol, wire = connected(lambda: Answer(b"{}", ID, 200, [(b"location", value)]))
    protocol.data_received(GET)
    assert value not in b"".join(await answered(wire, 1))
    assert any(record.exc_info for record in caplog.records)


async def test_a_request_that_is_over_is_freed_at_once() -> None:
    """Even one of a connection that stays, by counting references: the collector has nothing to do."""
    protocol, wire = connected(lambda: Answer(b"{}", ID))
    cycles: list[Any] = []
    gc.disable()
    try:
        for n in range(3):
            protocol.data_received(GET)
            cycles.append(weakref.ref(protocol.cycle))
            await answered(wire, n + 1)
        assert [cycle() is None for cycle in cycles] == [True, True, False]
    finally:
        gc.enable()


async def test_who_is_gone_is_not_written_to() -> None:
    protocol, wire = connected(lambda: Answer(b"{}", ID))
    protocol.data_received(GET)
    protocol.connection_lost(ConnectionResetError())
    await asyncio.sleep(0.01)
    assert wire.heard == []


async def test_a_connection_that_is_idle_for_long_is_closed() -> None:
    protocol, wire = connected(lambda: Answer(b"{}", ID), keep_alive=0.1)
    for number in range(1, 5):
        protocol.data_received(GET)
        await answered(wire, number)
        await asyncio.sleep(0.05)
    assert b"closed" not in wire.heard, "it was used meanwhile"
    await until(wire.is_closing)
    assert len(wire.heard) == 5


async def test_a_request_in_hand_keeps_its_connection() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await Answer(b"{}", ID)(scope, receive, send)

    protocol, wire = connected(lambda: Answer(b"{}", ID), keep_alive=0.05)
    protocol.data_received(GET)
    await answered(wire, 1)
    protocol.app = app
    protocol.data_received(GET)
    await asyncio.sleep(0.15)
    assert len(wire.heard) == 1
    go.set()
    assert len(await answered(wire, 2)) == 2
    await until(wire.is_closing)


async def test_a_lost_connection_leaves_no_timer() -> None:
    protocol, wire = connected(lambda: Answer(b"{}", ID))
    protocol.data_received(GET)
    await answered(wire, 1)
    timer = protocol.timeout_keep_alive_task
    assert timer is not None
    assert not timer.cancelled()
    protocol.connection_lost(None)
    assert timer.cancelled()


@pytest.mark.parametrize("pieces", [1, 2, 5])
async def test_a_body_whole_or_in_pieces(pieces: int) -> None:
    heard: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append(await Call(scope, receive, {}, caller(), 10).body())
        await Answer(b"{}", ID)(scope, receive, send)

    protocol, wire = connected(lambda: Answer(b"", ID))
    protocol.app = app
    sent = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789"
    size = -(-len(sent) // pieces)
    for start in range(0, len(sent), size):
        protocol.data_received(sent[start : start + size])
        await asyncio.sleep(0.001)
    await answered(wire, 1)
    assert heard == [b"0123456789"]


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_body_that_is_too_large(pieces: int) -> None:
    refused: list[TooLarge] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await Call(scope, receive, {}, caller(), 9).body()
        except TooLarge as error:
            refused.append(error)
        await Answer(b"{}", ID, 413)(scope, receive, send)

    protocol, wire = connected(lambda: Answer(b"", ID))
    protocol.app = app
    protocol.data_received(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n")
    await asyncio.sleep(0.001 if pieces > 1 else 0)
    for start in range(0, 10, -(-10 // pieces)):
        protocol.data_received(b"0123456789"[start : start + -(-10 // pieces)])
        await asyncio.sleep(0.001)
    await answered(wire, 1)
    assert len(refused) == 1


async def test_who_asks_before_the_body_is_told_to_go_on() -> None:
    heard: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append(await Call(scope, receive, {}, caller(), 10).body())
        await Answer(b"{}", ID)(scope, receive, send)

    protocol, wire = connected(lambda: Answer(b"", ID))
    protocol.app = app
    protocol.data_received(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert (await answered(wire, 1))[0].startswith(b"HTTP/1.1 100 ")
    protocol.data_received(b"hi")
    await answered(wire, 2)
    assert heard == [b"hi"]
