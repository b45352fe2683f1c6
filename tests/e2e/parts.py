"""The parts of a cloud as `alcor up` starts them, but each started, paused and killed by the test itself.

Nothing here brings back what died: the test decides when. All of it is gone when the block is left.
"""

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import httpx
from msgspec.structs import replace

from cli.layout import Layout
from cli.supervisor import Part, _child
from cli.underlay import Underlay, underlay
from cli.up import _free_port, _parts
from planes.data.linux.hosts import create_namespace, plug, port_link_names
from planes.model.ids import parse
from planes.model.settings import Settings
from tests.support.ports import free_port

#: a host is dead after 3 s instead of 10, and a change is looked at again after 2 s, so that tests last seconds
FAST = {"ALCOR_DEAD_AFTER": "3", "ALCOR_BEAT_EVERY": "0.5", "ALCOR_ECHO_FROM": "2", "ALCOR_ECHO_TO": "4"}
#: seconds after which what an API that was killed had left half done is undone
ECHO = 8.0


class Parts:
    """A data directory, an underlay, and processes by name: `nats`, `api`, `h1`…"""

    def __init__(
        self, data: Path, hosts: int = 2, env: dict[str, str] | None = None, store: str = "", instances: int = 1
    ) -> None:
        self.layout = Layout(str(data))
        self.database = self.layout.database
        self.hosts = tuple(f"h{number}" for number in range(1, hosts + 1))
        self.api = f"http://127.0.0.1:{free_port(instances)}"
        self.nats = ""
        self.parts: dict[str, Part] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.wires: Underlay
        self.http: httpx.AsyncClient
        self._env = FAST | (env or {})
        self._store = store
        self._instances = instances
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.layout.logs.mkdir(parents=True, exist_ok=True)
        self.wires = await self._stack.enter_async_context(underlay(self.layout, self.hosts))
        self._stack.callback(self.stop)
        self.nats = f"nats://{self.wires.machine}:{_free_port(self.wires.machine, 4222)}"
        port = int(self.api.rsplit(":", 1)[1])
        settings = Settings(data=str(self.layout.data), api_port=port)
        store = self._store or f"sqlite:///{self.database}"
        for part in _parts(self.layout, settings, store, self.nats, self.wires, self._instances):
            self.parts[part.name] = replace(part, env={**part.env, **self._env})
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
        headers = {"X-Roles": "admin"}
        self.http = httpx.AsyncClient(base_url=self.api, headers=headers, timeout=20, trust_env=False, limits=limits)
        self._stack.push_async_callback(self.http.aclose)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # -- processes --------------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        parent = os.getpid()
        for name in names:
            part, namespace = self.parts[name], -1
            if part.namespace:
                namespace = os.open(f"/run/netns/{part.namespace}", os.O_RDONLY)
            try:
                with part.log.open("ab") as log:
                    self.processes[name] = subprocess.Popen(
                        part.argv,
                        env=dict(part.env),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        preexec_fn=lambda where=namespace: _child(parent, where),  # type: ignore[misc]
                    )
            finally:
                if namespace >= 0:
                    os.close(namespace)

    def add(self, name: str, of: str, **env: str) -> None:
        """Another process like a present one, with other settings and a log of its own."""
        part = self.parts[of]
        self.parts[name] = replace(part, name=name, env={**part.env, **env}, log=self.layout.logs / f"{name}.log")

    def kill(self, name: str) -> None:
        self.signal(name, signal.SIGKILL)
        self.processes.pop(name).wait()

    def pause(self, name: str) -> None:
        self.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.signal(name, signal.SIGCONT)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def end(self, name: str) -> int:
        """As an operator ends it; the exit code."""
        self.signal(name, signal.SIGTERM)
        return self.processes.pop(name).wait(20)

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def memory(self, name: str) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) << 10

    def said(self, name: str) -> str:
        """What a process has written so far."""
        return self.parts[name].log.read_text()

    # -- the cloud --------------------------------------------------------------------------------------------------

    async def up(self) -> None:
        """Everything runs, and every host is alive and in sync."""
        self.start("nats", "api", *self.hosts)
        await self.well(*self.hosts)

    async def well(self, *hosts: str, within: float = 20.0) -> None:
        """The API is ready, and these hosts are alive."""

        async def fine() -> bool:
            if (await self.http.get("/readyz")).status_code != 200:
                return False
            return set(hosts) <= {host["name"] for host in await self.list("alcor/hosts") if host["alive"]}

        await eventually(fine, within, f"the API and {hosts}")

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self.http.get(f"/v2.0/{path}")
        found: dict[str, Any] = next(iter(answer.raise_for_status().json().values()))
        return found

    async def list(self, path: str) -> list[dict[str, Any]]:
        """All pages."""
        found: list[dict[str, Any]] = []
        url: str | None = f"{self.api}/v2.0/{path}"
        while url:
            body = (await self.http.get(url)).raise_for_status().json()
            links = [body.pop(name) for name in list(body) if name.endswith("_links")]
            found += next(iter(body.values()))
            url = next((link["href"] for some in links for link in some if link["rel"] == "next"), None)
        return found

    async def post(self, path: str, wait: int = 0, **fields: Any) -> dict[str, Any]:
        """Create one object."""
        kind = path.rsplit("/", 1)[-1].removesuffix("s").replace("-", "_")
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        answer = await self.http.post(f"/v2.0/{path}", json={kind: fields}, headers=headers)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()[kind]
        return made

    async def network(self, cidr: str = "10.0.0.0/16") -> str:
        """A network with one subnet; its id."""
        network = str((await self.post("networks"))["id"])
        await self.post("subnets", network_id=network, cidr=cidr, ip_version=4)
        return network

    async def port(self, network: str, host: str, wait: int = 10, **fields: Any) -> dict[str, Any]:
        return await self.post("ports", wait, network_id=network, **{"binding:host_id": host}, **fields)

    async def instance(self, name: str, network: str, host: str) -> str:
        """An instance with a port; the address that it has."""
        port = await self.port(network, host, device_id=name)
        fixed = port["fixed_ips"][0]
        subnet = await self.get(f"subnets/{fixed['subnet_id']}")
        link, namespace = port_link_names(parse(port["id"]))[1], self.layout.instance(name)
        create_namespace(namespace)
        prefix = int(subnet["cidr"].split("/")[1])
        plug(link, namespace, self.layout.host(host), fixed["ip_address"], prefix, subnet["gateway_ip"])
        return str(fixed["ip_address"])

    async def host(self, name: str) -> dict[str, Any]:
        return await self.get(f"alcor/hosts/{name}")

    async def metrics(self) -> dict[str, int]:
        """The counters of the API's parts."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        found = (line.removeprefix("alcor_").rpartition(" ") for line in lines if line.startswith("alcor_"))
        return {name: int(value) for name, _, value in found if name.endswith("_total")}


async def eventually(fact: Callable[[], Awaitable[Any]], seconds: float = 10.0, what: str = "") -> Any:
    """Ask until `fact` gives something true, and return that; no answer counts as no."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := await fact():
                return found
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or fact}"
        await asyncio.sleep(0.05)


