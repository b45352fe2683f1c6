"""The parts of a deployment, one process each: API with control plane, agent, and the creation of the tables."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from cli.errors import Failure
from observability.logs import set_up
from planes.data.driver import DriverError
from planes.model.errors import AlcorError
from planes.model.settings import Loaded, Settings, masked


def store_url(settings: Settings) -> str:
    """The store's URL; by default a file in the data directory."""
    if settings.store and not settings.store.startswith(("sqlite:///", "cassandra://")):
        raise Failure(
            f"Setting store is '{masked(settings.store)}'; it must be sqlite:///path or cassandra://host/keyspace."
        )
    return settings.store or f"sqlite:///{Path(settings.data).resolve() / 'alcor.db'}"


def api(loaded: Loaded) -> None:
    """Serve until a signal ends it."""
    settings = structs.replace(loaded.settings, store=store_url(loaded.settings))
    import uvloop

    from api.app import run

    uvloop.run(run(settings))


def agent(loaded: Loaded) -> None:
    """Keep this host's kernel as it should be, until a signal ends it."""
    settings = loaded.settings
    if not settings.vtep:
        raise Failure("ALCOR_VTEP is not set: the agent must know its underlay address.")
    from agent.config import AgentConfig
    from agent.main import main

    set_up(settings.log_format, settings.log_level, levels=settings.log_levels)
    with _recorded():
        main(
            AgentConfig(
                host=settings.host or socket.gethostname(),
                nats=settings.nats,
                credentials=settings.nats_creds,
                prefix=settings.prefix,
                vtep=settings.vtep,
                cloud=settings.cloud,
                state_dir=settings.state,
                cell=settings.cell,
                udp_port=settings.udp_port,
                machine=settings.machine,
                metrics_host=settings.metrics_host,
                metrics_port=settings.metrics_port,
                beat_every=settings.beat_every,
                sync_every=settings.sync_every,
                tombstone_life=settings.tombstone_life,
                otlp=settings.otlp,
                trace_ratio=settings.trace_ratio,
            )
        )


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    """An error that nobody expected belongs in a part's log, with its trace; the sentence alone is for terminals."""
    try:
        yield
    except (AlcorError, DriverError):
        raise
    except Exception:
        logging.getLogger(__name__).exception("ended by an error")
        raise


def store_init(loaded: Loaded) -> str:
    """Create what is missing of the tables; returns the store's URL."""
    url = store_url(loaded.settings)
    from api.app import SQLITE, store_of

    if url.startswith(SQLITE):
        Path(url.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    store = store_of(url)

    async def touch() -> None:
        await store.open()
        await store.close()

    asyncio.run(touch())
    return str(masked(url))
