"""Logging: one JSON object per line, levels per module, a line per change, and no passwords."""

import io
import logging
import threading
from collections.abc import Iterator

import msgspec
import pytest
from msgspec import Struct

from observability import logs
from observability.stages import Stage


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, lines = list(root.handlers), root.level, logs._lines
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("a", "a.b", "changes"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logs._lines = lines


def test_json_has_one_object_per_record() -> None:
    stream = io.StringIO()
    logs.set_up("json", "warning", stream)
    logger = logging.getLogger("alcor.test")
    logger.info("not shown")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it failed for %s", "h1")
    (line,) = stream.getvalue().splitlines()
    found = msgspec.json.decode(line)
    assert (found["level"], found["logger"], found["message"]) == ("error", "alcor.test", "it failed for h1")
    assert "ValueError: two\nlines" in found["trace"]


def test_a_stream_that_is_no_terminal_gets_json_unless_text_is_asked() -> None:
    stream = io.StringIO()
    logs.set_up("", "info", stream)
    logging.getLogger("x").info("a")
    assert stream.getvalue().startswith("{")
    stream = io.StringIO()
    logs.set_up("text", "info", stream)
    logging.getLogger("x").info("a")
    assert stream.getvalue().endswith("INFO    x: a\n")


def test_a_record_carries_the_ids_that_it_is_given() -> None:
    stream = io.StringIO()
    logs.set_up("json", "info", stream)
    logging.getLogger("x").warning("a", extra={"request_id": "req-1", "trace_id": "ab", "project": "", "else": "no"})
    found = msgspec.json.decode(stream.getvalue())
    assert (found["request_id"], found["trace_id"]) == ("req-1", "ab")
    assert not found.keys() & {"project", "else"}


def test_modules_have_levels_of_their_own() -> None:
    stream = io.StringIO()
    logs.set_up("text", "warning", stream, {"a": "debug", "a.b": "error"})
    for name in ("a", "a.c", "a.b", "other"):
        logging.getLogger(name).info("from %s", name)
    assert [line.rsplit(" ", 1)[1] for line in stream.getvalue().splitlines()] == ["a", "a.c"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_passwords_of_urls_are_masked_whoever_logs_them(form: str) -> None:
    stream = io.StringIO()
    logs.set_up(form, "info", stream)
    try:
        raise ValueError("cannot reach nats://bob:s3cret@bus:4222")
    except ValueError:
        logging.getLogger("x").exception("POST https://u:s3cret@collector/v1/traces: %s", "mail@example.org")
    assert "s3cret" not in stream.getvalue()
    assert "https://u:***@collector" in stream.getvalue()
    assert "nats://bob:***@bus" in stream.getvalue()
    assert "mail@example.org" in stream.getvalue()


class Done(Struct):
    """A finished change."""

    id: bytes = b"\1" * 16
    resource: str = "create port"
    status: str = "ACTIVE"
    stages: tuple[Stage, ...] = (Stage("accept", 0, 1), Stage("program", 1, 1, "h1"))
    total: int = 4100
    traceparent: str = f"00-{'ab' * 16}-{'cd' * 8}-00"
    project: str = "blue"
    object: str = "4f"
    count: int = 1


def test_a_change_is_one_line() -> None:
    stream = io.StringIO()
    logs.set_up("json", "info", stream)
    logs.log_changes([Done()])
    assert logs._lines is not None
    logs._lines.flush()
    found = msgspec.json.decode(stream.getvalue())
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info",
        "logger": "changes",
        "message": "create port 4f ACTIVE in 4.1 ms on h1",
        "request_id": "req-01010101-0101-0101-0101-010101010101",
        "trace_id": "ab" * 16,
        "project": "blue",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Done(object="", stages=()), "create port ACTIVE in 4.1 ms"),
        (Done(count=100), "create port 4f and 99 more ACTIVE in 4.1 ms on h1"),
        (
            Done(status="ERROR", stages=tuple(Stage("program", 0, 1, f"h{n}", "no room") for n in range(5))),
            "create port 4f ERROR in 4.1 ms on h0, h1, h2 and 2 more: no room",
        ),
    ],
)
def test_what_a_change_says(change: Done, words: str) -> None:
    assert logs.sentence(change) == words


def test_no_line_is_made_when_nobody_wants_it() -> None:
    logs.set_up("json", "warning", io.StringIO())
    assert logs._lines is None
    logs.set_up("json", "info", io.StringIO(), {"changes": "warning"})
    assert logs._lines is None


def test_lines_that_wait_are_bounded_and_their_loss_is_said() -> None:
    stream = io.StringIO()
    lines = logs.ChangeLines(stream, json=False)
    lines._thread = threading.current_thread()  # which does not write
    for _ in range(logs.LINES + 5):
        lines.put([Done()])
    lines.flush()
    written = stream.getvalue().splitlines()
    assert len(written) == logs.LINES + 1
    assert written[-1].endswith("changes: 5 changes more than could be written")
