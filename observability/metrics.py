"""What a process tells of itself: families of metrics, and readings of them, from which every output is made.

`families` names them all. A source is a function that reads its part now and yields metrics; a `Registry` holds the
sources of a process, for `exposition` (Prometheus) and `push` (OTLP). Pure: counting is done where things happen, and
reading must never wait.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

from msgspec import Struct

from observability.latency import Counts

Kind = Literal["counter", "gauge", "histogram"]
#: a histogram's value is what was counted in µs
Value = int | float | Counts
#: values of the labels, in the order of the family's
Labels = tuple[str, ...]
K = TypeVar("K", bound=str | Labels)


class Family(Struct, frozen=True):
    """One kind of figure. A counter's name ends in `_total`, a time's or size's base name in its unit."""

    name: str
    kind: Kind
    help: str
    labels: Labels = ()

    @property
    def base(self) -> str:
        """The name without what marks a counter."""
        return self.name.removesuffix("_total")

    @property
    def unit(self) -> str:
        """`seconds`, `bytes`, or empty."""
        last = self.base.rpartition("_")[2]
        return last if last in ("seconds", "bytes") else ""

    def one(self, value: Value) -> "Metric":
        """A reading without labels."""
        return Metric(self, [((), value)])

    def each(self, values: Mapping[K, Value]) -> "Metric":
        """Readings by label: by its value, or by the values of all labels."""
        return Metric(self, [((key,) if isinstance(key, str) else key, value) for key, value in values.items()])


class Metric(Struct, frozen=True):
    """A family's readings."""

    family: Family
    points: list[tuple[Labels, Value]]


Source = Callable[[], Iterable[Metric]]


class Registry:
    """All sources of a process."""

    def __init__(self, *sources: Source) -> None:
        self._sources = list(sources)

    def add(self, source: Source) -> None:
        self._sources.append(source)

    def collect(self) -> list[Metric]:
        """Everything, as it is now."""
        return [metric for source in self._sources for metric in source()]
