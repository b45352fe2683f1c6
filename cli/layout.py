"""Names and files of one cloud on this machine. All of them follow from its data directory, so that several clouds on
one machine do not collide and the remains of one can be told from another's.

Used by `up`, `demo` and the `vm` commands. Touches nothing but the data directory.
"""

import fcntl
import hashlib
import os
import re
from pathlib import Path

import msgspec
from msgspec import Struct

from cli.errors import Failure

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


class Description(Struct, frozen=True):
    """What `up` tells other commands through `cloud.json`."""

    api: str
    nats: str
    tag: str
    hosts: tuple[str, ...]
    pid: int
    pids: dict[str, int]


class Layout:
    """Where a cloud keeps what. `tag` is in every namespace and link that is its own."""

    def __init__(self, data: str) -> None:
        self.data = Path(data).resolve()
        self.tag = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:5]
        self.net = f"am{self.tag}-net"
        self.uplink = f"am{self.tag}u"
        self.database = self.data / "alcor.db"
        self.description = self.data / "cloud.json"
        self.logs = self.data / "log"
        self._namespaces = re.compile(rf"^am{self.tag}(-|h\d+-)")
        self._held: int | None = None

    def host(self, name: str) -> str:
        """The namespace that stands for a host."""
        return f"am{self.tag}-{name}"

    def cloud(self, name: str) -> str:
        """What the agent of a host begins the names of its networks' namespaces with."""
        return f"am{self.tag}{name}"

    def instance(self, name: str) -> str:
        """The namespace that stands for a test instance."""
        if not NAME.match(name):
            raise Failure(f"'{name:.80}' is no name for an instance: letters, digits, '.', '_' and '-', 63 at most.")
        return f"am{self.tag}-vm-{name}"

    def is_ours(self, namespace: str) -> bool:
        return bool(self._namespaces.match(namespace))

    def hold(self) -> None:
        """Make the data directory ours until this process ends. Raises Failure when another cloud runs in it."""
        self.logs.mkdir(parents=True, exist_ok=True)
        held = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise Failure(f"A cloud is already running in {self.data}; choose another directory with --data.") from None
        self._held = held

    def describe(self, description: Description) -> None:
        part = self.description.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(description))
        part.replace(self.description)

    def running(self) -> Description:
        """The cloud that runs in the data directory; raises Failure when there is none."""
        try:
            found = msgspec.json.decode(self.description.read_bytes(), type=Description)
            os.kill(found.pid, 0)
        except (FileNotFoundError, ProcessLookupError, msgspec.DecodeError):
            raise Failure(
                f"No cloud is running in {self.data}; start one with `alcor up` or name it with --data."
            ) from None
        return found


def require_privileges() -> None:
    """Raises Failure that says what this process lacks for making namespaces and links."""
    needed = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    lacking = [name for name, bit in needed.items() if not effective >> bit & 1]
    if lacking:
        raise Failure(f"This needs root, or the capabilities {' and '.join(lacking)}, to make network namespaces.")
