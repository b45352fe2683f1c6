"""Local ports: veth pairs with what may pass them, many at a time.

Called by `driver` with the network that they are in. A port's elements are in place before its link exists, its
routes come last (rule N13), so it never forwards what its policy does not allow; it goes the other way round. The
far end of the pair waits in the host's namespace under its own name, down, until compute moves it to where the
instance lives: whether it has been moved is no concern of ours.
"""

import asyncio
import errno
from collections.abc import Iterator, Sequence

from msgspec import Struct

from planes.data.driver import PortSpec
from planes.data.linux import netlink, nfnetlink, skeleton
from planes.data.linux.netlink import Link, Message
from planes.data.linux.network import Network, Reasons
from planes.data.linux.nfnetlink import Change
from planes.data.linux.skeleton import TABLE, Footprint, port_link_names
from planes.model import ids

#: the gateway as every port sees it, on every host: an instance that moves finds the same neighbour
GATEWAY_MAC = b"\xfe\x16\x3e\x00\x00\x01"
#: ports in one send: some milliseconds of kernel work, then the loop runs
_STEP = 16


class _Job(Struct):
    """A port on its way into the kernel."""

    spec: PortSpec
    name: str
    peer: str
    alias: str
    old: Footprint
    new: Footprint
    link: Link | None


async def put(network: Network, specs: Sequence[PortSpec]) -> Reasons:
    """Bring ports about."""
    failed: Reasons = {}
    for start in range(0, len(specs), _STEP):
        jobs = []
        for spec in specs[start : start + _STEP]:
            job = _job(network, spec)
            if job.link and job.link.alias != job.alias:
                failed[spec.key] = _foreign(network, job.link)
            else:
                jobs.append(job)
        _withdraw(network, jobs)
        failed |= _permit(network, [job for job in jobs if job.spec.key not in failed])
        failed |= _connect(network, [job for job in jobs if job.spec.key not in failed])
        if any(_chains(job.old) - _chains(job.new) for job in jobs):
            network.drop_unused_chains()
        await asyncio.sleep(0)
    return failed


async def drop(network: Network, ports: Sequence[bytes]) -> Reasons:
    """Remove ports: first the links, all at the cost of one, then what allowed them to speak."""
    failed: Reasons = {}
    names, indexes = [], []
    for port in ports:
        name = port_link_names(port)[0]
        link = network.links.get(name)
        if link and link.alias != ids.text(port):
            failed["port", network.network, port] = _foreign(network, link)
            continue
        names.append(name)
        if link:
            indexes.append(link.ifindex)
    if indexes:
        await asyncio.to_thread(network.delete_links, indexes)
    for name in names:
        network.links.pop(name, None)
    network.forget_elements(names)
    network.drop_unused_chains()
    return failed


def _job(network: Network, spec: PortSpec) -> _Job:
    name, peer = port_link_names(spec.id)
    old = network.footprints.get(name, Footprint())
    return _Job(spec, name, peer, ids.text(spec.id), old, skeleton.port_footprint(spec), network.links.get(name))


def _withdraw(network: Network, jobs: list[_Job]) -> None:
    """Take away the routes of addresses that a port no longer has, before what allowed them goes."""
    messages: list[Message] = []
    for job in jobs:
        kept = {ip for ip, _ in job.new.addresses}
        for ip, _ in job.old.addresses:
            if ip not in kept and job.link:
                messages.append(Message(netlink.DELROUTE, 0, netlink.route(ip, 32, job.link.ifindex)))
                messages.append(Message(netlink.DELNEIGH, 0, netlink.no_neighbour(ip, job.link.ifindex)))
    network.route.send(messages)  # what is not there any more went away with its link


def _permit(network: Network, jobs: list[_Job]) -> Reasons:
    """Set what ports may send and receive: one transaction for all, one each if that is refused."""
    reason = nfnetlink.commit(network.filters, TABLE, _change(network, jobs))
    if not reason:
        for job in jobs:
            network.footprints[job.name] = Footprint(job.new.elements, job.old.addresses & job.new.addresses)
            network.chains.update(_chains(job.new))
        return {}
    if len(jobs) == 1:
        return {jobs[0].spec.key: f"cannot change the filter: {reason}"}
    failed: Reasons = {}
    for job in jobs:
        failed |= _permit(network, [job])
    return failed


