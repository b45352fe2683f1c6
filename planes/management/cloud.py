"""Puts management and control together behind the REST edge. Called by the composition root and by tests.

Adapters come from outside: any `Store`, any `Bus`.
"""

from collections.abc import Callable
from typing import Any

from observability.stages import now_us
from planes.bus.protocol import Bus
from planes.control.changes import Finished
from planes.control.plane import ControlConfig, ControlPlane
from planes.management.announced import Announced, AnnouncedPorts
from planes.management.context import RESOURCES, Context, ManagementConfig
from planes.management.groups import Groups, Rules
from planes.management.hosts import Hosts
from planes.management.networks import Networks
from planes.management.ports import Ports
from planes.management.subnets import Subnets
from planes.management.traces import Traces
from planes.model.enums import Kind
from planes.model.views import GroupView, HostView, NetworkView, RuleView, SubnetView
from planes.store.protocol import Store


class Cloud:
    """Everything behind the REST edge; implements `services.Cloud`."""

    def __init__(self, plane: ControlPlane, config: ManagementConfig, latency: Callable[[], dict[str, Any]]) -> None:
        context = Context(plane, config)
        self.plane = plane
        groups = Groups(context)
        self.networks: Announced[NetworkView] = Announced(plane, "network", Networks(context))
        self.subnets: Announced[SubnetView] = Announced(plane, "subnet", Subnets(context))
        self.groups: Announced[GroupView] = Announced(plane, "security_group", groups)
        self.rules: Announced[RuleView] = Announced(plane, "security_group_rule", Rules(context, groups))
        self.ports = AnnouncedPorts(plane, Ports(context, groups))
        self.hosts: Announced[HostView] = Announced(plane, "host", Hosts(context))
        self.traces = Traces(context, latency)
        self.health = plane

    async def start(self) -> None:
        """Begin to answer hosts; store and bus must be open."""
        await self.plane.start()

    async def stop(self) -> None:
        """Finish what is in hand."""
        await self.plane.stop()

    def counters(self) -> dict[str, int]:
        """What was counted since the start."""
        plane = self.plane
        return {
            **plane.counters,
            **plane.publisher.counters,
            **plane.acks.counters,
            **plane.echo.counters,
            **plane.changes.counters,
            **plane.teller.counters,
            **plane.watch.counters,
            **plane.check.counters,
            "conflicts": plane.partitions.conflicts,
        }


def build(
    store: Store,
    bus: Bus,
    control: ControlConfig,
    management: ManagementConfig,
    *,
    finished: Finished = lambda records: None,
    latency: Callable[[], dict[str, Any]] = dict,
    now: Callable[[], int] = now_us,
    instance: str = "",
) -> Cloud:
    """A cloud on these adapters, not started. `finished` hears of every finished change; must run in the loop."""

    def quotas(kind: int) -> tuple[str, int]:
        resource = RESOURCES[Kind(kind)]
        return resource, management.quotas.get(resource, -1)

    plane = ControlPlane(store, bus, control, now, finished, quotas, instance)
    return Cloud(plane, management, latency)
