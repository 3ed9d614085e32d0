"""The page of errors by point: against loops, its differences and intervals, and the committed figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.correlation import POINTS
from benchmarks.point_errors import markdown, published, table
from edgeface.errors import UsageError
from edgeface.report.scorecard import CURVE_PERCENT

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "point_errors.json"
GENERATOR = np.random.default_rng(0)
ALONE = [GENERATOR.gamma(4.0, 2.0, (60, 5)) for _ in range(2)]


def better(point: int) -> list[np.ndarray]:
    """The same errors, those of one point a third smaller."""
    factors = np.ones(5)
    factors[point] = 2.0 / 3.0
    return [errors * factors for errors in ALONE]


def test_a_row_is_the_mean_over_faces_points_and_seeds_written_as_loops() -> None:
    row, _ = table({"alone": ALONE, "other": better(2)})
    faces = [sum(face) / 5 for seed in ALONE for face in seed.tolist()]
    assert row["nme_percent"] == pytest.approx(sum(faces) / len(faces))
    assert row["failure_percent"] == pytest.approx(100 * sum(face > 10.0 for face in faces) / len(faces))
    nose = [face[2] for seed in ALONE for face in seed.tolist()]
    assert row["points"]["nose"] == pytest.approx(sum(nose) / len(nose))
    assert row["points"]["nose"] != pytest.approx(row["points"]["left eye"])  # the twin: another point
    place = CURVE_PERCENT.index(7.5)
    assert row["curve"][place] == pytest.approx(sum(face <= 7.5 for face in faces) / len(faces))


def test_only_the_point_that_gained_differs_and_its_interval_lies_below_zero() -> None:
    _, other = table({"alone": ALONE, "other": better(3)})
    gaps = other["against_first"]
    assert set(gaps) == {*POINTS, "all"}
    for point in (*POINTS, "all"):
        gained = point in ("left mouth", "all")
        assert (gaps[point]["high"] < 0.0) is gained
        assert gained or gaps[point]["difference"] == 0.0
    assert gaps["all"]["difference"] == pytest.approx(gaps["left mouth"]["difference"] / 5)


def test_each_seed_says_by_itself_whether_a_point_gained() -> None:
    rows = table({"nothing else": ALONE, "smile": better(3)})
    of_mouth = rows[1]["by_seed"]["left mouth"]
    gains = [-(2.0 / 3.0 - 1.0) * float(errors[:, 3].mean()) for errors in ALONE]
    assert of_mouth == pytest.approx([-gain for gain in gains])
    assert rows[1]["by_seed"]["all"] == pytest.approx([value / 5 for value in of_mouth])
    lines = {line["says"]: line["gains"] for line in published({"rows": rows})}
    assert lines["smile helps the left mouth"] == pytest.approx(gains)
    assert lines["smile helps the nose"] == [0.0, 0.0]  # the twin: a point that did not gain
    assert published({"rows": rows[:1]}) == []
    with pytest.raises(UsageError, match="as many of each row"):
        table({"nothing else": ALONE, "smile": better(3)[:1]})


def test_the_committed_page_is_that_of_its_figures() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert markdown(result) == RESULT.with_suffix(".md").read_text(encoding="utf-8")
    result["rows"][0]["points"]["nose"] += 0.1
    assert markdown(result) != RESULT.with_suffix(".md").read_text(encoding="utf-8")  # the twin
    assert RESULT.with_name(result["picture"]).is_file()