def _change(network: Network, jobs: list[_Job]) -> Change:
    chains = {name for job in jobs for name in _chains(job.new)}
    return Change(
        chains=tuple(chains - network.chains),
        removed=tuple(e for job in jobs for e in job.old.elements - job.new.elements),
        added=tuple(e for job in jobs for e in job.new.elements - job.old.elements),
    )


def _chains(footprint: Footprint) -> set[str]:
    return {element.data for element in footprint.elements if isinstance(element.data, str)}


def _connect(network: Network, jobs: list[_Job]) -> Reasons:
    """Make or correct the links with their routes and neighbours; one whose link vanished is made anew."""
    failed: Reasons = {}
    vanished: list[_Job] = []
    for job, code, reason in _send(network, jobs):
        if code == errno.ENODEV and job.link is not None:
            network.links.pop(job.name, None)
            job.link = None
            network.repairs += 1
            vanished.append(job)
        elif code == errno.EEXIST and job.link is None and _adopt(network, job):
            vanished.append(job)
        else:
            failed[job.spec.key] = reason
    for job, _, reason in _send(network, vanished):
        failed[job.spec.key] = reason
    return failed


def _send(network: Network, jobs: list[_Job]) -> Iterator[tuple[_Job, int, str]]:
    """Send all messages of some ports; yields each port that failed with the first error and its sentence."""
    if not jobs:
        return
    messages: list[Message] = []
    owners: list[_Job] = []
    known: dict[str, Link] = {}
    fresh: set[str] = set()
    for job in jobs:
        if job.link is None:
            link = Link(network.next_index, job.name, job.alias, GATEWAY_MAC, network.mtu, job.spec.admin_up)
            network.next_index += 1
            fresh.add(job.name)
            part = _birth(network, job, link)
        else:
            link = job.link
            part = _correction(network, job, link)
        known[job.name] = link
        part += _addresses(job.new, link.ifindex)
        messages += part
        owners += [job] * len(part)
    errors: dict[str, tuple[_Job, int, str]] = {}
    for start, part in netlink.chunks(messages):
        for failure in network.route.send(part):
            job = owners[start + failure.position]
            errors.setdefault(job.name, (job, failure.errno, f"cannot set up {job.name}: {failure.text}"))
    for job in jobs:
        if job.name not in errors:
            network.footprints[job.name] = job.new
            network.links[job.name] = known[job.name]._replace(mtu=network.mtu, up=job.spec.admin_up)
    _name_peers(network, [job for job in jobs if job.name in fresh and job.name not in errors])
    yield from errors.values()


def _birth(network: Network, job: _Job, link: Link) -> list[Message]:
    pair = netlink.veth(
        job.name, link.ifindex, GATEWAY_MAC, job.peer, job.spec.mac, network.host.namespace, network.mtu, link.up
    )
    alias = netlink.set_link(link.ifindex, attributes=netlink.alias_attr(job.alias))
    return [pair, alias, netlink.neighbour_timing(link.ifindex, proxy_delay=0)]


def _correction(network: Network, job: _Job, link: Link) -> list[Message]:
    mtu = netlink.attr(4, netlink.u32(network.mtu)) if link.mtu != network.mtu else b""
    return [netlink.set_link(link.ifindex, up=job.spec.admin_up, attributes=mtu)]


def _addresses(footprint: Footprint, index: int) -> list[Message]:
    messages = []
    for ip, mac in sorted(footprint.addresses):
        messages.append(Message(netlink.NEWROUTE, netlink.CHANGE, netlink.route(ip, 32, index)))
        messages.append(Message(netlink.NEWNEIGH, netlink.CHANGE, netlink.neighbour(ip, mac, index)))
    return messages


def _name_peers(network: Network, jobs: list[_Job]) -> None:
    """Write the port's id on the far ends of new pairs, so that whoever plugs them, or cleans up, knows them."""
    messages = [netlink.set_named_link(job.peer, netlink.alias_attr(job.alias)) for job in jobs]
    network.host.route.send(messages)  # one that compute has moved away in this instant needs no name


def _adopt(network: Network, job: _Job) -> bool:
    """A link of this name exists unknown to us: take it if it is this port's."""
    link = netlink.link(network.route, job.name)
    if link is None or link.alias != job.alias:
        return False
    job.link = link
    return True


def _foreign(network: Network, link: Link) -> str:
    return f"the link {link.name} in {network.name} belongs to {link.alias or 'somebody else'}"
