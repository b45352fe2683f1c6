"""Who is dead: only a host that was silent while control itself was awake, and connected, for long enough."""

from typing import Any, cast

from planes.control.hosts import HostRow, Hosts
from planes.goalstate.messages import Beat
from planes.model.resources import Host, HostState

DEAD_AFTER = 10.0


class Listener:
    """Hosts with one that has just beaten, and a clock of their own."""

    def __init__(self) -> None:
        self.time = 1000.0
        nothing = cast(Any, None)
        self.hosts = Hosts(nothing, nothing, lambda: 0, lambda: self.time, DEAD_AFTER)
        self.hosts._rows["h1"] = HostRow("h1", 1, 1, "m", b"\0" * 4, "", int(HostState.UP), Host(1))
        self.hosts.beat("h1", 1, Beat())

    def awake(self, seconds: float, connected: bool = True) -> None:
        for _ in range(int(seconds * 4)):
            self.time += 0.25
            self.hosts.listen(connected)


def test_a_host_that_is_silent_while_we_listen_is_dead() -> None:
    listener = Listener()
    listener.awake(9.5)
    assert not listener.hosts.dead("h1")
    listener.awake(1)
    assert listener.hosts.dead("h1")


def test_who_slept_calls_nobody_dead_before_it_has_listened_anew() -> None:
    listener = Listener()
    listener.time += 3600
    assert not listener.hosts.dead("h1")  # before the first tick after waking
    listener.awake(9.5)
    assert not listener.hosts.dead("h1")
    listener.awake(1)
    assert listener.hosts.dead("h1")


def test_who_is_cut_off_calls_nobody_dead_before_it_has_listened_anew() -> None:
    listener = Listener()
    listener.awake(3600, connected=False)
    assert not listener.hosts.dead("h1")
    listener.awake(9.5)
    assert not listener.hosts.dead("h1")
    listener.awake(1)
    assert listener.hosts.dead("h1")


def test_a_missing_beat_is_told_before_a_host_is_dead() -> None:
    listener = Listener()
    listener.awake(3.5)
    assert listener.hosts.silence("h1") == 0
    assert listener.hosts.answers("h1")
    listener.awake(0.5)
    assert listener.hosts.silence("h1") == 4.0
    assert not listener.hosts.answers("h1")
    assert listener.hosts.alive("h1")
    assert listener.hosts.silence("unknown") == 0
