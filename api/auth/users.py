"""The file of users: who they are, what they may do in which project, and the key that signs their tokens.

Read by the API in mode `embedded`, written by `alcor user`. All instances share one file. Passwords are kept as scrypt
hashes only.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from planes.goalstate.subjects import check_project
from planes.model.errors import Invalid

Role = Literal["admin", "member", "reader"]

#: cost of scrypt: 16 MiB and about 50 ms
_N, _R, _P = 2**14, 8, 1
_SCHEME = f"scrypt-{_N}-{_R}-{_P}"
#: bytes of a password; longer ones are refused before they cost anything
LONGEST = 1024
_KEPT = re.compile(rf"{_SCHEME}\$[A-Za-z0-9+/]{{22}}==\$[A-Za-z0-9+/]{{86}}==")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,63}")


class User(Struct, forbid_unknown_fields=True):
    """One user. The first project is where a token is for when none is asked for."""

    password: str
    projects: dict[str, list[Role]]


class Users(Struct, forbid_unknown_fields=True):
    """The whole file. `key` signs tokens: a new one ends them all."""

    key: str
    users: dict[str, User]


def empty() -> Users:
    return Users(secrets.token_urlsafe(48), {})


def read(path: Path) -> Users:
    """Raises Invalid that names the file and what is wrong in it."""
    try:
        users = msgspec.json.decode(path.read_bytes(), type=Users)
    except OSError as error:
        raise Invalid(f"The file of users {path} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"The file of users {path} is not valid: {error}.") from None
    if len(users.key) < 32:
        raise Invalid(f"The file of users {path} is not valid: its key is shorter than 32 characters.")
    for name, user in users.users.items():
        _check(name, user.projects)
        if not _KEPT.fullmatch(user.password):
            raise Invalid(f"The file of users {path} is not valid: the password of {name} is no {_SCHEME} hash.")
    return users


def write(path: Path, users: Users) -> None:
    """Replace the file at once; only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(users), indent=2) + b"\n")
    beside.replace(path)


def user(name: str, password: str, projects: dict[str, list[Role]]) -> User:
    """A user with that password. Raises Invalid."""
    _check(name, projects)
    if not 8 <= len(password.encode()) <= LONGEST:
        raise Invalid(f"Invalid input for password. Reason: it must have 8 to {LONGEST} bytes.")
    salt = secrets.token_bytes(16)
    return User("$".join((_SCHEME, _text(salt), _text(_hash(password, salt)))), projects)


def matches(user: User | None, password: str) -> bool:
    """Whether this is the user's password; as slow for a user who does not exist. Blocks for about 50 ms."""
    if len(password.encode()) > LONGEST:
        return False
    _, salt, kept = user.password.split("$") if user else ("", "", "")
    return hmac.compare_digest(_hash(password, base64.b64decode(salt)), base64.b64decode(kept))


def generation(user: User) -> str:
    """Changes with the password: tokens of before end."""
    return hashlib.sha256(user.password.encode()).hexdigest()[:16]


def _check(name: str, projects: dict[str, list[Role]]) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(f"Invalid input for user name. Reason: '{name:.80}' is not letters, digits and @._-, at most 64.")
    if not projects or not all(projects.values()):
        raise Invalid(f"Invalid input for user {name}. Reason: a role in at least one project is needed.")
    for project in projects:
        check_project(project, f"project of user {name}")


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=64 * 2**20)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
