"""Committing ports and their claims into a bucket, beside whoever takes away what they rely on (rules D3, I2, S19).

Called by `port_create` and `port_update`. A commit proves what this instance remembers of the bucket; what it remembers
of the network is proven by the bucket too, which says from which revision on its creators must know the network.
Nothing is committed on a number or a subnet that was only read earlier in the request.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from planes.control import fence
from planes.management import addressing, port_plans
from planes.management.context import Context
from planes.model.enums import Kind
from planes.model.errors import Conflict, Unavailable, not_found
from planes.model.ids import Id, text
from planes.model.resources import Network, NetworkState, Subnet
from planes.store.partitions import Apply, Before, Done
from planes.store.views import Draft

T = TypeVar("T")
#: how often one commit is tried anew because its network has changed meanwhile
LOOKS = 64


class Commits:
    """One instance's."""

    def __init__(self, context: Context) -> None:
        self._c = context
        #: a network's partition by its number, as this instance knows it now
        self._known = context.ground.known_network

    async def waiting(
        self,
        network: Network,
        where: int,
        apply: Apply[T],
        before: Before | None = None,
        weight: int = 1,
        renumber: Callable[[], Awaitable[None]] | None = None,
        look: Callable[[], Awaitable[None]] | None = None,
    ) -> Done[T]:
        """Change a bucket; wait for the former host of an address that is being released (rule S19).

        `renumber` asks anew for the numbers of the groups of the ports that are to be committed; `look` is awaited
        whenever somebody else has changed the bucket meanwhile.
        """

        async def prepare() -> None:
            await self._refresh(network)
            if look is not None:
                await look()

        deadline, looks = 0.0, 0
        while looks < LOOKS:
            try:
                return await self._c.ground.change_bucket(
                    network.id,
                    network.number,
                    where,
                    apply,
                    prepare,
                    before=before,
                    weight=weight,
                )
            except addressing.Releasing as busy:
                now = asyncio.get_running_loop().time()
                deadline = deadline or now + self._c.config.release_wait
                if now >= deadline:
                    raise Conflict(
                        f"Unable to complete operation for network {text(network.id)}. The IP address {busy} is in "
                        "use: the host of its former port has not let go of it yet.",
                        "IpAddressInUse",
                    ) from None
                await asyncio.sleep(0.1)
            except fence.Behind as behind:
                looks += 1
                await self._catch_up(network, behind.rev)
            except port_plans.Renumbered:
                looks += 1
                await self._refresh(network)
                if renumber is not None:
                    await renumber()
        raise Unavailable("Too many concurrent changes of the same network; try again.")

    async def _refresh(self, network: Network) -> None:
        await self._c.ground.network_view(network.number, fresh=True)

    async def _catch_up(self, network: Network, rev: int) -> None:
        """Know the network as of this revision.

        One that is older in the store itself came out of a backup, with buckets of a later moment; its next revision is
        newer than any that was drawn before.
        """
        view = await self._c.ground.network_view(network.number, fresh=True)
        if view.top < rev:
            await self._c.ground.change_network(network.id, network.number, fence.touch)

    def parent(self, draft: Draft, network: Network, subnet: Subnet | None) -> None:
        """The network and subnet must still be there, as this instance knows them now (rule D3)."""
        if draft.static("sealed"):
            raise not_found("network", text(network.id))
        view = self._known(network.number)
        if view is None:
            fence.keep_up(draft, view)
            return
        if view.get(Kind.NETWORK) is None or view.statics.get("state") == NetworkState.DELETING:
            raise not_found("network", text(network.id))
        fence.keep_up(draft, view)
        if subnet is not None:
            row: Subnet | None = view.get(Kind.SUBNET, subnet.id)
            if row is None or row.deleting:
                raise not_found("subnet", text(subnet.id))

    def numbered(self, network: Network, where: int, groups: tuple[Id, ...], number: int) -> None:
        """The groups' number must still be theirs, as this instance knows the network now; after `parent`."""
        port_plans.numbered(self._known(network.number), where, groups, number)
