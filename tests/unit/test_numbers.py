"""Numbers of group sets (rule I2): they rise, then one that rested is given away; no two sets ever have one at a time.

Two instances on one store, on virtual time; each test fails when its part of the rule is taken out.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from planes.bus.memory.bus import MemoryBroker, MemoryBus
from planes.bus.protocol import Incoming
from planes.control import fence, numbers
from planes.control.plane import ControlConfig
from planes.goalstate import codec
from planes.goalstate.messages import Goal, Gone, Identity, ObjectKind
from planes.management import port_plans
from planes.management.cloud import Cloud, build
from planes.management.context import ManagementConfig
from planes.management.port_plans import identity_key
from planes.model import resources
from planes.model.addresses import bucket
from planes.model.enums import Kind
from planes.model.errors import Conflict, NotFound
from planes.model.ids import Id, bucket_of, number_of, parse, text
from planes.model.requests import FixedIp, GroupCreate, NetworkCreate, PortCreate, PortUpdate, SubnetCreate
from planes.model.resources import NumberState, Port
from planes.model.views import PortView
from planes.store.protocol import Batch, Store, Write
from planes.store.schema import NETWORKS, PORTS
from planes.store.sqlite.store import SqliteStore
from planes.store.views import Draft, View
from tests.support.clock import now_us, run
from tests.support.cloud import caller
from tests.support.invariants import violations
from tests.support.steady import SteadyStore

DAY = 86_400.0
NONE_LEFT = "no number left for another set of security groups"


class Door:
    """The store as one instance sees it; its batches of a table wait here, in `waits`, until they may `go`."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.holds = ""
        self.waits, self.go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, batch: Batch, before: tuple[Write, ...] = ()) -> bool:
        if batch.table.name == self.holds:
            self.waits.set()
            await self.go.wait()
        done: bool = await cast(Store, self._inner).commit(batch, before)
        return done

    def hold(self, table: str) -> None:
        self.holds = table
        self.waits.clear()
        self.go.clear()

    def let(self) -> None:
        self.holds = ""
        self.go.set()


class Two:
    """Two instances that nothing happens in by itself, a network, and security groups a, b, c, …"""

    def __init__(self, store: SteadyStore) -> None:
        self.store = store
        self.doors = [Door(store) for _ in range(2)]
        self.broker = MemoryBroker()
        self.clouds: list[Cloud] = []
        self.network, self.number = "", 0
        self.groups: dict[str, Id] = {}
        self.told: list[object] = []
        self.spare: PortView

    async def start(self, count: int) -> None:
        management = ManagementConfig(instance_spread=False)
        for n, door in enumerate(self.doors):
            bus = MemoryBus(self.broker, f"c{n}")
            await bus.connect()
            self.clouds.append(build(cast(Store, door), bus, ControlConfig(), management, now=now_us))
        (made,) = await self.clouds[0].networks.create(caller(), [NetworkCreate()])
        self.network, self.number = made.id, number_of(parse(made.id))
        await self.clouds[0].subnets.create(caller(), [SubnetCreate(network_id=made.id, cidr="10.0.0.0/16")])
        for name in "abcdefghijklmnop"[:count]:
            (group,) = await self.clouds[0].groups.create(caller(), [GroupCreate(name=name)])
            self.groups[name] = parse(group.id)
        plane = self.clouds[1].plane

        def heard(message: Incoming) -> None:
            items = codec.decode(message.data, Goal)[1].objects
            self.told += [item for item in items if item.key[0] == ObjectKind.IDENTITY]

        await plane.bus.subscribe(plane.subjects.network(parse(made.id)), heard)

    async def stop(self) -> None:
        for cloud in self.clouds:
            await cloud.plane.partitions.idle()
            await cloud.plane.bus.close()
        await self.store.close()

    def wanted(self, names: str, ip: str = "", host: str = "") -> PortCreate:
        fixed = {"fixed_ips": (FixedIp(ip_address=ip),)} if ip else {}
        return PortCreate(network_id=self.network, host_id=host, security_groups=self.ids(names), **fixed)  # type: ignore[arg-type]

    def ids(self, names: str) -> tuple[str, ...]:
        return tuple(text(self.groups[name]) for name in names)

    async def port(self, names: str, by: int = 0, ip: str = "") -> PortView:
        """A port with these groups."""
        (made,) = await self.clouds[by].ports.create(caller(), [self.wanted(names, ip)])
        return made

    async def wear(self, port: PortView, names: str, by: int = 0) -> None:
        wanted = PortUpdate(security_groups=self.ids(names))
        await self.clouds[by].ports.update(caller(), port.id, wanted, None)

    async def drop(self, port: PortView, by: int = 0) -> None:
        await self.clouds[by].ports.delete(caller(), port.id, None)

    async def spend(self, names: str) -> None:
        """Each of these groups gets a number, and then has no port."""
        for name in names:
            await self.drop(await self.port(name))

    async def check(self, by: int = 0) -> None:
        """What happens once a day."""
        report = await self.clouds[by].plane.check.run(fix=True)
        assert [finding.rule for finding in report.left] == []

    async def look(self, by: int = 0) -> None:
        """The part of it that is about numbers."""
        await self.clouds[by].plane.check._numbers.tend(self.number, lambda: asyncio.sleep(0))

    async def rested(self, by: int = 0) -> None:
        """Whatever no port has has rested, and is free."""
        await self.look(by)
        await asyncio.sleep(7 * DAY)
        await self.look(by)

    async def row(self, names: str) -> resources.Identity | None:
        view = View(NETWORKS, await self.store.read(NETWORKS, (self.number,)))
        row: resources.Identity | None = view.get(Kind.IDENTITY, self.key(names))
        return row

    def key(self, names: str) -> bytes:
        return identity_key(tuple(sorted(self.groups[name] for name in names)))

    async def state(self, names: str) -> int:
        row = await self.row(names)
        assert row is not None
        return row.state

    async def of(self, port: PortView) -> int:
        """The number that a port has in the store."""
        id_ = parse(port.id)
        view = View(PORTS, await self.store.read(PORTS, (self.number, bucket_of(id_))))
        row: Port = view.get(Kind.PORT, id_)
        return row.identity

    async def right(self) -> None:
        """Each port has its set's number, and no number is of two sets."""
        assert await violations(cast(Store, self.store)) == []


