"""Is a host's kernel what the store says? A fresh driver builds the same from the store's rows beside it, and the two
are compared in the words of `ip`, `bridge` and `nft`: every link, route, address, neighbour, set, map, chain and rule.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.layout import Layout
from planes.data.driver import Spec
from planes.data.linux import hosts, namespaces
from planes.data.linux.driver import LinuxDriver
from planes.model.addresses import vtep_mac
from planes.store.protocol import Store
from planes.store.sqlite.store import SqliteStore
from tests.e2e.parts import Parts
from tests.support import truth
from tests.support.invariants import violations

#: a listing of neighbours may lack some while other tests change theirs: the table is one for all namespaces
LISTINGS = 3
#: prefixes of namespaces that a fresh driver makes; the cloud's own clean-up takes them too
FRESH = "h99"


async def settled(parts: Parts) -> list[str]:
    """Everything that is wrong in the store and in the kernels. The API must have ended, for the store is opened."""
    store = SqliteStore(parts.database)
    await store.open()
    try:
        wrong = await violations(store)
        for host in parts.hosts:
            wrong += await differences(store, parts.layout, host)
    finally:
        await store.close()
    return wrong


async def differences(store: Store, layout: Layout, host: str) -> list[str]:
    """Lines that only one of the two kernels has: `-` is missing on the host, `+` is too much there."""
    row = (await truth.hosts(store))[host]
    wanted = await _built(layout, row.vtep, row.body.number, await truth.specs(store, host))
    present = {name.rpartition("-")[2]: dump(name) for name in namespaces.names(f"{layout.cloud(host)}-")}
    found = []
    for vni in sorted(wanted.keys() | present.keys()):
        should, has = wanted.get(vni, set()), present.get(vni, set())
        found += [f"{host} {vni} - {line}" for line in sorted(should - has)]
        found += [f"{host} {vni} + {line}" for line in sorted(has - should)]
    return found


async def _built(layout: Layout, vtep: bytes, number: int, specs: list[Spec]) -> dict[str, set[str]]:
    """What a fresh driver makes of this."""
    home, cloud = layout.host(FRESH), layout.cloud(FRESH)
    hosts.create_namespace(home)
    driver = LinuxDriver(cloud)
    try:
        with namespaces.entered(home):
            await driver.open(vtep, vtep_mac(number))
        failed = await driver.apply(specs, ())
        assert not failed, failed
        return {name.rpartition("-")[2]: dump(name) for name in namespaces.names(f"{cloud}-")}
    finally:
        for network in driver.networks():
            network.destroy()
        await driver.close()
        hosts.delete_namespace(home)


def dump(namespace: str) -> set[str]:
    """All of a network's namespace that somebody asked for, a line each; without what chance or time decides."""
    lines = {f"link {one['ifname']} {one.get('ifalias')} {one['mtu']}" for one in _ask(namespace, "ip -j link show")}
    lines |= {
        f"address {one['ifname']} {each['local']}/{each['prefixlen']}"
        for one in _ask(namespace, "ip -j -4 addr show")
        for each in one["addr_info"]
    }
    lines |= {
        f"route {one['dst']} {one['dev']} {one.get('gateway')}"
        for one in _ask(namespace, "ip -j route show table all")
        if one.get("protocol") != "kernel"
    }
    lines |= {
        f"neighbour {one['dst']} {one['dev']} {one['lladdr']}"
        for _ in range(LISTINGS)
        for one in _ask(namespace, "ip -j -4 neigh show nud permanent")
        if "PERMANENT" in one.get("state", ())
    }
    forwarding = _ask(namespace, "bridge -j fdb show dev vx")
    lines |= {f"tunnel {one['mac']} {one['dst']}" for one in forwarding if "dst" in one}
    return lines | set(_filters(_ask(namespace, "nft -j list ruleset")["nftables"]))


def _ask(namespace: str, command: str) -> Any:
    path = Path(namespaces.DIRECTORY, namespace)
    done = subprocess.run(
        ["nsenter", f"--net={path}", *command.split()], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "[]")


def _filters(items: list[dict[str, Any]]) -> Iterator[str]:
    rules: dict[str, list[str]] = {}
    for item in items:
        ((kind, body),) = item.items()
        if kind == "rule":
            rules.setdefault(f"{body['family']} {body['chain']}", []).append(_plain(body["expr"]))
        elif kind in ("set", "map"):
            for element in body.get("elem", []):
                if "ct count" not in str(element):  # that one was put there by a packet
                    yield f"{kind} {body['family']} {body['name']} has {_plain(element)}"
            yield f"{kind} {body['family']} {body['name']}"
        elif kind == "chain":
            yield f"chain {body['family']} {body['name']} {body.get('hook')} {body.get('prio')} {body.get('policy')}"
    for chain, expressions in rules.items():
        yield f"rules {chain}: {'; '.join(expressions)}"


def _plain(value: Any) -> str:
    """Without counts and handles."""
    if isinstance(value, list):
        return "[" + ", ".join(_plain(each) for each in value) + "]"
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in ("handle", "packets", "bytes", "expires")}
        return "{" + ", ".join(f"{key}: {_plain(each)}" for key, each in sorted(kept.items())) + "}"
    return str(value)
