"""The API process: chooses the adapters, puts store, bus, cloud and REST edge together, serves until a signal ends it.

Called by the command line with finished settings. The only module of `api` that knows adapters.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn

from api.auth.embedded import Embedded
from api.auth.identity import Identity
from api.auth.keystone import Keystone
from api.edge import ANYBODY
from api.metrics import Meter
from api.protocol import Protocol
from api.server import create_app
from observability import logs
from observability.export import Exporter, exporter
from observability.latency import Latency
from observability.listener import listening
from observability.memory import settle
from observability.metrics import Registry
from observability.telemetry import telling
from observability.tracing import Observer
from planes.bus.nats.bus import NatsBus
from planes.bus.protocol import Bus
from planes.control.plane import ControlConfig
from planes.control.readings import readings
from planes.goalstate.messages import TRACES
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.errors import Invalid
from planes.model.settings import Settings, is_loopback
from planes.store.protocol import Store
from planes.store.sqlite.store import SqliteStore
from planes.store.timed import TimedStore

log = logging.getLogger(__name__)

#: seconds that requests in hand may take when the process is asked to end
DRAIN = 10
#: seconds for which a start waits for the bus
GRACE = 1.0
SQLITE, CASSANDRA = "sqlite:///", "cassandra://"
#: VXLAN's share of a packet
OVERHEAD = 50


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is in hand. Raises Invalid for settings that cannot be served."""
    logs.set_up(settings.log_format, settings.log_level, levels=settings.log_levels)
    identity = check(settings)
    latency = Latency()
    observer = Observer(latency, traces_to(settings), settings.store.partition(":")[0])
    meter = Meter(latency)
    try:
        async with planes(settings, observer, meter.registry) as cloud:
            settle()
            await serve(settings, cloud, observer, meter, identity)
    finally:
        if isinstance(identity, Keystone):
            await identity.close()
        await asyncio.to_thread(observer.close)


def traces_to(settings: Settings) -> Exporter | None:
    """Where spans go."""
    instance = {"service.instance.id": settings.instance} if settings.instance else {}
    return exporter(settings.otlp, "alcor-api", **instance) if settings.otlp else None


def check(settings: Settings) -> Identity:
    """How callers are known. Refuses to run open: without authentication only loopback may be listened on."""
    if settings.auth == "none" and not is_loopback(settings.api_host):
        raise Invalid(f"Setting api_host is '{settings.api_host:.80}': without authentication it must be loopback.")
    store_of(settings.store)
    return identity_of(settings)


def identity_of(settings: Settings) -> Identity:
    """How callers are known. Raises Invalid for settings by which nobody could be."""
    if settings.auth == "embedded":
        if not settings.auth_users:
            raise Invalid("Setting auth is embedded, so auth_users must name the file of users; `alcor user` makes it.")
        return Embedded(Path(settings.auth_users), settings.auth_life)
    if settings.auth == "keystone":
        if not settings.auth_url.startswith(("http://", "https://")):
            raise Invalid(
                f"Setting auth is keystone, so auth_url must be Keystone's URL, not '{settings.auth_url:.80}'."
            )
        return Keystone.at(settings.auth_url, settings.auth_ca)
    return ANYBODY


def store_of(url: str) -> Store:
    """The store that a URL names, not yet open. Raises Invalid for a URL that makes no sense."""
    if url.startswith(SQLITE):
        return SqliteStore(url.removeprefix(SQLITE))
    if url.startswith(CASSANDRA):
        from planes.store.cassandra.store import CassandraStore  # here: its driver costs every other start 0.2 s

        return CassandraStore(url)
    raise Invalid("Setting store must be sqlite:///path or cassandra://host1,host2/keyspace.")


@asynccontextmanager
async def planes(settings: Settings, observer: Observer, registry: Registry) -> AsyncIterator[Cloud]:
    """A running cloud on the store and bus that the settings name, with its metrics; closed in reverse."""
    async with contextlib.AsyncExitStack() as stack:
        store = TimedStore(store_of(settings.store))
        await store.open()
        stack.push_async_callback(store.close)
        bus = NatsBus(settings.nats, "alcor-api", credentials=settings.nats_creds)
        stack.push_async_callback(bus.close)
        cloud = build_cloud(settings, store, bus, observer)
        plane = cloud.plane
        observer.traces = lambda host: plane.hosts.can(host, TRACES)
        plane.publisher.joined, plane.served = observer.joined, observer.served
        await cloud.start()
        stack.push_async_callback(cloud.stop)
        await stack.enter_async_context(connecting(bus))
        registry.add(lambda: readings(cloud.plane, store, cloud.counters()))
        who = {"service.name": "alcor-api", "service.instance.id": cloud.plane.instance}
        await stack.enter_async_context(listening(registry, settings.metrics_host, settings.metrics_port))
        await stack.enter_async_context(telling(registry, bus, lambda: spans(observer), settings.otlp, who))
        yield cloud


@asynccontextmanager
async def connecting(bus: Bus) -> AsyncIterator[None]:
    """The body begins when the bus is there, or after a moment without it: reads and writes need the store alone.

    Raises what is wrong with the settings of the bus; a server that does not answer is tried for ever.
    """
    task = asyncio.create_task(bus.connect(), name="connect to the bus")
    try:
        done, _ = await asyncio.wait((task,), timeout=GRACE)
        if done:
            task.result()
        else:
            log.warning("no connection to NATS yet; serving without")
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def build_cloud(settings: Settings, store: Store, bus: Bus, observer: Observer) -> Cloud:
    """Management and control as the settings want them."""
    quotas = {
        name: getattr(settings, f"quota_{name}")
        for name in ("network", "subnet", "port", "security_group", "security_group_rule")
    }
    control = ControlConfig(
        prefix=settings.prefix,
        dead_after=settings.dead_after,
        beacon_every=settings.beacon_every,
        echo_after=settings.echo_from,
    )
    management = ManagementConfig(quotas=quotas, mtu=settings.mtu - OVERHEAD)
    return build(
        store,
        bus,
        control,
        management,
        finished=observer,
        latency=observer.latency.snapshot,
        instance=settings.instance,
    )


def spans(observer: Observer) -> dict[str, int]:
    """What became of the spans."""
    return observer.exporter.counters if observer.exporter else {}


class _Server(uvicorn.Server):
    """uvicorn, without its signal handling: that would end the process before the planes are closed.

    `ending` is called first of all: streams have no end of their own.
    """

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ending = ending

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        log.info("asked to end; finishing requests in hand")
        self._ending()
        self.should_exit = True


async def serve(settings: Settings, cloud: Cloud, observer: Observer, meter: Meter, identity: Identity) -> None:
    """Answer requests until a signal comes."""
    config = uvicorn.Config(
        create_app(cloud, settings, observer, meter, identity),
        host=settings.api_host,
        port=settings.api_port,
        http=Protocol,
        interface="asgi3",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nothing here depends on who the client is; see `edge.base` for the scheme
        timeout_graceful_shutdown=DRAIN,
    )
    log.info("API on http://%s:%d", settings.api_host, settings.api_port)
    await _Server(config, cloud.plane.watch.close).serve()
