"""How often a host's networks are looked at: all soon after a start, then as the cost allows."""

from typing import cast

from planes.data.linux import surplus
from planes.data.linux.network import Network

#: seconds between two looks
EVERY = 2.0


def networks(count: int) -> list[Network]:
    return [cast(Network, object()) for _ in range(count)]


def rounds(looks: surplus.Looks, present: list[Network], cost: float, seconds: float) -> list[list[Network]]:
    """What is looked at when each look takes so long."""
    found = []
    for number in range(int(seconds / EVERY)):
        chosen = looks.choose(present, number * EVERY)
        if chosen:
            looks.spent(len(chosen), cost * len(chosen))
        found.append(chosen)
    return found


def test_a_small_host_is_looked_at_each_time() -> None:
    present = networks(3)
    assert all(chosen == present for chosen in rounds(surplus.Looks(), present, 0.0001, 600))


def test_after_a_start_all_have_their_turn_whatever_it_costs() -> None:
    present = networks(1000)
    taken = rounds(surplus.Looks(), present, 0.005, 64)
    assert [one for chosen in taken for one in chosen][:1000] == present


def test_who_costs_much_is_looked_at_rarely() -> None:
    day = 86_400.0
    looks = sum(map(len, rounds(surplus.Looks(), networks(1), 0.2, day)))
    assert 0.8 * day * surplus.SHARE < looks * 0.2 < 1.2 * day * surplus.SHARE


def test_what_went_is_passed_over_and_what_is_new_has_its_turn() -> None:
    looks, present = surplus.Looks(), networks(surplus.NETWORKS + 2)
    assert looks.choose(present, 0.0) == present[: surplus.NETWORKS]
    looks.spent(surplus.NETWORKS, 0.0)
    present[-1:] = new = networks(1)
    assert looks.choose(present, EVERY) == [present[-2]]
    looks.spent(1, 0.0)
    assert new[0] not in looks.choose(present, 2 * EVERY)
    looks.spent(surplus.NETWORKS, 0.0)
    assert new[0] in looks.choose(present, 3 * EVERY)
