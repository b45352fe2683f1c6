"""Real packets from inside instances: pings, connections, and servers that say who they are. Used by the demo.

A socket belongs to the namespace in which it was made, wherever it is used afterwards; so nothing needs to run inside.
"""

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator

from cli.underlay import NETNS

_CLONE_NEWNET = 0x4000_0000
_TIME = re.compile(r"= [0-9.]+/([0-9.]+)/")
_libc = ctypes.CDLL(None, use_errno=True)


def ping(namespace: str, address: str, seconds: float = 1.0) -> float | None:
    """One echo request; the time it took in ms, or None when no answer came."""
    command = ["nsenter", f"--net={NETNS / namespace}", "ping", "-n", "-q", "-c1", f"-W{seconds:g}", address]
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
    with _inside(namespace):
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


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread, and no other, is in the namespace for the length of the block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(NETNS / namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
