"""What the machine says beside each figure: CPU time of processes, memory, and how much the hypervisor took away."""

import os
import time
from collections.abc import Mapping
from pathlib import Path


class Meter:
    """CPU time and steal between its making and `read`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._cpu = {name: cpu_us(pid) for name, pid in self._pids.items()}
        self._total, self._stolen = _machine()
        self._begun = time.perf_counter()

    def cpu(self) -> dict[str, int]:
        """µs of CPU time since the start, by process."""
        return {name: cpu_us(pid) - self._cpu[name] for name, pid in self._pids.items()}

    def steal(self) -> float:
        """Percent of all CPU time that the hypervisor gave to others."""
        total, stolen = _machine()
        return round(100 * (stolen - self._stolen) / max(1, total - self._total), 1)


def cpu_us(pid: int) -> int:
    """Time of all threads of a process on a CPU, µs; the scheduler's own count, exact where ticks are 10 ms."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) // 1000


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


def _machine() -> tuple[int, int]:
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ticks = [int(word) for word in words]
    return sum(ticks[:8]), ticks[7]
