"""The control plane of one instance: its subscriptions, its timers, its parts put together.

Made by `planes.management.cloud` for the REST process; started and stopped by the composition root. Hosts' requests are
answered by tasks, at most so many at once: over the bound an instance answers "again in n s" instead of queueing.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from planes.bus.protocol import Bus, BusError, Event, Incoming, Subscription
from planes.control.acks import Acks
from planes.control.changes import Changes, Finished
from planes.control.check import Check
from planes.control.echo import Echo
from planes.control.events import Teller
from planes.control.feed import Feed
from planes.control.ground import Ground
from planes.control.hosts import Hosts
from planes.control.names import Names
from planes.control.numbers import Numbers
from planes.control.publisher import Publisher
from planes.control.release import Releases
from planes.control.snapshots import Snapshots
from planes.control.watch import Watch
from planes.goalstate import codec
from planes.goalstate.messages import Ack, Beacon, Beat, Ok, Page, Pull, Register, Registered, Stored, Sync, Synced
from planes.goalstate.subjects import ANY, Subjects, token
from planes.model.enums import Kind
from planes.model.errors import AlcorError
from planes.store.partitions import Partitions
from planes.store.protocol import Store, StoreError
from planes.store.slots import Slots

log = logging.getLogger(__name__)

#: requests from hosts in hand at once
IN_HAND = 256
#: clock difference to the store above which this instance must not serve (rule S22), µs
SKEW = 500_000


class ControlConfig(msgspec.Struct, frozen=True):
    """What an operator may set; times in seconds."""

    prefix: str = "alcor"
    dead_after: float = 10.0
    beacon_every: float = 10.0
    echo_after: float = 10.0
    echo_every: float = 5.0
    hosts_every: float = 10.0
    vni_quarantine: float = 600.0
    number_rest: float = 7 * 86_400.0  # for which no port had a number before another set of groups may have it


class ControlPlane:
    """One instance."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        config: ControlConfig,
        now: Callable[[], int],
        finished: Finished,
        quotas: Callable[[int], tuple[str, int]],
        instance: str = "",
    ) -> None:
        loop = asyncio.get_running_loop()
        self.instance = instance or "c" + secrets.token_hex(4)
        self.config = config
        self.now = now
        self.store = store
        self.bus = bus
        #: µs by which this machine's clock is ahead of the store's
        self.skew = 0
        self.subjects = Subjects(config.prefix)
        self.partitions = Partitions(store, now)
        self.slots = Slots(self.partitions)
        self.hosts = Hosts(store, self.slots, now, loop.time, config.dead_after)
        self.publisher = Publisher(bus, self.subjects, self.instance, now, self.hosts.epoch)
        self.ground = Ground(self.partitions, self.publisher)
        self.hosts.ground = self.ground
        self.teller = Teller(bus, self.subjects, self.instance)
        self.watch = Watch(bus, self.subjects)
        self.changes = Changes(store, self.teller, finished)
        self.releases = Releases(store, self.ground, self.slots, now, quotas(Kind.PORT)[1])
        self.acks = Acks(store, self.ground, self.publisher, self.releases, self.changes, self.teller, now)
        self.snapshots = Snapshots(store, self.ground, self.hosts)
        self.feed = Feed(store, self.instance, self._stores_now, int(config.echo_after * 1e6))
        self.echo = Echo(
            store, self.ground, self.hosts, self.releases, self.snapshots, self.slots, self.feed, now, quotas
        )
        self.names = Names(store, self._stores_now)
        self.check = Check(
            store,
            self.ground,
            self.echo,
            self._stores_now,
            quotas,
            self.instance,
            3 * config.echo_after,
            self.names,
            Numbers(store, self.ground, self._stores_now, int(config.number_rest * 1e6)),
        )
        #: hears of answered requests from hosts that bore a context: (that, subject, begun, ended, host)
        self.served: Callable[[str, str, int, int, str], None] | None = None
        self.counters = {"malformed": 0, "refused": 0, "put_off": 0}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.Task[None]] = []
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Load hosts, start the timers; hosts are served as soon as the bus is there, be it now or much later."""
        await self.hosts.load()
        await self._clock()
        await self.names.open()
        self.bus.listen(self._on_event)
        if self.bus.connected:
            await self._join()
        self._every("repeat", 0.25, self._repeat)
        self._every("beacon", self.config.beacon_every, self._beacon)
        self._every("echo", self.config.echo_every, self.echo.turn)
        self._every("hosts", self.config.hosts_every, self.hosts.load)
        self._every("clock", 60.0, self._clock)
        self._timers.append(asyncio.create_task(self.changes.keep(), name="keep changes"))
        self._timers.append(asyncio.create_task(self.check.keep(), name="check"))

    async def _join(self) -> None:
        """Hear the hosts, and let them know that somebody does."""
        subscribe = self.bus.subscribe
        self._subscriptions = [
            await subscribe(self.subjects.acks, self._on_ack, "control"),
            await subscribe(self.subjects.stored(self.instance), self._on_stored),
            await subscribe(self.subjects.stored(ANY), self._on_stored),
            await subscribe(self.subjects.pulls, self._on_pull, "control"),
            await subscribe(self.subjects.syncs, self._on_sync, "control"),
            await subscribe(self.subjects.beats, self._on_beat),
        ]
        await self._beacon()

    async def stop(self) -> None:
        """Unsubscribe, let what is in hand finish, stop the timers."""
        self.watch.close()
        for subscription in self._subscriptions:
            try:
                await subscription.unsubscribe()
            except BusError:
                pass
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await self.partitions.idle()
        await self.changes.put_away()
        self.publisher.flush()
        self.teller.flush()

    @property
    def in_hand(self) -> int:
        """Requests from hosts that are being worked on."""
        return len(self._tasks)

    async def ready(self) -> list[str]:
        """Why this instance cannot serve now, in sentences."""
        reasons = []
        if not self.bus.connected or not self._subscriptions:
            reasons.append("There is no connection to NATS: what is written reaches the hosts when it is back.")
        try:
            await self._clock()
        except StoreError as error:
            reasons.append(f"The store does not answer: {error}")
        if abs(self.skew) > SKEW:
            reasons.append(f"This machine's clock is {self.skew / 1e6:+.1f} s off the store's.")
        return reasons

    # -- timers -----------------------------------------------------------------------------------------------------

    def _every(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await work()
                except (AlcorError, BusError) as error:
                    log.warning("%s put off: %s", name, error)

        self._timers.append(asyncio.create_task(run(), name=name))

    async def _repeat(self) -> None:
        self.hosts.listen(self.bus.connected)
        self.publisher.repeat()

    async def _beacon(self) -> None:
        beacon = Beacon(self.instance, self.now(), int(self.config.beacon_every * 1000))
        try:
            self.bus.publish(self.subjects.beacon(self.instance), codec.encode(beacon, self.instance))
        except BusError:
            pass  # the agents will notice

    def _stores_now(self) -> int:
        """The store's time, as of the last comparison."""
        return self.now() - self.skew

    async def _clock(self) -> None:
        before = self.now()
        theirs = await self.store.now()
        self.skew = (before + self.now()) // 2 - theirs

    def _on_event(self, event: Event) -> None:
        if event.name == "connected":
            self._spawn(self._join())
        elif event.name == "reconnected":
            self.watch.missed()
            self._spawn(self._beacon())

    # -- requests from hosts ----------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer(self, message: Incoming, reply: codec.Message) -> None:
        if message.reply:
            try:
                self.bus.publish(message.reply, codec.encode(reply, self.instance))
            except BusError:
                pass  # the host asks again

    def _open(self, message: Incoming, body: type[codec.T]) -> tuple[str, int, codec.T] | None:
        """Who sent it (its name must be the subject's), its epoch, and the body; None: counted and ignored."""
        try:
            envelope, decoded = codec.decode(message.data, body)
        except codec.Malformed as error:
            self._count_malformed(message, error)
            return None
        if token(envelope.sender) != self.subjects.host_of(message.subject):
            self.counters["refused"] += 1
            return None
        return envelope.sender, envelope.epoch, decoded

    def _count_malformed(self, message: Incoming, error: Exception) -> None:
        self.counters["malformed"] += 1
        if self.counters["malformed"] == 1:
            log.warning("malformed message on %s: %s (more are only counted)", message.subject, error)

    def _take(self, message: Incoming, work: Callable[[], Awaitable[codec.Message]], busy: codec.Message) -> None:
        if len(self._tasks) >= IN_HAND:
            self.counters["put_off"] += 1
            self._answer(message, busy)
            return
        self._spawn(self._serve(message, work, busy))

    async def _serve(
        self, message: Incoming, work: Callable[[], Awaitable[codec.Message]], busy: codec.Message
    ) -> None:
        begun, host = self.now(), self.subjects.host_of(message.subject)
        try:
            self._answer(message, await work())
            if message.traceparent and self.served is not None:
                self.served(message.traceparent, message.subject, begun, self.now(), host)
        except AlcorError as error:
            log.info("request on %s put off: %s", message.subject, error)
            self._answer(message, busy)
        except Exception:
            self.counters["refused"] += 1
            log.exception("request on %s failed", message.subject)

    def _on_ack(self, message: Incoming) -> None:
        opened = self._open(message, Ack)
        if opened is None:
            return
        host, epoch, ack = opened
        if epoch < self.hosts.heard_from(host):
            self.counters["refused"] += 1
            self._answer(message, Ok(self.hosts.heard_from(host)))
            return
        author = self.subjects.author_of(message.subject)
        self._take(message, lambda: self._store_acks(host, ack, "" if author == self.instance else author), Ok(again=1))

    async def _store_acks(self, host: str, ack: Ack, author: str) -> Ok:
        said = await self.acks.store(host, ack.items, author)
        if said is not None:
            try:
                self.bus.publish(self.subjects.stored(author), codec.encode(said, self.instance))
            except BusError:
                pass  # its clients look again by themselves
        return Ok(self.hosts.epoch(host))

    def _on_stored(self, message: Incoming) -> None:
        try:
            _, said = codec.decode(message.data, Stored)
        except codec.Malformed as error:
            self._count_malformed(message, error)
            return
        self.acks.kept(said)

    def _on_pull(self, message: Incoming) -> None:
        if message.subject.endswith(".register"):
            registered = self._open(message, Register)
            if registered is not None:
                host, _, asked = registered
                if host != asked.host:
                    self._answer(message, Registered(refused="another host's name"))
                    return
                self._take(message, lambda: self.hosts.register(asked), Registered(again=1))
            return
        opened = self._open(message, Pull)
        if opened is not None:
            host, epoch, pull = opened
            if epoch < self.hosts.heard_from(host):
                self._answer(message, Page(denied="superseded by a later registration"))
                return
            self._take(message, lambda: self.snapshots.page(host, pull), Page(again=self._patience()))

    def _on_sync(self, message: Incoming) -> None:
        opened = self._open(message, Sync)
        if opened is not None:
            host, _, digest = opened
            self._take(message, lambda: self.snapshots.sync(host, digest), Synced(again=self._patience()))

    def _on_beat(self, message: Incoming) -> None:
        opened = self._open(message, Beat)
        if opened is not None:
            host, epoch, beat = opened
            self._answer(message, self.hosts.beat(host, epoch, beat))
            if epoch > self.hosts.epoch(host) and len(self._tasks) < IN_HAND:
                self._spawn(self._learn(host))  # another instance registered it

    async def _learn(self, host: str) -> None:
        try:
            await self.hosts.fetch(host)
        except StoreError as error:
            log.info("host %s is looked at later: %s", host, error)

    def _patience(self) -> int:
        """Seconds after which to ask again; grows with what is in hand."""
        return 1 + len(self._tasks) // IN_HAND
