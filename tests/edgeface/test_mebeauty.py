"""The MEBeauty reader, on tiny files in its format."""

from __future__ import annotations

import os
from bisect import bisect_right
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeface.data.mebeauty import ETHNICITIES, FIFTHS, read
from edgeface.errors import DataError

HEADER = "image,split,beauty_1to10,gender,ethnicity"
ROWS = [
    "images/00000.jpg,train,1.0,female,indian",
    "images\\00001.jpg,train,10,male,caucasian",
    "images/00002.jpg,train,5.5,female,mideastern",
    "images/00003.jpg,val,7.75,male,black",
]


def write(folder: Path, rows: list[str] = ROWS) -> Path:
    (folder / "labels.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (folder / "images").mkdir()
    for number in range(5):
        Image.new("RGB", (112, 112), (number, 0, 0)).save(folder / f"images/0000{number}.jpg")
    return folder


def train(folder: Path, **options: bool):
    return read(folder, source="mebeauty@train", split="train", **options)


def test_ratings_become_scores_and_the_scale_is_kept(tmp_path: Path) -> None:
    corpus = train(write(tmp_path), strict=True)
    assert corpus.keys == ("images/00000.jpg", "images/00001.jpg", "images/00002.jpg")
    assert corpus.labels["beauty_score"].tolist() == [0.0, 1.0, 0.5]
    assert corpus.labels["gender"].tolist() == [1, 0, 1]
    assert corpus.groups["ethnicity"].tolist() == ["indian", "caucasian", "mideastern"]
    low, high = corpus.scales["beauty_score"]
    assert (low + corpus.labels["beauty_score"] * (high - low)).tolist() == [1.0, 10.0, 5.5]
    assert corpus.research_only


def test_ratings_become_the_fifths_of_the_training_faces(tmp_path: Path) -> None:
    ratings = ("1", "4.96", "4.97", "6.6", "7.26", "10")
    rows = [f"images/0000{place % 5}.jpg,train,{rating},male,black" for place, rating in enumerate(ratings[:5])]
    assert train(write(tmp_path, rows)).labels["beauty"].tolist() == [0, 0, 1, 3, 3]
    assert bisect_right(FIFTHS, 10.0) == 4
    assert bisect_right(FIFTHS, 7.26) != bisect_right(FIFTHS, 7.27)  # the twin: an edge decides


def test_another_scale_gives_other_scores_twin(tmp_path: Path) -> None:
    corpus = train(write(tmp_path, [row.replace("5.5", "5.0") for row in ROWS]))
    assert corpus.labels["beauty_score"][2] == pytest.approx(4 / 9)
    assert corpus.labels["beauty_score"][2] != 0.5


def test_val_is_the_tables(tmp_path: Path) -> None:
    corpus = read(write(tmp_path), source="mebeauty@val", split="val")
    assert corpus.keys == ("images/00003.jpg",)
    assert corpus.labels["beauty_score"].tolist() == [0.75]


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("wrong split", "images/00004.jpg,training,5,male,black"),
        ("wrong beauty_1to10", "images/00004.jpg,train,10.5,male,black"),
        ("wrong beauty_1to10", "images/00004.jpg,train,,male,black"),
        ("wrong beauty_1to10", "images/00004.jpg,train,nan,male,black"),
        ("wrong gender", "images/00004.jpg,train,5,m,black"),
        ("wrong ethnicity", "images/00004.jpg,train,5,male,"),
        ("missing picture", "images/00009.jpg,train,5,male,black"),
    ],
)
def test_a_bad_row_is_listed_by_reason_and_strict_names_it(tmp_path: Path, reason: str, row: str) -> None:
    write(tmp_path, [*ROWS, row])
    corpus = train(tmp_path)
    assert len(corpus) == 3
    assert list(corpus.skipped) == [reason]
    with pytest.raises(DataError) as caught:
        train(tmp_path, strict=True)
    assert caught.value.where.endswith("labels.csv:6")


def test_the_corpus_is_read_whole() -> None:
    root = Path(os.environ.get("EDGEFACE_DATA", ""))
    if not os.environ.get("EDGEFACE_DATA") or not (root / "mebeauty").is_dir():
        pytest.skip("EDGEFACE_DATA is not set to a folder with mebeauty")
    corpus = read(root / "mebeauty", source="mebeauty@train", split="train", strict=True)
    assert set(corpus.groups["ethnicity"]) == set(ETHNICITIES)
    scores = corpus.labels["beauty_score"]
    assert np.isfinite(scores).all()
    assert np.count_nonzero((scores == 0) | (scores == 1)) <= 0.01 * len(scores)  # means of many raters
