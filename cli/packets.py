"""Real packets from inside instances: pings, connections, and servers that say who they are. Used by the demo.

A socket belongs to the namespace in which it was made, wherever it is used afterwards; so nothing needs to run inside.
"""

import contextlib
import re
import socket
import subprocess
import threading

from planes.data.linux import namespaces

_TIME = re.compile(r"= [0-9.]+/([0-9.]+)/")


def ping(namespace: str, address: str, seconds: float = 1.0) -> float | None:
    """One echo request; the time it took in ms, or None when no answer came."""
    command = [
        "nsenter",
        f"--net={namespaces.DIRECTORY}/{namespace}",
        "ping",
        "-n",
        "-q",
        "-c1",
        f"-W{seconds:g}",
        address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    found = _TIME.search(done.stdout)
    return float(found[1]) if done.returncode == 0 and found else None


def converse(namespace: str, address: str, port: int, seconds: float = 1.0) -> str | None:
    """Connect, and read what the other end says; None when it cannot be reached."""
    with socket_in(namespace) as client:
        client.settimeout(seconds)
        try:
            client.connect((address, port))
            return client.recv(256).decode()
        except OSError:
            return None


def socket_in(namespace: str) -> socket.socket:
    """A TCP socket that lives in a namespace."""
    with namespaces.entered(namespace):
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


class Greeter:
    """A server inside an instance: tells everybody who connects its own name, and counts them."""

    def __init__(self, namespace: str, port: int, name: str) -> None:
        self.name = name
        self.heard = 0
        self._socket = socket_in(namespace)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("0.0.0.0", port))
        self._socket.listen(16)
        self._thread = threading.Thread(target=self._serve, name=f"greeter {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()
        self._thread.join(timeout=2)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self.heard += 1
                with client, contextlib.suppress(OSError):
                    client.sendall(self.name.encode())
