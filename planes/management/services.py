"""The operations that the REST edge offers, resource by resource, as one protocol; the modules beside implement it.

Called by `api`. Every method raises `planes.model.errors` only. Ids come as text and are parsed before they touch a
key.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from planes.control.watch import Watcher
from planes.management.caller import Caller
from planes.model.query import Listing, Query


class Resource(Protocol):
    """One collection: networks, subnets, ports, security groups, rules, hosts."""

    async def create(self, who: Caller, wanted: Sequence[Any]) -> list[Any]:
        """All of `wanted` (request Structs), or none of them; returns their views, in order."""

    async def get(self, who: Caller, id: str) -> Any:
        """Raises NotFound, also for what the caller may not see."""

    async def list(self, who: Caller, query: Query) -> Listing: ...

    async def update(self, who: Caller, id: str, wanted: Any, if_match: int | None) -> Any:
        """`if_match`: the revision that must still be current, else PreconditionFailed."""

    async def delete(self, who: Caller, id: str, if_match: int | None) -> Any:
        """Returns what was stored of it."""


class Ports(Resource, Protocol):
    async def settled(self, who: Caller, views: Sequence[Any], seconds: float) -> Sequence[Any]:
        """The same ports when their hosts have acked or failed, at most `seconds` later, as they then stand."""

    async def gone(self, who: Caller, id: str, seconds: float) -> None:
        """Return when the host of a just deleted port has let go of it, at most `seconds` later."""


class Traces(Protocol):
    """Provisioning traces and latencies."""

    async def change(self, who: Caller, id: str) -> Any:
        """ChangeView of a request id (with or without `req-`) or of a port's last change; raises NotFound."""

    def changes(self, who: Caller, wanted: Any) -> list[Any]:
        """ChangeViews of what this instance remembers, the newest first; `wanted`: traces.Wanted."""

    def watching(self, who: Caller) -> AbstractAsyncContextManager[Watcher]:
        """A stream of what the caller may see; raises Unavailable."""

    def latency(self) -> dict[str, Any]:
        """{"since_start": {stage: {count, p50_us, p90_us, p99_us, max_us}}, "last_minutes": …}; `total`: the whole."""


class Health(Protocol):
    async def ready(self) -> list[str]:
        """Why this instance cannot serve now; empty when it can."""


class Cloud(Protocol):
    """Everything behind the REST edge."""

    @property
    def networks(self) -> Resource: ...
    @property
    def subnets(self) -> Resource: ...
    @property
    def ports(self) -> Ports: ...
    @property
    def groups(self) -> Resource: ...
    @property
    def rules(self) -> Resource: ...
    @property
    def hosts(self) -> Resource: ...
    @property
    def traces(self) -> Traces: ...
    @property
    def health(self) -> Health: ...
