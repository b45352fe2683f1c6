"""Figures of the Linux data plane: neighbours and ports, beside the same work done by `ip` and `nft`."""

import asyncio
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from agent.core.context import Options
from agent.core.plan import COST
from agent.main import be_patient
from bench.machine import Meter, rss_mib
from bench.report import Figure, at_least, at_most
from planes.data.driver import (
    NetworkSpec,
    PeerSpec,
    PolicySpec,
    PortSpec,
    RemoteSpec,
    RuleSpec,
    Spec,
    SpecKey,
    SubnetSpec,
)
from planes.data.linux import hosts, namespaces
from planes.data.linux.cleanup import remove_all
from planes.data.linux.driver import LinuxDriver
from planes.model.addresses import ip_bytes, vtep_mac

NEIGHBOURS = 100_000
PORTS = 50
#: put and dropped, as many together as an agent hands over
MANY, TOGETHER = 1000, Options(host="", machine="", vtep=b"").batch // COST["port"]
NETWORK = b"bench-network-01"
PEER = vtep_mac(2)
_FIRST = 0x0A00_0000  # 10.0.0.0


def kernel() -> list[Figure]:
    """The Linux data plane, in a namespace of its own."""
    be_patient()
    with _host() as (host, cloud):
        neighbours, one = _commands(host)
        return asyncio.run(_driver(host, cloud, neighbours, one))


async def _driver(host: str, cloud: str, neighbours: Figure, one: Figure) -> list[Figure]:
    """The driver's figures, each behind that of the commands."""
    driver = LinuxDriver(cloud)
    with namespaces.entered(host):
        await driver.open(ip_bytes(0xC612_0001), vtep_mac(1))
        subnet = SubnetSpec(ip_bytes(_FIRST), 8, ip_bytes(_FIRST + 1))
        policy = PolicySpec(NETWORK, 7, (RuleSpec(False), RuleSpec(True)))
        await _took(driver, [NetworkSpec(NETWORK, 77, 1450, (subnet,)), policy], ())
        await _took(driver, [PeerSpec(NETWORK, PEER, ip_bytes(0xC612_0002))], ())
        before = rss_mib(os.getpid())
        remotes = [RemoteSpec(NETWORK, ip_bytes(_FIRST + 10_000 + n), PEER) for n in range(NEIGHBOURS)]
        whole = await _took(driver, remotes, ())
        grew = rss_mib(os.getpid()) - before
        times = [(await _took(driver, [_port(number)], ())).seconds for number in range(PORTS)]
        many = [_port(number) for number in range(PORTS, PORTS + MANY)]
        parts = [many[start : start + TOGETHER] for start in range(0, MANY, TOGETHER)]
        puts = [await _took(driver, part, ()) for part in parts]
        drops = [await _took(driver, (), [spec.key for spec in part]) for part in parts]
        await driver.close()
    rate, p50 = NEIGHBOURS / whole.seconds, statistics.median(times) * 1000
    blocked = max(took.blocked for took in (*puts, *drops)) * 1000
    put, drop = sum(took.seconds for took in puts), sum(took.seconds for took in drops)
    return [
        neighbours,
        Figure(
            "100 000 neighbours, driver",
            round(rate),
            "/s",
            baseline=neighbours.what,
            ratio=round(rate / neighbours.value, 2),
            budget=at_least(2, ratio=True),
        ),
        Figure("… memory, with what names them", round(grew, 1), "MiB", budget=at_most(30)),
        Figure("… the loop's longest wait meanwhile", round(whole.blocked * 1000, 1), "ms", budget=at_most(10)),
        one,
        Figure(
            "one port, driver, p50",
            round(p50, 2),
            "ms",
            "among those",
            baseline=one.what,
            ratio=round(p50 / one.value, 3),
            budget=at_most(0.033, ratio=True),
        ),
        Figure("1 000 ports at once, driver", round(MANY / put), "/s", budget=at_least(2000)),
        Figure("1 000 ports go, driver", round(drop, 2), "s", budget=at_most(1)),
        Figure("… the loop's longest wait with ports", round(blocked, 1), "ms"),
    ]


class Took(Struct):
    """Seconds in all, and the longest that another task had to wait."""

    seconds: float
    blocked: float


async def _took(driver: LinuxDriver, puts: Sequence[Spec], drops: Sequence[SpecKey]) -> Took:
    took = Took(0.0, 0.0)

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            took.blocked = max(took.blocked, time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    begun = time.perf_counter()
    failed = await driver.apply(puts, drops)
    took.seconds = time.perf_counter() - begun
    watching.cancel()
    if failed:
        raise SystemExit(f"bench: the driver refused: {str(failed)[:300]}")
    return took


def _port(number: int) -> PortSpec:
    mac = b"\xfa\x16\0\0" + number.to_bytes(2, "big")
    return PortSpec(NETWORK, b"bench-port-%05d" % number, mac, (ip_bytes(_FIRST + 10 + number),), 7)


def _commands(host: str) -> tuple[Figure, Figure]:
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
    p50, steal = statistics.median(times) * 1000, meter.steal()
    return (
        Figure("100 000 neighbours, ip -batch", round(NEIGHBOURS / took), "/s", "", steal),
        Figure("one port, ip and nft, p50", round(p50, 1), "ms", "5 commands", steal),
    )


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
