"""Which address and MAC a port gets, inside one bucket: pure operations on a draft of the bucket's partition.

Automatic choice takes never-used addresses first, then the one that has been free longest; one that was freed less than
a minute ago only when nothing else is left in the network (rule S19). What was found is remembered with the view, so
that a choice costs the same however full the bucket is.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

from planes.model.addresses import BUCKET_SHIFT, BUCKET_SIZE, generated_mac, ip_bytes, ip_text, mac_text
from planes.model.enums import Kind
from planes.model.errors import Conflict
from planes.model.ids import Id, text
from planes.model.resources import Address, AddressState, MacRow, Subnet
from planes.store.views import Draft, View


class Releasing(Exception):
    """The address still belongs to the host of a deleted port; worth waiting for a few seconds."""


def ranges(subnet: Subnet, bucket: int) -> list[tuple[int, int]]:
    """The parts of a subnet's pools that lie in a bucket; inclusive."""
    return _within(subnet.pools, bucket)


@lru_cache(4096)
def _within(pools: tuple[tuple[int, int], ...], bucket: int) -> list[tuple[int, int]]:
    low, high = bucket << BUCKET_SHIFT, (bucket << BUCKET_SHIFT) + BUCKET_SIZE - 1
    return [(max(a, low), min(b, high)) for a, b in pools if a <= high and b >= low]


def buckets(subnet: Subnet) -> Iterator[int]:
    """Every bucket that holds addresses of the subnet's pools, in order."""
    last = -1
    for start, end in subnet.pools:
        for bucket in range(max(start >> BUCKET_SHIFT, last + 1), (end >> BUCKET_SHIFT) + 1):
            last = bucket
            yield bucket


def room(view: View, subnet: Subnet, bucket: int, before: int, enough: int) -> int:
    """How many addresses of the subnet may be had in this bucket, never used or free since `before` (µs): so many, or
    just that there are `enough`.

    Counted once after each change of the bucket, and when an address has rested long enough.
    """
    wide = ranges(subnet, bucket)
    if not wide:
        return 0
    mark = view.hints.get(subnet.id)
    if mark is not None and max(mark, wide[0][0]) + enough <= wide[-1][1] + 1:
        return enough  # a view that was just read has no such mark yet, and may be full
    top, since, until, left = view.hints.get((subnet.id, "left"), (-1, 0, 0, 0))
    if top != view.top or not since <= before < until:
        since, until, left = _left(view, wide, before)
        view.hints[subnet.id, "left"] = view.top, since, until, left
    return int(left)


def _left(view: View, wide: list[tuple[int, int]], before: int) -> tuple[int, float, int]:
    """(since, until, count): so many addresses may be had for a `before` in between, while nothing changes here."""
    rows, left, since, until = view.all(Kind.IP), 0, 0, math.inf
    for start, end in wide:
        for n in range(start, end + 1):
            row: Address | None = rows.get(ip_bytes(n))
            if row is None:
                left += 1
            elif row.state == AddressState.FREE:
                if row.since <= before:
                    left, since = left + 1, max(since, row.since)
                else:
                    until = min(until, row.since)
    return since, until, left


def choose(draft: Draft, subnet: Subnet, bucket: int) -> bytes | None:
    """A free address of the subnet in this bucket, or None."""
    wide, hints = ranges(subnet, bucket), draft.view.hints
    for start, end in wide:
        for n in range(max(start, hints.get(subnet.id, 0)), end + 1):
            hints[subnet.id] = n + 1
            ip = ip_bytes(n)
            if draft.get(Kind.IP, ip) is None:
                return ip
    free: list[bytes] = hints.setdefault((subnet.id, "free"), [])
    for again in (False, True):
        while free:
            ip = free.pop()
            row = draft.get(Kind.IP, ip)
            if row is None or row.state == AddressState.FREE:
                return ip
        if not again and hints.get((subnet.id, "none")) != draft.view.top:
            free += _longest_free_last(draft.view, wide)
    hints[subnet.id, "none"] = draft.view.top  # until something is committed here
    return None


def _longest_free_last(view: View, wide: list[tuple[int, int]]) -> list[bytes]:
    """What may be had now; addresses that were passed over before are found again."""
    found, rows = [], view.all(Kind.IP)
    for start, end in wide:
        for n in range(start, end + 1):
            row: Address | None = rows.get(ip_bytes(n))
            if row is None or row.state == AddressState.FREE:
                found.append((row.since if row else 0, ip_bytes(n)))
    return [ip for _, ip in sorted(found, reverse=True)]


def take(draft: Draft, ip: bytes, owner: Id, network: Id) -> None:
    """Raise IpAddressInUse unless the address is free or the owner's own; Releasing while it will be free soon."""
    row: Address | None = draft.get(Kind.IP, ip)
    if row is None or row.port == owner or row.state == AddressState.FREE:
        return
    if row.state == AddressState.RELEASING:
        raise Releasing(ip_text(ip))
    raise in_use(ip, network)


def in_use(ip: bytes, network: Id) -> Conflict:
    """Neutron's error for an address that somebody else has."""
    return Conflict(
        f"Unable to complete operation for network {text(network)}. The IP address {ip_text(ip)} is in use.",
        "IpAddressInUse",
    )


def take_mac(draft: Draft, mac: bytes, owner: Id, network: Id, rev: int) -> None:
    """Claim a given MAC; raises MacAddressInUse."""
    row: MacRow | None = draft.get(Kind.MAC, mac)
    if row is not None and row.port != owner:
        raise Conflict(
            f"Unable to complete operation for network {text(network)}. The mac address {mac_text(mac)} is in use.",
            "MacAddressInUse",
        )
    draft.put(Kind.MAC, mac, MacRow(owner, rev))


def make_mac(draft: Draft, low32: int, owner: Id) -> bytes:
    """A MAC that nobody has, made from an address; stays in the address' bucket."""
    base = low32 & ~(BUCKET_SIZE - 1)
    start = owner[0] & 0xF
    for step in range(BUCKET_SIZE):
        low = base | (low32 + step) & (BUCKET_SIZE - 1)
        for nibble in range(16):
            mac = generated_mac(low, start + nibble)
            if draft.get(Kind.MAC, mac) is None:
                draft.put(Kind.MAC, mac, MacRow(owner))
                return mac
    raise Conflict("No MAC address is left in this part of the network.", "MacAddressGenerationFailure")
