"""TCP ports on loopback that nobody has now, for servers that tests start."""

import contextlib
import itertools
import socket
from collections.abc import Sequence


def free_port(count: int = 1, addresses: Sequence[str] = ("127.0.0.1",)) -> int:
    """A port that nobody has now on any of `addresses`; with `count`, the first of so many that follow each other."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = 0
            for number, address in itertools.product(range(count), addresses):
                probe = stack.enter_context(socket.socket())
                probe.bind((address, first + number if first else 0))
                first = first or int(probe.getsockname()[1])
            return first
