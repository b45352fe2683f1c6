"""An agent's own spans: whose trace they are in, which are exported, and that kernel transactions are shown once."""

from collections.abc import Iterator, Sequence

import pytest

from agent.core.instructions import Program, Request, Traced
from agent.tracing import SHOWN, Tracer
from observability.export import Exporter
from observability.spans import SLOW, Span
from planes.data.driver import NetworkSpec, Transaction

FIRST, SECOND = (f"00-{digit * 32}-{digit * 16}-01" for digit in "ab")
NETWORK = NetworkSpec(b"n" * 16, 100, 1450)
PROGRAM = Program((NETWORK,), ())
KERNEL = tuple(Transaction("netlink", 1, 1_000 + number, number) for number in range(20))


class Kept:
    """A collector in this process."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def __call__(self, spans: Sequence[Span]) -> bool:
        self.spans += spans
        return True

    def close(self) -> None: ...


class Host:
    """A tracer, and what it has exported."""

    def __init__(self, ratio: float) -> None:
        self._kept = Kept()
        self.tracer = Tracer(Exporter(self._kept), "h1", ratio)

    def spans(self) -> list[Span]:
        self.tracer.close()
        return sorted(self._kept.spans, key=lambda span: (span.trace, span.name, span.start))

    def programmed(self, errors: dict[tuple[str, bytes, bytes], str] | None = None, took: int = 50) -> None:
        self.tracer.programmed(PROGRAM, errors or {}, 1_000, 1_000 + took, KERNEL)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host(0.0)
    yield host
    host.tracer.close()


def answer(trace: str, started: int = 1_000) -> Traced:
    return Traced(trace, 800, 900, started, 1_050, 1, "")


def test_one_run_of_the_driver_for_two_traces_shows_its_transactions_in_one(host: Host) -> None:
    host.programmed()
    host.tracer.answered(answer(FIRST))
    host.tracer.answered(answer(SECOND))
    host.tracer.settled()
    spans = host.spans()
    first, second = (
        {span.name: span for span in spans if span.trace == trace.split("-")[1]} for trace in (FIRST, SECOND)
    )
    assert {name: span.parent for name, span in first.items()} == {
        "program": "a" * 16,
        "receive": "a" * 16,
        "netlink": first["program"].id,
    }
    assert second.keys() == {"program", "receive"}
    assert second["program"].links == (first["program"].context,)
    assert (first["receive"].start, first["receive"].duration) == (800, 100)
    assert (first["program"].start, first["program"].duration) == (900, 150)


def test_of_many_transactions_the_longest_are_shown_in_their_order(host: Host) -> None:
    host.programmed()
    host.tracer.answered(answer(FIRST))
    shown = [span.start for span in host.spans() if span.name == "netlink"]
    assert shown == [each.start for each in KERNEL[-SHOWN:]]


def test_an_answer_some_programs_later_has_the_transactions_of_its_own(host: Host) -> None:
    """A port may wait for the policies of its groups, which another program brings."""
    host.programmed()
    host.tracer.settled()
    host.tracer.programmed(PROGRAM, {}, 2_000, 2_050, ())
    host.tracer.answered(answer(FIRST))
    host.tracer.settled()
    shown = [span.start for span in host.spans() if span.name == "netlink"]
    assert shown == [each.start for each in KERNEL[-SHOWN:]]


def test_an_answer_without_work_of_the_driver_has_no_transactions(host: Host) -> None:
    host.programmed()
    host.tracer.answered(answer(FIRST, started=77))
    assert [span.name for span in host.spans()] == ["program", "receive"]


@pytest.mark.parametrize(
    ("ratio", "errors", "took", "exported"),
    [(0, {}, 50, False), (1, {}, 50, True), (0, {NETWORK.key: "no"}, 50, True), (0, {}, SLOW, True)],
    ids=["not sampled", "sampled", "failed", "slow"],
)
def test_work_that_nobody_asked_for(
    ratio: float, errors: dict[tuple[str, bytes, bytes], str], took: int, exported: bool
) -> None:
    host = Host(ratio)
    host.programmed(errors, took)
    host.tracer.settled()
    spans = [span for span in host.spans() if span.name == "program"]
    assert [(span.parent, span.error) for span in spans] == [("", errors.get(NETWORK.key, ""))] * exported


def test_what_was_damaged_and_put_again_is_a_repair_whatever_the_ratio(host: Host) -> None:
    host.tracer.audited((), 100, 110)
    host.programmed()
    host.tracer.settled()
    host.tracer.audited([("network", NETWORK.network, b"")], 600, 650)
    host.programmed()
    host.tracer.settled()
    host.programmed()
    host.tracer.settled()
    spans = {span.name: span for span in host.spans()}
    assert spans.keys() == {"repair", "audit", "program", "netlink"}
    assert (spans["repair"].start, spans["repair"].start + spans["repair"].duration) == (600, 1_050)
    assert spans["audit"].parent == spans["program"].parent == spans["repair"].id


@pytest.mark.parametrize(
    ("kind", "ratio", "error", "took", "exported"),
    [
        ("pull", 1, "", 5, True),
        ("pull", 0, "", 5, False),
        ("sync", 0, "no answer", 5, True),
        ("register", 0, "", SLOW, True),
        ("beat", 1, "", 5, False),
        ("ack", 1, "", 5, False),
    ],
)
def test_requests(kind: str, ratio: float, error: str, took: int, exported: bool) -> None:
    host = Host(ratio)
    request = Request((kind, 1), f"alcor.{kind}.h1", b"", 1.0)
    own = host.tracer.ask(request)
    if own is not None:
        assert own.sampled is bool(ratio)
        host.tracer.asked(request, own, 100, 100 + took, error)
    assert [(span.name, span.error) for span in host.spans()] == [(kind, error)] * exported
