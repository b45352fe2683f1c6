"""Who may say and hear what on the bus: an operator, an account, a signing key for each role, a JWT for each client.

Called by `alcor bus`. A user's JWT is only a name, signed with the key of its role; what the role may do stands in the
account, which the servers hold, so a role can change without new credentials, and a server needs no list of hosts.
Keys and claims are those of NATS (nkeys, JWT version 2). Pure but for the randomness of keys. What must never happen: a
role that may subscribe to another host's goal state, or publish in another's name.
"""

import base64
import hashlib
import os
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
import nkeys
from msgspec import Struct

from planes.goalstate.subjects import Subjects, check_host, check_project, project_token, token
from planes.model.errors import Invalid

#: the first letters of public keys
_PREFIX = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
#: how long an instance may take to answer a host, ns
_REPLY_NS = 60_000_000_000
_NAME = "{{name()}}"


class Role(StrEnum):
    CONTROL = "control"
    HOST = "host"
    INTEGRATOR = "integrator"


class Keys(Struct, frozen=True):
    """What an operator keeps: seeds of the operator, the account, the system account, and of each role."""

    operator: str
    account: str
    system: str
    roles: dict[Role, str]


def new_keys() -> Keys:
    """Fresh keys."""
    roles = {role: _seed("account") for role in Role}
    return Keys(_seed("operator"), _seed("account"), _seed("account"), roles)


def server_configuration(keys: Keys, prefix: str, now: int) -> str:
    """What each server includes: the operator, and accounts from memory. `now`: s since the epoch."""
    operator, account, system = (_pair(seed) for seed in (keys.operator, keys.account, keys.system))
    account_key, system_key = _public(account), _public(system)
    claims = _account(keys, prefix)
    accounts = {
        account_key: _signed(operator, account_key, "alcor", claims, now),
        system_key: _signed(operator, system_key, "SYS", {"type": "account", "limits": _UNLIMITED}, now),
    }
    of_operator = {"type": "operator", "system_account": system_key}
    lines = [
        f"operator: {_signed(operator, _public(operator), 'alcor', of_operator, now)}",
        f"system_account: {system_key}",
        "resolver: MEMORY",
        "resolver_preload: {",
        *(f"  {key}: {jwt}" for key, jwt in accounts.items()),
        "}",
    ]
    return "\n".join(lines) + "\n"


def credentials(keys: Keys, role: Role, name: str, now: int, seconds: int = 0) -> str:
    """A client's `.creds` file. `name`: of the host or the project; `seconds`: its life, 0: without end.

    Raises Invalid for a name that no host or project can have.
    """
    user = _pair(seed := _seed("user"))
    claims = {"type": "user", "issuer_account": _public(_pair(keys.account))}
    jwt = _signed(
        _pair(keys.roles[role]), _public(user), _named(role, name), claims, now, now + seconds if seconds else 0
    )
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _named(role: Role, name: str) -> str:
    """The name as the token that it is in subjects."""
    if role is Role.HOST:
        return token(check_host(name))
    if role is Role.INTEGRATOR:
        return project_token(check_project(name, "project"))
    if not name:
        raise Invalid("Control's credentials need a name, for the servers' logs.")
    return name


#: numbers of NATS' limits; −1: none
_UNLIMITED = {
    "subs": -1,
    "data": -1,
    "payload": -1,
    "imports": -1,
    "exports": -1,
    "wildcards": True,
    "conn": -1,
    "leaf": -1,
}


def permissions(role: Role, prefix: str) -> dict[str, Any]:
    """What a role may publish and subscribe to; `{{name()}}` stands for the client's own name."""
    s = Subjects(prefix)
    if role is Role.HOST:
        publish = [s.ack(_NAME, ">"), s.pull(_NAME, ">"), s.sync(_NAME), s.beat(_NAME)]
        networks, groups = f"{prefix}.goal.net.*", f"{prefix}.goal.sg.*"
        subscribe = [s.host(_NAME), networks, groups, s.beacons, f"_INBOX_{_NAME}.>"]
        return {"pub": {"allow": publish}, "sub": {"allow": subscribe}}
    if role is Role.CONTROL:
        publish = [f"{prefix}.goal.>", s.beacons, s.events, s.stored("*")]
        subscribe = [s.acks, s.pulls, s.syncs, s.beats, s.events, s.stored("*"), "_INBOX.>"]
        # Replies go to the inbox of whoever asked, whatever its name: only there, once, and for a minute.
        return {
            "pub": {"allow": publish},
            "sub": {"allow": subscribe},
            "resp": {"max": 1, "ttl": _REPLY_NS},
        }
    return {"pub": {"deny": [">"]}, "sub": {"allow": [f"{prefix}.event.{_NAME}.>"]}}


def _account(keys: Keys, prefix: str) -> dict[str, Any]:
    scopes = [
        {
            "kind": "user_scope",
            "key": _public(_pair(seed)),
            "role": str(role),
            "template": {**permissions(role, prefix), "subs": -1, "data": -1, "payload": -1},
        }
        for role, seed in keys.roles.items()
    ]
    nothing: dict[str, Any] = {"pub": {}, "sub": {}}
    return {"type": "account", "limits": _UNLIMITED, "signing_keys": scopes, "default_permissions": nothing}


# -- keys and claims as NATS writes them --


def _seed(kind: str) -> str:
    seed: bytes = nkeys.encode_seed(os.urandom(32), _PREFIX[kind])  # type: ignore[no-untyped-call]
    return seed.decode()


def _pair(seed: str) -> Any:
    try:
        return nkeys.from_seed(bytearray(seed.encode()))  # type: ignore[no-untyped-call]
    except nkeys.NkeysError as error:
        raise Invalid(f"A key in the folder is not one of NATS: {error}.") from None


def _public(pair: Any) -> str:
    key: bytes = pair.public_key
    return key.decode()


def _signed(issuer: Any, subject: str, name: str, claims: Mapping[str, Any], now: int, expires: int = 0) -> str:
    """A JWT of version 2; its id is the digest of its claims."""
    body: dict[str, Any] = {
        "iat": now,
        "iss": _public(issuer),
        "name": name,
        "sub": subject,
        "nats": {**claims, "version": 2},
    }
    if expires:
        body["exp"] = expires
    digest = hashlib.new("sha512_256", msgspec.json.encode(body, order="sorted")).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, body]
    signed = ".".join(_url(msgspec.json.encode(part)) for part in parts)
    return f"{signed}.{_url(issuer.sign(signed.encode()))}"


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
