"""A real Prometheus that scrapes what a test says, every second; on loopback, gone when the block is left."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from tests.support.ports import free_port

#: seconds for its start, and for the first scrape of all targets
PATIENCE = 20.0

#: labels and value
Sample = tuple[dict[str, str], float]


class Prometheus:
    """`targets`: by job, host:port each. `rules`: files of rules, evaluated as often as is scraped."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]], rules: Sequence[Path] = ()) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._targets = targets
        self._log = folder / "prometheus.log"
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config(rules)))
        self._command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'series'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ]
        self._process: subprocess.Popen[bytes]

    def _config(self, rules: Sequence[Path]) -> dict[str, Any]:
        jobs = [{"job_name": job, "static_configs": [{"targets": list(all_)}]} for job, all_ in self._targets.items()]
        often = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        return {"global": often, "rule_files": [str(path) for path in rules], "scrape_configs": jobs}

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=20, trust_env=False)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(20)

    def _wait(self) -> None:
        wanted = {(job, target) for job, all_ in self._targets.items() for target in all_}
        deadline = time.monotonic() + PATIENCE
        while self._up() != wanted:
            assert time.monotonic() < deadline, f"{wanted - self._up()} not scraped: {self._log.read_text()}"
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.1)

    def _up(self) -> set[tuple[str, str]]:
        try:
            return {(labels["job"], labels["instance"]) for labels, _ in self.query("up == 1")}
        except httpx.HTTPError:  # it is not there yet, or is and says 503
            return set()

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; AssertionError with Prometheus' words when it refuses."""
        answer = self._http.get(path, params=parameters)
        if answer.is_server_error:
            answer.raise_for_status()
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body['error']}"
        return body["data"]

    def query(self, expr: str) -> list[Sample]:
        """An instant vector, now."""
        data = self.get("/query", query=expr)
        assert data["resultType"] == "vector", expr
        return [(sample["metric"], float(sample["value"][1])) for sample in data["result"]]
