"""Filters of another release of this agent become this one's while traffic goes on: none is lost, none is let through.

Called by `network` when it takes over a namespace whose tables have another version. Pure: nft's listing in, nft
commands out. The tables are not replaced: a base chain that is deleted together with its rules drops what comes until
the kernel has unhooked it. Instead each base chain gets this release's rules, in one transaction, and what ports and
policies have in sets and chains stays as it is. A set, map or base chain whose declaration changes needs another name;
else the kernel refuses the renewal, and the tables have to begin closed.
"""

import re
from typing import NamedTuple

from msgspec import Struct

from planes.data.linux.skeleton import TABLE, TABLES, VERSION, group_of, is_of_policy

_FAMILY = re.compile(r"^table (\w+) ")
_PART = re.compile(r"^(?:\t|  )(counter|set|map|chain) (\S+) \{")


class _Part(NamedTuple):
    kind: str
    family: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.family} {TABLE} {self.name}"


class Renewal(Struct, frozen=True):
    """nft commands, each text one transaction, in this order."""

    #: this release's rules are in force; base chains that only the other one has still are, beside them
    begin: str
    #: those chains are gone, and the tables say whose they are
    end: str
    #: what else only the other one had; refused where a rule of a policy still names it, which harms nobody
    rest: tuple[str, ...]


def renewal(listing: str) -> Renewal:
    """How another release's tables, both as nft lists them, become this one's."""
    ours, found = _parts(TABLES), _parts(listing)
    flushes = [f"flush {part}" for part in found if part in ours and part.kind == "chain"]
    stale = {part: hooked for part, hooked in found.items() if part not in ours and not _of_goals(part)}
    hooked = [part for part, hooked in stale.items() if hooked]
    # without rules it would drop, in the moment between their end and its own
    lenient = [f"add {part} {{ policy accept; }}" for part in hooked]
    return Renewal(
        begin="\n".join((*flushes, *lenient, TABLES)),
        end="\n".join((*map(_deletion, hooked), f"add chain inet {TABLE} {VERSION}")),
        # what names is listed behind what is named
        rest=tuple(_deletion(part) for part in reversed(stale) if part not in hooked),
    )


def _parts(tables: str) -> dict[_Part, bool]:
    """What the tables are made of, and whether it is a base chain."""
    found: dict[_Part, bool] = {}
    family, part = "", None
    for line in tables.splitlines():
        if match := _FAMILY.match(line):
            family = match[1]
        elif match := _PART.match(line):
            part = _Part(match[1], family, match[2])
            found[part] = False
        elif part and part.kind == "chain" and " hook " in line:
            found[part] = True
    return found


def _of_goals(part: _Part) -> bool:
    """Whether it is a group's set or a policy's chain, which the goal state changes."""
    return is_of_policy(part.name) if part.kind == "chain" else group_of(part.name) is not None


def _deletion(part: _Part) -> str:
    return f"flush {part}\ndelete {part}" if part.kind == "chain" else f"delete {part}"
