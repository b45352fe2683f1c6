"""What the demo tells: two tenants with the same addresses on three hosts, and every claim checked with real packets.

Runs in a thread of its own, beside the loop that keeps the cloud alive. Each step says whether it held; nothing is
assumed from what the API answered.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

from cli.client import Client
from cli.instances import Instances
from cli.packets import Greeter, converse, ping
from cli.trace import change_of
from planes.model.settings import Settings

T = TypeVar("T")

CIDR = "10.0.0.0/24"
WEB_PORT, SSH_PORT, DB_PORT = 80, 22, 5432
#: how long a fact may take to reach every host: the answer to a request waits for the port's own host only
PATIENCE = 3.0


class Step(Struct, frozen=True):
    text: str
    held: bool
    detail: str


class Stopped(Exception):
    """The demo was told to end."""


class Story:
    """One telling. `say` gets a heading or a finished step."""

    def __init__(
        self, api: str, instances: Instances, hosts: tuple[str, ...], say: Callable[[str | Step], None]
    ) -> None:
        self._api = api
        self._instances = instances
        self._hosts = hosts
        self._say = say
        self._greeters: dict[tuple[str, int], Greeter] = {}
        self._made: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, str] = {}
        self.steps: list[Step] = []
        self.stop = threading.Event()
        self.done = False

    @property
    def held(self) -> bool:
        return bool(self.steps) and all(step.held for step in self.steps)

    def tell(self) -> dict[str, Any]:
        """All of it; returns one port's trace. Raises Failure when the API refuses, Stopped when told to end."""
        try:
            for tenant in ("red", "blue"):
                self._build(tenant)
            self._within_a_tenant()
            self._between_tenants()
            self._groups_change()
            trace = self._trace()
            self.done = True
            return trace
        finally:
            for greeter in self._greeters.values():
                greeter.close()

    def _build(self, tenant: str) -> None:
        self._chapter(f"Tenant {tenant}: a network with {CIDR}, groups web and db, instances on three hosts")
        with Client(Settings(), self._api, tenant) as client:
            network = client.post("/v2.0/networks", {"network": {"name": f"{tenant}-net"}})["network"]
            client.post("/v2.0/subnets", {"subnet": {"network_id": network["id"], "cidr": CIDR, "ip_version": 4}})
            web, db = (self._group(client, tenant, name) for name in ("web", "db"))
            _allow(client, web, protocol="icmp")
            _allow(client, web, protocol="tcp", port_range_min=WEB_PORT, port_range_max=WEB_PORT)
            _allow(client, db, protocol="tcp", port_range_min=DB_PORT, port_range_max=DB_PORT, remote_group_id=web)
        wanted = [("web-1", 0, "10.0.0.11", web), ("web-2", 1, "10.0.0.12", web), ("db", 2, "10.0.0.13", db)]
        if tenant == "red":
            wanted.append(("only", 0, "10.0.0.99", web))
        for name, host, address, group in wanted:
            self._instance(
                tenant, f"{tenant}-{name}", self._hosts[host % len(self._hosts)], address, network["id"], group
            )

    def _group(self, client: Client, tenant: str, name: str) -> str:
        group = client.post("/v2.0/security-groups", {"security_group": {"name": name}})["security_group"]
        self._groups[f"{tenant}-{name}"] = group["id"]
        return str(group["id"])

    def _instance(self, tenant: str, name: str, host: str, address: str, network: str, group: str) -> None:
        self._go_on()
        begun = time.perf_counter()
        made = self._instances.create(name, network, host, (group,), tenant, address)
        took = (time.perf_counter() - begun) * 1000
        self._made[name] = made
        for port in (WEB_PORT, SSH_PORT, DB_PORT):
            self._greeters[name, port] = Greeter(made["namespace"], port, name)
        self._check(f"{name} is {address} on {host}", made["ip"] == address, f"port ACTIVE, plugged in {took:.0f} ms")

    def _within_a_tenant(self) -> None:
        self._chapter("Inside a tenant: what its groups allow, across hosts, and nothing else")
        self._pings("red-web-1", "red-web-2")
        self._reaches("red-web-1", "red-web-2", WEB_PORT)
        self._reaches("red-web-2", "red-db", DB_PORT)
        self._refused("red-web-1", "red-db", SSH_PORT, "db admits 5432 only")
        self._refused("red-db", "red-web-1", SSH_PORT, "web admits 80 only")
        self._silent("red-web-1", "10.0.0.13", "db admits no ICMP")

    def _between_tenants(self) -> None:
        self._chapter("Between tenants: the same addresses, and no packet crosses")
        before = self._greeters["red-db", DB_PORT].heard
        self._reaches("blue-web-1", "blue-db", DB_PORT)
        heard = self._greeters["red-db", DB_PORT].heard - before
        self._check("red-db, which has the same address, heard nothing of it", heard == 0, f"{heard} connections")
        self._pings("red-web-2", "red-only")
        self._check(
            "blue-web-2 cannot ping 10.0.0.99, which only red has", not self._echo("blue-web-2", "10.0.0.99"), ""
        )
        heard = self._greeters["red-only", WEB_PORT].heard
        answer = converse(self._made["blue-web-1"]["namespace"], "10.0.0.99", WEB_PORT)
        heard = self._greeters["red-only", WEB_PORT].heard - heard
        self._check("… nor connect to it", answer is None and heard == 0, f"{heard} connections")

    def _groups_change(self) -> None:
        self._chapter("A change of groups takes effect at once, on all hosts")
        self._regroup("red-web-2", [])
        self._refused("red-web-2", "red-db", DB_PORT, "it left the group web")
        self._reaches("red-web-1", "red-db", DB_PORT)
        self._regroup("red-web-2", [self._groups["red-web"]])
        self._reaches("red-web-2", "red-db", DB_PORT)

    def _regroup(self, name: str, groups: list[str]) -> None:
        self._go_on()
        with Client(Settings(), self._api, "red") as client:
            path = f"/v2.0/ports/{self._made[name]['port_id']}"
            port = client.put(path, {"port": {"security_groups": groups}}, wait=10)["port"]
        words = "joins the group web" if groups else "leaves all groups"
        self._check(f"{name} {words}", port["status"] == "ACTIVE", "acked by its host")

    def _trace(self) -> dict[str, Any]:
        """The trace of an instance's port, as soon as it is complete."""
        with Client(Settings(), self._api, "red") as client:
            deadline = time.monotonic() + PATIENCE
            while True:
                change = change_of(client, self._made["red-db"]["request_id"])
                complete = any(stage["name"] == "active" for stage in change["stages"])
                if complete or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        self._check("the whole change was traced, from request to ACTIVE", complete, f"{len(change['stages'])} stages")
        return change

    def _pings(self, source: str, target: str) -> None:
        address = self._made[target]["ip"]
        took = self._soon(lambda: self._echo(source, address))
        hosts = f"{self._made[source]['host']} → {self._made[target]['host']}"
        self._check(f"{source} pings {target} ({hosts})", took is not None, f"{took:.2f} ms" if took else "no answer")

    def _reaches(self, source: str, target: str, port: int) -> None:
        namespace, address = self._made[source]["namespace"], self._made[target]["ip"]
        answer = self._soon(lambda: converse(namespace, address, port))
        detail = f"TCP {address}:{port} says “{answer}”" if answer else f"TCP {address}:{port} does not answer"
        self._check(f"{source} connects to {target}", answer == target, detail)

    def _refused(self, source: str, target: str, port: int, why: str) -> None:
        self._go_on()
        answer = converse(self._made[source]["namespace"], self._made[target]["ip"], port)
        self._check(
            f"{source} cannot connect to {target}:{port}", answer is None, why if answer is None else f"“{answer}”"
        )

    def _silent(self, source: str, address: str, why: str) -> None:
        took = self._echo(source, address)
        self._check(
            f"{source} cannot ping {address}", took is None, why if took is None else f"it answers in {took} ms"
        )

    def _echo(self, source: str, address: str) -> float | None:
        self._go_on()
        return ping(self._made[source]["namespace"], address)

    def _soon(self, attempt: Callable[[], T | None]) -> T | None:
        deadline = time.monotonic() + PATIENCE
        while (found := attempt()) is None and time.monotonic() < deadline:
            self._go_on()
            time.sleep(0.02)
        return found

    def _check(self, text: str, held: bool, detail: str) -> None:
        step = Step(text, held, detail)
        self.steps.append(step)
        self._say(step)

    def _chapter(self, heading: str) -> None:
        self._go_on()
        self._say(heading)

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise Stopped


def _allow(client: Client, group: str, **what: Any) -> None:
    rule = {"security_group_id": group, "direction": "ingress", "ethertype": "IPv4", **what}
    client.post("/v2.0/security-group-rules", {"security_group_rule": rule})
