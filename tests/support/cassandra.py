"""Real Cassandra nodes on loopback, for tests: alone, or three that form a cluster; each in a directory of its own.

Used by the session fixture `cassandra` in tests/conftest.py and by tests of clusters. Start them from the main thread:
a server dies with the thread that started it, however that ends. Must never leave a process or a directory behind.
"""

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from cassandra.cluster import Cluster

from cli.cassandra.node import Node
from tests.support.ports import free_port

#: seconds; a start is 15 seconds of CPU, which busy cores stretch
PATIENCE = 240.0


class CassandraServer:
    """One node, alone in its ring unless `node` says otherwise."""

    def __init__(self, heap: str = "512M", commitlog: str = "periodic", node: Node | None = None) -> None:
        self.node = node or Node(
            Path(tempfile.mkdtemp(prefix="alcor-cassandra-")), free_port(), free_port(), heap=heap, commitlog=commitlog
        )
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
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def knows(self, others: int) -> bool:
        """Whether the node has heard of so many others, with what they hold."""
        with Cluster([self.address], port=self.port, protocol_version=5) as cluster:
            found = cluster.connect().execute("SELECT count(tokens) FROM system.peers_v2").one()[0]
        return bool(found == others)

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
        assert self._process is not None
        end = time.monotonic() + PATIENCE
        while not self.node.answers():
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                why = "did not answer in time" if code is None else f"ended with {code}"
                log = (self.node.directory / "system.log").read_text(errors="replace").splitlines()[-40:]
                raise RuntimeError(f"Cassandra {why}:\n" + "\n".join(line[:400] for line in log))
            time.sleep(0.1)
