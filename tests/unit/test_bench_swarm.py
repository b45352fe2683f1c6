"""The simulated hosts' client reads what a NATS server writes, however the bytes are cut."""

import asyncio
from typing import Any, cast

import pytest

from bench.swarm import SimulatedHost, Wire
from planes.goalstate import codec
from planes.goalstate.messages import Ack, Goal, Neighbour, Ok, Port
from planes.goalstate.subjects import Subjects

PORT = Port(b"p" * 16, 7, b"n" * 16, b"\xfa\x16\x3e\0\0\1", (b"\x0a\0\0\5",), 1, ())


class Pipe:
    """Takes what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def wire() -> tuple[Wire, Pipe]:
    pipe, made = Pipe(), Wire()
    made.connection_made(cast(asyncio.BaseTransport, pipe))
    pipe.written = b""
    return made, pipe


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_messages_however_they_are_cut(size: int) -> None:
    made, pipe = wire()
    heard: list[bytes] = []
    made.subscribe("a.b", heard.append)
    stream = (
        b'INFO {"x":1}\r\nMSG a.b 1 5\r\nhe\r\no\r\nPING\r\n+OK\r\n'
        b"HMSG a.b 1 reply 12 15\r\nNATS/1.0\r\n\r\nabc\r\nMSG a.b 1 0\r\n\r\n-ERR 'no'\r\n"
    )
    for start in range(0, len(stream), size):
        made.data_received(stream[start : start + size])
    assert heard == [b"he\r\no", b"abc", b""]
    assert pipe.written == b"SUB a.b 1\r\nPONG\r\n"
    assert made.counters == {"received": 3, "errors": 1}


async def test_a_request_gets_its_own_answer() -> None:
    made, pipe = wire()
    asked = [asyncio.create_task(made.request("x", body)) for body in (b"1", b"22")]
    await asyncio.sleep(0)
    inboxes = [line.split()[2] for line in pipe.written.split(b"\r\n") if line.startswith(b"PUB x")]
    for inbox, answer in zip(reversed(inboxes), (b"second", b"first"), strict=True):
        made.data_received(b"MSG %b 0 %d\r\n%b\r\n" % (inbox, len(answer), answer))
    assert await asyncio.gather(*asked) == [b"first", b"second"]


def test_a_port_is_acked_until_the_ack_is_confirmed() -> None:
    made, pipe = wire()
    host = SimulatedHost("s1", b"\xc6\x12\0\1", made, Subjects(), epoch=3)
    host.listen()
    neighbour = Neighbour(b"n" * 16, b"\x0a\0\0\6", 8, "s2")
    goal: Any = codec.encode(Goal((PORT, neighbour), (), "c1", 99), "c1", 3)
    pipe.written = b""
    made.data_received(b"MSG alcor.goal.host.s1 1 %d\r\n%b\r\n" % (len(goal), goal))
    head, body = pipe.written.split(b"\r\n", 1)
    _, subject, inbox, size = head.split()
    assert subject == b"alcor.ack.s1.c1"
    envelope, ack = codec.decode(body[: int(size)], Ack)
    assert (envelope.sender, envelope.epoch) == ("s1", 3)
    assert [(item.id, item.rev, item.sent, item.error) for item in ack.items] == [(PORT.id, 7, 99, "")]
    assert (host.acked, host.unacked) == (0, 1)
    reply = codec.encode(Ok(3), "c1")
    made.data_received(b"MSG %b 0 %d\r\n%b\r\n" % (inbox, len(reply), reply))
    assert (host.acked, host.unacked) == (1, 0)
