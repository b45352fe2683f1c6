"""How long a real kernel takes; printed (`pytest -s`), and bounded only so grossly that a busy machine still passes."""

import asyncio
import time
from collections.abc import Awaitable

import msgspec
import pytest

from planes.data.driver import NetworkSpec, PortSpec, RemoteSpec
from tests.kernel.support import Host, World, ident, ip, mac, network, open_policy, peer, port

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

PORTS, REMOTES = 1_000, 100_000


def many_ports(net: NetworkSpec) -> list[PortSpec]:
    return [
        PortSpec(net.network, ident(f"many{n}"), mac(n), ((0x0A01_0000 + n).to_bytes(4, "big"),), n % 50 + 1)
        for n in range(PORTS)
    ]


async def clocked(label: str, work: Awaitable[object]) -> float:
    """Print how long it took, and the longest time that the loop could not run meanwhile."""
    worst, done = 0.0, False

    async def watch() -> None:
        nonlocal worst
        while not done:
            before = time.perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, time.perf_counter() - before)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    start = time.perf_counter()
    result = await work
    took = time.perf_counter() - start
    done = True
    await watcher
    assert not isinstance(result, dict) or not result, result
    print(f"{label:40s} {took * 1e3:9.2f} ms   loop held {worst * 1e3:6.2f} ms")
    return took


async def test_timing(world: World) -> None:
    one, two = await world.start(2)
    net = network("net", 400, "10.0.0.0", 8)
    await clocked("network: namespace, rules, device", one.driver.apply([net], ()))
    await clocked("50 policies of 2 rules", one.driver.apply([open_policy(net, n) for n in range(1, 51)], ()))
    await _single(one, net)
    ports = many_ports(net)
    assert await clocked("1 000 ports", one.driver.apply(ports, ())) < 20
    await clocked("1 000 ports, unchanged", one.driver.apply(ports, ()))
    started = time.perf_counter()
    await one.driver.drops()
    print(f"{'drops of 1 000 ports read':40s} {(time.perf_counter() - started) * 1e3:9.2f} ms")
    remotes = [RemoteSpec(net.network, (0x0A40_0000 + n).to_bytes(4, "big"), two.vtep_mac) for n in range(REMOTES)]
    assert await clocked("100 000 remotes", one.driver.apply([peer(net, two), *remotes], ())) < 10
    await clocked("100 000 remotes, unchanged", one.driver.apply(remotes, ()))
    assert await clocked("read back", asyncio.gather(one.driver.held())) < 10
    known = await one.driver.held()
    assert len(known) == 1 + 50 + 1 + PORTS + 1 + REMOTES
    await clocked("looked for what is too much", one.driver.surplus(known))
    assert await clocked("restart", one.restart()) < 10
    await clocked("1 of 1 000 ports deleted", one.driver.apply((), [ports[0].key]))
    assert await clocked("999 ports deleted", one.driver.apply((), [spec.key for spec in ports[1:]])) < 20
    await clocked("50 000 remotes deleted", one.driver.apply((), [spec.key for spec in remotes[:50_000]]))
    assert len(await one.driver.held()) == 1 + 50 + 1 + 1 + REMOTES - 50_000
    await clocked("network deleted", one.driver.apply((), [net.key]))


async def _single(one: Host, net: NetworkSpec) -> None:
    """One port at a time, as a create request brings it."""
    times = []
    for n in range(50):
        spec = msgspec.structs.replace(port(net, f"one{n}", "10.2.0.0"), ips=(ip(f"10.2.0.{n}"),), mac=mac(70_000 + n))
        start = time.perf_counter()
        assert not await one.driver.apply([spec], ())
        times.append(time.perf_counter() - start)
    times.sort()
    print(f"{'one port':40s} {times[25] * 1e3:9.2f} ms median, {times[47] * 1e3:.2f} ms p95")
    keys = [("port", net.network, ident(f"one{n}")) for n in range(49)]
    assert not await one.driver.apply((), keys)
