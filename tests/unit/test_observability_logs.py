"""Logging set-up: one JSON object per line, with the trace inside."""

import io
import logging
from collections.abc import Iterator

import msgspec
import pytest

from observability import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


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
