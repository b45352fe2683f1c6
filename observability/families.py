"""Every family of metrics, by name: the contract that `docs/metrics.md` prints, with dashboards and alerts built on it.

Read by the modules that fill them. A test compares this, the document and what running parts export.
"""

from observability.metrics import Family


def _counter(name: str, help: str, *labels: str) -> Family:
    return Family(name, "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Family:
    return Family(name, "gauge", help, labels)


def _histogram(name: str, help: str, *labels: str) -> Family:
    return Family(name, "histogram", help, labels)


# -- API ---------------------------------------------------------------------------------------------------------------

HTTP = _histogram("alcor_http_request_duration_seconds", "Time to answer a request.", "method", "route", "status")
CHANGE = _histogram(
    "alcor_change_duration_seconds", "From a request to the last host's stored ack.", "resource", "status"
)
STAGE = _histogram("alcor_stage_duration_seconds", "Time that changes spent in a stage; total is the whole.", "stage")
CHANGES_OPEN = _gauge("alcor_changes_open", "Changes whose hosts have not all answered.")
HOST_ACK = _histogram("alcor_host_ack_duration_seconds", "From publishing a port to hearing its host's ack.")
HOST_ACK_LAG = _gauge(
    "alcor_host_ack_lag_seconds", "The worst ack of the last minutes, of the slowest hosts only.", "host"
)
HOSTS = _gauge("alcor_hosts", "Hosts by state, as this instance sees them.", "state")
HOSTS_IN_SYNC = _gauge("alcor_hosts_in_sync", "Hosts alive whose kernel has all that was received.")
PORTS = _gauge("alcor_ports", "Ports on hosts by state, as the hosts' last beats tell.", "state")
WAITING = _gauge("alcor_waiting_requests", "Requests held by Prefer: wait.")
QUEUE = _gauge("alcor_queue_depth", "What waits.", "queue")
STORE = _histogram("alcor_store_operation_duration_seconds", "Calls of the store.", "operation", "outcome")
STORE_ROWS = _counter("alcor_store_written_rows_total", "Rows handed to the store in commits and writes.")

#: counters of the control plane, by the name under which its parts count
CONTROL = {
    "conflicts": _counter("alcor_store_conflicts_total", "Conditional batches that lost a race."),
    "published": _counter("alcor_goals_published_total", "Goal messages published."),
    "repeated": _counter("alcor_goals_repeated_total", "Goal messages sent again, for want of an answer."),
    "unsent": _counter("alcor_goals_unsent_total", "Goal messages that could not be sent."),
    "acks": _counter("alcor_acks_stored_total", "Acks of ports stored."),
    "malformed": _counter("alcor_host_messages_malformed_total", "Messages of hosts that could not be read."),
    "refused": _counter("alcor_host_messages_refused_total", "Messages of hosts that were refused, or failed."),
    "put_off": _counter("alcor_host_messages_put_off_total", "Requests of hosts put off: too much was in hand."),
    "events": _counter("alcor_events_total", "Events and finished changes that integrators were told."),
    "events_unsent": _counter("alcor_events_unsent_total", "Events that could not be sent."),
    "watch_malformed": _counter("alcor_watch_malformed_total", "Messages on event subjects that could not be read."),
    "changes_dropped": _counter("alcor_changes_dropped_total", "Finished changes whose trace was not kept."),
    "echoed": _counter("alcor_echo_looked_total", "Feed rows looked at again."),
    "undone": _counter("alcor_echo_undone_total", "Half-done operations undone."),
    "again": _counter("alcor_echo_again_total", "Feed rows put off to a later look."),
    "given_up": _counter("alcor_echo_given_up_total", "Feed rows given up after many looks."),
    "checks": _counter("alcor_check_runs_total", "Walks of the check through the store."),
    "check_found": _counter("alcor_check_found_total", "What the check found wrong."),
    "check_repaired": _counter("alcor_check_repaired_total", "What the check repaired."),
}

API = (
    HTTP, CHANGE, STAGE, CHANGES_OPEN, HOST_ACK, HOST_ACK_LAG, HOSTS, HOSTS_IN_SYNC, PORTS, WAITING, QUEUE, STORE,
    STORE_ROWS, *CONTROL.values(),
)  # fmt: skip

# -- agent -------------------------------------------------------------------------------------------------------------

PROGRAM = _histogram("alcor_agent_program_duration_seconds", "Programs carried out by the driver.", "kind")
PROGRAMMED = _counter("alcor_agent_programmed_total", "Objects put into or out of the kernel.", "kind", "outcome")
KERNEL = _counter("alcor_agent_kernel_transactions_total", "Transactions with the kernel.", "kind", "outcome")
SYNC = _histogram("alcor_agent_sync_duration_seconds", "From telling control the digests to its answer.")
REQUEST = _histogram("alcor_agent_request_duration_seconds", "Requests to control.", "request", "outcome")
IN_SYNC = _gauge("alcor_agent_in_sync", "Everything was received and the kernel has it.")
REGISTERED = _gauge("alcor_agent_registered", "Control knows this life of the agent.")
ONLINE = _gauge("alcor_agent_bus_connected", "NATS is there.")
OBJECTS = _gauge("alcor_agent_objects", "Goal state held, by kind.", "kind")
AGENT_PORTS = _gauge("alcor_agent_ports", "This host's ports by state.", "state")
AGENT_QUEUE = _gauge("alcor_agent_queue_depth", "What waits.", "queue")
DRIFT = _counter("alcor_agent_drift_found_total", "Objects that somebody else damaged in the kernel.", "kind")
REPAIR_SECONDS = _counter("alcor_agent_drift_repair_seconds_total", "Time from finding damage to its repair.")
DROPPED = _counter("alcor_agent_dropped_packets_total", "Packets dropped on this host.", "reason")
BUGS = _counter("alcor_agent_bugs_total", "Failures that nobody foresaw.")

#: counters of the agent's core, by the name under which it counts
CORE = {
    "repaired": _counter("alcor_agent_drift_repaired_total", "Damaged objects put again."),
    "received": _counter("alcor_agent_messages_total", "Goal messages and beacons received."),
    "ignored": _counter("alcor_agent_objects_ignored_total", "Objects that were no news, or of another life."),
    "refused": _counter("alcor_agent_objects_refused_total", "Objects for which there was no room."),
    "pulls": _counter("alcor_agent_pulls_total", "Snapshots asked for."),
    "gaps": _counter("alcor_agent_gaps_total", "Gaps found in what was received."),
    "syncs": _counter("alcor_agent_syncs_total", "Comparisons with control."),
    "beats_lost": _counter("alcor_agent_beats_lost_total", "Beats that nobody answered."),
}
UNREADABLE = _counter("alcor_agent_messages_unreadable_total", "Messages and pages that could not be read.")

AGENT = (
    PROGRAM, PROGRAMMED, KERNEL, SYNC, REQUEST, IN_SYNC, REGISTERED, ONLINE, OBJECTS, AGENT_PORTS, AGENT_QUEUE, DRIFT,
    REPAIR_SECONDS, DROPPED, BUGS, *CORE.values(), UNREADABLE,
)  # fmt: skip

# -- both --------------------------------------------------------------------------------------------------------------

BUS_CONNECTED = _gauge("alcor_bus_connected", "The connection to NATS stands.")
BUS_MESSAGES = _counter("alcor_bus_messages_total", "Messages sent and received.", "direction")
BUS_RECONNECTS = _counter("alcor_bus_reconnects_total", "Connections to NATS that broke and came back.")
BUS_SLOW = _counter("alcor_bus_slow_total", "Times that NATS threw messages away.")
BUS_RTT = _histogram("alcor_bus_rtt_seconds", "Ping to the NATS server and back.")
EXPORTS = _counter("alcor_metrics_exports_total", "Exports of metrics by OTLP.", "outcome")
LOOP_LAG = _histogram("alcor_loop_lag_seconds", "How late the event loop runs what is due.")
BUILD = _gauge("alcor_build_info", "The version that runs.", "version")
CPU = _counter("process_cpu_seconds_total", "CPU of this process.")
MEMORY = _gauge("process_resident_memory_bytes", "Memory of this process.")
FILES = _gauge("process_open_fds", "Open files of this process.")
STARTED = _gauge("process_start_time_seconds", "When this process began, Unix time.")

#: counters of the span exporter, by its names
SPANS = {
    "spans_exported": _counter("alcor_spans_exported_total", "Spans that the collector took."),
    "spans_failed": _counter("alcor_spans_failed_total", "Spans that the collector did not take."),
    "spans_dropped": _counter("alcor_spans_dropped_total", "Spans that found the queue full."),
}

BOTH = (
    BUS_CONNECTED, BUS_MESSAGES, BUS_RECONNECTS, BUS_SLOW, BUS_RTT, *SPANS.values(), EXPORTS, LOOP_LAG, BUILD, CPU,
    MEMORY, FILES, STARTED,
)  # fmt: skip
