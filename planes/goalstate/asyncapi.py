"""The southbound contract as an AsyncAPI 3 document, made from the Structs and subjects themselves.

Called by the API, which serves it, and by tests. Pure. What must never happen: a subject or message that is described
here by hand and differs from the code; channels are asked of `Subjects`, payloads of the Structs.
"""

from typing import Any

import msgspec
from msgspec import Struct

from planes.goalstate import messages as m
from planes.goalstate.codec import MAX_MESSAGE, MAX_OBJECTS
from planes.goalstate.subjects import Subjects

ID = "0" * 32


class Channel(Struct, frozen=True):
    """`way`: who sends. `subject` with every parameter as `{name}`."""

    name: str
    subject: str
    way: str  # "control" (hosts hear it), "host" (hosts say it), "event" (for integrators), "inner" (among control)
    body: type
    summary: str
    reply: type | None = None


def channels(prefix: str) -> list[Channel]:
    """Every subject of the contract."""
    subjects = Subjects(prefix)
    zero = bytes(16)
    network, group = (subject.replace(ID, "{id}") for subject in (subjects.network(zero), subjects.group(zero)))
    host = "{host}"
    pulls = {"host": "its own ports", "network": "a network", "bucket": "a part of one", "group": "a security group"}
    return [
        Channel("goalHost", subjects.host(host), "control", m.Goal, "Ports of one host and their tombstones."),
        Channel("goalNetwork", network, "control", m.Goal, "What hosts with ports in a network need of it."),
        Channel("goalGroup", group, "control", m.Goal, "A security group with all its rules."),
        Channel("beacon", subjects.beacon("{instance}"), "control", m.Beacon, "A control instance is there."),
        Channel(
            "register", subjects.pull(host, "register"), "host", m.Register, "An agent starts.", reply=m.Registered
        ),
        *(
            Channel(f"pull{what.title()}", subjects.pull(host, what), "host", m.Pull, f"Asks for {of}.", reply=m.Page)
            for what, of in pulls.items()
        ),
        Channel("sync", subjects.sync(host), "host", m.Sync, "Says what was received.", reply=m.Synced),
        Channel("beat", subjects.beat(host), "host", m.Beat, "Alive.", reply=m.Ok),
        Channel("ack", subjects.ack(host, "{instance}"), "host", m.Ack, "Says what was applied.", reply=m.Ok),
        Channel("stored", subjects.stored("{instance}"), "inner", m.Stored, "Another instance has kept these acks."),
        Channel(
            "event",
            subjects.event("{project}", "{resource}", "{verb}"),
            "event",
            m.Events,
            "What happened to objects of a project.",
        ),
        Channel(
            "finished",
            subjects.event("{project}", "change", "finished"),
            "event",
            m.Finished,
            "Changes that have come to their end on all hosts, with the time that each stage took.",
        ),
    ]


PARAMETERS = {
    "host": "Name of the host, `.` written `_`.",
    "id": "Id in 32 hexadecimal digits.",
    "project": "Name of the project, `.` written `%2E`; `%` for what belongs to none.",
    "resource": "`network`, `subnet`, `port`, `security_group`, `security_group_rule` or `host`.",
    "verb": "`create`, `update`, `delete`; of ports also `status`.",
    "instance": "Name of a control instance; in an ack the author of the goal, or `any`.",
}


def document(prefix: str = "alcor") -> dict[str, Any]:
    """The whole document. Operations are those of a host and of an integrator."""
    found = channels(prefix)
    bodies = sorted({body for one in found for body in (one.body, one.reply) if body}, key=lambda body: body.__name__)
    _, schemas = msgspec.json.schema_components([m.Envelope, *bodies], ref_template="#/components/schemas/{name}")
    shown: dict[str, Any] = {"replies": {"address": None, "messages": {}}}
    operations: dict[str, Any] = {}
    for one in found:
        shown[one.name] = _channel(one)
        if one.way == "inner":
            continue
        operation: dict[str, Any] = {
            "action": "send" if one.way == "host" else "receive",
            "channel": {"$ref": f"#/channels/{one.name}"},
            "summary": one.summary,
        }
        operations[one.name] = operation
        if one.reply:
            reply = one.reply.__name__
            shown["replies"]["messages"][reply] = _message(reply)
            operation["reply"] = {
                "address": {"location": "$message.header#/reply"},
                "channel": {"$ref": "#/channels/replies"},
                "messages": [{"$ref": f"#/channels/replies/messages/{reply}"}],
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Alcor Mesh southbound",
            "version": str(m.VERSION),
            "description": (
                "Control and hosts over NATS core. Every body is an `Envelope`, whose last field holds the MessagePack "
                "of the message named here. All are arrays: a field is known by its position, and its title is its "
                f"name. At most {MAX_MESSAGE} bytes and {MAX_OBJECTS} objects."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/msgpack",
        "channels": shown,
        "operations": operations,
        "components": {
            "messages": {body.__name__: _payload(body) for body in bodies},
            "schemas": {name: _schema(name, schema) for name, schema in sorted(schemas.items())},
        },
    }


def _channel(one: Channel) -> dict[str, Any]:
    name = one.body.__name__
    parameters = {key: {"description": text} for key, text in PARAMETERS.items() if f"{{{key}}}" in one.subject}
    return {
        "address": one.subject,
        "summary": one.summary,
        "messages": {name: _message(name)},
        "parameters": parameters,
    }


def _message(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/messages/{name}"}


def _payload(body: type) -> dict[str, Any]:
    return {
        "name": body.__name__,
        "summary": (body.__doc__ or "").split("\n")[0],
        "payload": {"$ref": f"#/components/schemas/{body.__name__}"},
    }


def _schema(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """As msgspec says it for JSON, in MessagePack's terms: bytes are bytes, and positions have names."""
    kind = getattr(m, name, None)
    plain: dict[str, Any] = _bytes(schema)
    if isinstance(kind, type) and issubclass(kind, Struct):
        names = (["tag"] if kind.__struct_config__.tag is not None else []) + list(kind.__struct_fields__)
        items = plain["prefixItems"]
        plain["prefixItems"] = [_titled(item, title) for item, title in zip(items, names, strict=True)]
    return plain


def _titled(item: dict[str, Any], title: str) -> dict[str, Any]:
    """A reference takes nothing beside it, so it is wrapped."""
    return {"title": title, "allOf": [item]} if "$ref" in item else {"title": title, **item}


def _bytes(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_bytes(item) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _bytes(item) for key, item in value.items() if key != "contentEncoding"}
    return plain | {"format": "binary"} if "contentEncoding" in value else plain