Story = Callable[[Two], Awaitable[None]]


def play(path: Path, story: Story, count: int = 6, seed: int = 1) -> None:
    @asynccontextmanager
    async def made() -> AsyncIterator[Two]:
        two = Two(SteadyStore(SqliteStore(path / "store.db"), random.Random(seed)))
        await two.store.open()
        await two.start(count)
        try:
            yield two
        finally:
            for door in two.doors:
                door.let()
            await two.stop()

    async def main() -> None:
        async with made() as two:
            await story(two)
            await two.right()

    run(main())


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "MAX_IDENTITY", 3)


def test_seven_days_are_the_default() -> None:
    assert ControlConfig().number_rest == 7 * DAY


def test_no_number_comes_back_before_all_were_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "MAX_IDENTITY", 11)

    async def story(two: Two) -> None:
        await two.spend("abcdefghi")  # nine of eleven: it is not time to look yet
        await two.rested()
        assert await two.state("a") == NumberState.USED
        assert await two.of(await two.port("j")) == 10
        await two.rested()  # nine have rested and are free; one was never given
        assert await two.state("a") == NumberState.FREE
        assert await two.of(await two.port("k")) == 11
        assert await two.of(await two.port("l")) < 10

    play(tmp_path, story, 12)


def test_a_number_rests_seven_days_and_is_then_given_away_the_longest_unused_first(tmp_path: Path) -> None:
    async def story(two: Two) -> None:
        b = await two.port("b")
        await two.spend("ac")
        assert [(await two.row(name)).number for name in "bac"] == [1, 2, 3]  # type: ignore[union-attr]
        with pytest.raises(Conflict, match=NONE_LEFT):
            await two.port("d")
        keeper = await two.port("c")
        await two.check()
        assert [await two.state(name) for name in "abc"] == [NumberState.RESTING, NumberState.USED, NumberState.USED]
        await two.drop(keeper)
        await asyncio.sleep(DAY)
        await two.check()
        await asyncio.sleep(6 * DAY - 120)
        await two.check()
        for by in (0, 1):
            with pytest.raises(Conflict, match=NONE_LEFT) as caught:
                await two.port("d", by)
            assert caught.value.type_name == "OverQuota"
        await asyncio.sleep(DAY + 240)
        await two.check()
        d, e = await two.port("d", 1), await two.port("e")
        assert [await two.of(port) for port in (b, d, e)] == [1, 2, 3]
        assert [await two.row(name) for name in "ac"] == [None, None]
        with pytest.raises(Conflict, match=NONE_LEFT):
            await two.port("a")
        await two.right()

    play(tmp_path, story)


