"""Hosts that neighbours name and nobody has described: addresses behind them cannot be reached until somebody does.

Part of `AgentState`. A page that brings a neighbour brings its peer, so a neighbour of such a host is asked for again.
"""

from collections.abc import Iterable

from agent.core.context import Context
from agent.core.events import Scope
from agent.core.scopes import Scopes
from agent.core.translate import Goals
from planes.goalstate.messages import Pull, What
from planes.model.addresses import bucket

#: seconds before a host that still is unknown is asked for again, first and most
FIRST, MOST = 0.5, 60.0


class Strangers:
    """Of all networks."""

    def __init__(self, context: Context, goals: Goals, scopes: Scopes) -> None:
        self._context = context
        self._goals = goals
        self._scopes = scopes

    def named(self, network: bytes, hosts: Iterable[str]) -> None:
        """Neighbours came; perhaps their hosts are unknown."""
        view = self._goals.networks.get(network)
        own = self._context.options.host
        if view is not None and any(host not in view.peers and host != own for host in hosts):
            self.look(network)

    def look(self, network: bytes) -> None:
        """See soon whether all hosts of a network are known: what describes them may be on its way."""
        scope: Scope = (What.NETWORK, network)
        self._context.timers.set_once(("peers", scope), self._context.now + self._context.options.gap_after)

    def ask(self, scope: Scope) -> None:
        """The wait is over."""
        interest, view = self._scopes.interests.get(scope), self._goals.networks.get(scope[1])
        if interest is None or view is None or not interest.whole:
            return
        missing = set(view.missing_peers(self._context.options.host))
        interest.missing = {host: tries for host, tries in interest.missing.items() if host in missing}
        for host in sorted(missing)[: self._context.options.pulls_at_once]:
            interest.missing[host] = interest.missing.get(host, 0) + 1
            ip = min(view.behind[host])
            self._scopes.pull(Pull(What.BUCKET, scope[1], bucket(ip), max(view.neighbours[ip].rev - 1, 1)))
        if missing:
            tries = max(interest.missing.values())
            self._context.timers.set(("peers", scope), self._context.now + self._context.backoff(tries, FIRST, MOST))
