"""What the driver's errors mean for a write, and each as one plain sentence that names the setting to look at.

Pure; called by the Cassandra session only. Must never call an outcome known that is not, nor say a password.
"""

import re
import socket
import ssl
from collections.abc import Iterable

import cassandra
from cassandra import UnresolvableContactPoints
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException

from planes.store.cassandra.url import Address
from planes.store.protocol import StoreError, Unavailable, UnknownOutcome

#: the server said no before it did anything, or no server was reached
REFUSED = (
    cassandra.Unavailable,
    NoHostAvailable,
    cassandra.RequestValidationException,
    cassandra.AuthenticationFailed,
)
#: asking again may help
PASSING = (
    cassandra.Unavailable,
    cassandra.Timeout,
    cassandra.CoordinationFailure,
    cassandra.OperationTimedOut,
    NoHostAvailable,
    ConnectionException,
)
#: what a failed connection says, and what that means; the first that fits
_CONNECTING = (
    ("requires authentication", "it wants a role and a password, which setting store does not name"),
    ("Bad credentials", "it refuses the role or the password of setting store"),
    ("WRONG_VERSION_NUMBER", "it speaks without TLS, setting store says tls"),
    ("CERTIFICATE_REQUIRED", "it wants a certificate of the client: cert and key in setting store"),
    ("UNKNOWN_CA", "it does not know the authority that signed cert in setting store"),
)
_VERIFY = re.compile(r"certificate verify failed: (.+?) \(_ssl")
_MESSAGE = re.compile(r'message="(.*)"', re.DOTALL)


def meaning(error: Exception) -> StoreError:
    """What an error of a write says about it."""
    if isinstance(error, StoreError):
        return error
    return (Unavailable if isinstance(error, REFUSED) else UnknownOutcome)(sentence(error))


def sentence(error: BaseException) -> str:
    """Of a request. The server's words where there are some."""
    if isinstance(error, NoHostAvailable):
        found = error.errors.values() if isinstance(error.errors, dict) else ()
        inner = next((sentence(each) for each in found if isinstance(each, Exception)), "")
        return f"no server can be reached{': ' if inner else ''}{inner}"
    if isinstance(error, cassandra.Unavailable):
        level = cassandra.ConsistencyLevel.value_to_name[error.consistency]
        alive, needed = error.alive_replicas, error.required_replicas
        return f"of the servers that hold the row {alive} can be reached, {level} needs {needed}"
    if isinstance(error, cassandra.OperationTimedOut):
        return "no answer within the timeout of setting store"
    if isinstance(error, ConnectionException):
        return "the connection broke off"
    said = _MESSAGE.search(str(error))
    words = said[1] if said else str(error)
    if isinstance(error, cassandra.Unauthorized):
        return _line(f"the role of setting store lacks a right: {words}")
    return _line(f"{type(error).__name__}: {words}")


def unconnected(address: Address, error: Exception, centers: Iterable[str | None]) -> str:
    """Of the first connection. `centers`: the data centers of the servers that answered."""
    where = f"Setting store: Cassandra at {','.join(address.hosts)}:{address.port}"
    if isinstance(error, UnresolvableContactPoints):
        return f"{where}: no such name."
    tries = error.errors if isinstance(error, NoHostAvailable) else {"": error}
    if not isinstance(tries, dict):  # they answered, and none is of this data center
        found = ", ".join(sorted({center for center in centers if center})) or "another"
        return f"{where}: no server is in data center {address.dc} (dc); they are in {found}."
    reasons = [_reason(each, address) for each in tries.values()]
    return f"{where}: {next((reason for reason, telling in reasons if telling), reasons[0][0])}."


def _reason(error: Exception, address: Address) -> tuple[str, bool]:
    """Why one server could not be used, and whether that tells more than that it is away."""
    text = str(error)
    for part, words in _CONNECTING:
        if part in text:
            return words, True
    if verify := _VERIFY.search(text):
        return f"its certificate does not hold against the file tls of setting store: {verify[1]}", True
    if isinstance(error, (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)) and not address.cert:
        wanted = "a certificate of the client: cert and key" if address.tls else "TLS: tls"
        return f"it cut the connection, as one does that wants {wanted} in setting store", True
    if isinstance(error, (TimeoutError, cassandra.OperationTimedOut)):
        return "it does not answer", False
    if isinstance(error, (ConnectionError, socket.gaierror)):
        return f"it cannot be reached: {text.rpartition('Last error: ')[2]}", False
    return sentence(error), not isinstance(error, OSError)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
