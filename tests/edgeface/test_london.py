"""The reader of the studio faces, on tiny files in their format."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeface.data.london import CROPS, five_points, read
from edgeface.data.sources import open_source
from edgeface.errors import DataError, UsageError
from edgeface.tasks import EXPRESSIONS

HEADER = "image,set,expression,attractiveness_1to7,n_raters,gender,age,ethnicity,landmarks189_xy_norm"
TEMPLATE = np.random.default_rng(0).uniform(-0.1, 1.1, (189, 2)).round(4)
WORDS = " ".join(f"{value:.4f}" for value in TEMPLATE.ravel())
ROWS = [
    f"images/neutral_front__001_03.jpg,neutral_front,neutral,4.0,2513,female,24,white,{WORDS}",
    "images/smiling_front__001_08.jpg,smiling_front,smiling,,,female,24,white,",
    f"images/canada__048f.jpg,canada,neutral,,,female,NA,east_asian/white,{WORDS}",
    f"images/3dsk__male__alex.jpg,3dsk,neutral,1,200,male,38,,{WORDS}",
]


def write(folder: Path, rows: list[str] = ROWS) -> Path:
    (folder / "labels.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (folder / "images").mkdir()
    for row in ROWS:
        Image.new("RGB", (200, 100)).save(folder / row.split(",")[0])
    return folder


def faces(folder: Path, **options: bool):
    return read(folder, source="london", split="test", **options)


def test_rows_become_canonical_labels(tmp_path: Path) -> None:
    corpus = faces(write(tmp_path), strict=True)
    calm, happy = EXPRESSIONS.index("calm"), EXPRESSIONS.index("happy")
    assert corpus.labels["gender"].tolist() == [1, 1, 1, 0]
    assert corpus.labels["smile"].tolist() == [0, 1, 0, 0]
    assert corpus.labels["expression"].tolist() == [calm, happy, calm, calm]
    assert corpus.labels["age"][[0, 1, 3]].tolist() == [[24, 24], [24, 24], [38, 38]]
    assert np.isnan(corpus.labels["age"][2]).all()
    assert corpus.labels["beauty_score"][[0, 3]].tolist() == [0.5, 0.0]
    assert np.isnan(corpus.labels["beauty_score"][[1, 2]]).all()
    assert corpus.scales["beauty_score"] == (1.0, 7.0)
    assert corpus.groups["ethnicity"].tolist() == ["white", "white", "east_asian/white", ""]
    assert corpus.groups["age"].tolist() == ["20-29", "20-29", "", "30-39"]
    assert corpus.groups["set"].tolist() == ["neutral_front", "smiling_front", "canada", "3dsk"]
    assert not corpus.research_only


def test_landmarks_are_template_points_in_pixels(tmp_path: Path) -> None:
    points = faces(write(tmp_path)).labels["landmarks5"]
    above = (TEMPLATE[54] + TEMPLATE[60]) / 2
    expected = [TEMPLATE[0], TEMPLATE[1], above * 2 / 3 + TEMPLATE[55] / 3, TEMPLATE[87], TEMPLATE[93]]
    # float32 of at most 220 pixels.
    assert np.allclose(points[0], np.array(expected) * [200, 100], atol=1e-4)
    assert not np.allclose(points[0][::-1], np.array(expected) * [200, 100], atol=1)
    assert np.isnan(points[1]).all()


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.5, 2))
def test_landmarks_move_with_the_template(x: float, y: float, scale: float) -> None:
    # Six decimals of float64 below 4.
    assert five_points(TEMPLATE * scale + [x, y]) == pytest.approx(five_points(TEMPLATE) * scale + [x, y], abs=1e-9)


def test_one_person_in_two_sets_is_one_person(tmp_path: Path) -> None:
    people = faces(write(tmp_path)).people
    assert people[0] == people[1] == "london 001"
    assert len(set(people)) == 3


def test_each_set_has_its_crop(tmp_path: Path) -> None:
    crops = faces(write(tmp_path)).crops
    for crop, name in zip(crops, ("neutral_front", "smiling_front", "canada", "3dsk"), strict=True):
        x, y, side = CROPS[name]
        assert crop == pytest.approx((x * 200, y * 100, side * 200), abs=1e-4)  # float32
    assert not np.array_equal(crops[0], crops[1])


def test_training_on_them_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        with pytest.raises(UsageError, match="testing alone"):
            open_source(f"london:{write(tmp_path) if split == 'train' else tmp_path}@{split}", root=Path())
    assert open_source(f"london:{tmp_path}", root=Path()).split == "test"


BAD_ROWS = {
    "wrong landmarks": f"images/canada__048f.jpg,canada,neutral,,,female,20,white,{WORDS[:-7]}",
    "wrong set": f"images/canada__048f.jpg,paris,neutral,,,female,20,white,{WORDS}",
    "wrong age": f"images/canada__048f.jpg,canada,neutral,,,female,old,white,{WORDS}",
    "wrong attractiveness_1to7": f"images/canada__048f.jpg,canada,neutral,8,,female,20,white,{WORDS}",
    "wrong expression": f"images/canada__048f.jpg,canada,bored,,,female,20,white,{WORDS}",
    "missing picture": f"images/gone.jpg,canada,neutral,,,female,20,white,{WORDS}",
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_listed_by_reason_and_strict_names_it(tmp_path: Path, reason: str) -> None:
    write(tmp_path, [*ROWS[:2], BAD_ROWS[reason]])
    corpus = faces(tmp_path)
    assert len(corpus) == 2
    assert list(corpus.skipped) == [reason]
    with pytest.raises(DataError) as caught:
        faces(tmp_path, strict=True)
    assert caught.value.where.endswith("labels.csv:4")


@given(st.integers(370, 385), st.floats(-20, 20) | st.just(float("nan")))
def test_any_row_of_numbers_gives_landmarks_near_the_picture_or_a_fault(count: int, value: float) -> None:
    values = [*TEMPLATE.ravel()[: count - 1].tolist(), *[0.5] * (count - 379), value]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        words = " ".join(map(repr, values))
        rows = [ROWS[1], f"images/canada__048f.jpg,canada,neutral,,,female,20,white,{words}"]
        write(path, rows)
        corpus = faces(path)
    good = len(values) == 378 and abs(value) <= 10
    assert len(corpus) == 1 + good
    assert list(corpus.skipped) == ([] if good else ["wrong landmarks"])


def test_the_corpus_is_read_whole_and_its_crops_fit_its_landmarks() -> None:
    root = Path(os.environ.get("EDGEFACE_DATA", ""))
    if not os.environ.get("EDGEFACE_DATA") or not (root / "london").is_dir():
        pytest.skip("EDGEFACE_DATA is not set to a folder with london")
    corpus = read(root / "london", source="london", split="test", strict=True)
    known = np.isfinite(corpus.labels["landmarks5"]).all(axis=(1, 2))
    points, crops = corpus.labels["landmarks5"][known], corpus.crops[known]
    low, high = points.min(axis=1), points.max(axis=1)
    off = ((low + high) / 2 - crops[:, :2]) / crops[:, 2:]
    # A single face's centre varies by 0.014 crop sides; the median of 242 by a tenth of that.
    assert np.abs(np.median(off, axis=0)).max() < 0.01
    assert np.median(2.26 * (high - low).max(axis=1) / crops[:, 2]) == pytest.approx(1.0, abs=0.03)
    # The twin: the smiling set lies elsewhere, and its crop would not fit these.
    assert np.abs(np.median(off[:, 1] - (CROPS["smiling_front"][1] - CROPS["neutral_front"][1]))) > 0.05
