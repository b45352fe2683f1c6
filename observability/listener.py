"""`/metrics` of a process that serves nothing else: as much HTTP as a scraper speaks, and no more.

Started by the agent's composition root. Whatever comes in is bounded in size, time and number; whatever goes wrong
concerns that connection alone, and an address that cannot be had is told and gone without.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from observability import exposition
from observability.metrics import Registry

log = logging.getLogger(__name__)

#: connections at once; bytes of a request; seconds for one
MOST, LIMIT, PATIENCE = 16, 8192, 5.0


@asynccontextmanager
async def listening(registry: Registry, host: str, port: int) -> AsyncIterator[None]:
    """Serve while the block runs. Port 0: not at all."""
    if not port:
        yield
        return
    try:
        server = await asyncio.start_server(_Listener(registry).serve, host, port, limit=LIMIT)
    except OSError as error:
        log.error("no metrics on %s port %d: %s", host, port, error)
        yield
        return
    log.info("metrics on http://%s:%d/metrics", host, port)
    async with server:
        yield


class _Listener:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST:
                async with asyncio.timeout(PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head.decode("latin-1")))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a scrape broke off: %r", error)
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: str) -> bytes:
        first, *lines = head.split("\r\n")
        method, path = (*first.split(" "), "", "")[:2]
        if path.partition("?")[0] != "/metrics":
            return _response("404 Not Found", "There is only /metrics.\n")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "Only GET.\n", "Allow: GET, HEAD\r\n")
        headers = dict(line.lower().partition(":")[::2] for line in lines)
        text, kind = exposition.answer(self._registry.collect(), headers.get("accept", ""))
        return _response("200 OK", text, kind=kind, body=method == "GET")


def _response(status: str, text: str, more: str = "", kind: str = "text/plain", body: bool = True) -> bytes:
    data = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + (data if body else b"")
