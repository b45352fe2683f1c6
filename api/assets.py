"""The console's files: read once, served from memory. Made by `api.server`; anybody may fetch them, they hold no data.

What must never happen: that a path leads out of the folder (only files found at the start are served), or that
a page runs a script that is not one of them (`Content-Security-Policy`).
"""

import hashlib
import mimetypes
from pathlib import Path

from api.answers import Answer, Headers

FOLDER = Path(__file__).with_name("console")
_TYPES = {".js": b"text/javascript; charset=utf-8", ".css": b"text/css; charset=utf-8", ".svg": b"image/svg+xml"}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Headers = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),  # ask each time, by ETag: an upgrade is seen at once
)


class File:
    """One file with all that is sent of it."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.kind = _TYPES.get(path.suffix) or (mimetypes.guess_type(path.name)[0] or "text/plain").encode()
        self.tag = b'"%b"' % hashlib.sha256(self.body).hexdigest()[:20].encode()


class Assets:
    """All files of the console, by their path below `/console/`; the empty path is the page."""

    def __init__(self) -> None:
        self.files = {str(path.relative_to(FOLDER)): File(path) for path in sorted(FOLDER.rglob("*")) if path.is_file()}
        self.files[""] = self.files["index.html"]

    def answer(self, path: str, known: bytes, id_: bytes) -> Answer | None:
        """The file, or 304 when the client has it; None: there is none."""
        file = self.files.get(path)
        if file is None:
            return None
        headers = [*_HEADERS, (b"etag", file.tag)]
        if known == file.tag:
            return Answer(b"", id_, 304, headers, file.kind)
        return Answer(file.body, id_, 200, headers, file.kind)