def test_hosts_are_told_that_it_means_nothing_when_the_rest_begins_and_what_it_means_before_the_next_port(
    tmp_path: Path,
) -> None:
    async def story(two: Two) -> None:
        await two.spend("abc")
        await two.look()
        await two.wear(await two.port("a"), "b")
        await two.port("a")  # so that both are back under their old numbers
        await asyncio.sleep(7 * DAY)
        await two.look()
        await two.port("d")
        await asyncio.sleep(1)
        said: dict[int, list[tuple[bytes, ...]]] = {1: [], 2: [], 3: []}
        last = {1: 0, 2: 0, 3: 0}
        for item in two.told:
            assert isinstance(item, Identity | Gone)
            number = int.from_bytes(item.key[2], "big")
            assert item.rev > last[number], "said twice, or in vain"
            last[number] = item.rev
            said[number].append(item.groups if isinstance(item, Identity) else ())
        a, b, c, d = [(two.groups[name],) for name in "abcd"]
        assert said == {1: [a, (), a], 2: [b, (), b], 3: [c, (), d]}

    play(tmp_path, story)


def test_a_snapshot_does_not_name_what_means_nothing(tmp_path: Path) -> None:
    async def story(two: Two) -> None:
        plane = two.clouds[0].plane
        await two.spend("abc")
        await two.look()
        await two.port("b")
        view = await plane.ground.network_view(two.number, fresh=True)
        network = view.get(Kind.NETWORK)
        page = await plane.snapshots._network_page(network, view, None)
        assert [item.number for item in page.objects if isinstance(item, Identity)] == [2]

    play(tmp_path, story)


@pytest.mark.parametrize("days", [0, 3, 7])
def test_a_set_that_gets_a_port_meanwhile_keeps_its_number_and_rests_anew(tmp_path: Path, days: int) -> None:
    async def story(two: Two) -> None:
        await two.spend("abc")
        await two.look()
        if days:
            await asyncio.sleep(days * DAY)
            await two.look()
        assert await two.state("a") == (NumberState.FREE if days == 7 else NumberState.RESTING)
        port = await two.port("a", 1)
        assert await two.of(port) == 1
        assert await two.state("a") == NumberState.USED
        await asyncio.sleep(8 * DAY)
        await two.look()
        await two.drop(port)
        assert await two.state("a") == NumberState.USED
        assert [await two.of(await two.port(name)) for name in "de"] == [2, 3]
        await two.look()
        await asyncio.sleep(6 * DAY)
        await two.look(1)
        with pytest.raises(Conflict, match=NONE_LEFT):
            await two.port("f")
        await asyncio.sleep(DAY)
        await two.look(1)
        assert await two.of(await two.port("f")) == 1

    play(tmp_path, story)


Way = Callable[[Two], Coroutine[Any, Any, list[PortView]]]


async def one(two: Two) -> list[PortView]:
    return [await two.port("a", by=1)]


async def at_an_address(two: Two) -> list[PortView]:
    return [await two.port("a", by=1, ip="10.0.0.77")]


async def bulk(two: Two) -> list[PortView]:
    wanted = [two.wanted("a")] * 40
    return await two.clouds[1].ports.create(caller(), wanted)


async def change(two: Two) -> list[PortView]:
    await two.wear(two.spare, "a", by=1)
    return [two.spare]


WAYS = [one, at_an_address, bulk, change]


@pytest.mark.parametrize("way", WAYS)
def test_who_knows_the_network_from_before_does_not_use_a_number_that_is_anothers_now(tmp_path: Path, way: Way) -> None:
    """The other instance has forgotten the bucket, so no lost race tells it: the bucket itself does."""

    async def story(two: Two) -> None:
        two.spare = await two.port("b")
        await two.drop(await two.port("a", by=1), by=1)
        await two.spend("c")
        parts = two.clouds[1].plane.partitions
        known = parts.peek(NETWORKS, (two.number,))
        assert known is not None
        assert known.get(Kind.IDENTITY, two.key("a")).number == 2
        await two.rested()
        d = await two.port("d")
        assert await two.of(d) == 2
        for where in [where for name, where in list(parts._desks) if name == "ports"]:
            parts.forget(PORTS, where)
        assert {await two.of(port) for port in await way(two)} == {3}
        assert await two.of(d) == 2

    play(tmp_path, story)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("becomes", [NumberState.RESTING, NumberState.FREE, None])
