"""TCP ports on loopback that nobody has now, for servers that tests start.

They lie below those that the kernel gives to outgoing connections and to who asks for any, and each worker of a run has
a share of its own: nobody takes a port between its choice and the start of its server.
"""

import itertools
import os
import random
import socket
from collections.abc import Sequence

_FIRST, _LAST = 10_000, 32_000
_SIZE = (_LAST - _FIRST) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_SHARE = _FIRST + _SIZE * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
#: other runs on this machine begin elsewhere
_turns = itertools.count(random.randrange(_SIZE))


def free_port(count: int = 1, addresses: Sequence[str] = ("127.0.0.1",)) -> int:
    """A port that nobody has now on any of `addresses`; with `count`, the first of so many that follow each other."""
    while True:
        ports = [_SHARE + next(_turns) % _SIZE for _ in range(count)]
        in_a_row = ports[-1] - ports[0] == count - 1
        if in_a_row and all(itertools.starmap(_is_free, itertools.product(addresses, ports))):
            return ports[0]


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True
