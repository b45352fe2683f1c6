"""The dashboards as files: up to date, whole, and of metrics that exist. What they show is tested by `test_queries`."""

from pathlib import Path

import pytest

from observability.dashboards.__main__ import FOLDER, rendered
from tests.observability.prom import BOARDS, filled, known, load, names, panels, parsed, queries

each = pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)


def test_files_are_what_the_code_makes() -> None:
    kept = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert kept == rendered(), "run python -m observability.dashboards && scripts/chart"


def test_addresses_do_not_change() -> None:
    """Links and bookmarks name these."""
    assert [load(board)["uid"] for board in BOARDS] == [
        "alcor-control",
        "alcor-data",
        "alcor-hosts",
        "alcor-provisioning",
        "alcor-store",
    ]


@each
def test_panels_are_whole(board: Path) -> None:
    shown = panels(board)
    assert len({panel["title"] for panel in shown}) == len(shown)
    assert len({panel["id"] for panel in load(board)["panels"]}) == len(load(board)["panels"])
    for panel in shown:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGHIJ"[: len(panel["targets"])])
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


@each
def test_panels_do_not_overlap(board: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in load(board)["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_buckets_ask_for_exemplars() -> None:
    for board in BOARDS:
        for panel in panels(board):
            if panel["type"] in ("heatmap", "timeseries"):
                for place, target in enumerate(panel["targets"]):
                    assert target["exemplar"] == (place == 0 and "_bucket" in target["expr"])


def test_queries_parse(tmp_path: Path) -> None:
    done = parsed([filled(query, "5m") for query in queries()], tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_metric_is_in_the_table() -> None:
    table = known()
    assert {str(query): names(query.expr) - table for query in queries() if names(query.expr) - table} == {}
