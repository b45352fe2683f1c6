"""The API as client commands see it: JSON in and out, failures as one sentence. Used by `vm`, `trace` and `demo`."""

from types import TracebackType
from typing import Any, Self

import httpx

from cli.errors import Failure


class Client:
    """One project's view, with an administrator's rights: client commands bind ports to hosts."""

    def __init__(self, api: str, project: str = "demo") -> None:
        headers = {"X-Project-Id": project, "X-Roles": "admin"}
        secure = api.startswith("https:")  # reading all certificates takes longer than most answers
        self._http = httpx.Client(base_url=api, headers=headers, timeout=30, trust_env=False, verify=secure)
        self.project = project
        self.api = api
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
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise Failure(f"The API at {self.api} does not answer: {error}.") from None
        self.request_id = answer.headers.get("X-Openstack-Request-Id", "")
        if answer.is_error:
            raise Failure(_reason(answer))
        return answer.json() if answer.content else None


def _prefer(wait: int) -> dict[str, str]:
    return {"Prefer": f"wait={wait}"} if wait else {}


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["NeutronError"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The API answered {answer.status_code} to {answer.request.method} {answer.request.url.path}."
