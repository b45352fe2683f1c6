"""What one instance of the control plane can tell of itself and of the hosts it hears, as metrics.

Called for each scrape and export. It reads what is in memory: with ten thousand hosts that takes milliseconds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from observability import families
from observability.metrics import Metric
from planes.control.plane import ControlPlane
from planes.store.timed import TimedStore


def readings(plane: ControlPlane, store: TimedStore, counters: Mapping[str, int]) -> Iterator[Metric]:
    """All of it, now. `counters`: what the parts counted."""
    yield families.STORE.each(store.calls)
    yield families.STORE_ROWS.one(store.rows_written)
    for name, family in families.CONTROL.items():
        yield family.one(counters[name])
    lags = plane.acks.lags
    yield families.HOST_ACK.one(lags.all)
    yield families.HOST_ACK_LAG.each({host: us / 1e6 for host, us in lags.slowest().items()})
    changes, records = plane.changes.waiting
    messages, unacked = plane.publisher.waiting
    yield families.CHANGES_OPEN.one(changes)
    yield families.WAITING.one(plane.acks.waiting)
    queues = {"changes": records, "messages": messages, "unacked": unacked}
    yield families.QUEUE.each({**queues, "host_requests": plane.in_hand, "store": store.flying})
    yield from _hosts(plane)


def _hosts(plane: ControlPlane) -> Iterator[Metric]:
    hosts = Counter(alive=0, silent=0, planned=0, fenced=0)
    ports = build = error = silent = in_sync = 0
    for state, beat in plane.hosts.census():
        hosts[state] += 1
        if beat is None:
            continue
        if state != "alive":
            silent += beat.ports
            continue
        in_sync += beat.in_sync
        ports += beat.ports
        build += beat.counters.get("ports_build", 0)
        error += beat.counters.get("ports_error", 0)
    yield families.HOSTS.each(hosts)
    yield families.HOSTS_IN_SYNC.one(in_sync)
    active = max(0, ports - build - error)
    yield families.PORTS.each({"active": active, "build": build, "error": error, "silent": silent})
