"""Whole clouds for end-to-end tests: `alcor up` as its users run it, as a process of its own."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from cli.layout import Layout
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 40.0


def alcor(*arguments: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    command = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(env),
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALCOR_")}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def eventually(fact: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """Ask until `fact` gives something true, and return that; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or fact}"
        time.sleep(0.05)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def remains(data: Path) -> list[str]:
    """Namespaces and links that a cloud has left behind."""
    layout = Layout(str(data))
    namespaces = Path("/run/netns")
    left = [path.name for path in namespaces.iterdir() if layout.is_ours(path.name)] if namespaces.exists() else []
    return left + [link for link in os.listdir("/sys/class/net") if link.startswith(f"am{layout.tag}")]


class Up:
    """A cloud that `alcor up` runs; gone when the block is left."""

    def __init__(
        self,
        data: Path,
        hosts: int = 2,
        arguments: Sequence[str] = (),
        patience: float = START_SECONDS,
        **env: str,
    ) -> None:
        self.data = data
        self._patience = patience
        self.port = free_port(8)  # instances have those that follow
        command = [sys.executable, "-m", "cli.main", "up", "--json", "--hosts", str(hosts), "--data", str(data)]
        command += ["--api-port", str(self.port), *arguments]
        self._errors = (data.parent / f"{data.name}.err").open("w+")
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(env),
        )
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self.ready = json.loads(self._first_line())
        except BaseException:
            self.__exit__()
            raise
        return self

    def _first_line(self) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + self._patience
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"not ready in {self._patience} s: {self.said()}"
            part = os.read(self.process.stdout.fileno(), 65536)
            assert part, f"ended with {self.process.wait()}: {self.said()}"
            line += part
        return line

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()

    @property
    def api(self) -> str:
        return str(self.ready["api"])

    @property
    def env(self) -> dict[str, str]:
        return {"ALCOR_API": self.api, "ALCOR_DATA": str(self.data)}

    def said(self) -> str:
        self._errors.flush()
        return (self.data.parent / f"{self.data.name}.err").read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def client(self, project: str = "demo") -> httpx.Client:
        headers = {"X-Project-Id": project, "X-Roles": "admin"}
        return httpx.Client(base_url=self.api, headers=headers, timeout=20, trust_env=False)

    def alcor(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return alcor(*arguments, timeout=timeout, **self.env)

    def done(self, *arguments: str) -> Any:
        """A command that must succeed, with its answer."""
        finished = self.alcor(*arguments, "--json")
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)

    def ping(self, name: str, address: str, *more: str) -> subprocess.CompletedProcess[str]:
        return self.alcor("vm", "exec", name, "--", "ping", "-n", "-q", "-W1", *(more or ("-c1",)), address)

    def network(self, name: str, cidr: str, project: str = "demo") -> str:
        """A network with one subnet; its id."""
        with self.client(project) as client:
            network = (
                client.post("/v2.0/networks", json={"network": {"name": name}}).raise_for_status().json()["network"]
            )
            subnet = {"network_id": network["id"], "cidr": cidr, "ip_version": 4}
            client.post("/v2.0/subnets", json={"subnet": subnet}).raise_for_status()
        return str(network["id"])
