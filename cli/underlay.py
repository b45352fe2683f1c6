"""The wires under a cloud on one machine: a bridge in a namespace of its own, every host plugged into it, and one link
from the machine itself, so that agents inside host namespaces reach the bus, and integrators on the machine do too.

    machine ── am<tag>u ─┐
    host h1 ── u0 ───────┼── br0 in am<tag>-net         all in one /24 of 198.18.0.0/15 (RFC 2544), chosen by tag
    host h2 ── u0 ───────┘

Used by `cli.up`; removes all of it again, also what a killed predecessor left.
"""

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from cli.errors import Failure
from cli.layout import Layout
from planes.data.linux import hosts, namespaces

BRIDGE = "br0"
_RANGE = ipaddress.IPv4Network("198.18.0.0/15")
_COUNT = 512


class Underlay:
    """Addresses of a built underlay. `.1` is the machine, hosts follow from `.11`."""

    def __init__(self, subnet: ipaddress.IPv4Network, names: Sequence[str]) -> None:
        self.subnet = subnet
        self.machine = str(subnet[1])
        self.vteps = {name: str(subnet[11 + number]) for number, name in enumerate(names)}


@contextlib.asynccontextmanager
async def underlay(layout: Layout, names: Sequence[str]) -> AsyncIterator[Underlay]:
    """Build it; remove it, and everything else that bears the cloud's tag, at the end."""
    remove(layout)
    with _claimed_subnet(int(layout.tag, 16) % _COUNT) as subnet:
        built = Underlay(subnet, names)
        try:
            hosts.create_namespace(layout.net)
            for name, address in built.vteps.items():
                hosts.create_namespace(layout.host(name))
                await hosts.join_underlay(layout.net, BRIDGE, layout.host(name), f"{address}/{subnet.prefixlen}")
            _ip(
                f"link add {layout.uplink} type veth peer name uplink netns {layout.net}",
                f"addr add {built.machine}/{subnet.prefixlen} dev {layout.uplink}",
                f"link set {layout.uplink} up",
            )
            _ip(f"link set uplink master {BRIDGE} up", namespace=layout.net)
            yield built
        finally:
            remove(layout)


def remove(layout: Layout) -> None:
    """Every namespace of this cloud with the processes in it, and with those all links, tables and rules."""
    if Path("/sys/class/net", layout.uplink).exists():
        _ip(f"link delete {layout.uplink}")
    names = [name for name in namespaces.names() if layout.is_ours(name)]
    for name in names:
        end_processes(name)
    for name in names:
        hosts.delete_namespace(name)


def _ip(*lines: str, namespace: str = "") -> None:
    """Commands for `ip`, in the machine's namespace or in a named one."""
    command = ["ip", *(("-n", namespace) if namespace else ()), "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"Cannot connect this machine to the underlay: {' '.join(done.stderr.split())}")


def end_processes(namespace: str) -> None:
    """Kill what still runs inside a namespace of ours; it could not go away before they do."""
    try:
        inode = Path(namespaces.DIRECTORY, namespace).stat().st_ino
    except FileNotFoundError:
        return
    deadline = time.monotonic() + 2.0
    while (inside := list(_processes_in(inode))) and time.monotonic() < deadline:
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes_in(inode: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino == inode:
                    yield int(entry.name)


@contextlib.contextmanager
def _claimed_subnet(first: int) -> Iterator[ipaddress.IPv4Network]:
    """A /24 that nothing on this machine uses. An abstract socket holds it against another `up` until we end."""
    taken = _routed()
    for step in range(_COUNT):
        base = int(_RANGE.network_address) + ((first + step) % _COUNT << 8)
        subnet = ipaddress.IPv4Network((base, 24))
        if any(subnet.overlaps(other) for other in taken):
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
            try:
                claim.bind(f"\0alcor-mesh {subnet}")
            except OSError:
                continue
            yield subnet
            return
    raise Failure(f"All of {_RANGE} is in use on this machine.")


def _routed() -> list[ipaddress.IPv4Network]:
    """Prefixes that this machine has a route to, but for the default route."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        words = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(word), "little") for word in (words[1], words[7]))
        if mask:
            found.append(ipaddress.IPv4Network((address, mask.bit_count())))
    return found