def test_a_commit_under_way_when_the_bucket_is_looked_at_fails_and_takes_the_number_back_or_another(
    tmp_path: Path, way: Way, becomes: NumberState | None
) -> None:
    async def story(two: Two) -> None:
        two.spare = await two.port("b", by=1)
        await two.drop(await two.port("a", by=1), by=1)
        await two.spend("c")
        two.doors[1].hold("ports")
        task = asyncio.create_task(way(two))
        await two.doors[1].waits.wait()
        await two.look()
        if becomes is not NumberState.RESTING:
            await asyncio.sleep(7 * DAY)
            await two.look()
        if becomes is None:
            assert await two.of(await two.port("d")) == 2
            assert await two.row("a") is None
        else:
            assert await two.state("a") == becomes
        two.doors[1].let()
        assert {await two.of(port) for port in await task} == {3 if becomes is None else 2}
        assert await two.state("a") == NumberState.USED

    play(tmp_path, story)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stale", [True, False])
def test_a_commit_before_the_bucket_is_looked_at_is_seen_and_keeps_its_number(
    tmp_path: Path, way: Way, stale: bool
) -> None:
    async def story(two: Two) -> None:
        two.spare = await two.port("b", by=1)
        await two.spend("c")
        await two.drop(await two.port("a", by=1), by=1)  # so that the other instance knows all that there is
        two.doors[0].hold("ports")
        look = asyncio.create_task(two.look())
        await two.doors[0].waits.wait()
        assert await two.state("a") == NumberState.DOUBTED
        if not stale:
            await two.clouds[1].plane.ground.network_view(two.number, fresh=True)
        ports = await way(two)
        assert await two.state("a") == (NumberState.DOUBTED if stale else NumberState.USED)
        two.doors[0].let()
        await look
        assert {await two.of(port) for port in ports} == {3}
        assert [await two.state(name) for name in "ac"] == [NumberState.USED, NumberState.RESTING]

    play(tmp_path, story)


@pytest.mark.parametrize("way", WAYS)
def test_a_number_that_was_taken_back_does_not_rest_though_its_port_is_not_there_yet(tmp_path: Path, way: Way) -> None:
    async def story(two: Two) -> None:
        two.spare = await two.port("b", by=1)
        await two.drop(await two.port("a", by=1), by=1)
        await two.spend("c")
        two.doors[0].hold("ports")
        look = asyncio.create_task(two.look())
        await two.doors[0].waits.wait()
        await two.clouds[1].plane.ground.network_view(two.number, fresh=True)
        two.doors[1].hold("ports")
        task = asyncio.create_task(way(two))
        await two.doors[1].waits.wait()
        two.doors[0].let()
        await look
        assert [await two.state(name) for name in "ac"] == [NumberState.USED, NumberState.RESTING]
        two.doors[1].let()
        assert {await two.of(port) for port in await task} == {2}

    play(tmp_path, story)


@pytest.mark.parametrize("seed", range(8))
def test_one_takes_a_free_number_and_another_takes_it_back_at_the_same_time(tmp_path: Path, seed: int) -> None:
    async def story(two: Two) -> None:
        await two.spend("abc")
        await two.rested()
        if seed % 2:
            await two.clouds[1].plane.ground.network_view(two.number, fresh=True)
        made = await asyncio.gather(two.port("d"), two.port("a", by=1), two.port("e", by=seed % 2))
        assert {await two.of(port) for port in made} == {1, 2, 3}
        await two.right()

    play(tmp_path, story, seed=seed)


