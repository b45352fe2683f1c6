"""Real Cassandra nodes on loopback, for tests: alone, or three that form a cluster; each in a directory of its own.

Used by the session fixture `cassandra` in tests/conftest.py and by tests of clusters. Start them from the main thread:
a server dies with the thread that started it, however that ends. Must never leave a process or a directory behind.
"""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import WhiteListRoundRobinPolicy

from cli.cassandra.node import Node
from tests.support.ports import free_port

#: of the nodes of a cluster
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
#: seconds; a start is 15 seconds of CPU, which busy cores stretch
PATIENCE = 240.0


class CassandraServer:
    """One node, alone in its ring unless `node` says otherwise. `brief`: started with less work, slower later."""

    def __init__(
        self, heap: str = "512M", commitlog: str = "periodic", node: Node | None = None, brief: bool = False
    ) -> None:
        self.node = node or Node(
            Path(tempfile.mkdtemp(prefix="alcor-cassandra-")), free_port(), free_port(), heap=heap, commitlog=commitlog
        )
        self._compiler = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1"} if brief else {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return self.node.address

    @property
    def port(self) -> int:
        return self.node.port

    def url(self, keyspace: str) -> str:
        return self.node.url(keyspace)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Again with the same data, after `kill`. Returns when the server answers."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", *self.node.prepare()]
        with (self.node.directory / "system.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.node.directory,
                env={**os.environ, **self._compiler},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def knows(self, others: int) -> bool:
        """Whether the node has heard of so many others, with what they hold."""
        here = ExecutionProfile(WhiteListRoundRobinPolicy([self.address]))
        profiles = {EXEC_PROFILE_DEFAULT: here}
        with Cluster([self.address], port=self.port, protocol_version=5, execution_profiles=profiles) as cluster:
            rows = cluster.connect().execute("SELECT tokens FROM system.peers_v2").all()
        return [bool(row.tokens) for row in rows] == [True] * others

    def kill(self) -> None:
        """As a power cut would, but for what the operating system holds."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> "CassandraServer":
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.node.directory, ignore_errors=True)

    def wait(self) -> None:
        """Until it answers, after `begin`."""
        assert self._process is not None
        end = time.monotonic() + PATIENCE
        while not self.node.answers():
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                why = "did not answer in time" if code is None else f"ended with {code}"
                raise RuntimeError(f"Cassandra {why}.\n{self.said()}")
            time.sleep(0.1)

    def said(self, lines: int = 40) -> str:
        """The end of its log."""
        log = self.node.directory / "system.log"
        end = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else ["(there is none)"]
        return "\n".join([f"The log of {self.address} ends:", *(line[:400] for line in end)])


class CassandraCluster:
    """Three nodes, each row on all of them. An error that leaves the block carries the end of their logs."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="alcor-cluster-"))
        port, storage = free_port(addresses=ADDRESSES), free_port(addresses=ADDRESSES)
        self.nodes = [
            CassandraServer(node=Node(self._directory / address, port, storage, address, ADDRESSES, "400M"), brief=True)
            for address in ADDRESSES
        ]

    def start(self, *nodes: CassandraServer) -> None:
        """Side by side: places and tokens are given, so that none waits for another."""
        for node in nodes:
            node.begin()
        for node in nodes:
            node.wait()

    def __enter__(self) -> Self:
        try:
            self.start(*self.nodes)
            end = time.monotonic() + PATIENCE
            while not all(node.knows(len(ADDRESSES) - 1) for node in self.nodes):
                assert time.monotonic() < end, "the nodes do not know each other"
                time.sleep(0.1)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.kill()
            if error is not None:
                error.add_note(node.said())
        shutil.rmtree(self._directory, ignore_errors=True)


class SecureNode(Node, frozen=True):
    """It asks for roles and passwords, and talks by TLS only, to clients with a certificate.

    Its directory holds `ca.pem` (the authority), `node.pem` and `client.pem` (each a key with its certificate).
    """

    def prepare(self) -> Sequence[str]:
        command = super().prepare()
        with (self.directory / "cassandra.yaml").open("a") as config:
            config.write(SECURE.format(directory=self.directory))
        return command

    def context(self) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=self.directory / "ca.pem")
        made.load_cert_chain(self.directory / "client.pem")
        return made

    def answers(self) -> bool:
        try:
            with socket.create_connection((self.address, self.port), 2) as plain:
                self.context().wrap_socket(plain, server_hostname=self.address).close()
        except OSError:
            return False
        return True


SECURE = """
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
client_encryption_options:
  enabled: true
  optional: false
  require_client_auth: true
  keystore: {directory}/node.pem
  truststore: {directory}/ca.pem
  ssl_context_factory: {{class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}}
"""
