"""Every setting of every part, in one typed object: a TOML file, then environment variables, then flags.

Called by the command line, which alone reads the file and the environment; `api` and `agent` get the finished object.
Pure: it opens nothing. A field's annotation is its documentation and its check; its name in capitals after `ALCOR_` is
its environment variable, and as it stands it is the key in the file.
"""

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from planes.model.errors import Invalid

PREFIX = "ALCOR_"
#: settings that nobody is shown
SECRET = ("password",)
#: names the TOML file; it is not a setting, because it cannot be in that file
CONFIG = PREFIX + "CONFIG"

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Quota = Annotated[int, Meta(ge=-1, le=100_000_000)]
TcpPort = Annotated[int, Meta(ge=1, le=65_535)]
HostToken = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.-]*$", max_length=253)]

_FORMS, _LEVELS = ("json", "text"), ("debug", "info", "warning", "error")
_MODULE = re.compile(r"([A-Za-z_][\w.]*)=(\w+)")
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*(?=@)")


def _says(text: str) -> Meta:
    return Meta(description=text)


class Settings(Struct, frozen=True, kw_only=True):
    """What a part was told. Times are seconds."""

    api: Annotated[str, _says("where client commands find the API")] = "http://127.0.0.1:9696"
    data: Annotated[str, _says("data directory of a cloud on this machine; names its namespaces too")] = ".alcor"
    store: Annotated[
        str, _says("sqlite:///path or cassandra://host1,host2:port/keyspace?dc=…; empty: SQLite in the data directory")
    ] = ""
    nats: Annotated[str, _says("the message bus: nats://… or tls://…")] = "nats://127.0.0.1:4222"
    nats_creds: Annotated[str, _says("file with the credentials for the bus")] = ""
    prefix: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9_-]+$"), _says("first token of every subject; clouds may share a bus")
    ] = "alcor"
    otlp: Annotated[str, _says("OTLP endpoint for traces and metrics; empty: measured, not exported")] = ""
    trace_ratio: Annotated[float, Meta(ge=0, le=1), _says("share of requests exported as spans")] = 0.01
    auth: Annotated[
        Literal["none", "embedded", "keystone"], _says("who may call the API; none: everybody, on loopback only")
    ] = "none"
    auth_users: Annotated[str, _says("file of users, made by `alcor user`, for auth embedded")] = ""
    auth_life: Annotated[Seconds, _says("how long a token of auth embedded is good")] = 3600.0
    auth_url: Annotated[str, _says("Keystone, such as https://keystone.example/v3, for auth keystone")] = ""
    auth_ca: Annotated[str, _says("file with the CA of auth_url; empty: those that everybody trusts")] = ""
    user: Annotated[str, _says("who client commands log in as, where the API asks for it")] = ""
    password: Annotated[str, _says("… and the password")] = ""
    log: Annotated[
        str,
        _says(
            "json or text, level, levels of modules, e.g. json:info,planes.control=debug; empty: text on a terminal, "
            "else json, at info"
        ),
    ] = ""

    api_host: Annotated[str, _says("address that the API listens on")] = "127.0.0.1"
    api_port: Annotated[TcpPort, _says("port that the API listens on")] = 9696
    instance: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9-]*$"), _says("name of this control instance; empty: drawn at start")
    ] = ""
    bulk_max: Annotated[int, Meta(ge=1, le=1000), _says("objects in one bulk request")] = 100
    body_max: Annotated[int, Meta(ge=1024), _says("bytes of a request body")] = 10_000_000
    wait_max: Annotated[Seconds, _says("longest `Prefer: wait`")] = 60.0
    waiters_max: Annotated[int, Meta(ge=1), _says("requests of one project that wait for hosts at a time")] = 1000
    beacon_every: Annotated[Seconds, _says("time between beacons of a control instance")] = 10.0
    dead_after: Annotated[Seconds, _says("a host silent for this long is not alive")] = 10.0
    echo_from: Annotated[Seconds, _says("a change is looked at again after this")] = 10.0
    echo_to: Annotated[Seconds, _says("… and before this")] = 20.0
    quota_network: Annotated[Quota, _says("networks per project; -1: no limit")] = -1
    quota_subnet: Annotated[Quota, _says("subnets per project")] = -1
    quota_port: Annotated[Quota, _says("ports per project")] = -1
    quota_security_group: Annotated[Quota, _says("security groups per project")] = -1
    quota_security_group_rule: Annotated[Quota, _says("security group rules per project")] = -1

    host: Annotated[HostToken, _says("name of this host; empty: the machine's")] = ""
    vtep: Annotated[str, _says("this host's underlay address, the end of its tunnels")] = ""
    machine: Annotated[str, _says("identity of this machine; empty: /etc/machine-id")] = ""
    cell: Annotated[HostToken, _says("group of hosts that share a bus")] = "default"
    cloud: Annotated[
        str, Meta(pattern=r"^[a-z][a-z0-9]{0,11}$"), _says("first part of the names of the agent's namespaces")
    ] = "alcor"
    state: Annotated[str, _says("where an agent keeps its last goal state; best on tmpfs")] = "/run/alcor"
    udp_port: Annotated[TcpPort, _says("UDP port of the tunnels")] = 4789
    mtu: Annotated[int, Meta(ge=1280, le=65_535), _says("MTU of the underlay; networks get 50 less")] = 1500
    metrics_host: Annotated[str, _says("address on which an agent, or an API for scrapers only, tells its metrics")] = (
        "127.0.0.1"
    )
    metrics_port: Annotated[
        int,
        Meta(ge=0, le=65_535),
        _says("port of metrics_host; 0: nowhere (an API has its own /metrics too)"),
    ] = 0
    beat_every: Annotated[Seconds, _says("time between beats of an agent")] = 3.0
    sync_every: Annotated[Seconds, _says("time between comparisons of an agent's state with the store")] = 600.0
    tombstone_life: Annotated[Seconds, _says("how long an agent remembers what was deleted")] = 600.0

    @property
    def log_format(self) -> str:
        """`json`, `text`, or empty: whatever suits the output."""
        return next((word for word in _words(self.log) if word in _FORMS), "")

    @property
    def log_level(self) -> str:
        return next((word for word in _words(self.log) if word in _LEVELS), "info")

    @property
    def log_levels(self) -> dict[str, str]:
        """By module, where it is another than `log_level`."""
        return {found[1]: found[2] for word in _words(self.log) if (found := _MODULE.fullmatch(word))}


