"""Lets hosts in their own namespaces reach what listens on this machine's loopback alone, such as a collector.

Used by `cli.up`. Carries bytes between one address of the cloud's underlay and one of loopback, and nothing else.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

from planes.model.settings import is_loopback

_CHUNK = 1 << 16


@contextlib.asynccontextmanager
async def reachable(url: str, address: str) -> AsyncIterator[str]:
    """A URL that means the same from `address`'s network; it works while the block lasts."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not url or not is_loopback(host):
        yield url
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            there, back = await asyncio.open_connection(host, port)
            with contextlib.closing(back):
                await asyncio.gather(_pipe(reader, back), _pipe(there, writer))

    server = await asyncio.start_server(carry, address, 0)
    try:
        yield urlunsplit(parts._replace(netloc=f"{address}:{server.sockets[0].getsockname()[1]}"))
    finally:
        server.close()


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()
