"""What a client reads: Neutron's resource bodies, made from rows. Pure; encoded to JSON at the REST edge.

Field order is the order of the answer. Names that Python cannot spell are renamed with `field(name=…)`.
"""

from typing import Any

from msgspec import Struct, field


class View(Struct, kw_only=True, frozen=True, gc=False):
    """Base of every answer's body."""


class NetworkView(View, kw_only=True, frozen=True):
    id: str
    name: str
    description: str
    project_id: str
    tenant_id: str
    admin_state_up: bool
    status: str
    shared: bool
    subnets: tuple[str, ...]
    mtu: int
    port_security_enabled: bool
    router_external: bool = field(default=False, name="router:external")
    provider_network_type: str = field(default="vxlan", name="provider:network_type")
    provider_physical_network: str | None = field(default=None, name="provider:physical_network")
    provider_segmentation_id: int = field(name="provider:segmentation_id")
    availability_zone_hints: tuple[str, ...] = ()
    availability_zones: tuple[str, ...] = ()
    ipv4_address_scope: str | None = None
    ipv6_address_scope: str | None = None
    tags: tuple[str, ...] = ()
    created_at: str
    updated_at: str
    revision_number: int


class PoolView(View, kw_only=True, frozen=True):
    start: str
    end: str


class HostRouteView(View, kw_only=True, frozen=True):
    destination: str
    nexthop: str


class SubnetView(View, kw_only=True, frozen=True):
    id: str
    name: str
    description: str
    project_id: str
    tenant_id: str
    network_id: str
    ip_version: int = 4
    cidr: str
    gateway_ip: str | None
    allocation_pools: tuple[PoolView, ...]
    enable_dhcp: bool
    dns_nameservers: tuple[str, ...]
    host_routes: tuple[HostRouteView, ...]
    ipv6_address_mode: str | None = None
    ipv6_ra_mode: str | None = None
    subnetpool_id: str | None = None
    segment_id: str | None = None
    service_types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    created_at: str
    updated_at: str
    revision_number: int


class FixedIpView(View, kw_only=True, frozen=True):
    subnet_id: str
    ip_address: str


class AddressPairView(View, kw_only=True, frozen=True):
    ip_address: str
    mac_address: str


class PortView(View, frozen=True):
    """Made in the order of its fields, of which it has too many for keywords."""

    id: str
    name: str
    description: str
    project_id: str
    tenant_id: str
    network_id: str
    mac_address: str
    fixed_ips: tuple[FixedIpView, ...]
    security_groups: tuple[str, ...]
    allowed_address_pairs: tuple[AddressPairView, ...]
    port_security_enabled: bool
    admin_state_up: bool
    status: str
    status_reason: str
    device_id: str
    device_owner: str
    host_id: str = field(name="binding:host_id")
    vnic_type: str = field(name="binding:vnic_type")
    vif_type: str = field(name="binding:vif_type")
    vif_details: dict[str, Any] = field(name="binding:vif_details")
    profile: dict[str, Any] = field(name="binding:profile")
    extra_dhcp_opts: tuple[str, ...]
    tags: tuple[str, ...]
    created_at: str
    updated_at: str
    revision_number: int


class RuleView(View, kw_only=True, frozen=True):
    id: str
    security_group_id: str
    project_id: str
    tenant_id: str
    direction: str
    ethertype: str
    protocol: str | None
    port_range_min: int | None
    port_range_max: int | None
    remote_ip_prefix: str | None
    remote_group_id: str | None
    remote_address_group_id: str | None = None
    normalized_cidr: str | None
    description: str
    belongs_to_default_sg: bool = False
    tags: tuple[str, ...] = ()
    created_at: str
    updated_at: str
    revision_number: int


class GroupView(View, kw_only=True, frozen=True):
    id: str
    name: str
    description: str
    project_id: str
    tenant_id: str
    stateful: bool
    shared: bool = False
    security_group_rules: tuple[RuleView, ...]
    tags: tuple[str, ...] = ()
    created_at: str
    updated_at: str
    revision_number: int


class HostView(View, kw_only=True, frozen=True):
    name: str
    description: str
    state: str  # up, late (a beat is missing), silent, fenced, planned
    alive: bool
    underlay_address: str
    number: int
    epoch: int
    cell: str
    capabilities: tuple[str, ...]
    version: str
    ports: int
    registered_at: str | None
    last_beat: str | None
    last_sync: str | None
    counters: dict[str, int]
    reasons: tuple[str, ...]


class StageView(View, kw_only=True, frozen=True):
    name: str
    host: str
    start_us: int
    duration_us: int
    error: str = ""


class ChangeView(View, kw_only=True, frozen=True):
    id: str
    trace_id: str
    resource: str
    status: str
    stages: tuple[StageView, ...]
    total_us: int
    project_id: str = ""
    object_id: str = ""  # of the first object
    count: int = 1


class EventView(View, kw_only=True, frozen=True):
    project_id: str
    resource: str
    verb: str
    id: str
    name: str
    revision_number: int
    status: str
    status_reason: str
    network_id: str
    host: str
    at_us: int
    change: str
    took_us: int
