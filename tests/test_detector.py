"""What a detector's box costs: the benchmark on drawn faces, and the committed figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.detector import box_crops, labelled, markdown, on_face, rows_of
from edgeface.data.corpus import Corpus
from edgeface.specs import ModelSpec, output_spec

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "detector.json"
SHAPE = ((0.32, 0.36), (0.68, 0.36), (0.5, 0.54), (0.36, 0.7), (0.64, 0.7))


class MeanShape:
    """A model that puts the mean shape into every crop, so that its error is the crop's."""

    spec = ModelSpec(name="toy", input_px=16, outputs=(output_spec("landmarks5", mean_shape=SHAPE),))
    runtime = "torch"
    precision = "fp32"

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"landmarks5": np.zeros((len(batch), 5, 2), np.float32)}


@pytest.fixture(scope="module")
def faces() -> Corpus:
    return labelled("synthetic:24@test")


def by_name(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["crop"], row["faces"]): row for row in rows}


def test_boxes_that_are_the_fixed_crops_cost_nothing(faces: Corpus) -> None:
    rows = by_name(rows_of("toy", MeanShape(), faces, faces.crops))
    assert rows["box", "found"]["gap"] == 0.0
    assert rows["box", "all"]["failure_percent"] == rows["fixed", "all"]["failure_percent"]


def test_boxes_beside_the_face_cost_what_they_miss_twin(faces: Corpus) -> None:
    beside = faces.crops + np.float32([0.2, 0, 0]) * faces.crops[:, 2:]
    rows = by_name(rows_of("toy", MeanShape(), faces, beside))
    assert rows["box", "found"]["gap_interval"][0] > 5.0


def test_a_face_without_a_box_is_a_failure_and_has_no_error(faces: Corpus) -> None:
    boxes = faces.crops.copy()
    boxes[::2] = np.nan
    rows = by_name(rows_of("toy", MeanShape(), faces, boxes))
    assert rows["box", "found"]["n"] == rows["fixed", "found"]["n"] == len(faces) // 2
    assert rows["box", "all"]["n"] == len(faces)
    assert rows["box", "all"]["failure_percent"] >= 50.0
    assert rows["box", "all"]["nme_percent"] is None
    assert rows["box or fixed", "all"]["nme_percent"] == rows["fixed", "all"]["nme_percent"]


def test_boxes_off_the_face_are_told_apart(faces: Corpus) -> None:
    labels = faces.labels["landmarks5"]
    assert on_face(faces.crops, labels).all()
    for change in ([0.4, 0, 0], [0, 0.4, 0], [0, 0, -0.6], [0, 0, 1.0]):
        assert not on_face(faces.crops + np.float32(change) * faces.crops[:, 2:], labels).any()
    assert not on_face(np.full_like(faces.crops, np.nan), labels).any()


def test_the_largest_box_becomes_the_crop(faces: Corpus) -> None:
    crops = box_crops(faces.select(range(6)))
    found = np.isfinite(crops).all(axis=1)
    assert found.any()
    assert (crops[found, 2] > 10).all()


def test_the_committed_table_is_that_of_its_figures() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    text = RESULT.with_suffix(".md").read_text(encoding="utf-8")
    assert markdown(result["rows"]) in text
    result["rows"][0]["nme_percent"] += 0.1
    assert markdown(result["rows"]) not in text


def test_on_london_the_box_is_within_half_a_point_of_the_fixed_crop() -> None:
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    gaps = {
        row["model"]: row["gap_interval"]
        for row in rows
        if row["source"] == "london" and (row["crop"], row["faces"]) == ("box", "found")
    }
    assert set(gaps) == {"teacher", "w8a8"}
    for low, high in gaps.values():
        assert -0.5 < low < high < 0.5
