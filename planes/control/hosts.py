"""Hosts: registration, epochs, beats, and what happens when one is dead.

Called by the plane (register and beat requests), by management (is this host known, may its addresses be freed) and by
snapshots (peers). A host row changes by compare-and-set only. A host that falls silent keeps its traffic (fail static);
only when an address of it must be given to somebody else is it *fenced*: its peers are withdrawn from every network
first, and it has to register anew before it is heard (rules S16, S20).
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import msgspec
from msgspec import Struct

from planes.control import goals
from planes.control.ground import Ground
from planes.goalstate.messages import VERSION, Beat, Object, Ok, Register, Registered
from planes.goalstate.subjects import check_host, token
from planes.model.enums import Kind
from planes.model.errors import Conflict, Invalid, Unavailable
from planes.model.ids import Id, number_of
from planes.model.resources import Host, HostState
from planes.store import protocol
from planes.store.protocol import Batch, Partition, Store, Values
from planes.store.schema import BY_HOST, HOSTS
from planes.store.slots import Slots

_decode = msgspec.msgpack.Decoder(Host).decode
_encode = msgspec.msgpack.Encoder().encode
ATTEMPTS = 8
#: share of the time that makes a host dead, after which a beat is missed and it is shown
LATE = 0.36
#: rows that are loaded without a pause
PAUSE = 50


class HostRow(Struct, frozen=True):
    """A row of `hosts`."""

    name: str
    epoch: int
    rev: int
    machine: str
    vtep: bytes
    cell: str
    state: int
    body: Host


class Pulse(Struct):
    """What this instance has heard of a host, in monotonic seconds and wall-clock µs."""

    heard: float
    at: int
    beat: Beat
    epoch: int


def _row(name: str, read: Partition) -> HostRow | None:
    if not read.exists or not read.statics[1]:
        return None
    epoch, rev, machine, vtep, cell, state, body = cast(tuple[Any, ...], read.statics)
    return HostRow(name, epoch, rev, machine, vtep, cell, state, _decode(body))


def _repeats(asked: Register, row: HostRow) -> bool:
    """Whether this very registration was granted already: its reply was lost, or it was delivered twice."""
    return bool(asked.attempt) and asked.attempt == row.body.attempt and asked.epoch < row.epoch


class Hosts:
    """All hosts, as this instance knows them."""

    def __init__(
        self,
        store: Store,
        slots: Slots,
        now: Callable[[], int],
        monotonic: Callable[[], float],
        dead_after: float,
    ) -> None:
        self._store = store
        self._slots = slots
        self._now = now
        self._monotonic = monotonic
        self._dead_after = dead_after
        self._rows: dict[str, HostRow] = {}
        self._by_token: dict[str, str] = {}
        self._pulses: dict[str, Pulse] = {}
        self._listening_since = self._listened = monotonic()
        #: when this instance first saw the present epoch of a host: it has not had the time to beat before
        self._began: dict[str, float] = {}
        self.ground: Ground | None = None

    # -- reading ----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read every host row; at start and now and then, for what other instances registered."""
        for number, partition in enumerate(await self._store.partitions(HOSTS)):
            if number % PAUSE == 0:
                await asyncio.sleep(0)  # a store that answers at once must not keep the loop from everybody else
            await self.fetch(cast(str, partition[0]))

    async def fetch(self, name: str, serial: bool = False) -> HostRow | None:
        """The row as the store has it."""
        row = _row(name, await self._store.read(HOSTS, (name,), serial=serial))
        if row is not None:
            if self.epoch(name) != row.epoch:
                self._began[name] = self._monotonic()
            self._rows[name] = row
            self._by_token[token(name)] = name
        return row

    def get(self, name: str) -> HostRow | None:
        """The row as this instance last knew it."""
        row = self._rows.get(name)
        return row if row is not None and row.state != HostState.REMOVED else None

    def all(self) -> Iterable[HostRow]:
        return [row for row in self._rows.values() if row.state != HostState.REMOVED]

    def named(self, subject_token: str) -> str:
        """The host's name from its spelling in a subject; empty when unknown."""
        return self._by_token.get(subject_token, "")

    def can(self, name: str, capability: str) -> bool:
        """Whether its agent said so when it registered."""
        row = self._rows.get(name)
        return row is not None and capability in row.body.capabilities

    def epoch(self, name: str) -> int:
        row = self._rows.get(name)
        return row.epoch if row else 0

    def pulse(self, name: str) -> Pulse | None:
        return self._pulses.get(name)

    def census(self) -> Iterator[tuple[str, Beat | None]]:
        """Each host's state in a word, and its last beat: alive, silent, planned or fenced."""
        since = self._monotonic() - self._dead_after
        for name, row in self._rows.items():
            pulse = self._pulses.get(name)
            if row.state == HostState.UP:
                state = "alive" if pulse is not None and pulse.heard > since else "silent"
            elif row.state != HostState.REMOVED:
                state = "planned" if row.state == HostState.PLANNED else "fenced"
            else:
                continue
            yield state, pulse.beat if pulse is not None else None

    def alive(self, name: str) -> bool:
        """Heard within the time that makes a host dead."""
        pulse = self._pulses.get(name)
        return pulse is not None and self._monotonic() - pulse.heard < self._dead_after

    def answers(self, name: str) -> bool:
        """Alive, and no beat is missing."""
        pulse = self._pulses.get(name)
        return pulse is not None and self._monotonic() - pulse.heard <= LATE * self._dead_after

    def silence(self, name: str) -> float:
        """Seconds for which an agent has missed its beats; 0 while it has not, or was never heard."""
        pulse = self._pulses.get(name)
        since = self._monotonic() - pulse.heard if pulse is not None else 0.0
        return since if since > LATE * self._dead_after else 0.0

    def listen(self, connected: bool) -> None:
        """Called several times a second. Who was cut off, or asleep, must listen anew before calling anybody dead."""
        if not connected or self._slept():
            self._listening_since = self._monotonic()
        self._listened = self._monotonic()

    def _slept(self) -> bool:
        """Whether this process stood still (paused, or its machine was) and what hosts said has yet to be read."""
        return self._monotonic() - self._listened > self._dead_after / 2

    def dead(self, name: str) -> bool:
        """Surely silent: unknown, fenced already, or this instance has listened long enough and heard nothing.

        A guess, from what this instance knows; `fence` makes sure.
        """
        row = self._rows.get(name)
        if row is None or row.state != HostState.UP:
            return True
        if self._slept():
            return False
        since = max(self._listening_since, self._began.get(name, 0.0))
        return not self.alive(name) and self._monotonic() - since >= self._dead_after

    # -- requests from hosts ----------------------------------------------------------------------------------------

    async def register(self, asked: Register) -> Registered:
        """An agent starts: give it the next epoch. Refused while another machine of that name is alive."""
        try:
            name = check_host(asked.host)
        except Invalid as error:
            return Registered(refused=str(error))
        if VERSION not in asked.versions:
            return Registered(refused=f"control speaks contract version {VERSION}, the agent {asked.versions}")
        if len(asked.vtep) != 4:
            return Registered(refused="the underlay address must be IPv4")
        other = self._by_token.get(token(name))
        if other is not None and other != name:
            return Registered(refused=f"a host called {other} is spelled the same in subjects")
        for _ in range(ATTEMPTS):
            row = await self.fetch(name, serial=True)
            if row is not None and row.machine not in ("", asked.machine) and not self.dead(name):
                return Registered(refused=f"host {name} is alive on another machine ({row.machine})")
            if row is not None and row.state == HostState.UP and _repeats(asked, row):
                return Registered(row.epoch, row.body.number)  # repeated, or delivered twice
            number = row.body.number if row else 0
            if not number:
                number = await self._slots.claim_host_number(name.encode())
            body = Host(
                number,
                self._now(),
                asked.capabilities,
                asked.software,
                row.body.description if row else "",
                asked.attempt,
            )
            changed = {
                "epoch": max(row.epoch if row else 0, asked.epoch) + 1,
                "machine": asked.machine,
                "vtep": asked.vtep,
                "cell": asked.cell,
                "state": int(HostState.UP),
                "body": _encode(body),
            }
            new = await self._commit(name, row, changed)
            if new is not None:
                self._pulses.pop(name, None)
                await self._announce(new)
                return Registered(new.epoch, number)
        raise Unavailable(f"Host {name} is being registered by others.")

    def beat(self, host: str, epoch: int, beat: Beat) -> Ok:
        """A host is alive. A former life learns the present epoch and must stop changing things."""
        row = self._rows.get(host)
        if row is None:
            return Ok(0)
        if epoch >= row.epoch and row.state == HostState.UP:
            self._pulses[host] = Pulse(self._monotonic(), self._now(), beat, epoch)
            return Ok(row.epoch)
        return Ok(self.heard_from(host))

    def heard_from(self, name: str) -> int:
        """The lowest epoch in which the host is listened to: a fenced one has to register anew first (rule S20)."""
        row = self._rows.get(name)
        return 0 if row is None else row.epoch + 1 if row.state == HostState.FENCED else row.epoch

    # -- requests from operators ------------------------------------------------------------------------------------

    async def plan(self, name: str, description: str) -> HostRow:
        """Make a host known before its agent starts; raises Conflict when it is known already."""
        check_host(name, "name")
        for _ in range(ATTEMPTS):
            row = await self.fetch(name, serial=True)
            if row is not None and row.state != HostState.REMOVED:
                raise Conflict(f"Host {name} already exists.", "HostExists")
            other = self._by_token.get(token(name), name)
            if other != name:
                raise Conflict(f"Host {name} is spelled like host {other} in subjects.", "HostExists")
            body = Host(row.body.number if row else 0, description=description)
            changed = {"state": int(HostState.PLANNED), "body": _encode(body), "epoch": row.epoch if row else 0}
            changed |= {"machine": "", "vtep": b"", "cell": ""}
            if (new := await self._commit(name, row, changed)) is not None:
                return new
        raise Unavailable(f"Host {name} is being changed by others.")

    async def describe(self, name: str, description: str) -> HostRow | None:
        """Change the description."""
        for _ in range(ATTEMPTS):
            row = await self.fetch(name, serial=True)
            if row is None:
                return None
            body = msgspec.structs.replace(row.body, description=description)
            if (new := await self._commit(name, row, {"body": _encode(body)})) is not None:
                return new
        raise Unavailable(f"Host {name} is being changed by others.")

    async def fence(self, name: str) -> bool:
        """Withdraw a dead host from every network, so that its addresses may be given away. False: it is not dead."""
        for _ in range(ATTEMPTS):
            row = await self.fetch(name, serial=True)
            if row is None or row.state != HostState.UP:
                return True
            if not self.dead(name):
                return False
            if (new := await self._commit(name, row, {"state": int(HostState.FENCED)})) is not None:
                await self._announce(new)
                return True
        return False

    async def forget(self, name: str) -> None:
        """Remove a host that has no ports; raises Conflict while it is alive or has some."""
        row = await self.fetch(name, serial=True)
        if row is None or row.state == HostState.REMOVED:
            return
        if self.alive(name):
            raise Conflict(f"Host {name} is alive; stop its agent first.", "HostInUse")
        if (await self._store.read(BY_HOST, (name,), limit=1)).rows:
            raise Conflict(f"Host {name} still has ports.", "HostInUse")
        gone = {"epoch": row.epoch, "state": int(HostState.REMOVED), "machine": "", "vtep": b""}
        if await self._commit(name, row, gone) is None:
            raise Unavailable(f"Host {name} is being changed by others.")
        self._pulses.pop(name, None)

    # -- peers ------------------------------------------------------------------------------------------------------

    def peer(self, network: bytes, name: str) -> Object | None:
        """The peer object of a host in a network: where its tunnel ends, or that it is withdrawn."""
        row = self._rows.get(name)
        if row is None or not row.vtep:
            return None
        if row.state == HostState.UP:
            return goals.peer(network, name, row.rev, row.epoch, row.vtep, row.body.number)
        return goals.peer_gone(network, name, row.rev)

    async def networks_of(self, name: str) -> dict[int, bytes]:
        """Numbers and ids of the networks in which the host has ports."""
        assert self.ground is not None
        found: dict[int, bytes] = {}
        for row in (await self._store.read(BY_HOST, (name,))).rows:
            number = number_of(Id(cast(bytes, row[0])))
            if number not in found:
                network = (await self.ground.network_view(number)).get(Kind.NETWORK)
                if network is not None:
                    found[number] = network.id
        return found

    async def _announce(self, row: HostRow) -> None:
        assert self.ground is not None
        for network in (await self.networks_of(row.name)).values():
            if (item := self.peer(network, row.name)) is not None:
                self.ground.publisher.network(network, (item,), ())

    async def _commit(self, name: str, row: HostRow | None, changed: dict[str, Any]) -> HostRow | None:
        """Change a row if it is still at the revision that was read; None: it is not."""
        rev = max((row.rev if row else 0) + 1, self._now())
        statics: dict[str, protocol.Value] = {**changed, "rev": rev}
        where: Values = (name,)
        try:
            if not await self._store.commit(Batch(HOSTS, where, row.rev if row else None, statics)):
                return None
        except protocol.UnknownOutcome:
            pass  # the read below tells
        except protocol.StoreError as error:
            raise Unavailable(f"The store does not answer: {error}") from error
        new = await self.fetch(name, serial=True)
        return new if new is not None and new.rev == rev else None
