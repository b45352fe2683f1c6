"""Dashboard: the API's processes. What is asked of them, how they answer, what waits, what they use."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from observability.dashboards.panels import (
    API,
    BYTES,
    CORES,
    COUNT,
    PER_SECOND,
    REQUESTS,
    SECONDS,
    SHARE,
    board,
    gained,
    gauge,
    graph,
    heat,
    number,
    percentiles,
    quantile,
    rate,
    rows,
    share,
    top,
)

HTTP = "alcor_http_request_duration_seconds"
FAILED = 'status=~"5.."'
REFUSED = 'status=~"4.."'
MEMORY = "process_resident_memory_bytes"
LAG = "alcor_loop_lag_seconds"


def dashboard() -> Dashboard:
    return board(
        "alcor-control",
        "Alcor Mesh / Control plane",
        "The processes of the API: requests, what control does for them, and what they use.",
        API,
        {
            "Now": [
                number("Processes", "Of the API, that answer.", COUNT, gauge("alcor_changes_open", how="count")),
                number("Requests", "Answered.", REQUESTS, rate(f"{HTTP}_count")),
                number("99 % within", "99th percentile of all requests.", SECONDS, quantile(0.99, HTTP), 1),
                number("Failed", "Share that was answered by 5xx.", SHARE, _answered(FAILED), 0.01),
                number("Refused", "Share that was answered by 4xx.", SHARE, _answered(REFUSED), 0.5),
                number("Loop lag", "99th percentile of the event loops.", SECONDS, quantile(0.99, LAG), 0.1),
            ],
            "Requests": [
                heat("Time to answer", "All requests; those that wait for ACTIVE (Prefer: wait) as well.", HTTP),
                graph("Percentiles", "Of all requests.", SECONDS, percentiles(HTTP)),
                graph(
                    "Busiest routes",
                    "Requests by method and route.",
                    REQUESTS,
                    [(top(rate(f"{HTTP}_count", "method, route")), "{{method}} {{route}}")],
                ),
                graph(
                    "Slowest routes",
                    "99th percentile by method and route.",
                    SECONDS,
                    [(top(quantile(0.99, HTTP, "method, route")), "{{method}} {{route}}")],
                ),
                graph(
                    "Answers", "By status.", REQUESTS, [(rate(f"{HTTP}_count", "status"), "{{status}}")], stacked=True
                ),
                graph(
                    "Queues",
                    "What waits inside; each is bounded.",
                    COUNT,
                    [
                        (gauge("alcor_queue_depth", "queue", how="max"), "{{queue}}"),
                        (gauge("alcor_waiting_requests", how="max"), "requests that wait for ACTIVE"),
                    ],
                ),
            ],
            "Control": [
                graph(
                    "Messages to hosts",
                    "Repeated: a host did not answer in time. Unsent: the bus was away, sent later.",
                    PER_SECOND,
                    [(rate(f"alcor_goals_{name}_total"), name) for name in ("published", "repeated", "unsent")],
                ),
                graph(
                    "Second looks",
                    "Changes looked at again after a while; undone are leftovers of what a crash cut short.",
                    PER_SECOND,
                    [(rate(f"alcor_echo_{name}_total"), name) for name in ("looked", "again", "undone", "given_up")],
                ),
                graph(
                    "From hosts",
                    "Acks stored, and messages that were not taken.",
                    PER_SECOND,
                    [
                        (rate("alcor_acks_stored_total"), "acks stored"),
                        *(
                            (rate(f"alcor_host_messages_{name}_total"), name)
                            for name in ("malformed", "refused", "put_off")
                        ),
                    ],
                ),
                graph(
                    "Daily check",
                    "What the check of the whole store found, and what of it was repaired.",
                    COUNT,
                    [(gained(f"alcor_check_{name}_total", "1d"), name) for name in ("runs", "found", "repaired")],
                ),
            ],
            "Processes": [
                graph(
                    "CPU",
                    "One process cannot use more than one core.",
                    CORES,
                    [(rate("process_cpu_seconds_total", "instance"), "{{instance}}")],
                ),
                graph(
                    "Memory", "Resident.", BYTES, [(gauge("process_resident_memory_bytes", "instance"), "{{instance}}")]
                ),
                graph(
                    "Event loops",
                    "How late each is, 99th percentile; what blocks it delays every request.",
                    SECONDS,
                    [(quantile(0.99, LAG, "instance"), "{{instance}}")],
                ),
                graph("Open files", "With sockets.", COUNT, [(gauge("process_open_fds", "instance"), "{{instance}}")]),
                graph(
                    "Spans",
                    "Traces on their way to the collector; what it does not take in time is dropped.",
                    PER_SECOND,
                    [(rate(f"alcor_spans_{name}_total"), name) for name in ("exported", "failed", "dropped")],
                ),
                rows(
                    "Versions", "What runs, and in how many processes.", COUNT, "count by (version) (alcor_build_info)"
                ),
            ],
        },
    )


def _answered(how: str) -> str:
    return share(rate(f"{HTTP}_count", where=how), rate(f"{HTTP}_count"))
