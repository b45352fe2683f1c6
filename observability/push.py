"""Sends a process's metrics by OTLP/HTTP every 15 s, under the names and buckets that Prometheus sees.

Made by the composition roots when an endpoint is set. The loop reads, which takes milliseconds; a thread encodes and
sends. One export is under way at a time, and what fails is not kept: counts are cumulative, the next one tells all.
Headers and certificates come from OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_HEADERS, …_CERTIFICATE).
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk import metrics as sdk_metrics
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from observability.latency import EXPORTED, Counts, Exemplar
from observability.metrics import Family, Labels, Metric, Registry, Value

log = logging.getLogger(__name__)

#: seconds between exports, and for one of them with all its tries
EVERY, TIMEOUT = 15.0, 5.0
_BOUNDS = [bound / 1e6 for bound in EXPORTED.bounds]
_UNITS = {"seconds": "s", "bytes": "By", "": "1"}
_SCOPE = InstrumentationScope("alcor")
_CUMULATIVE = sdk.AggregationTemporality.CUMULATIVE


class Push:
    """`endpoint` is the whole address; `who` becomes the resource.

    `exports` counts what was taken ("ok") and what was not ("failed").
    """

    def __init__(
        self,
        endpoint: str,
        who: Mapping[str, str],
        registry: Registry,
        exports: dict[str, int],
        every: float = EVERY,
    ) -> None:
        self._exporter = OTLPMetricExporter(endpoint=endpoint, timeout=TIMEOUT)
        self._resource = Resource.create(dict(who))
        self._registry = registry
        self._every = every
        self._begun = time.time_ns()
        self._thread = ThreadPoolExecutor(1, "export metrics")
        self._exports = exports
        self._fine = True
        self._reason = ""

    async def keep(self) -> None:
        """Send at each turn, until cancelled."""
        loop = asyncio.get_running_loop()
        library = logging.getLogger(OTLPMetricExporter.__module__)
        library.addFilter(self._hear)
        try:
            while True:
                await asyncio.sleep(self._every * random.uniform(0.9, 1.1))  # hosts must not act in step
                try:
                    data = self._data(self._registry.collect())
                    result = await loop.run_in_executor(self._thread, self._exporter.export, data)
                except Exception as error:  # of ours: metrics must not end for one wrong figure
                    log.debug("metrics cannot be made", exc_info=True)
                    result, self._reason = sdk.MetricExportResult.FAILURE, repr(error)
                self._count(result is sdk.MetricExportResult.SUCCESS)
        finally:
            library.removeFilter(self._hear)
            self._exporter.shutdown()  # ends the tries of one that is under way
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _hear(self, record: logging.LogRecord) -> bool:
        """What the library says of each failure, and of each try."""
        self._reason = record.getMessage()
        return False

    def _count(self, taken: bool) -> None:
        self._exports["ok" if taken else "failed"] += 1
        if taken and not self._fine:
            log.info("the collector takes metrics again")
        elif self._fine and not taken:  # said once, not for each export
            log.warning("metrics cannot be sent: %s", self._reason)
        self._fine = taken

    def _data(self, metrics: list[Metric]) -> sdk.MetricsData:
        scope = sdk.ScopeMetrics(_SCOPE, [self._metric(one, time.time_ns()) for one in metrics if one.points], "")
        return sdk.MetricsData([sdk.ResourceMetrics(self._resource, [scope], "")])

    def _metric(self, metric: Metric, now: int) -> sdk.Metric:
        family, points = metric.family, metric.points
        data: sdk.Histogram | sdk.Sum | sdk.Gauge
        if family.kind == "histogram":
            data = sdk.Histogram([self._histogram(family, *point, now) for point in points], _CUMULATIVE)
        elif family.kind == "counter":
            data = sdk.Sum([self._number(family, *point, now) for point in points], _CUMULATIVE, is_monotonic=True)
        else:
            data = sdk.Gauge([self._number(family, *point, now) for point in points])
        return sdk.Metric(family.name, family.help, _UNITS[family.unit], data)

    def _number(self, family: Family, labels: Labels, value: Value, now: int) -> sdk.NumberDataPoint:
        assert not isinstance(value, Counts)
        return sdk.NumberDataPoint(dict(zip(family.labels, labels, strict=True)), self._begun, now, value)

    def _histogram(self, family: Family, labels: Labels, value: Value, now: int) -> sdk.HistogramDataPoint:
        assert isinstance(value, Counts)
        return sdk.HistogramDataPoint(
            dict(zip(family.labels, labels, strict=True)),
            self._begun,
            now,
            value.count,
            value.sum / 1e6,
            EXPORTED.spread(value),
            _BOUNDS,
            0,
            value.max / 1e6,
            [_exemplar(one) for one in value.exemplars.values()],
        )


def _exemplar(one: Exemplar) -> sdk_metrics.Exemplar:
    return sdk_metrics.Exemplar({}, one.us / 1e6, round(one.at * 1e9), int(one.span_id, 16), int(one.trace_id, 16))
