"""The AsyncAPI document: valid by AsyncAPI's own schema, and true of the code that it describes."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from planes.goalstate import codec
from planes.goalstate.asyncapi import channels, document
from planes.goalstate.subjects import Subjects

SCHEMA = json.loads((Path(__file__).parent / "schemas/asyncapi-3.0.0.json").read_text())


def _errors(found: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(found)]


def test_document_is_asyncapi_3() -> None:
    assert _errors(document()) == []


@pytest.mark.parametrize("path", ["operations/sync/action", "channels/sync/address", "components/schemas/Ok/type"])
def test_schema_would_find_a_mistake(path: str) -> None:
    found = document()
    *parents, last = path.split("/")
    place = found
    for parent in parents:
        place = place[parent]
    place[last] = 7
    assert _errors(found)


def test_every_reference_leads_somewhere() -> None:
    found = document()
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(found)):
        place: Any = found
        for step in reference.split("/"):
            place = place[step]


def test_every_message_and_subject_is_there() -> None:
    found = document("cloud9")
    bodies = {body.__name__ for body in codec._KINDS}
    assert set(found["components"]["messages"]) == bodies
    subjects = Subjects("cloud9")
    published = [
        name
        for name, member in inspect.getmembers(subjects, inspect.ismethod)
        if name not in ("__init__", "host_of", "author_of")
    ]
    assert set(published) == {"host", "network", "group", "ack", "pull", "sync", "beat", "beacon", "stored", "event"}
    addresses = {channel.subject for channel in channels("cloud9")}
    assert subjects.ack("{host}", "{instance}") in addresses
    assert all(address.startswith("cloud9.") for address in addresses)
    assert len(addresses) == 15


def test_positions_have_the_names_of_the_fields() -> None:
    port = document()["components"]["schemas"]["Port"]
    assert [item["title"] for item in port["prefixItems"]][:4] == ["tag", "id", "rev", "network"]
    assert port["prefixItems"][1] == {"title": "id", "type": "string", "format": "binary"}
    assert "contentEncoding" not in json.dumps(document())


def test_document_is_small_enough_to_serve() -> None:
    assert len(msgspec.json.encode(document())) < 64 * 1024
