"""Thousands of simulated hosts on few connections: NATS in the raw, the southbound contract by its own codec.

Used by the parts that ask how control bears many hosts. A simulated host registers, beats, subscribes, pulls and acks
as a real one does, and has no kernel: what it is told, it acks at once. No client library and no task per host; a
connection carries a hundred hosts, each with its own subscriptions, so the server delivers to each of them.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

from msgspec import Struct

from planes.bus.protocol import NoReply
from planes.goalstate import codec
from planes.goalstate.messages import Ack, Applied, Beat, Goal, Ok, Page, Port, Pull, Register, Registered, What
from planes.goalstate.subjects import Subjects

#: hosts on one connection
TOGETHER = 100
BEAT_EVERY = 3.0
#: seconds for an answer, and for a host to be let in
ANSWER, PATIENCE = 5.0, 120.0

Handler = Callable[[bytes], None]


class Wire(asyncio.Protocol):
    """One connection, many subscriptions: `MSG` and `HMSG` in, `PUB` and `SUB` out."""

    def __init__(self) -> None:
        self._buffer = b""
        self._handlers: dict[bytes, Handler] = {}
        self._answers: dict[bytes, Handler] = {}
        self._pongs: list[asyncio.Future[None]] = []
        self._last = 0
        self._inbox = f"_INBOX.swarm{random.getrandbits(64):x}."
        self._transport: asyncio.Transport | None = None
        self.counters = {"received": 0, "errors": 0}

    # -- what goes out ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"name":"swarm"}\r\n')
        self.write(f"SUB {self._inbox}* 0\r\n".encode())
        self._handlers[b"0"] = lambda _: None

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def subscribe(self, subject: str, handler: Handler) -> None:
        self._last += 1
        sid = str(self._last).encode()
        self._handlers[sid] = handler
        self.write(b"SUB %b %b\r\n" % (subject.encode(), sid))

    def post(self, subject: str, data: bytes, answered: Handler | None = None) -> bytes:
        """Publish; `answered` gets the reply, if one comes. Returns the reply's name, for `forget`."""
        if answered is None:
            self.write(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(data), data))
            return b""
        self._last += 1
        name = f"{self._inbox}{self._last}".encode()
        self._answers[name] = answered
        self.write(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), name, len(data), data))
        return name

    def forget(self, name: bytes) -> None:
        self._answers.pop(name, None)

    async def request(self, subject: str, data: bytes) -> bytes:
        """Raises NoReply."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        name = self.post(subject, data, lambda reply: None if future.done() else future.set_result(reply))
        try:
            async with asyncio.timeout(ANSWER):
                return await future
        except TimeoutError:
            raise NoReply(subject) from None
        finally:
            self.forget(name)

    async def barrier(self) -> None:
        """Return when the server has seen all that was written before."""
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self.write(b"PING\r\n")
        async with asyncio.timeout(60):
            await pong

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # -- what comes in ----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at = 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            line = buffer[at:end]
            if line.startswith((b"MSG ", b"HMSG ")):
                words = line.split(b" ")
                size = int(words[-1])
                if len(buffer) < end + size + 4:
                    break
                head = int(words[-2]) if words[0] == b"HMSG" else 0
                self._deliver(words, buffer[end + 2 + head : end + 2 + size])
                at = end + size + 4
                continue
            at = end + 2
            if line == b"PING":
                self.write(b"PONG\r\n")
            elif line == b"PONG" and self._pongs:
                self._pongs.pop(0).set_result(None)
            elif line.startswith(b"-ERR"):
                self.counters["errors"] += 1
        self._buffer = buffer[at:]

    def _deliver(self, words: Sequence[bytes], body: bytes) -> None:
        self.counters["received"] += 1
        if words[2] == b"0":
            answered = self._answers.pop(words[1], None)
            if answered is not None:
                answered(body)
            return
        self._handlers[words[2]](body)


class SimulatedHost(Struct):
    """`goals` hears each message on the subjects that the host follows."""

    name: str
    vtep: bytes
    wire: Wire
    subjects: Subjects
    goals: Callable[[bytes], None] | None = None
    epoch: int = 0
    acked: int = 0
    unacked: int = 0
    put_off: int = 0
    beats: int = 0
    answered: int = 0
    beat_body: bytes = b""

    async def register(self) -> None:
        """Until control lets it in; `put_off` counts how often it was asked to come again."""
        asked = Register(self.name, f"machine-{self.name}", self.vtep, attempt=random.randbytes(8))
        data = codec.encode(asked, self.name)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                reply = await self.wire.request(self.subjects.pull(self.name, "register"), data)
            except NoReply:
                continue
            given = codec.decode(reply, Registered)[1]
            if given.refused:
                raise SystemExit(f"bench: host {self.name} was refused: {given.refused}")
            if given.epoch:
                self.epoch = given.epoch
                self.beat_body = codec.encode(Beat(True, 1, 1, _COUNTERS), self.name, self.epoch)
                return
            self.put_off += 1
            await asyncio.sleep(given.again * random.uniform(0.5, 1.5))
        raise SystemExit(f"bench: host {self.name} was not let in within {PATIENCE:g} s")

    def listen(self) -> None:
        """Its own subject: every port that it is told of is acked at once."""
        self.wire.subscribe(self.subjects.host(self.name), self._own)

    def follow(self, subject: str) -> None:
        self.wire.subscribe(subject, self._heard)

    def beat(self) -> None:
        self.beats += 1
        self.wire.post(self.subjects.beat(self.name), self.beat_body, self._beaten)

    async def pull(self, what: What, scope: bytes = b"") -> int:
        """A whole scope, page by page; how many objects."""
        token, count = b"", 0
        subject = self.subjects.pull(self.name, what.name.lower())
        while True:
            asked = codec.encode(Pull(what, scope, token=token), self.name, self.epoch)
            try:
                page = codec.decode(await self.wire.request(subject, asked), Page)[1]
            except NoReply:
                continue
            if page.denied:
                raise SystemExit(f"bench: host {self.name} was denied: {page.denied}")
            if page.again:
                self.put_off += 1
                await asyncio.sleep(page.again * random.uniform(0.5, 1.5))
                continue
            count += len(page.objects)
            token = page.token
            if not token:
                return count

    def _beaten(self, reply: bytes) -> None:
        self.answered += 1

    def _heard(self, data: bytes) -> None:
        if self.goals is not None:
            self.goals(data)

    def _own(self, data: bytes) -> None:
        goal = codec.decode(data, Goal)[1]
        now = time.time_ns() // 1000
        items = tuple(
            Applied(item.key[0], item.key[1], item.id, item.rev, "", item.change, goal.sent, now, now, now)
            for item in goal.objects
            if isinstance(item, Port)
        )
        self.unacked += len(items)
        self._ack(goal.author or "any", items)

    def _ack(self, author: str, items: tuple[Applied, ...]) -> None:
        def answered(reply: bytes) -> None:
            again = codec.decode(reply, Ok)[1].again
            if again:
                self.put_off += 1
                loop = asyncio.get_running_loop()
                loop.call_later(again * random.uniform(0.5, 1.5), self._ack, author, items)
                return
            self.acked += len(items)
            self.unacked -= len(items)

        data = codec.encode(Ack(items), self.name, self.epoch)
        self.wire.post(self.subjects.ack(self.name, author), data, answered)


#: as many as a real agent sends
_COUNTERS = {f"counter_{number}": number for number in range(20)}


class Swarm:
    """All simulated hosts of one broker."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("nats://").partition(":")
        self._where = host, int(port)
        self._beating: asyncio.Task[None] | None = None
        self.subjects = Subjects()
        self.hosts: list[SimulatedHost] = []
        self.wires: list[Wire] = []

    async def grow(self, size: int) -> list[SimulatedHost]:
        """More hosts, registered and listening, until there are `size`; the new ones."""
        new = []
        while len(self.hosts) < size:
            number = len(self.hosts)
            if number % TOGETHER == 0:
                _, wire = await asyncio.get_running_loop().create_connection(Wire, *self._where)
                self.wires.append(wire)
            vtep = (0xC612_0000 + number + 1).to_bytes(4, "big")
            new.append(SimulatedHost(f"s{number}", vtep, self.wires[-1], self.subjects))
            self.hosts.append(new[-1])
        await each(new, lambda host: host.register(), 1024)
        for host in new:
            host.listen()
        await self.barrier()
        return new

    async def barrier(self) -> None:
        await asyncio.gather(*(wire.barrier() for wire in self.wires))

    def start_beats(self) -> None:
        """Every host beats every 3 s, evenly spread."""
        if self._beating is None:
            self._beating = asyncio.create_task(self._beat(), name="beats")

    async def stop_beats(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None

    async def _beat(self) -> None:
        begun, done = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - begun) / BEAT_EVERY * len(self.hosts))
            for number in range(done, due):
                self.hosts[number % len(self.hosts)].beat()
            done = max(done, due)
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for wire in self.wires:
            wire.close()

    def total(self, field: str) -> int:
        return sum(getattr(host, field) for host in self.hosts)


async def each(items: Iterable[Any], work: Callable[[Any], Awaitable[object]], at_once: int) -> None:
    """`work` for every item, so many at a time."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(worker() for _ in range(at_once)))
