"""What a collector sees of a real cloud: the tree of spans of each kind of work, from the request to the kernel."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from observability.spans import new_id, new_trace
from planes.data.linux.hosts import port_link_names
from planes.model.ids import parse
from tests.e2e.parts import Parts, done, eventually
from tests.support.otlp import Collector, Received, tree

pytestmark = [pytest.mark.kernel, pytest.mark.server, pytest.mark.timeout(120)]

KERNEL = ("netlink", "nfnetlink", "nft")


class Seen:
    """A cloud of two hosts, and a collector that hears all of its parts."""

    def __init__(self, parts: Parts, collector: Collector) -> None:
        self.parts = parts
        self.collector = collector
        self._expected: dict[str, list[str]] = {}

    async def ask(self, method: str, path: str, sampled: bool = True, **body: Any) -> tuple[str, dict[str, Any]]:
        """A request under a trace of the caller's: (that, the answer)."""
        trace = new_trace()
        headers = {"traceparent": f"00-{trace}-{new_id()}-0{int(sampled)}", "Prefer": "wait=5"}
        answer = await self.parts.http.request(method, f"/v2.0/{path}", json=body or None, headers=headers)
        assert answer.status_code in (200, 201, 204), answer.text
        return trace, answer.json() if answer.content else {}

    async def expect(self, trace: str, text: str) -> list[Received]:
        """The spans of this trace, once they are this tree; `still` looks again."""
        self._expected[trace] = [line[4:] for line in text.splitlines() if line.strip()]
        with contextlib.suppress(AssertionError):
            await eventually(lambda: self._is(trace), 10)
        assert self._tree(trace) == self._expected[trace]
        return self.collector.trace(trace)

    async def _is(self, trace: str) -> bool:
        return self._tree(trace) == self._expected[trace]

    async def still(self) -> None:
        """Nothing was added to any trace meanwhile."""
        await asyncio.sleep(1.0)
        assert {trace: self._tree(trace) for trace in self._expected} == self._expected

    async def root(self, name: str, since: int = 0) -> Received:
        """The first span of this name that began a trace, of those that came after `since` others.

        Not one that failed: on a busy machine a request may get no answer in time, and is sent again.
        """

        async def there() -> list[Received]:
            spans = self.collector.spans[since:]
            return [span for span in spans if span.name == name and not span.parent and not span.error]

        return (await eventually(there, 15, f"a {name}"))[0]  # type: ignore[no-any-return]

    def _tree(self, trace: str) -> list[str]:
        """Kernel transactions of one program as one line: how many there are is the driver's business."""
        lines: list[str] = []
        for line in tree(self.collector.trace(trace)):
            depth = len(line) - len(line.lstrip())
            kernel = line.split()[0] in KERNEL
            line = " " * depth + "kernel INTERNAL agent" if kernel else line
            if not (kernel and lines[-1] == line):
                lines.append(line)
        return lines


@pytest.fixture
async def seen(tmp_path: Path) -> AsyncIterator[Seen]:
    async with Parts(tmp_path / "data", 2, {"ALCOR_TRACE_RATIO": "0"}) as parts:
        with Collector(address=parts.wires.machine) as collector:
            for name in ("api", "h1", "h2"):
                parts.add(name, name, ALCOR_OTLP=collector.address)
            parts.start("nats", "api", "h1", "h2")
            await eventually(lambda: _alive(parts), 20, "hosts")
            yield Seen(parts, collector)


async def _alive(parts: Parts) -> bool:
    return [host["alive"] for host in await parts.list("alcor/hosts")] == [True, True]


async def _line(parts: Parts, trace: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in parts.said("api").splitlines()]
    return next((line for line in lines if line.get("trace_id") == trace and line["logger"] == "changes"), {})


def _ip(namespace: str, command: str) -> None:
    subprocess.run(["ip", "-n", namespace, *command.split()], check=True)


async def test_a_change_from_the_request_to_the_kernel(seen: Seen) -> None:
    network = await seen.parts.network()
    on_h1 = {"network_id": network, "binding:host_id": "h1"}
    trace, answer = await seen.ask("POST", "ports", port=on_h1)
    port = answer["port"]["id"]
    spans = await seen.expect(
        trace,
        """
    ?POST /v2.0/ports SERVER api
      create port INTERNAL api
        accept INTERNAL api
        claim CLIENT api
        publish PRODUCER api
          ack CONSUMER api
            active CLIENT api
          program INTERNAL agent
            kernel INTERNAL agent
          receive CONSUMER agent
        validate INTERNAL api
        write CLIENT api
    """,
    )
    by_name = {span.name: span for span in spans}
    program, server = by_name["program"], by_name["POST /v2.0/ports"]
    assert by_name["create port"].attributes.items() >= {"alcor.status": "ACTIVE", "alcor.host_count": 1}.items()
    assert server.attributes["http.response.status_code"] == 201
    assert by_name["write"].attributes["db.system.name"] == "sqlite"
    assert program.resource == {"service.name": "alcor-agent", "host.name": "h1"}
    assert program.attributes["alcor.puts"] == 4  # network, members or policies, port
    for span in spans:
        if span.parent == program.id:
            assert program.start <= span.start <= span.end <= program.end
        assert span.end <= server.end + 50_000  # it waited for its host

    said = await eventually(lambda: _line(seen.parts, trace), 5, "the change's line in the log")
    assert said["message"].startswith(f"create port {port} ACTIVE in ")
    assert said["message"].endswith(" on h1")
    assert said["request_id"] == by_name["create port"].attributes["alcor.request_id"]

    trace, _ = await seen.ask("PUT", f"ports/{port}", port={"admin_state_up": False})
    await seen.expect(
        trace,
        """
    ?PUT /v2.0/ports/{key} SERVER api
      update port INTERNAL api
        accept INTERNAL api
        claim CLIENT api
        publish PRODUCER api
          ack CONSUMER api
            active CLIENT api
          program INTERNAL agent
            kernel INTERNAL agent
          receive CONSUMER agent
        validate INTERNAL api
        write CLIENT api
    """,
    )

    trace, _ = await seen.ask("DELETE", f"ports/{port}")
    await seen.expect(
        trace,
        """
    ?DELETE /v2.0/ports/{key} SERVER api
      delete port INTERNAL api
        accept INTERNAL api
        publish PRODUCER api
          ack CONSUMER api
            active CLIENT api
          program INTERNAL agent
            kernel INTERNAL agent
          receive CONSUMER agent
        validate INTERNAL api
        write CLIENT api
    """,
    )

    trace, _ = await seen.ask("GET", "ports")
    await seen.expect(trace, "    ?GET /v2.0/ports SERVER api")
    quiet, _ = await seen.ask("POST", "ports", sampled=False, port=on_h1)
    await seen.still()
    assert not seen.collector.trace(quiet)


