"""From a query string to a `Query` and the wanted fields, and back to the links of a page. Pure."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec import Struct

from api.collections import Collection
from planes.management.listing import FALSE, TRUE, attributes, check
from planes.management.traces import Wanted
from planes.model.errors import Invalid
from planes.model.ids import parse as parse_id
from planes.model.query import Listing, Query

#: names and values in one query string
MOST = 1000
#: what `limit` may be at most; also what an integer may be
LARGEST = 2**53
#: recent changes in one answer
MOST_CHANGES = 1000


class Asked(Struct, frozen=True):
    """One list request as it came."""

    query: Query
    fields: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    possible: bool = True  # False: a filter names an id that nothing can have


#: filters whose values are ids; one that is no UUID matches nothing, as in Neutron
IDS = ("id", "network_id", "security_group_id")

NOTHING = Asked(Query())


def parse(raw: bytes, collection: Collection) -> Asked:
    """Raises Invalid that names what cannot be asked of this collection."""
    if not raw:
        return NOTHING
    pairs, values = _values(raw)
    fields = tuple(part for value in values.pop("fields", ()) for part in value.split(",") if part)
    possible = _drop_impossible(values, collection)
    query = Query(
        limit=_whole("limit", _last(values, "limit")),
        marker=_last(values, "marker"),
        sort=_sort(values.pop("sort_key", []), values.pop("sort_dir", [])),
        page_reverse=_flag("page_reverse", _last(values, "page_reverse") or "false"),
        filters={name: tuple(given) for name, given in values.items()},
    )
    check(collection.view, query)
    return Asked(query, fields, tuple(pairs), possible)


def _values(raw: bytes) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """The parts in order, and all values by name."""
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST)
    except ValueError:
        raise Invalid(f"The query has more than {MOST} parts.", "HTTPBadRequest") from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return pairs, values


def wanted_changes(raw: bytes) -> Wanted:
    """Which of the recent changes; raises Invalid that names what cannot be asked."""
    _, values = _values(raw)
    given = {name: _last(values, name) for name in ("limit", "status", "resource", "id", "min_us")}
    if values:
        raise Invalid(f"Changes cannot be filtered by '{min(values):.80}', only by {', '.join(given)}.", "BadRequest")
    limit = _whole("limit", given["limit"]) or MOST_CHANGES
    if limit > MOST_CHANGES:
        raise Invalid(f"Limit must be {MOST_CHANGES} or less and not '{limit}'", "BadRequest")
    if given["status"] not in ("", "ACTIVE", "ERROR", "BUILD"):
        raise Invalid(
            f"Invalid input for status. Reason: '{given['status']:.80}' is not ACTIVE, ERROR or BUILD.", "BadRequest"
        )
    return Wanted(limit, given["status"], given["resource"], given["id"], _whole("min_us", given["min_us"]))


def _drop_impossible(values: dict[str, list[str]], collection: Collection) -> bool:
    """Take out ids that are none; False when a filter then has no alternative left."""
    for name in IDS if collection.key == "id" else ():
        if name in values:
            values[name] = [value for value in values[name] if _is_uuid(value)]
            if not values[name]:
                return False
    return True


def _is_uuid(value: str) -> bool:
    try:
        parse_id(value)
    except Invalid:
        return False
    return True


def _last(values: dict[str, list[str]], name: str) -> str:
    return values.pop(name, [""])[-1]


def _whole(name: str, value: str) -> int:
    """A number of the query; 0 when it was not given."""
    if not value:
        return 0
    if not (value.isascii() and value.isdecimal()) or len(value) > 16 or int(value) > LARGEST:
        raise Invalid(f"{name.capitalize()} must be an integer 0 or greater and not '{value:.80}'", "BadRequest")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value.lower() not in TRUE | FALSE:
        raise Invalid(f"Invalid input for {name}. Reason: '{value:.80}' is not a valid boolean value.", "BadRequest")
    return value.lower() in TRUE


def _sort(keys: Sequence[str], directions: Sequence[str]) -> tuple[tuple[str, bool], ...]:
    if directions and len(directions) != len(keys):
        raise Invalid("The number of sort_keys and sort_dirs must be same", "BadRequest")
    for direction in directions:
        if direction not in ("asc", "desc"):
            raise Invalid(f"Invalid input for sort_dir. Reason: '{direction:.80}' is not asc or desc.", "BadRequest")
    return tuple((key, i < len(directions) and directions[i] == "desc") for i, key in enumerate(keys))


def select(view: Any, fields: Sequence[str]) -> Any:
    """The view, or only those of its attributes that were asked for; unknown names are ignored."""
    if not fields:
        return view
    known = attributes(type(view))
    return {name: getattr(view, known[name].name) for name in fields if name in known}


def links(asked: Asked, listing: Listing, url: str, key: str) -> list[dict[str, str]]:
    """Where the next and the previous page are; empty when the list was not paged."""
    query = asked.query
    if not query.limit or not listing.items:
        return []
    rest = [pair for pair in asked.pairs if pair[0] not in ("marker", "page_reverse")]
    found: list[dict[str, str]] = []

    def add(rel: str, view: Any, *more: tuple[str, str]) -> None:
        attribute = attributes(type(view))[key].name
        pairs = [*rest, ("marker", str(getattr(view, attribute))), *more]
        found.append({"rel": rel, "href": f"{url}?{urlencode(pairs)}"})

    if (query.page_reverse and query.marker) or (not query.page_reverse and listing.more):
        add("next", listing.items[-1])
    if (query.page_reverse and listing.more) or (not query.page_reverse and query.marker):
        add("previous", listing.items[0], ("page_reverse", "True"))
    return found
