"""The agent's whole state behind one door: `AgentState.handle(event, now)` returns what to do (rule: pure core).

Called by `agent.runtime` only. It opens nothing, reads no clock, waits for nothing; outcomes come back as events. What
it decides depends only on what it has received. `validate` states the invariants, `story` tells what happened last.
"""

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import cast

from agent.core.acks import Acks
from agent.core.context import Context, Name, Options
from agent.core.events import (
    BEACONS,
    HOST,
    Answered,
    Arrived,
    Audited,
    Connected,
    Disconnected,
    Event,
    Listening,
    Opened,
    Programmed,
    Scope,
    Slow,
    Started,
    Woke,
    scope_of,
)
from agent.core.instructions import Instruction, Listen, Open, Saved
from agent.core.membership import Membership
from agent.core.objects import Objects, Verdict, part_of
from agent.core.plan import Plan
from agent.core.repairs import Repairs
from agent.core.scopes import Pulling, Scopes
from agent.core.strangers import Strangers
from agent.core.sync import Syncs
from agent.core.translate import Goals
from agent.core.wants import Wants
from planes.data.driver import SpecKey
from planes.goalstate import codec
from planes.goalstate.codec import Malformed, UnknownVersion
from planes.goalstate.messages import (
    Goal,
    Gone,
    Identity,
    Neighbour,
    Object,
    ObjectKind,
    Page,
    Port,
    What,
)

#: most reasons in one beat
REASONS = 20
OPEN_FIRST, OPEN_MOST = 1.0, 30.0
#: seconds after which a kernel at work is told about
SLOW = 3.0


