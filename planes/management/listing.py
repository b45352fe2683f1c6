"""Filtering, sorting and paging of lists, in OpenStack's words: pure functions on the views of one resource.

Used by the management modules to answer a `Query`, and by the REST edge to refuse a query that makes no sense, before
anything is read. Attribute names are those of the API (`binding:host_id`), not of the Structs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, inspect

from planes.model.errors import Invalid
from planes.model.query import Listing, Query

TRUE = frozenset(("true", "1", "yes", "on", "t"))
FALSE = frozenset(("false", "0", "no", "off", "f"))
#: what asks for an attribute that is null
NULL = frozenset(("", "null", "None"))
#: kinds of attributes
BOOL, INT, TEXT, LIST, OBJECTS, OPAQUE = "bool", "int", "text", "list", "objects", "opaque"


class Attribute(Struct, frozen=True):
    """One attribute of a view: its Python name and what kind of value it has."""

    name: str
    kind: str
    #: attributes of its objects, by API name
    inner: dict[str, str] = {}


#: attributes of the view types met so far, of which there are few
_known: dict[type[Struct], dict[str, Attribute]] = {}


def attributes(view: type[Struct]) -> dict[str, Attribute]:
    """The attributes of a view type by the names that the API uses."""
    found = _known.get(view)
    if found is None:
        found = _known[view] = {field.encode_name: _attribute(field) for field in _fields(view)}
    return found


def _fields(view: type[Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(view)
    assert isinstance(info, inspect.StructType)
    return info.fields


def _attribute(field: inspect.Field) -> Attribute:
    kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
    main = next(kind for kind in kinds if not isinstance(kind, inspect.NoneType))
    match main:
        case inspect.BoolType():
            return Attribute(field.name, BOOL)
        case inspect.IntType():
            return Attribute(field.name, INT)
        case inspect.StrType():
            return Attribute(field.name, TEXT)
        case inspect.VarTupleType(item_type=inspect.StructType() as item):
            return Attribute(field.name, OBJECTS, {inner.encode_name: inner.name for inner in item.fields})
        case inspect.VarTupleType():
            return Attribute(field.name, LIST)
    return Attribute(field.name, OPAQUE)


def check(view: type[Struct], query: Query) -> None:
    """Raise Invalid, naming the culprit, when a query cannot be asked of this kind of view."""
    known = attributes(view)
    for name, values in query.filters.items():
        attribute = known.get(name)
        if attribute is None or attribute.kind == OPAQUE:
            raise Invalid(f"Invalid filter: '{name:.80}' is not an attribute to filter by.", "HTTPBadRequest")
        for value in values:
            _check_value(name, attribute, value)
    for key, _ in query.sort:
        attribute = known.get(key)
        if attribute is None or attribute.kind not in (BOOL, INT, TEXT):
            raise Invalid(f"Invalid input for sort_key. Reason: '{key:.80}' cannot be sorted by.", "BadRequest")


def _check_value(name: str, attribute: Attribute, value: str) -> None:
    if attribute.kind == BOOL and value.lower() not in TRUE | FALSE:
        raise Invalid(f"Invalid input for {name}. Reason: '{value:.80}' is not a valid boolean value.")
    if attribute.kind == INT and value not in NULL and not (value.lstrip("-").isdecimal() and len(value) < 20):
        raise Invalid(f"Invalid input for {name}. Reason: '{value:.80}' is not an integer.")
    if attribute.kind == OBJECTS and value.partition("=")[0] not in attribute.inner:
        keys = ", ".join(f"'{key}=…'" for key in attribute.inner)
        raise Invalid(f"Invalid input for {name}. Reason: '{value:.80}' is none of {keys}.")


def matches(view: Struct, filters: Mapping[str, Sequence[str]]) -> bool:
    """Whether all filters hold; the values of one filter are alternatives. A filter of an unknown name never holds."""
    if not filters:
        return True
    known = attributes(type(view))
    return all((found := known.get(name)) is not None and _holds(found, view, vs) for name, vs in filters.items())


def _holds(attribute: Attribute, view: Struct, wanted: Sequence[str]) -> bool:
    value = getattr(view, attribute.name)
    if value is None:
        return any(text in NULL for text in wanted)
    match attribute.kind:
        case "bool":
            return any((text.lower() in TRUE) is value for text in wanted)
        case "int":
            return any(text not in NULL and int(text) == value for text in wanted)
        case "list":
            return any(text in value for text in wanted)
        case "objects":
            return _one_has(attribute.inner, value, wanted)
    return value in wanted


def _one_has(inner: Mapping[str, str], objects: Sequence[Struct], wanted: Sequence[str]) -> bool:
    """Whether one object has, for each key named, one of the values given with it (`ip_address=10.0.0.5`)."""
    asked: dict[str, set[str]] = {}
    for text in wanted:
        key, _, value = text.partition("=")
        asked.setdefault(inner.get(key, ""), set()).add(value)
    if "" in asked:
        return False
    return any(all(str(getattr(each, name)) in values for name, values in asked.items()) for each in objects)


def page(views: Sequence[Any], query: Query) -> Listing:
    """One page of these views: sorted (by id where nothing else decides), from behind the marker, at most `limit`.

    With `page_reverse` it is the page before the marker, in the same order. Raises Invalid for a sort key that the
    views do not have and a marker that is not among them.
    """
    if not views:
        if query.marker:
            raise no_marker(query.marker)
        return Listing([])
    check(type(views[0]), Query(sort=query.sort))
    ordered = _sorted(views, query.sort)
    start, end = 0, len(ordered)
    if query.marker:
        place = next((i for i, view in enumerate(ordered) if _id(view) == query.marker), None)
        if place is None:
            raise no_marker(query.marker)
        start, end = (0, place) if query.page_reverse else (place + 1, end)
    if not query.limit or end - start <= query.limit:
        return Listing(ordered[start:end])
    part = ordered[end - query.limit : end] if query.page_reverse else ordered[start : start + query.limit]
    return Listing(part, more=True)


def no_marker(marker: str) -> Invalid:
    """What is said of a marker that names nothing."""
    return Invalid(f"Invalid input for marker. Reason: '{marker:.80}' could not be found.", "BadRequest")


def _id(view: Any) -> str:
    """What a marker names: the id, or the name of what has no id."""
    return str(view.id if hasattr(view, "id") else view.name)


def _sorted(views: Sequence[Any], sort: Sequence[tuple[str, bool]]) -> list[Any]:
    known = attributes(type(views[0]))
    ordered = sorted(views, key=_id)
    for key, descending in reversed(sort):
        name = known[key].name
        ordered.sort(key=lambda view: _sortable(getattr(view, name)), reverse=descending)
    return ordered


def _sortable(value: Any) -> tuple[bool, Any]:
    """Null sorts before everything."""
    return (value is not None, "" if value is None else value)
