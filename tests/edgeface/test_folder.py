"""The reader for one's own pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeface.data.folder import read
from edgeface.errors import DataError, UsageError


def write(folder: Path, table: str, *, sizes: dict[str, tuple[int, int]] | None = None) -> Path:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    for name, size in (sizes or {"a.png": (40, 30), "b.png": (30, 40), "c.png": (20, 20)}).items():
        Image.new("RGB", size, (1, 2, 3)).save(folder / name)
    return folder


def folder_of(path: Path, split: str = "", *, strict: bool = False):
    return read(path, source=f"folder:{path}", split=split, strict=strict)


def test_classes_come_by_name_or_index_and_empty_cells_are_missing(tmp_path: Path) -> None:
    write(tmp_path, "file_name,gender,pose,beauty_score\na.png,female,0,0.25\nb.png,0,frontal,\nc.png,,,1\n")
    corpus = folder_of(tmp_path)
    assert corpus.keys == ("a.png", "b.png", "c.png")
    assert corpus.labels["gender"].tolist() == [1, 0, -1]
    assert corpus.labels["pose"].tolist() == [0, 2, -1]
    assert np.array_equal(corpus.labels["beauty_score"], np.asarray([0.25, np.nan, 1], np.float32), equal_nan=True)
    assert corpus.load(0).shape == (30, 40, 3)
    assert set(corpus.labels) == {"gender", "pose", "beauty_score"}


def test_ages_are_exact_or_bins(tmp_path: Path) -> None:
    write(tmp_path, "file_name,age\na.png,31\nb.png,20-29\nc.png,\n")
    ages = folder_of(tmp_path).labels["age"]
    assert ages[:2].tolist() == [[31, 31], [20, 29]]
    assert np.isnan(ages[2]).all()


@pytest.mark.parametrize("prefix", ["", "landmarks5_"])
def test_landmarks_come_under_either_name(tmp_path: Path, prefix: str) -> None:
    names = [f"{prefix}{axis}{k}" for axis in "xy" for k in range(1, 6)]
    cells = "1,2,3,4,5,11,12,13,14,15"
    write(tmp_path, f"file_name,{','.join(names)}\na.png,{cells}\nb.png{',' * 10}\n")
    points = folder_of(tmp_path).labels["landmarks5"]
    assert points[0].tolist() == [[1, 11], [2, 12], [3, 13], [4, 14], [5, 15]]
    assert np.isnan(points[1]).all()


def test_attributes_and_identities(tmp_path: Path) -> None:
    write(tmp_path, "file_name,attributes_acne,attributes_spots,identity\na.png,1,,zoe\nb.png,0,1,adam\nc.png,,,zoe\n")
    corpus = folder_of(tmp_path)
    assert corpus.labels["attributes"].tolist() == [[-1, 1, -1, -1], [-1, 0, 1, -1], [-1, -1, -1, -1]]
    assert corpus.labels["identity"].tolist() == [1, 0, 1]
    assert corpus.people == ("zoe", "adam", "zoe")


def test_two_questions_about_glasses_become_three_classes(tmp_path: Path) -> None:
    rows = "a.png,1,0\nb.png,0,1\nc.png,1,1\na.png,0,0\nb.png,1,\nc.png,,0\n"
    merged = folder_of(write(tmp_path, f"file_name,eyeglasses,dark_glasses\n{rows}")).labels
    assert merged["glasses3"].tolist() == [1, 2, 2, 0, -1, -1]
    swapped = folder_of(write(tmp_path, f"file_name,dark_glasses,eyeglasses\n{rows}")).labels
    assert swapped["glasses3"].tolist() == [2, 1, 2, 0, 2, -1]  # the twin: the other way round
    own = folder_of(write(tmp_path, "file_name,eyeglasses,dark_glasses,glasses3\na.png,0,0,dark\nb.png,1,0,\n")).labels
    assert own["glasses3"].tolist() == [2, 1]  # a cell of its own comes first


def test_the_crop_is_the_box_else_the_largest_centred_square(tmp_path: Path) -> None:
    write(tmp_path, "file_name,x,y,w,h\na.png,4,6,10,20\nb.png,,,,\n")
    crops = folder_of(tmp_path).crops
    assert crops.tolist() == [[9, 16, 20], [15, 20, 30]]


def test_two_faces_of_one_picture_have_two_keys(tmp_path: Path) -> None:
    write(tmp_path, "file_name,x,y,w,h\na.png,0,0,10,10\na.png,20,5,10,10\n")
    assert folder_of(tmp_path).keys == ("a.png", "a.png#2")


def test_group_columns_are_kept_and_others_refused(tmp_path: Path) -> None:
    write(tmp_path, "file_name,group_tone\na.png,dark\nb.png,\n")
    assert folder_of(tmp_path).groups["tone"].tolist() == ["dark", ""]
    write(tmp_path, "file_name,gendr\na.png,male\n")
    with pytest.raises(DataError, match="Did you mean 'gender'"):
        folder_of(tmp_path)
    write(tmp_path, "file_name,camera\na.png,x\n")
    with pytest.raises(DataError, match="group_camera"):
        folder_of(tmp_path)


def test_splits_come_from_the_column(tmp_path: Path) -> None:
    write(tmp_path, "file_name,split,smile\na.png,train,1\nb.png,validation,1\nc.png,test,0\n")
    assert {split: folder_of(tmp_path, split).keys for split in ("train", "val", "test")} == {
        "train": ("a.png",),
        "val": ("b.png",),
        "test": ("c.png",),
    }
    assert len(folder_of(tmp_path)) == 3


def test_without_a_validation_mark_people_are_held_out_whole(tmp_path: Path) -> None:
    rows = [f"{i}_{k}.png,person {i}" for i in range(60) for k in (1, 2)]
    sizes = {row.split(",")[0]: (8, 8) for row in rows}
    write(tmp_path, "file_name,person\n" + "\n".join(rows) + "\n", sizes=sizes)
    held, rest = folder_of(tmp_path, "val"), folder_of(tmp_path, "train")
    assert len(held) + len(rest) == 120
    assert held.people
    assert not set(held.people) & set(rest.people)


def test_a_folder_for_each_split_is_found(tmp_path: Path) -> None:
    write(tmp_path / "train", "file_name,smile\na.png,1\n")
    write(tmp_path / "test", "file_name,smile\nb.png,0\nc.png,1\n")
    assert len(folder_of(tmp_path, "train")) == 1
    assert folder_of(tmp_path, "test").keys == ("b.png", "c.png")


BAD_ROWS = {
    "short line": "a.png,1",
    "long line": "a.png,1,0,0,5,5,9",
    "wrong smile": "a.png,grin,0,0,5,5",
    "not a number": "a.png,1,zero,0,5,5",
    "wrong box": "a.png,1,100,0,5,5",
    "missing picture": "gone.png,1,0,0,5,5",
    "unreadable picture": "text.png,1,0,0,5,5",
    "no file name": ",1,0,0,5,5",
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_listed_by_reason_and_strict_names_it(tmp_path: Path, reason: str) -> None:
    write(tmp_path, f"file_name,smile,x,y,w,h\nb.png,0,0,0,5,5\n{BAD_ROWS[reason]}\nc.png,1,0,0,5,5\n")
    (tmp_path / "text.png").write_text("no picture")
    corpus = folder_of(tmp_path)
    assert corpus.keys == ("b.png", "c.png")
    assert corpus.labels["smile"].tolist() == [0, 1]
    ((found, keys),) = corpus.skipped.items()
    assert found == reason
    assert "metadata.csv:3" in keys[0]
    with pytest.raises(DataError) as caught:
        folder_of(tmp_path, strict=True)
    assert caught.value.where == f"{tmp_path / 'metadata.csv'}:3"


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("", "no 'file_name'"),
        ("name,smile\na.png,1\n", "no 'file_name'"),
        ("file_name,smile,smile\na.png,1,1\n", "column 'smile' twice"),
        ("file_name,x,y,w\na.png,1,1,1\n", "no column 'h'"),
        ("file_name,landmarks5_x1\na.png,1\n", "no column 'landmarks5_y1'"),
        ("file_name,eyeglasses\na.png,1\n", "no column 'dark_glasses'"),
        ("file_name,eyeglasses,dark_glasses\na.png,1,yes\n", "no usable row"),
        ("file_name,smile\n", "no usable row"),
        ("file_name,smile\na.png,9\n", "no usable row"),
    ],
)
def test_an_unusable_table_is_refused(tmp_path: Path, table: str, found: str) -> None:
    write(tmp_path, table)
    with pytest.raises(DataError, match=found):
        folder_of(tmp_path)


def test_a_folder_without_metadata_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file_name column"):
        folder_of(tmp_path)


def test_another_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "file_name\na.png\n")
    with pytest.raises(UsageError):
        folder_of(tmp_path, "dev")
    write(tmp_path, "file_name,split\na.png,dev\n")
    with pytest.raises(DataError, match="'train', 'val', 'test'"):
        folder_of(tmp_path, "train")


def test_a_changed_picture_changes_the_fingerprint(tmp_path: Path) -> None:
    import os

    write(tmp_path, "file_name,smile\na.png,1\n")
    before = folder_of(tmp_path).fingerprint
    assert folder_of(tmp_path).fingerprint == before
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert folder_of(tmp_path).fingerprint != before


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=10, max_size=10), st.integers(0, 6))
def test_a_written_row_reads_back(numbers: list[float], expression: int) -> None:
    import tempfile

    names = [f"{axis}{k}" for k in range(1, 6) for axis in "xy"]
    with tempfile.TemporaryDirectory() as folder:
        table = f"file_name,expression,{','.join(names)}\na.png,{expression},{','.join(map(repr, numbers))}\n"
        corpus = folder_of(write(Path(folder), table, sizes={"a.png": (8, 8)}))
    assert corpus.labels["landmarks5"].ravel().tolist() == numbers
    assert corpus.labels["expression"].tolist() == [expression]


def test_terms_of_a_folder_are_read_and_without_them_it_is_yours(tmp_path: Path) -> None:
    folder = write(tmp_path, "file_name,smile\na.png,1\n")
    (folder / "terms.toml").write_text('licence = "for  research\\nonly (ours)"\nresearch_only = true\n')
    corpus = read(folder, source="folder:faces")
    assert (corpus.licence, corpus.research_only) == ("for research only (ours)", True)
    (folder / "terms.toml").unlink()
    corpus = read(folder, source="folder:faces")
    assert (corpus.licence, corpus.research_only) == ("yours", False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'licence = "x"',
        "research_only = true",
        'licence = ""\nresearch_only = true',
        'licence = "x"\nresearch_only = "true"',
        'licence = "x"\nresearch_only = 1',
        'license = "x"\nresearch_only = true',
        'licence = "x"\nresearch_only = true\nmore = 1',
        "= {",
        f"licence = {'[' * 9000}",
    ],
    ids=lambda text: text[:30] or "empty",
)
def test_terms_that_are_misspelt_are_refused(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, "file_name,smile\na.png,1\n")
    (folder / "terms.toml").write_text(text)
    with pytest.raises(DataError, match=r"terms\.toml"):
        read(folder, source="folder:faces")


def test_a_split_without_a_row_says_which_there_are(tmp_path: Path) -> None:
    sizes = {"a.png": (8, 8), "b.png": (8, 8)}
    path = write(tmp_path, "file_name,person,smile\na.png,zoe,1\nb.png,zoe,1\n", sizes=sizes)
    with pytest.raises(DataError, match="the hash that holds out a tenth of the people chose none of 1"):
        folder_of(path, "val")
    with pytest.raises(DataError, match=r"no row of @test.*@train \(2 rows\).*Mark some rows 'test'"):
        folder_of(path, "test")
    write(tmp_path, "file_name,person,split\na.png,zoe,train\nb.png,zoe,val\n", sizes=sizes)
    assert len(folder_of(path, "val")) == 1  # the twin
