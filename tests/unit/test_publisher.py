"""Under which context objects travel when several requests' share a message, or one request's go to many hosts."""

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from observability.spans import HOSTS
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.bus.protocol import Incoming
from planes.control.publisher import Publisher
from planes.goalstate.messages import Port
from planes.goalstate.subjects import Subjects
from tests.support.clock import run

ONE, TWO = (f"00-{digit * 32}-{digit * 16}-01" for digit in "12")
QUIET = ONE[:-1] + "0"
Joined = list[tuple[str, str, str]]


def port(number: int) -> Port:
    return Port(number.to_bytes(16, "big"), 1, b"n" * 16, b"m" * 6, (), 1, ())


def published(work: Callable[[Publisher], None], seconds: float = 0.0) -> tuple[list[tuple[str, str]], Joined]:
    """What hosts got: (subject's end, context) of each message; and what was told of contexts that did not travel."""
    got: list[tuple[str, str]] = []
    joined: Joined = []

    async def main() -> None:
        bus = MemoryBus(MemoryBroker(), "c1")
        await bus.connect()

        def arrived(message: Incoming) -> None:
            got.append((message.subject.rpartition(".")[2], message.traceparent))

        await bus.subscribe("alcor.goal.>", arrived)
        publisher = Publisher(bus, Subjects("alcor"), "c1", lambda: 0, lambda host: 1)
        publisher.joined = lambda *told: joined.append(told)
        work(publisher)
        await asyncio.sleep(seconds + 0.1)
        publisher.repeat()
        await asyncio.sleep(0.1)
        await bus.close()

    run(main())
    return got, joined


def test_objects_of_two_requests_travel_under_the_first_sampled_context() -> None:
    def work(publisher: Publisher) -> None:
        publisher.host("h1", (port(1),), QUIET)
        publisher.host("h1", (port(2),), ONE)
        publisher.host("h1", (port(3),), TWO)

    assert published(work) == ([("h1", ONE)], [(TWO, "h1", ONE)])


def test_a_request_of_which_nothing_is_sampled_tells_nobody() -> None:
    assert published(lambda publisher: publisher.host("h1", (port(1),), QUIET)) == ([("h1", QUIET)], [])


def test_many_hosts_do_not_all_get_the_context() -> None:
    def work(publisher: Publisher) -> None:
        for number in range(HOSTS + 2):
            publisher.host(f"h{number}", (port(number), port(100 + number)), ONE)
            publisher.host(f"h{number}", (port(200 + number),), ONE)

    got, joined = published(work)
    assert sorted(context for _, context in got) == ["", "", *[ONE] * HOSTS]
    assert set(joined) == {(ONE, f"h{number}", "") for number in (HOSTS, HOSTS + 1)}


def test_what_is_sent_again_bears_its_context_unless_it_travelled_under_anothers() -> None:
    def work(publisher: Publisher) -> None:
        publisher.host("h1", (port(1),), ONE)
        publisher.host("h1", (port(2),), TWO)
        publisher.acked("h1", port(2).key, 1)
        publisher.host("h2", (port(3),), TWO)
        publisher.host("h2", (port(4),), ONE)
        publisher.acked("h2", port(3).key, 1)

    got, _ = published(work, seconds=1.5)
    assert got == [("h1", ONE), ("h2", TWO), ("h1", ONE), ("h2", "")]


def test_what_nobody_acks_is_said_three_times_and_what_supersedes_it_as_often() -> None:
    """An ack of an older revision ends nothing; one of a newer one does."""
    said: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        bus = MemoryBus(MemoryBroker(), "c1")
        await bus.connect()
        await bus.subscribe("alcor.goal.>", lambda m: said.append((m.subject[-2:], round(loop.time() - begun, 1))))
        publisher = Publisher(bus, Subjects("alcor"), "c1", lambda: 0, lambda host: 1)
        begun = loop.time()
        publisher.host("h1", (port(1),))
        publisher.host("h2", (port(2),))
        publisher.host("h3", (port(3),))
        publisher.acked("h2", port(2).key, 0)
        publisher.acked("h3", port(3).key, 2)
        for tick in range(24):
            if tick == 6:  # after its first repetition
                publisher.host("h2", (replace(port(2), rev=2),))
                publisher.host("h1", (port(1),))  # nothing new
            await asyncio.sleep(0.25)
            publisher.repeat()
        assert publisher.waiting == (0, 0)
        await bus.close()

    run(main())
    times = {host: [at for name, at in said if name == host] for host in ("h1", "h2", "h3")}
    assert times["h1"] == [0.0, 1.0, 1.5, 3.0]
    assert times["h2"] == [0.0, 1.0, 1.5, 2.5, 4.5]
    assert times["h3"] == [0.0]
