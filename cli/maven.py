"""Java programs from Maven: their jars, fetched once into the user's cache, outside the repository.

Used by the parts of a cloud on one machine that are Java: `cli.cassandra.node`, `cli.zipkin.server`.
"""

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

from cli.errors import Failure

#: tries of the download, which a registry may break off
TRIES = 3


def jars(pom: Path, what: str) -> Path:
    """The folder with what a pom names, and what that needs; filled once, whole or not at all. Raises Failure.

    The pom's folder names it in the cache; the pom's first property is its version.
    """
    for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(program) is None:
            raise Failure(f"{what} needs {program}: Debian's package {package}, which `make install` brings.")
    found = re.search(r"<[a-z]+\.version>(.+?)<", pom.read_text())
    assert found, f"{pom} names no version"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alcor" / pom.parent.name
    cache.mkdir(parents=True, exist_ok=True)
    lib = cache / found[1]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not lib.exists():
            _fetch(pom, what, cache / f"{found[1]}.part").rename(lib)
    return lib


def _fetch(pom: Path, what: str, part: Path) -> Path:
    maven = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
    for attempt in range(TRIES):
        shutil.rmtree(part, ignore_errors=True)
        done = subprocess.run(
            [*maven, f"-DoutputDirectory={part}", "-DincludeScope=runtime"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return part
        if attempt == TRIES - 1:
            raise Failure(f"Maven cannot fetch {what}: {' '.join(done.stdout.split())[-400:]}")
    raise AssertionError("the last try returns or raises")
