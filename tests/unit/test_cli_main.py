"""The command line's manners: help with an example, exit codes, one sentence on stderr, a fast start."""

import json
import subprocess
import sys
import time

import pytest

from cli.main import cli
from cli.output import table

ROOT = __file__.rsplit("/tests/", 1)[0]


def alcor(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"PATH": "/usr/bin", **env}, timeout=30, check=False
    )


def commands(group: object = cli, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in getattr(group, "commands", {}).items():
        found += [(*prefix, name), *commands(command, (*prefix, name))]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: tuple[str, ...]) -> None:
    done = alcor(*command, "--help")
    assert done.returncode == 0
    assert "Example:\n    " in done.stdout
    assert "alcor " in done.stdout.split("Example:")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("colour",),
        ("up", "--hosts", "0"),
        ("up", "--hosts", "many"),
        ("vm", "create", "x"),
        ("vm", "create", "x", "--network", "n"),
        ("trace", "a", "b"),
        ("trace", "a", "--failed"),
        ("trace", "--limit", "0"),
        ("up", "--zipkin", "--otlp", "http://127.0.0.1:4318"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_one_line(arguments: tuple[str, ...]) -> None:
    done = alcor(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("alcor: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (("config",), {"ALCOR_API_PORT": "no"}, "api_port"),
        (("config",), {"ALCOR_CONFIG": "/no/such.toml"}, "/no/such.toml, which cannot be read"),
        (("trace", "x"), {"ALCOR_API": "http://127.0.0.1:1"}, "http://127.0.0.1:1 does not answer"),
        (("vm", "list", "--data", "/nonexistent/d"), {}, "No cloud is running in /nonexistent/d"),
        (("vm", "exec", "a/b", "--", "true"), {}, "no name for an instance"),
        (("vm", "exec", "nobody", "--data", "/nonexistent/d", "--", "true"), {}, "no instance 'nobody'"),
        (("agent", "--host", "h1"), {}, "ALCOR_VTEP is not set"),
        (("api",), {"ALCOR_STORE": "cassandra://h/Not-One"}, "not a keyspace"),
        (("api",), {"ALCOR_STORE": "cassandra://u:secret@127.0.0.1:1/k"}, "Cassandra at 127.0.0.1"),
        (("api",), {"ALCOR_AUTH": "keystone"}, "auth_url must be Keystone's URL"),
        (("api",), {"ALCOR_AUTH": "embedded"}, "auth_users must name the file of users"),
        (("user", "add", "bob", "--role", "owner:red"), {}, "not ROLE:PROJECT"),
        (("user", "remove", "bob", "--data", "/nonexistent/d"), {}, "cannot be read"),
        (("store", "init", "--store", "mysql://x"), {}, "it must be sqlite:///path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_failure_is_1_and_one_sentence(arguments: tuple[str, ...], env: dict[str, str], words: str) -> None:
    done = alcor(*arguments, **env)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_config_for_machines_and_people() -> None:
    env = {"ALCOR_NATS": "nats://u:pw@h", "ALCOR_NO_SUCH": "1"}
    done = alcor("config", "--json", **env)
    rows = {row["variable"]: row for row in json.loads(done.stdout)}
    assert rows["ALCOR_NATS"]["value"] == "nats://u:***@h"
    assert rows["ALCOR_NATS"]["source"] == "ALCOR_NATS"
    assert "ALCOR_NO_SUCH" in done.stderr
    text = alcor("config", **env).stdout
    assert "pw" not in text
    assert text.splitlines()[0].split() == ["VARIABLE", "VALUE", "SOURCE", "MEANING"]


def test_help_is_fast() -> None:
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        alcor("--help")
        best = min(best, time.perf_counter() - begun)
    assert best < 0.3  # 0.08 s on a quiet machine; twice the promised 0.15 s for a busy one


def test_help_imports_no_heavy_library() -> None:
    heavy = ("httpx", "rich", "litestar", "nats", "pyroute2")
    program = f"import sys, cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_table_is_as_wide_as_its_content() -> None:
    rows: list[dict[str, object]] = [{"name": "a", "port_id": 1}, {"name": "long", "port_id": ""}]
    assert table(("name", "port_id"), rows) == "NAME  PORT ID\na     1\nlong  -"
