"""What a client may send: Neutron's request bodies as Structs that refuse unknown attributes.

The REST edge decodes into these (so types are already right); `planes.management` checks what needs more than a type.
UNSET means "not sent", which differs from null. Names and defaults are OpenStack Networking's. Pure.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

Name = Annotated[str, Meta(max_length=255)]
Text = Annotated[str, Meta(max_length=255)]
Address = Annotated[str, Meta(max_length=64)]
Uuid = Annotated[str, Meta(min_length=32, max_length=36)]
HostName = Annotated[str, Meta(max_length=255)]


class Request(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every request body."""


class NetworkCreate(Request, kw_only=True):
    name: Name = ""
    description: Text = ""
    admin_state_up: bool = True
    shared: bool = False
    mtu: Annotated[int, Meta(ge=0, le=65535)] | UnsetType | None = UNSET
    port_security_enabled: bool = True
    project_id: Name | UnsetType = UNSET
    tenant_id: Name | UnsetType = UNSET
    router_external: bool = field(default=False, name="router:external")
    is_default: bool | UnsetType = UNSET
    availability_zone_hints: tuple[Name, ...] = ()
    dns_domain: Text | UnsetType = UNSET
    provider_network_type: Name | UnsetType | None = field(default=UNSET, name="provider:network_type")
    provider_physical_network: Name | UnsetType | None = field(default=UNSET, name="provider:physical_network")
    provider_segmentation_id: int | UnsetType | None = field(default=UNSET, name="provider:segmentation_id")


class NetworkUpdate(Request, kw_only=True):
    name: Name | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    admin_state_up: bool | UnsetType = UNSET
    shared: bool | UnsetType = UNSET
    mtu: Annotated[int, Meta(ge=68, le=65535)] | UnsetType = UNSET
    port_security_enabled: bool | UnsetType = UNSET
    router_external: bool | UnsetType = field(default=UNSET, name="router:external")
    is_default: bool | UnsetType = UNSET


class Pool(Request, kw_only=True):
    start: Address
    end: Address


class HostRoute(Request, kw_only=True):
    destination: Address
    nexthop: Address


class SubnetCreate(Request, kw_only=True):
    network_id: Uuid
    cidr: Address | UnsetType = UNSET
    ip_version: Annotated[int, Meta(ge=0, le=99)] = 4
    name: Name = ""
    description: Text = ""
    gateway_ip: Address | UnsetType | None = UNSET
    allocation_pools: Annotated[tuple[Pool, ...], Meta(max_length=64)] | UnsetType | None = UNSET
    enable_dhcp: bool = True
    dns_nameservers: Annotated[tuple[Address, ...], Meta(max_length=16)] = ()
    host_routes: Annotated[tuple[HostRoute, ...], Meta(max_length=64)] = ()
    project_id: Name | UnsetType = UNSET
    tenant_id: Name | UnsetType = UNSET
    dns_publish_fixed_ip: bool | UnsetType = UNSET
    service_types: tuple[Name, ...] = ()
    segment_id: Uuid | UnsetType | None = UNSET
    subnetpool_id: Uuid | UnsetType | None = UNSET
    use_default_subnetpool: bool | UnsetType = UNSET
    prefixlen: int | UnsetType = UNSET
    ipv6_address_mode: Name | UnsetType | None = UNSET
    ipv6_ra_mode: Name | UnsetType | None = UNSET


class SubnetUpdate(Request, kw_only=True):
    name: Name | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    gateway_ip: Address | UnsetType | None = UNSET
    allocation_pools: Annotated[tuple[Pool, ...], Meta(max_length=64)] | UnsetType = UNSET
    enable_dhcp: bool | UnsetType = UNSET
    dns_nameservers: Annotated[tuple[Address, ...], Meta(max_length=16)] | UnsetType = UNSET
    host_routes: Annotated[tuple[HostRoute, ...], Meta(max_length=64)] | UnsetType = UNSET


class FixedIp(Request, kw_only=True):
    subnet_id: Uuid | UnsetType = UNSET
    ip_address: Address | UnsetType = UNSET


class AddressPair(Request, kw_only=True):
    ip_address: Address
    mac_address: Address | UnsetType = UNSET


FixedIps = Annotated[tuple[FixedIp, ...], Meta(max_length=16)]
GroupIds = Annotated[tuple[Uuid, ...], Meta(max_length=8)]
Pairs = Annotated[tuple[AddressPair, ...], Meta(max_length=10)]


class PortCreate(Request, kw_only=True):
    network_id: Uuid
    name: Name = ""
    description: Text = ""
    admin_state_up: bool = True
    mac_address: Address | UnsetType | None = UNSET
    fixed_ips: FixedIps | UnsetType | None = UNSET
    security_groups: GroupIds | UnsetType | None = UNSET
    port_security_enabled: bool | UnsetType = UNSET
    allowed_address_pairs: Pairs | None = ()
    device_id: Name | None = ""
    device_owner: Name | None = ""
    host_id: HostName | UnsetType | None = field(default=UNSET, name="binding:host_id")
    vnic_type: Name | UnsetType = field(default=UNSET, name="binding:vnic_type")
    profile: dict[str, Any] | UnsetType | None = field(default=UNSET, name="binding:profile")
    project_id: Name | UnsetType = UNSET
    tenant_id: Name | UnsetType = UNSET
    dns_name: Text | UnsetType = UNSET
    dns_domain: Text | UnsetType = UNSET
    extra_dhcp_opts: list[dict[str, Any]] | UnsetType | None = UNSET
    qos_policy_id: Uuid | UnsetType | None = UNSET
    propagate_uplink_status: bool | UnsetType = UNSET
    numa_affinity_policy: Name | UnsetType | None = UNSET


class PortUpdate(Request, kw_only=True):
    name: Name | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    admin_state_up: bool | UnsetType = UNSET
    mac_address: Address | UnsetType = UNSET
    fixed_ips: FixedIps | UnsetType = UNSET
    security_groups: GroupIds | UnsetType = UNSET
    port_security_enabled: bool | UnsetType = UNSET
    allowed_address_pairs: Pairs | UnsetType = UNSET
    device_id: Name | UnsetType | None = UNSET
    device_owner: Name | UnsetType | None = UNSET
    host_id: HostName | UnsetType | None = field(default=UNSET, name="binding:host_id")
    vnic_type: Name | UnsetType = field(default=UNSET, name="binding:vnic_type")
    profile: dict[str, Any] | UnsetType | None = field(default=UNSET, name="binding:profile")


class GroupCreate(Request, kw_only=True):
    name: Name = ""
    description: Text = ""
    stateful: bool = True
    project_id: Name | UnsetType = UNSET
    tenant_id: Name | UnsetType = UNSET


class GroupUpdate(Request, kw_only=True):
    name: Name | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    stateful: bool | UnsetType = UNSET


class RuleCreate(Request, kw_only=True):
    security_group_id: Uuid
    direction: Name
    ethertype: Name = "IPv4"
    protocol: Name | int | None = None
    port_range_min: int | None = None
    port_range_max: int | None = None
    remote_ip_prefix: Address | None = None
    remote_group_id: Uuid | None = None
    remote_address_group_id: Uuid | None = None
    description: Text = ""
    project_id: Name | UnsetType = UNSET
    tenant_id: Name | UnsetType = UNSET


class HostCreate(Request, kw_only=True):
    name: HostName
    description: Text = ""


class HostUpdate(Request, kw_only=True):
    description: Text | UnsetType = UNSET
