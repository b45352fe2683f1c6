"""Who may call: the file of users, tokens, roles, and the API with each of them. Keystone is one of our own APIs here;
tests/conformance has a real one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from api.auth import users
from api.auth.embedded import WAITING, Embedded
from api.auth.identity import Anybody, Identity, Remembered, Who, allowed
from api.auth.keystone import Keystone
from api.server import create_app
from planes.model.errors import Forbidden, Invalid, Unauthorized, Unavailable
from planes.model.settings import Settings
from tests.support.cloud import running
from tests.support.http import Api, client

PASSWORD = "correct horse"


class Times:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture(scope="module")
def kept() -> users.User:
    return users.user("alice", PASSWORD, {"blue": ["member"], "red": ["reader"]})


@pytest.fixture
def file(tmp_path: Path, kept: users.User) -> Path:
    path = tmp_path / "users.json"
    found = users.empty()
    found.users |= {"alice": kept, "root": users.User(kept.password, {"ops": ["admin"]})}
    users.write(path, found)
    return path


@pytest.fixture
def embedded(file: Path, times: Times) -> Embedded:
    return Embedded(file, 3600, times, times)


@asynccontextmanager
async def serving(path: Path, identity: Identity) -> AsyncIterator[Api]:
    async with running(path) as cloud, client(create_app(cloud, Settings(), identity=identity)) as http:
        yield Api(http)


def wanted(name: str, password: str = PASSWORD, project: str = "") -> dict[str, Any]:
    """A request for a token, as keystoneauth sends it."""
    user = {"name": name, "password": password, "domain": {"id": "default"}}
    scope = {"scope": {"project": {"name": project, "domain": {"id": "default"}}}} if project else {}
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, **scope}}


async def log_in(http: httpx.AsyncClient, name: str, project: str = "") -> dict[str, str]:
    answer = await http.post("/v3/auth/tokens", json=wanted(name, project=project))
    assert answer.status_code == 201, answer.text
    return {"X-Auth-Token": answer.headers["X-Subject-Token"]}


# -- roles


@pytest.mark.parametrize(
    ("roles", "given", "who"),
    [
        (["member"], {}, Who("blue", admin=False, writes=True)),
        (["Member"], {}, Who("blue", admin=False, writes=True)),
        (["reader", "heat"], {}, Who("blue", admin=False, writes=False)),
        (["admin"], {}, Who("blue", admin=True, writes=True)),
        (["admin"], {"project": "red"}, Who("red", admin=True, writes=True)),
        (["admin"], {"project": "red", "roles": "member"}, Who("blue", admin=False, writes=True)),
        (["admin"], {"roles": "admin"}, Who("blue", admin=True, writes=True)),
        (["admin"], {"roles": "reader"}, Who("blue", admin=False, writes=False)),
        (["member"], {"project": "red"}, Who("blue", admin=False, writes=True)),
    ],
)
def test_roles_and_headers_that_ask_for_less(roles: list[str], given: dict[str, str], who: Who) -> None:
    assert allowed("blue", roles, given) == who


@pytest.mark.parametrize(("roles", "given"), [(["member"], {"roles": "admin"}), (["heat"], {}), ([], {})])
def test_roles_that_allow_nothing(roles: list[str], given: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        allowed("blue", roles, given)


def test_without_authentication_roles_are_believed() -> None:
    anybody = Anybody()
    assert anybody.known({}) == Who("demo", admin=False, writes=True)
    assert anybody.known({"roles": "admin", "project": "red"}) == Who("red", admin=True, writes=True)
    assert anybody.known({"roles": "reader"}) == Who("demo", admin=False, writes=False)


def test_callers_are_remembered_for_a_while_and_not_all(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.auth.identity.MOST", 2)
    seen, who = Remembered(times), Who("blue", admin=False, writes=True)
    for name in ("a", "b", "c"):
        seen.put({"token": name}, who, 10)
    assert [seen.get({"token": name}) for name in ("a", "b", "c")] == [None, who, who]
    assert seen.get({"token": "b", "project": "red"}) is None
    times.now += 11
    assert seen.get({"token": "b"}) is None


# -- the file


def test_the_file_is_secret_and_passwords_are_not_in_it(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in file.read_text()
    assert users.read(file).users["alice"].projects["red"] == ["reader"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('"member"', '"owner"'), "owner"),
        (lambda text: text.replace('"blue"', '"a/b"'), "project of user alice"),
        (lambda text: text.replace("scrypt-", "plain-"), "password of alice"),
        (lambda text: text.replace('"alice"', '"al ice"'), "user name"),
        (lambda text: text[:-9], "not valid"),
        (lambda text: '{"key": "short", "users": {}}', "shorter"),
    ],
)
def test_a_file_that_makes_no_sense(file: Path, change: Any, says: str) -> None:
    file.write_text(change(file.read_text()))
    with pytest.raises(Invalid, match=says):
        users.read(file)


@pytest.mark.parametrize("password", ["short", "x" * 2000])
def test_passwords_have_a_length(password: str) -> None:
    with pytest.raises(Invalid, match="password"):
        users.user("bob", password, {"blue": ["member"]})


async def test_the_file_changes_while_it_is_used(
    embedded: Embedded, file: Path, times: Times, kept: users.User, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"token": embedded.issue("alice", "blue")[0]}
    assert (await embedded.find(given)).writes
    assert embedded.known(given) is not None

    found = users.read(file)
    found.users["alice"].projects["blue"] = ["reader"]
    users.write(file, found)
    times.now += 2
    assert embedded.known(given) is None  # asked anew
    assert not (await embedded.find(given)).writes

    file.write_text("garbage")
    times.now += 2
    assert (await embedded.find(given)) is not None
    assert "The users of before remain" in caplog.text

    found.users["alice"] = users.user("alice", "another one", {"blue": ["member"]})
    users.write(file, found)
    times.now += 2
    with pytest.raises(Unauthorized):
        await embedded.find(given)


# -- tokens


async def test_tokens_end(embedded: Embedded, times: Times) -> None:
    given = {"token": embedded.issue("alice", "blue")[0]}
    await embedded.find(given)
    times.now += 3599
    assert await embedded.find(given)
    assert embedded.known(given) is not None
    times.now += 1
    assert embedded.known(given) is None
    with pytest.raises(Unauthorized, match="no longer"):
        await embedded.find(given)


def _forged(file: Path) -> Iterator[str]:
    claims = {"sub": "alice", "project": "blue", "gen": "x", "iat": 1, "exp": 9_999_999_999, "jti": "x"}
    claims["gen"] = users.generation(users.read(file).users["alice"])
    yield jwt.encode(claims, "k" * 48, "HS256")
    yield jwt.encode(claims, "", "none")
    yield jwt.encode({"sub": "alice"}, users.read(file).key, "HS256")
    yield jwt.encode(claims | {"gen": "old"}, users.read(file).key, "HS256")
    yield jwt.encode(claims | {"sub": "nobody"}, users.read(file).key, "HS256")
    yield jwt.encode(claims | {"project": "ops"}, users.read(file).key, "HS256")
    yield from ("", "x", "a.b.c", "\u00e9.\u00e9.\u00e9", "." * 5000)


async def test_forged_tokens(embedded: Embedded, file: Path) -> None:
    for token in _forged(file):
        with pytest.raises(Unauthorized):
            await embedded.find({"token": token})


async def test_too_many_log_ins_at_once(embedded: Embedded) -> None:
    outcomes = await asyncio.gather(
        *(embedded.log_in("alice", "wrong" * 2) for _ in range(WAITING + 3)), return_exceptions=True
    )
    assert {type(each) for each in outcomes} == {Unauthorized, Unavailable}
    assert sum(isinstance(each, Unavailable) for each in outcomes) == 3
    await embedded.log_in("alice", PASSWORD)


# -- the API


async def test_each_sees_and_does_what_the_roles_allow(tmp_path: Path, embedded: Embedded) -> None:
    async with serving(tmp_path, embedded) as api:
        blue, red, root = [await log_in(api.http, *who) for who in (("alice",), ("alice", "red"), ("root",))]
        made = await api("POST", "/v2.0/networks", {"network": {"name": "n"}}, 201, headers=blue)
        id_ = made["network"]["id"]
        assert made["network"]["project_id"] == "blue"
        path = f"/v2.0/networks/{id_}"
        await api.refused("GET", path, 404, headers=red)
        await api("GET", path, headers=root)
        assert (await api.refused("POST", "/v2.0/networks", 403, {"network": {}}, headers=red))[1] == (
            "The role reader may only read."
        )
        await api.refused("DELETE", path, 403, headers=red)
        await api.refused("GET", "/v2.0/networks", 403, headers=blue | {"X-Roles": "admin"})
        # what it says of itself does not count
        await api.refused("GET", path, 404, headers=red | {"X-Project-Id": "blue"})
        other = await api("POST", "/v2.0/networks", {"network": {}}, 201, headers=root | {"X-Project-Id": "green"})
        assert other["network"]["project_id"] == "green"
        for path in ("/metrics", "/v2.0/alcor/hosts"):
            await api.refused("GET", path, 403, headers=blue)
        assert (await api.http.get("/metrics", headers=root)).status_code == 200


async def test_who_is_not_known_learns_where_to_log_in(tmp_path: Path, embedded: Embedded) -> None:
    async with serving(tmp_path, embedded) as api:
        for path in ("/v2.0/networks", "/v2.0/alcor/hosts", "/v2.0/alcor/events", "/metrics", "/v2.0"):
            answer = await api.http.get(path, headers={"X-Project-Id": "blue", "X-Roles": "admin"})
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"] == 'Keystone uri="http://test:9696/v3"'
            assert answer.json()["NeutronError"]["type"] == "HTTPUnauthorized"
        for path in ("/", "/healthz", "/readyz", "/schema", "/asyncapi.yaml", "/console", "/v3"):
            assert (await api.http.get(path)).status_code == 200, path


async def test_tokens_as_keystone_gives_them(tmp_path: Path, embedded: Embedded) -> None:
    async with serving(tmp_path, embedded) as api:
        answer = await api.http.post("/v3/auth/tokens", json=wanted("alice", project="red"))
        token = answer.json()["token"]
        assert (token["project"]["id"], token["roles"][0]["name"]) == ("red", "reader")
        assert {service["type"] for service in token["catalog"]} == {"network", "identity"}
        mine = {"X-Auth-Token": answer.headers["X-Subject-Token"]}
        checked = await api("GET", "/v3/auth/tokens", headers=mine | {"X-Subject-Token": mine["X-Auth-Token"]})
        assert checked["token"]["expires_at"] == token["expires_at"]
        projects = await api("GET", "/v3/auth/projects", headers=mine)
        assert [each["id"] for each in projects["projects"]] == ["blue", "red"]
        assert (await api("GET", "/v3/auth/catalog", headers=mine))["catalog"] == token["catalog"]
        again = {"methods": ["token"], "token": {"id": mine["X-Auth-Token"]}}
        scoped = {"auth": {"identity": again, "scope": {"project": {"id": "blue"}}}}
        assert (await api("POST", "/v3/auth/tokens", scoped, 201))["token"]["project"]["id"] == "blue"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (wanted("alice", "wrong password"), 401),
        (wanted("nobody"), 401),
        (wanted("alice", project="ops"), 401),
        (wanted("alice", "x" * 5000), 401),
        ({"auth": {"identity": {"methods": ["token"], "token": {"id": "x"}}}}, 401),
        ({"auth": {"identity": {"methods": ["saml2"]}}}, 401),
        ({"auth": wanted("alice")["auth"] | {"scope": {"system": {"all": True}}}}, 401),
        ({"auth": {}}, 400),
        ([], 400),
        ({"auth": {"pad": "x" * 20_000}}, 413),
    ],
)
async def test_no_token_for_these(tmp_path: Path, embedded: Embedded, body: Any, status: int) -> None:
    async with serving(tmp_path, embedded) as api:
        error = (await api("POST", "/v3/auth/tokens", body, status))["error"]
        assert (error["code"], set(error)) == (status, {"code", "title", "message"})
        assert PASSWORD not in error["message"]


# -- Keystone


@asynccontextmanager
async def keystone(path: Path, file: Path) -> AsyncIterator[tuple[Keystone, list[str]]]:
    """Asks an API with users of its own; the paths that it was asked for."""
    path.mkdir()
    async with serving(path, Embedded(file, 3600)) as api:
        asked: list[str] = []

        async def hear(request: httpx.Request) -> None:
            asked.append(request.method)

        api.http.event_hooks["request"].append(hear)
        yield Keystone("http://test:9696/v3/", api.http), asked


async def test_keystone_is_asked_once_about_a_token(tmp_path: Path, file: Path) -> None:
    async with keystone(tmp_path / "k", file) as (identity, asked), serving(tmp_path, identity) as api:
        answer = await api.http.post("/v3/auth/tokens", json=wanted("alice"))  # relayed
        mine = {"X-Auth-Token": answer.headers["X-Subject-Token"]}
        listed = await asyncio.gather(*(api("GET", "/v2.0/networks", headers=mine) for _ in range(20)))
        assert listed == [{"networks": []}] * 20
        assert asked == ["POST", "GET"]
        await api.refused("GET", "/v2.0/networks", 401, headers={"X-Auth-Token": "x"})
        await api.refused("GET", "/v2.0/networks", 401)
        answer = await api.http.post("/v3/auth/tokens", json=wanted("alice", "wrong password"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, 401)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(500), Unavailable),
        (httpx.Response(200, text="<html>"), Unavailable),
        (httpx.Response(200, json={"token": {"expires_at": "2999-01-01T00:00:00Z"}}), Forbidden),
        (
            httpx.Response(
                200,
                json={
                    "token": {
                        "expires_at": "2001-01-01T00:00:00Z",
                        "project": {"id": "p"},
                        "roles": [{"name": "member"}],
                    }
                },
            ),
            Unauthorized,
        ),
        (httpx.ConnectError("refused"), Unavailable),
        (httpx.ReadTimeout("late"), Unavailable),
    ],
)
async def test_keystone_answers_oddly(answer: httpx.Response | Exception, error: type[Exception]) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        with pytest.raises(error):
            await Keystone("http://keystone/v3", http).find({"token": "x"})


async def test_a_connection_that_was_closed_is_no_answer() -> None:
    outcomes: list[Any] = [httpx.RemoteProtocolError("closed"), httpx.Response(401)]

    def handle(request: httpx.Request) -> httpx.Response:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        with pytest.raises(Unauthorized):
            await Keystone("http://keystone/v3", http).find({"token": "x"})
    assert outcomes == []


def test_the_file_is_replaced_at_once(file: Path) -> None:
    before = file.stat().st_ino
    users.write(file, users.read(file))
    assert file.stat().st_ino != before
    assert os.listdir(file.parent) == ["users.json"]
