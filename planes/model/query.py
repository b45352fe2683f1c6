"""A list request, in the words of OpenStack: equality filters, fields, paging, sorting. Pure.

The REST edge parses it, `planes.management` answers it with a `Listing`.
"""

from typing import Any

from msgspec import Struct


class Query(Struct, frozen=True):
    """One list request. Values of one filter are alternatives; different filters must all hold."""

    filters: dict[str, tuple[str, ...]] = {}
    limit: int = 0  # 0: as many as the bound allows
    marker: str = ""
    sort: tuple[tuple[str, bool], ...] = ()  # (key, descending)
    page_reverse: bool = False


class Listing(Struct, frozen=True):
    """A page of views, and whether there is more behind it."""

    items: list[Any]
    more: bool = False
