"""Control and agents as they are, in one process: one SQLite store, one broker, fake kernels, virtual time.

What every host should hold is computed from the store's rows (`wanted`), so that whatever messages were lost or doubled
there is a truth to compare with.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from agent.core.context import Options
from agent.core.state import AgentState
from agent.core.translate import Goals
from agent.runtime import Agent
from planes.bus.memory.bus import Faults, MemoryBroker, MemoryBus
from planes.bus.protocol import Event
from planes.control import goals, reads
from planes.control.plane import ControlConfig
from planes.data.driver import Spec, SpecKey
from planes.data.memory.driver import MemoryDriver
from planes.data.memory.fabric import Fabric
from planes.data.memory.kernel import Kernel, KernelNetwork
from planes.goalstate.messages import Gone, Object
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.model.addresses import ip_text
from planes.model.enums import Kind
from planes.model.resources import AddressState, HostState, Port, PortState
from planes.store.protocol import Store, Value, Values
from planes.store.schema import GROUPS, NETWORKS, PORTS, Table
from planes.store.sqlite.store import SqliteStore
from planes.store.views import View
from tests.support.clock import now_us, until
from tests.support.gate import Gate, GatedBus, GatedStore
from tests.support.lives import Lives
from tests.support.steady import SteadyStore
from tests.support.world import Keeper

#: seconds after which the echo has looked at everything, whoever held the leases
ECHOED = 90.0


class Watched(MemoryDriver):
    """Goes through the gate, and calls back after whatever it applied."""

    def __init__(self, fabric: Fabric, host: str, gate: Gate, seen: Callable[[], None]) -> None:
        super().__init__(fabric)
        self._host = host
        self._gate = gate
        self._seen = seen

    async def open(self, vtep: bytes, vtep_mac: bytes) -> None:
        work = super().open
        await self._gate.through(self._host, "driver.open", lambda: work(vtep, vtep_mac))

    async def held(self) -> Mapping[SpecKey, Spec | None]:
        return await self._gate.through(self._host, "driver.held", super().held)

    async def apply(self, puts: Iterable[Spec], drops: Iterable[SpecKey]) -> Mapping[SpecKey, str]:
        work = super().apply
        errors = await self._gate.through(self._host, "driver.apply", lambda: work(puts, drops))
        self._seen()
        return errors


class Mesh:
    """Everything. Instance `c1` is a client of the broker by that name, and so is host `h1`."""

    def __init__(
        self,
        path: Path,
        seed: int = 0,
        *,
        control: ControlConfig | None = None,
        management: ManagementConfig | None = None,
        store: Store | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.gate = gate or Gate()
        self.gate.kill = self._kill
        self.broker = MemoryBroker(seed)
        inner = store or SqliteStore(path / "store.db", threaded=False)
        self.store = SteadyStore(inner, random.Random(f"store {seed}"))
        self.fabric = Fabric()
        #: instances; each sees the store through a door that closes when it is killed
        self.clouds: dict[str, Cloud] = {}
        self._doors: dict[str, GatedStore] = {}
        self._lived: dict[str, Lives] = {}
        self.agents: dict[str, Agent] = {}
        self._lives = 0
        self.drivers: dict[str, MemoryDriver] = {}
        self.keepers: dict[str, Keeper] = {}
        self._control = control or ControlConfig()
        self._management = management or ManagementConfig()
        self._buses: dict[str, MemoryBus] = {}
        self._lives = 0
        #: addresses that were live on two hosts at once, neither of them fenced
        self.doubles: list[str] = []
        self._fenced: set[str] = set()

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self, instances: Sequence[str] = ("c1", "c2"), hosts: Sequence[str] = ("h1", "h2", "h3")) -> None:
        await self.store.open()
        for name in instances:
            await self.start_control(name)
        for host in hosts:
            await self.start_agent(host)
        await until(lambda: all(self.agents[host].state.in_sync() for host in hosts), 60)

    async def start_control(self, name: str) -> Cloud:
        self._lives += 1
        door = self._doors[name] = GatedStore(self.store, name, self.gate)
        life = self._lived[name] = Lives(asyncio.get_running_loop())
        instance = f"{name}-{self._lives}"

        async def start() -> Cloud:
            bus = self._buses[name] = GatedBus(self.broker, name, self.gate)
            await bus.connect()
            cloud = build(cast(Store, door), bus, self._control, self._management, now=now_us, instance=instance)
            await cloud.start()
            return cloud

        cloud = await life.run(start())
        assert cloud is not None
        self.clouds[name] = cloud
        return cloud

    async def on(self, name: str, ask: Callable[[Cloud], Awaitable[None]]) -> None:
        """A request to an instance; if that is killed, it ends there, without an answer."""
        cloud = self.clouds[name]

        async def serve() -> None:
            await ask(cloud)

        await self._lived[name].run(serve())

    async def kill_control(self, name: str) -> None:
        """It is gone at once, wherever its tasks are: nothing more is said, read or written."""
        self.broker.mute(name)
        self.clouds.pop(name, None)
        self._doors.pop(name).close()
        await self._lived.pop(name).end()
        await self._buses.pop(name).close()
        self.broker.heal(name)

    async def start_agent(self, host: str, machine: str = "", name: str = "", vtep: bytes = b"") -> Agent:
        """`name`: what the test calls it, when two agents go by one host name."""
        name, vtep = name or host, vtep or bytes((192, 0, 2, int(host[1:])))
        keeper = self.keepers.setdefault(name, Keeper())
        options = Options(host=host, machine=machine or f"machine-{name}", vtep=vtep)
        self._lives += 1
        state = AgentState(options, random.Random(f"{name} {self._lives}").random, keeper.saved)
        driver = self.drivers[name] = Watched(self.fabric, name, self.gate, self._look)
        agent = self.agents[name] = Agent(state, GatedBus(self.broker, name, self.gate), driver, vtep, now_us, keeper)
        await agent.start()
        return agent

    async def _kill(self, part: str) -> None:
        """A part dies and is started again a second later."""
        control = part in self.clouds or part in self._doors
        await (self.kill_control(part) if control else self.stop_agent(part))
        await asyncio.sleep(1)
        await (self.start_control(part) if control else self.start_agent(part))

    async def stop_agent(self, name: str) -> None:
        agent = self.agents.pop(name)
        await agent.close()
        assert not agent.bugs

    async def stop(self) -> None:
        for name in list(self.agents):
            self.agents[name].state.validate()
            await self.stop_agent(name)
        for name in list(self.clouds):
            await self.clouds[name].stop()
            await self._buses[name].close()
        await self.store.close()

    # -- waiting ----------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """The network is whole and well again."""
        self.broker.faults = Faults()
        for name in (*self.agents, *self.clouds):
            self.broker.heal(name)

    async def settle(self) -> None:
        """One echo and one sync after the last change; then everybody is in sync and every ack is stored.

        A doubled registration supersedes its own agent, which then waits an hour in the end.
        """
        await asyncio.sleep(ECHOED)
        for agent in self.agents.values():
            agent._on_bus(Event("slow"))
        await asyncio.sleep(10)
        await until(self.quiet, 5000, 5.0)

    def quiet(self) -> bool:
        return all(agent.state.in_sync() and not agent.state.acks.waiting() for agent in self.agents.values())

    def _look(self) -> None:
        """No address may live on two hosts at any instant; only one that was fenced, until it knows better."""
        for host, agent in self.agents.items():
            rows = [cloud.plane.hosts.get(host) for cloud in self.clouds.values()]
            if any(row is not None and row.state == HostState.FENCED for row in rows):
                self._fenced.add(host)
            elif agent.state.in_sync():
                self._fenced.discard(host)
        living: dict[tuple[bytes, bytes], str] = {}
        for host, driver in self.drivers.items():
            if host in self._fenced or driver._kernel is None:
                continue
            for id_, network in driver.kernel.networks.items():
                for ip in {ip for port in network.ports.values() for ip in port.ips}:
                    other = living.setdefault((id_, ip), host)
                    if other != host:
                        self.doubles.append(f"{ip_text(ip)} on {other} and {host}")

    # -- the truth --------------------------------------------------------------------------------------------------

    async def views(self, table: Table) -> dict[Values, View]:
        found = await self.store.partitions(table)
        return {where: View(table, await self.store.read(table, where)) for where in found}

    async def ports(self) -> list[Port]:
        """Every port row."""
        return [row for view in (await self.views(PORTS)).values() for row in view.all(Kind.PORT).values()]

    async def objects(self, host: str) -> list[Object]:
        """Every object that this host should know, made from the rows that the store has now."""
        found: list[Object] = []
        networks = {where[0]: view for where, view in (await self.views(NETWORKS)).items()}
        mine: set[Value] = set()
        carriers: dict[bytes, set[str]] = {}
        buckets = await self.views(PORTS)
        for (number, _), view in buckets.items():
            for port in view.all(Kind.PORT).values():
                if port.host == host and not port.leaving and port.state == PortState.LIVE:
                    found.append(goals.port(port))
                    mine.add(number)
        for number in mine:
            view = networks[number]
            network = view.get(Kind.NETWORK)
            found.append(goals.network(network))
            found += [goals.subnet(row) for row in view.all(Kind.SUBNET).values() if not row.deleting]
            found += [goals.identity(network.id, row) for row in view.all(Kind.IDENTITY).values()]
            for (where, _), bucket in buckets.items():
                for ip, row in bucket.all(Kind.IP).items():
                    if where == number and row.state != AddressState.CLAIMED:
                        found.append(goals.neighbour(network.id, ip, row))
                        carriers.setdefault(network.id, set()).add(row.host)
        cloud = next(iter(self.clouds.values()))
        for network_id, names in carriers.items():
            for name in filter(None, names):
                row = await cloud.plane.hosts.fetch(name)
                if row is not None and row.state == HostState.UP:
                    peer = goals.peer(network_id, name, row.rev, row.epoch, row.vtep, row.body.number)
                    found.append(peer)
        for view in (await self.views(GROUPS)).values():
            group = view.get(Kind.GROUP)
            if group is not None:
                found.append(goals.group(group, view.all(Kind.RULE).values(), view.top))
        return [item for item in found if not isinstance(item, Gone)]

    async def wanted(self, host: str) -> str:
        """The kernel that a host should have, in the words of `Kernel.dump`."""
        known = Goals(host)
        for item in await self.objects(host):
            known.put(item)
        known.settle()
        specs = [spec for key in known.changed() if (spec := known.spec(key)) is not None]
        kernel = Kernel()
        for spec in sorted(specs, key=lambda spec: spec.key[0] != "network"):
            _put(kernel, spec)
        return kernel.dump()

    def held(self, host: str) -> str:
        return self.drivers[host].dump()

    async def check(self) -> None:
        """Every kernel is what the store says; every bound port of a living host is answered for."""
        for host in self.agents:
            assert self.held(host) == await self.wanted(host), host
        rows = await self.ports()
        said = await reads.statuses(self.store, rows)
        for port in rows:
            assert port.state == PortState.LIVE, f"{port.id.hex()} is not gone"
            assert not port.leaving, f"{port.id.hex()} has not left {port.leaving}"
            if port.host in self.agents:
                status = said.get(port.id)
                assert status is not None, f"{port.id.hex()} on {port.host}: no ack"
                assert (status.applied >= port.goal_rev, status.error) == (True, ""), port.id.hex()


def _put(kernel: Kernel, spec: Spec) -> None:
    key: SpecKey = spec.key
    if key[0] == "network":
        kernel.networks[key[1]] = KernelNetwork(spec)  # type: ignore[arg-type]
    else:
        kernel.networks[key[1]].put(spec)
