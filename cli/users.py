"""`alcor user`: who may use an API in mode `embedded`. Also makes the administrator of a cloud that `alcor up` starts.

All that is kept is one file; instances of the API notice within a second that it changed.
"""

import secrets
from pathlib import Path
from typing import Any, get_args

from msgspec import structs

from api.auth import users
from cli.errors import Failure
from planes.model.settings import Settings

FILE, PASSWORD = "users.json", "admin-password"
ADMIN, PROJECT = "admin", "demo"


def path_of(settings: Settings) -> Path:
    """The file of users: as set, or in the data directory."""
    return Path(settings.auth_users or Path(settings.data) / FILE)


def add(settings: Settings, name: str, roles: tuple[str, ...], password: str) -> tuple[dict[str, Any], str]:
    """Add a user, or give one other roles and another password. `roles`: ROLE:PROJECT; returns the password too."""
    path = path_of(settings)
    found = users.read(path) if path.exists() else users.empty()
    password = password or secrets.token_urlsafe(18)
    projects: dict[str, list[users.Role]] = {}
    for each in roles:
        text, _, project = each.partition(":")
        role = next((role for role in get_args(users.Role) if role == text), None)
        if role is None or not project:
            raise Failure(f"'{each:.80}' is not ROLE:PROJECT with a role of {', '.join(get_args(users.Role))}.")
        projects.setdefault(project, []).append(role)
    found.users[name] = users.user(name, password, projects)
    users.write(path, found)
    return {"user": name, "projects": projects, "file": str(path)}, password


def remove(settings: Settings, name: str) -> None:
    path = path_of(settings)
    found = users.read(path)
    if found.users.pop(name, None) is None:
        raise Failure(f"There is no user '{name:.80}' in {path}.")
    users.write(path, found)


def listed(settings: Settings) -> list[dict[str, Any]]:
    found = users.read(path_of(settings)).users
    return [{"user": name, "project": p, "roles": r} for name, user in found.items() for p, r in user.projects.items()]


def administered(settings: Settings) -> Settings:
    """Settings by which client commands of this machine are the cloud's administrator.

    The first time an administrator is made whose password stays in the data directory. Raises Failure when somebody
    else keeps the users and no name and password are set.
    """
    if settings.auth == "none" or settings.user:
        return settings
    path, kept = path_of(settings), Path(settings.data) / PASSWORD
    if settings.auth == "embedded" and not settings.auth_users and not path.exists():
        _, password = add(settings, ADMIN, (f"admin:{PROJECT}",), "")
        kept.touch(mode=0o600)
        kept.write_text(password + "\n")
    if settings.auth != "embedded" or settings.auth_users or not kept.exists():
        raise Failure(f"With auth {settings.auth}, ALCOR_USER and ALCOR_PASSWORD must be those of an administrator.")
    return structs.replace(settings, user=ADMIN, password=kept.read_text().strip())
