"""Envelope and body to bytes and back; the only place that encodes or decodes a southbound message.

Decoding never trusts: whatever does not fit raises `Malformed`, a newer version raises `UnknownVersion`.
"""

from typing import Any, TypeVar

import msgspec

from planes.goalstate.messages import (
    VERSION,
    Ack,
    Beacon,
    Beat,
    Envelope,
    Events,
    Finished,
    Goal,
    MessageKind,
    Ok,
    Page,
    Pull,
    Register,
    Registered,
    Stored,
    Sync,
    Synced,
)

#: largest body on any subject (rule S23), and most objects in one
MAX_MESSAGE = 256 * 1024
MAX_OBJECTS = 256

Message = (
    Goal | Ack | Register | Registered | Pull | Page | Sync | Synced | Beat | Beacon | Ok | Events | Finished | Stored
)
T = TypeVar("T", bound=Message)

_KINDS: dict[type, int] = {
    Goal: MessageKind.GOAL,
    Ack: MessageKind.ACK,
    Register: MessageKind.REGISTER,
    Pull: MessageKind.PULL,
    Sync: MessageKind.SYNC,
    Beat: MessageKind.BEAT,
    Beacon: MessageKind.BEACON,
    Registered: MessageKind.REPLY,
    Page: MessageKind.REPLY,
    Synced: MessageKind.REPLY,
    Ok: MessageKind.REPLY,
    Events: MessageKind.EVENTS,
    Finished: MessageKind.FINISHED,
    Stored: MessageKind.STORED,
}
_encode = msgspec.msgpack.Encoder().encode
_envelope = msgspec.msgpack.Decoder(Envelope)
_bodies: dict[type, Any] = {kind: msgspec.msgpack.Decoder(kind) for kind in _KINDS}


class Malformed(ValueError):
    """Not a message of this contract."""


class UnknownVersion(Malformed):
    """A message of a version, kind or seal that this side does not know; it counts as received."""


def encode(message: Message, sender: str, epoch: int = 0) -> bytes:
    """The bytes of a message, in clear."""
    return _encode(Envelope(VERSION, _KINDS[type(message)], sender, epoch, 0, _encode(message)))


def open_envelope(data: bytes) -> Envelope:
    """The envelope of any message, the body unread; raises Malformed."""
    if len(data) > MAX_MESSAGE * 4:
        raise Malformed(f"{len(data)} bytes")
    try:
        return _envelope.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None


def decode(data: bytes, body: type[T]) -> tuple[Envelope, T]:
    """Envelope and body; raises UnknownVersion or Malformed."""
    envelope = open_envelope(data)
    if envelope.version != VERSION:
        raise UnknownVersion(f"version {envelope.version}")
    if envelope.key_epoch:
        raise UnknownVersion(f"sealed with key epoch {envelope.key_epoch}")
    if envelope.kind != _KINDS[body]:
        raise UnknownVersion(f"kind {envelope.kind}")
    try:
        return envelope, _bodies[body].decode(envelope.body)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None
