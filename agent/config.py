"""What an agent is told; made by the command line from the settings, handed to `agent.main`."""

from msgspec import Struct


class AgentConfig(Struct, frozen=True, kw_only=True):
    """`vtep`: this host's underlay address as text. Empty `machine`: the machine's own id. Times are seconds."""

    host: str
    nats: str
    vtep: str
    cloud: str = "alcor"
    state_dir: str = "/run/alcor"
    cell: str = "default"
    credentials: str = ""
    prefix: str = "alcor"
    udp_port: int = 4789
    machine: str = ""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0  # 0: nowhere
    beat_every: float = 3.0
    sync_every: float = 600.0
    tombstone_life: float = 600.0
    linger: float = 0.0
    otlp: str = ""  # where spans and metrics go; empty: nowhere
    trace_ratio: float = 0.01
