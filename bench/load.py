"""A lean HTTP/1.1 load generator: N connections, one request at a time on each. Used by the parts that measure the API.

It costs a fraction of what any server here costs per request, and the same for each that it is pointed at.
"""

import asyncio
import re
import time
from collections.abc import Callable

from msgspec import Struct

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Outcome(Struct):
    """`latencies` in seconds, sorted. `refused` counts answers of 400 and more, with one of them as `example`."""

    latencies: list[float]
    seconds: float
    refused: int = 0
    example: str = ""

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """In ms."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))] * 1000


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append("Content-Type: application/json")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def drive(
    port: int, make: Callable[[int], bytes], clients: int, *, count: int = 1 << 60, seconds: float = 3600.0
) -> Outcome:
    """Send `make(0)`, `make(1)`, … from `clients` connections until `count` are answered or `seconds` are over."""
    outcome = Outcome([], 0.0)
    numbers = iter(range(count))
    begun = time.perf_counter()
    deadline = begun + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        try:
            for number in numbers:
                sent = time.perf_counter()
                if sent > deadline:
                    return
                writer.write(make(number))
                status, body = await _answer(reader)
                outcome.latencies.append(time.perf_counter() - sent)
                if status >= 400:
                    outcome.refused += 1
                    outcome.example = body[:300].decode(errors="replace")
        finally:
            writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    outcome.seconds = time.perf_counter() - begun
    outcome.latencies.sort()
    return outcome


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    found = _LENGTH.search(head)
    return int(head[9:12]), await reader.readexactly(int(found[1])) if found else b""
