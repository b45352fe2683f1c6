"""Dashboard: how long changes take from the request to the last host's kernel, where the time goes, who is slow."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from observability.dashboards.panels import (
    API,
    CHANGES,
    COUNT,
    SECONDS,
    SHARE,
    board,
    gauge,
    graph,
    heat,
    mean,
    number,
    percentiles,
    quantile,
    rate,
    rows,
    share,
    top,
)

CHANGE = "alcor_change_duration_seconds"
STAGE = "alcor_stage_duration_seconds"
ACK = "alcor_host_ack_duration_seconds"
LAG = "alcor_host_ack_lag_seconds"
FAILED = 'status="ERROR"'
#: what a change goes through one after the other; total is their end, active its last step
STEPS = 'stage!="total"'


def dashboard() -> Dashboard:
    return board(
        "alcor-provisioning",
        "Alcor Mesh / Provisioning latency",
        "Every change, from the request until the last host had it in its kernel and said so.",
        API,
        {
            "Now": [
                number("Half take", "Median from request to last ack.", SECONDS, quantile(0.5, CHANGE)),
                number("99 % take", "99th percentile from request to last ack.", SECONDS, quantile(0.99, CHANGE), 1),
                number("Changes", "Changes that were finished.", CHANGES, rate(f"{CHANGE}_count")),
                number("Failed", "Share that ended in ERROR.", SHARE, _failed(), 0.01),
                number("Open", "Changes that some host has not answered yet.", COUNT, gauge("alcor_changes_open")),
                number("Slowest host", "Longest lag of a host's acks.", SECONDS, gauge(LAG, how="max"), 5),
            ],
            "Request to last ack": [
                heat("All changes", "One column per interval. A dot is one change and leads to its trace.", CHANGE),
                graph("Percentiles", "Of all changes; a dot leads to its trace.", SECONDS, percentiles(CHANGE)),
                graph(
                    "99th percentile by resource",
                    "Which kind of change is slow. Those that concern many hosts take longer.",
                    SECONDS,
                    [(quantile(0.99, CHANGE, "resource"), "{{resource}}")],
                ),
                graph(
                    "Changes by outcome",
                    "Finished changes: ACTIVE when every host had it, ERROR when one could not.",
                    CHANGES,
                    [(rate(f"{CHANGE}_count", "status"), "{{status}}")],
                    stacked=True,
                ),
            ],
            "Where the time goes": [
                graph(
                    "Mean time by stage",
                    "What an average change spent in each stage; hosts work side by side, so stages may overlap.",
                    SECONDS,
                    [(mean(STAGE, "stage", STEPS), "{{stage}}")],
                    stacked=True,
                ),
                graph(
                    "99th percentile by stage",
                    "accept, validate, claim, write and publish are the API's; receive is the bus; program the "
                    "agent's kernel; ack the way back; active the stored status.",
                    SECONDS,
                    [(quantile(0.99, STAGE, "stage"), "{{stage}}")],
                ),
            ],
            "Hosts": [
                graph("Host acks", "From publishing to a host's answer.", SECONDS, percentiles(ACK)),
                rows("Slowest hosts", "Lag of their acks, now.", SECONDS, top(gauge(LAG, "host", how="max"))),
                heat("All acks", "From publishing to a host's answer.", ACK),
                graph(
                    "Lag of the slowest hosts",
                    "How late the acks of a host are.",
                    SECONDS,
                    [(top(gauge(LAG, "host", how="max")), "{{host}}")],
                ),
            ],
        },
    )


def _failed() -> str:
    return share(rate(f"{CHANGE}_count", where=FAILED), rate(f"{CHANGE}_count"))
