"""The agent's shell: does what `AgentState` decides, and tells it what came of it.

Made by `agent.main` and by tests, which choose bus, driver and clock. It decides nothing. Messages are handed in as
they are read; the driver works in a task of its own, so that reading, beats and acks go on meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from agent.core import events
from agent.core.events import BEACONS, Event, Scope
from agent.core.instructions import (
    Audit,
    Instruction,
    Listen,
    Open,
    Program,
    Request,
    Save,
    Saved,
    Say,
    Traced,
    Unlisten,
)
from agent.core.state import AgentState
from agent.metrics import Meter
from observability.metrics import Metric
from planes.bus import protocol as bus_protocol
from planes.bus.protocol import Bus, BusError, Incoming, Subscription
from planes.data.driver import Driver, Spec, SpecKey
from planes.model.addresses import vtep_mac

if TYPE_CHECKING:
    from agent.tracing import Tracer  # with what exports spans, which few agents need

log = logging.getLogger(__name__)


class Keeper(Protocol):
    """Where a life leaves word for the next."""

    def save(self, saved: Saved) -> None: ...


class Agent:
    """One host's agent. `now_us`: wall clock in µs."""

    def __init__(
        self,
        state: AgentState,
        bus: Bus,
        driver: Driver,
        vtep: bytes,
        now_us: Callable[[], int],
        keeper: Keeper | None = None,
        tracer: "Tracer | None" = None,
    ) -> None:
        self.state = state
        self._bus = bus
        self._driver = driver
        self._vtep = vtep
        self._now_us = now_us
        self._keeper = keeper
        self._tracer = tracer
        self._is_open = False
        self._subscriptions: dict[Scope, Subscription] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._closed = False
        self._kept = True
        self.bugs = 0
        self._meter = Meter(now_us)
        self._do: dict[type, Callable[[Any], None]] = {
            Listen: lambda it: self._spawn(self._listen(it)),
            Unlisten: lambda it: self._spawn(self._unlisten(it)),
            Request: lambda it: self._spawn(self._request(it)),
            Open: lambda it: self._spawn(self._open(it)),
            Program: lambda it: self._spawn(self._program(it)),
            Audit: lambda it: self._spawn(self._audit(it)),
            Save: self._save,
            Say: _say,
            Traced: self._traced,
        }

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and take part, for ever; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._bus.listen(self._on_bus)
        self._feed(events.Started(self._now_us()))
        self._spawn(self._bus.connect())

    async def close(self) -> None:
        """Stop. The kernel stays as it is, and packets keep flowing."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._bus.close()
        if self._is_open:
            await self._driver.close()

    def metrics(self) -> Iterator[Metric]:
        """What it can tell of itself."""
        return self._meter.metrics(self.state, self.bugs)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.bugs += 1
            log.error("an unexpected failure in the agent", exc_info=error)

    # -- events in, instructions out --------------------------------------------------------------------------------

    def _feed(self, event: Event, now: float = 0.0) -> None:
        if self._closed:
            return
        self._meter.happened(event)
        try:
            instructions: list[Instruction] = self.state.handle(event, max(now, self._loop.time()))
        except Exception:
            self.bugs += 1
            log.exception("the agent cannot handle %s; before it: %s", type(event).__name__, self.state.story()[-20:])
            return
        for instruction in instructions:
            self._meter.did(instruction)
            self._do[type(instruction)](instruction)
        self._arm()

    def _arm(self) -> None:
        """Wake when the state wants to be woken."""
        due = self.state.due()
        if due == self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._wake, due) if due is not None else None

    def _wake(self, due: float) -> None:
        """A loop may call a little early; for the state it is time."""
        self._timer = self._due = None
        self._feed(events.Woke(self._driver.counters() if self._is_open else {}), due)

    def _on_bus(self, event: bus_protocol.Event) -> None:
        if event.name == "connected":
            self._feed(events.Connected(again=False))
        elif event.name == "reconnected":
            self._feed(events.Connected(again=True))
        elif event.name == "disconnected":
            self._feed(events.Disconnected())
        elif event.name == "slow":
            self._feed(events.Slow())

    # -- instructions -----------------------------------------------------------------------------------------------

    async def _listen(self, instruction: Listen) -> None:
        scope = instruction.scope

        def arrived(message: Incoming) -> None:
            trace = message.traceparent if self._tracer and message.traceparent.endswith("-01") else ""
            self._feed(events.Arrived(scope, message.data, self._now_us(), trace))

        try:
            if scope not in self._subscriptions:
                self._subscriptions[scope] = await self._bus.subscribe(instruction.subject, arrived)
            await self._bus.flush()
        except BusError as error:
            self._feed(events.Listening(scope, str(error) or "no answer"))
            return
        if scope != BEACONS and scope not in self.state.scopes.interests:
            await self._unlisten(Unlisten(scope))  # left while we were asking
            return
        self._feed(events.Listening(scope))

    async def _unlisten(self, instruction: Unlisten) -> None:
        subscription = self._subscriptions.pop(instruction.scope, None)
        if subscription is not None:
            await subscription.unsubscribe()

    async def _request(self, instruction: Request) -> None:
        own = self._tracer.ask(instruction) if self._tracer else None
        header = own.header if own and own.sampled else ""
        data: bytes | None = None
        begun, reason = self._now_us(), ""
        try:
            data = await self._bus.request(instruction.subject, instruction.data, instruction.timeout, header)
        except BusError as error:
            reason = str(error) or "no answer"
        ended = self._now_us()
        if self._tracer and own:
            self._tracer.asked(instruction, own, begun, ended, reason)
        self._feed(events.Answered(instruction.tag, data, ended))

    async def _open(self, instruction: Open) -> None:
        try:
            if self._is_open:
                self._is_open = False
                await self._driver.close()
            await self._driver.open(self._vtep, vtep_mac(instruction.number))
            self._is_open = True
            held = await self._driver.held()
        except Exception as error:
            self._feed(events.Opened({}, str(error) or type(error).__name__))
            return
        self._feed(events.Opened(held))

    async def _program(self, instruction: Program) -> None:
        started = self._now_us()
        try:
            errors = dict(await self._driver.apply(instruction.puts, instruction.drops))
        except Exception as error:  # a driver does not raise; one that does must not stop the agent
            log.exception("the driver failed")
            keys = [*(spec.key for spec in instruction.puts), *instruction.drops]
            errors = dict.fromkeys(keys, f"driver: {error!r}")
        ended = self._now_us()
        if self._tracer:
            self._tracer.programmed(instruction, errors, started, ended, self._driver.transactions())
        self._feed(events.Programmed(errors, started, ended))
        if self._tracer:
            self._tracer.settled()

    async def _audit(self, instruction: Audit) -> None:
        lost: frozenset[SpecKey] = frozenset()
        drops: dict[str, int] = {}
        more: Mapping[SpecKey, Spec | None] = {}
        begun = self._now_us()
        try:
            lost = await self._driver.audit()
            more = await self._driver.surplus(instruction.known)
            drops = await self._driver.drops()
        except Exception:  # the next look may succeed
            log.exception("the driver cannot look for damage")
        if self._tracer:
            self._tracer.audited(lost | more.keys(), begun, self._now_us())
        self._feed(events.Audited(lost, drops, more))

    def _traced(self, instruction: Traced) -> None:
        if self._tracer:
            self._tracer.answered(instruction)

    def _save(self, instruction: Save) -> None:
        if self._keeper is None:
            return
        try:
            self._keeper.save(instruction.state)
        except OSError as error:
            if self._kept:  # a full disk stays full for a while: said once, not at each attempt
                log.warning("this life's epoch cannot be kept: %s", error)
            self._kept = False
        else:
            self._kept = True


def _say(instruction: Say) -> None:
    log.log(logging.getLevelNamesMapping()[instruction.level.upper()], "%s", instruction.text)
