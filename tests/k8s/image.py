"""The project's image as a file, made without Docker from what is installed here: the interpreter, this project with
what it needs to run, nats-server and the few commands that the chart calls. The Dockerfile makes the one for users.
"""

import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("setpriv", "sleep", "sh", "env")
PARTS = ("api", "planes", "agent", "observability", "cli")
ALCOR = "#!/usr/bin/python3\nfrom cli.main import main\nmain()\n"


def write(path: Path, name: str, command: Sequence[str] = ("alcor", "api")) -> None:
    """One layer, as `ctr images import` reads it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _fill(tar)
    data = layer.getvalue()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin", "PYTHONPATH=/opt/alcor"], "Cmd": list(command), "User": "10001:10001"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as image:
        for inside, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", data),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _put(image, inside, content, 0o644)


def _fill(tar: tarfile.TarFile) -> None:
    for directory in ("tmp", "run/netns", "var/lib/alcor", "etc", "proc", "sys", "dev"):
        info = tarfile.TarInfo(directory)
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
        tar.addfile(info)
    _put(tar, "usr/bin/alcor", ALCOR.encode(), 0o755)
    python = Path(sys.executable).resolve()
    libraries = _needed([python, *_found()])
    tar.add(python, "usr/bin/python3", recursive=False)
    tar.add(python, "usr/bin/python", recursive=False)
    for command in _found():
        tar.add(command.resolve(), f"usr/bin/{command.name}", recursive=False)
    standard = Path(sysconfig.get_path("stdlib"))
    tar.add(standard, str(standard).lstrip("/"), filter=_lean)
    for part in PARTS:
        tar.add(ROOT / part, f"opt/alcor/{part}", filter=_lean)
    site = Path(sysconfig.get_path("purelib"))
    for top, where in _packages():
        tar.add(where, f"opt/alcor/{top}", filter=_lean)
        libraries |= _needed(list(where.rglob("*.so*")) if where.is_dir() else [])
    libraries |= _needed(list((standard / "lib-dynload").glob("*.so")))
    nft = Path("/usr/lib/x86_64-linux-gnu/libnftables.so.1")
    libraries |= {nft} | _needed([nft])
    for library in sorted(libraries):
        if not library.is_relative_to(site):
            tar.add(library.resolve(), str(library).lstrip("/"), recursive=False)


def _found() -> list[Path]:
    places = [shutil.which(command) for command in COMMANDS]
    return [Path(sys.executable).with_name("nats-server"), *(Path(place) for place in places if place)]


def _packages() -> set[tuple[str, Path]]:
    """Top-level files of what the project requires, and of what that requires."""
    todo, seen, found = ["alcor-mesh"], set[str](), set[tuple[str, Path]]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        needed = [requirement for requirement in package.requires or [] if "extra ==" not in requirement]
        todo += [re.split(r"[ ;<>=!~\[(]", requirement)[0] for requirement in needed]
        for file in package.files or ():  # of the project itself: its metadata
            top = file.parts[0]
            if top != ".." and not top.startswith("__"):
                found.add((top, Path(str(package.locate_file(top)))))
    return found


def _needed(binaries: list[Path]) -> set[Path]:
    """Shared libraries by ldd, the loader included."""
    if not binaries:
        return set()
    done = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False)
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.M)}


def _lean(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    info.uid = info.gid = 0
    parts = info.name.split("/")
    return None if {"__pycache__", "test", "tests"} & set(parts[3:]) else info


def _put(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))
