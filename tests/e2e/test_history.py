"""Random histories on real kernels, real NATS and real SQLite, with every part killed now and then.

Whatever happened: in the end the store is whole, and every kernel is what a fresh driver makes of the store. A failing
run names its seed: `HISTORY=<seed> pytest tests/e2e/test_history.py` does the same again, as far as processes can.
"""

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.kernels import settled
from tests.e2e.parts import Parts, done, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(300)]

LONG = os.environ.get("PROFILE") == "long"
SEEDS = [int(os.environ["HISTORY"])] if "HISTORY" in os.environ else list(range(1, 21 if LONG else 3))
STEPS = 160


class History:
    """What one seed does. Clients look before they repeat a create; updates and deletes they just repeat."""

    def __init__(self, parts: Parts, seed: int) -> None:
        self.parts = parts
        self.chance = random.Random(seed)
        self.story: list[str] = []
        self.networks: list[str] = []
        self.subnets: dict[str, list[str]] = {}
        self.groups: list[str] = []
        self.ports: list[str] = []
        self.rules: list[str] = []
        self._count = 0

    async def run(self) -> None:
        for _ in range(2):
            await self._network()
            await self._group()
        steps = [self._port] * 8 + [self._unport] * 4 + [self._bind] * 4 + [self._regroup] * 3 + [self._rule] * 3
        steps += [self._unrule] * 2 + [self._down] * 2 + [self._address] * 2 + [self._kill] * 2
        steps += [self._network, self._unnetwork, self._group, self._ungroup, self._subnet, self._rename]
        for _ in range(STEPS):
            step = self.chance.choice(steps)
            self.story.append(step.__name__)
            if self.chance.random() < 0.2:
                await asyncio.sleep(self.chance.random() * 0.3)
            await step()

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """An answer that is neither silence nor 503; for what may be repeated."""
        while True:
            try:
                answer = await self.parts.http.request(method, f"/v2.0/{path}", json=body)
                if answer.status_code != 503:
                    assert answer.status_code < 500, answer.text
                    return answer
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)

    async def _create(self, path: str, **fields: Any) -> str | None:
        """A new object by a name of its own; None when it is refused."""
        kind = path.removesuffix("s").replace("-", "_")
        self._count += 1
        name = f"object-{self._count}"
        field = "description" if kind == "security_group_rule" else "name"
        while True:
            found = (await self._ask("GET", f"{path}?{field}={name}")).json()[path.replace("-", "_")]
            if found:
                return str(found[0]["id"])
            try:
                answer = await self.parts.http.post(f"/v2.0/{path}", json={kind: {field: name, **fields}})
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.status_code == 201:
                return str(answer.json()[kind]["id"])
            if answer.status_code != 503:
                assert answer.status_code < 500, answer.text
                return None
            await asyncio.sleep(0.1)

    async def _update(self, path: str, kind: str, **fields: Any) -> None:
        await self._ask("PUT", path, {kind: fields})

    async def _delete(self, path: str) -> bool:
        return (await self._ask("DELETE", path)).status_code in (204, 404)

    # -- steps ------------------------------------------------------------------------------------------------------

    async def _network(self) -> None:
        if len(self.networks) < 5 and (id_ := await self._create("networks")):
            self.networks.append(id_)
            self.subnets[id_] = []
            await self._add_subnet(id_)

    async def _subnet(self) -> None:
        if self.networks:
            await self._add_subnet(self.chance.choice(self.networks))

    async def _add_subnet(self, network: str) -> None:
        cidr = f"10.{self.chance.randrange(4)}.{self.chance.randrange(0, 256, 16)}.0/22"
        if id_ := await self._create("subnets", network_id=network, cidr=cidr, ip_version=4):
            self.subnets[network].append(id_)

    async def _unnetwork(self) -> None:
        if self.networks and await self._delete(f"networks/{(id_ := self.chance.choice(self.networks))}"):
            self.networks.remove(id_)

    async def _group(self) -> None:
        if len(self.groups) < 6 and (id_ := await self._create("security-groups")):
            self.groups.append(id_)

    async def _ungroup(self) -> None:
        if self.groups and await self._delete(f"security-groups/{(id_ := self.chance.choice(self.groups))}"):
            self.groups.remove(id_)

    async def _rule(self) -> None:
        if not self.groups:
            return
        first = self.chance.randrange(1, 60_000)
        fields: dict[str, Any] = {
            "security_group_id": self.chance.choice(self.groups),
            "direction": "ingress",
            "ethertype": "IPv4",
        }
        fields |= {"protocol": "tcp", "port_range_min": first, "port_range_max": first + 9}
        if self.chance.random() < 0.5:
            fields["remote_group_id"] = self.chance.choice(self.groups)
        if id_ := await self._create("security-group-rules", **fields):
            self.rules.append(id_)

    async def _unrule(self) -> None:
        if self.rules and await self._delete(f"security-group-rules/{(id_ := self.chance.choice(self.rules))}"):
            self.rules.remove(id_)

    async def _port(self) -> None:
        if self.networks:
            fields: dict[str, Any] = {"network_id": self.chance.choice(self.networks)}
            if self.chance.random() < 0.85:
                fields["binding:host_id"] = self.chance.choice(self.parts.hosts)
            if self.chance.random() < 0.5:
                fields["security_groups"] = self._some_groups()
            if id_ := await self._create("ports", **fields):
                self.ports.append(id_)

    def _some_groups(self) -> list[str]:
        return self.chance.sample(self.groups, self.chance.randint(0, min(2, len(self.groups))))

    async def _unport(self) -> None:
        if self.ports and await self._delete(f"ports/{(id_ := self.chance.choice(self.ports))}"):
            self.ports.remove(id_)

    async def _change(self, **fields: Any) -> None:
        if self.ports:
            await self._update(f"ports/{self.chance.choice(self.ports)}", "port", **fields)

    async def _bind(self) -> None:
        await self._change(**{"binding:host_id": self.chance.choice(self.parts.hosts)})

    async def _regroup(self) -> None:
        await self._change(security_groups=self._some_groups())

    async def _down(self) -> None:
        await self._change(admin_state_up=self.chance.random() < 0.6)

    async def _rename(self) -> None:
        await self._change(description=f"changed {self.chance.random()}")

    async def _address(self) -> None:
        """One address more, or another one."""
        if not self.ports:
            return
        found = await self._ask("GET", f"ports/{self.chance.choice(self.ports)}")
        if found.status_code == 200:
            port = found.json()["port"]
            kept = port["fixed_ips"][: self.chance.randrange(2)]
            subnets = self.subnets.get(port["network_id"], [])
            more = [{"subnet_id": self.chance.choice(subnets)}] if subnets else []
            await self._update(f"ports/{port['id']}", "port", fixed_ips=kept + more)

    async def _kill(self) -> None:
        name = self.chance.choice(["api", "nats", *self.parts.hosts])
        self.story[-1] = f"kill {name}"
        self.parts.kill(name)
        await asyncio.sleep(self.chance.random() * 0.3)
        self.parts.start(name)


