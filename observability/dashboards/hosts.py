"""Dashboard: the hosts' agents. Who lives, who is in sync, what they had to repair, what they use."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from observability.dashboards.panels import (
    AGENTS,
    BYTES,
    CORES,
    COUNT,
    PER_SECOND,
    SECONDS,
    board,
    gained,
    gauge,
    graph,
    lacking,
    number,
    percentiles,
    quantile,
    rate,
    rows,
    top,
)

SYNC = "alcor_agent_sync_duration_seconds"
REQUEST = "alcor_agent_request_duration_seconds"
PROGRAM = "alcor_agent_program_duration_seconds"
FOUND = "alcor_agent_drift_found_total"
REPAIRED = "alcor_agent_drift_repaired_total"
#: only agents, where the API's processes have the metric as well
ONLY = f'and on (job, instance) {AGENTS}{{instance=~"$instance"}}'
#: as control sees them, whichever agents are chosen; each instance of the API tells the same
STATES = "max by (state) (alcor_hosts)"


def dashboard() -> Dashboard:
    return board(
        "alcor-hosts",
        "Alcor Mesh / Hosts",
        "The hosts' agents, as control sees them and by what they say of themselves.",
        AGENTS,
        {
            "Now": [
                number("Alive", "Hosts that control hears.", COUNT, _hosts("alive")),
                number("Silent", "Hosts it hears no more.", COUNT, _hosts("silent"), 1),
                number("Agents", "Agents that are scraped.", COUNT, gauge(AGENTS, how="count")),
                number("Out of sync", "Agents that lack some goal state.", COUNT, lacking(AGENTS), 1),
                number("Off the bus", "Agents without NATS.", COUNT, lacking("alcor_agent_bus_connected"), 1),
                number("Drift", "Repairs in the last hour.", COUNT, gained(REPAIRED, "1h"), 1),
            ],
            "Health": [
                graph(
                    "Hosts by state",
                    "As control sees them; of those alive, how many have all that they were told.",
                    COUNT,
                    [(STATES, "{{state}}"), ("max(alcor_hosts_in_sync)", "in sync")],
                ),
                graph("Sync", "From telling control what is known to its answer.", SECONDS, percentiles(SYNC)),
                graph(
                    "Drift found",
                    "What others changed in the kernel, by kind. All of it is repaired.",
                    PER_SECOND,
                    [(rate(FOUND, "kind"), "{{kind}} found"), (rate(REPAIRED), "all repaired")],
                ),
                rows(
                    "Hosts with most drift",
                    "Repairs in the last hour. Somebody else works on these hosts' kernels.",
                    COUNT,
                    top(gained(REPAIRED, "1h", "instance")),
                ),
            ],
            "Work": [
                graph(
                    "Objects by kind",
                    "What all agents together hold.",
                    COUNT,
                    [(gauge("alcor_agent_objects", "kind"), "{{kind}}")],
                ),
                rows(
                    "Largest hosts",
                    "Objects that an agent holds.",
                    COUNT,
                    top(gauge("alcor_agent_objects", "instance")),
                ),
                graph(
                    "Programming",
                    "Time in the kernel by kind of change, 99th percentile.",
                    SECONDS,
                    [(quantile(0.99, PROGRAM, "kind"), "{{kind}}")],
                ),
                graph("Pulls", "Snapshots that agents asked for.", PER_SECOND, [(rate("alcor_agent_pulls_total"), "")]),
                graph(
                    "Requests to control",
                    "How long control takes to answer agents, 99th percentile; failed had no answer.",
                    SECONDS,
                    [(quantile(0.99, REQUEST, "request, outcome"), "{{request}} {{outcome}}")],
                ),
                graph(
                    "Trouble",
                    "gaps: messages that did not come, and were pulled. beats_lost: no answer. bugs: see the log.",
                    PER_SECOND,
                    [
                        (rate(f"alcor_agent_{what}_total"), what)
                        for what in ("gaps", "beats_lost", "messages_unreadable", "objects_refused", "bugs")
                    ],
                ),
                graph(
                    "Queues",
                    "What waits inside, in the agent that has most.",
                    COUNT,
                    [(gauge("alcor_agent_queue_depth", "queue", how="max"), "{{queue}}")],
                ),
                graph(
                    "Slowest hosts",
                    "99th percentile of their time in the kernel.",
                    SECONDS,
                    [(top(quantile(0.99, PROGRAM, "instance")), "{{instance}}")],
                ),
            ],
            "Processes": [
                graph("CPU", "The busiest agents.", CORES, [(_busiest(), "{{instance}}")]),
                graph("Memory", "Resident, the largest.", BYTES, [(_largest(), "{{instance}}")]),
            ],
        },
    )


def _hosts(state: str) -> str:
    return f'max(alcor_hosts{{state="{state}"}}) or vector(0)'


def _busiest() -> str:
    return top(f"sum by (instance) (rate(process_cpu_seconds_total[$__rate_interval]) {ONLY})")


def _largest() -> str:
    return top(f"process_resident_memory_bytes {ONLY}")
