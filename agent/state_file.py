"""What an agent leaves for its next life, in a file (rule N16): a few bytes, so that its epochs always rise.

Called by the runtime when it was registered. The file is replaced whole or not at all; one that cannot be read is as
good as none. Its directory also keeps a second agent of the same host away.
"""

import fcntl
import logging
import os
from pathlib import Path

import msgspec

from agent.core.instructions import Saved
from planes.goalstate.messages import VERSION
from planes.model.errors import Conflict

log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Saved).decode


class StateFile:
    """One file of one host in a directory that belongs to the agent."""

    def __init__(self, directory: str, host: str) -> None:
        self.path = Path(directory) / f"{host}.life"
        self._host = host
        self._lock = -1

    def lock(self) -> None:
        """Be the only agent of this host on this machine, until the process ends; raises Conflict."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Conflict(f"Another agent of host {self._host} runs on this machine ({self.path.parent}).") from None

    def load(self) -> Saved | None:
        """What was kept; None when there is nothing that fits."""
        try:
            saved = _decode(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            log.warning("%s cannot be read, starting without it: %s", self.path, error)
            return None
        if saved.version != VERSION or saved.host != self._host:
            log.warning("%s is of another host or version, starting without it", self.path)
            return None
        return saved

    def save(self, saved: Saved) -> None:
        """Replace the file. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = self.path.with_suffix(".new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_encode(saved))
        beside.replace(self.path)
