"""Filters of another release of this agent, brought over into this one's: what ports and policies had goes on, in the
same transaction that replaces the tables.

Called by `network` when it takes over a namespace whose tables have another version. Pure: nft's listing in, nft
commands out. It takes what is named as this release names it, and leaves the rest: base chains are this release's own.
Where the kernel refuses the outcome, the tables begin closed, and the goal state fills them.
"""

import re
from collections.abc import Iterator

from planes.data.linux.nfnetlink import ARP, INET
from planes.data.linux.skeleton import BY_INTERFACE, GROUP_TYPE, TABLE, group_of, identity_of

_FAMILY = {INET: "inet", ARP: "arp"}
_BLOCK = re.compile(r"^\t(set|map|chain) (\S+) \{\n(.*?)^\t\}", re.MULTILINE | re.DOTALL)
_ELEMENTS = re.compile(r"elements = (\{.*\})", re.DOTALL)


def carried(listings: dict[int, str]) -> str:
    """Commands that put into fresh tables what these listings (by family) hold of groups, policies and ports."""
    blocks = {family: _blocks(text) for family, text in listings.items()}
    inet = blocks.get(INET, {})
    return "\n".join((*_groups(inet), *_policies(inet), *_ports(blocks), ""))


def _blocks(listing: str) -> dict[str, tuple[str, str]]:
    """Kind and body of each set, map and chain, by name."""
    return {name: (kind, body) for kind, name, body in _BLOCK.findall(listing)}


def _groups(blocks: dict[str, tuple[str, str]]) -> Iterator[str]:
    for name, (kind, body) in blocks.items():
        if kind == "set" and group_of(name) is not None:
            yield f"add set inet {TABLE} {name} {GROUP_TYPE}"
            yield from _elements("inet", name, body)


def _policies(blocks: dict[str, tuple[str, str]]) -> Iterator[str]:
    """All chains first: a port's map may name any of them."""
    chains = {name: body for name, (kind, body) in blocks.items() if kind == "chain" and _of_policy(name)}
    yield from (f"add chain inet {TABLE} {name}" for name in chains)
    for name, body in chains.items():
        yield from (f"add rule inet {TABLE} {name} {line.strip()}" for line in body.splitlines() if line.strip())


def _of_policy(chain: str) -> bool:
    return identity_of(chain) is not None or (chain[:1] == "i" and chain[1:].isdigit())


def _ports(blocks: dict[int, dict[str, tuple[str, str]]]) -> Iterator[str]:
    for family, name in BY_INTERFACE:
        _, body = blocks.get(family, {}).get(name, ("", ""))
        yield from _elements(_FAMILY[family], name, body)


def _elements(family: str, name: str, body: str) -> Iterator[str]:
    if found := _ELEMENTS.search(body):
        yield f"add element {family} {TABLE} {name} {' '.join(found[1].split())}"
