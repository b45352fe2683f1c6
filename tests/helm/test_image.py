"""The Dockerfile as far as it can be judged without Docker."""

import re

from tests.helm.charts import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def _of(word: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in LINES if line.split()[0] == word]


def test_bases_are_one_and_pinned_by_digest_by_who_builds() -> None:
    base = next(value for value in _of("ARG") if value.startswith("BASE="))
    assert base.startswith("BASE=python@sha256:")
    assert not re.fullmatch(r"BASE=python@sha256:[0-9a-f]{64}", base)  # one that is checked in grows old unseen
    assert "--build-arg BASE=python@sha256:" in (ROOT / "docs/deploy.md").read_text()
    assert [line.split()[0] for line in _of("FROM")] == ["${BASE}", "${BASE}"]


def test_what_is_copied_exists_and_is_let_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {name for line in _of("COPY") if "--from" not in line for name in line.split()[:-1]}
    assert sources == allowed
    assert all((ROOT / name).exists() for name in sources)


def test_it_runs_as_nobody_special_and_is_asked_how_it_is() -> None:
    assert _of("USER") == ["10001:10001"]
    assert len(_of("HEALTHCHECK")) == 1
    assert all("rm -rf /var/lib/apt/lists" in line for line in _of("RUN") if "apt-get" in line)
    assert all("--no-install-recommends" in line for line in _of("RUN") if "apt-get install" in line)
    assert not _of("ADD")


def test_what_runs_is_pinned_as_what_is_tested() -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"(?m)^([A-Za-z0-9_.-]+)==([^ ;\\]+)", (ROOT / name).read_text()))

    run, tested = pins("requirements-run.lock"), pins("requirements.lock")
    assert run.items() <= tested.items()
    assert "pytest" not in run
