"""HTTP as uvicorn speaks it, with less work for each request: a whole answer is one write, and a connection has one
timer for as long as it lives.

Head and body written one after the other would be a system call each, and would wake the client twice; uvicorn's own
timer is made anew for every answer. Given to uvicorn by `api.app`; `api.answers` uses what it offers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.answers import WHOLE


class Protocol(HttpToolsProtocol):
    """One connection."""

    #: when it was last answered, by the loop's clock; 0 while a request is in hand
    _idle_since = 0.0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        offered: Any = {WHOLE: partial(whole, self.cycle)}
        self.scope["extensions"] = offered

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_in(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for so long; else look again when it may have been."""
        self.timeout_keep_alive_task = None
        if not self._idle_since:
            return  # the answer that is due sets the timer anew
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._look_in(left)
        else:
            super().timeout_keep_alive_handler()

    def _look_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = 0.0

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()


def whole(cycle: RequestResponseCycle, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Write an answer at once, if nothing is special about it; False: it goes the usual way, nothing is written yet.

    The headers must say how long the body is.
    """
    usual = cycle.disconnected or cycle.flow.write_paused or cycle.response_started
    if usual or not cycle.keep_alive or cycle.access_log or cycle.scope["method"] == "HEAD":
        return False
    given = [*cycle.default_headers, *headers]
    head = STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % pair for pair in given])
    lines = len(given) + 1
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        return False  # whoever looks at each header says what is wrong with it
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(b"%b\r\n%b" % (head, body))
    cycle.message_event.set()
    cycle.on_response()
    return True
