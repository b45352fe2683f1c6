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
from typing import Any, Self

from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy

from cli.cassandra.node import CENTER, Node
from tests.support.certificates import authority, signed
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
        rows = administer(self, "SELECT tokens FROM system.peers_v2")
        return [bool(row.tokens) for row in rows] == [True] * others

    def nodetool(self, *arguments: str) -> str:
        """What it says; the node has a port `jmx`."""
        done = subprocess.run(self.node.nodetool(*arguments), capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"nodetool {arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}\n{self.said()}"
        return done.stdout

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


def administer(server: CassandraServer, *statements: str) -> list[Any]:
    """As an operator does with `cqlsh` who reached this very server; what the last statement gave.

    A server that asks for a log-in makes its first superuser a moment after its start, who is waited for.
    """
    here = ExecutionProfile(WhiteListRoundRobinPolicy([server.address]), request_timeout=120)
    secure: dict[str, Any] = {}
    if isinstance(server.node, SecureNode):
        first = PlainTextAuthProvider("cassandra", "cassandra")
        secure = {"ssl_context": server.node.context(), "auth_provider": first}
    deadline = time.monotonic() + 60
    while True:
        try:
            with Cluster(
                [server.address],
                port=server.port,
                protocol_version=5,
                execution_profiles={EXEC_PROFILE_DEFAULT: here},
                **secure,
            ) as cluster:
                session = cluster.connect()
                rows: list[Any] = [session.execute(statement).all() for statement in statements][-1]
                return rows
        except NoHostAvailable:
            if not secure or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


class CassandraCluster:
    """Three nodes, each row on all of them. An error that leaves the block carries the end of their logs."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="alcor-cluster-"))
        self._port, self._storage = free_port(addresses=ADDRESSES), free_port(addresses=ADDRESSES)
        self.nodes = [self.node(address) for address in ADDRESSES]

    def node(self, address: str, kind: type[Node] = Node, **more: str) -> CassandraServer:
        """One that is not started; `more`: what its kind has beside."""
        where, jmx = self.directory / address, free_port()
        node = kind(where, self._port, self._storage, address, ADDRESSES, "400M", jmx=jmx, **more)
        return CassandraServer(node=node, brief=True)

    def join(self, address: str, **more: str) -> CassandraServer:
        """Another node, at an address of its own; it has begun to start."""
        self.nodes.append(self.node(address, JoiningNode, **more))
        self.nodes[-1].begin()
        return self.nodes[-1]

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
        shutil.rmtree(self.directory, ignore_errors=True)


class SecureCluster(CassandraCluster):
    """Of nodes that ask clients and each other for certificates, and clients for a role."""

    def __init__(self) -> None:
        super().__init__()
        self.ca = authority(self.directory, "ca")
        self.client = signed(self.ca, "client", "127.0.0.1")

    def node(self, address: str, kind: type[Node] = Node, **more: str) -> CassandraServer:
        server = super().node(address, SecureNode, **more)
        server.node.directory.mkdir()
        return server

    def __enter__(self) -> Self:
        for node in self.nodes:
            signed(self.ca, "node", node.address)
            for name in ("ca", "client", "node"):
                shutil.copy(self.directory / f"{name}.pem", node.node.directory)
        return super().__enter__()

    def url(self, login: str, keyspace: str) -> str:
        plain = self.nodes[0].url(keyspace).replace("//", f"//{login}@", 1)
        return f"{plain}&tls={self.ca}&cert={self.client}&key={self.client}"


class PlacedNode(Node, frozen=True):
    """It tells the others in which data center it is."""

    center: str = CENTER

    def prepare(self) -> Sequence[str]:
        *command, main = super().prepare()
        config, places = self.directory / "cassandra.yaml", self.directory / "cassandra-rackdc.properties"
        places.write_text(f"dc={self.center}\nrack=rack1\n")
        config.write_text(config.read_text().replace("SimpleSnitch", "GossipingPropertyFileSnitch"))
        return [*command, f"-Dcassandra-rackdc.properties=file://{places}", main]


class JoiningNode(Node, frozen=True):
    """It takes its share of what a running cluster holds, or the place of a dead node (`replaces`, its address)."""

    replaces: str = ""

    def prepare(self) -> Sequence[str]:
        *command, main = super().prepare()
        config = self.directory / "cassandra.yaml"
        lines = config.read_text().replace("auto_bootstrap: false", "auto_bootstrap: true").splitlines(keepends=True)
        config.write_text("".join(line for line in lines if not line.startswith("initial_token:")))
        command += ["-Dcassandra.ring_delay_ms=10000"]  # in which all who write must have heard of it
        if self.replaces:
            command += [f"-Dcassandra.replace_address_first_boot={self.replaces}"]
        return [*command, main]


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
server_encryption_options:
  internode_encryption: all
  require_client_auth: true
  keystore: {directory}/node.pem
  truststore: {directory}/ca.pem
  ssl_context_factory: {{class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}}
"""
