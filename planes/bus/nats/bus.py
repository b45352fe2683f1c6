"""The message bus on NATS core: what `api` and `agent` processes talk through in production.

Made by the composition roots only. It keeps nothing for later: what cannot be sent now raises, and what the library
still held when a connection broke is thrown away (rule S3). It must never give up reconnecting.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from nats import errors
from nats.aio.client import Client, Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from planes.bus.protocol import Disconnected, Event, Handler, Incoming, NoReply, Subscription

log = logging.getLogger(__name__)

TRACE = "traceparent"
#: seconds between pings; two without an answer and the connection counts as broken
PING = 5
#: first and longest wait between attempts to reconnect, before jitter
WAIT_FIRST, WAIT_MOST = 0.1, 1.0
#: bytes handed over that the server has not taken yet; beyond, nothing more is accepted
UNSENT = 32 * 1024 * 1024
#: delivered and not yet handled, per subscription; beyond, messages are lost and `slow` is reported
PENDING_MESSAGES, PENDING_BYTES = 65_536, 64 * 1024 * 1024


class _Client(Client):
    """nats-py's client, but for three things that a process which lives for years cannot have, and a quick publish."""

    def post(self, subject: str, data: bytes, trace: str) -> None:
        """What `publish` does, without its coroutines: they wait for a bound that we do not set. While connected."""
        if subject.split() != [subject]:
            raise errors.BadSubjectError
        if len(data) > self._max_payload:
            raise errors.MaxPayloadError
        if trace.isascii() and trace.isprintable() and trace:
            head = f"NATS/1.0\r\n{TRACE}: {trace}\r\n\r\n"
            command = f"HPUB {subject} {len(head)} {len(head) + len(data)}\r\n{head}".encode() + data + b"\r\n"
        else:
            command = f"PUB {subject} {len(data)}\r\n".encode() + data + b"\r\n"
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self._flush_queue is not None and self._flush_queue.empty():
            _finish(self._flush_pending())

    async def _process_err(self, err_msg: str) -> None:
        """The library closes for good on most errors of a server (a full server, a slow consumer); we reconnect."""
        text = err_msg.strip(" '\r\n")
        self._err = error = errors.Error(f"nats: {text}")
        await self._error_cb(error)
        if "permissions violation" not in text.lower():
            await self._process_op_err(error)

    def forget_unsent(self) -> None:
        """Throw away what was handed over and never sent, so that it cannot leave after a reconnect."""
        self._pending = []
        self._pending_data_size = 0

    async def barrier(self, timeout: float) -> bool:
        """True when the server has seen all that was handed over before.

        The library's own flush writes its ping ahead of commands that still wait for the flusher, and one that times
        out leaves a cancelled future behind on which the late answer breaks the reader.
        """
        pong: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._flush_pending(force_flush=True)
                await self._send_ping(pong)
                await asyncio.wait((pong,))
        except TimeoutError:
            return False
        return True


class _Subscription:
    def __init__(self, inner: NatsSubscription) -> None:
        self._inner = inner

    async def unsubscribe(self) -> None:
        try:
            await self._inner.unsubscribe()
        except errors.Error:
            pass  # closed already


