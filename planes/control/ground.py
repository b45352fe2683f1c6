"""The partitions that goal state is made of, changed and published in one breath.

Called by management and by control's own modules: every change of a bucket or of a network's partition leaves here, so
that no counter ever rises without a message that carries the stretch (rule S7) and no object is published that was not
committed (rule S3).
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from planes.control import goals
from planes.control.publisher import Publisher
from planes.goalstate.messages import WHOLE, Gone, Object, ObjectKind, Span
from planes.model.enums import Kind
from planes.model.ids import place_of
from planes.model.resources import Address, AddressState, Group, Network, Port
from planes.store.partitions import Before, Done, Partitions, Prepare
from planes.store.schema import GROUPS, NETWORKS, PORTS
from planes.store.views import Draft, View

T = TypeVar("T")


class Ground:
    """Guarded partitions of networks, buckets and groups, with publication."""

    def __init__(self, partitions: Partitions, publisher: Publisher) -> None:
        self.partitions = partitions
        self.publisher = publisher

    def network_view(self, number: int, *, fresh: bool = False) -> Coroutine[Any, Any, View]:
        return self.partitions.view(NETWORKS, (number,), fresh=fresh)

    def known_network(self, number: int) -> View | None:
        """Its view, if this instance has one at hand."""
        return self.partitions.peek(NETWORKS, (number,))

    async def network(self, number: int) -> Network | None:
        """The network with this number, or None."""
        row: Network | None = (await self.network_view(number)).get(Kind.NETWORK)
        return row

    def bucket_view(self, number: int, bucket: int, *, fresh: bool = False) -> Coroutine[Any, Any, View]:
        return self.partitions.view(PORTS, (number, bucket), fresh=fresh)

    def known_bucket(self, number: int, bucket: int) -> View | None:
        """Its view, if this instance has one at hand."""
        return self.partitions.peek(PORTS, (number, bucket))

    async def port(self, id_: bytes, *, fresh: bool = False) -> Port | None:
        """The port's row, or None."""
        view = await self.partitions.view(PORTS, place_of(id_), fresh=fresh)
        row: Port | None = view.get(Kind.PORT, id_)
        return row

    async def change_bucket(
        self,
        network: bytes,
        number: int,
        bucket: int,
        apply: Callable[[Draft, int], T],
        prepare: Prepare | None = None,
        traceparent: str = "",
        before: Before | None = None,
        weight: int = 1,
    ) -> Done[T]:
        """Change one bucket and publish the neighbours that it changed."""
        touched: dict[bytes, Address] = {}

        def recorded(draft: Draft, rev: int) -> T:
            value = apply(draft, rev)
            touched.clear()
            for (kind, key), body in draft.edits.items():
                if kind == Kind.IP and isinstance(body, Address):
                    touched[key] = body
            return value

        done = await self.partitions.change(PORTS, (number, bucket), recorded, prepare, before, weight)
        if done.rev != done.prev:
            objects = [goals.neighbour(network, ip, row) for ip, row in touched.items() if _seen(row)]
            self.publisher.network(network, objects, (Span(bucket, done.prev, done.rev),), traceparent)
        return done

    async def change_network(
        self,
        network: bytes,
        number: int,
        apply: Callable[[Draft, int], T],
        traceparent: str = "",
        announce: bool = True,
    ) -> Done[T]:
        """Change a network's own partition and publish the objects that it changed."""
        edits: dict[tuple[int, bytes], Any] = {}

        def recorded(draft: Draft, rev: int) -> T:
            value = apply(draft, rev)
            edits.clear()
            edits.update(draft.edits)
            return value

        done = await self.partitions.change(NETWORKS, (number,), recorded)
        if done.rev != done.prev and announce:
            objects = network_objects(network, edits, done.rev)
            self.publisher.network(network, objects, (Span(WHOLE, done.prev, done.rev),), traceparent)
        return done

    async def change_group(
        self, group: bytes, home: int, apply: Callable[[Draft, int], T], traceparent: str = ""
    ) -> Done[T]:
        """Change a security group's partition and publish the whole group."""
        whole: list[Object] = []

        def recorded(draft: Draft, rev: int) -> T:
            value = apply(draft, rev)
            whole.clear()
            if draft.edits:
                row: Group | None = draft.get(Kind.GROUP)
                if row is not None:
                    whole.append(goals.group(row, [rule for _, rule in draft.all(Kind.RULE)], rev))
                else:
                    whole.append(Gone(ObjectKind.GROUP, group, group, rev))
            return value

        done = await self.partitions.change(GROUPS, (home,), recorded)
        if whole and done.rev != done.prev:
            self.publisher.group(group, whole, traceparent)
        return done

    def publish_port(self, port: Port, traceparent: str = "") -> None:
        """Tell the port's host what it should have; while another host must let go first, tell that one."""
        if port.leaving:
            self.publisher.host(port.leaving, (goals.port_gone(port),), traceparent)
        elif port.host:
            item: Object = goals.port_gone(port) if port.state else goals.port(port)
            self.publisher.host(port.host, (item,), traceparent)


def _seen(row: Address) -> bool:
    """Whether hosts need to hear of this address row: a claim not yet confirmed is nobody's business."""
    return row.state != AddressState.CLAIMED


def network_objects(network: bytes, edits: dict[tuple[int, bytes], Any], rev: int) -> Sequence[Object]:
    """The goal objects of edited rows of a network's partition."""
    objects: list[Object] = []
    for (kind, key), body in edits.items():
        if kind == Kind.NETWORK:
            objects.append(goals.network(body) if body else Gone(ObjectKind.NETWORK, network, network, rev))
        elif kind == Kind.SUBNET:
            gone = body is None or body.deleting
            objects.append(Gone(ObjectKind.SUBNET, network, key, rev) if gone else goals.subnet(body))
        elif kind == Kind.IDENTITY and body is not None and body.rev == rev:
            # A number whose row went has another row now, of the same key to hosts; one that is only doubted means
            # what it meant.
            objects.append(goals.identity(network, body))
    return objects
