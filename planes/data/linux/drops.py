"""What a network's namespace dropped, by reason: as counted by its filters, by each port's link, and by the kernel.

Called by `driver`, in a thread: a namespace takes some 100 µs, and 1 µs more for each port. It only reads. What never
reaches a filter is counted by the kernel alone, in places of its own; here they all become words for an operator.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from planes.data.linux import namespaces, netlink, nfnetlink, skeleton
from planes.data.linux.network import Network
from planes.data.linux.nfnetlink import ARP, INET
from planes.data.linux.skeleton import TABLE

#: of a link: the place in its statistics
_OF_LINK = {"other_ethertype": 6, "foreign_mac": 24}
#: of the namespace: the file, how its lines begin, and what the counters there stand for
_OF_KERNEL = (
    ("snmp", "Ip:", {"InHdrErrors": "malformed", "ReasmFails": "fragments"}),
    ("netstat", "IpExt:", {"InTruncatedPkts": "malformed", "InNoRoutes": "no_route"}),
    ("snmp6", "Ip6", {"Ip6InDiscards": "ipv6"}),
)

REASONS = frozenset({*skeleton.REASONS, *_OF_LINK, *(word for *_, known in _OF_KERNEL for word in known.values())})

#: (where it was counted, reason)
Source = tuple[str | int, str]


def dropped(network: Network) -> dict[Source, int]:
    """All that was counted there; what is 0 is left out."""
    found: Counter[Source] = Counter()
    for family in (INET, ARP):
        for reason, count in nfnetlink.counters(network.filters, family, TABLE).items():
            found["filters", reason] += count
    ports = {link.ifindex for link in network.links.values()}
    for index, counts in netlink.statistics(network.route):
        if index in ports:
            found.update({(index, reason): counts[place] for reason, place in _OF_LINK.items() if place < len(counts)})
    with namespaces.entered(network.name):
        for name, head, known in _OF_KERNEL:
            for word, number in _words(name, head):
                if word in known:
                    found["kernel", known[word]] += int(number)
    return {source: count for source, count in found.items() if count}


def _words(name: str, head: str) -> Iterator[tuple[str, str]]:
    """Counters are told one to a line, `Ip6InDiscards 7`, or in two lines: names, and below them numbers."""
    with open(f"/proc/thread-self/net/{name}") as file:
        lines = [line.split() for line in file if line.startswith(head)]
    return zip(*lines, strict=True) if head.endswith(":") else ((word, count) for word, count in lines)


class Tally:
    """Sums that only rise, of counters that go away with their link, or begin anew with their table."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._last: dict[bytes, Mapping[Source, int]] = {}

    def add(self, network: bytes, now: Mapping[Source, int]) -> None:
        """What a network's counters are now."""
        last = self._last.get(network, {})
        for source, count in now.items():
            before = last.get(source, 0)
            self.total[source[1]] += count - before if count >= before else count
        self._last[network] = now

    def forget(self, network: bytes) -> None:
        """The network is gone; what it dropped counts on."""
        self._last.pop(network, None)
