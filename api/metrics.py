"""What this process measured: requests by route and status, stages of changes, and whatever the other parts tell.

The edge counts every request here; `/metrics` prints. Routes are those of the table, never a client's text, so that
the number of series is bounded.
"""

from collections.abc import Iterator

from observability import families
from observability.latency import Counts, Latency
from observability.metrics import Metric, Registry


class Meter:
    """Requests of one process, and the registry of all it tells."""

    def __init__(self, latency: Latency) -> None:
        self._latency = latency
        self._requests: dict[tuple[str, str, str], Counts] = {}
        self.registry = Registry(self.metrics)

    def count(self, method: str, route: str, status: int, us: int) -> None:
        """One answered request."""
        key = (method, route, str(status))
        counts = self._requests.get(key)
        if counts is None:
            counts = self._requests[key] = Counts()
        counts.record(us)

    def metrics(self) -> Iterator[Metric]:
        """Requests and changes."""
        yield families.HTTP.each(self._requests)
        yield families.CHANGE.each(self._latency.changes)
        yield families.STAGE.each({name: each.total for name, each in self._latency.stages.items()})
