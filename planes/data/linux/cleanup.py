"""Remove everything that bears a cloud's tag, with no other knowledge: after a crash, and at the end of a test cloud.

Called by the command line. It asks nobody: names under /run/netns and aliases on links are all it needs.
"""

import asyncio

from planes.data.linux import namespaces, netlink, readback
from planes.data.linux.netlink import Netlink


async def remove_all(cloud: str) -> int:
    """Remove the namespaces `<cloud>-<VNI>`, and with them all pairs of ports. Returns how many things went."""
    return await asyncio.to_thread(_remove, cloud)


def _remove(cloud: str) -> int:
    removed = 0
    for name in namespaces.names(f"{cloud}-"):
        if name.removeprefix(f"{cloud}-").isdecimal() and _ours(name):
            namespaces.delete(name)
            removed += 1
    return removed


def _ours(name: str) -> bool:
    """Whether the namespace's loopback says whose network it is; if so its links go at once, both ends of each pair.

    A name that cannot be entered has no namespace behind it any more.
    """
    try:
        with namespaces.entered(name):
            route = Netlink()
    except OSError:
        return True
    try:
        if not readback.owner(route):
            return False
        doomed = [link.ifindex for link in netlink.links(route) if link.name != "lo"]
        netlink.delete_together(route, doomed, netlink.DOOMED)
        return True
    finally:
        route.close()
