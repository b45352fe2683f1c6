"""Which hosts are slow to answer: of each the worst of the last one to two minutes, of all the distribution.

Called for every message of acks, so it does no more than compare. Hosts are many; only the slowest are ever told.
"""

import time
from collections.abc import Callable, Sequence
from heapq import nlargest
from operator import itemgetter

from observability.latency import Counts

#: seconds of a window; the present and the last one count
WINDOW = 60.0
#: hosts that are told
SLOWEST = 20


class Lags:
    """µs from publishing to the host's ack."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.all = Counts()
        self._window = int(clock() // WINDOW)
        self._worst: dict[str, int] = {}
        self._before: dict[str, int] = {}

    def record(self, host: str, all_us: Sequence[int]) -> None:
        """One message of acks, of an object each."""
        if not all_us:
            return
        self.all.record_all(all_us)
        if int(self._clock() // WINDOW) != self._window:
            self._turn()
        if (us := max(all_us)) > self._worst.get(host, -1):
            self._worst[host] = us

    def _turn(self) -> None:
        if (now := int(self._clock() // WINDOW)) != self._window:
            self._before = self._worst if now == self._window + 1 else {}
            self._worst, self._window = {}, now

    def slowest(self) -> dict[str, int]:
        """The slowest hosts with the worst of each, slowest first."""
        self._turn()
        worst = dict(_largest(self._before))
        for host, us in _largest(self._worst):
            worst[host] = max(us, worst.get(host, 0))
        return dict(_largest(worst))


def _largest(worst: dict[str, int]) -> list[tuple[str, int]]:
    return nlargest(SLOWEST, worst.items(), key=itemgetter(1))
