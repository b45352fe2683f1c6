"""How many transactions this process had with the kernel, and how many it refused. Counted around every one of them."""

from collections import Counter

#: by kind, and by kind with `_failed`
transactions: Counter[str] = Counter(nft=0, nft_failed=0, netlink=0, netlink_failed=0)


def count(kind: str, failed: bool) -> None:
    """One transaction."""
    transactions[kind] += 1
    if failed:
        transactions[f"{kind}_failed"] += 1
