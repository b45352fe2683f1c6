"""Host namespaces, underlay and instances on one machine: what compute and an operator would do on real hosts.

Called by the command line and by tests; the driver needs none of it. Blocking, and meant to be: it is no hot path.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from pyroute2.iproute.linux import IPRoute

from planes.data.linux import namespaces, netlink
from planes.data.linux.netlink import Message, Netlink
from planes.data.linux.skeleton import port_link_names

__all__ = [
    "create_namespace",
    "delete_namespace",
    "join_underlay",
    "plug",
    "port_link_names",
    "unplug",
]


class HostError(Exception):
    """The kernel refused; the sentence says what."""


def create_namespace(name: str) -> None:
    """A named namespace with its loopback up."""
    namespaces.create(name, lambda: _send_here(f"bring up lo in {name}", [netlink.set_link(1, up=True)]))


def delete_namespace(name: str) -> None:
    """Remove a namespace's name; with its last user gone the kernel frees it and all that is in it."""
    namespaces.delete(name)


def plug(link: str, namespace: str, host_namespace: str, address: str, prefix: int, gateway: str | None) -> None:
    """Move a port's end from the host's namespace into an instance's, as `eth0` with address and default route."""
    target = namespaces.open_namespace(namespace)
    try:
        with namespaces.entered(host_namespace):
            move = netlink.attr(28, netlink.u32(target)) + netlink.attr(3, b"eth0\0")
            device = _present(link, host_namespace)
            _send_here(f"move {link} into {namespace}", [netlink.set_link(device, attributes=move)])
    finally:
        os.close(target)
    with namespaces.entered(namespace):
        index = _present("eth0", namespace)
        ip = _packed(address)
        messages = [
            netlink.set_link(1, up=True),
            Message(netlink.NEWADDR, netlink.CHANGE, netlink.address(ip, prefix, index)),
            netlink.set_link(index, up=True),
        ]
        _send_here(f"configure eth0 in {namespace}", messages)
        _present("eth0", namespace)  # makes the kernel notice the carrier now, not within the next second
        if gateway:
            default = netlink.default_route(_packed(gateway), index)
            _send_here(f"route by {gateway} in {namespace}", [Message(netlink.NEWROUTE, netlink.CHANGE, default)])


def unplug(link: str, namespace: str, host_namespace: str) -> None:
    """Give `eth0` of an instance back to the host's namespace under the port's name."""
    target = namespaces.open_namespace(host_namespace)
    try:
        with namespaces.entered(namespace):
            index = _present("eth0", namespace)
            back = netlink.attr(28, netlink.u32(target)) + netlink.name_attr(link)
            _send_here(f"take eth0 out of {namespace}", [netlink.set_link(index, up=False, attributes=back)])
    finally:
        os.close(target)


async def join_underlay(
    bridge_namespace: str, bridge: str, host_namespace: str, address: str, ifname: str = "u0", *, mtu: int = 1500
) -> None:
    """Connect a host's namespace to the underlay: a veth whose far end is on a bridge (made if it is not there)."""
    await asyncio.to_thread(_join, bridge_namespace, bridge, host_namespace, address, ifname, mtu)


def _join(bridge_namespace: str, bridge: str, host_namespace: str, address: str, ifname: str, mtu: int) -> None:
    ip, prefix = address.split("/")
    far = f"b{port_link_names(host_namespace.encode())[0][1:]}"

    def pair(route: IPRoute) -> None:
        if not route.link_lookup(ifname=bridge):
            route.link("add", ifname=bridge, kind="bridge", mtu=mtu)
            route.link("set", index=route.link_lookup(ifname=bridge)[0], state="up")
        inner = {"ifname": ifname, "net_ns_fd": host_namespace, "mtu": mtu}
        route.link("add", ifname=far, kind="veth", mtu=mtu, peer=inner)

    def configure(route: IPRoute) -> None:
        index = route.link_lookup(ifname=ifname)[0]
        route.addr("add", index=index, address=ip, prefixlen=int(prefix))
        route.link("set", index=index, state="up")

    def connect(route: IPRoute) -> None:
        index = route.link_lookup(ifname=far)[0]
        route.link("set", index=index, state="up")
        route.link("get", index=index)  # makes the kernel notice the carrier now, not within the next second
        route.link("set", index=index, master=route.link_lookup(ifname=bridge)[0])

    for namespace, work in ((bridge_namespace, pair), (host_namespace, configure), (bridge_namespace, connect)):
        with namespaces.entered(namespace):
            _cold(work)


def _cold(work: Callable[[IPRoute], Any]) -> None:
    """Run pyroute2 in the present namespace."""
    with IPRoute() as route:  # type: ignore[no-untyped-call]
        work(route)


def _present(link: str, where: str) -> int:
    netlink_ = Netlink()
    try:
        found = netlink.link(netlink_, link)
    finally:
        netlink_.close()
    if found is None:
        raise HostError(f"there is no link {link} in {where}")
    return found.ifindex


def _send_here(what: str, messages: list[Message]) -> None:
    netlink_ = Netlink()
    try:
        failures = netlink_.send(messages)
    finally:
        netlink_.close()
    if failures:
        raise HostError(f"cannot {what}: {failures[0].text}")


def _packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))