class AgentState:
    """One host's agent. `saved`: what is known of its former life."""

    def __init__(self, options: Options, random: Callable[[], float], saved: Saved | None = None) -> None:
        self.context = Context(options, random)
        self.objects = Objects(options.objects_max, options.tombstone_life)
        self.goals = Goals(options.host)
        self.plan = Plan(self.context.backoff)
        self.repairs = Repairs(self.context, self.plan)
        self.wants = Wants(self.goals, self.plan)
        self.scopes = Scopes(self.context, self._take_page, self._complete)
        self.membership = Membership(self.context, self._registered, saved)
        self.acks = Acks(self.context, self.plan, self.goals, self.membership.supersede)
        self.strangers = Strangers(self.context, self.goals, self.scopes)
        self.syncs = Syncs(self.context, self.objects, self.scopes, self.membership.supersede)
        self._driver_open = False
        self._opening = 0
        self._open_tries = 0
        self._open_error = ""
        self._at = 0
        self._moved = False
        self._driver_counters: dict[str, int] = {}
        #: when the driver was last given something
        self._handed_at = 0.0
        self._drops: dict[str, int] = {}
        self._story: deque[str] = deque(maxlen=200)
        self._handlers: dict[type, Callable[..., None]] = {
            Started: self._on_started,
            Connected: self._on_connected,
            Disconnected: self._on_disconnected,
            Slow: self._on_slow,
            Listening: self._on_listening,
            Arrived: self._on_arrived,
            Answered: self._on_answered,
            Opened: self._on_opened,
            Programmed: self._on_programmed,
            Audited: self._on_audited,
            Woke: self._on_woke,
        }
        self._timers: dict[str, Callable[[Name], None]] = {
            "register": lambda name: self.membership.register(),
            "beat": lambda name: self._beat(),
            "sync": lambda name: self.syncs.ask(),
            "beacons": lambda name: self.syncs.missed(),
            "gap": lambda name: self.syncs.gap(cast(Scope, name[1])),
            "peers": lambda name: self.strangers.ask(cast(Scope, name[1])),
            "listen": lambda name: self.scopes.listen_again(cast(Scope, name[1])),
            "pull": lambda name: self.scopes.pump(),
            "page": lambda name: None,  # any event has it taken
            "more": lambda name: None,  # any event has more of it worked off
            "acks": lambda name: self.acks.resume(),
            "retry": lambda name: self.plan.retry(self.context.now),
            "expire": lambda name: self.objects.expire(self.context.now),
            "open": lambda name: self._open(),
            "audit": lambda name: self.repairs.due(),
            "leave": lambda name: self._leave(cast(Scope, name[1])),
        }

    # -- the door ---------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Something happened; the only way in. `now`: monotonic seconds."""
        self.context.now = now
        self._story.append(f"{now:.6f} {type(event).__name__}")
        self.scopes.take_page()
        self._handlers[type(event)](event)
        self._settle()
        out, self.context.out = self.context.out, []
        return out

    def due(self) -> float | None:
        """When to hand in `Woke` next, in monotonic seconds."""
        return self.context.timers.due()

    def story(self) -> list[str]:
        """The last events, oldest first."""
        return list(self._story)

    def _settle(self) -> None:
        """From what is known now to what should be done."""
        self._moved = self.wants.update(self.scopes.interests) or self._moved
        if self.wants.more:
            self.context.timers.set_once(("more",), self.context.now)
        if self._moved:
            self._follow_needs()
        self.wants.give_up_leftovers(self.scopes.interests)
        if self._moved and self._driver_open:  # until then nobody knows what the kernel has
            self._moved = False
            self.acks.settle()
        timers = self.context.timers
        if self._driver_open and not self.membership.superseded and not self.repairs.busy:
            self.repairs.look()
            if not self.repairs.busy and (program := self.plan.next(self.context.options.batch)) is not None:
                self.context.out.append(program)
                self._handed_at = self.context.now
        if self.plan.retry_at is not None:
            timers.set_once(("retry",), max(self.plan.retry_at, self.context.now + 0.01))
        if (expires := self.objects.expires()) is not None:
            timers.set_once(("expire",), expires)
        self.acks.send()

    # -- connection and registration --------------------------------------------------------------------------------

    def _on_started(self, event: Started) -> None:
        self._at = event.at

    def _on_connected(self, event: Connected) -> None:
        context = self.context
        context.online = True
        self._moved = True
        if not event.again:
            context.out.append(Listen(BEACONS, context.subjects.beacons))
            self.scopes.join(HOST)
            return
        self.acks.resume()
        self.scopes.pump()
        if context.epoch:
            self._beat()
            self.syncs.soon(context.random() * context.options.sync_spread)
        elif not self.membership.superseded or ("register",) not in context.timers:
            context.timers.set_once(("register",), context.now)  # its turn may have come while we were offline

    def _on_disconnected(self, event: Disconnected) -> None:
        self.context.online = False

    def _on_slow(self, event: Slow) -> None:
        self.context.counters["slow"] += 1
        self.syncs.soon(self.context.random() * self.context.options.sync_spread)

    def _on_listening(self, event: Listening) -> None:
        if not self.scopes.listening(event):
            return
        if not self.context.epoch:
            if event.scope == HOST and not self.membership.superseded:
                self.membership.register()
            return
        self.scopes.pull_whole(event.scope)

    def _registered(self, number: int) -> None:
        """This life has an epoch: open for that number, then learn everything."""
        if not self._driver_open or self.membership.opened_as != number:
            self._open()
        for scope, interest in list(self.scopes.interests.items()):
            if interest.listening:
                self.scopes.pull_whole(scope)
        self.scopes.pump()  # also what came due while nobody would have answered
        self._beat()

    def _open(self) -> None:
        """Have the driver made ready, once the host's number is known."""
        if self.membership.number and not self._opening:
            self._opening = self.membership.number
            self._driver_open = False
            self.repairs.closed()
            self.context.out.append(Open(self.membership.number))

    def _on_opened(self, event: Opened) -> None:
        context = self.context
        number, self._opening = self._opening, 0
        self._open_error = event.error
        if event.error:
            self._open_tries += 1
            context.trouble("open", f"the data plane cannot be used: {event.error}")
            wait = context.backoff(self._open_tries, OPEN_FIRST, OPEN_MOST)
            context.timers.set(("open",), context.now + wait)
            return
        context.fine("open", "the data plane works")
        self._open_tries = 0
        self.membership.opened_as = number
        self._driver_open = self._moved = self.wants.swept = True
        self.plan.opened(event.held)
        self.wants.opened(event.held)
        self.repairs.opened()
        self.plan.give_up(self.acks.opened(event.held))
        if self.membership.number != number:
            self._open()

    # -- messages and pages -----------------------------------------------------------------------------------------

    def _on_arrived(self, event: Arrived) -> None:
        counters = self.context.counters
        counters["received"] += 1
        interest = self.scopes.interests.get(event.scope)
        try:
            if event.scope == BEACONS:
                self.syncs.beacon(event.data)
                self.membership.control_is_there()
                self.acks.control_is_there()
                return
            if interest is None:
                counters["ignored"] += 1
                return
            envelope, goal = codec.decode(event.data, Goal)
        except UnknownVersion as error:
            counters["unknown_version"] += 1
            self.context.trouble("version", f"a message cannot be understood: {error}")
            return
        except Malformed as error:
            counters["malformed"] += 1
            self.context.trouble("malformed", f"a message is malformed: {error}")
            return
        if event.scope == HOST and envelope.epoch != self.context.epoch:
            # said to another life: this one has pulled, or will pull, what is true by then
            counters["ignored"] += 1
            if envelope.epoch > self.context.epoch:
                self.membership.supersede(envelope.epoch)
            return
        for item in goal.objects:
            if not _belongs(item, event.scope):
                counters["malformed"] += 1
            elif interest.tops.covers(part_of(item.key), item.rev) and self.objects.get(item.key) is None:
                counters["ignored"] += 1  # what is known up to there does not have it: it was deleted meanwhile
            else:
                self._accept(item, goal.author, goal.sent, event.received, trace=event.trace)
        if event.scope[0] == What.NETWORK:
            interest.tops.take(goal.spans)
            self.syncs.followed(event.scope)

    def _take_page(self, scope: Scope, page: Page, gen: int) -> None:
        objects: Iterable[Object] = page.objects
        neighbours: list[Neighbour] = []
        if scope[0] == What.NETWORK:
            neighbours, objects = self.objects.begin(scope[1], objects, self.scopes.generation, gen)
        if neighbours:
            self.goals.begin(scope[1], neighbours)
        for item in objects:
            if _belongs(item, scope):
                self._accept(item, "", 0, self._at, gen)
            else:
                self.context.counters["malformed"] += 1
        if neighbours:
            self.strangers.named(scope[1], {item.host for item in neighbours})

    def _accept(self, item: Object, author: str, sent: int, received: int, named: int = 0, trace: str = "") -> None:
        """An object or tombstone came: if it is news, it counts; if it is ours to answer for, an answer is owed.

        `named`: the pull whose page had it; 0: a message did.
        """
        verdict = self.objects.offer(item, self.scopes.generation, self.context.now, named)
        mine = item if isinstance(item, _ANSWERED) and item.key[0] == ObjectKind.PORT else None
        if verdict is Verdict.FULL:
            self.context.counters["refused"] += 1
            self.context.trouble("full", f"more than {self.context.options.objects_max} objects: the rest is refused")
        elif verdict is Verdict.NEWER:
            if mine is not None:
                keys = self._held_as(mine.id) if isinstance(mine, Gone) else ()
                self.acks.owe(mine, author, sent, received, keys, trace)
                self.plan.give_up(keys)
                self._moved = True
            self.goals.put(item)
            if isinstance(item, Neighbour):
                self.strangers.named(item.network, (item.host,))
            elif isinstance(item, Gone) and item.kind == ObjectKind.PEER:
                self.strangers.look(item.scope)  # its coming back may be missed
        elif verdict is Verdict.SAME and mine is not None and not named:
            self.acks.repeat(mine, author, sent, received)
            self._moved = True
        else:
            self.context.counters["ignored"] += 1

    def _held_as(self, id_: bytes) -> tuple[SpecKey, ...]:
        """Where the kernel has, or should have, this port."""
        port = self.goals.port(id_)
        if port is not None:
            return (("port", port.network, id_),)
        return tuple(key for key in self.plan.applied if key[0] == "port" and key[2] == id_)

    def _complete(self, scope: Scope, pulling: Pulling) -> None:
        """The last page came: what the snapshot did not name and nobody sent since is no more (rule S6)."""
        pull = pulling.pull
        if pulling.whole and not pull.since:
            part = pull.part if pull.what == What.BUCKET else None
            tops = {span.part: span.top for span in pulling.spans if not span.prev}
            for item in self.objects.sweep(scope, pulling.gen, self.context.now, tops, part):
                self.context.counters["swept"] += 1
                self.goals.remove(item)
                self.acks.forget(item.key)
        if pull.what != What.BUCKET:
            self.syncs.soon(self.context.options.look_again)
        if scope[0] == What.NETWORK:
            self.syncs.followed(scope)
            self.strangers.look(scope[1])
        self.wants.swept = self._moved = True

    # -- replies, the driver, timers --------------------------------------------------------------------------------

    def _on_answered(self, event: Answered) -> None:
        self._at = event.at
        kind = event.tag[0]
        if kind == "ack":
            self.acks.answered(event)
        elif kind == "pull":
            self.scopes.answered(event)
        elif kind == "sync":
            self.syncs.answered(event)
        else:
            self.membership.answered(event)

    def _on_programmed(self, event: Programmed) -> None:
        keys = self.plan.done(event.errors, self.context.now)
        self.repairs.settle()
        self.acks.stamp(keys, event.started, event.done)
        self.context.counters["programmed"] += len(keys)
        for key in keys if event.errors else ():
            if key in event.errors:
                self.context.counters["driver_errors"] += 1
                self.context.trouble("program", f"{key[0]} {key[2].hex()} of {key[1].hex()}: {event.errors[key]}")
        if keys and not self.plan.failed:
            self.context.fine("program", "everything could be programmed")
        self._moved = True

    def _on_audited(self, event: Audited) -> None:
        if self.repairs.busy:  # not of a driver that was opened anew since
            self.wants.swept |= self.repairs.audited(event.lost, event.more)
            self._drops = {f"dropped_{reason}": n for reason, n in event.drops.items()} or self._drops

    def _on_woke(self, event: Woke) -> None:
        self._driver_counters = event.counters
        while (name := self.context.timers.pop(self.context.now)) is not None:
            self._timers[cast(str, name[0])](name)

    # -- interest ---------------------------------------------------------------------------------------------------

    def _needs(self, scope: Scope) -> bool:
        if scope[0] == What.NETWORK:
            return self.goals.needs_network(scope[1])
        return scope == HOST or self.goals.needs_group(scope[1])

    def _follow_needs(self) -> None:
        """Join what ports need, leave what none does any more."""
        if not self.context.online or HOST not in self.scopes.interests:
            return
        for network in list(self.goals.needed_networks()):
            self.scopes.join((What.NETWORK, network))
        for group in list(self.goals.needed_groups()):
            self.scopes.join((What.GROUP, group))
        linger = self.context.options.linger
        for scope in [scope for scope in self.scopes.interests if not self._needs(scope)]:
            if linger:
                self.context.timers.set_once(("leave", scope), self.context.now + linger)
            else:
                self._leave(scope)

    def _leave(self, scope: Scope) -> None:
        if scope not in self.scopes.interests or self._needs(scope):
            return
        self.scopes.leave(scope)
        for item in self.objects.forget(scope):
            self.goals.remove(item)
        if scope[0] == What.NETWORK:
            self.goals.forget_network(scope[1])
        self.wants.swept = True

    # -- health and the file ----------------------------------------------------------------------------------------

    def in_sync(self) -> bool:
        """Everything was received, and the kernel has it."""
        return bool(
            self.context.epoch and self._driver_open and self.scopes.in_sync() and not self.wants.more
            and not self.plan.waiting() and not self.plan.failed and self.plan.busy is None
        )  # fmt: skip

    def _beat(self) -> None:
        counters = {**self.context.counters, **{f"driver_{name}": n for name, n in self._driver_counters.items()}}
        build, error = self.acks.unsettled()
        counters |= self._drops | {
            "ports_build": build,
            "ports_error": error,
            "objects": len(self.objects),
            "pending": self.plan.waiting(),
            "unacked": self.acks.waiting(),
        }
        ports = sum(len(view.ports) for view in self.goals.networks.values())
        self.membership.beat(self.in_sync(), self.syncs.last, ports, counters, tuple(islice(self._reasons(), REASONS)))

    def _reasons(self) -> Iterable[str]:
        """Why not all is well."""
        yield from self.membership.reasons()
        if self._open_error:
            yield f"the data plane cannot be used: {self._open_error}"
        took = self.context.now - self._handed_at
        if self.plan.busy is not None and took > SLOW:
            yield f"the kernel has not finished in {took:.0f} s; {self.plan.waiting()} objects wait for it"
        yield from self.repairs.reasons()
        yield from self.syncs.reasons()
        for scope, interest in self.scopes.interests.items():
            if interest.denied:
                yield f"{What(scope[0]).name.lower()} {scope[1].hex()}: {interest.denied}"
        for key, failure in self.plan.failed.items():
            yield f"{key[0]} {key[2].hex()}: {failure.text}"
        for view in self.goals.networks.values():
            for port in view.ports.values():
                if why := self.goals.waits(port):
                    yield f"port {port.id.hex()} {why}"

    def validate(self) -> None:
        """Invariants, for tests."""
        self.objects.validate()
        self.plan.validate()
        for item in self.objects.everything():
            assert _belongs(item, scope_of(item.key))
        for network, view in self.goals.networks.items():
            for key in [("port", network, id_) for id_ in view.ports]:
                assert (
                    network in self.wants.inherited
                    or key in self.wants.kept
                    or self.plan.desired.get(key) == self.goals.spec(key)
                ), key
        if self.context.online and HOST in self.scopes.interests:
            for network in self.goals.needed_networks():
                assert (What.NETWORK, network) in self.scopes.interests


#: what may owe an answer
_ANSWERED = (Port, Gone)
_KINDS = range(ObjectKind.NETWORK, ObjectKind.GROUP + 1)


def _belongs(item: Object, scope: Scope) -> bool:
    """Whether the object may come in this scope at all."""
    if isinstance(item, Identity) and not 0 <= item.number < 1 << 16:
        return False
    key = item.key
    return key[0] in _KINDS and scope_of(key) == scope