async def done(parts: Parts, within: float = 20.0) -> None:
    """Every host is in sync, and control has heard so."""
    left: dict[str, Any] = {}

    async def nothing_is_left() -> bool:
        for host in await parts.list("alcor/hosts"):
            left[host["name"]] = {name: host["counters"].get(name, 1) for name in ("pending", "unacked")}
            left[host["name"]]["reasons"] = host["reasons"]
        return not any(host["pending"] or host["unacked"] for host in left.values())

    try:
        await eventually(nothing_is_left, within)
    except AssertionError:
        raise AssertionError(f"hosts are not done within {within} s: {left}") from None


async def active(parts: Parts, ids: Iterable[str], within: float = 20.0) -> None:
    """All of these ports are ACTIVE."""
    wanted = set(ids)

    async def all_of_them() -> bool:
        found = await parts.list("ports?fields=id&fields=status")
        return wanted <= {port["id"] for port in found if port["status"] == "ACTIVE"}

    await eventually(all_of_them, within, f"{len(wanted)} ports are active")


class Pings:
    """An echo request each millisecond from inside an instance, for as long as the block lasts."""

    def __init__(self, parts: Parts, name: str, address: str) -> None:
        namespace = f"/run/netns/{parts.layout.instance(name)}"
        self._command = ["nsenter", f"--net={namespace}", "ping", "-n", "-D", "-i", "0.001", "-s", "16", address]
        self._out = parts.layout.logs / f"ping-{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._out.open("wb") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(5)

    def result(self) -> tuple[int, list[str]]:
        """How many were answered, and how many in a row were not and after when; the last on its way is neither."""
        answered: dict[int, float] = {}
        last = 0
        for at, text in re.findall(r"\[([\d.]+)\].* icmp_seq=(\d+) ttl", self._out.read_text()):
            step = (int(text) - last + 0x8000) % 0x10000 - 0x8000  # the number has 16 bits, and answers may overtake
            answered[last + step] = float(at)
            last = max(last, last + step)
        lost: dict[int, int] = {}
        first = 0
        for number in sorted(set(range(1, last + 1)) - answered.keys()):
            first = number if number == 1 or number - 1 in answered else first
            lost[first] = lost.get(first, 0) + 1
        return len(answered), [f"{count} after {answered.get(first - 1, 0.0)}" for first, count in lost.items()]
