"""Fences: how whoever takes something away from creators makes them notice (rule D3).

A creator commits into a bucket or a network's partition by compare-and-set on its counter; so taking away means raising
that counter, with a mark that the creator's next attempt sees. Called by management (delete) and by the echo (undo).
Pure operations on drafts.
"""

from msgspec.structs import replace

from planes.model.enums import Kind
from planes.model.errors import Conflict
from planes.model.resources import NetworkState, PortState, Subnet
from planes.store.partitions import Apply
from planes.store.rows import Mark
from planes.store.views import Draft


def set_state(state: NetworkState) -> Apply[None]:
    """Put a network into a state, if it exists."""

    def apply(draft: Draft, _: int) -> None:
        if draft.get(Kind.NETWORK) is not None:
            draft.set["state"] = int(state)

    return apply


def seal(network: str) -> Apply[None]:
    """No port may be committed into this bucket any more; raises NetworkInUse while one lives there."""

    def apply(draft: Draft, _: int) -> None:
        live = sum(1 for _, port in draft.all(Kind.PORT) if port.state == PortState.LIVE)
        if live:
            raise Conflict(
                f"Unable to complete operation on network {network}. There are one or more ports still in use on the "
                f"network ({live} at least).",
                "NetworkInUse",
            )
        draft.set["sealed"] = 1

    return apply


def unseal(draft: Draft, _: int) -> None:
    """Ports may be committed here again."""
    if draft.static("sealed"):
        draft.set["sealed"] = 0


def mark_subnet(id_: bytes, *, deleting: bool) -> Apply[None]:
    """A subnet is about to be deleted, or is not after all."""

    def apply(draft: Draft, rev: int) -> None:
        old: Subnet | None = draft.get(Kind.SUBNET, id_)
        if old is not None and old.deleting != deleting:
            draft.put(Kind.SUBNET, id_, replace(old, deleting=deleting, rev=rev))

    return apply


def set_group_state(state: NetworkState) -> Apply[None]:
    """Put a security group into a state, if it exists."""

    def apply(draft: Draft, _: int) -> None:
        if draft.get(Kind.GROUP) is not None:
            draft.set["state"] = int(state)

    return apply


def open_bucket(bucket: int) -> Apply[None]:
    """Register a bucket of an active network; creators do this before they commit into a new one."""
    key = bucket.to_bytes(4, "big")

    def apply(draft: Draft, rev: int) -> None:
        active = draft.get(Kind.NETWORK) is not None and draft.static("state") == NetworkState.ACTIVE
        if active and draft.get(Kind.BUCKET, key) is None:
            draft.put(Kind.BUCKET, key, Mark(rev=rev))

    return apply


def empty(draft: Draft, _: int) -> None:
    """Drop every row of a partition; its counter stays, so that nothing old can ever be taken for new."""
    for kind in (Kind.IP, Kind.MAC, Kind.VOID, Kind.SUBNET, Kind.IDENTITY, Kind.BUCKET):
        for key, _row in list(draft.all(kind)):
            draft.drop(kind, key)
