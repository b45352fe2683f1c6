"""The collections that the API offers, as one table: names, paths, and the Structs of requests and answers.

Read by the handlers, the body decoder, the OpenAPI document and discovery; a collection is added here and nowhere else.
Pure.
"""

from msgspec import Struct

from planes.model import requests, views


class Collection(Struct, frozen=True):
    """One collection. `service` is its attribute of `Cloud`; `key` names its objects in paths and markers."""

    plural: str
    singular: str
    path: str
    service: str
    create: type[Struct]
    view: type[Struct]
    update: type[Struct] | None = None
    key: str = "id"
    resource: str = ""  # snake-case name in errors, where it is not the singular
    others: tuple[tuple[str, str], ...] = ()  # other (singular, plural) body keys that it accepts
    waits: bool = False  # `Prefer: wait` means something
    operators: bool = False  # not for tenants

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """All (singular, plural) body keys, its own first."""
        return ((self.singular, self.plural), *self.others)


COLLECTIONS = (
    Collection(
        "networks",
        "network",
        "/v2.0/networks",
        "networks",
        requests.NetworkCreate,
        views.NetworkView,
        requests.NetworkUpdate,
    ),
    Collection(
        "vpcs",
        "vpc",
        "/v2.0/vpcs",
        "networks",
        requests.NetworkCreate,
        views.NetworkView,
        requests.NetworkUpdate,
        resource="network",
        others=(("network", "networks"),),
    ),
    Collection(
        "subnets",
        "subnet",
        "/v2.0/subnets",
        "subnets",
        requests.SubnetCreate,
        views.SubnetView,
        requests.SubnetUpdate,
    ),
    Collection(
        "ports",
        "port",
        "/v2.0/ports",
        "ports",
        requests.PortCreate,
        views.PortView,
        requests.PortUpdate,
        waits=True,
    ),
    Collection(
        "security_groups",
        "security_group",
        "/v2.0/security-groups",
        "groups",
        requests.GroupCreate,
        views.GroupView,
        requests.GroupUpdate,
    ),
    Collection(
        "security_group_rules",
        "security_group_rule",
        "/v2.0/security-group-rules",
        "rules",
        requests.RuleCreate,
        views.RuleView,
    ),
    Collection(
        "hosts",
        "host",
        "/v2.0/alcor/hosts",
        "hosts",
        requests.HostCreate,
        views.HostView,
        requests.HostUpdate,
        key="name",
        operators=True,
    ),
)
