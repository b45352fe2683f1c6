"""Joining and leaving scopes, and pulling what they hold, page by page (rules S4, S5, S7).

Part of `AgentState`. Joining: subscribe, flush, pull everything, look again 2 s later. A snapshot counts only when its
last page has come; then, and only in that scope, may be swept what it did not name (S6).
"""

from collections.abc import Callable

from agent.core.context import Context
from agent.core.events import HOST, Answered, Listening, Scope
from agent.core.instructions import Listen, Unlisten
from agent.core.tops import Tops
from planes.goalstate import codec
from planes.goalstate.codec import Malformed, UnknownVersion
from planes.goalstate.messages import WHOLE, Page, Pull, Span, What

#: seconds before a pull that failed is sent again: no reply; refused or not understood
RETRY_FIRST, RETRY_MOST = 0.2, 5.0
REFUSED, NOT_UNDERSTOOD = 30.0, 3600.0
#: a pull begins anew after so many tries in vain
RESTART = 8
#: seconds after which a request for the next page has left, and the present one may be worked off
SOON = 0.001

PullKey = tuple[Scope, int]  # scope and part


class Interest:
    """A scope that this host needs. `whole`: a complete snapshot came since it was joined."""

    def __init__(self) -> None:
        self.listening = False
        self.whole = False
        self.joined_at = 0.0
        self.denied = ""
        self.tops = Tops()
        self.missing: dict[str, int] = {}  # hosts that neighbours name without a peer → times asked


class Pulling:
    """A pull on its way."""

    __slots__ = ("active", "gen", "pull", "spans", "token", "tries", "whole")

    def __init__(self, pull: Pull) -> None:
        self.pull = pull
        self.gen = 0
        self.token = b""
        self.spans: list[Span] = []
        self.whole = True
        self.tries = 0
        self.active = False


