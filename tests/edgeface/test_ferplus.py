"""The FER+ reader, on tiny files in the published format."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeface.data.ferplus import VOTES, read
from edgeface.errors import DataError, UsageError
from edgeface.tasks import EXPRESSIONS, TASKS

HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
ROWS = [
    "Training,fer0000001.png,3,0,0,5,0,0,0,0,2,0",  # sad
    "Training,fer0000002.png,0,10,0,0,0,0,0,0,0,0",  # happy
    "Training,fer0000003.png,1,0,0,0,0,0,0,9,0,0",  # contempt
    "Training,fer0000004.png,4,0,0,0,4,0,0,0,2,0",  # a tie
    "Training,fer0000005.png,4,0,0,0,0,0,0,0,6,0",  # unknown wins
    "Training,fer0000006.png,5,0,0,0,0,0,0,0,5,0",  # unknown ties: it has not won
    "Training,,0,0,0,0,0,0,0,0,0,10",  # no face, and so no picture
    "PublicTest,fer0000007.png,0,0,0,0,0,0,10,0,0,0",  # scared
    "PrivateTest,fer0000008.png,0,0,10,0,0,0,0,0,0,0",  # surprised
]
FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}


def write(folder: Path, rows: list[str] = ROWS) -> Path:
    (folder / "fer2013new.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    for row in rows:
        usage, name = row.split(",")[:2]
        if name and usage in FOLDERS:
            (folder / FOLDERS[usage]).mkdir(exist_ok=True)
            Image.new("L", (48, 48), 77).save(folder / FOLDERS[usage] / name)
    return folder


def train(folder: Path, **options: bool):
    return read(folder, source="ferplus@train", split="train", **options)


def test_the_label_is_the_expression_with_the_most_votes(tmp_path: Path) -> None:
    corpus = train(write(tmp_path), strict=True)
    assert corpus.keys == tuple(f"FER2013Train/fer000000{number}.png" for number in (1, 2, 3, 4, 6))
    names = ["sad", "happy", "contempt", "", ""]
    eight = [TASKS["expression8"].classes.index(name) if name else -1 for name in names]
    assert corpus.labels["expression8"].tolist() == eight
    assert corpus.research_only


def test_contempt_has_no_label_among_seven(tmp_path: Path) -> None:
    corpus = train(write(tmp_path))
    assert corpus.labels["expression"].tolist() == [EXPRESSIONS.index("sad"), EXPRESSIONS.index("happy"), -1, -1, -1]


def test_winners_that_are_no_expression_are_left_out_and_counted_even_by_strict(tmp_path: Path) -> None:
    skipped = train(write(tmp_path), strict=True).skipped
    assert {reason: len(keys) for reason, keys in skipped.items()} == {
        "'unknown' has the most votes": 1,
        "'NF' has the most votes": 1,
    }
    assert skipped["'NF' has the most votes"] == ("? (fer2013new.csv:8)",)


def test_splits_are_the_published_ones(tmp_path: Path) -> None:
    write(tmp_path)
    val, test = (read(tmp_path, source=split, split=split) for split in ("val", "test"))
    assert val.keys == ("FER2013Valid/fer0000007.png",)
    assert val.labels["expression"].tolist() == [EXPRESSIONS.index("scared")]
    assert test.keys == ("FER2013Test/fer0000008.png",)
    assert test.labels["expression"].tolist() == [EXPRESSIONS.index("surprised")]


def test_a_copy_without_the_private_test_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable face of @test"):
        read(write(tmp_path, ROWS[:-1]), source="ferplus@test", split="test")


def test_every_column_has_its_class() -> None:
    assert [name for name in VOTES.values() if name] != list(TASKS["expression8"].classes)  # another order
    assert {name for name in VOTES.values() if name} == set(TASKS["expression8"].classes)
    assert list(VOTES) == HEADER.split(",")[2:]


@given(st.lists(st.integers(0, 10), min_size=10, max_size=10).filter(any))
def test_any_votes_give_their_majority_or_none(votes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        other = "Training,fer0000001.png,0,10,0,0,0,0,0,0,0,0"
        row = f"Training,fer0000002.png,{','.join(map(str, votes))}"
        (path / "fer2013new.csv").write_text("\n".join([HEADER, other, row]) + "\n")
        (path / "FER2013Train").mkdir()
        for number in (1, 2):
            (path / f"FER2013Train/fer000000{number}.png").touch()
        corpus = read(path, source="ferplus", split="train", strict=True, size_of=lambda _: (48, 48))
    most = [place for place, count in enumerate(votes) if count == max(votes)]
    if len(most) == 1 and most[0] >= 8:
        assert len(corpus) == 1
        assert len(corpus.skipped) == 1
        return
    name = list(VOTES.values())[most[0]] if len(most) == 1 else ""
    expected = TASKS["expression8"].classes.index(name) if name else -1
    assert corpus.labels["expression8"].tolist()[1:] == [expected]


BAD_ROWS = {
    "wrong Usage": "Testing,fer0000009.png,0,10,0,0,0,0,0,0,0,0",
    "wrong anger": "Training,fer0000009.png,0,10,0,0,x,0,0,0,0,0",
    "wrong fear": "Training,fer0000009.png,0,10,0,0,0,0,-1,0,0,0",
    "wrong votes": "Training,fer0000009.png,0,0,0,0,0,0,0,0,0,0",
    "no file name": "Training,,0,10,0,0,0,0,0,0,0,0",
    "missing picture": "Training,gone.png,0,10,0,0,0,0,0,0,0,0",
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_listed_by_reason_and_strict_names_it(tmp_path: Path, reason: str) -> None:
    write(tmp_path, [*ROWS[:2], BAD_ROWS[reason]])
    (tmp_path / "FER2013Train/gone.png").unlink(missing_ok=True)
    corpus = train(tmp_path)
    assert len(corpus) == 2
    assert list(corpus.skipped) == [reason]
    with pytest.raises(DataError) as caught:
        train(tmp_path, strict=True)
    assert caught.value.where.endswith("fer2013new.csv:4")


def test_grey_pictures_load_as_rgb(tmp_path: Path) -> None:
    picture = train(write(tmp_path)).load(0)
    assert picture.shape == (48, 48, 3)
    assert (picture == 77).all()


def test_another_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'val', 'test'"):
        read(tmp_path, source="ferplus@PublicTest", split="PublicTest")


def test_the_published_corpus_is_read_whole() -> None:
    root = Path(os.environ.get("EDGEFACE_DATA", ""))
    if not os.environ.get("EDGEFACE_DATA") or not (root / "ferplus").is_dir():
        pytest.skip("EDGEFACE_DATA is not set to a folder with ferplus")
    corpus = read(root / "ferplus", source="ferplus@val", split="val", strict=True)
    assert np.unique(corpus.labels["expression8"]).tolist() == list(range(-1, 8))
    assert set(corpus.skipped) <= {"'unknown' has the most votes", "'NF' has the most votes"}
