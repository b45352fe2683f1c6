"""Comparing notes with control: digests, gaps, beacons (rules S7, S11, S12, S13).

Part of `AgentState`. A digest counts what was received, also what failed or was not understood. Only a scope that
control names is pulled, and one that differs again and again is pulled whole once, then at most hourly.
"""

from collections.abc import Callable

from agent.core.context import Context
from agent.core.events import HOST, Answered, Scope
from agent.core.objects import Objects
from agent.core.scopes import Scopes
from planes.goalstate import codec
from planes.goalstate.codec import Malformed
from planes.goalstate.messages import (
    WHOLE,
    Beacon,
    NetworkDigest,
    ObjectKind,
    Peer,
    Port,
    Pull,
    Sync,
    Synced,
    What,
)

#: syncs running in which a scope may differ before it is pulled whole
RUNNING = 3
HOUR = 3600.0
#: a sync that got no reply is repeated after this, first and most
RETRY_FIRST, RETRY_MOST = 1.0, 30.0
#: a control instance is missed after this many beacons, and forgotten after this many seconds
BEACONS, FORGOTTEN = 3, 300.0
#: a sync that overlapped with changes is followed by another
LOOK_LATER = 30.0


class Syncs:
    """The agent's conclusions about its own completeness."""

    def __init__(self, context: Context, objects: Objects, scopes: Scopes, superseded: Callable[[int], None]) -> None:
        self._context = context
        self._objects = objects
        self._scopes = scopes
        self._superseded = superseded
        self._asked: Sync | None = None
        self._round = 0
        self._tries = 0
        self._differs: dict[Scope, int] = {}
        self._pulled_whole: dict[Scope, float] = {}
        self._instances: dict[str, tuple[float, float]] = {}  # last heard, seconds between beacons
        #: µs, when control last said that nothing differs
        self.last = 0
        self.clean = False

    # -- digests ----------------------------------------------------------------------------------------------------

    def soon(self, within: float) -> None:
        """Compare within so many seconds."""
        self._context.timers.set_once(("sync",), self._context.now + within)

    def ask(self) -> None:
        """Send the digest of what was received."""
        context = self._context
        if not context.online or not context.epoch:
            return
        self._round += 1
        self._asked = self.digest()
        context.counters["syncs"] += 1
        context.request(("sync", self._round), context.subjects.sync(context.options.host), self._asked)

    def digest(self) -> Sync:
        ports = tuple(
            (item.id, item.rev) for item in self._objects.present(HOST, ObjectKind.PORT) if isinstance(item, Port)
        )
        networks: list[NetworkDigest] = []
        groups: list[tuple[bytes, int]] = []
        for scope, interest in self._scopes.interests.items():
            if not interest.whole:
                continue
            if scope[0] == What.NETWORK:
                items = self._objects.present(scope, ObjectKind.PEER)
                peers = tuple((item.host, item.rev) for item in items if isinstance(item, Peer))
                networks.append(NetworkDigest(scope[1], tuple(interest.tops.known.items()), peers))
            elif scope[0] == What.GROUP:
                groups.append((scope[1], self._group_rev(scope[1])))
        return Sync(ports, tuple(networks), tuple(groups))

    def _group_rev(self, group: bytes) -> int:
        entry = self._objects.get((ObjectKind.GROUP, group, group))
        return entry.rev if entry is not None else 0

    def answered(self, event: Answered) -> None:
        """Control compared, or nobody answered."""
        context = self._context
        asked = self._asked
        if event.tag[1] != self._round or asked is None:
            return
        self._asked = None
        try:
            reply = codec.decode(event.data, Synced)[1] if event.data is not None else None
        except Malformed as error:
            context.counters["malformed"] += 1
            context.trouble("sync", f"the answer to a sync cannot be read: {error}")
            self.soon(context.jittered(context.options.sync_every))
            return
        if reply is None:
            self._tries += 1
            self.soon(context.backoff(self._tries, RETRY_FIRST, RETRY_MOST))
            return
        self._tries = 0
        if reply.epoch > context.epoch:
            self._superseded(reply.epoch)
            return
        if reply.again:
            self.soon(context.jittered(float(reply.again)))
            return
        self._compare(asked, reply, event.at)

    def _compare(self, asked: Sync, reply: Synced, at: int) -> None:
        changed = self.digest()
        named: set[Scope] = set()
        overtaken = False
        for pull in reply.pulls:
            scope: Scope = (What.NETWORK if pull.what == What.BUCKET else pull.what, pull.scope)
            if scope not in self._scopes.interests:
                continue
            if self._has_moved(scope, asked, changed):
                overtaken = True  # we heard more while the question travelled
                continue
            if scope not in named:
                named.add(scope)
                self._differs[scope] = self._differs.get(scope, 0) + 1
            self._mend(scope, pull)
        for scope in [scope for scope in self._differs if scope not in named]:
            del self._differs[scope]
            self._pulled_whole.pop(scope, None)
        self.clean = not named and not overtaken
        if self.clean:
            self.last = at
        self.soon(self._context.jittered(LOOK_LATER if overtaken else self._context.options.sync_every))

    def _has_moved(self, scope: Scope, before: Sync, after: Sync) -> bool:
        what, id_ = scope
        if what == What.HOST:
            return before.ports != after.ports
        if what == What.GROUP:
            return dict(before.groups).get(id_) != dict(after.groups).get(id_)
        return _network(before, id_) != _network(after, id_)

    def _mend(self, scope: Scope, pull: Pull) -> None:
        """Pull what differs; whole when that did not help, then rarely."""
        if self._differs[scope] < RUNNING:
            self._scopes.pull(pull)
            return
        since = self._pulled_whole.get(scope)
        if since is None or self._context.now - since >= HOUR:
            self._pulled_whole[scope] = self._context.now
            self._scopes.pull_whole(scope)

    def reasons(self) -> list[str]:
        """Scopes that go on differing, in words."""
        return [
            f"{What(scope[0]).name.lower()} {scope[1].hex()} differs from the store in {count} syncs running"
            for scope, count in self._differs.items()
            if count >= RUNNING
        ]

    # -- gaps -------------------------------------------------------------------------------------------------------

    def followed(self, scope: Scope) -> None:
        """Spans came in; whatever is missing then is asked for if it does not arrive very soon."""
        interest = self._scopes.interests[scope]
        if interest.whole and interest.tops.gaps():
            self._context.timers.set_once(("gap", scope), self._context.now + self._context.options.gap_after)

    def gap(self, scope: Scope) -> None:
        """The wait is over."""
        interest = self._scopes.interests.get(scope)
        if interest is None or not interest.whole:
            return
        for part in interest.tops.gaps():
            self._context.counters["gaps"] += 1
            if part == WHOLE:
                self._scopes.pull_whole(scope)
            else:
                known = interest.tops.known.get(part, 0)
                self._scopes.pull(Pull(What.BUCKET, scope[1], part, known))

    # -- beacons ----------------------------------------------------------------------------------------------------

    def beacon(self, data: bytes) -> None:
        """A control instance is there; one that comes back had no path to us."""
        beacon = codec.decode(data, Beacon)[1]
        now = self._context.now
        before = self._instances.get(beacon.instance)
        if before is None and len(self._instances) >= self._context.options.instances_max:
            self._context.counters["ignored"] += 1
            return
        self._instances[beacon.instance] = (now, min(max(beacon.interval_ms, 100), 600_000) / 1000)
        if before is not None and now - before[0] > BEACONS * before[1]:
            self.soon(self._context.random() * self._context.options.sync_spread)
        self._context.timers.set(("beacons",), min(heard + BEACONS * each for heard, each in self._instances.values()))

    def missed(self) -> None:
        """An instance may be silent: compare through whoever answers, until it is forgotten."""
        now = self._context.now
        silent = False
        for instance, (heard, each) in list(self._instances.items()):
            if now - heard >= max(FORGOTTEN, BEACONS * each):
                del self._instances[instance]
            elif now - heard >= BEACONS * each:
                silent = True
        if silent:
            self.soon(self._context.random() * self._context.options.sync_spread)
        if self._instances:
            nearest = min(heard + BEACONS * each for heard, each in self._instances.values())
            self._context.timers.set(("beacons",), max(nearest, now + self._context.jittered(30.0)))


def _network(digest: Sync, id_: bytes) -> NetworkDigest | None:
    return next((each for each in digest.networks if each.id == id_), None)
