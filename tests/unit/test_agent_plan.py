"""What the agent hands to the driver next: bounded programs, in which nobody waits for somebody else's removal."""

import pytest

from agent.core.plan import COST, SHARE, Plan
from planes.data.driver import NetworkSpec, PortSpec, RemoteSpec, SpecKey

NETWORK = b"n" * 16
LIMIT = 1024


def port(n: int) -> PortSpec:
    return PortSpec(NETWORK, n.to_bytes(16, "big"), b"\xfa\x16\x3e\0" + n.to_bytes(2, "big"), (), 1)


@pytest.fixture
def plan() -> Plan:
    return Plan(lambda tries, first, most: first)


def held(plan: Plan, count: int) -> list[SpecKey]:
    """Ports that the kernel has and nobody wants any more."""
    keys = [port(n).key for n in range(count)]
    plan.opened(dict.fromkeys(keys))
    plan.give_up(keys)
    return keys


def test_a_port_does_not_wait_for_a_thousand_that_go(plan: Plan) -> None:
    gone = held(plan, 1000)
    first = plan.next(LIMIT)
    assert first is not None
    assert not first.puts
    assert len(first.drops) == LIMIT // COST["port"]
    new = port(5000)
    plan.want(new.key, new)
    plan.done({}, 0)
    second = plan.next(LIMIT)
    assert second is not None
    assert second.puts == (new,)
    assert len(second.drops) == LIMIT // SHARE // COST["port"]
    dropped = {*first.drops, *second.drops}
    plan.done({}, 0)
    while (program := plan.next(LIMIT)) is not None:
        dropped.update(program.drops)
        plan.done({}, 0)
    assert dropped == set(gone)


def test_removals_go_on_while_ports_come(plan: Plan) -> None:
    held(plan, 64)
    for n in range(1000, 1300):
        plan.want(port(n).key, port(n))
    programs = []
    while (program := plan.next(LIMIT)) is not None:
        programs.append(program)
        plan.done({}, 0)
    assert all(len(one.puts) + len(one.drops) <= LIMIT // COST["port"] * (1 + 1 / SHARE) for one in programs)
    assert sum(len(one.drops) for one in programs[:2]) == 64


def test_what_is_quick_goes_many_at_a_time_and_at_least_one_goes_with_any_limit(plan: Plan) -> None:
    plan.opened({})
    for n in range(3000):
        spec = RemoteSpec(NETWORK, n.to_bytes(4, "big"), b"\2" * 6)
        plan.want(spec.key, spec)
    first = plan.next(LIMIT)
    assert first is not None
    assert len(first.puts) == LIMIT
    plan.done({}, 0)
    plan.want(port(1).key, port(1))
    small = plan.next(2)
    assert small is not None
    assert small.puts == (port(1),)


def test_what_the_driver_works_on_is_held_by_nobody(plan: Plan) -> None:
    """Who says so early lets an address go that is just coming up."""
    plan.opened({})
    new = port(1)
    plan.want(new.key, new)
    assert plan.next(LIMIT) is not None
    plan.want(new.key, None)
    assert not plan.holds(new.key)
    plan.done({}, 0)
    assert not plan.holds(new.key)
    program = plan.next(LIMIT)
    assert program is not None
    assert program.drops == (new.key,)
    plan.want(new.key, new)
    assert not plan.holds(new.key)
    plan.done({}, 0)
    again = plan.next(LIMIT)
    assert again is not None
    assert again.puts == (new,)
    plan.done({}, 0)
    assert plan.holds(new.key)


def test_a_network_that_goes_makes_room_for_one_that_found_none(plan: Plan) -> None:
    old, new = (NetworkSpec(each * 16, 1, 1450) for each in (b"o", b"n"))
    plan.opened({})
    plan.want(old.key, old)
    plan.next(LIMIT)
    plan.done({}, 0)
    plan.want(new.key, new)
    plan.next(LIMIT)
    plan.done({new.key: "full"}, 0)
    plan.retry_at = None
    plan.want(old.key, None)
    plan.next(LIMIT)
    plan.done({}, 5)
    assert plan.retry_at == 5
