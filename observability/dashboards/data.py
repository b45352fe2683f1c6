"""Dashboard: the hosts' kernels. Transactions, how long they take, what packets are dropped and why, ports."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from observability.dashboards.panels import (
    AGENTS,
    COUNT,
    PACKETS,
    PER_SECOND,
    SECONDS,
    board,
    gauge,
    graph,
    heat,
    mean,
    number,
    quantile,
    rate,
    rows,
    top,
)

PROGRAM = "alcor_agent_program_duration_seconds"
TRANSACTIONS = "alcor_agent_kernel_transactions_total"
DROPPED = "alcor_agent_dropped_packets_total"
SPOOFED = 'reason=~"spoofed_.*"'
FAILED = 'outcome!="ok"'


def dashboard() -> Dashboard:
    return board(
        "alcor-data",
        "Alcor Mesh / Data plane",
        "What agents do in their hosts' kernels, and what those kernels drop.",
        AGENTS,
        {
            "Now": [
                number("Transactions", "In all kernels.", PER_SECOND, rate(TRANSACTIONS)),
                number("Refused", "By a kernel.", PER_SECOND, f"{rate(TRANSACTIONS, where=FAILED)} or vector(0)", 0.01),
                number("99 % take", "A kernel's part of a change.", SECONDS, quantile(0.99, PROGRAM), 0.1),
                number("Dropped", "Packets, for whatever reason.", PACKETS, rate(DROPPED)),
                number("Spoofed", "Packets with a source not their own.", PACKETS, rate(DROPPED, where=SPOOFED), 1),
                number("Ports", "In kernels.", COUNT, 'max(alcor_ports{state="active"})'),
            ],
            "Kernel": [
                heat("Programming", "Time that a batch of changes took in a kernel.", PROGRAM),
                graph(
                    "Mean time by kind",
                    "Of a batch in the kernel.",
                    SECONDS,
                    [(mean(PROGRAM, "kind"), "{{kind}}")],
                ),
                graph(
                    "Transactions by kind",
                    "Batches of netlink messages.",
                    PER_SECOND,
                    [(rate(TRANSACTIONS, "kind"), "{{kind}}")],
                    stacked=True,
                ),
                graph(
                    "Transactions by outcome",
                    "What a kernel refuses is tried again, and told to control.",
                    PER_SECOND,
                    [(rate(TRANSACTIONS, "outcome"), "{{outcome}}")],
                    stacked=True,
                ),
            ],
            "Packets": [
                graph(
                    "Dropped by reason",
                    "denied_*: a group does not allow it. spoofed_*: an instance used an address that is not its own.",
                    PACKETS,
                    [(rate(DROPPED, "reason"), "{{reason}}")],
                    stacked=True,
                ),
                rows("Hosts that drop most", "Packets per second, now.", PACKETS, top(rate(DROPPED, "instance"))),
            ],
            "Objects": [
                graph(
                    "Ports by state",
                    "As the hosts tell control: build is on its way, error was refused by a kernel.",
                    COUNT,
                    [("max by (state) (alcor_ports)", "{{state}}")],
                    stacked=True,
                ),
                graph(
                    "Objects in kernels",
                    "Held by all agents, by kind.",
                    COUNT,
                    [(gauge("alcor_agent_objects", "kind"), "{{kind}}")],
                ),
            ],
        },
    )
