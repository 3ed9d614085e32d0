"""What README says was measured is what the committed results say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = runpy.run_path(str(ROOT / "benchmarks" / "markdown_table.py"))
RESULT = ROOT / "benchmarks" / "results" / "mtfl-cpu.json"


@pytest.fixture
def card() -> dict[str, Any]:
    (card,) = TABLE["cards"](RESULT)
    return dict(card)


def test_the_table_in_the_readme_is_the_committed_result(card: dict[str, Any]) -> None:
    assert TABLE["table"](card) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_another_figure_is_not_in_the_readme_twin(card: dict[str, Any]) -> None:
    card["rows"][0]["tasks"]["landmarks5"]["value"] += 0.1
    assert TABLE["table"](card) not in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.name)
def test_every_result_names_its_conditions(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    for part in found.get("scorecards", [found]):
        conditions = part["conditions"]
        assert conditions["machine"] if "machine" in conditions else conditions["cpu"]
        assert conditions["versions"] if "versions" in conditions else conditions["runtimes"]


def test_the_agreement_matrix_holds_what_the_readme_says() -> None:
    """Every row of the four runtimes is exact, and each is the simulator of its kernels."""
    matrix = json.loads((RESULT.parent / "agreement.json").read_text(encoding="utf-8"))
    rows = [row for row in matrix["rows"] if row["runtime"] in ("tflite-xnnpack", "openvino", "mil", "onnxruntime")]
    assert {row["backbone"] for row in rows} == {"edge_s", "cnn5", "vgg11", "lightcnn9"}
    assert all(row["outcome"] == "MEASURED" and row["exact"] == row["within_1_lsb"] == 1.0 for row in rows)
    assert all(row["simulator"] == 1.0 for row in matrix["rows"] if row["simulator_kernels"])
    builtin = [row for row in matrix["rows"] if row["runtime"] == "tflite-builtin"]
    named = {"lightcnn9-0": 0.89, "lightcnn9-full": 0.89, "vgg11-full": 0.69}
    assert all(named.get(row["student"], 0.99) <= row["within_1_lsb"] for row in builtin)
    assert all(row["within_1_lsb"] < 0.9 for row in builtin if row["student"] in named), "the README names them"
    assert 0.55 < max(row["largest_gap"]["points"] for row in builtin) < 0.65, "the README says 0.6 point"
    assert max(row["largest_gap"]["samples"] for row in builtin) <= 6.0, "the README says 6 faces"
    assert all(row["exact"] < 1.0 for row in builtin), "the built-in kernels round otherwise"


def test_the_agreement_table_is_that_of_its_figures() -> None:
    from benchmarks.agreement import markdown

    matrix = json.loads((RESULT.parent / "agreement.json").read_text(encoding="utf-8"))
    assert markdown(matrix["rows"]) in (RESULT.parent / "agreement.md").read_text(encoding="utf-8")


def test_the_speed_table_in_the_readme_is_the_committed_result() -> None:
    from benchmarks.student_speed import markdown

    found = json.loads((RESULT.parent / "student_speed.json").read_text(encoding="utf-8"))
    assert markdown(found) in (ROOT / "README.md").read_text(encoding="utf-8")
    found["students"]["edge_s"]["android"][1]["median_ms"] *= 2.0
    assert markdown(found) not in (ROOT / "README.md").read_text(encoding="utf-8"), "another figure is noticed"


def test_what_was_tried_on_the_built_in_kernels_is_what_the_words_say() -> None:
    from benchmarks.builtin_rounding import markdown

    rows = json.loads((RESULT.parent / "builtin_rounding.json").read_text(encoding="utf-8"))["rows"]
    assert markdown(rows) in (RESULT.parent / "builtin_rounding.md").read_text(encoding="utf-8")
    without_ties = [row for row in rows if row["variant"] == "no ties"]
    averaged = {"cnn5", "lightcnn9"}  # end in a global mean, whose sums keep their ties
    assert all((row["exact_between_kernels"] == 1.0) == (row["backbone"] not in averaged) for row in without_ties)
    costs = [row["xnnpack_gap_to_student"]["points"] for row in without_ties]
    assert (round(min(costs), 1), round(max(costs), 1)) == (0.6, 5.3)
    shipped = [row for row in rows if row["variant"] == "as shipped"]
    assert {round(100 * (1 - row["exact_to_student"])) for row in shipped} >= {24, 57}


def test_the_scorecards_tables_are_those_of_its_figures() -> None:
    from edgeface.report.scorecard import from_json
    from edgeface.report.table import as_markdown

    figures = json.loads((RESULT.parent / "scorecard.json").read_text(encoding="utf-8"))
    text = (RESULT.parent / "scorecard.md").read_text(encoding="utf-8")
    assert as_markdown(from_json(figures, where="scorecard.json")) in text
    figures["rows"][1]["tasks"]["gender"]["value"] += 0.01
    assert as_markdown(from_json(figures, where="scorecard.json")) not in text