async def test_a_hundred_ports_are_one_small_trace(seen: Seen) -> None:
    network = await seen.parts.network()
    ports = [{"network_id": network, "binding:host_id": f"h{number % 2 + 1}"} for number in range(100)]
    trace, _ = await seen.ask("POST", "ports", ports=ports)
    host = """
            kernel INTERNAL agent"""
    spans = await seen.expect(
        trace,
        f"""
    ?POST /v2.0/ports SERVER api
      create port INTERNAL api
        accept INTERNAL api
        claim CLIENT api
        publish PRODUCER api
          ack CONSUMER api
            active CLIENT api
          ack CONSUMER api
            active CLIENT api
          program INTERNAL agent{host}
          program INTERNAL agent{host}
          receive CONSUMER agent
          receive CONSUMER agent
        validate INTERNAL api
        write CLIENT api
    """,
    )
    assert len(spans) <= 40
    programs = {str(span.resource["host.name"]): span.attributes for span in spans if span.name == "program"}
    assert {host: each["alcor.object_count"] for host, each in programs.items()} == {"h1": 50, "h2": 50}
    await seen.still()


async def test_what_fails_is_seen_whole_though_nobody_asked(seen: Seen) -> None:
    network = await seen.parts.network()
    vni = (await seen.parts.get(f"networks/{network}"))["provider:segmentation_id"]
    foreign = f"link add foreign type vxlan id {vni} dstport 4789 local {seen.parts.wires.vteps['h1']} gbp"
    _ip(seen.parts.layout.host("h1"), foreign)
    trace, answer = await seen.ask("POST", "ports", False, port={"network_id": network, "binding:host_id": "h1"})
    assert answer["port"]["status"] == "ERROR"
    spans = await seen.expect(
        trace,
        """
    ?POST /v2.0/ports SERVER api
      create port INTERNAL api !
        accept INTERNAL api
        claim CLIENT api
        publish PRODUCER api
          ack CONSUMER api
            active CLIENT api
          program INTERNAL api !
          receive CONSUMER api
        validate INTERNAL api
        write CLIENT api
    """,
    )
    reasons = {span.error for span in spans if span.error}
    assert len(reasons) == 1
    assert f"vni {vni}" in reasons.pop()


async def test_an_agents_own_work(seen: Seen) -> None:
    parts, collector = seen.parts, seen.collector
    network = await parts.network()
    port = await parts.port(network, "h1")
    assert {span.name for span in collector.spans} <= {"register"}  # of which the first may have found nobody
    parts.end("h1")
    before = len(collector.spans)
    parts.add("h1", "h1", ALCOR_TRACE_RATIO="1")
    parts.start("h1")
    for name in ("register", "pull", "sync"):
        root = await seen.root(name, before)
        await seen.expect(root.trace, f"    {name} CLIENT agent\n      serve {name} SERVER api")
        assert str(root.attributes["messaging.destination.name"]).startswith("alcor.")
        assert root.resource["host.name"] == "h1"
    root = await seen.root("program", before)
    await seen.expect(root.trace, "    program INTERNAL agent\n      kernel INTERNAL agent")

    await done(parts)
    parts.end("h1")
    before = len(collector.spans)
    parts.add("h1", "h1", ALCOR_TRACE_RATIO="0")
    parts.start("h1")
    await done(parts)
    await asyncio.sleep(1.5)
    assert not [span for span in collector.spans[before:] if span.service == "alcor-agent" and not span.error]
    space = f"{parts.layout.cloud('h1')}-{(await parts.get(f'networks/{network}'))['provider:segmentation_id']}"
    address, link = port["fixed_ips"][0]["ip_address"], port_link_names(parse(port["id"]))[0]
    _ip(space, f"route del {address}/32 dev {link}")
    root = await seen.root("repair", before)
    await seen.expect(
        root.trace,
        """
    repair INTERNAL agent
      audit INTERNAL agent
      program INTERNAL agent
        kernel INTERNAL agent
    """,
    )
    assert root.attributes["alcor.lost"] >= 1  # type: ignore[operator]
    await seen.still()
