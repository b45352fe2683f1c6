"""What clients ask first: API versions, collections, extensions. Only what works is listed. Pure."""

from typing import Any

from api.collections import COLLECTIONS

UPDATED = "2026-01-01T00:00:00-00:00"

#: Neutron's extensions that this API implements: alias → (name, description)
EXTENSIONS = {
    "security-group": ("security-group", "Security groups and their rules."),
    "port-security": ("Port Security", "Switches anti-spoofing and security groups of a port off."),
    "binding": ("Port Binding", "The host that a port is bound to, and what it says of it."),
    "allowed-address-pairs": ("Allowed Address Pairs", "Further addresses that a port may use."),
    "provider": ("Provider Network", "Shows the overlay identifier of a network."),
    "net-mtu": ("Network MTU", "The MTU of a network."),
    "net-mtu-writable": ("Network MTU (writable)", "The MTU of a network can be set."),
    "pagination": ("Pagination support", "Lists in pages, with limit, marker and page_reverse."),
    "sorting": ("Sorting support", "Lists sorted by sort_key and sort_dir."),
    "project-id": ("project_id field enabled", "project_id is the same as tenant_id."),
    "standard-attr-description": ("standard-attr-description", "Descriptions of resources."),
    "standard-attr-revisions": ("Resource revision numbers", "revision_number of resources."),
    "standard-attr-timestamp": ("Resource timestamps", "created_at and updated_at of resources."),
    "revision-if-match": ("If-Match constraints based on revision_number", "Conditional updates and deletes."),
    "security-groups-normalized-cidr": ("Normalized CIDR field for security group rules", "normalized_cidr of rules."),
    "stateful-security-group": ("Stateful security group", "stateful of security groups."),
    "empty-string-filtering": ("Empty String Filtering Extension", "Filters that match an empty value."),
}


def extension(alias: str) -> dict[str, Any] | None:
    """One extension, or None when it is not offered."""
    if (found := EXTENSIONS.get(alias)) is None:
        return None
    name, description = found
    return {"alias": alias, "name": name, "description": description, "updated": UPDATED, "links": []}


def extensions() -> list[dict[str, Any]]:
    return [found for alias in EXTENSIONS if (found := extension(alias))]


def versions(base: str) -> list[dict[str, Any]]:
    """The versions of the API; `base` is this server's address without a slash at its end."""
    return [{"id": "v2.0", "status": "CURRENT", "links": [{"rel": "self", "href": f"{base}/v2.0/"}]}]


def resources(base: str) -> list[dict[str, Any]]:
    """The collections under /v2.0."""
    return [
        {"name": c.singular, "collection": c.plural, "links": [{"rel": "self", "href": base + c.path}]}
        for c in COLLECTIONS
    ]
