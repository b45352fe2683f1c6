"""The API as client commands see it: JSON in and out, failures as one sentence. Used by `up`, `vm`, `trace` and `demo`.

Where the API asks for a token, one is fetched from where it says, as keystoneauth would.
"""

import re
from types import TracebackType
from typing import Any, Self

import httpx

from cli.errors import Failure
from planes.model.settings import Settings

_CHALLENGE = re.compile(r'Keystone uri="([^"]+)"')


class Client:
    """One project's view, with an administrator's rights: client commands bind ports to hosts."""

    def __init__(self, settings: Settings, api: str = "", project: str = "demo") -> None:
        """`api`: its URL, if not as set."""
        self.api = api or settings.api
        headers = {"X-Project-Id": project, "X-Roles": "admin"}
        secure = self.api.startswith("https:")  # reading all certificates takes longer than most answers
        self._http = httpx.Client(base_url=self.api, headers=headers, timeout=30, trust_env=False, verify=secure)
        self._user, self._password = settings.user, settings.password
        self.project = project
        #: request id of the last answer
        self.request_id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: str) -> Any:
        return self._call("GET", path, params=params)

    def post(self, path: str, body: Any, wait: int = 0) -> Any:
        return self._call("POST", path, json=body, headers=_prefer(wait))

    def put(self, path: str, body: Any, wait: int = 0) -> Any:
        return self._call("PUT", path, json=body, headers=_prefer(wait))

    def delete(self, path: str, wait: int = 0) -> None:
        self._call("DELETE", path, headers=_prefer(wait))

    def find(self, collection: str, name_or_id: str) -> dict[str, Any]:
        """The one object of this project (or shared with it) with that id or name; Failure when none or several."""
        found: dict[str, dict[str, Any]] = {}
        for filters in ({"id": name_or_id}, {"name": name_or_id}):
            for item in self.get(f"/v2.0/{collection}", **filters)[collection.replace("-", "_")]:
                if item["project_id"] == self.project or item.get("shared"):
                    found[item["id"]] = item
        what = collection.removesuffix("s").replace("-", " ")
        if not found:
            raise Failure(f"There is no {what} '{name_or_id}' in project {self.project}.")
        if len(found) > 1:
            raise Failure(f"Project {self.project} has several {what}s named '{name_or_id}'; give an id.")
        return next(iter(found.values()))

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self._send(method, path, **arguments)
        if answer.status_code == 401 and self._user and "X-Auth-Token" not in self._http.headers:
            self._log_in(answer.headers.get("WWW-Authenticate", ""))
            answer = self._send(method, path, **arguments)
        self.request_id = answer.headers.get("X-Openstack-Request-Id", "")
        if answer.is_error:
            raise Failure(_reason(answer))
        return answer.json() if answer.content else None

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            at = path if "://" in path else self.api
            raise Failure(f"The API at {at} does not answer: {error}.") from None

    def _log_in(self, challenge: str) -> None:
        """Get a token for the user's first project; administrators act in others from there."""
        if not (found := _CHALLENGE.search(challenge)):
            raise Failure(f"The API at {self.api} wants a log-in, and does not say where.")
        user = {"name": self._user, "password": self._password, "domain": {"id": "default"}}
        token, project = self._token(found[1], {"methods": ["password"], "password": {"user": user}})
        if not project:
            answer = self._send("GET", f"{found[1]}/auth/projects", headers={"X-Auth-Token": token})
            if answer.is_error or not (projects := answer.json()["projects"]):
                raise Failure(f"User {self._user} has a role in no project at {found[1]}.")
            scope = {"project": {"id": projects[0]["id"]}}
            token, _ = self._token(found[1], {"methods": ["token"], "token": {"id": token}}, scope=scope)
        self._http.headers["X-Auth-Token"] = token

    def _token(self, url: str, identity: dict[str, Any], **scope: Any) -> tuple[str, Any]:
        """A token, and the project that it is for."""
        answer = self._send("POST", f"{url}/auth/tokens", json={"auth": {"identity": identity, **scope}})
        if answer.is_error:
            raise Failure(f"User {self._user} cannot log in at {url}: {_reason(answer)}")
        return answer.headers["X-Subject-Token"], answer.json()["token"].get("project")


def _prefer(wait: int) -> dict[str, str]:
    return {"Prefer": f"wait={wait}"} if wait else {}


def _reason(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        return str((body.get("NeutronError") or body["error"])["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"The API answered {answer.status_code} to {answer.request.method} {answer.request.url.path}."
