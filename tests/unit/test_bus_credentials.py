"""Keys, JWTs and the command that makes them, as far as no server is needed."""

import base64
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nacl.signing import VerifyKey

from cli.bus import init, issue
from cli.errors import Failure
from planes.bus.nats.credentials import Role, credentials, new_keys, permissions, server_configuration
from planes.model.errors import Invalid
from planes.model.settings import load

NOW = 1_800_000_000


def claims(jwt: str) -> dict[str, Any]:
    """The body of a JWT whose signature its issuer made."""
    head, body, signature = jwt.split(".")
    decoded: dict[str, Any] = msgspec.json.decode(_plain(body))
    raw = base64.b32decode(decoded["iss"] + "=" * (-len(decoded["iss"]) % 8))
    key = VerifyKey(raw[1:-2])
    key.verify(f"{head}.{body}".encode(), _plain(signature))
    return decoded


def _plain(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_a_users_jwt_is_a_name_signed_for_its_role() -> None:
    keys = new_keys()
    text = credentials(keys, Role.HOST, "rack1.n7", NOW, 60)
    found = claims(text.splitlines()[1])
    servers = server_configuration(keys, "alcor", NOW)
    account = claims(next(line.split(": ")[1] for line in servers.splitlines() if line.startswith("  A")))
    scopes = {scope["role"]: scope for scope in account["nats"]["signing_keys"]}
    assert (found["name"], found["exp"], found["nats"]["issuer_account"]) == ("rack1_n7", NOW + 60, account["sub"])
    assert found["iss"] == scopes["host"]["key"]
    assert set(found["nats"]) == {"type", "version", "issuer_account"}  # permissions are the account's alone
    assert scopes["host"]["template"]["sub"] == permissions(Role.HOST, "alcor")["sub"]
    assert len({scope["key"] for scope in scopes.values()}) == len(Role)
    for secret in (keys.operator, keys.account, *keys.roles.values()):
        assert secret not in servers
        assert secret not in text


def test_projects_that_look_alike_have_different_names() -> None:
    keys = new_keys()
    names = {
        claims(credentials(keys, Role.INTEGRATOR, name, NOW).splitlines()[1])["name"] for name in ("a.b", "a_b", "a-b")
    }
    assert len(names) == 3


@pytest.mark.parametrize("name", ["", "a b", "h1.>", "*", "-h", "a..b"])
def test_a_name_that_no_host_can_have_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="host"):
        credentials(new_keys(), Role.HOST, name, NOW)


@pytest.mark.parametrize("name", ["", "a b", "p.>", "*", ">"])
def test_a_name_that_no_project_can_have_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="project"):
        credentials(new_keys(), Role.INTEGRATOR, name, NOW)


def test_keys_are_secret_and_never_overwritten(tmp_path: Path) -> None:
    loaded = load(None, {}, {})
    folder = tmp_path / "bus"
    init(loaded, str(folder))
    before = (folder / "keys.json").read_bytes()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(Failure, match="exists"):
        init(loaded, str(folder))
    assert (folder / "keys.json").read_bytes() == before
    assert "USER JWT" in issue(str(folder), "control", "api", 0)
    with pytest.raises(Failure, match="alcor bus init"):
        issue(str(tmp_path / "none"), "control", "api", 0)
    (folder / "keys.json").write_text("{}")
    with pytest.raises(Failure, match="not a file of keys"):
        issue(str(folder), "control", "api", 0)
