"""Settings: precedence, sources, refusals and what is shown."""

from typing import Any

import pytest

from planes.model.errors import Invalid
from planes.model.settings import Settings, load, masked


def test_defaults_alone() -> None:
    loaded = load(None, {}, {})
    assert loaded.settings == Settings()
    assert {row.source for row in loaded.rows()} == {"default"}
    assert loaded.settings.api == "http://127.0.0.1:9696"
    assert loaded.settings.nats == "nats://127.0.0.1:4222"
    assert loaded.settings.trace_ratio == 0.01


def test_flags_over_environment_over_file() -> None:
    loaded = load(
        'api_port = 1001\nnats = "nats://file:1"\ndata = "/file"\n',
        {"ALCOR_API_PORT": "1002", "ALCOR_NATS": "nats://env:1"},
        {"api_port": 1003, "nats": None},
    )
    assert (loaded.settings.api_port, loaded.settings.nats, loaded.settings.data) == (1003, "nats://env:1", "/file")
    assert loaded.sources == {"api_port": "--api-port", "nats": "ALCOR_NATS", "data": "file"}


def test_environment_is_text_and_the_file_is_typed() -> None:
    assert load(None, {"ALCOR_TRACE_RATIO": "1", "ALCOR_QUOTA_PORT": "7"}, {}).settings.quota_port == 7
    with pytest.raises(Invalid, match=r"api_port.*from file"):
        load('api_port = "9696"', {}, {})


@pytest.mark.parametrize(
    ("toml_text", "env", "flags", "words"),
    [
        ("colour = 1", {}, {}, "no setting 'colour'"),
        ("[quota]\nport = 1", {}, {}, "no setting 'quota'"),
        ("api_port = ", {}, {}, "not TOML"),
        (None, {"ALCOR_API_PORT": "http"}, {}, "api_port is 'http' .from ALCOR_API_PORT"),
        (None, {"ALCOR_API_PORT": "70000"}, {}, "api_port"),
        (None, {"ALCOR_TRACE_RATIO": "2"}, {}, "trace_ratio"),
        (None, {"ALCOR_AUTH": "maybe"}, {}, "auth"),
        (None, {"ALCOR_LOG": "loud"}, {}, "log is 'loud'"),
        (None, {"ALCOR_LOG": "textdebug"}, {}, "log"),
        (None, {"ALCOR_LOG": "json:info,planes.control=loud"}, {}, "'planes.control=loud' is neither"),
        (None, {"ALCOR_LOG": "json,text"}, {}, "the form is given twice"),
        (None, {"ALCOR_LOG": "a=info,a=debug"}, {}, "the a is given twice"),
        (None, {"ALCOR_VTEP": "ten"}, {}, "vtep"),
        (None, {"ALCOR_HOST": "a b"}, {}, "host"),
        (None, {"ALCOR_QUOTA_PORT": "-2"}, {}, "quota_port"),
        (None, {"ALCOR_API_HOST": "0.0.0.0"}, {}, "loopback only"),
        (None, {"ALCOR_ECHO_FROM": "30"}, {}, "echo_from"),
        (None, {}, {"colour": 1}, "no setting 'colour'"),
        (None, {}, {"nats": "nats://u:pw@h"}, "--nats holds a password"),
    ],
)
def test_refusals_name_the_setting(
    toml_text: str | None, env: dict[str, str], flags: dict[str, Any], words: str
) -> None:
    with pytest.raises(Invalid, match=words):
        load(toml_text, env, flags)


def test_a_password_is_never_shown() -> None:
    loaded = load(None, {"ALCOR_NATS": "nats://user:s3cret@host:4222"}, {})
    assert loaded.settings.nats == "nats://user:s3cret@host:4222"
    shown = {row.name: row.value for row in loaded.rows()}
    assert shown["nats"] == "nats://user:***@host:4222"
    assert masked("nats://host:4222") == "nats://host:4222"
    with pytest.raises(Invalid) as refused:
        load(None, {"ALCOR_NATS_CREDS": "a", "ALCOR_CLOUD": "x://u:s3cret@h"}, {})
    assert "s3cret" not in str(refused.value)


def test_every_setting_says_what_it_means() -> None:
    rows = load(None, {}, {}).rows()
    assert all(row.meaning for row in rows)
    assert {row.variable for row in rows} >= {"ALCOR_STORE", "ALCOR_OTLP", "ALCOR_DATA", "ALCOR_VTEP", "ALCOR_CLOUD"}


def test_unknown_variables_are_reported_not_refused() -> None:
    env = {"ALCOR_API_PORT_9696_TCP": "x", "ALCOR_CONFIG": "/etc/alcor.toml", "HOME": "/"}
    assert load(None, env, {}).unknown == ("ALCOR_API_PORT_9696_TCP",)


@pytest.mark.parametrize(
    ("log", "shape", "level"),
    [("", "", "info"), ("json", "json", "info"), ("text:debug", "text", "debug"), ("error", "", "error")],
)
def test_log_holds_format_and_level(log: str, shape: str, level: str) -> None:
    settings = load(None, {"ALCOR_LOG": log}, {}).settings
    assert (settings.log_format, settings.log_level) == (shape, level)


def test_log_holds_levels_of_modules() -> None:
    settings = load(None, {"ALCOR_LOG": "json:info,planes.control=debug,changes=warning"}, {}).settings
    assert (settings.log_format, settings.log_level) == ("json", "info")
    assert settings.log_levels == {"planes.control": "debug", "changes": "warning"}
