"""`alcor bus`: keys of the message bus, and credentials of those who connect to it. Called by the command line.

The folder holds secrets: who has it can be any host. It is made readable by its owner alone, and never overwritten.
"""

import os
import time
from pathlib import Path

import msgspec

from cli.errors import Failure
from planes.bus.nats.credentials import Keys, Role, credentials, new_keys, server_configuration
from planes.model.settings import Loaded

KEYS, SERVERS = "keys.json", "auth.conf"
DAY = 86_400


def init(loaded: Loaded, directory: str) -> Path:
    """New keys, and what servers include. Raises Failure when the folder has keys already."""
    folder = Path(directory)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = new_keys()
    try:
        _write(folder / KEYS, msgspec.json.format(msgspec.json.encode(keys)))
    except FileExistsError:
        raise Failure(
            f"{folder / KEYS} exists: with other keys, no credentials that were given out would be good."
        ) from None
    servers = folder / SERVERS
    servers.unlink(missing_ok=True)
    _write(servers, server_configuration(keys, loaded.settings.prefix, int(time.time())).encode())
    return servers


def issue(directory: str, role: str, name: str, days: int) -> str:
    """A `.creds` file's text, signed with the key of its role."""
    path = Path(directory) / KEYS
    try:
        keys = msgspec.json.decode(path.read_bytes(), type=Keys)
    except FileNotFoundError:
        raise Failure(f"There are no keys in {directory}: `alcor bus init {directory}` makes them.") from None
    except msgspec.DecodeError as error:
        raise Failure(f"{path} is not a file of keys: {error}.") from None
    return credentials(keys, Role(role), name, int(time.time()), days * DAY)


def save(path: str, text: str) -> None:
    """Into a file that is the owner's alone; an old one is replaced."""
    Path(path).unlink(missing_ok=True)
    _write(Path(path), text.encode())


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
