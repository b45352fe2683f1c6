"""What an agent tells of itself: its kernel, its requests, its ports, damage; and what its beat tells control."""

import asyncio
from typing import Any

from agent.runtime import Agent
from observability import families
from observability.latency import Counts
from tests.support.clock import run
from tests.support.metrics import of_code
from tests.support.world import NET, World


def told(agent: Agent) -> dict[str, dict[tuple[str, ...], Any]]:
    """By name and labels; of histograms the count."""
    return {
        metric.family.name: {
            labels: value.count if isinstance(value, Counts) else value for labels, value in metric.points
        }
        for metric in agent.metrics()
    }


def test_an_agent_tells_every_family_once() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        metrics = list(world.agents["h1"].metrics())
        assert of_code(metric.family for metric in metrics) == of_code(families.AGENT)
        assert len(metrics) == len(families.AGENT)
        await world.stop()

    run(main())


def test_programs_requests_and_objects_are_counted() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1", "h2")
        world.network()
        world.drivers["h1"].latency = 0.25
        port = world.port(2, "h1")
        world.port(3, "h2")
        await world.settle()
        await asyncio.sleep(10)
        found = told(world.agents["h1"])
        programs = {labels[0]: n for labels, n in found["alcor_agent_program_duration_seconds"].items()}
        assert programs.keys() <= {"network", "port", "policy", "members", "peer", "remote"}
        assert programs["network"] == 1
        slow = next(value for family, value in _histograms(world.agents["h1"]) if family == "network")
        assert slow.max >= 250_000
        assert found["alcor_agent_programmed_total"]["port", "ok"] == 1
        assert found["alcor_agent_programmed_total"]["port", "failed"] == 0
        objects = {labels[0]: n for labels, n in found["alcor_agent_objects"].items()}
        assert objects == {"network": 1, "subnet": 1, "port": 1, "neighbour": 2, "peer": 2, "identity": 2, "group": 1}
        requests = found["alcor_agent_request_duration_seconds"]
        for what in ("register", "pull", "sync", "beat", "ack"):
            assert requests[what, "ok"] >= 1, what
        assert found["alcor_agent_sync_duration_seconds"] == {(): requests["sync", "ok"]}
        assert found["alcor_agent_in_sync"] == found["alcor_agent_registered"] == {(): 1}
        world.delete(port)
        await world.settle()
        assert told(world.agents["h1"])["alcor_agent_program_duration_seconds"]["removal",] >= 1
        await world.stop()

    run(main())


def _histograms(agent: Agent) -> list[tuple[str, Counts]]:
    metric = next(one for one in agent.metrics() if one.family is families.PROGRAM)
    return [(labels[0], value) for labels, value in metric.points if isinstance(value, Counts)]


def test_ports_that_the_kernel_refuses_are_told_here_and_in_the_beat() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        driver = world.drivers["h1"]
        driver.stall()
        port = world.port(2, "h1")
        world.port(3, "h1")
        await asyncio.sleep(5)
        assert _ports(world) == ({"active": 0, "build": 2, "error": 0}, (2, 2, 0))
        driver.fail("port", "no room", times=1_000_000)
        driver.resume()
        await asyncio.sleep(5)
        assert _ports(world) == ({"active": 0, "build": 0, "error": 2}, (2, 0, 2))
        found = told(world.agents["h1"])
        assert found["alcor_agent_programmed_total"]["port", "failed"] >= 2
        assert found["alcor_agent_programmed_total"]["port", "ok"] == 0
        assert found["alcor_agent_queue_depth"]["failed",] == 2
        driver.fail("port", "", times=0)
        await asyncio.sleep(120)
        assert _ports(world) == ({"active": 2, "build": 0, "error": 0}, (2, 0, 0))
        driver.stall()
        world.delete(port)
        await asyncio.sleep(5)
        assert _ports(world) == ({"active": 1, "build": 0, "error": 0}, (1, 0, 0))
        driver.resume()
        await world.stop()

    run(main())


def _ports(world: World) -> tuple[dict[str, int], tuple[int, int, int]]:
    """As the agent tells, and as its last beat told: all, build, error."""
    beat = world.control.beats[-1]
    own = {labels[0]: n for labels, n in told(world.agents["h1"])["alcor_agent_ports"].items()}
    return own, (beat.ports, beat.counters["ports_build"], beat.counters["ports_error"])


def test_damage_is_told_by_kind() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.network()
        port = world.port(2, "h1")
        await world.settle()
        world.fabric.kernel(bytes((192, 0, 2, 1))).damage(("port", NET, port.id))
        await asyncio.sleep(5)
        found = told(world.agents["h1"])
        assert found["alcor_agent_drift_found_total"]["port",] == 1
        assert found["alcor_agent_drift_repaired_total"] == {(): 1}
        await world.stop()

    run(main())


def test_requests_without_an_answer_are_told() -> None:
    async def main() -> None:
        world = World()
        await world.start("h1")
        world.control.refuse = lambda subject: ".beat." in subject
        await asyncio.sleep(20)
        found = told(world.agents["h1"])
        assert found["alcor_agent_request_duration_seconds"]["beat", "failed"] >= 3
        assert found["alcor_agent_beats_lost_total"][()] >= 3
        assert len(world.agents["h1"]._meter._asked) <= 2
        world.broker.cut("h1")
        assert told(world.agents["h1"])["alcor_agent_bus_connected"] == {(): 0}
        world.broker.heal("h1")
        await world.stop()

    run(main())
