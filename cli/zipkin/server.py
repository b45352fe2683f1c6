"""A real Zipkin on this machine, to look at traces with: its jar by Maven, the command that runs it, in memory only.

Used by `cli.up` for `--zipkin`. Must never listen on anything but the address that it was given.
"""

import http.client
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from cli.maven import jars
from observability.collector import ZIPKIN

PORT = 9411
#: spans that it keeps; the oldest go
SPANS = 200_000


class Zipkin(Struct, frozen=True):
    """One server."""

    address: str
    port: int

    @property
    def url(self) -> str:
        """Its web page, and its API under /api/v2."""
        return f"http://{self.address}:{self.port}"

    @property
    def spans(self) -> str:
        """For ALCOR_OTLP."""
        return self.url + ZIPKIN

    def command(self) -> Sequence[str]:
        """What runs it. Raises Failure."""
        jar = next(jars(Path(__file__).with_name("pom.xml"), "Zipkin").glob("zipkin-server-*.jar"))
        return (
            "nice", "java", "-Xms64m", "-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar", str(jar),
            f"--armeria.ports[0].ip={self.address}", f"--armeria.ports[0].port={self.port}",
            "--armeria.ports[0].protocols=http", f"--zipkin.storage.mem.max-spans={SPANS}",
        )  # fmt: skip

    def answers(self) -> bool:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
