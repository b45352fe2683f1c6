"""What many hosts cost control: one change for all of them, their registration, beats, and how they are listed.

One API process, one broker, 10 000 hosts; three networks that 100, 1 000 and all of them follow, changed by turns, so
that whatever else the machine does meets all three alike. A change that all hear of is a port on one of them (a
neighbour to the others; acked by its own host alone) or a rule of a group that all use (acked by nobody); "all have
it" is when the last simulated host has received it. CPU is the API process's, per change.
"""

import asyncio
import random
import re
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httpx
from msgspec import Struct

from bench.cloud import Bare, bare
from bench.machine import Meter, rss_mib
from bench.report import Figure, at_most
from bench.swarm import BEAT_EVERY, SimulatedHost, Swarm, each
from observability.memory import settle
from planes.goalstate import codec
from planes.goalstate.messages import Goal, Group, Neighbour, What

SIZES = (100, 1_000, 10_000)
CHANGES = 20
#: seconds for which beats are measured
BEATS = 6.0
BULK = 100
#: hosts that pull the whole network
READERS = 20
#: seconds for a change to reach everybody
PATIENCE = 60.0
#: µs of CPU in half a second with which the API does nothing of note
RESTING = 15_000
#: such half seconds in a row after which the echo is done; it works every 5 s
RESTS = 11
#: the server closes a connection that rested for 5 s
LIMITS = httpx.Limits(keepalive_expiry=2)
ADMIN = {"X-Roles": "admin"}


class Field(Struct):
    """A network and a group, and the hosts that follow both."""

    network: str
    group: str
    hosts: Sequence[SimulatedHost]
    rules: int = 0


#: what to look for in a message, and the change itself, which says how many acks it will bring
Change = Callable[[Field, int], tuple[Callable[[Goal], bool], Coroutine[Any, Any, int]]]


def swarm() -> list[Figure]:
    """10 000 simulated hosts: registration, beats, one change for all of them, CPU by their number."""
    with bare(echo_from="6") as running:
        settle()
        return asyncio.run(_run(running))


async def _run(running: Bare) -> list[Figure]:
    hosts = Swarm(running.bus)
    url = str(running.client.base_url)
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=ADMIN, limits=LIMITS, trust_env=False) as client:
        fleet = Fleet(running, client, hosts)
        try:
            figures = await fleet.registered()
            fields = [await fleet.field(size) for size in SIZES[:-1]]
            begun = fleet.begin()
            fields.append(await fleet.field(SIZES[-1]))
            figures.append(fleet.filled(*begun))
            await fleet.echoed()
            await fleet.followed(fields)
            figures += await fleet.told("a port", fleet.one_port, fields)
            figures += await fleet.told("a group's rule", fleet.one_rule, fields)
            await fleet.echoed()
            figures += [await fleet.beaten(), await fleet.listed(), await fleet.pulled(fields[-1])]
        finally:
            await hosts.stop_beats()
            hosts.close()
    return figures


