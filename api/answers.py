"""Answers as bytes: bodies, errors in Neutron's shape, and the headers that every answer carries.

An `Answer` is an ASGI application of two messages; the handlers return it as it is, which costs a fraction of the
framework's own response.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar.types import Receive, Scope, Send

from observability.stages import request_id
from planes.model.errors import AlcorError, Unavailable

encode = msgspec.json.Encoder().encode

Headers = Sequence[tuple[bytes, bytes]]
JSON = b"application/json"
#: an extension of the server, `api.protocol.Straight`: a request's whole body, and a whole answer, in one step each
STRAIGHT = "alcor.straight"


def straight(scope: Scope) -> Any:
    """The server's extension; None where another server runs this."""
    extensions: Any = scope.get("extensions")
    return extensions.get(STRAIGHT) if extensions else None


class Answer:
    """A whole answer, already encoded."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: bytes, id_: bytes, status: int = 200, headers: Headers = (), kind: bytes = JSON) -> None:
        self.status = status
        self.body = body
        self.headers = [(b"x-openstack-request-id", request_id(id_).encode()), *headers]
        if status != 204:
            self.headers += ((b"content-type", kind), (b"content-length", b"%d" % len(body)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = straight(scope)
        if way is not None and way.answer(self.status, self.headers, self.body):
            return
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def failure(error: AlcorError, id_: bytes) -> Answer:
    """Neutron's error body for one of our errors."""
    headers = ((b"retry-after", str(error.retry_after).encode()),) if isinstance(error, Unavailable) else ()
    return problem(error.status, error.type_name, str(error), id_, headers)


def problem(status: int, kind: str, message: str, id_: bytes, headers: Headers = ()) -> Answer:
    """Neutron's error body."""
    return Answer(encode({"NeutronError": {"type": kind, "message": message, "detail": ""}}), id_, status, headers)
