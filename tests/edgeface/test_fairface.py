"""The FairFace reader, on tiny files in the published format."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeface.data.fairface import AGE_BINS, CROP, RACES, age_bin, read
from edgeface.errors import DataError, UsageError

HEADER = "file,age,gender,race,service_test"
ROWS = [
    "train/1.jpg,30-39,Male,East Asian,TRUE",
    "train/2.jpg,03-Sep,Female,Black,FALSE",  # 3-9 after a spreadsheet
    "train/3.jpg,Oct-19,Female,Latino_Hispanic,FALSE",  # 10-19 after a spreadsheet
    "train\\4.jpg,more than 70,Male,Middle Eastern,TRUE",
    "train/5.jpg,0-2,Male,White,TRUE",
]


def write(folder: Path, *, train: list[str] = ROWS, header: str = HEADER) -> Path:
    (folder / "fairface_label_train.csv").write_text("\n".join([header, *train]) + "\n", encoding="utf-8-sig")
    (folder / "fairface_label_val.csv").write_text(f"{HEADER}\nval/1.jpg,20-29,Female,Indian,TRUE\n")
    for part, count in (("train", 5), ("val", 1)):
        (folder / part).mkdir()
        for number in range(1, count + 1):
            Image.new("RGB", (224, 224), (number, 100, 200)).save(folder / part / f"{number}.jpg")
    return folder


def train(folder: Path, **options: bool):
    return read(folder, source="fairface@train", split="train", **options)


def test_rows_become_canonical_labels(tmp_path: Path) -> None:
    corpus = train(write(tmp_path), strict=True)
    assert corpus.keys == tuple(f"train/{number}.jpg" for number in range(1, 6))
    assert corpus.labels["gender"].tolist() == [0, 1, 1, 0, 0]
    assert corpus.labels["age"].tolist() == [[30, 39], [3, 9], [10, 19], [70, 100], [0, 2]]
    assert corpus.groups["race"].tolist() == ["East Asian", "Black", "Latino_Hispanic", "Middle Eastern", "White"]
    assert corpus.groups["age"].tolist() == ["30-39", "3-9", "10-19", "more than 70", "0-2"]
    assert not corpus.research_only
    assert not corpus.skipped


def test_other_rows_give_other_labels_twin(tmp_path: Path) -> None:
    swapped = [row.replace("Male", "male").replace("Female", "Male").replace("male", "Female") for row in ROWS]
    corpus = train(write(tmp_path, train=swapped))
    assert corpus.labels["gender"].tolist() != [0, 1, 1, 0, 0]


def test_the_crop_is_a_constant_of_the_corpus(tmp_path: Path) -> None:
    x, y, side = CROP
    # float32 of at most 224 pixels.
    assert train(write(tmp_path)).crops[0] == pytest.approx((x * 224, y * 224, side * 224), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((name, name) for name in AGE_BINS),
        ("03-Sep", "3-9"),
        ("3-Sep", "3-9"),
        ("Sep-03", "3-9"),
        ("09-Mar", "3-9"),
        ("Oct-19", "10-19"),
        ("19-Oct", "10-19"),
        ("Oct-2019", "10-19"),
        ("10-Sep", None),
        ("09-Sep", None),
        ("Oct-20", None),
        ("20-28", None),
        ("9-3", None),
        ("-", None),
        ("", None),
    ],
)
def test_bins_that_a_spreadsheet_took_for_dates_are_read(text: str, expected: str | None) -> None:
    assert age_bin(text) == expected


@given(st.text(max_size=12))
def test_any_text_is_a_bin_or_none(text: str) -> None:
    assert age_bin(text) in (*AGE_BINS, None)


def test_the_bins_cover_every_year_once() -> None:
    years = [year for low, high in AGE_BINS.values() for year in range(low, high + 1)]
    assert years == list(range(101))


BAD_ROWS = {
    "wrong age": "train/9.jpg,20-28,Male,White,TRUE",
    "wrong gender": "train/9.jpg,20-29,male,White,TRUE",
    "wrong race": "train/9.jpg,20-29,Male,Martian,TRUE",
    "no file name": ",20-29,Male,White,TRUE",
    "named twice": "train/1.jpg,20-29,Male,White,TRUE",
    "missing picture": "train/gone.jpg,20-29,Male,White,TRUE",
    "unreadable picture": "train/text.jpg,20-29,Male,White,TRUE",
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_listed_by_reason_and_strict_names_it(tmp_path: Path, reason: str) -> None:
    write(tmp_path, train=[*ROWS, BAD_ROWS[reason]])
    (tmp_path / "train/text.jpg").write_text("no picture")
    corpus = train(tmp_path)
    assert len(corpus) == len(ROWS)
    ((found, keys),) = corpus.skipped.items()
    assert found == reason
    assert len(keys) == 1
    assert "fairface_label_train.csv:7" in keys[0]
    with pytest.raises(DataError) as caught:
        train(tmp_path, strict=True)
    assert caught.value.where.endswith("fairface_label_train.csv:7")


def test_a_short_row_is_a_fault(tmp_path: Path) -> None:
    assert train(write(tmp_path, train=[*ROWS, "train/6.jpg,20-29"])).skipped.keys() == {"wrong gender"}


def test_the_published_lists_are_train_and_val(tmp_path: Path) -> None:
    corpus = read(write(tmp_path), source="fairface@val", split="val")
    assert corpus.keys == ("val/1.jpg",)
    assert corpus.labels["age"].tolist() == [[20, 29]]


def test_fit_and_dev_part_the_training_list(tmp_path: Path) -> None:
    rows = [f"train/{number}.jpg,20-29,Male,White,TRUE" for number in range(1, 200)]
    write(tmp_path, train=rows)
    for number in range(1, 200):
        (tmp_path / f"train/{number}.jpg").touch()
    parts = {
        split: read(tmp_path, source=split, split=split, size_of=lambda path: (224, 224)).keys
        for split in ("train", "fit", "dev")
    }
    assert set(parts["fit"]) | set(parts["dev"]) == set(parts["train"])
    assert not set(parts["fit"]) & set(parts["dev"])
    assert 5 <= len(parts["dev"]) <= 40  # a tenth of 199


def test_a_test_list_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fairface@val"):
        read(write(tmp_path), source="fairface@test", split="test")


def test_a_missing_list_and_a_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fairface_label_train\.csv is missing"):
        train(tmp_path)
    write(tmp_path, header=HEADER.replace("race", "ethnicity"))
    with pytest.raises(DataError, match="no column 'race'"):
        train(tmp_path)


def test_the_published_corpus_is_read_whole() -> None:
    root = Path(os.environ.get("EDGEFACE_DATA", ""))
    if not os.environ.get("EDGEFACE_DATA") or not (root / "fairface").is_dir():
        pytest.skip("EDGEFACE_DATA is not set to a folder with fairface")
    corpus = read(root / "fairface", source="fairface@val", split="val", strict=True)
    assert set(corpus.groups["race"]) == set(RACES)
    assert np.unique(corpus.labels["age"][:, 0]).tolist() == [low for low, _ in AGE_BINS.values()]
