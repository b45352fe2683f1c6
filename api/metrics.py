"""What this process measured, for Prometheus: requests by route and status, stages of changes, counters of the parts.

The edge counts every request here; `/metrics` prints. Routes are those of the table, never a client's text, so that
the number of series is bounded.
"""

from collections.abc import Callable, Iterator, Mapping

from observability.latency import Counts, Latency, bucket_of

#: upper bounds of the buckets that Prometheus sees, µs
BOUNDS = (500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000, 10_000_000)

#: counters of other parts, by name; a name that does not end in `_total` is a gauge
Counters = Callable[[], Mapping[str, int]]


def no_counters() -> Mapping[str, int]:
    return {}


class Meter:
    """Requests of one process."""

    def __init__(self, latency: Latency, counters: Counters = no_counters) -> None:
        self._latency = latency
        self._counters = counters
        self._requests: dict[tuple[str, str, int], Counts] = {}

    def count(self, method: str, route: str, status: int, us: int) -> None:
        """One answered request."""
        key = (method, route, status)
        counts = self._requests.get(key)
        if counts is None:
            counts = self._requests[key] = Counts()
        counts.add(bucket_of(us), us)

    def text(self) -> str:
        """Everything in Prometheus' text format."""
        return "\n".join((*self._request_lines(), *self._stage_lines(), *self._counter_lines(), ""))

    def _request_lines(self) -> Iterator[str]:
        name = "alcor_http_request_duration_seconds"
        yield f"# HELP {name} Time to answer a request."
        yield f"# TYPE {name} histogram"
        for (method, route, status), counts in sorted(self._requests.items()):
            yield from _histogram(name, f'method="{method}",route="{route}",status="{status}"', counts)

    def _stage_lines(self) -> Iterator[str]:
        name = "alcor_stage_duration_seconds"
        yield f"# HELP {name} Time that changes spent in a stage; total is the whole change."
        yield f"# TYPE {name} histogram"
        for stage, histogram in sorted(self._latency.stages.items()):
            yield from _histogram(name, f'stage="{stage}"', histogram.total)

    def _counter_lines(self) -> Iterator[str]:
        for name, value in sorted(self._counters().items()):
            full = f"alcor_{name}"
            yield f"# TYPE {full} {'counter' if name.endswith('_total') else 'gauge'}"
            yield f"{full} {value}"


def _histogram(name: str, labels: str, counts: Counts) -> Iterator[str]:
    for bound, n in zip(BOUNDS, counts.below(BOUNDS), strict=True):
        yield f'{name}_bucket{{{labels},le="{bound / 1e6:g}"}} {n}'
    yield f'{name}_bucket{{{labels},le="+Inf"}} {counts.count}'
    yield f"{name}_sum{{{labels}}} {counts.sum / 1e6:.6f}"
    yield f"{name}_count{{{labels}}} {counts.count}"
