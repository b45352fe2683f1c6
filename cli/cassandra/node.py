"""A real Cassandra server on this machine: its jars by Maven into a cache outside the repository, its configuration,
the command that runs it. One alone, or several that form a cluster on loopback addresses.

Used by `cli.up` for `--store cassandra`, and by tests. A cloud of one machine; production brings its own cluster. Must
never listen on anything but the address that it was given.
"""

import os
import socket
import string
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from cli.maven import jars

HERE = Path(__file__).resolve().parent
CENTER = "datacenter1"
_OPENS = """java.base/java.io java.base/java.lang java.base/java.lang.reflect java.base/java.util
java.base/java.util.concurrent java.base/java.util.concurrent.atomic java.base/java.nio
java.base/java.lang.module java.base/jdk.internal.loader java.base/jdk.internal.math
java.base/jdk.internal.module java.base/jdk.internal.ref java.base/jdk.internal.reflect
java.base/jdk.internal.util.jar java.base/sun.nio.ch jdk.management/com.sun.management.internal"""
_EXPORTS = """java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch
java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry
java.rmi/sun.rmi.server java.sql/java.sql jdk.attach/sun.tools.attach"""


class Node(Struct, frozen=True):
    """One server. `seeds`: addresses of the cluster's nodes, all with these ports; empty: alone.

    `commitlog`: `batch` survives `kill -9` without loss, `periodic` is quicker.
    """

    directory: Path
    port: int
    storage: int
    address: str = "127.0.0.1"
    seeds: tuple[str, ...] = ()
    heap: str = "512M"
    commitlog: str = "batch"
    jmx: int = 0  # port for nodetool, on loopback; 0: none

    def url(self, keyspace: str, timeout: int = 22) -> str:
        """For ALCOR_STORE."""
        nodes = self.seeds or (self.address,)
        hosts, copies = ",".join(nodes), min(3, len(nodes))
        return f"cassandra://{hosts}:{self.port}/{keyspace}?dc={CENTER}&replication={copies}&timeout={timeout}"

    def prepare(self) -> Sequence[str]:
        """Write its configuration; the command that runs it. Raises Failure."""
        lib, d = jars(HERE / "pom.xml", "A Cassandra server"), self.directory
        d.mkdir(parents=True, exist_ok=True)
        nodes = self.seeds or (self.address,)
        place = nodes.index(self.address) if self.address in nodes else 0
        template = string.Template((HERE / "cassandra.yaml").read_text())
        config = template.substitute(
            address=self.address,
            seeds=",".join(f"{node}:{self.storage}" for node in nodes),
            token=place * (2**64 // len(nodes)) - 2**63 if len(nodes) > 1 else 0,
            storage_port=self.storage,
            cql_port=self.port,
            data=d,
            commitlog_sync=self.commitlog,
            commitlog_extra="commitlog_sync_period: 10s" if self.commitlog == "periodic" else "",
        )
        (d / "cassandra.yaml").write_text(config)
        command = []
        if os.geteuid() == 0:  # else root's server locks its whole heap into memory
            command += ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
        command += ["nice", *self._java(lib), f"-javaagent:{next(lib.glob('jamm-*.jar'))}"]
        command += [f"-Xms{self.heap}", f"-Xmx{self.heap}", "-Xss384k", "-XX:+UseSerialGC"]
        command += ["-XX:+ExitOnOutOfMemoryError", "-XX:+PerfDisableSharedMem", "-XX:MaxDirectMemorySize=256M"]
        command += ["-Djdk.attach.allowAttachSelf=true", "-Dio.netty.tryReflectionSetAccessible=true"]
        command += ["-Djava.net.preferIPv4Stack=true", f"-Djava.io.tmpdir={d}"]
        command += [f"-Dcassandra.config=file://{d}/cassandra.yaml", f"-Dcassandra.storagedir={d}"]
        command += ["-Dcassandra-foreground=yes"]
        command += ["-Dcassandra.skip_wait_for_gossip_to_settle=0", "-Dcassandra.ring_delay_ms=1000"]
        command += ["-Dcassandra.superuser_setup_delay_ms=0"]
        if self.jmx:
            command += [f"-Dcassandra.jmx.local.port={self.jmx}"]
        return [*command, "org.apache.cassandra.service.CassandraDaemon"]

    def nodetool(self, *arguments: str) -> Sequence[str]:
        """The command that asks the running server, by its port `jmx`. Raises Failure."""
        command = [*self._java(jars(HERE / "pom.xml", "A Cassandra server")), "-Xmx64M", "-XX:TieredStopAtLevel=1"]
        return [*command, "org.apache.cassandra.tools.NodeTool", "-p", str(self.jmx), *arguments]

    def _java(self, lib: Path) -> list[str]:
        command = ["java", "-cp", f"{lib}/*", f"-Dlogback.configurationFile=file://{HERE}/logback.xml"]
        for module in _OPENS.split():
            command += ["--add-opens", f"{module}=ALL-UNNAMED"]
        for module in _EXPORTS.split():
            command += ["--add-exports", f"{module}=ALL-UNNAMED"]
        return command

    def answers(self) -> bool:
        """One frame of the native protocol, version 4: OPTIONS, answered by SUPPORTED."""
        try:
            with socket.create_connection((self.address, self.port), 2) as s:
                s.sendall(b"\x04\0\0\0\x05\0\0\0\0")
                return s.recv(9)[4:5] == b"\x06"
        except OSError:
            return False
