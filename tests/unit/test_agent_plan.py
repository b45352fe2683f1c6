"""What the agent hands to the driver next: bounded programs, in which nobody waits for somebody else's removal."""

import pytest

from agent.core.plan import COST, SHARE, Plan
from planes.data.driver import PortSpec, RemoteSpec, SpecKey

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
    plan.opened(frozenset(keys))
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
    plan.opened(frozenset())
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
