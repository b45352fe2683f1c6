"""A real Keystone on a free loopback port, with SQLite and an administrator. Used by the conformance tests.

scripts/tools keeps it in an environment of its own.
"""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Self

import httpx

from tests.e2e.support import eventually
from tests.support.ports import free_port

PASSWORD = "s3cret of the administrator"
_SERVE = """
import sys
port = int(sys.argv.pop())
from wsgiref.simple_server import make_server
from keystone.wsgi.api import application
with make_server("127.0.0.1", port, application) as server:
    server.serve_forever()
"""
_CONFIG = """
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet
[fernet_receipts]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
"""


class KeystoneServer:
    """One server with the project and user `admin`; gone when the block is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "keystone.conf"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/v3"

    def __enter__(self) -> Self:
        for name in ("fernet", "credential"):
            (self._folder / name).mkdir(mode=0o700, parents=True)
        self._config.write_text(_CONFIG.format(folder=self._folder))
        self._manage("db_sync")
        self._manage("fernet_setup", "--keystone-user", "root", "--keystone-group", "root")
        self._manage("bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-public-url", self.url)
        env = os.environ | {"OS_KEYSTONE_CONFIG_FILES": str(self._config)}
        env.pop("PYTHONPATH", None)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*_python(), "-c", _SERVE, str(self._port)], stdout=log, stderr=log, env=env
            )
        eventually(self._answers, 30, "Keystone answers")
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _manage(self, *arguments: str) -> None:
        program = str(_environment() / "bin/keystone-manage")
        command = [*_python(), program, "--config-file", str(self._config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        try:
            return httpx.get(self.url, trust_env=False).is_success
        except httpx.TransportError:
            return False


def _environment() -> Path:
    lock = Path(__file__).with_name("keystone.lock")
    tools = Path(os.environ.get("ALCOR_TOOLS") or Path.home() / ".cache/alcor/tools")
    found = tools / f"keystone-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    assert found.exists(), f"{found} is missing: scripts/install brings it"
    return found


def _python() -> tuple[str, ...]:
    return str(_environment() / "bin/python"), "-W", "ignore"
