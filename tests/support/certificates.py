"""Certificates for tests of TLS, made by openssl: an authority, and what it signs for a server on loopback.

Used by tests of encrypted stores. Keys of tests only: nothing here may outlive a temporary directory.
"""

import subprocess
from pathlib import Path


def authority(directory: Path, name: str) -> Path:
    """The file of a new authority's certificate; its key lies beside it."""
    made = directory / f"{name}.pem"
    _openssl("req", "-x509", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{directory}/{name}.key", "-out", str(made))
    return made


def signed(authority: Path, name: str, address: str) -> Path:
    """One file with a new key, its certificate for `address`, and that of the authority, as servers take them."""
    directory = authority.parent
    key, request, certificate = (directory / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
    _openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request))
    extensions = directory / f"{name}.ext"
    extensions.write_text(f"subjectAltName=IP:{address}\n")
    by = ("-CA", str(authority), "-CAkey", str(authority.with_suffix(".key")), "-CAcreateserial")
    _openssl("x509", "-req", "-in", str(request), *by, "-extfile", str(extensions), "-out", str(certificate))
    whole = directory / f"{name}.pem"
    whole.write_bytes(b"".join(part.read_bytes() for part in (key, certificate, authority)))
    return whole


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