class Scopes:
    """What is of interest, and the pulls for it.

    `take` stores a page's objects, with the number of the pull; `complete` hears of finished pulls.
    """

    def __init__(
        self, context: Context, take: Callable[[Scope, Page, int], None], complete: Callable[[Scope, Pulling], None]
    ) -> None:
        self._context = context
        self._take = take
        self._complete = complete
        self.interests: dict[Scope, Interest] = {}
        self.pulls: dict[PullKey, Pulling] = {}
        self._page_in_hand: tuple[Scope, Page, int] | None = None
        #: rises with each pull; what is received is marked with it
        self.generation = 1

    # -- joining and leaving ----------------------------------------------------------------------------------------

    def join(self, scope: Scope) -> None:
        """Begin to follow a scope."""
        self._context.timers.cancel(("leave", scope))
        if scope not in self.interests:
            self.interests[scope] = Interest()
            self._listen(scope)

    def leave(self, scope: Scope) -> None:
        """Stop following it, now."""
        del self.interests[scope]
        for key in [key for key in self.pulls if key[0] == scope]:
            self._drop_pull(key)
        if self._page_in_hand is not None and self._page_in_hand[0] == scope:
            self._page_in_hand = None
        self._context.out.append(Unlisten(scope))

    def _listen(self, scope: Scope) -> None:
        what, id_ = scope
        subjects = self._context.subjects
        subject = subjects.network(id_) if what == What.NETWORK else subjects.group(id_)
        self._context.out.append(Listen(scope, subjects.host(self._context.options.host) if scope == HOST else subject))

    def listening(self, event: Listening) -> bool:
        """The subscription stands, or must be tried again. True: it is new."""
        interest = self.interests.get(event.scope)
        if interest is None:
            return False
        if event.error:
            self._context.timers.set(("listen", event.scope), self._context.now + self._context.jittered(1.0))
            return False
        first, interest.listening = not interest.listening, True
        return first

    def listen_again(self, scope: Scope) -> None:
        """A subscription failed a while ago."""
        if scope in self.interests and not self.interests[scope].listening:
            self._listen(scope)

    # -- pulling ----------------------------------------------------------------------------------------------------

    def pull(self, pull: Pull) -> None:
        """Ask for a scope or a part of it, unless that is on its way."""
        scope: Scope = (What.NETWORK if pull.what == What.BUCKET else pull.what, pull.scope)
        part = pull.part if pull.what == What.BUCKET else WHOLE
        if scope not in self.interests or (scope, WHOLE) in self.pulls or (scope, part) in self.pulls:
            return
        if part == WHOLE:
            for key in [key for key in self.pulls if key[0] == scope]:
                self._drop_pull(key)  # the whole brings them too
        self.pulls[scope, part] = Pulling(pull)
        self.pump()

    def pull_whole(self, scope: Scope) -> None:
        self.pull(Pull(scope[0], scope[1]))

    def pump(self) -> None:
        """Start pulls that wait, as many at a time as is allowed: own ports first, then groups, then networks."""
        if not self._context.online or not self._context.epoch:
            return
        active = sum(pulling.active for pulling in self.pulls.values())
        for key in sorted((key for key in self.pulls if not self.pulls[key].active), key=_urgency):
            if active >= self._context.options.pulls_at_once:
                return
            if ("pull", *key) in self._context.timers:
                continue
            self._begin(key, self.pulls[key])
            active += 1

    def _begin(self, key: PullKey, pulling: Pulling) -> None:
        pulling.active = True
        if not pulling.gen:
            self.generation += 1
            pulling.gen = self.generation
            self._context.counters["pulls"] += 1
        pull = pulling.pull
        asked = Pull(pull.what, pull.scope, pull.part, pull.since, pulling.token)
        subject = self._context.subjects.pull(self._context.options.host, What(pull.what).name.lower())
        self._context.request(("pull", key, pulling.gen), subject, asked)

    def answered(self, event: Answered) -> None:
        """A page came, or none did."""
        _, key, gen = event.tag
        pulling = self.pulls.get(key)  # type: ignore[call-overload]
        if pulling is None or pulling.gen != gen:
            return
        pulling.active = False
        if event.data is None:
            self._again(key, pulling, self._context.backoff(pulling.tries, RETRY_FIRST, RETRY_MOST))  # type: ignore[arg-type]
            return
        try:
            page = codec.decode(event.data, Page)[1]
        except Malformed as error:
            self._context.counters["unknown_version" if isinstance(error, UnknownVersion) else "malformed"] += 1
            self._context.trouble("page", f"a snapshot cannot be read: {error}")
            self._again(key, pulling, NOT_UNDERSTOOD)  # type: ignore[arg-type]
            return
        self._page(key, pulling, page)  # type: ignore[arg-type]
        self.pump()

    def _again(self, key: PullKey, pulling: Pulling, wait: float) -> None:
        pulling.tries += 1
        if pulling.tries % RESTART == 0:  # perhaps it is the token that nobody can serve
            pulling.token, pulling.gen, pulling.spans = b"", 0, []
        self._context.timers.set(("pull", *key), self._context.now + self._context.jittered(wait))
        self.pump()

    def _page(self, key: PullKey, pulling: Pulling, page: Page) -> None:
        scope = key[0]
        if page.again:
            self._again(key, pulling, float(page.again))
            return
        if page.denied:
            self._denied(scope, key, pulling, page.denied)
            return
        pulling.tries = 0
        self.interests[scope].denied = ""
        pulling.spans.extend(page.spans)
        pulling.whole = pulling.whole and page.whole
        if page.token and page.token != pulling.token:
            pulling.token = page.token
            self._begin(key, pulling)
            self._page_in_hand = scope, page, pulling.gen
            self._context.timers.set(("page",), self._context.now + SOON)
            return
        self._take(scope, page, pulling.gen)
        del self.pulls[key]
        interest = self.interests[scope]
        interest.tops.take(pulling.spans)
        if key[1] == WHOLE:
            interest.whole = True
        self._complete(scope, pulling)

    def take_page(self) -> None:
        """Work off the page whose successor is being asked for: before anything else, but after that has left."""
        if self._page_in_hand is not None:
            page, self._page_in_hand = self._page_in_hand, None
            self._take(*page)

    def _denied(self, scope: Scope, key: PullKey, pulling: Pulling, why: str) -> None:
        """Control says that we have no business there: our ports may be out of date, so look at those first."""
        self.interests[scope].denied = why
        self._context.counters["denied"] += 1
        pulling.token, pulling.gen, pulling.spans = b"", 0, []
        self._again(key, pulling, REFUSED)
        if scope != HOST:
            self.pull_whole(HOST)

    def _drop_pull(self, key: PullKey) -> None:
        del self.pulls[key]
        self._context.timers.cancel(("pull", *key))

    def in_sync(self) -> bool:
        """Every scope has had its snapshot and none is being pulled."""
        return not self.pulls and all(interest.whole for interest in self.interests.values())


def _urgency(key: PullKey) -> tuple[int, int]:
    scope, part = key
    order = {What.HOST: 0, What.GROUP: 1}
    return (order.get(What(scope[0]), 2), part)