def test_a_bucket_that_is_registered_later_is_no_way_around(tmp_path: Path) -> None:
    """Who commits into it must know the network at least since then, whatever it remembered before."""

    async def story(two: Two) -> None:
        await two.spend("abc")
        before = View(NETWORKS, await two.store.read(NETWORKS, (two.number,)))
        await two.rested()
        await two.port("d", ip="10.0.9.9")
        after = View(NETWORKS, await two.store.read(NETWORKS, (two.number,)))
        groups, here = (two.groups["a"],), bucket(bytes((10, 0, 9, 9)))
        for view in (None, before, after):
            with pytest.raises(port_plans.Renumbered):
                port_plans.numbered(view, here, groups, 1)
        port_plans.numbered(after, here, (two.groups["d"],), 1)
        port_plans.numbered(before, bucket(bytes((10, 0, 0, 9))), groups, 1)

    play(tmp_path, story)


def test_a_look_that_is_cut_off_anywhere_is_finished_by_the_next_and_two_at_once_do_no_harm(tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    async def story(two: Two) -> None:
        await two.spend("abc")
        for steps in range(20):
            left = steps

            async def pause() -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Cut

            try:
                await two.clouds[steps % 2].plane.check._numbers.tend(two.number, pause)
            except Cut:
                pass
            if steps == 1:
                assert await two.state("a") == NumberState.DOUBTED
        assert await two.state("a") == NumberState.RESTING
        port = await two.port("b")
        await asyncio.gather(two.look(0), two.look(1))
        await asyncio.sleep(7 * DAY)
        await asyncio.gather(two.look(0), two.look(1))
        assert [await two.state(name) for name in "abc"] == [NumberState.FREE, NumberState.USED, NumberState.FREE]
        assert await two.of(port) == 2

    play(tmp_path, story)


def test_what_an_instance_of_a_former_version_gives_while_it_rests_is_used_again(tmp_path: Path) -> None:
    """Such a one knows no states; the look after the rest is there for it."""

    async def story(two: Two) -> None:
        keeper = await two.port("a")
        id_ = parse(keeper.id)
        where = (two.number, bucket_of(id_))
        seen = View(PORTS, await two.store.read(PORTS, where))
        old: Port = seen.get(Kind.PORT, id_)
        await two.drop(keeper)
        await two.spend("bc")
        await two.look()

        def put(draft: Draft, rev: int) -> None:
            draft.put(Kind.PORT, id_, replace(old, rev=rev, fixed=()))

        def take(draft: Draft, _: int) -> None:
            draft.drop(Kind.PORT, id_)

        await two.clouds[1].plane.ground.change_bucket(old.network, *where, put)
        assert await two.state("a") == NumberState.RESTING
        await asyncio.sleep(7 * DAY)
        await two.look()
        assert [await two.state(name) for name in "abc"] == [NumberState.USED, NumberState.FREE, NumberState.FREE]
        await two.clouds[1].plane.ground.change_bucket(old.network, *where, take)

    play(tmp_path, story)


def test_a_bucket_that_is_newer_than_its_network_came_out_of_a_backup_and_still_takes_ports(tmp_path: Path) -> None:
    async def story(two: Two) -> None:
        port = await two.port("a")
        plane = two.clouds[1].plane
        top = (await plane.ground.network_view(two.number, fresh=True)).top
        await asyncio.sleep(1)
        where = (two.number, bucket_of(parse(port.id)))
        await plane.ground.change_bucket(parse(two.network), *where, fence.require(top + 500_000))
        assert await two.of(await two.port("b")) == 2
        assert (await plane.ground.network_view(two.number, fresh=True)).top > top + 500_000

    play(tmp_path, story)


def test_no_port_is_created_in_a_subnet_that_went_while_the_network_was_remembered(tmp_path: Path) -> None:
    """D3: the bucket was read after the subnet went, the network before; the bucket says that this is not enough."""

    async def story(two: Two) -> None:
        c0, c1 = two.clouds
        (subnet,) = await c0.subnets.create(caller(), [SubnetCreate(network_id=two.network, cidr="10.1.0.0/24")])
        fixed = (FixedIp(subnet_id=subnet.id),)
        wanted = PortCreate(network_id=two.network, fixed_ips=fixed)
        (port,) = await c1.ports.create(caller(), [wanted])
        await two.drop(port, by=1)
        await c0.subnets.delete(caller(), subnet.id, None)
        await c1.plane.ground.bucket_view(two.number, bucket_of(parse(port.id)), fresh=True)
        with pytest.raises(NotFound, match="Subnet"):
            await c1.ports.create(caller(), [wanted])

    play(tmp_path, story)