class Fleet:
    """All hosts, and what is measured with them."""

    def __init__(self, running: Bare, client: httpx.AsyncClient, hosts: Swarm) -> None:
        self._running, self._client, self._hosts = running, client, hosts
        self._pid = {"api": running.pids["api"]}
        self._changes = 0

    # -- making it --------------------------------------------------------------------------------------------------

    async def registered(self) -> list[Figure]:
        """All at once, as after a loss of power."""
        size, before = SIZES[-1], rss_mib(self._pid["api"])
        meter, begun = self.begin()
        await self._hosts.grow(size)
        took, cpu = time.perf_counter() - begun, meter.cpu()["api"] / size
        grew = (rss_mib(self._pid["api"]) - before) * 1024 / size
        note = f"{cpu:.0f} µs CPU each, {self._hosts.total('put_off')} put off for a second"
        return [
            Figure(f"{size:,} hosts register at once", round(took, 2), "s", note, meter.steal()),
            Figure("memory of a host in the API", round(grew, 2), "kB"),
        ]

    def begin(self) -> tuple[Meter, float]:
        return Meter(self._pid), time.perf_counter()

    async def field(self, size: int) -> Field:
        """A network of so many hosts, with a port on each; when all are acked, and the acks confirmed."""
        network = (await self._post("network", {"name": f"of {size}"}))["id"]
        await self._post("subnet", {"network_id": network, "cidr": "10.0.0.0/12", "ip_version": 4})
        group = (await self._post("security_group", {"name": f"of {size}"}))["id"]
        field = Field(network, group, self._hosts.hosts[:size])
        acked = self._hosts.total("acked")
        bulks = [field.hosts[start : start + BULK] for start in range(0, size, BULK)]
        await each(bulks, lambda hosts: self._ports(field, hosts), 4)
        await self._acked(acked + size)
        return field

    def filled(self, meter: Meter, begun: float) -> Figure:
        took, cpu, size = time.perf_counter() - begun, meter.cpu()["api"] / SIZES[-1], SIZES[-1]
        note = f"{cpu:.0f} µs CPU each; acks stored and confirmed"
        return Figure(f"a port on each of {size:,} hosts, acked by each", round(took, 2), "s", note, meter.steal())

    async def followed(self, fields: Sequence[Field]) -> None:
        """All follow what they are in. Not before it is filled: what n ports tell n hosts is n² objects, and here it
        is one machine that carries all of them.
        """
        for field in fields:
            for host in field.hosts:
                host.follow(self._hosts.subjects.network(_bytes(field.network)))
                host.follow(self._hosts.subjects.group(_bytes(field.group)))
        await self._hosts.barrier()

    # -- one change for all -----------------------------------------------------------------------------------------

    async def told(self, what: str, change: Change, fields: Sequence[Field]) -> list[Figure]:
        """Changes of the three networks by turns, each until all have it. Nobody beats yet."""
        times: dict[int, list[float]] = {len(field.hosts): [] for field in fields}
        costs: dict[int, list[float]] = {len(field.hosts): [] for field in fields}
        machine = Meter({})
        for number in range(CHANGES + 1):
            for field in random.sample(fields, len(fields)):
                meter = Meter(self._pid)
                took = await self._until_all(change, field, number)
                if number:  # the first is for warming up
                    times[len(field.hosts)].append(took)
                    costs[len(field.hosts)].append(meter.cpu()["api"])
                await asyncio.sleep(0.02)
        figures, steal = [], machine.steal()
        smallest = statistics.median(costs[SIZES[0]])
        for size in times:
            cpu, last = statistics.median(costs[size]), size == SIZES[-1]
            words = f"{what} for all of {size:,} hosts"
            note = f"median {statistics.median(times[size]):.3f} s of {CHANGES}; the slowest counts"
            budget = at_most(1.5) if last else None
            figures.append(Figure(words, round(max(times[size]), 3), "s", note, steal, budget=budget))
            ratio, baseline = (round(cpu / smallest, 2), f"{SIZES[0]} hosts") if size != SIZES[0] else (None, "")
            limit = at_most(1.15, ratio=True) if baseline and change == self.one_rule else None
            note = "" if change == self.one_rule else "the ack of the port's host included"
            figures.append(Figure(f"… CPU of control, {size:,} hosts", cpu, "µs", note, steal, baseline, ratio, limit))
        return figures

    async def _until_all(self, change: Change, field: Field, number: int) -> float:
        """Seconds from the request until the last host has it and the one that acks has had its ack confirmed."""
        left = len(field.hosts)
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        acked = self._hosts.total("acked")
        known, found = b"", False
        is_it, send = change(field, number)

        def heard(data: bytes) -> None:
            """All hosts get the same bytes, so that one look into them is enough."""
            nonlocal left, known, found
            if data != known:
                if found:
                    return
                known, found = data, is_it(codec.decode(data, Goal)[1])
            left -= found
            if left == 0 and not done.done():
                done.set_result(time.perf_counter())

        for host in field.hosts:
            host.goals = heard
        begun = time.perf_counter()
        acks = await send
        try:
            async with asyncio.timeout(PATIENCE):
                took = await done - begun
        except TimeoutError:
            raise SystemExit(f"bench: {left} hosts did not hear of the change") from None
        finally:
            for host in field.hosts:
                host.goals = None
        if acks:
            await self._acked(acked + acks)
            took = time.perf_counter() - begun
        return took

    def one_port(self, field: Field, number: int) -> tuple[Callable[[Goal], bool], Coroutine[Any, Any, int]]:
        """A port on one host is a neighbour to all."""
        host = field.hosts[number]

        async def send() -> int:
            await self._ports(field, [host])
            return 1

        def is_it(goal: Goal) -> bool:
            """The echo of an earlier one completes no stretch."""
            return bool(goal.spans) and any(
                isinstance(item, Neighbour) and item.host == host.name for item in goal.objects
            )

        return is_it, send()

    def one_rule(self, field: Field, _: int) -> tuple[Callable[[Goal], bool], Coroutine[Any, Any, int]]:
        """A group goes to all who use it, as a whole."""
        field.rules += 1
        low = 1000 + field.rules

        async def send() -> int:
            rule = {"direction": "ingress", "ethertype": "IPv4", "protocol": "tcp"}
            ports = {"port_range_min": low, "port_range_max": low}
            await self._post("security_group_rule", {"security_group_id": field.group, **rule, **ports})
            return 0

        def is_it(goal: Goal) -> bool:
            return any(
                isinstance(item, Group) and any(rule.port_min == low for rule in item.rules) for item in goal.objects
            )

        return is_it, send()

    # -- what goes on always ----------------------------------------------------------------------------------------

    async def beaten(self) -> Figure:
        """What beats cost when nothing else happens."""
        self._hosts.start_beats()
        await asyncio.sleep(BEAT_EVERY)
        beats, answered, meter = self._hosts.total("beats"), self._hosts.total("answered"), Meter(self._running.pids)
        await asyncio.sleep(BEATS)
        used, beats = meter.cpu(), self._hosts.total("beats") - beats
        answered = self._hosts.total("answered") - answered
        share = round(100 * used["api"] / (BEATS * 1e6), 1)
        costs = f"{used['api'] / beats:.0f} µs each in the API, {used['nats'] / beats:.0f} in nats-server"
        note = f"{costs}; {answered:,} of {beats:,} answered"
        return Figure(
            f"beats of {SIZES[-1]:,} hosts, every {BEAT_EVERY:g} s", share, "% of a core", note, meter.steal()
        )

    async def listed(self) -> Figure:
        """Every host, in one answer."""
        times, answer = [], httpx.Response(500)
        for _ in range(5):
            begun = time.perf_counter()
            answer = await self._client.get("/v2.0/alcor/hosts")
            times.append(time.perf_counter() - begun)
        hosts = answer.raise_for_status().json()["hosts"]
        alive = sum(host["alive"] for host in hosts)
        note = f"{len(answer.content) / 1e6:.1f} MB, {alive:,} of {len(hosts):,} alive"
        return Figure(f"list of {len(hosts):,} hosts", round(statistics.median(times) * 1000), "ms", note)

    async def pulled(self, field: Field) -> Figure:
        """Some hosts read the whole network, at once."""
        meter, begun = self.begin()
        counts: list[int] = []

        async def read(host: SimulatedHost) -> None:
            counts.append(await host.pull(What.NETWORK, _bytes(field.network)))

        await each(field.hosts[:READERS], read, READERS)
        took, cpu = time.perf_counter() - begun, meter.cpu()["api"] / sum(counts)
        note = f"{counts[0]:,} objects each, {cpu:.1f} µs CPU an object"
        return Figure(f"{READERS} hosts pull the network of {SIZES[-1]:,}", round(took, 2), "s", note, meter.steal())

    async def echoed(self) -> None:
        """Wait until the echo has looked at all that was done, and the API rests. Beats must rest, too."""
        begun = time.perf_counter()
        looked, rested = False, 0
        while not looked or rested < RESTS:
            if time.perf_counter() - begun > PATIENCE:
                raise SystemExit("bench: the echo does not come to an end")
            meter = Meter(self._pid)
            await asyncio.sleep(0.5)
            rested = rested + 1 if meter.cpu()["api"] < RESTING else 0
            looked = await self._counter("echo_looked") >= self._changes

    # -- requests ---------------------------------------------------------------------------------------------------

    async def _acked(self, total: int) -> None:
        begun = time.perf_counter()
        while (done := self._hosts.total("acked")) < total:
            if time.perf_counter() - begun > PATIENCE:
                raise SystemExit(f"bench: {total - done} ports were not acked")
            await asyncio.sleep(0.002)

    async def _counter(self, name: str) -> int:
        text = (await self._client.get("/metrics")).raise_for_status().text
        found = re.search(rf"^alcor_{name}_total\S* (\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

    async def _ports(self, field: Field, hosts: Sequence[SimulatedHost]) -> None:
        self._changes += 1
        port = {"network_id": field.network, "security_groups": [field.group]}
        ports = [{**port, "binding:host_id": host.name} for host in hosts]
        (await self._client.post("/v2.0/ports", json={"ports": ports})).raise_for_status()

    async def _post(self, name: str, body: dict[str, object]) -> dict[str, str]:
        self._changes += 1
        answer = await self._client.post(f"/v2.0/{name.replace('_', '-')}s", json={name: body})
        made: dict[str, str] = answer.raise_for_status().json()[name]
        return made


def _bytes(id_: str) -> bytes:
    return bytes.fromhex(id_.replace("-", ""))
