"""Fences: how whoever takes something away from creators makes them notice (rule D3).

A creator commits into a bucket or a network's partition by compare-and-set on its counter; so taking away means raising
that counter, with a mark that the creator's next attempt sees. What is taken away in the network's partition is marked
there; the bucket then says from which revision of the network on its creators must know it, because an instance may
read the bucket anew and go on with a network that it read long ago. Called by management (delete, create), by the echo
(undo) and by `numbers`. Pure operations on drafts.
"""

from msgspec.structs import replace

from planes.model.enums import Kind
from planes.model.errors import Conflict
from planes.model.ids import Id, text
from planes.model.resources import NetworkState, PortState, Subnet
from planes.store.partitions import Apply
from planes.store.rows import Mark
from planes.store.views import Draft, View


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


def ungroup(group: Id) -> Apply[None]:
    """Whoever is about to commit a port into this bucket looks at its groups anew; raises SecurityGroupInUse while a
    live port has this one.
    """

    def apply(draft: Draft, _: int) -> None:
        for id_, port in draft.all(Kind.PORT):
            if group in port.groups and port.state == PortState.LIVE:
                raise Conflict(f"Security Group {text(group)} in use by port {text(id_)}.", "SecurityGroupInUse")
        stop(draft)

    return apply


def stop(draft: Draft) -> None:
    """Whoever is about to commit into this bucket must read it anew, if it was ever written."""
    if draft.view.statics:
        draft.set["sealed"] = draft.static("sealed") or 0


class Behind(Exception):
    """The network as this instance knows it is older than this revision, which the bucket's creators must know."""

    def __init__(self, rev: int) -> None:
        super().__init__(rev)
        self.rev = rev


def require(rev: int) -> Apply[None]:
    """Whoever commits ports or addresses into this bucket from now on knows the network as of this revision."""

    def apply(draft: Draft, _: int) -> None:
        present: Mark | None = draft.get(Kind.BUCKET)
        draft.put(Kind.BUCKET, b"", Mark(rev=max(rev, present.rev if present else 0)))

    return apply


def keep_up(draft: Draft, network: View | None) -> None:
    """In a bucket's draft: raise Behind where the network is not known as of the revision that the bucket requires."""
    required: Mark | None = draft.get(Kind.BUCKET)
    if required is not None and (network is None or network.top < required.rev):
        raise Behind(required.rev)


def touch(draft: Draft, _: int) -> None:
    """Raise a network's counter and change nothing."""
    if draft.get(Kind.NETWORK) is not None:
        draft.set["state"] = draft.static("state") or 0


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
