"""Metrics as text: both formats by Prometheus' own parsers, exemplars, the document, bounded size and cost."""

import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from msgspec import Struct

from observability import exposition, families
from observability.lags import SLOWEST, WINDOW, Lags
from observability.latency import Counts, Latency
from observability.metrics import Family, Metric
from observability.stages import STAGES, Stage
from observability.tracing import Observer
from planes.control.hosts import HostRow, Pulse
from planes.control.plane import ControlPlane
from planes.control.readings import readings
from planes.goalstate.messages import Beat
from planes.model.resources import Host, HostState
from planes.store.faulty import Fault, FaultyStore, script
from planes.store.protocol import Batch, StoreError, Write
from planes.store.schema import BY_HOST, HOSTS
from planes.store.sqlite.store import SqliteStore
from planes.store.timed import TimedStore
from tests.support.cloud import running
from tests.support.metrics import documented, exported, of_code, parsed

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Done(Struct):
    """A finished change."""

    stages: list[Stage]
    traceparent: str
    total: int = 300
    status: str = "ACTIVE"
    resource: str = "create port"
    id: bytes = b"\1" * 16
    project: str = "demo"
    object: str = ""
    count: int = 1


def done(sampled: bool = False, total: int = 300) -> Done:
    stages = [Stage(name, 1_000_000, 70) for name in STAGES]
    return Done(stages, f"00-{TRACE}-b7ad6b7169203331-0{int(sampled)}", total)


def changes(latency: Latency) -> list[Metric]:
    return [
        families.CHANGE.each(latency.changes),
        families.STAGE.each({name: each.total for name, each in latency.stages.items()}),
    ]


def test_the_document_tells_what_the_code_does() -> None:
    assert documented() == {
        "API": of_code(families.API),
        "Agent": of_code(families.AGENT),
        "Both": of_code(families.BOTH),
    }


def test_both_formats_tell_the_same_to_prometheus_own_parsers() -> None:
    counts = Counts()
    for us in (50, 240, 240, 700_000, 90_000_000):
        counts.record(us)
    odd = Family("alcor_odd_total", "counter", "Odd.", ("name",))
    metrics = [
        families.STAGE.each({"write": counts}),
        families.LOOP_LAG.one(counts),
        odd.each({'a "quoted" back\\nslash\n': 3}),
        families.MEMORY.one(7.5),
        families.HOST_ACK_LAG.each({}),
    ]
    classic, openmetrics = exposition.classic(metrics), exposition.openmetrics(metrics)
    assert exported(classic) == exported(openmetrics, openmetrics=True)
    found = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in parsed(openmetrics, openmetrics=True)
        for sample in family.samples
    }
    assert found["alcor_odd_total", ('a "quoted" back\\nslash\n',)] == 3
    assert found["process_resident_memory_bytes", ()] == 7.5
    name = "alcor_stage_duration_seconds"
    assert found[f"{name}_count", ("write",)] == found[f"{name}_bucket", ("write", "+Inf")] == 5
    assert found[f"{name}_bucket", ("write", "0.0001")] == 1
    assert found[f"{name}_bucket", ("write", "0.00025")] == 3
    assert found[f"{name}_bucket", ("write", "60.0")] == 4
    assert found[f"{name}_sum", ("write",)] == pytest.approx(90.70053)


