"""Errors a caller can see, by Neutron's names; who raises them need not know HTTP, who answers them need not know why.

    AlcorError
    ├── Invalid (400)          the request is wrong: BadRequest types carry Neutron's own names
    ├── NotFound (404)
    ├── Conflict (409)
    ├── Unauthorized (401)     no token, or none that is valid
    ├── Forbidden (403)
    ├── PreconditionFailed (412)
    ├── OverQuota (409)
    └── Unavailable (503)      store or bus cannot answer now; `retry_after` seconds

`type_name` is the `type` of Neutron's error body; `str(error)` is its `message`.
"""


class AlcorError(Exception):
    """Base of all that is reported to a client."""

    status = 500
    type_name = "InternalServerError"

    def __init__(self, message: str, type_name: str = "") -> None:
        super().__init__(message)
        if type_name:
            self.type_name = type_name


class Invalid(AlcorError):
    """The request is wrong; the message names the field and the rule."""

    status = 400
    type_name = "InvalidInput"


class Unauthorized(AlcorError):
    """Who calls is not known."""

    status = 401
    type_name = "HTTPUnauthorized"


class Forbidden(AlcorError):
    """The caller's role does not allow this."""

    status = 403
    type_name = "PolicyNotAuthorized"


class NotFound(AlcorError):
    """No such object for this caller; type name `<Resource>NotFound`."""

    status = 404
    type_name = "HTTPNotFound"


class Conflict(AlcorError):
    """The request contradicts what is there."""

    status = 409
    type_name = "Conflict"


class OverQuota(Conflict):
    """The project has used up its quota."""

    type_name = "OverQuota"


class PreconditionFailed(AlcorError):
    """`If-Match` named a revision that is no longer current."""

    status = 412
    type_name = "RevisionNumberConstraintFailed"


class TooLarge(AlcorError):
    """The body or the number of objects in it exceeds a bound."""

    status = 413
    type_name = "HTTPRequestEntityTooLarge"


class Unavailable(AlcorError):
    """The store or the bus cannot answer now; nothing was lost, the same request may be sent again."""

    status = 503
    type_name = "ServiceUnavailable"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def not_found(resource: str, id_text: str) -> NotFound:
    """Neutron's words for a missing object; `resource` in snake case, e.g. `security_group`."""
    name = "".join(part.capitalize() for part in resource.split("_"))
    words = {
        "Network": "Network {} could not be found.",
        "Subnet": "Subnet {} could not be found.",
        "Port": "Port {} could not be found.",
        "SecurityGroup": "Security group {} does not exist",
        "SecurityGroupRule": "Security group rule {} does not exist",
    }
    return NotFound(words.get(name, name + " {} could not be found.").format(id_text), f"{name}NotFound")
