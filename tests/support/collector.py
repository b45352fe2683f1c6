"""A real OTLP/HTTP collector, as far as metrics go, that can also be slow, refuse, or be away."""

import asyncio
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest


class MetricsCollector:
    """Keeps the last export of each service. `status`: what it answers; 0: nothing, ever."""

    def __init__(self, status: int = 200, host: str = "127.0.0.1") -> None:
        self.status = status
        self._host = host
        self.url = ""
        self.asked = 0
        #: by service name, then by metric's name
        self.taken: dict[str, dict[str, Any]] = {}
        self.resources: dict[str, dict[str, str]] = {}
        self.connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> "MetricsCollector":
        self._server = await asyncio.start_server(self._take, self._host, 0)
        self.url = f"http://{self._host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self.connections):
            writer.close()
        await self._server.wait_closed()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
                self.asked += 1
                if not self.status:
                    await reader.read()  # until the other side gives up
                    return
                if self.status == 200 and head.startswith(b"post /v1/metrics "):
                    self._keep(ExportMetricsServiceRequest.FromString(body))
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % self.status)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    def _keep(self, sent: ExportMetricsServiceRequest) -> None:
        for resource in sent.resource_metrics:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.resources[named["service.name"]] = named
            metrics = {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
            self.taken[named["service.name"]] = metrics
