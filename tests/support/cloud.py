"""A control plane on real SQLite and the memory bus, for tests of management and control."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from observability.stages import Change
from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.control.plane import ControlConfig
from planes.management.caller import Caller
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.requests import NetworkCreate, SubnetCreate
from planes.model.views import NetworkView, SubnetView
from planes.store.protocol import Store
from planes.store.sqlite.store import SqliteStore


def caller(project: str = "demo", *, admin: bool = False) -> Caller:
    """A fresh request of a project."""
    return Caller(project, admin, Change("test"))


@asynccontextmanager
async def running(
    path: Path,
    *,
    store: Store | None = None,
    broker: MemoryBroker | None = None,
    control: ControlConfig | None = None,
    management: ManagementConfig | None = None,
) -> AsyncIterator[Cloud]:
    """A started cloud; everything is closed afterwards."""
    own = store or SqliteStore(path / "store.db")
    await own.open()
    bus = MemoryBus(broker or MemoryBroker(), "control")
    await bus.connect()
    cloud = build(own, bus, control or ControlConfig(), management or ManagementConfig())
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop()
        await bus.close()
        await own.close()


async def network_with_subnet(cloud: Cloud, cidr: str = "10.0.0.0/24") -> tuple[NetworkView, SubnetView]:
    """A network of project demo with one subnet."""
    (network,) = await cloud.networks.create(caller(), [NetworkCreate(name="net")])
    (subnet,) = await cloud.subnets.create(caller(), [SubnetCreate(network_id=network.id, cidr=cidr)])
    return network, subnet
