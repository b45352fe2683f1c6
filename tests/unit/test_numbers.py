"""Numbers of group sets (rule I2): they rise, then one that rested is given away; no two sets ever have one at a time.

Two instances on one store, on virtual time; each test fails when its part of the rule is taken out.
"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from planes.control import fence, numbers
from planes.control.plane import ControlConfig
from planes.goalstate.messages import Gone, Identity, ObjectKind
from planes.management import port_plans
from planes.model.addresses import bucket
from planes.model.enums import Kind
from planes.model.errors import Conflict, NotFound
from planes.model.ids import Id, bucket_of, parse
from planes.model.requests import FixedIp, PortCreate, SubnetCreate
from planes.model.resources import Address, AddressState, NumberState, Port, PortState
from planes.model.views import PortView
from planes.store.protocol import Partition
from planes.store.schema import NETWORKS, PORTS
from planes.store.views import Draft, View
from tests.support.cloud import caller
from tests.support.numbers import DAY, Two, play

NONE_LEFT = "no number left for another set of security groups"


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
        named = [item for item in page.objects if item.key[0] == ObjectKind.IDENTITY]
        assert [item.number for item in named if isinstance(item, Identity)] == [2]
        assert len(named) == 1

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
@pytest.mark.parametrize("becomes", [NumberState.RESTING, NumberState.FREE, None, "another's"])
def test_a_commit_under_way_when_the_bucket_is_looked_at_fails_and_takes_the_number_back_or_another(
    tmp_path: Path, way: Way, becomes: NumberState | str | None
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
        if isinstance(becomes, NumberState):
            assert await two.state("a") == becomes
        else:
            assert await two.of(await two.port("d")) == 2
            assert await two.row("a") is None
        if becomes == "another's":
            assert await two.of(await two.port("a")) == 3
        two.doors[1].let()
        assert {await two.of(port) for port in await task} == {2 if isinstance(becomes, NumberState) else 3}
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
        await asyncio.sleep(1)
        of_a = [item for item in two.told if isinstance(item, Identity) and item.groups == (two.groups["a"],)]
        assert len(of_a) == 1, "hosts were told anew what they knew"

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


def test_a_number_is_seen_at_ports_that_go_and_at_addresses_that_hosts_were_told_of() -> None:
    id_, view = Id(bytes(16)), View(PORTS, Partition((0, 0, 0), []))
    draft = Draft(view, {}, {})
    draft.put(Kind.PORT, b"1", Port(id_, id_, "", b"", (), identity=1, state=PortState.DELETING))
    for n, state in enumerate(AddressState, 2):
        draft.put(Kind.IP, bytes((n,)), Address(id_, id_, b"", "", n, state))
    assert numbers._fenced(7)(draft, 8) == {1, 2, 3, 4}
    assert draft.get(Kind.BUCKET).rev == 7


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


def test_so_many_are_kept_for_new_sets_and_no_more_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "SPARE", 2)

    async def story(two: Two) -> None:
        await two.spend("cba")
        for _ in range(2):
            await two.rested()
            assert [await two.state(name) for name in "abc"] == [NumberState.USED, NumberState.FREE, NumberState.FREE]
        await two.port("d")
        await two.rested()
        assert await two.state("a") == NumberState.FREE

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
        assert await two.of(await two.port("a", 1)) == 1
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
