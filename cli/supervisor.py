"""Keeps the processes of a cloud alive: starts each, starts it again when it dies, ends all of them.

Used by `cli.up`. No child outlives this process: the kernel kills them when it dies, however it dies. Output of a
child goes to its own file, so that a slow reader here never holds it up; files are cut at a bound.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

FIRST_DELAY = 0.2
LAST_DELAY = 5.0
STEADY = 10.0  # who lived this long starts with the first delay again
PATIENCE = 5.0
LOG_BYTES = 32 << 20
TRIM_EVERY = 10.0

_CLONE_NEWNET = 0x4000_0000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Part(Struct, frozen=True):
    """One process. `namespace`: the network namespace that it runs in; empty: ours. Later `stage`s end earlier."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    namespace: str = ""
    stage: int = 0


class Supervisor:
    """One keeper task per part. `tell` gets a sentence whenever a part died; `back` is called when it runs again."""

    def __init__(self, tell: Callable[[str], None], back: Callable[[], None] = lambda: None) -> None:
        self._tell = tell
        self._back = back
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._stages: dict[str, int] = {}
        self._trimmer: asyncio.Task[None] | None = None
        self._logs: set[Path] = set()

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._running.items()}

    async def start(self, part: Part) -> None:
        """Start a part and keep it alive from now on. Raises OSError when it cannot be started at all."""
        process = await self._spawn(part)
        self._stages[part.name] = part.stage
        self._keepers[part.name] = asyncio.create_task(self._keep(part, process), name=f"keep {part.name}")
        self._logs.add(part.log)
        if self._trimmer is None:
            self._trimmer = asyncio.create_task(self._trim(), name="trim logs")

    async def stop(self) -> None:
        """End all parts, stage by stage from the highest; returns when none is left."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        for stage in sorted(set(self._stages.values()), reverse=True):
            names = [name for name in self._running if self._stages[name] == stage]
            await asyncio.gather(*(_end(self._running.pop(name)) for name in names))
        if self._trimmer is not None:
            self._trimmer.cancel()
            await asyncio.gather(self._trimmer, return_exceptions=True)

    async def _keep(self, part: Part, process: asyncio.subprocess.Process) -> None:
        delay = FIRST_DELAY
        while True:
            begun = time.monotonic()
            code = await process.wait()
            if time.monotonic() - begun >= STEADY:
                delay = FIRST_DELAY
            self._running.pop(part.name, None)
            self._tell(f"{part.name} {_died(code)}; starting it again in {delay:.1f} s (log: {part.log})")
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_DELAY)
                try:
                    process = await self._spawn(part)
                    self._back()
                    break
                except OSError as error:
                    self._tell(f"{part.name} cannot be started: {error}")

    async def _spawn(self, part: Part) -> asyncio.subprocess.Process:
        parent = os.getpid()
        with contextlib.ExitStack() as stack:
            namespace = os.open(f"/run/netns/{part.namespace}", os.O_RDONLY) if part.namespace else -1
            if namespace >= 0:
                stack.callback(os.close, namespace)
            log = stack.enter_context(part.log.open("ab"))
            process = await asyncio.create_subprocess_exec(
                *part.argv,
                env=dict(part.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C reaches us alone; we end them in order
                preexec_fn=lambda: _child(parent, namespace),
            )
        self._running[part.name] = process
        return process

    async def _trim(self) -> None:
        """Copy a log that has grown over its bound aside and empty it; children append, so nothing else changes."""
        while True:
            await asyncio.sleep(TRIM_EVERY)
            for log in self._logs:
                if log.stat().st_size > LOG_BYTES:
                    shutil.copyfile(log, log.with_suffix(".1.log"))
                    os.truncate(log, 0)


def _child(parent: int, namespace: int) -> None:
    """Between fork and exec: die with the parent, enter the namespace. Only system calls here."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        os._exit(1)
    if namespace >= 0 and _libc.setns(namespace, _CLONE_NEWNET) != 0:
        os.write(2, b"cannot enter the network namespace\n")
        os._exit(126)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            process.kill()
            await process.wait()


def _died(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
