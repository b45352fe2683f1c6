"""Metrics as text: Prometheus' classic format, or OpenMetrics, which also carries exemplars. Pure.

Called for `/metrics`. Written by hand because prometheus_client takes five times as long for the same lines, and a
scrape must not hold up requests.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from observability.latency import EXPORTED, Counts, Exemplar
from observability.metrics import Family, Metric

OPENMETRICS = "application/openmetrics-text"
CLASSIC_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
#: bounds of buckets as labels: floats in both formats, so that one query fits both
_BOUNDS = (*(str(bound / 1e6) for bound in EXPORTED.bounds), "+Inf")
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def answer(metrics: Iterable[Metric], accept: str) -> tuple[str, str]:
    """The text that a scraper with this `Accept` header understands best, and its content type."""
    if OPENMETRICS in accept:
        return openmetrics(metrics), OPENMETRICS_TYPE
    return classic(metrics), CLASSIC_TYPE


def classic(metrics: Iterable[Metric]) -> str:
    """Prometheus' text format 0.0.4."""
    lines: list[str] = []
    for metric in metrics:
        name = metric.family.name
        lines += (f"# HELP {name} {metric.family.help}", f"# TYPE {name} {metric.family.kind}")
        lines += _samples(metric, exemplars=False)
    return "\n".join((*lines, ""))


def openmetrics(metrics: Iterable[Metric]) -> str:
    """OpenMetrics 1.0."""
    lines: list[str] = []
    for metric in metrics:
        family = metric.family
        lines.append(f"# TYPE {family.base} {family.kind}")
        if family.unit:
            lines.append(f"# UNIT {family.base} {family.unit}")
        lines.append(f"# HELP {family.base} {family.help}")
        lines += _samples(metric, exemplars=True)
    return "\n".join((*lines, "# EOF", ""))


def _samples(metric: Metric, exemplars: bool) -> Iterator[str]:
    family = metric.family
    for values, value in metric.points:
        labels = ",".join(f'{k}="{v.translate(_ESCAPES)}"' for k, v in zip(family.labels, values, strict=True))
        if isinstance(value, Counts):
            yield from _histogram(family, labels, value, exemplars)
        else:
            yield f"{family.name}{{{labels}}} {value}" if labels else f"{family.name} {value}"


def _histogram(family: Family, labels: str, counts: Counts, exemplars: bool) -> Iterator[str]:
    name = family.name
    start = f"{name}_bucket{{{labels},le=" if labels else f"{name}_bucket{{le="
    for place, n in enumerate(accumulate(EXPORTED.spread(counts))):
        line = f'{start}"{_BOUNDS[place]}"}} {n}'
        if exemplars and (exemplar := counts.exemplars.get(place)) is not None:
            line += _exemplar(exemplar)
        yield line
    end = f"{{{labels}}}" if labels else ""
    yield f"{name}_sum{end} {counts.sum / 1e6}"
    yield f"{name}_count{end} {counts.count}"


def _exemplar(exemplar: Exemplar) -> str:
    return f' # {{trace_id="{exemplar.trace_id}"}} {exemplar.us / 1e6} {exemplar.at:.3f}'
