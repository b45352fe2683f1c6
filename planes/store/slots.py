"""Numbers that only one owner may hold: VNIs, host numbers, quota (rules D7, D8).

Called by management and control. A slot is a row that names its owner; an owner that is gone frees its slot, so nothing
can drift. A space is cut into blocks of consecutive numbers, one partition each. Freed numbers may be kept back for a
while (`quarantine`), so that a late packet or message never meets a new owner.
"""

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence

from planes.model.enums import Kind
from planes.model.errors import OverQuota
from planes.model.resources import Slot
from planes.store.partitions import Apply, Partitions
from planes.store.schema import SLOTS
from planes.store.views import Draft

BLOCK = 1024
VNI_SPACE = "vni"
VNI_BLOCK = 4096
VNI_BLOCKS = (1 << 24) // VNI_BLOCK
HOST_SPACE = "host"


def _key(n: int) -> bytes:
    return n.to_bytes(4, "big")


def _take(numbers: Sequence[int], owners: Sequence[bytes], now: int = 0, quarantine: int = 0) -> Apply[list[int]]:
    """Give each owner one of `numbers`; an owner that already has one keeps it. Shorter than `owners`: no more free."""

    def apply(draft: Draft, _: int) -> list[int]:
        held = {slot.owner: int.from_bytes(key, "big") for key, slot in draft.all(Kind.SLOT) if slot.owner}
        given: list[int] = []
        free = iter(numbers)
        for owner in owners:
            if owner in held:
                given.append(held[owner])
                continue
            for n in free:
                slot: Slot | None = draft.get(Kind.SLOT, _key(n))
                if slot is None or (not slot.owner and slot.at + quarantine <= now):
                    draft.put(Kind.SLOT, _key(n), Slot(owner, now))
                    given.append(n)
                    break
            else:
                break
        return given

    return apply


def _by_home(owners: Sequence[bytes], limit: int) -> dict[int, list[bytes]]:
    """Owners by the block of a quota where they look first. It follows from the id, so that who frees looks where who
    claimed did; from its first 24 bits, so that ids made one after the other share a batch.
    """
    blocks, homes = max(1, _blocks(limit)), dict[int, list[bytes]]()
    for owner in owners:
        homes.setdefault(zlib.crc32(owner[:3]) % blocks, []).append(owner)
    return homes


def _blocks(limit: int) -> int:
    return max(0, limit + BLOCK - 1) // BLOCK


def _walk(start: int, limit: int) -> Iterator[int]:
    """Every block of a quota once, from this one on."""
    blocks = _blocks(limit)
    return ((start + n) % blocks for n in range(blocks))


class Slots:
    """Claims and frees numbers."""

    def __init__(self, partitions: Partitions, rng: random.Random | None = None) -> None:
        self._partitions = partitions
        self._rng = rng or random.Random()

    def vni_block(self) -> int:
        """A block to claim a VNI in; named in the feed before the claim, so that a claim without a network is found."""
        return self._rng.randrange(VNI_BLOCKS)

    async def claim_vni(self, block: int, owner: bytes, quarantine_us: int) -> int | None:
        """A VNI of this block (never 0); None when the block is full."""
        numbers = range(max(1, block * VNI_BLOCK), (block + 1) * VNI_BLOCK)
        start = self._rng.randrange(len(numbers))
        order = [*numbers[start:], *numbers[:start]]
        take = _take(order, [owner], self._partitions.now(), quarantine_us)
        done = await self._partitions.change(SLOTS, (VNI_SPACE, block), take)
        return done.value[0] if done.value else None

    async def free_vni(self, block: int, owner: bytes) -> None:
        """Give a VNI of this block back; it is kept out of use for the quarantine of the next claim."""
        await self._free((VNI_SPACE, block), [owner], keep=True)

    async def claim_host_number(self, owner: bytes) -> int:
        """The lowest free host number, from 1; the same host always gets the same. They are never freed."""
        block = 0
        while True:
            numbers = range(max(1, block * BLOCK), (block + 1) * BLOCK)
            view = await self._partitions.view(SLOTS, (HOST_SPACE, block))
            taken = len(view.all(Kind.SLOT))
            if taken == len(numbers):  # it stays as it is, so what is remembered holds
                held = view.hints.get(HOST_SPACE)
                if held is None:
                    held = view.hints[HOST_SPACE] = {slot.owner: key for key, slot in view.all(Kind.SLOT).items()}
                if owner in held:
                    return int.from_bytes(held[owner], "big")
            else:
                order = [*numbers[taken:], *numbers[:taken]]
                done = await self._partitions.change(SLOTS, (HOST_SPACE, block), _take(order, [owner]))
                if done.value:
                    return done.value[0]
            block += 1

    async def claim_quota(self, project: str, resource: str, owners: Sequence[bytes], limit: int) -> None:
        """One slot for each owner, below `limit` (−1: none needed). All, or OverQuota and none."""
        if limit < 0 or not owners:
            return
        given: list[bytes] = []
        for start, left in _by_home(owners, limit).items():
            for block in _walk(start, limit):
                numbers = range(block * BLOCK, min(limit, (block + 1) * BLOCK))
                take = _take(numbers, tuple(left))
                done = await self._partitions.change(SLOTS, (f"{project}/{resource}", block), take)
                given += left[: len(done.value)]
                del left[: len(done.value)]
                if not left:
                    break
            else:
                await self.free_quota(project, resource, given, limit)
                raise OverQuota(f"Quota exceeded for resources: ['{resource}'].")

    async def free_quota(self, project: str, resource: str, owners: Sequence[bytes], limit: int) -> None:
        """Free the slots of these owners, if they have any. Who has none, or one from before the limit was another,
        costs a look at every block.
        """
        for start, members in _by_home(owners, limit).items():
            left = set(members)
            for block in _walk(start, limit):
                left -= await self._free((f"{project}/{resource}", block), left, keep=False)
                if not left:
                    break

    async def _free(self, partition: tuple[str, int], owners: Iterable[bytes], *, keep: bool) -> set[bytes]:
        """The owners that had one."""
        gone, now = frozenset(owners), self._partitions.now()

        def apply(draft: Draft, _: int) -> set[bytes]:
            freed: set[bytes] = set()
            for key, slot in list(draft.all(Kind.SLOT)):
                if slot.owner in gone:
                    freed.add(slot.owner)
                    if keep:
                        draft.put(Kind.SLOT, key, Slot(b"", now))
                    else:
                        draft.drop(Kind.SLOT, key)
            return freed

        return (await self._partitions.change(SLOTS, partition, apply)).value
