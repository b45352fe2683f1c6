"""Who this host is: registration, epoch, beats, and being superseded (rules S16, S20).

Part of `AgentState`. An agent that learns of a higher epoch than its own stops changing things, says so, and asks to
be registered again after a while: it was declared dead and is back, or somebody else goes by its name.
"""

from collections.abc import Callable

from agent.core.context import Context
from agent.core.events import Answered
from agent.core.instructions import Save, Saved, Say
from planes.goalstate import codec
from planes.goalstate.codec import Malformed
from planes.goalstate.messages import VERSION, Beat, Ok, Register, Registered

#: seconds until the next attempt: no reply (first, most); refused
RETRY_FIRST, RETRY_MOST, REFUSED = 0.5, 10.0, 10.0
#: after the first time of being superseded; each further time waits twelve times as long
SUPERSEDED_FIRST, SUPERSEDED_MOST = 5.0, 3600.0
#: beats in a row to which control says that it does not know this host
UNKNOWN = 5


class Membership:
    """The host's number and epoch. `registered` is called with the number when a life begins."""

    def __init__(self, context: Context, registered: Callable[[int], None], saved: Saved | None) -> None:
        self._context = context
        self._on_registered = registered
        #: 0: unknown
        self.number = 0
        #: the latest epoch of this machine, also of former lives
        self.former = saved.epoch if saved else 0
        #: the number that the driver was opened with
        self.opened_as = 0
        self.superseded = False
        self._times = 0
        self._tries = 0
        self._unknown = 0
        self._refused = ""
        self._asked = 0
        self._attempt = self._new_attempt()
        self._since = 0.0
        #: the last request to be registered got no reply
        self._unheard = False

    def _new_attempt(self) -> bytes:
        """What tells a new life from a repeated request for the same one."""
        return int(self._context.random() * 2**64).to_bytes(8, "big")

    def register(self) -> None:
        """Ask for an epoch."""
        context = self._context
        if not context.online:
            return
        options = context.options
        asked = Register(
            options.host,
            options.machine,
            options.vtep,
            self.former,
            options.cell,
            options.software,
            options.capabilities,
            attempt=self._attempt,
        )
        self._asked += 1
        self._unheard = False
        context.timers.cancel(("register",))
        context.request(("register", self._asked), context.subjects.pull(options.host, "register"), asked)

    def beat(
        self, in_sync: bool, last_sync: int, ports: int, counters: dict[str, int], reasons: tuple[str, ...]
    ) -> None:
        """Say that this host is alive, and how it is."""
        context = self._context
        every = context.options.beat_every
        context.timers.set(("beat",), context.now + every)
        if context.online and context.epoch:
            message = Beat(in_sync, last_sync, ports, counters, reasons)
            context.request(("beat", context.epoch), context.subjects.beat(context.options.host), message, every)

    def answered(self, event: Answered) -> None:
        if event.tag[0] == "register":
            if event.tag[1] == self._asked:
                self._registered(event.data)
        elif event.tag[1] == self._context.epoch:
            self._heard(event.data)

    def _registered(self, data: bytes | None) -> None:
        context = self._context
        try:
            reply = codec.decode(data, Registered)[1] if data is not None else None
        except Malformed as error:
            context.counters["malformed"] += 1
            context.trouble("register", f"the answer to the registration cannot be read: {error}")
            reply = None
        self._unheard = reply is None
        if reply is None:
            self._tries += 1
            self._later(context.backoff(self._tries, RETRY_FIRST, RETRY_MOST))
        elif reply.refused:
            if self._refused != reply.refused:
                context.out.append(Say("error", f"registration is refused: {reply.refused}"))
            self._refused = reply.refused
            self._later(context.jittered(REFUSED))
        elif reply.again or not reply.epoch or not reply.number:
            self._later(context.jittered(float(reply.again or 1)))
        else:
            self._begin(reply)

    def control_is_there(self) -> None:
        """A beacon came: if nobody answered the last request, ask again now."""
        if self._unheard and not self.superseded:
            self._tries = 0
            self.register()

    def _later(self, wait: float) -> None:
        self._context.timers.set(("register",), self._context.now + wait)

    def _begin(self, reply: Registered) -> None:
        context = self._context
        context.epoch = self.former = reply.epoch
        self.number = reply.number
        self.superseded = False
        self._refused = ""
        self._tries = self._unknown = 0
        self._since = context.now
        context.out.append(Save(Saved(VERSION, context.options.host, reply.epoch)))
        context.out.append(Say("info", f"registered: host number {reply.number}, epoch {reply.epoch}"))
        self._on_registered(reply.number)

    def _heard(self, data: bytes | None) -> None:
        """The answer to a beat."""
        context = self._context
        if data is None:
            context.counters["beats_lost"] += 1
            context.trouble("beat", "control does not answer")
            return
        try:
            reply = codec.decode(data, Ok)[1]
        except Malformed:
            context.counters["malformed"] += 1
            return
        context.fine("beat", "control answers")
        if reply.epoch > context.epoch:
            self.supersede(reply.epoch)
            return
        self._unknown = self._unknown + 1 if not reply.epoch else 0
        if self._unknown >= UNKNOWN:
            self._unknown = 0
            self._attempt = self._new_attempt()
            self.register()

    def supersede(self, epoch: int) -> None:
        """Somebody has a later epoch of this host: hands off the kernel."""
        context = self._context
        if self.superseded or not context.epoch:
            return
        self.superseded = True
        self._attempt = self._new_attempt()
        if context.now - self._since > SUPERSEDED_MOST:
            self._times = 0  # it lived long: this is another story
        context.counters["superseded"] += 1
        words = f"epoch {epoch} of this host exists, this agent has {context.epoch}: it changes nothing any more"
        context.out.append(Say("error", words))
        context.epoch = 0
        wait = min(SUPERSEDED_MOST, SUPERSEDED_FIRST * 12.0**self._times)
        self._times += 1
        self._later(context.jittered(wait))

    def reasons(self) -> list[str]:
        """Why this host does not take part, in words."""
        found = ["a later epoch of this host exists"] if self.superseded else []
        return [*found, f"registration is refused: {self._refused}"] if self._refused else found
