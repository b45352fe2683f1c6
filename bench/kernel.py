"""Figures of the Linux data plane: neighbours and ports, beside the same work done by `ip` and `nft`."""

import asyncio
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.machine import Meter
from bench.report import Figure
from planes.data.driver import NetworkSpec, PeerSpec, PolicySpec, PortSpec, RemoteSpec, RuleSpec, Spec, SubnetSpec
from planes.data.linux import hosts, namespaces
from planes.data.linux.cleanup import remove_all
from planes.data.linux.driver import LinuxDriver
from planes.model.addresses import ip_bytes, vtep_mac

NEIGHBOURS = 100_000
PORTS = 50
NETWORK = b"bench-network-01"
PEER = vtep_mac(2)
_FIRST = 0x0A00_0000  # 10.0.0.0


def kernel() -> list[Figure]:
    """The Linux data plane, in a namespace of its own."""
    with _host() as (host, cloud):
        return asyncio.run(_driver(host, cloud)) + _commands(host)


async def _driver(host: str, cloud: str) -> list[Figure]:
    meter = Meter({"bench": os.getpid()})
    driver = LinuxDriver(cloud)
    with namespaces.entered(host):
        await driver.open(ip_bytes(0xC612_0001), vtep_mac(1))
        rules = (RuleSpec(False), RuleSpec(True))
        base: list[Spec] = [
            NetworkSpec(NETWORK, 77, 1450, (SubnetSpec(ip_bytes(_FIRST), 8, ip_bytes(_FIRST + 1)),)),
            PolicySpec(NETWORK, 7, rules),
            PeerSpec(NETWORK, PEER, ip_bytes(0xC612_0002)),
        ]
        _all_well(await driver.apply(base, ()))
        remotes = [RemoteSpec(NETWORK, ip_bytes(_FIRST + 1000 + n), PEER) for n in range(NEIGHBOURS)]
        begun = time.perf_counter()
        _all_well(await driver.apply(remotes, ()))
        took = time.perf_counter() - begun
        times = []
        for number in range(PORTS):
            mac = b"\xfa\x16\0\0\0" + bytes((number,))
            port = PortSpec(NETWORK, b"bench-port-%05d" % number, mac, (ip_bytes(_FIRST + 10 + number),), 7)
            begun = time.perf_counter()
            _all_well(await driver.apply([port], ()))
            times.append(time.perf_counter() - begun)
        await driver.close()
    note = f"{NEIGHBOURS / took:,.0f}/s"
    return [
        Figure("100 000 neighbours, driver", round(took, 2), "s", note, meter.steal()),
        Figure("one port, driver, p50", round(statistics.median(times) * 1000, 2), "ms", "among those", meter.steal()),
    ]


def _commands(host: str) -> list[Figure]:
    """The same by the usual commands, in the same host namespace."""
    meter = Meter({"bench": os.getpid()})
    _run(host, "ip link add vx0 type vxlan id 78 dstport 4790 nolearning && ip link set vx0 up && ip link set lo up")
    lines = (f"neigh add {_text(1000 + n)} lladdr {PEER.hex(':')} dev vx0 nud permanent" for n in range(NEIGHBOURS))
    begun = time.perf_counter()
    _run(host, "ip -batch -", "\n".join(lines) + "\n")
    took = time.perf_counter() - begun
    _run(host, "nft add table inet b && nft 'add set inet b s { typeof iifname . ether saddr . ip saddr; }'")
    times = []
    for number in range(PORTS // 5):
        begun = time.perf_counter()
        for command in (
            f"ip link add p{number} type veth peer name t{number}",
            f"ip link set p{number} up",
            f"ip route add {_text(10 + number)}/32 dev p{number}",
            f"ip neigh add {_text(10 + number)} lladdr fa:16:00:00:00:{number:02x} dev p{number} nud permanent",
            f"nft add element inet b s '{{ p{number} . fa:16:00:00:00:{number:02x} . {_text(10 + number)} }}'",
        ):
            _run(host, command)
        times.append(time.perf_counter() - begun)
    rate = f"{NEIGHBOURS / took:,.0f}/s"
    return [
        Figure("100 000 neighbours, ip -batch", round(took, 2), "s", rate, meter.steal()),
        Figure(
            "one port, ip and nft, p50", round(statistics.median(times) * 1000, 1), "ms", "5 commands", meter.steal()
        ),
    ]


@contextmanager
def _host() -> Iterator[tuple[str, str]]:
    tag = f"bn{os.getpid() % 100_000}"
    host, cloud = f"{tag}-host", f"{tag}n"
    hosts.create_namespace(host)
    try:
        yield host, cloud
    finally:
        asyncio.run(remove_all(cloud))
        hosts.delete_namespace(host)


def _text(number: int) -> str:
    return ".".join(map(str, ip_bytes(_FIRST + number)))


def _run(host: str, command: str, text: str = "") -> None:
    enter = ["nsenter", f"--net={namespaces.DIRECTORY}/{host}", "sh", "-c", command]
    done = subprocess.run(enter, input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {command}: {done.stderr[:300]}")


def _all_well(failed: object) -> None:
    if failed:
        raise SystemExit(f"bench: the driver refused: {str(failed)[:300]}")
