"""Logging of a process: text for people, one JSON object per line for machines. Called once, by a composition root.

Messages are plain sentences; an exception's trace goes into the same record, and so do the ids that a caller hands over
by `extra` (`FIELDS`). Passwords of URLs are masked, whoever logs them. A finished change is one line, at info, of the
logger `changes`; a thread formats and writes many at once, because a call of `logging` would cost more than the marks
of a whole change.
"""

import atexit
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TextIO

import msgspec

from observability.stages import Finished, request_id

_encode = msgspec.json.Encoder().encode

#: what a record may carry besides its message
FIELDS = ("request_id", "trace_id", "project", "host")
CHANGES = "changes"
#: seconds for which lines of changes are gathered, and how many of them; more are dropped and counted
GATHER, LINES = 0.1, 20_000
_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]*(?=@)")
_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line = _line(record.created, record.levelname.lower(), record.name, record.getMessage())
        line |= {name: value for name in FIELDS if (value := getattr(record, name, ""))}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return masked(_encode(line).decode())


class TextFormatter(logging.Formatter):
    """One line per record for people; a trace follows it."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def masked(text: str) -> str:
    """The same without the passwords of URLs, whoever logged them."""
    return _PASSWORD.sub(r"\1:***", text) if "@" in text else text


def _line(at: float, level: str, logger: str, message: str) -> dict[str, Any]:
    when = f"{_second(int(at))}.{int(at % 1 * 1000):03d}Z"
    return {"time": when, "level": level, "logger": logger, "message": message}


@lru_cache(1)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


@lru_cache(1)
def _local(at: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


class ChangeLines:
    """Writes a line per finished change, in a thread that gathers them."""

    def __init__(self, stream: TextIO, json: bool) -> None:
        self._stream = stream
        self._json = json
        self._waiting: deque[tuple[float, Finished]] = deque()
        self._there = threading.Event()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def put(self, changes: Sequence[Finished]) -> None:
        if len(self._waiting) >= LINES:
            self._dropped += len(changes)
            return
        now = time.time()
        self._waiting.extend([(now, change) for change in changes])
        if not self._there.is_set():
            self._there.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log changes", daemon=True)
                self._thread.start()
                atexit.register(self.flush)

    def _run(self) -> None:
        while True:
            self._there.wait()
            time.sleep(GATHER)
            self._there.clear()
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        lines = [self._formatted(*self._waiting.popleft()) for _ in range(len(self._waiting))]
        if self._dropped:
            count, self._dropped = self._dropped, 0
            lines.append(self._shaped(time.time(), f"{count} changes more than could be written", {}))
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()

    def _formatted(self, at: float, change: Finished) -> str:
        ids = {
            "request_id": request_id(change.id),
            "trace_id": change.traceparent[3:35],
            "project": change.project,
        }
        return self._shaped(at, sentence(change), ids)

    def _shaped(self, at: float, message: str, ids: Mapping[str, str]) -> str:
        if self._json:
            line = _line(at, "info", CHANGES, message)
            for name, value in ids.items():
                if value:
                    line[name] = value
            return _encode(line).decode()
        tail = f" ({ids['request_id']})" if ids else ""
        return f"{_local(int(at))} INFO    {CHANGES}: {message}{tail}"


def sentence(change: Finished) -> str:
    """`create port 4f… ACTIVE in 4.1 ms on h1`, and why not."""
    named: dict[str, None] = {}
    error = ""
    for stage in change.stages:
        if stage.host:
            named[stage.host] = None
        error = error or stage.error
    hosts = list(named)
    which = f" {change.object}" if change.object else ""
    more = f" and {change.count - 1} more" if change.count > 1 else ""
    where = f" on {', '.join(hosts[:3])}" if hosts else ""
    others = f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
    why = f": {error}" if error else ""
    return f"{change.resource}{which}{more} {change.status} in {change.total / 1000:.1f} ms{where}{others}{why}"


_lines: ChangeLines | None = None


def log_changes(changes: Sequence[Finished]) -> None:
    """Changes have come to their end."""
    if _lines is not None:
        _lines.put(changes)


def set_up(
    form: str = "",
    level: str = "info",
    stream: TextIO | None = None,
    levels: Mapping[str, str] | None = None,
    noisy: Sequence[str] = ("httpx", "httpcore", "uvicorn.access"),
) -> None:
    """Send all logging to a stream (standard error). `form`: json, text, or empty: text on a terminal, else json.

    `levels`: other levels for loggers by name, each with all below it. `noisy`: at warning, unless named there.
    """
    global _lines
    stream = stream or sys.stderr
    json = form == "json" or (not form and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if json else TextFormatter(_TEXT, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, wanted in {**dict.fromkeys(noisy, "warning"), **(levels or {})}.items():
        logging.getLogger(name).setLevel(wanted.upper())
    _lines = ChangeLines(stream, json) if logging.getLogger(CHANGES).isEnabledFor(logging.INFO) else None