class Row(Struct, frozen=True):
    """One setting as `alcor config` shows it; passwords in `value` are masked."""

    name: str
    variable: str
    value: Any
    default: Any
    source: str
    meaning: str


class Loaded(Struct, frozen=True):
    """Settings and where each came from: `default`, `file`, an environment variable's name, or a flag's."""

    settings: Settings
    sources: dict[str, str]
    #: variables with our prefix that mean nothing; shown, not refused: container platforms inject such names
    unknown: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        hints = get_type_hints(Settings, include_extras=True)
        defaults = Settings()
        return [
            Row(
                name,
                PREFIX + name.upper(),
                _shown(name, getattr(self.settings, name)),
                getattr(defaults, name),
                self.sources.get(name, "default"),
                _meaning(hints[name]),
            )
            for name in Settings.__struct_fields__
        ]


def _shown(name: str, value: Any) -> Any:
    return "***" if name in SECRET and value else masked(value)


def masked(value: Any) -> Any:
    """The value without the password of a URL."""
    return _PASSWORD.sub(r"\1:***", value) if isinstance(value, str) else value


def load(toml_text: str | None, env: Mapping[str, str], flags: Mapping[str, Any]) -> Loaded:
    """Settings from a file's text, the environment and flags (None: not given), each over the one before.

    Raises Invalid, naming the setting and where its value came from, for a key that does not exist in the file or among
    the flags, a value of the wrong type or out of range, and a password among the flags, where every process sees it.
    """
    hints = get_type_hints(Settings, include_extras=True)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(name: str, value: Any, source: str, strict: bool) -> None:
        if name not in hints:
            raise Invalid(f"There is no setting '{name:.80}' (from {source}); `alcor config` lists all.")
        try:
            values[name] = msgspec.convert(value, hints[name], strict=strict)
        except msgspec.ValidationError as error:
            raise Invalid(f"Setting {name} is {_shown(name, value)!r:.80} (from {source}): {_plain(error)}.") from None
        sources[name] = source

    for name, value in _parse(toml_text).items():
        take(name, value, "file", strict=True)
    variables = {PREFIX + name.upper(): name for name in hints}
    for variable in variables.keys() & env.keys():
        take(variables[variable], env[variable], variable, strict=False)
    for name, value in flags.items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            if masked(value) != value:
                raise Invalid(
                    f"{flag} holds a password, which every process can see; give it by file or {PREFIX}{name.upper()}."
                )
            take(name, value, flag, strict=False)
    settings = Settings(**values)
    _check(settings)
    unknown = sorted(name for name in env if name.startswith(PREFIX) and name not in variables and name != CONFIG)
    return Loaded(settings, sources, tuple(unknown))


def _parse(toml_text: str | None) -> dict[str, Any]:
    if toml_text is None:
        return {}
    try:
        return tomllib.loads(toml_text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"The settings file is not TOML: {error}.") from None


def _plain(error: msgspec.ValidationError) -> str:
    return str(error).replace("`", "")


def _meaning(hint: Any) -> str:
    return next(
        meta.description or "" for meta in reversed(get_args(hint)) if isinstance(meta, Meta) and meta.description
    )


def _words(log: str) -> list[str]:
    return re.split("[:,]", log) if log else []


def _check_log(log: str) -> None:
    said: set[str] = set()
    for word in _words(log):
        module = _MODULE.fullmatch(word)
        what = "form" if word in _FORMS else "level" if word in _LEVELS else module[1] if module else ""
        if not what or (module and module[2] not in _LEVELS):
            levels = ", ".join(_LEVELS)
            raise Invalid(
                f"Setting log is '{log:.80}': '{word:.80}' is neither json or text, nor a level ({levels}), "
                "nor module=level."
            )
        if what in said:
            raise Invalid(f"Setting log is '{log:.80}': the {what} is given twice.")
        said.add(what)


def _check(settings: Settings) -> None:
    """What takes more than a field's annotation."""
    _check_log(settings.log)
    if settings.auth == "none" and not is_loopback(settings.api_host):
        raise Invalid(
            f"Setting api_host is '{settings.api_host:.80}' while auth is none: "
            "without authentication the API listens on loopback only."
        )
    if settings.vtep and not _is_address(settings.vtep):
        raise Invalid(f"Setting vtep is '{settings.vtep:.80}': not an IPv4 address.")
    if settings.echo_from >= settings.echo_to:
        raise Invalid("Setting echo_from must be less than echo_to.")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_address(value: str) -> bool:
    try:
        ipaddress.IPv4Address(value)
    except ValueError:
        return False
    return True
