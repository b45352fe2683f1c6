"""A real Cassandra node on loopback, for tests: jars by Maven into a cache outside the repository, own directories.

Used by the session fixture `cassandra` in tests/conftest.py. Start it from the main thread: the server dies with the
thread that started it, however that ends. Must never leave a process or a directory behind, nor go beyond loopback.
"""

import fcntl
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
#: seconds; a start is 15 seconds of CPU, which busy cores stretch
PATIENCE = 180.0
_OPENS = """java.base/java.io java.base/java.lang java.base/java.lang.reflect java.base/java.util
java.base/java.util.concurrent java.base/java.util.concurrent.atomic java.base/java.nio
java.base/java.lang.module java.base/jdk.internal.loader java.base/jdk.internal.math
java.base/jdk.internal.module java.base/jdk.internal.ref java.base/jdk.internal.reflect
java.base/jdk.internal.util.jar java.base/sun.nio.ch jdk.management/com.sun.management.internal"""
_EXPORTS = """java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch
java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry
java.rmi/sun.rmi.server java.sql/java.sql jdk.attach/sun.tools.attach"""


def jars() -> Path:
    """The folder with the server's jars; Maven fills it once, whole or not at all."""
    found = re.search(r"<cassandra\.version>(.+?)<", (HERE / "pom.xml").read_text())
    assert found, "pom.xml names no version"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alcor" / "cassandra"
    cache.mkdir(parents=True, exist_ok=True)
    lib = cache / found[1]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not lib.exists():
            part = cache / f"{found[1]}.part"
            shutil.rmtree(part, ignore_errors=True)
            maven = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
            subprocess.run([*maven, f"-DoutputDirectory={part}", "-DincludeScope=runtime"], check=True)
            part.rename(lib)
    return lib


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class CassandraServer:
    """One node, alone in its ring. `commitlog`: periodic is quick, batch survives `kill -9` without loss."""

    def __init__(self, heap: str = "512M", commitlog: str = "periodic") -> None:
        self.address = "127.0.0.1"
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="alcor-cassandra-"))
        self._storage = free_port()
        self._heap = heap
        self._commitlog = commitlog
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, keyspace: str) -> str:
        return f"cassandra://{self.address}:{self.port}/{keyspace}?dc=datacenter1&replication=1&timeout=22"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Again with the same data, after `kill`. Returns when the server answers."""
        lib, directory = jars(), self.directory
        template = string.Template((HERE / "cassandra.yaml").read_text())
        sync = {"periodic": "commitlog_sync_period: 10s", "batch": ""}[self._commitlog]
        config = template.substitute(
            address=self.address,
            storage_port=self._storage,
            cql_port=self.port,
            data=directory,
            commitlog_sync=self._commitlog,
            commitlog_extra=sync,
        )
        (directory / "cassandra.yaml").write_text(config)
        with (directory / "system.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(lib),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

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
        shutil.rmtree(self.directory, ignore_errors=True)

    def _command(self, lib: Path) -> list[str]:
        d = self.directory
        command = ["setpriv", "--pdeathsig", "KILL"]
        if os.geteuid() == 0:  # else root's server locks its whole heap into memory
            command += ["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
        command += ["nice", "java", "-cp", f"{lib}/*", f"-javaagent:{next(lib.glob('jamm-*.jar'))}"]
        command += [f"-Xms{self._heap}", f"-Xmx{self._heap}", "-Xss384k", "-XX:+UseSerialGC"]
        command += ["-XX:+ExitOnOutOfMemoryError", "-XX:+PerfDisableSharedMem", "-XX:MaxDirectMemorySize=256M"]
        command += ["-Djdk.attach.allowAttachSelf=true", "-Dio.netty.tryReflectionSetAccessible=true"]
        command += ["-Djava.net.preferIPv4Stack=true", f"-Djava.io.tmpdir={d}"]
        command += [f"-Dcassandra.config=file://{d}/cassandra.yaml", f"-Dcassandra.storagedir={d}"]
        command += [f"-Dlogback.configurationFile=file://{HERE}/logback.xml", "-Dcassandra-foreground=yes"]
        command += ["-Dcassandra.skip_wait_for_gossip_to_settle=0", "-Dcassandra.ring_delay_ms=1000"]
        command += ["-Dcassandra.superuser_setup_delay_ms=0"]
        for module in _OPENS.split():
            command += ["--add-opens", f"{module}=ALL-UNNAMED"]
        for module in _EXPORTS.split():
            command += ["--add-exports", f"{module}=ALL-UNNAMED"]
        return [*command, "org.apache.cassandra.service.CassandraDaemon"]

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + PATIENCE
        while not self._answers():
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                why = "did not answer in time" if code is None else f"ended with {code}"
                log = (self.directory / "system.log").read_text(errors="replace").splitlines()[-40:]
                raise RuntimeError(f"Cassandra {why}:\n" + "\n".join(line[:400] for line in log))
            time.sleep(0.1)

    def _answers(self) -> bool:
        """One frame of the native protocol, version 4: OPTIONS, answered by SUPPORTED."""
        try:
            with socket.create_connection((self.address, self.port), 2) as s:
                s.sendall(b"\x04\0\0\0\x05\0\0\0\0")
                return s.recv(9)[4:5] == b"\x06"
        except OSError:
            return False
