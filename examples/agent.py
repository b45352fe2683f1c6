"""A host agent for a data plane of your own: it prints what it would program, and acknowledges it.

    python examples/agent.py nats://127.0.0.1:4222 my-host 192.0.2.50

It needs nats-py, msgspec and the contract `planes.goalstate`; docs/integrate.md explains each step. Replace `program`.
"""

import asyncio
import sys
import time
import uuid

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from planes.goalstate import messages as m
from planes.goalstate.codec import Malformed, decode, encode
from planes.goalstate.subjects import ANY, Subjects


class Agent:
    def __init__(self, bus: Client, host: str, vtep: str) -> None:
        self.bus, self.host, self.vtep = bus, host, bytes(map(int, vtep.split(".")))
        self.subjects = Subjects()
        self.epoch = 0
        self.seen: dict[m.Key, m.Object] = {}  # of a key the highest revision wins, a tombstone too
        self.joined: set[tuple[m.What, bytes]] = set()
        self.work: asyncio.Queue[tuple[m.Object, str, int]] = asyncio.Queue(100_000)

    async def ask(self, subject: str, message, reply):  # type: ignore[no-untyped-def]
        """A request that is repeated until somebody answers it; every one of the contract may be."""
        while True:
            try:
                answer = await self.bus.request(subject, encode(message, self.host, self.epoch), timeout=5)
                body = decode(answer.data, reply)[1]
                if not body.again:
                    return body
                await asyncio.sleep(body.again)
            except (nats.errors.Error, Malformed) as error:
                print(f"# {subject}: {error or type(error).__name__}", flush=True)
                await asyncio.sleep(1)

    async def run(self) -> None:
        machine, attempt = f"{self.host}-{uuid.getnode():x}", uuid.uuid4().bytes
        request = m.Register(self.host, machine, self.vtep, software="example", attempt=attempt)
        who = await self.ask(self.subjects.pull(self.host, "register"), request, m.Registered)
        if who.refused:
            sys.exit(f"refused: {who.refused}")
        self.epoch = who.epoch
        print(f"# {self.host} is host {who.number}, life {who.epoch}", flush=True)
        await asyncio.gather(self.join(m.What.HOST, b""), self.beat(), self.apply())

    async def join(self, what: m.What, scope: bytes) -> None:
        """Listen first, then pull what is there: nothing falls between."""
        if (what, scope) in self.joined:
            return
        self.joined.add((what, scope))
        named = {m.What.NETWORK: self.subjects.network, m.What.GROUP: self.subjects.group}
        subject = named[what](scope) if scope else self.subjects.host(self.host)
        await self.bus.subscribe(subject, cb=self.heard)
        await self.bus.flush()
        pull, token = self.subjects.pull(self.host, what.name.lower()), b""
        while True:
            page = await self.ask(pull, m.Pull(what, scope, token=token), m.Page)
            for found in page.objects:
                self.take(found) if scope else await self.work.put((found, "", 0))
            if not (token := page.token):
                return

    async def heard(self, message: Msg) -> None:
        try:
            envelope, goal = decode(message.data, m.Goal)
        except Malformed as error:
            print(f"# {message.subject}: {error}", flush=True)
            return
        if envelope.epoch in (0, self.epoch):  # else it was meant for another life
            for found in goal.objects:
                await self.work.put((found, goal.author, goal.sent))

    async def apply(self) -> None:
        while True:
            found, author, sent = await self.work.get()
            if isinstance(found, m.Port):
                await self.join(m.What.NETWORK, found.network)
                for group in found.groups:
                    await self.join(m.What.GROUP, group)
            if self.take(found) and isinstance(found, m.Port | m.Gone) and found.key[0] == m.ObjectKind.PORT:
                now = time.time_ns() // 1000  # only ports and their tombstones are acknowledged
                done = m.Applied(*found.key, found.rev, "", found.change, sent, now, now, now)
                await self.ask(self.subjects.ack(self.host, author or ANY), m.Ack((done,)), m.Ok)

    def take(self, found: m.Object) -> bool:
        """Whether this is the truth about its key, now or already."""
        known = self.seen.get(found.key)
        if known is None or known.rev < found.rev:
            self.seen[found.key] = found
            self.program(found)
        return self.seen[found.key].rev == found.rev

    def program(self, found: m.Object) -> None:
        """Here a data plane does its work; an error belongs in `m.Applied.error`."""
        print("remove" if isinstance(found, m.Gone) else "set", found, flush=True)

    async def beat(self) -> None:
        while True:
            ports = sum(isinstance(found, m.Port) for found in self.seen.values())
            answer = await self.ask(self.subjects.beat(self.host), m.Beat(in_sync=True, ports=ports), m.Ok)
            if answer.epoch > self.epoch:
                sys.exit("another machine is this host now")
            await asyncio.sleep(3)


async def main(url: str, host: str, vtep: str) -> None:
    bus = await nats.connect(url, max_reconnect_attempts=-1, inbox_prefix=f"_INBOX_{host}")
    await Agent(bus, host, vtep).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
