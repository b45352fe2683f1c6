"""Server-sent events: what happens, as it happens, for consoles and scripts. Made by the routes of `api.server`.

A stream is an answer without an end, so it stands outside the histograms of requests. It ends when the client goes or
when the process is asked to end. What must never happen: that a client which does not read holds anything but itself.
"""

import asyncio
from contextlib import AsyncExitStack

from litestar.types import Receive, Scope, Send

from api.answers import encode
from api.edge import Call
from observability.stages import request_id
from planes.control.watch import Told, Watcher
from planes.management.services import Traces
from planes.management.traces import told_views
from planes.model.views import ChangeView

#: seconds between signs of life when nothing happens; proxies end what is silent
PULSE = 10.0
#: seconds that a client may take to read; then it is gone
PATIENCE = 30.0


async def open_stream(traces: Traces, call: Call) -> "Stream":
    """A stream that has begun to listen. Raises Unavailable."""
    stack = AsyncExitStack()
    watcher = await stack.enter_async_context(traces.watching(call.who))
    return Stream(watcher, stack, call.id)


class Stream:
    """An ASGI application: the answer to one request."""

    status = 200

    def __init__(self, watcher: Watcher, stack: AsyncExitStack, id_: bytes) -> None:
        self._watcher = watcher
        self._stack = stack
        self._id = id_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            headers = [
                (b"x-openstack-request-id", request_id(self._id).encode()),
                (b"content-type", b"text/event-stream"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            gone = asyncio.create_task(_gone(receive, self._watcher))
            try:
                await self._feed(send)
            finally:
                gone.cancel()

    async def _feed(self, send: Send) -> None:
        body = b": welcome\n\n"
        while True:
            async with asyncio.timeout(PATIENCE):
                await send({"type": "http.response.body", "body": body, "more_body": not self._watcher.closed})
            if self._watcher.closed:
                return
            told, missed = await self._watcher.next(PULSE)
            body = written(told, missed) or b": alive\n\n"


async def _gone(receive: Receive, watcher: Watcher) -> None:
    """Close the watcher when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    watcher.close()


def written(told: list[Told], missed: bool) -> bytes:
    """As the lines of the stream."""
    lines = [b"event: lagged\ndata: {}\n\n"] if missed else []
    for each in told:
        for view in told_views(each):
            kind = b"event: change\n" if isinstance(view, ChangeView) else b""
            lines.append(b"%bdata: %b\n\n" % (kind, encode(view)))
    return b"".join(lines)
