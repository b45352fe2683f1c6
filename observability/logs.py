"""Logging of a process: text for people, one JSON object per line for machines. Called once, by a composition root.

Messages are plain sentences; an exception's trace goes into the same record. Secrets never reach a log: who logs a URL
masks it first.
"""

import logging
import sys
import time
from typing import TextIO

import msgspec

_encode = msgspec.json.Encoder().encode


class JsonFormatter(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return _encode(line).decode()


def set_up(form: str = "", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logging to a stream (standard error). `form`: json, text, or empty: text on a terminal, else json."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    if form == "json" or (not form and not stream.isatty()):
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
