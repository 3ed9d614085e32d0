"""The Pareto front, its chart, its table and its page."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edgeface.report.pareto import (
    DONE,
    REFUSED,
    Candidate,
    csv_text,
    non_dominated,
    objective,
    pareto_chart,
    with_fronts,
)

TASKS = {"landmarks5": "nme_percent", "gender": "accuracy"}
TABLES = arrays.arrays(
    np.float64,
    st.tuples(st.integers(0, 12), st.integers(1, 4)),
    # Few values, so that rows tie in some columns, in all, and are not finite.
    elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.5, np.nan, np.inf]),
)


def naive(costs: NDArray[np.float64]) -> list[bool]:
    """The definition, pair by pair."""

    def beats(other: NDArray[np.float64], row: NDArray[np.float64]) -> bool:
        return bool(np.isfinite(other).all() and (other <= row).all() and (other < row).any())

    return [bool(np.isfinite(row).all()) and not any(beats(other, row) for other in costs) for row in costs]


def candidate(nme: float, accuracy: float, ms: float, **changes: object) -> Candidate:
    fields: dict[str, object] = {
        "student": "edge_s",
        "width": 0.5,
        "input_px": 48,
        "precision": "w8a8",
        "state": DONE,
        "file": "trials/a/out/android/edge_s.w8a8.tflite",
        "metrics": {"landmarks5": {"nme_percent": nme, "n": 20.0}, "gender": {"accuracy": accuracy, "n": 20.0}},
        "costs": {"latency_ms": ms, "size_bytes": 2048.0, "macs": 3.1e6},
    }
    return Candidate(**(fields | changes))  # type: ignore[arg-type]


FOUND = [
    candidate(5.0, 0.9, 0.2),
    candidate(4.0, 0.8, 0.4, width=1.0),
    candidate(6.0, 0.7, 0.3, student="cnn5"),
    Candidate(student="cnn5", width=1.0, input_px=16, precision="", state=REFUSED, reason="16 px <is> too small"),
]


def marked() -> list[Candidate]:
    return with_fronts(FOUND, tasks=TASKS, cost="latency_ms")


@given(costs=TABLES)
def test_the_front_is_that_of_the_pairwise_definition(costs: NDArray[np.float64]) -> None:
    assert non_dominated(costs).tolist() == naive(costs)


def test_a_front_that_keeps_beaten_rows_is_noticed_twin() -> None:
    costs = np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])
    assert naive(costs) == [True, True, False]
    assert non_dominated(costs[:, :1]).tolist() != naive(costs)  # an objective forgotten
    assert non_dominated(-costs).tolist() != naive(costs)  # larger taken for better


def test_equal_rows_stand_on_the_front_together() -> None:
    assert non_dominated(np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 2.0]])).tolist() == [True, True, False]


def test_accuracies_become_errors_and_errors_stay() -> None:
    each = candidate(5.0, 0.9, 0.2)
    assert objective(each, "landmarks5", "nme_percent") == 5.0
    assert objective(each, "gender", "accuracy") == pytest.approx(0.1, abs=1e-12)  # 1 - 0.9 in binary
    assert np.isnan(objective(each, "smile", "accuracy"))


def test_fronts_are_marked_by_task_and_over_all() -> None:
    found = marked()
    assert [each.on_front for each in found] == [True, True, False, False]
    assert [each.front["landmarks5"] for each in found] == [True, True, False, False]
    assert [each.front["gender"] for each in found] == [True, False, False, False]


def test_another_cost_marks_another_front_twin() -> None:
    dearer = [candidate(5.0, 0.9, 0.2), candidate(4.0, 0.95, 0.1)]
    assert [each.on_front for each in with_fronts(dearer, tasks=TASKS, cost="latency_ms")] == [False, True]
    assert [each.on_front for each in with_fronts(FOUND[:2], tasks=TASKS, cost="latency_ms")] == [True, True]


def test_the_chart_names_the_files_on_each_front_and_no_other() -> None:
    chart = pareto_chart(marked(), tasks=TASKS, cost="latency_ms", teacher={"gender": {"accuracy": 0.95}})
    assert chart is not None
    assert "landmarks5: edge_s ×0.5 48 px, edge_s ×1 48 px; of gender: edge_s ×0.5 48 px" in chart.words
    texts = re.findall(r"<text[^>]*>([^<]*)<", chart.svg())
    named = [text for text in texts if " ×" in text]
    assert named == ["edge_s ×0.5 48 px w8a8", "edge_s ×1 48 px w8a8"]
    numbers = [text for text in texts if text in ("1", "2", "3")]
    assert sorted(numbers) == ["1", "1", "1", "2", "2"]  # the first in both panels, the second in one, and the key
    assert chart.png()[:4] == b"\x89PNG"


def test_the_teacher_and_every_file_are_in_the_chart() -> None:
    with_teacher = pareto_chart(marked(), tasks=TASKS, cost="latency_ms", teacher={"gender": {"accuracy": 0.95}})
    without = pareto_chart(marked(), tasks=TASKS, cost="latency_ms")
    assert with_teacher is not None
    assert without is not None
    assert ">teacher<" in with_teacher.svg()
    assert ">teacher<" not in without.svg()
    tips = re.findall(r"<title>([^<]*)</title>", without.svg())
    assert len(tips) == 6
    assert any(tip.startswith("cnn5 ×0.5 48 px w8a8: 6.00 at 0.3") for tip in tips)


def test_there_is_no_chart_without_a_cost() -> None:
    untimed = [candidate(5.0, 0.9, 0.2, costs={"latency_ms": None})]
    assert pareto_chart(with_fronts(untimed, tasks=TASKS, cost="latency_ms"), tasks=TASKS, cost="latency_ms") is None


def test_a_title_that_is_long_leaves_no_hole_above_the_picture() -> None:
    from PIL import Image

    chart = pareto_chart(marked(), tasks=TASKS, cost="latency_ms")
    assert chart is not None
    rows = np.asarray(Image.open(io.BytesIO(chart.png())).convert("L"))
    assert np.flatnonzero((rows < 200).any(axis=1))[0] < 60  # a hole was 160 rows of 180 dpi high


def test_the_table_of_values_has_a_row_a_file_and_the_reason_of_a_refusal() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(marked(), tasks=TASKS))))
    assert [row["state"] for row in rows] == [DONE, DONE, DONE, REFUSED]
    assert [row["front"] for row in rows] == ["1", "1", "0", "0"]
    assert (rows[1]["landmarks5.nme_percent"], rows[1]["latency_ms"], rows[1]["size_bytes"]) == ("4", "0.4", "2048")
    assert rows[3]["reason"] == "16 px <is> too small"
    assert rows[3]["latency_ms"] == ""


def test_a_ring_stands_around_the_files_that_are_named_and_no_other() -> None:
    plain = pareto_chart(marked(), tasks=TASKS, cost="latency_ms")
    ringed = pareto_chart(marked(), tasks=TASKS, cost="latency_ms", ringed=["trials/a/out/android/edge_s.w8a8.tflite"])
    other = pareto_chart(marked(), tasks=TASKS, cost="latency_ms", ringed=["trials/b/out/android/edge_s.w8a8.tflite"])
    assert plain is not None
    assert ringed is not None
    assert other is not None
    rings = [len(re.findall(r"<use ", chart.svg())) for chart in (plain, ringed, other)]
    assert rings[1] == rings[0] + 3 * len(TASKS)  # all three files of `FOUND` lie there; one a panel
    assert rings[2] == rings[0]  # twin
