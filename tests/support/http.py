"""The real REST edge on a real cloud (SQLite, memory bus), called in process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from api.server import create_app
from planes.model.settings import Settings
from tests.support.cloud import running

ADMIN = {"X-Roles": "admin"}


class Api:
    """An HTTP client that says what it expects."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def __call__(self, method: str, path: str, body: Any = None, expect: int = 200, **more: Any) -> Any:
        """The decoded answer; AssertionError for another status."""
        if body is not None:
            more["json"] = body
        answer = await self.http.request(method, path, **more)
        assert answer.status_code == expect, answer.text
        assert answer.headers["X-Openstack-Request-Id"].startswith("req-")
        return answer.json() if answer.content else None

    async def refused(self, method: str, path: str, status: int, body: Any = None, **more: Any) -> tuple[str, str]:
        """(type, message) of the error."""
        error = (await self(method, path, body, status, **more))["NeutronError"]
        assert set(error) == {"type", "message", "detail"}
        return error["type"], error["message"]

    async def network(self, cidr: str = "10.0.0.0/24", **more: Any) -> str:
        """Id of a new network with one subnet."""
        network = (await self("POST", "/v2.0/networks", {"network": {"name": "net"}}, 201, **more))["network"]
        subnet = {"network_id": network["id"], "cidr": cidr, "ip_version": 4}
        await self("POST", "/v2.0/subnets", {"subnet": subnet}, 201, **more)
        return str(network["id"])


def client(app: Any) -> httpx.AsyncClient:
    """A client of an application in this process; failures become answers, as on a server."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test:9696")


@asynccontextmanager
async def serving(path: Path, settings: Settings | None = None) -> AsyncIterator[Api]:
    """The edge on a started cloud."""
    async with running(path) as cloud, client(create_app(cloud, settings or Settings())) as http:
        yield Api(http)