class NatsBus:
    """One connection. `servers`: one URL, or several with commas between. `credentials`: path of a .creds file."""

    def __init__(self, servers: str, name: str, *, credentials: str = "", inbox: str = "_INBOX") -> None:
        self._servers = [url.strip() for url in servers.split(",") if url.strip()]
        self._name = name
        self._credentials = credentials
        self._inbox = inbox
        self._client = _Client()
        self._connected = False
        self._closing = False
        self._listeners: list[Callable[[Event], None]] = []
        self._troubles: set[str] = set()
        self.counters = {"sent": 0, "received": 0, "reconnects": 0, "slow": 0, "handler_errors": 0}

    @property
    def connected(self) -> bool:
        return self._connected and self._client.is_connected

    async def connect(self) -> None:
        options: dict[str, Any] = {"user_credentials": self._credentials} if self._credentials else {}
        await self._client.connect(
            self._servers,
            name=self._name,
            inbox_prefix=self._inbox,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_disconnected,
            reconnect_to_server_handler=_next_server,
            reconnect_time_wait=random.uniform(WAIT_FIRST, WAIT_MOST / 2),  # type: ignore[arg-type]
            max_reconnect_attempts=-1,
            ping_interval=PING,
            pending_size=0,
            **options,
        )
        self._came_up("connected")

    async def close(self) -> None:
        self._closing = True
        self._connected = False
        if self._client.is_connected:
            await self._client.barrier(1.0)
        with contextlib.suppress(AssertionError):  # thus the client says that it never began to connect
            await self._client.close()

    def publish(self, subject: str, data: bytes, traceparent: str = "") -> None:
        if not self.connected:
            raise Disconnected("not connected")
        if self._client.pending_data_size > UNSENT:
            raise Disconnected(f"the server has not taken {self._client.pending_data_size} bytes yet")
        try:
            self._client.post(subject, data, traceparent)
        except errors.Error as error:
            raise Disconnected(_words(error)) from error
        self.counters["sent"] += 1

    async def flush(self, timeout: float = 2.0) -> None:
        if not self.connected:
            raise Disconnected("not connected")
        if not await self._client.barrier(timeout):
            raise NoReply("the server did not answer a ping")

    async def request(self, subject: str, data: bytes, timeout: float, traceparent: str = "") -> bytes:
        if not self.connected:
            raise Disconnected("not connected")
        self.counters["sent"] += 1
        try:
            headers = {TRACE: traceparent} if traceparent else None
            message = await self._client.request(subject, data, timeout, headers=headers)
        except errors.NoRespondersError:
            raise NoReply(f"nobody listens on {subject}") from None
        except errors.TimeoutError:
            raise NoReply(f"no reply on {subject} within {timeout} s") from None
        except errors.Error as error:
            raise Disconnected(_words(error)) from error
        self.counters["received"] += 1
        return message.data

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        async def deliver(message: Msg) -> None:
            headers = message.headers
            trace = headers.get(TRACE, "") if headers else ""
            self.counters["received"] += 1
            try:
                handler(Incoming(message.subject, message.data, message.reply, trace))
            except Exception:
                self.counters["handler_errors"] += 1
                log.exception("the handler of %s failed", subject)

        inner = await self._client.subscribe(
            subject,
            queue,
            cb=deliver,
            pending_msgs_limit=PENDING_MESSAGES,
            pending_bytes_limit=PENDING_BYTES,
        )
        return _Subscription(inner)

    def listen(self, handler: Callable[[Event], None]) -> None:
        self._listeners.append(handler)

    # -- what the library reports -----------------------------------------------------------------------------------

    def _came_up(self, name: str) -> None:
        self._connected = True
        self._troubles.clear()
        url = self._client.connected_url
        log.info("%s to %s", name, url.netloc.rpartition("@")[2] if url else "the bus")
        self._tell(Event(name))

    async def _on_reconnected(self) -> None:
        self.counters["reconnects"] += 1
        self._came_up("reconnected")

    async def _on_disconnected(self) -> None:
        self._client.forget_unsent()
        if self._connected and not self._closing:
            self._connected = False
            log.warning("the connection to the bus broke")
            self._tell(Event("disconnected"))

    async def _on_error(self, error: Exception) -> None:
        words = _words(error)
        slow = isinstance(error, errors.SlowConsumerError) or "slow consumer" in words.lower()
        if slow:
            self.counters["slow"] += 1
        if words not in self._troubles and len(self._troubles) < 100:
            self._troubles.add(words)
            log.warning("bus: %s", words)
        self._tell(Event("slow" if slow else "error", words))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener of the bus failed")


def _next_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """The server tried least, and how long to wait first: at once-ish, then longer, never in step with others."""
    server = min(servers, key=lambda each: each.reconnects)
    longest = min(WAIT_MOST, WAIT_FIRST * 2**server.reconnects)
    return server, random.uniform(longest / 2, longest)


def _finish(step: Coroutine[Any, Any, None]) -> None:
    """Wake the library's flusher without a task: it never suspends in that.

    Should it, the bytes are on their way already and it only waits for the socket to take them.
    """
    try:
        step.send(None)
    except StopIteration:
        return
    step.close()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