def test_a_scraper_gets_openmetrics_only_if_it_asks() -> None:
    assert exposition.answer([], "text/plain")[1].startswith("text/plain; version=0.0.4")
    text, kind = exposition.answer([], "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert text == "# EOF\n"


def test_a_sampled_change_leaves_its_trace_in_its_buckets() -> None:
    latency = Latency(wall=lambda: 1234.5)
    observer = Observer(latency)
    observer([done(total=200)])
    assert "trace_id" not in exposition.openmetrics(changes(latency))
    observer([done(sampled=True, total=700)])
    observer([done(total=700)])
    text = exposition.openmetrics(changes(latency))
    found = {
        (sample.name, sample.labels.get("stage", ""), sample.labels["le"]): sample.exemplar
        for family in parsed(text, openmetrics=True)
        for sample in family.samples
        if sample.exemplar
    }
    assert ("alcor_change_duration_seconds_bucket", "", "0.00075") in found
    assert ("alcor_stage_duration_seconds_bucket", "write", "0.0001") in found
    assert len(found) == len(STAGES) + 2
    for exemplar in found.values():
        assert exemplar.labels == {"trace_id": TRACE}
        assert str(exemplar.timestamp).startswith("1234.5")
    assert found["alcor_stage_duration_seconds_bucket", "total", "0.00075"].value == 0.0007
    assert "trace_id" not in exposition.classic(changes(latency))


def test_failed_and_slow_changes_leave_theirs_too() -> None:
    latency = Latency()
    failed = done()
    failed.status = "ERROR"
    Observer(latency)([failed])
    Observer(latency)([done(total=2_000_000)])
    assert latency.changes["create port", "ERROR"].exemplars.keys() == {2}
    assert len(latency.changes["create port", "ACTIVE"].exemplars) == 1


def test_names_of_changes_are_bounded() -> None:
    latency = Latency(most=20)
    for number in range(50):
        change = done()
        change.resource = f"{number}"
        latency.finished([change])
    assert len(latency.changes) == 20


def calls_of(act: Any) -> int:
    """How many functions a piece of work calls, ours and the interpreter's: what it costs, without a clock."""
    count = 0

    def seen(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def test_what_a_change_costs() -> None:
    latency = Latency()
    change, sampled = done(), done(sampled=True)
    latency.finished([sampled])
    latency.traced(sampled)
    plain = calls_of(lambda: latency.finished([change]))
    begun = time.process_time()
    for _ in range(2000):
        latency.finished([change])
    print(
        f"\n{plain} calls and {(time.process_time() - begun) / 2000 * 1e6:.1f} µs for a change of {len(STAGES)} stages"
    )
    assert plain <= 16 * (len(STAGES) + 2)
    assert calls_of(lambda: latency.traced(sampled)) <= 16 * (len(STAGES) + 2)


def test_the_slowest_hosts_are_told_and_forgotten() -> None:
    now = 0.0
    lags = Lags(lambda: now)
    for number in range(100):
        lags.record(f"h{number}", [number * 1000])
        lags.record(f"h{number}", [5])
    assert list(lags.slowest()) == [f"h{number}" for number in range(99, 99 - SLOWEST, -1)]
    assert lags.slowest()["h99"] == 99_000
    now = WINDOW
    lags.record("h99", [7])
    lags.record("h1", [1_000_000])
    assert list(lags.slowest().items())[:2] == [("h1", 1_000_000), ("h99", 99_000)]
    now = 2 * WINDOW
    assert lags.slowest() == {"h1": 1_000_000, "h99": 7}
    lags.record("h1", [1])
    now = 5 * WINDOW
    assert lags.slowest() == {}
    assert lags.all.count == 203


async def test_the_stopwatch_tells_how_calls_of_the_store_ended(tmp_path: Path) -> None:
    inner = SqliteStore(tmp_path / "store.db")
    faulty = FaultyStore(inner, script({2: Fault.REFUSE, 3: Fault.HIDE}))
    store = TimedStore(faulty)
    await store.open()
    batch = Batch(HOSTS, ("h1",), None, {"rev": 1})
    assert await store.commit(batch)
    assert not await store.commit(batch)
    for _ in range(2):
        with pytest.raises(StoreError):
            await store.write([Write(BY_HOST, ("h1",), (b"x",), (1,), 1)])
    await store.read(HOSTS, ("h1",))
    assert await store.row(BY_HOST, ("h1",), (b"x",)) == (1,)
    assert await store.partitions(HOSTS) == [("h1",)]
    await store.now()
    await store.close()
    assert {key: counts.count for key, counts in store.calls.items()} == {
        ("commit", "ok"): 1,
        ("commit", "refused"): 1,
        ("write", "error"): 1,
        ("write", "unknown"): 1,
        ("read", "ok"): 2,
        ("partitions", "ok"): 1,
        ("now", "ok"): 1,
    }
    assert (store.rows_written, store.flying) == (4, 0)


async def test_every_counter_of_the_control_plane_is_exported(tmp_path: Path) -> None:
    async with running(tmp_path) as cloud:
        assert cloud.counters().keys() == families.CONTROL.keys()


def populate(plane: ControlPlane, hosts: int) -> None:
    """As if so many hosts were registered and had beaten and answered."""
    now = plane.hosts._monotonic()
    for number in range(hosts):
        name = f"host-{number:05}"
        state = (HostState.UP, HostState.UP, HostState.UP, HostState.PLANNED, HostState.FENCED)[number % 5]
        plane.hosts._rows[name] = HostRow(name, 1, 1, "m", bytes(4), "", state, Host(number, 0))
        beat = Beat(True, 0, 10, {"ports_build": 2, "ports_error": 1})
        plane.hosts._pulses[name] = Pulse(now - (100 if number % 5 == 1 else 0), 0, beat, 1)
        plane.acks.lags.record(name, [number])


async def test_ten_thousand_hosts_are_as_many_lines_as_thirty(tmp_path: Path) -> None:
    store = TimedStore(SqliteStore(tmp_path / "unused.db"))
    sizes = []
    for hosts in (30, 10_000):
        async with running(tmp_path / str(hosts)) as cloud:
            populate(cloud.plane, hosts)
            begun = time.process_time()
            text = exposition.classic(readings(cloud.plane, store, cloud.counters()))
            print(
                f"\n{hosts} hosts: {len(text.splitlines())} lines, {(time.process_time() - begun) * 1e3:.1f} ms of CPU"
            )
            sizes.append(len(text.splitlines()))
            told = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[0] != "#"}
            fifth = hosts / 5
            assert told['alcor_hosts{state="alive"}'] == told["alcor_hosts_in_sync"] == 2 * fifth
            assert {told[f'alcor_hosts{{state="{state}"}}'] for state in ("silent", "planned", "fenced")} == {fifth}
            assert told['alcor_ports{state="active"}'] == 14 * fifth
            assert told['alcor_ports{state="build"}'] == 4 * fifth
            assert told['alcor_ports{state="error"}'] == 2 * fifth
            assert told['alcor_ports{state="silent"}'] == 30 * fifth
    assert sizes[0] == sizes[1]
