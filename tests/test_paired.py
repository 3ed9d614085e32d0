"""The page of paired differences: against loops, its signs and intervals, and the committed figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paired import markdown, rows_of
from edgeface.errors import UsageError
from edgeface.tasks import TASKS

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "paired.json"
GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.normal(size=120)
BEAUTY = TASKS["beauty_score"]


def answers(noise: float) -> list[np.ndarray]:
    """Two seeds' answers, the farther from the labels the more noise."""
    return [LABELS + noise * GENERATOR.normal(size=120) for _ in range(2)]


def test_differences_are_those_of_each_seed_and_above_zero_where_the_row_is_better() -> None:
    told = {"first": answers(2.0), "same": answers(2.0), "better": answers(0.3)}
    column, rows = rows_of(BEAUTY, told, LABELS)
    assert column == "beauty_score.pearson"
    for name, row in zip(told, rows, strict=True):
        assert row["row"] == name
        assert row["values"] == pytest.approx([100 * np.corrcoef(LABELS, one)[0, 1] for one in told[name]])
        assert row["gains"] == pytest.approx([m - i for m, i in zip(row["values"], rows[0]["values"], strict=True)])
    first, same, better = rows
    assert first["intervals"] == [[0.0, 0.0]] * 2  # the same network on the same faces: nothing to tell
    assert all(low > 0.0 for low, _ in [*better["intervals"], better["mean_interval"]])
    assert same["mean_interval"][0] < 0.0 < same["mean_interval"][1]  # the twin: no better, and not told so


def test_an_error_that_falls_is_a_gain() -> None:
    points = TASKS["landmarks5"]
    labels = GENERATOR.uniform(0.2, 0.8, (50, 5, 2)).astype(np.float32)
    far, near = (labels + size * GENERATOR.normal(size=labels.shape).astype(np.float32) for size in (0.05, 0.01))
    column, rows = rows_of(points, {"far": [far], "near": [near]}, labels)
    assert column == "landmarks5.nme_percent"
    assert rows[1]["values"][0] < rows[0]["values"][0]
    assert rows[1]["gains"][0] == pytest.approx(rows[0]["values"][0] - rows[1]["values"][0])
    assert rows[1]["intervals"][0][0] > 0.0


def test_the_interval_of_the_mean_is_that_of_seeds_drawn_together() -> None:
    one = answers(1.0)
    _, rows = rows_of(BEAUTY, {"first": [LABELS + 0.0] * 2, "other": one}, LABELS)
    widths = [high - low for low, high in (*rows[1]["intervals"], rows[1]["mean_interval"])]
    assert widths[2] < max(widths[:2])  # two seeds' mean wavers less than the worse of them
    _, twins = rows_of(BEAUTY, {"first": [LABELS + 0.0] * 2, "other": [one[0]] * 2}, LABELS)
    assert twins[1]["mean_interval"] == pytest.approx(twins[1]["intervals"][0])  # the twin: nothing to average


def test_rows_of_different_seeds_are_refused() -> None:
    with pytest.raises(UsageError, match="as many of each row"):
        rows_of(BEAUTY, {"first": answers(1.0), "other": answers(1.0)[:1]}, LABELS)


def test_the_committed_page_is_that_of_its_figures() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert markdown(result) == RESULT.with_suffix(".md").read_text(encoding="utf-8")
    result["sources"][0]["rows"][1]["gains"][0] += 0.1
    assert markdown(result) != RESULT.with_suffix(".md").read_text(encoding="utf-8")  # the twin
