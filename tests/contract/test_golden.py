"""Golden bytes of every southbound message: whoever changes them breaks agents in the field.

A test that fails here means that a field was moved, removed or retyped. Append fields with defaults, or raise the
version and read docs/southbound.md first; never edit the bytes to make the test pass.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from planes.goalstate import codec
from planes.goalstate.codec import Malformed, Message, UnknownVersion
from planes.goalstate.messages import (
    WHOLE,
    Ack,
    Applied,
    Beacon,
    Beat,
    Done,
    Envelope,
    Event,
    Events,
    Finished,
    Goal,
    Gone,
    Group,
    Identity,
    MessageKind,
    Neighbour,
    Network,
    NetworkDigest,
    Object,
    Ok,
    Page,
    Peer,
    Port,
    Pull,
    Register,
    Registered,
    Rule,
    Span,
    Stored,
    Subnet,
    Sync,
    Synced,
    Took,
    What,
)

N, P, G = b"n" * 16, b"i" * 16, b"g" * 16
IP, MAC = bytes((10, 0, 0, 2)), bytes((0xFA, 0x16, 0x3E, 0, 0, 2))

OBJECTS: dict[str, Object] = {
    "network": Network(N, 7, 100, 1450, True, 0),
    "subnet": Subnet(N, P, 8, bytes((10, 0, 0, 0)), 24, bytes((10, 0, 0, 1))),
    "identity": Identity(N, 5, 9, (G,)),
    "peer": Peer(N, "h2", 10, 3, bytes((192, 0, 2, 2)), bytes((2, 0, 0, 0, 0, 2))),
    "neighbour": Neighbour(N, IP, 11, "h2", 5, MAC),
    "port": Port(P, 12, N, MAC, (IP,), 5, (G,), True, True, ((bytes((10, 0, 9, 0)), 24, b""),), b"c" * 16),
    "group": Group(G, 13, (Rule(True, 4), Rule(False, 4, 6, 80, 443, G), Rule(False, 4, 1, -1, -1, b"", IP, 32)), True),
    "gone": Gone(6, b"", P, 14, b"c" * 16),
}

MESSAGES: dict[str, Message] = {
    "goal": Goal(
        (OBJECTS["port"], OBJECTS["gone"]), (Span(WHOLE, 1, 2), Span(40960, 3, 4)), "c1", 1_800_000_000_000_000
    ),
    "ack": Ack((Applied(6, b"", P, 12, "", b"c" * 16, 1, 2, 3, 4), Applied(6, b"", P, 13, "no room"))),
    "register": Register(
        "h1", "machine", bytes((192, 0, 2, 1)), 2, "default", "alcor-mesh", ("vxlan-gbp",), (1,), b"\1\2"
    ),
    "registered": Registered(3, 17, "", 0),
    "pull": Pull(What.BUCKET, N, 40960, 11, b"token"),
    "page": Page((OBJECTS["neighbour"], OBJECTS["peer"]), b"token", (Span(40960, 0, 11),), True, 0, ""),
    "sync": Sync(((P, 12),), (NetworkDigest(N, ((WHOLE, 9), (40960, 11)), (("h2", 10),)),), ((G, 13),)),
    "synced": Synced((Pull(What.GROUP, G),), 0, 3),
    "beat": Beat(True, 1_800_000_000_000_000, 1, {"received": 3}, ("a reason",)),
    "beacon": Beacon("c1", 1_800_000_000_000_000, 10_000),
    "ok": Ok(3, 0),
    "events": Events(
        "demo", "port", "status", (Event("id", 12, 13, "eth0", "ERROR", "no room", "net", "h1", "req-1", 900),)
    ),
    "finished": Finished(
        "demo", (Done("req-1", "trace", "create port", "id", 2, "ACTIVE", 900, (Took("program", "h1", 1, 2, ""),)),)
    ),
    "stored": Stored("h1", (Applied(6, b"", P, 12),), 5, 6),
}

OBJECT_BYTES = {
    "network": "9701c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e0764cd05aac300",
    "subnet": (
        "9702c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6ec4106969696969696969696969696969696908c4040a00000018c4040a000001"
    ),
    "identity": "9503c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e050991c41067676767676767676767676767676767",
    "peer": "9704c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6ea268320a03c404c0000202c406020000000002",
    "neighbour": "9705c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6ec4040a0000020ba2683205c406fa163e000002",
    "port": (
        "9c06c410696969696969696969696969696969690cc4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6ec406fa163e00000291"
        "c4040a0000020591c41067676767676767676767676767676767c3c39193c4040a00090018c400c41063636363636363"
        "636363636363636363"
    ),
    "group": (
        "9507c410676767676767676767676767676767670d9398c304ffffffc400c4000098c2040650cd01bbc4106767676767"
        "6767676767676767676767c4000098c20401ffffc400c4040a00000220c3"
    ),
    "gone": "960006c400c410696969696969696969696969696969690ec41063636363636363636363636363636363",
}

MESSAGE_BYTES = {
    "goal": (
        "960101a268310300c4ac94929c06c410696969696969696969696969696969690cc4106e6e6e6e6e6e6e6e6e6e6e6e6e"
        "6e6e6ec406fa163e00000291c4040a0000020591c41067676767676767676767676767676767c3c39193c4040a000900"
        "18c400c41063636363636363636363636363636363960006c400c410696969696969696969696969696969690ec41063"
        "6363636363636363636363636363639293ff010293cda0000304a26331cf0006651728988000"
    ),
    "ack": (
        "960102a268310300c45591929a06c400c410696969696969696969696969696969690ca0c41063636363636363636363"
        "636363636363010203049a06c400c410696969696969696969696969696969690da76e6f20726f6f6dc40000000000"
    ),
    "register": (
        "960103a268310300c43799a26831a76d616368696e65c404c000020102a764656661756c74aa616c636f722d6d657368"
        "91a976786c616e2d6762709101c4020102"
    ),
    "registered": "960108a268310300c405940311a000",
    "pull": "960104a268310300c41f9503c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6ecda0000bc405746f6b656e",
    "page": (
        "960108a268310300c46196929705c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6ec4040a0000020ba2683205c406fa163e"
        "0000029704c4106e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6ea268320a03c404c0000202c406020000000002c405746f6b65"
        "6e9193cda000000bc300a0"
    ),
    "sync": (
        "960105a268310300c44e939192c410696969696969696969696969696969690c9193c4106e6e6e6e6e6e6e6e6e6e6e6e"
        "6e6e6e6e9292ff0992cda0000b9192a268320a9192c410676767676767676767676767676767670d"
    ),
    "synced": "960108a268310300c41c93919504c41067676767676767676767676767676767ff00c4000003",
    "beat": "960106a268310300c42195c3cf00066517289880000181a872656365697665640391a86120726561736f6e",
    "beacon": "960107a268310300c41093a26331cf0006651728988000cd2710",
    "ok": "960108a268310300c403920300",
    "events": (
        "960109a268310300c43c94a464656d6fa4706f7274a6737461747573919aa269640c0da465746830a54552524f52a76e"
        "6f20726f6f6da36e6574a26831a57265712d31cd0384"
    ),
    "finished": (
        "96010aa268310300c43e92a464656d6f9198a57265712d31a57472616365ab63726561746520706f7274a2696402a641"
        "4354495645cd03849195a770726f6772616da268310102a0"
    ),
    "stored": ("96010ba268310300c42594a26831919a06c400c410696969696969696969696969696969690ca0c400000000000506"),
}

_decode: Any = codec.decode  # the kind of message is known at run time only


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_keep_their_bytes(name: str) -> None:
    assert msgspec.msgpack.encode(OBJECTS[name]).hex() == OBJECT_BYTES[name]
    assert msgspec.msgpack.decode(bytes.fromhex(OBJECT_BYTES[name]), type=Object) == OBJECTS[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_keep_their_bytes(name: str) -> None:
    message = MESSAGES[name]
    assert codec.encode(message, "h1", 3).hex() == MESSAGE_BYTES[name]
    envelope, decoded = _decode(bytes.fromhex(MESSAGE_BYTES[name]), type(message))
    assert decoded == message
    assert (envelope.version, envelope.sender, envelope.epoch, envelope.key_epoch) == (1, "h1", 3, 0)


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_that_are_not_known_yet_are_ignored(name: str) -> None:
    message = MESSAGES[name]
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    longer = msgspec.msgpack.encode([*fields, "later"])
    kind = MessageKind(codec.open_envelope(bytes.fromhex(MESSAGE_BYTES[name])).kind)
    data = msgspec.msgpack.encode(Envelope(1, kind, "h1", 3, 0, longer))
    assert _decode(data, type(message))[1] == message


def test_another_version_kind_or_seal_is_told_apart_from_garbage() -> None:
    for envelope in (Envelope(2, 1, "c", 0, 0, b""), Envelope(1, 99, "c", 0, 0, b""), Envelope(1, 1, "c", 0, 7, b"")):
        with pytest.raises(UnknownVersion):
            codec.decode(msgspec.msgpack.encode(envelope), Goal)
    for data in (b"", b"\xc1", b"\x90", msgspec.msgpack.encode(Envelope(1, 1, "c", 0, 0, b"\x91\x05"))):
        with pytest.raises(Malformed) as caught:
            codec.decode(data, Goal)
        assert not isinstance(caught.value, UnknownVersion)


def test_every_object_and_message_has_golden_bytes() -> None:
    assert {type(item) for item in OBJECTS.values()} == set(Object.__args__)
    assert {type(item) for item in MESSAGES.values()} == set(Message.__args__)


DOCUMENT = Path(__file__).parents[2] / "docs" / "southbound.md"


@pytest.mark.parametrize("struct", [*(type(each) for each in OBJECTS.values()), *(type(m) for m in MESSAGES.values())])
def test_the_document_names_the_fields_in_their_order(struct: type[msgspec.Struct]) -> None:
    row = next(
        line for line in DOCUMENT.read_text().splitlines() if re.match(rf"\|( \d+ \|)? `{struct.__name__}` \|", line)
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    fields = cells[2] if cells[0].isdigit() else cells[1]
    named = [re.sub(r" \(.*", "", field) for field in re.split(r", (?![^(]*\))", fields)]
    assert named == list(struct.__struct_fields__)
