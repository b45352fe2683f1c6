"""Reads the settings' file and environment; the only place that does. The rules are in `planes.model.settings`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.errors import Failure
from planes.model.settings import CONFIG, Loaded, load


def load_settings(flags: Mapping[str, Any]) -> Loaded:
    """Settings of this process; raises Failure when the file cannot be read, Invalid when something in it is wrong."""
    path = os.environ.get(CONFIG)
    text = None
    if path:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise Failure(f"{CONFIG} names {path}, which cannot be read: {reason}.") from None
    return load(text, os.environ, flags)