@pytest.mark.parametrize("seed", SEEDS)
async def test_in_the_end_every_kernel_is_what_the_store_says(tmp_path: Path, seed: int) -> None:
    async with Parts(tmp_path / "data", hosts=3) as parts:
        await parts.up()
        history = History(parts, seed)
        try:
            await history.run()
            await parts.well(*parts.hosts, within=30)
            await _settle(parts, set(history.ports))
            await asyncio.sleep(9)  # one echo of everything, one comparison of digests
            await done(parts)
            assert parts.end("api") == 0
            wrong = await settled(parts)
            assert wrong == [], "\n".join(wrong[:40])
        except BaseException:
            print(f"HISTORY={seed}: {' '.join(history.story)}")
            raise


async def _settle(parts: Parts, ports: set[str]) -> None:
    """All of these ports, no others, and none that a host has yet to answer for."""
    left: list[str] = []

    async def calm() -> bool:
        found = {port["id"]: port for port in await parts.list("ports")}
        left[:] = [f"{id_} is not there" for id_ in ports - found.keys()]
        left[:] += [f"{id_} should not be there" for id_ in found.keys() - ports]
        left[:] += [str(port) for port in found.values() if port["status"] not in ("ACTIVE", "DOWN")]
        return not left

    try:
        await eventually(calm, 60)
    except AssertionError:
        raise AssertionError("not settled: " + "\n".join(left)) from None
