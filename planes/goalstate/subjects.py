"""Every NATS subject of Alcor Mesh, in one place. Host names are written with `.` as `_`, projects with `.` as
`%2E`; ids as 32 hex digits.

`prefix` (default `alcor`) lets several clouds share a broker. Pure.
"""

import re
from functools import lru_cache

from planes.model.errors import Invalid

_PROJECT = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_HOST = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")


@lru_cache(4096)
def check_host(name: str, field: str = "host") -> str:
    """A host name that has exactly one spelling as a subject token; raises Invalid that names `field`."""
    if not _HOST.match(name) or ".." in name:
        raise Invalid(
            f"Invalid input for {field}. Reason: '{name:.80}' is not a valid host name: "
            "letters, digits, '-' and '.' only, 253 at most."
        )
    return name


def token(host: str) -> str:
    """A host name as one subject token."""
    return host.replace(".", "_")


def check_project(name: str, field: str) -> str:
    """A project's name or id; it becomes part of subjects and keys, so its characters are few. Raises Invalid."""
    if not _PROJECT.fullmatch(name):
        raise Invalid(f"Invalid input for {field}. Reason: '{name:.80}' is not a valid project.", "HTTPBadRequest")
    return name


def project_token(project: str) -> str:
    """A project as one subject token; different for each."""
    return project.replace(".", "%2E") or "%"


#: names no instance: the author of a goal that was pulled
ANY = "any"


class Subjects:
    """The subjects of one cloud."""

    def __init__(self, prefix: str = "alcor") -> None:
        self.prefix = prefix

    def host(self, host: str) -> str:
        return f"{self.prefix}.goal.host.{token(host)}"

    def network(self, network: bytes) -> str:
        return f"{self.prefix}.goal.net.{network.hex()}"

    def group(self, group: bytes) -> str:
        return f"{self.prefix}.goal.sg.{group.hex()}"

    def ack(self, host: str, instance: str) -> str:
        return f"{self.prefix}.ack.{token(host)}.{instance}"

    def stored(self, instance: str) -> str:
        """Among control instances: acks to this one's goals that another has kept."""
        return f"{self.prefix}.stored.{instance}"

    @property
    def acks(self) -> str:
        return f"{self.prefix}.ack.>"

    def pull(self, host: str, what: str) -> str:
        """`what`: register, host, network, bucket, group."""
        return f"{self.prefix}.pull.{token(host)}.{what}"

    @property
    def pulls(self) -> str:
        return f"{self.prefix}.pull.>"

    def sync(self, host: str) -> str:
        return f"{self.prefix}.sync.{token(host)}"

    @property
    def syncs(self) -> str:
        return f"{self.prefix}.sync.*"

    def beat(self, host: str) -> str:
        return f"{self.prefix}.beat.{token(host)}"

    @property
    def beats(self) -> str:
        return f"{self.prefix}.beat.*"

    def beacon(self, instance: str) -> str:
        return f"{self.prefix}.beacon.{instance}"

    @property
    def beacons(self) -> str:
        return f"{self.prefix}.beacon.*"

    def event(self, project: str, resource: str, verb: str) -> str:
        """What happened to objects of a project; of no project (hosts): `%`, which no project's name holds."""
        return f"{self.prefix}.event.{project_token(project)}.{resource}.{verb}"

    @property
    def events(self) -> str:
        return f"{self.prefix}.event.>"

    def author_of(self, subject: str) -> str:
        """The control instance that an ack names."""
        return subject.rpartition(".")[2]

    def host_of(self, subject: str) -> str:
        """The host token in a subject that a host publishes on (ack, pull, sync, beat)."""
        return subject[len(self.prefix) + 1 :].split(".")[1]
