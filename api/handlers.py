"""The handlers of one collection: create, list, show, update, delete. Made from the table in `api.collections`.

The hot path of the product: one decode, one call into the cloud, one encode.
"""

from typing import Any

from litestar.types import ControllerRouterHandler

from api import headers, queries
from api.answers import Answer, encode
from api.bodies import Bodies
from api.collections import Collection
from api.edge import Access, Act, Call, Edge
from planes.management.services import Resource
from planes.model.errors import Invalid, not_found
from planes.model.ids import parse
from planes.model.query import Listing


def applied(seconds: int) -> list[tuple[bytes, bytes]]:
    """The header that says that a preference was followed."""
    return [(b"preference-applied", f"wait={seconds}".encode())] if seconds else []


class Handlers:
    """One collection's operations."""

    def __init__(self, edge: Edge, collection: Collection) -> None:
        self._edge = edge
        self._c = collection
        self._bodies = Bodies(collection, edge.settings.bulk_max)
        self._service: Resource = getattr(edge.cloud, collection.service)

    async def create(self, call: Call) -> Answer:
        wanted = self._bodies.create(await call.body())
        call.who.change.mark("accept")
        views = await self._service.create(call.who, wanted.items)
        seconds = 0
        if self._c.waits and "prefer" in call.headers:
            ports = self._edge.cloud.ports
            views, seconds = await self._edge.waiting(call, lambda n: ports.settled(call.who, views, n), views)
        body = encode(views if wanted.bulk else views[0])
        return Answer(b'{"%b":%b}' % (wanted.key.encode(), body), call.id, 201, applied(seconds))

    async def list(self, call: Call) -> Answer:
        asked = queries.parse(call.query, self._c)
        listing = await self._service.list(call.who, asked.query) if asked.possible else Listing([])
        items = [queries.select(view, asked.fields) for view in listing.items] if asked.fields else listing.items
        answer: dict[str, Any] = {self._c.plural: items}
        if asked.query.limit:
            url = call.base + self._c.path
            if links := queries.links(asked, listing, url, self._c.key):
                answer[f"{self._c.plural}_links"] = links
        return Answer(encode(answer), call.id)

    async def show(self, call: Call) -> Answer:
        asked = queries.parse(call.query, self._c)
        view = await self._service.get(call.who, self._key(call))
        return self._one(queries.select(view, asked.fields), call)

    async def update(self, call: Call) -> Answer:
        key, if_match = self._key(call), headers.if_match(call.headers)
        wanted = self._bodies.update(await call.body())
        call.who.change.mark("accept")
        view = await self._service.update(call.who, key, wanted.items[0], if_match)
        seconds = 0
        if self._c.waits:
            ports = self._edge.cloud.ports
            views, seconds = await self._edge.waiting(call, lambda n: ports.settled(call.who, [view], n), [view])
            view = views[0]
        return self._one(view, call, wanted.key, seconds)

    async def delete(self, call: Call) -> Answer:
        key, if_match = self._key(call), headers.if_match(call.headers)
        call.who.change.mark("accept")
        await self._service.delete(call.who, key, if_match)
        seconds = 0
        if self._c.waits:
            ports = self._edge.cloud.ports
            _, seconds = await self._edge.waiting(call, lambda n: ports.gone(call.who, key, n), None)
        return Answer(b"", call.id, 204, applied(seconds))

    def _one(self, view: Any, call: Call, key: str = "", seconds: int = 0) -> Answer:
        name = (key or self._c.singular).encode()
        return Answer(b'{"%b":%b}' % (name, encode(view)), call.id, 200, applied(seconds))

    def _key(self, call: Call) -> str:
        """The id (or name) in the path; what cannot be one is not found, as in Neutron."""
        key = call.part("key").removesuffix(".json")
        if self._c.key == "id":
            try:
                parse(key)
            except Invalid:
                raise not_found(self._c.resource or self._c.singular, key[:80]) from None
        return key


def routes(edge: Edge, collection: Collection) -> list[ControllerRouterHandler]:
    """The route handlers of a collection."""
    do = Handlers(edge, collection)
    access = Access.OPERATORS if collection.operators else Access.TENANTS
    many, singular = collection.path, collection.singular
    all_: dict[str, tuple[str, Act]] = {
        "POST": (f"create {singular}", do.create),
        "GET": (f"list {collection.plural}", do.list),
    }
    one: dict[str, tuple[str, Act]] = {
        "GET": (f"show {singular}", do.show),
        "PUT": (f"update {singular}", do.update),
        "DELETE": (f"delete {singular}", do.delete),
    }
    if collection.update is None:
        del one["PUT"]
    return [edge.route((many, many + ".json"), all_, access), edge.route((many + "/{key:str}",), one, access)]
