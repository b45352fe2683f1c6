"""What every bus must do, asked of the one in memory and of NATS with a real server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.bus.nats.bus import NatsBus
from planes.bus.protocol import Bus, Disconnected, Event, Incoming, NoReply
from tests.support.clock import until
from tests.support.nats import NatsServer


class Rig:
    """A broker that can be stopped, and clients of it."""

    def __init__(self, make: Callable[[str], Bus], stop: Callable[[], None], start: Callable[[], Awaitable[None]]):
        self._make = make
        self.stop = stop
        self.start = start
        self.buses: list[Bus] = []

    async def client(self, name: str) -> Bus:
        bus = self._make(name)
        self.buses.append(bus)
        await bus.connect()
        return bus


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.server)])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    if request.param == "memory":
        broker = MemoryBroker()

        async def start() -> None:
            broker.start()

        made = Rig(lambda name: MemoryBus(broker, name), broker.stop, start)
        yield made
    else:
        server = NatsServer()
        await server.start()
        made = Rig(lambda name: NatsBus(server.url, name), server.kill, server.start)
        yield made
        server.kill()
    for bus in made.buses:
        await bus.close()


async def test_delivers_subject_data_and_trace_to_whoever_listens(rig: Rig) -> None:
    a, b = await rig.client("a"), await rig.client("b")
    heard: list[Incoming] = []
    await b.subscribe("x.*.y", heard.append)
    await b.subscribe("z.>", heard.append)
    await b.flush()
    a.publish("x.1.y", b"one", "00-aa-bb-01")
    a.publish("z.1.2", b"two")
    a.publish("x.1", b"nobody listens")
    await a.flush()
    await until(lambda: len(heard) == 2, 5)
    assert sorted(heard, key=lambda each: each.subject) == [
        Incoming("x.1.y", b"one", "", "00-aa-bb-01"),
        Incoming("z.1.2", b"two"),
    ]


async def test_keeps_the_order_of_one_publisher(rig: Rig) -> None:
    a, b = await rig.client("a"), await rig.client("b")
    heard: list[bytes] = []
    await b.subscribe("s", lambda each: heard.append(each.data))
    await b.flush()
    sent = [str(n).encode() for n in range(2000)]
    for data in sent:
        a.publish("s", data)
    await until(lambda: len(heard) == 2000, 5)
    assert heard == sent


async def test_flush_covers_subscriptions_made_just_before(rig: Rig) -> None:
    a, b = await rig.client("a"), await rig.client("b")
    heard: list[bytes] = []
    for n in range(200):
        await b.subscribe(f"s.{n}", lambda each: heard.append(each.data))
        await b.flush()
        a.publish(f"s.{n}", b"")
    await a.flush()
    await until(lambda: len(heard) == 200, 5)


async def test_queue_group_gets_each_message_once(rig: Rig) -> None:
    a, b, c = await rig.client("a"), await rig.client("b"), await rig.client("c")
    heard: list[bytes] = []
    for bus in (b, c):
        await bus.subscribe("work", lambda each: heard.append(each.data), queue="all")
        await bus.flush()
    for n in range(50):
        a.publish("work", str(n).encode())
    await a.flush()
    await until(lambda: len(heard) == 50, 5)
    await asyncio.sleep(0.05)
    assert sorted(heard, key=int) == [str(n).encode() for n in range(50)]


async def test_request_gets_the_answer(rig: Rig) -> None:
    a, b = await rig.client("a"), await rig.client("b")
    await b.subscribe("ask", lambda each: b.publish(each.reply, each.data * 2), queue="all")
    await b.flush()
    answers = await asyncio.gather(*(a.request("ask", str(n).encode(), 2.0) for n in range(20)))
    assert answers == [str(n).encode() * 2 for n in range(20)]


async def test_request_without_listener_fails_at_once_and_without_answer_in_time(rig: Rig) -> None:
    a, b = await rig.client("a"), await rig.client("b")
    with pytest.raises(NoReply):
        await asyncio.wait_for(a.request("nobody", b"", 30.0), 5)
    await b.subscribe("mute", lambda each: None)
    await b.flush()
    with pytest.raises(NoReply):
        await a.request("mute", b"", 0.05)
    await a.flush()


async def test_a_handler_that_raises_does_not_end_its_subscription(rig: Rig) -> None:
    a, b = await rig.client("a"), await rig.client("b")
    heard: list[bytes] = []

    def handler(each: Incoming) -> None:
        heard.append(each.data)
        raise RuntimeError("a broken handler")

    await b.subscribe("s", handler)
    await b.flush()
    a.publish("s", b"1")
    a.publish("s", b"2")
    await until(lambda: len(heard) == 2, 5)


async def test_unsubscribe_ends_delivery(rig: Rig) -> None:
    a, b = await rig.client("a"), await rig.client("b")
    heard: list[bytes] = []
    subscription = await b.subscribe("s", lambda each: heard.append(each.data))
    await b.flush()
    a.publish("s", b"1")
    await until(lambda: len(heard) == 1, 5)
    await subscription.unsubscribe()
    await b.flush()
    a.publish("s", b"2")
    await a.flush()
    await asyncio.sleep(0.02)
    assert heard == [b"1"]


async def test_nothing_is_kept_while_disconnected_and_subscriptions_come_back(rig: Rig) -> None:
    a, b = await rig.client("a"), await rig.client("b")
    heard: list[bytes] = []
    events: list[Event] = []
    a.listen(events.append)
    await b.subscribe("s", lambda each: heard.append(each.data))
    await b.flush()
    rig.stop()
    await until(lambda: not a.connected and not b.connected, 5)
    with pytest.raises(Disconnected):
        a.publish("s", b"lost")
    with pytest.raises(Disconnected):
        await a.request("s", b"lost", 0.1)
    with pytest.raises(Disconnected):
        await a.flush()
    await rig.start()
    began = time.monotonic()
    await until(lambda: a.connected and b.connected, 5)
    assert time.monotonic() - began < 2.0
    a.publish("s", b"after")
    await until(lambda: bool(heard), 5)
    await asyncio.sleep(0.05)
    assert heard == [b"after"]
    names = [event.name for event in events if event.name not in ("error", "slow")]
    assert names == ["disconnected", "reconnected"]


async def test_nats_that_never_began_to_connect_can_be_closed() -> None:
    bus = NatsBus("nats://127.0.0.1:1", "a")
    await bus.close()
    assert not bus.connected


@pytest.mark.server
async def test_nats_survives_an_error_of_the_server_that_closes_the_connection() -> None:
    server = NatsServer()
    await server.start()
    try:
        bus = NatsBus(server.url, "a")
        await bus.connect()
        events: list[str] = []
        bus.listen(lambda event: events.append(event.name))
        heard: list[bytes] = []
        await bus.subscribe("s", lambda each: heard.append(each.data))
        assert bus._client._transport is not None
        bus._client._transport.write(b"NONSENSE\r\n")
        await until(lambda: "reconnected" in events, 5)
        bus.publish("s", b"1")
        await until(lambda: heard == [b"1"], 5)
        await bus.close()
    finally:
        server.kill()


@pytest.mark.server
async def test_nats_connects_once_a_server_is_there() -> None:
    server = NatsServer()
    bus = NatsBus(server.url, "a")
    waiting = asyncio.create_task(bus.connect())
    await asyncio.sleep(0.2)
    with pytest.raises(Disconnected):
        bus.publish("s", b"")
    try:
        await server.start()
        await asyncio.wait_for(waiting, 3)
        bus.publish("s", b"")
        await bus.close()
    finally:
        server.kill()


@pytest.mark.server
async def test_nats_publish_costs_little() -> None:
    server = NatsServer()
    await server.start()
    try:
        bus = NatsBus(server.url, "a")
        await bus.connect()
        best = min([_cost(bus) for _ in range(5)])
        await bus.flush()
        await bus.close()
        assert best < 60e-6, f"{best * 1e6:.1f} µs CPU per message"
    finally:
        server.kill()


def _cost(bus: NatsBus) -> float:
    began = time.process_time()
    for _ in range(2000):
        bus.publish("s", b"x" * 300, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    return (time.process_time() - began) / 2000
