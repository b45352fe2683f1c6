"""From what goals say to what the plan wants, without ever taking away what still works.

Part of `AgentState`. A port whose new revision waits for something (a group that was just added to it) keeps what it
has until the new one is complete, and so do the policies and members that it lives on: it fails static, and it is not
acknowledged meanwhile.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

from agent.core.events import HOST, Scope
from agent.core.plan import Plan
from agent.core.scopes import Interest
from agent.core.translate import Goals
from planes.data.driver import SpecKey
from planes.goalstate.messages import What

#: addresses of a network that are worked off in one go, in some milliseconds
AT_ONCE = 8192
#: what a port lives on
GROUND = ("network", "members", "policy")


class Wants:
    """Keeps the plan up to date."""

    def __init__(self, goals: Goals, plan: Plan) -> None:
        self._goals = goals
        self._plan = plan
        #: ports that keep an older revision
        self.kept: set[SpecKey] = set()
        #: what those may live on, though nothing wants it any more
        self._postponed: set[SpecKey] = set()
        #: networks that a former life left in the kernel and that are not wholly known yet, and what waits for that
        #: besides addresses of other hosts
        self.inherited: dict[bytes, set[SpecKey]] = {}
        self._opened = False
        #: more is to be worked off
        self.more = False
        #: what a former life left in the kernel may be wanted by nobody now
        self.swept = False
        #: networks where nothing was let go, since a port waited for something
        self._waiting: set[bytes] = set()

    def opened(self, held: Iterable[SpecKey]) -> None:
        """The kernel has this. What works there stays as it is until all of its network is known: half a snapshot
        would take away routes and members that the other half brings back."""
        self._opened = True
        for network in {key[1] for key in held}:
            self.inherited.setdefault(network, set())

    def update(self, interests: Mapping[Scope, Interest]) -> bool:
        """Work off what changed. True: something did."""
        goals = self._goals
        goals.settle()
        if not self._opened:
            return bool(goals.dirty or goals.addresses)
        for network in [network for network in self.inherited if self._is_known(network, interests)]:
            goals.dirty |= self.inherited.pop(network)
            self.swept = True
        ready = goals.addresses.keys() - self.inherited.keys()
        self.more = False
        if not goals.dirty and not ready:
            return False
        dirty, goals.dirty = goals.dirty, set()
        if self._waiting and any(key[1] in self._waiting for key in dirty):
            self.swept = True
        if self.inherited:
            for key in [key for key in dirty if key[1] in self.inherited]:
                dirty.discard(key)
                self.inherited[key[1]].add(key)
        for key in [key for key in dirty if key[0] == "port"]:
            port = goals.port(key[2])
            if port is not None and goals.waits(port) and key in self._plan.desired:
                self.kept.add(key)
            else:
                self.kept.discard(key)
                self._plan.want(key, goals.spec(key))
        busy = {key[1] for key in self.kept}
        free = {key for key in self._postponed if key[1] not in busy}
        self._postponed -= free
        for network in ready:
            self._update_addresses(network)
        for key in {key for key in dirty if key[0] != "port"} | free:
            spec = goals.spec(key)
            if spec is None and key[0] in GROUND and key[1] in busy:
                self._postponed.add(key)
            else:
                self._plan.want(key, spec)
        return True

    def _update_addresses(self, network: bytes) -> None:
        """Work off a network's addresses of other hosts, not too many at once."""
        waiting = self._goals.addresses[network]
        ips = list(islice(waiting, AT_ONCE))
        if len(ips) < len(waiting):
            self.more = True
            for ip in ips:
                del waiting[ip]
        else:
            del self._goals.addresses[network]
        specs = self._goals.remotes(network, ips)
        self._plan.want_all("remote", specs)
        for ip in ips if len(specs) < len(ips) else ():
            key: SpecKey = ("remote", network, ip)
            if key not in specs:
                self._plan.want(key, None)

    def _is_known(self, network: bytes, interests: Mapping[Scope, Interest]) -> bool:
        """Whether what was heard of a network is all that there is, or nobody here needs it."""
        if HOST not in interests or not interests[HOST].whole:
            return False
        if not self._goals.needs_network(network):
            return True
        interest = interests.get((What.NETWORK, network))
        if interest is None or not interest.whole:
            return False
        groups = [interests.get((What.GROUP, group)) for group in self._goals.networks[network].used_groups]
        return all(group is not None and (group.whole or group.denied) for group in groups)

    def give_up_leftovers(self, interests: Mapping[Scope, Interest]) -> None:
        """Of what a former life left in the kernel, let go what surely nobody wants (rule S6)."""
        if not self.swept or self.more:
            return
        self.swept = False
        self._waiting.clear()
        if not self._plan.leftover or HOST not in interests or not interests[HOST].whole:
            return
        judged: dict[bytes, bool] = {}
        for network in {key[1] for key in self._plan.leftover}:
            interest = interests.get((What.NETWORK, network))
            view = self._goals.networks.get(network)
            waits = view is not None and any(self._goals.waits(port) for port in view.ports.values())
            if waits:
                self._waiting.add(network)
            known = interest is not None and interest.whole and not waits and network not in self.inherited
            judged[network] = known or not self._goals.needs_network(network)
        self._plan.give_up([key for key in self._plan.leftover if judged[key[1]]])
