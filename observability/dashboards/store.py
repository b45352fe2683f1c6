"""Dashboard: what the parts stand on. The store's operations and the bus between them."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from observability.dashboards.panels import (
    API,
    COUNT,
    PER_SECOND,
    SECONDS,
    SHARE,
    board,
    gauge,
    graph,
    heat,
    lacking,
    number,
    percentiles,
    quantile,
    rate,
    share,
)

STORE = "alcor_store_operation_duration_seconds"
RTT = "alcor_bus_rtt_seconds"
#: all of them: `$instance` chooses among processes of the API here
AGENTS_OFF = "count(alcor_agent_bus_connected == 0) or vector(0)"
MESSAGES = "alcor_bus_messages_total"
FAILED = 'outcome=~"error|unknown"'


def dashboard() -> Dashboard:
    return board(
        "alcor-store",
        "Alcor Mesh / Store and mesh",
        "The store and NATS, as the API's processes measure them; agents' connections to NATS.",
        API,
        {
            "Now": [
                number("Operations", "Of the store.", PER_SECOND, rate(f"{STORE}_count")),
                number("99 % take", "Of the store's operations.", SECONDS, quantile(0.99, STORE), 0.25),
                number("Failed", "Share of the store's operations.", SHARE, _failed(), 0.001),
                number("Bus away", "API processes without NATS.", COUNT, lacking("alcor_bus_connected"), 1),
                number("Round trip", "To NATS, 99th percentile.", SECONDS, quantile(0.99, RTT), 0.1),
                number("Agents off", "Agents without NATS.", COUNT, AGENTS_OFF, 1),
            ],
            "Store": [
                heat("All operations", "Time that the store took.", STORE),
                graph("Percentiles", "Of all operations.", SECONDS, percentiles(STORE)),
                graph(
                    "Operations by kind",
                    "What is asked of it.",
                    PER_SECOND,
                    [(rate(f"{STORE}_count", "operation"), "{{operation}}")],
                    stacked=True,
                ),
                graph(
                    "99th percentile by operation",
                    "Commits wait for the disk, or for Paxos.",
                    SECONDS,
                    [(quantile(0.99, STORE, "operation"), "{{operation}}")],
                ),
                graph(
                    "Outcomes",
                    "refused: a condition did not hold, which is tried again. unknown and error became a 503.",
                    PER_SECOND,
                    [(rate(f"{STORE}_count", "outcome"), "{{outcome}}")],
                    stacked=True,
                ),
                graph(
                    "Writes",
                    "Rows handed to the store, and conditional batches that lost a race and were made anew.",
                    PER_SECOND,
                    [
                        (rate("alcor_store_written_rows_total"), "rows"),
                        (rate("alcor_store_conflicts_total"), "conflicts"),
                    ],
                ),
            ],
            "Mesh": [
                graph(
                    "Messages",
                    "Of the API's processes.",
                    PER_SECOND,
                    [(rate(MESSAGES, "direction"), "{{direction}}")],
                ),
                graph(
                    "Round trips",
                    "From each process to NATS and back, 99th percentile.",
                    SECONDS,
                    [(quantile(0.99, RTT, "instance"), "{{instance}}")],
                ),
                graph(
                    "Trouble",
                    "Connections that broke and came back, and times that NATS threw messages away.",
                    PER_SECOND,
                    [(rate(f"alcor_bus_{name}_total"), name) for name in ("reconnects", "slow")],
                ),
                graph(
                    "Connections",
                    "Share of agents and of API processes that are connected to NATS.",
                    SHARE,
                    [("avg(alcor_agent_bus_connected)", "agents"), (gauge("alcor_bus_connected", how="avg"), "API")],
                ),
            ],
        },
    )


def _failed() -> str:
    return share(rate(f"{STORE}_count", where=FAILED), rate(f"{STORE}_count"))
