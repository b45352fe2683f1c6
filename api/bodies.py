"""From a request's raw body to request Structs, and from what is wrong with it to Neutron's 400.

The good case is one msgspec decode. Only a body that fails is looked at again, object by object, to say which attribute
of which object breaks which rule. Used by the handlers. Pure.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType, defstruct

from api.collections import Collection
from planes.goalstate.subjects import check_project
from planes.management.listing import attributes
from planes.model.errors import Invalid, TooLarge

#: bytes that a free-form attribute (`binding:profile`) may take
FREE_FORM = 4096
_EXPECTED = re.compile(r"^(?P<rule>.*?)(?: - at `(?P<path>\$.*)`)?$", re.DOTALL)
_PLURALS = re.compile(r"\[\.\.\.\]|\[\d+\]")


class Wanted(Struct, frozen=True):
    """What a body asked for: request Structs, and the key under which they came."""

    items: Sequence[Any]
    key: str
    bulk: bool = False


def bad(message: str) -> Invalid:
    """A body that Neutron refuses before it looks at any resource."""
    return Invalid(message, "HTTPBadRequest")


class Bodies:
    """Decoders of one collection's bodies."""

    def __init__(self, collection: Collection, bulk_max: int) -> None:
        self._bulk_max = bulk_max
        self._create = _Decoder(collection, collection.create, "POST", bulk=True)
        self._update = _Decoder(collection, collection.update, "PUT", bulk=False) if collection.update else None

    def create(self, raw: bytes) -> Wanted:
        """The objects to create; raises Invalid, or TooLarge for too many."""
        wanted = self._create.decode(raw)
        if len(wanted.items) > self._bulk_max:
            raise TooLarge(f"{len(wanted.items)} objects in one request; at most {self._bulk_max} are allowed.")
        for index, item in enumerate(wanted.items):
            _check(item, f"{wanted.key}[{index}]." if wanted.bulk else "")
        return wanted

    def update(self, raw: bytes) -> Wanted:
        """What to change."""
        if self._update is None:
            raise bad("This resource cannot be updated.")
        wanted = self._update.decode(raw)
        _check(wanted.items[0], "")
        return wanted


class _Decoder:
    """One type of body."""

    def __init__(self, collection: Collection, request: type[Struct], method: str, *, bulk: bool) -> None:
        self._request = request
        self._method = method
        self._bulk = bulk
        self._keys = collection.keys
        self._view = collection.view
        self._known = {field.encode_name for field in msgspec.structs.fields(request)}
        self._creatable = {field.encode_name for field in msgspec.structs.fields(collection.create)}
        fields: list[tuple[str, Any, Any]] = []
        for singular, plural in self._keys:
            fields.append((singular, request | UnsetType, UNSET))
            if bulk:
                fields.append((plural, tuple[request, ...] | UnsetType, UNSET))  # type: ignore[valid-type]
        self._names = [name for name, _, _ in fields]
        envelope = defstruct("Envelope", fields, forbid_unknown_fields=True, gc=False)
        # Neutron takes "true" and "80" where it wants a boolean or a number; so does a decoder that is not strict.
        self._decode = msgspec.json.Decoder(envelope, strict=False).decode

    def decode(self, raw: bytes) -> Wanted:
        try:
            envelope = self._decode(raw)
        except msgspec.ValidationError:
            raise self._reason(raw) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise bad("Malformed request body") from None
        found = [(name, value) for name in self._names if (value := getattr(envelope, name)) is not UNSET]
        if len(found) != 1:
            raise self._reason(raw)
        key, value = found[0]
        bulk = isinstance(value, tuple)
        if bulk and not value:
            raise bad("Resources required")
        return Wanted(value if bulk else (value,), key, bulk)

    def _reason(self, raw: bytes) -> Invalid:
        """What is wrong with a body that is JSON, in Neutron's words."""
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return bad("Malformed request body")
        if not isinstance(body, dict) or not body:
            return bad("Resource body required")
        names = [name for keys in self._keys for name in (keys if self._bulk else keys[:1])]
        given = [name for name in names if name in body]
        if not given:
            return bad(f"Unable to find '{self._keys[0][0]}' in request body")
        if len(given) > 1 or len(body) > 1:
            extra = ", ".join(f"{name:.80}" for name in sorted(body) if name != given[0])[:400]
            return bad(f"Unrecognized attribute(s) '{extra}'")
        value = body[given[0]]
        if given[0] in (keys[0] for keys in self._keys):
            return self._object(value, "") or bad("Malformed request body")
        if not isinstance(value, list):
            return bad(f"Invalid input for {given[0]}. Reason: a list of objects is expected.")
        reasons = (self._object(item, f"{given[0]}[{index}].") for index, item in enumerate(value))
        return next((reason for reason in reasons if reason is not None), bad("Malformed request body"))

    def _object(self, value: Any, prefix: str) -> Invalid | None:
        """What is wrong with one object, None when nothing is. `prefix` says which one, in a bulk request."""
        if not isinstance(value, dict):
            return bad(f"Invalid input for {prefix.rstrip('.') or self._keys[0][0]}. Reason: an object is expected.")
        if strange := value.keys() - self._known:
            return self._strange(strange, prefix)
        try:
            msgspec.convert(value, self._request, strict=False)
        except msgspec.ValidationError as error:
            return _translated(str(error), prefix)
        return None

    def _strange(self, names: set[str], prefix: str) -> Invalid:
        read_only = sorted(names & (attributes(self._view).keys() | self._creatable))
        if not read_only:
            return bad(f"Unrecognized attribute(s) '{prefix}{', '.join(f'{n:.80}' for n in sorted(names))[:400]}'")
        if self._method == "POST":
            return bad(f"Attribute '{prefix}{read_only[0]}' not allowed in POST")
        return bad(f"Cannot update read-only attribute {read_only[0]}")


def _translated(message: str, prefix: str) -> Invalid:
    """Neutron's words for one of msgspec's sentences."""
    found = _EXPECTED.match(message)
    rule, path = (found["rule"], found["path"] or "$") if found else (message, "$")
    field = prefix + path.removeprefix("$").removeprefix(".")
    rule = rule.replace("`", "")
    if missing := re.fullmatch(r"Object missing required field (.*)", rule):
        where = f"{field}." if path != "$" else prefix
        return bad(f"Failed to parse request. Required attribute '{where}{missing[1]}' not specified")
    if unknown := re.fullmatch(r"Object contains unknown field (.*)", rule, re.DOTALL):
        return bad(f"Unrecognized attribute(s) '{field}.{unknown[1]:.80}'")
    return bad(f"Invalid input for {field}. Reason: {rule[:400]}.")


def _check(item: Any, prefix: str) -> None:
    """What types cannot say, for attributes that several resources share."""
    for name in ("project_id", "tenant_id"):
        value = getattr(item, name, UNSET)
        if value is not UNSET:
            check_project(value, prefix + name)
    profile = getattr(item, "profile", UNSET)
    if profile:
        try:
            size = len(msgspec.msgpack.encode(profile))
        except (OverflowError, RecursionError, ValueError):
            raise bad(f"Invalid input for {prefix}binding:profile. Reason: it holds a number out of range.") from None
        if size > FREE_FORM:
            raise bad(f"Invalid input for {prefix}binding:profile. Reason: it is larger than {FREE_FORM} bytes.")
