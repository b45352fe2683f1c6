"""A session with the cluster: how the driver is set up, prepared statements, and what its errors mean.

Called by the Cassandra store and its migrations only. Must never repeat a write whose first try may have happened,
unless repeating it changes nothing.
"""

import asyncio
import logging
import random
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

import cassandra
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import (
    ConstantSpeculativeExecutionPolicy,
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import BatchStatement, BatchType, BoundStatement, tuple_factory

from planes.store.cassandra.bridge import Bridge, Reply
from planes.store.cassandra.errors import PASSING, REFUSED, meaning, sentence, unconnected
from planes.store.cassandra.url import Address
from planes.store.protocol import StoreError, Unavailable, UnknownOutcome

#: how statements are sent: reads may be asked twice, of two replicas; serial ones finish what is under way first
WRITE, READ, SERIAL = "write", "read", "serial"
#: seconds after which a read is asked of a second replica
SPECULATE = 0.2
#: tries of what may be repeated, and the longest first pause between them
TRIES, PAUSE = 4, 0.05
_BIGINT = struct.Struct(">q").pack
#: a statement's text with its values
Line = tuple[str, Sequence[Any]]


class CassandraSession:
    """Made by `connect`. `counts` says how often each kind of request was sent."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._cluster: Any = None
        self._session: Any = None
        self._bridge: Any = None
        self._prepared: dict[str, Any] = {}
        self._preparing: dict[str, asyncio.Task[Any]] = {}
        self._rng = random.Random()
        self.counts: Counter[str] = Counter()

    async def connect(self) -> None:
        """Raises Unavailable when nobody answers, or answers with a refusal."""
        driver = logging.getLogger("cassandra")
        before = driver.level
        driver.setLevel(logging.CRITICAL)  # it logs with traces what is raised here as a sentence
        try:
            self._cluster = await asyncio.to_thread(_cluster, self._address)  # which asks for addresses of names
            self._session = await asyncio.to_thread(self._cluster.connect)
        except StoreError:
            raise
        except Exception as error:
            hosts = self._cluster.metadata.all_hosts() if self._cluster else ()
            why = unconnected(self._address, error, [host.datacenter for host in hosts])
            if self._cluster:
                await asyncio.to_thread(self._cluster.shutdown)
            raise Unavailable(why) from error
        finally:
            driver.setLevel(before)
        # Stamps and compare-and-sets bring their own time; one from the driver would be refused or worse, be used.
        self._session.use_client_timestamp = False
        self._bridge = Bridge(self._session)

    async def close(self) -> None:
        """Wait for what is under way, then leave."""
        await self._bridge.idle()
        await asyncio.to_thread(self._cluster.shutdown)

    @property
    def metadata(self) -> Any:
        return self._cluster.metadata

    @property
    def texts(self) -> dict[str, Any]:
        """Every statement prepared so far, by its text."""
        return self._prepared

    async def once(self, profile: str, lines: Sequence[Line]) -> Reply:
        """Send one statement, or several as one batch, once; driver errors as they are."""
        known = self._prepared
        for text, _ in lines:
            if text not in known:
                await self.prepare(text)
        if len(lines) == 1:
            text, values = lines[0]
            return await self._bridge.submit(known[text], values, profile)  # type: ignore[no-any-return]
        batch, bound = BatchStatement(BatchType.UNLOGGED), dict[str, BoundStatement]()
        for text, values in lines:
            row = bound.get(text)
            if row is None:
                row = bound[text] = known[text].bind(values)
            else:
                row.values = [_packed(value) for value in values]
            batch.add(row)
        return await self._bridge.submit(batch, None, profile)  # type: ignore[no-any-return]

    async def page(self, profile: str, line: Line, more: bytes | None) -> Reply:
        """One page of a read; repeated while that may help. Raises Unavailable."""
        text, values = line
        for attempt in range(TRIES):
            try:
                prepared = self._prepared.get(text) or await self.prepare(text)
                self.counts[profile] += 1
                return await self._bridge.submit(prepared, values, profile, more)  # type: ignore[no-any-return]
            except PASSING as error:
                if attempt == TRIES - 1:
                    raise Unavailable(sentence(error)) from error
            except cassandra.DriverException as error:
                raise Unavailable(sentence(error)) from error
            await self._pause(attempt)
        raise AssertionError("the last try returns or raises")

    async def rows(self, profile: str, line: Line) -> list[Any]:
        """All pages."""
        reply = await self.page(profile, line, None)
        rows = reply.rows
        while reply.more:
            reply = await self.page(profile, line, reply.more)
            rows = rows + reply.rows
        return rows

    async def conditional(self, lines: Sequence[Line]) -> bool:
        """A compare-and-set: whether its condition held. Repeated only when it certainly did not happen."""
        for attempt in range(TRIES):
            self.counts["conditional"] += 1
            try:
                return bool((await self.once(WRITE, lines)).rows[0][0])
            except cassandra.Unavailable as error:
                if attempt == TRIES - 1:
                    raise Unavailable(sentence(error)) from error
            except Exception as error:
                raise meaning(error) from error
            await self._pause(attempt)
        raise AssertionError("the last try returns or raises")

    async def idempotent(self, lines: Sequence[Line]) -> None:
        """Writes of one partition that may be repeated: they carry their own stamps."""
        maybe = False
        for attempt in range(TRIES):
            self.counts["write"] += 1
            try:
                await self.once(WRITE, lines)
                return
            except PASSING as error:
                maybe = maybe or not isinstance(error, REFUSED)
                if attempt == TRIES - 1:
                    raise (UnknownOutcome if maybe else Unavailable)(sentence(error)) from error
            except Exception as error:
                raise meaning(error) from error
            await self._pause(attempt)

    async def execute(self, text: str) -> None:
        """DDL: returns when every server that is up agrees on the schema."""
        try:
            await asyncio.to_thread(self._session.execute, text, timeout=60)
        except Exception as error:
            what = text.replace(" IF NOT EXISTS", "").split(" WITH ")[0].split(" (")[0]
            raise Unavailable(f"{what:.80}: {sentence(error)}") from error

    async def prepare(self, text: str) -> Any:
        """Once per text, however many ask; the driver's own call blocks."""
        task = self._preparing.get(text)
        if task is None:
            task = self._preparing[text] = asyncio.create_task(self._prepare_once(text))
        return await asyncio.shield(task)

    async def _prepare_once(self, text: str) -> Any:
        try:
            prepared = await asyncio.to_thread(self._session.prepare, text)
            prepared.is_idempotent = text.startswith("SELECT")
            self._prepared[text] = prepared
            return prepared
        except Exception as error:
            raise Unavailable(sentence(error)) from error
        finally:
            del self._preparing[text]

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(self._rng.uniform(PAUSE / 2, PAUSE) * 2**attempt)


def _packed(value: Any) -> bytes | None:
    """A value as it travels, for the rows of a batch but the first: the driver takes four times as long for each.

    Of the types of `planes.store.schema`, as the store has checked.
    """
    if isinstance(value, int):
        return _BIGINT(value)
    return value.encode() if isinstance(value, str) else value


def _cluster(address: Address) -> Any:
    level = cassandra.ConsistencyLevel
    places = TokenAwarePolicy(DCAwareRoundRobinPolicy(address.dc))

    def profile(consistency: int, **more: Any) -> ExecutionProfile:
        return ExecutionProfile(
            load_balancing_policy=places,
            # The driver's own repeats compare-and-sets after a lost connection: done twice, refused the second time.
            retry_policy=FallthroughRetryPolicy(),
            row_factory=tuple_factory,
            request_timeout=address.timeout,
            consistency_level=consistency,
            serial_consistency_level=level.LOCAL_SERIAL,
            **more,
        )

    twice = ConstantSpeculativeExecutionPolicy(SPECULATE, 1)
    usual = profile(level.LOCAL_QUORUM)
    profiles = {
        EXEC_PROFILE_DEFAULT: usual,
        WRITE: usual,
        READ: profile(level.LOCAL_QUORUM, speculative_execution_policy=twice),
        SERIAL: profile(level.LOCAL_SERIAL),
    }
    return Cluster(
        address.hosts,
        port=address.port,
        protocol_version=5,
        compression=False,
        # Without it each request over 4 KiB waits 40 ms for a delayed acknowledgement.
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        execution_profiles=profiles,
        auth_provider=PlainTextAuthProvider(address.user, address.password) if address.user else None,
        ssl_context=_tls(address),
        connect_timeout=5,
        control_connection_timeout=10,
        idle_heartbeat_interval=5,
        reconnection_policy=ExponentialReconnectionPolicy(0.5, 10, max_attempts=None),
    )


def _tls(address: Address) -> ssl.SSLContext | None:
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=address.tls)
        if address.cert:
            context.load_cert_chain(address.cert, address.key)
    except OSError as error:
        files = ", ".join(filter(None, (address.tls, address.cert, address.key)))
        raise Unavailable(f"Setting store: no certificates can be read from {files}: {error.strerror}.") from error
    return context
