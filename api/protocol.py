"""HTTP as uvicorn speaks it, with less work for each request.

What is answered in one turn of the loop leaves at its end: head and body of an answer together, and the answers of all
connections one after the other, so that a client of many is woken once. A whole answer is written in one step, and a
connection has one timer for as long as it lives; uvicorn's own are made anew for every answer. Given to uvicorn by
`api.app`; `api.answers` and `api.edge` use what it offers.
"""

import asyncio
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.answers import STRAIGHT


class Outbox:
    """The transports of one loop that have something to send at the end of its turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._full: list[Joining] = []

    def put(self, transport: "Joining") -> None:
        if not self._full:
            self._loop.call_soon(self._flush)
        self._full.append(transport)

    def _flush(self) -> None:
        full, self._full = self._full, []
        for transport in full:
            transport.flush()


class Joining:
    """A transport that sends what was written in one turn of the loop at its end."""

    __slots__ = ("_outbox", "_transport", "_written", "is_closing")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._written: list[bytes] = []
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._written:
            self._outbox.put(self)
        self._written.append(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        if self._written:
            data, self._written = b"".join(self._written), []
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


#: each loop's
_outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()


class Protocol(HttpToolsProtocol):
    """One connection."""

    #: when it was last answered, by the loop's clock; 0 while a request is in hand
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        outbox = _outboxes.get(self.loop) or _outboxes.setdefault(self.loop, Outbox(self.loop))
        super().connection_made(Joining(transport, outbox))  # type: ignore[arg-type]

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        offered: Any = {STRAIGHT: Straight(self.cycle)}
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


class Straight:
    """One request and its answer, each in one step, if nothing is special about it; else it goes the usual way.

    It does not hold what holds it: a request that is over is freed at once, and leaves no work to the collector.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = ref(cycle)

    def body(self) -> bytes | None:
        """The request's, if all of it is here."""
        cycle = self._cycle()
        if cycle is None or cycle.disconnected or cycle.response_complete:
            return None
        if cycle.more_body or cycle.waiting_for_100_continue:
            return None
        cycle.flow.resume_reading()
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write it; False: nothing was written. The headers must say how long the body is."""
        cycle = self._cycle()
        if cycle is None:
            return False
        usual = cycle.disconnected or cycle.flow.write_paused or cycle.response_started
        if usual or not cycle.keep_alive or cycle.access_log or cycle.scope["method"] == "HEAD":
            return False
        given = [*cycle.default_headers, *headers]
        head = STATUS_LINE[status] + b"\r\n".join(map(b": ".join, given)) + b"\r\n\r\n"
        lines = len(given) + 2
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            return False  # whoever looks at each header says what is wrong with it
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(head + body)
        cycle.message_event.set()
        cycle.on_response()
        return True
