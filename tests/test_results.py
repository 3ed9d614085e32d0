"""What README says was measured is what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import readme
from edgeface.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "mtfl-cpu.json"


@pytest.mark.parametrize("document", readme.documents(), ids=lambda path: path.name)
def test_the_tables_of_a_document_are_those_of_the_committed_results(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert readme.filled(text, where=document.name) == text, "python -m benchmarks.readme writes them anew"


@pytest.mark.parametrize("name", readme.TABLES)
def test_every_table_stands_somewhere_and_another_figure_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = [found for path in readme.documents() if f"<!-- table {name} -->" in (found := path.read_text("utf-8"))]
    table = readme.TABLES[name]()
    digit = max(place for place, letter in enumerate(table) if letter.isdigit())
    other = table[:digit] + str((int(table[digit]) + 1) % 10) + table[digit + 1 :]
    monkeypatch.setitem(readme.TABLES, name, lambda: other)
    assert readme.filled(text) != text


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table nobody -->\n\n| a |\n\n<!-- end of nobody -->",
        "<!-- table crops -->\n\n| a |",
        "<!-- table crops -->\n\n| a |\n\n<!-- end of loop -->",
        "<!-- table crops -->\n| a |\n<!-- end of crops -->",
        "<!-- table crops -->\n\n<!-- table loop -->\n\n| a |\n\n<!-- end of loop -->",
    ],
)
def test_comments_that_hold_no_table_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"x.md: tables opened: "):
        readme.filled(text, where="x.md")


def test_the_short_scorecard_has_teacher_students_and_the_integer_file_of_each_runtime() -> None:
    card = json.loads(RESULT.read_text(encoding="utf-8"))["scorecards"][0]
    rows = readme.scorecard(card).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows[:3]] == ["torch"] * 3
    assert {row.split(" | ")[1] for row in rows[3:]} == set(readme.SHORT)
    assert all(".w8a8." in row for row in rows[3:])
    found = {"model": "w8a8", "source": card["source"], "crop": "box or fixed", "runtime": "tflite-xnnpack"}
    found |= {"nme_percent": 6.789, "failure_percent": 4.321}
    *_, last = readme.scorecard(card, [found, found | {"model": "teacher"}, found | {"crop": "fixed"}]).splitlines()
    assert last.startswith("| `edge_s.w8a8.tflite`, a detector's box | tflite-xnnpack | ")
    assert last.endswith(" | 6.79 | 4.32 | – | – | – | – |")
    assert last not in readme.scorecard(card)
    del card["rows"][0]["tasks"]["pose"]
    assert "NOT_RUN" in readme.scorecard(card).splitlines()[2]


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
    assert {round(100 * (1 - row["exact_to_student"])) for row in shipped} >= {21, 57}


def test_the_scorecards_tables_are_those_of_its_figures() -> None:
    from edgeface.report.scorecard import from_json
    from edgeface.report.table import as_markdown

    figures = json.loads((RESULT.parent / "scorecard.json").read_text(encoding="utf-8"))
    text = (RESULT.parent / "scorecard.md").read_text(encoding="utf-8")
    assert as_markdown(from_json(figures, where="scorecard.json")) in text
    figures["rows"][1]["tasks"]["gender"]["value"] += 0.01
    assert as_markdown(from_json(figures, where="scorecard.json")) not in text
