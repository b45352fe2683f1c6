"""What `ALCOR_OTLP` names: a collector's base address, the whole address of its traces or metrics, or a Zipkin.

Used by whoever sends spans or metrics. Pure, and light: most agents ask it only to learn that nothing is sent.
"""

#: the path of a Zipkin address, which tells it from an OTLP one
ZIPKIN = "/api/v2/spans"


def is_zipkin(address: str) -> bool:
    return address.rstrip("/").endswith(ZIPKIN)


def traces_address(address: str) -> str:
    """Where an OTLP/HTTP collector takes traces."""
    return _base(address) + "/v1/traces"


def metrics_address(address: str) -> str:
    """Where a collector takes metrics; empty: nowhere, as without a collector and as Zipkin."""
    return _base(address) + "/v1/metrics" if address and not is_zipkin(address) else ""


def _base(address: str) -> str:
    return address.rstrip("/").removesuffix("/v1/traces").removesuffix("/v1/metrics")
