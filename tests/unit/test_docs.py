"""What the docs name is there: tests, files, and the pages that they link to."""

import re
from pathlib import Path

import pytest

from tests.conftest import FIRST

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    file = ""
    for named, test in re.findall(r"`([\w/]+\.py|…)::(test_\w+)", page.read_text()):
        file = named if named != "…" else file
        assert f"def {test}(" in (ROOT / "tests" / file.removeprefix("tests/")).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_linked_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert re.match(r"\w+:", target) or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_is_named_with_its_path_exists(page: Path) -> None:
    for path in re.findall(r"`((?:api|planes|agent|observability|cli|bench|tests)/[\w/]+\.py)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_file_that_a_run_begins_with_exists() -> None:
    assert [name for name in FIRST if not (ROOT / "tests" / name).exists()] == []
