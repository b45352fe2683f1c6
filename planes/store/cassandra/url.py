"""Where the cluster is and how to reach it, from the store's URL. Pure; called by the store and by who checks settings.

`cassandra://user:password@host1,host2:9042/keyspace?dc=…&replication=…`; see `Address` for what the query may hold.
"""

import re
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from planes.model.errors import Invalid

SCHEME = "cassandra://"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
_CENTER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_QUERY = ("dc", "replication", "rf", "timeout", "tls", "cert", "key")


class Address(Struct, frozen=True):
    """`replicas` (in a URL `replication`, or `rf`) by data center; empty: the keyspace must exist.

    `timeout` is above the servers' own, in seconds.
    """

    hosts: tuple[str, ...]
    keyspace: str
    port: int = 9042
    user: str = ""
    password: str = ""
    dc: str = ""  # empty: that of the first host that answers
    replicas: tuple[tuple[str, int], ...] = ()
    timeout: float = 12.0
    tls: str = ""  # file with the CA's certificates; empty: no TLS
    cert: str = ""  # own certificate, where the cluster asks for one
    key: str = ""


def parse(url: str) -> Address:
    """The address in a URL. Raises Invalid, saying what is wrong with it, without its password."""
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    hosts, _, port = place.partition(":")
    names = tuple(host for host in hosts.split(",") if host)
    keyspace = parts.path.strip("/")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not url.startswith(SCHEME) or not names:
        raise Invalid("Setting store must be cassandra://host1,host2:port/keyspace?dc=…&replication=….")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise Invalid(f"Setting store: '{port:.80}' is not a port; one port serves all hosts, after the last.")
    if not _NAME.fullmatch(keyspace):
        raise Invalid(f"Setting store: '{keyspace:.80}' is not a keyspace: small letters, digits and _, at most 48.")
    for name in query:
        if name not in _QUERY:
            raise Invalid(f"Setting store: there is no '{name:.80}', only {', '.join(_QUERY)}.")
    dc = query.get("dc", "")
    if dc and not _CENTER.fullmatch(dc):
        raise Invalid(f"Setting store: '{dc:.80}' is not the name of a data center.")
    if ("cert" in query) != ("key" in query) or ("cert" in query and "tls" not in query):
        raise Invalid("Setting store: cert and key belong together, and to tls.")
    return Address(
        names,
        keyspace,
        int(port or 9042),
        unquote(user),
        unquote(password),
        dc,
        _replicas(query.get("replication") or query.get("rf", ""), dc),
        _timeout(query.get("timeout", "12")),
        query.get("tls", ""),
        query.get("cert", ""),
        query.get("key", ""),
    )


def _replicas(text: str, dc: str) -> tuple[tuple[str, int], ...]:
    """`3` (in `dc`), or `dc1:3,dc2:3`."""
    made: dict[str, int] = {}
    for each in filter(None, text.split(",")):
        center, _, number = each.rpartition(":")
        center = center or dc
        if not center:
            raise Invalid("Setting store: a replication without its data center needs dc.")
        if not (_CENTER.fullmatch(center) and number.isascii() and number.isdigit() and 1 <= int(number) <= 9):
            raise Invalid(f"Setting store: replication is '{text:.80}'; it must be 1 to 9, or center:number,….")
        made[center] = int(number)
    return tuple(made.items())


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= 60:
        raise Invalid(f"Setting store: timeout is '{text:.80}'; it must be 1 to 60 seconds.")
    return seconds
