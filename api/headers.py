"""What a request's headers say: who asks, which revision is meant, how long to wait, which trace goes on. Pure."""

import re
from collections.abc import Iterable

from planes.goalstate.subjects import check_project
from planes.model.errors import Invalid

DEFAULT_PROJECT = "demo"
_IF_MATCH = re.compile(r'"?revision_number=(\d{1,16})"?')
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,9})(?=$|[,;\s])")
_WANTED = {
    b"x-project-id": "project",
    b"x-roles": "roles",
    b"x-auth-token": "token",
    b"x-subject-token": "subject",
    b"traceparent": "traceparent",
    b"if-match": "if_match",
    b"prefer": "prefer",
}


def read(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that matter here, by short name; of a repeated one the last counts."""
    return {_WANTED[name]: value.decode("latin-1") for name, value in raw if name in _WANTED}


def project(headers: dict[str, str]) -> str:
    return check_project(headers.get("project") or DEFAULT_PROJECT, "X-Project-Id")


def if_match(headers: dict[str, str]) -> int | None:
    """The revision of `If-Match: revision_number=N`."""
    value = headers.get("if_match")
    if value is None:
        return None
    found = _IF_MATCH.fullmatch(value.strip())
    if found is None:
        raise Invalid("Invalid input for If-Match. Reason: 'revision_number=N' is expected.", "HTTPBadRequest")
    return int(found[1])


def wait(headers: dict[str, str], longest: float) -> int:
    """Seconds of `Prefer: wait=N`, at most `longest`; 0 when not asked. Other preferences are ignored."""
    value = headers.get("prefer")
    found = _WAIT.search(value) if value else None
    return min(int(found[1]), int(longest)) if found else 0
