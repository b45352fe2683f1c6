"""Checking a request for ports, before anything is written.

Called by `ports`. Most ports of a bulk ask for the same network, subnet and groups, and so do the requests of one turn
of the loop: what was found for one holds for the next that asks the same. Nothing is committed on it: what was only
read here is proven by the commit (`commits`).
"""

from operator import attrgetter
from typing import Any

from msgspec import UNSET, Struct

from observability.stages import Change
from planes.management import port_plans
from planes.management.caller import Caller
from planes.management.context import Context, asked_project
from planes.management.groups import Groups
from planes.management.port_plans import Fields, Wish
from planes.model.addresses import parse_mac
from planes.model.enums import Kind
from planes.model.errors import Conflict, Invalid, not_found
from planes.model.ids import Id, number_of, parse
from planes.model.requests import PortCreate
from planes.model.resources import Network
from planes.store.views import View

NOT_OFFERED = ("qos_policy_id", "dns_name", "extra_dhcp_opts", "numa_affinity_policy")
_extra, _NO_EXTRA = attrgetter(*NOT_OFFERED), (UNSET,) * len(NOT_OFFERED)


class _Known(Struct):
    """A network that ports of the request are in."""

    network: Network
    view: View
    free: tuple[Wish, ...]  # of who names no addresses
    asked: object = None  # the addresses that a port named last, and what they came to
    wishes: tuple[Wish, ...] = ()


class PortChecks:
    """Of requests whose callers see and own the same."""

    def __init__(self, context: Context, groups: Groups, who: Caller) -> None:
        self._c = context
        self._groups = groups
        self._who = who
        self._networks: dict[str, _Known] = {}
        #: groups by their names, and a project's default
        self._named: dict[tuple[str, ...], tuple[Id, ...]] = {}
        self._default: dict[str, tuple[Id, ...]] = {}

    async def check(self, wanted: PortCreate, change: Change) -> Fields:
        """Everything that can be checked before anything is written."""
        project = self._who.owner(asked_project(wanted))
        known = self._networks.get(wanted.network_id) or await self._network(wanted.network_id)
        network = known.network
        if (extra := _extra(wanted)) != _NO_EXTRA:
            _only_empty(extra)
        security = network.port_security if wanted.port_security_enabled is UNSET else wanted.port_security_enabled
        if not security:
            _no_security(wanted)
        return Fields(
            change=change,
            network=network,
            project=project,
            wishes=_wishes(wanted, known),
            mac=parse_mac(wanted.mac_address, "mac_address") if wanted.mac_address not in (UNSET, None, "") else b"",
            groups=await self._groups_of(wanted, project) if security else (),
            security=security,
            host=port_plans.host(wanted.host_id),
            wanted=wanted,
            pairs=port_plans.pairs(wanted.allowed_address_pairs) if wanted.allowed_address_pairs else (),
            profile=port_plans.profile(wanted.profile),
            vnic_type=port_plans.vnic_type(wanted.vnic_type),
        )

    async def _network(self, id: str) -> _Known:
        """The network and its partition, as cached; read anew when the cache does not know it."""
        id_ = parse(id, "network_id")
        for fresh in (False, True):
            view = await self._c.ground.network_view(number_of(id_), fresh=fresh)
            row: Network | None = view.get(Kind.NETWORK)
            if row is not None and row.id == id_:
                if not self._who.sees(row.project, row.shared):
                    break
                subnets = port_plans.subnets_of(view)
                known = self._networks[id] = _Known(row, view, (Wish(subnets[0]),) if subnets else ())
                return known
        raise not_found("network", id)

    async def _groups_of(self, wanted: PortCreate, project: str) -> tuple[Id, ...]:
        named = wanted.security_groups
        if not isinstance(named, tuple):
            if project not in self._default:
                self._default[project] = (await self._groups.default(project),)
            return self._default[project]
        if named not in self._named:
            self._named[named] = await port_plans.check_groups(self._c, named, self._who.sees)
        return self._named[named]


def _only_empty(extra: tuple[Any, ...]) -> None:
    """What clients send as a matter of course, though we do not offer it, must say nothing."""
    for name, asked in zip(NOT_OFFERED, extra, strict=True):
        if asked is not UNSET and asked not in (None, "", []):
            raise Invalid(f"Invalid input for {name}. Reason: it is not offered.")


def _wishes(wanted: PortCreate, known: _Known) -> tuple[Wish, ...]:
    asked = wanted.fixed_ips
    if not isinstance(asked, tuple):
        return known.free
    if known.asked != asked:
        known.wishes = port_plans.wishes(asked, known.view, known.network)
        known.asked = asked
    return known.wishes


def _no_security(wanted: PortCreate) -> None:
    """What a port without port security cannot have."""
    if wanted.security_groups not in (UNSET, None, ()):
        raise Conflict(
            "Port Security must be enabled in order to have security groups on a port.",
            "PortSecurityAndIPRequiredForSecurityGroups",
        )
    if wanted.allowed_address_pairs:
        raise Conflict(
            "Port Security must be enabled in order to have allowed address pairs on a port.",
            "AddressPairAndPortSecurityRequired",
        )
