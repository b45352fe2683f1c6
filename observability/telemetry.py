"""A process's metrics put together: its vitals, and, where a collector is named, the export.

Entered by the composition roots, around the work. The exporter's library is loaded only where it is needed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from observability import families
from observability.collector import metrics_address
from observability.metrics import Registry
from observability.vitals import Bus, Vitals


@asynccontextmanager
async def telling(
    registry: Registry, bus: Bus, spans: Callable[[], Mapping[str, int]], otlp: str, who: Mapping[str, str]
) -> AsyncIterator[None]:
    """While the block runs. `who` becomes OpenTelemetry's resource: service.name and so on."""
    vitals = Vitals(bus, spans)
    registry.add(vitals.metrics)
    exports = {"ok": 0, "failed": 0}
    registry.add(lambda: [families.EXPORTS.each(exports)])
    tasks = [asyncio.create_task(vitals.watch(), name="vitals")]
    if endpoint := metrics_address(otlp):
        from observability.push import Push

        tasks.append(asyncio.create_task(Push(endpoint, who, registry, exports).keep(), name="export metrics"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
