"""AFLW's database and 300-W's .mat files are hostile: what runs, claims or unpacks without end is refused in time."""

from __future__ import annotations

import io
import itertools
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz.archives import (
    MAT_HEAD,
    mat_element,
    mat_entry,
    mat_list,
    mat_matrix,
    mat_numbers,
    mat_packed,
    mat_text,
)
from benchmarks.fuzz.pictures import pictures_of_all_kinds
from edgeface import limits
from edgeface.data import aflw
from edgeface.data.mat import read_mat
from edgeface.data.w300 import read_boxes
from edgeface.errors import DataError

PICTURE = pictures_of_all_kinds()["rgb.png"]
SCHEMA = """
    CREATE TABLE Faces (face_id INTEGER PRIMARY KEY, file_id TEXT, db_id TEXT);
    CREATE TABLE FaceImages (image_id INTEGER PRIMARY KEY, file_id TEXT, filepath TEXT);
    CREATE TABLE FaceRect (face_id INTEGER PRIMARY KEY, x REAL, y REAL, w REAL, h REAL);
    CREATE TABLE FacePose (face_id INTEGER PRIMARY KEY, yaw REAL);
    CREATE TABLE FaceMetaData (face_id INTEGER PRIMARY KEY, sex TEXT, occluded INTEGER, glasses INTEGER);
    CREATE TABLE FeatureCoords (face_id INTEGER, feature_id INTEGER, x REAL, y REAL);
"""
ENDLESS = "WITH RECURSIVE n(face_id) AS (SELECT 1 UNION ALL SELECT face_id + 1 FROM n) SELECT face_id"


def _database(folder: Path, more: str = "", *, count: int = 12) -> Path:
    """A corpus whose training faces can be read, and then some SQL."""
    with closing(sqlite3.connect(folder / "aflw.sqlite")) as database:
        database.executescript(SCHEMA)
        for face in range(count):
            name = f"image{face}.png"
            database.execute("INSERT INTO Faces VALUES (?, ?, 'aflw')", (face, name))
            database.execute("INSERT INTO FaceImages VALUES (?, ?, ?)", (face, name, f"0/{name}"))
            database.execute("INSERT INTO FaceRect VALUES (?, ?, 1, 9, 9)", (face, 1 + face / 100))
            database.execute("INSERT INTO FacePose VALUES (?, 0.3)", (face,))
            for feature, (x, y) in zip(aflw.FIVE, ((3, 4), (7, 4), (5.5, 6), (4, 8), (6, 8)), strict=True):
                database.execute("INSERT INTO FeatureCoords VALUES (?, ?, ?, ?)", (face, feature, x + face / 100, y))
        database.executescript(more)
        database.commit()
    (folder / "flickr/0").mkdir(parents=True)
    for face in range(min(count, 12)):
        (folder / f"flickr/0/image{face}.png").write_bytes(PICTURE)
    return folder


def _refused(folder: Path) -> DataError:
    with pytest.raises(DataError) as refused:
        aflw.read(folder, source="aflw@train", split="train")
    return refused.value


def test_a_plain_database_is_read_twin(tmp_path: Path) -> None:
    corpus = aflw.read(_database(tmp_path), source="aflw@train", split="train", strict=True)
    assert 0 < len(corpus) <= 12


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (f"DROP TABLE Faces; CREATE VIEW Faces AS {ENDLESS}, 'a' AS file_id FROM n", "Faces is a view"),
        (f"DROP TABLE FaceRect; CREATE VIEW facerect AS {ENDLESS}, 1 x, 1 y, 1 w, 1 h FROM n", "FaceRect is a view"),
        (
            "ALTER TABLE FacePose ADD COLUMN later REAL AS (length(hex(zeroblob(30000))))",
            "column 'later' of FacePose is computed",
        ),
        ("DROP TABLE FacePose; CREATE VIRTUAL TABLE FacePose USING fts4(face_id, yaw)", "FacePose is a virtual table"),
    ],
)
def test_a_database_that_would_run_sql_of_its_own_is_refused(tmp_path: Path, more: str, found: str) -> None:
    """Found by reading: an endless view held the reader for ever."""
    began = time.monotonic()
    assert _refused(_database(tmp_path, more)).found == found
    assert time.monotonic() - began < limits.DATABASE_S


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("UPDATE FaceRect SET x = 9e999", "wrong box"),
        ("UPDATE FaceRect SET w = 1e300", "wrong box"),
        ("UPDATE FeatureCoords SET x = -9e999", "wrong landmarks"),
        ("UPDATE FeatureCoords SET y = 1e300", "wrong landmarks"),
        ("UPDATE FacePose SET yaw = 9e999", "wrong yaw"),
    ],
)
def test_a_face_that_reaches_to_infinity_leaves_the_others_as_they_were(tmp_path: Path, sql: str, reason: str) -> None:
    """Found by fuzzing: it ended the reader with a ValueError, or took the crops of all faces along."""
    whole = aflw.read(_database(tmp_path), source="aflw@train", split="train", strict=True)
    face = int(whole.keys[0].partition("#")[2])
    with closing(sqlite3.connect(tmp_path / "aflw.sqlite")) as database:
        database.execute(f"{sql} WHERE face_id = {face}")
        database.commit()
    found = aflw.read(tmp_path, source="aflw@train", split="train")
    assert list(found.skipped) == [reason]
    assert found.keys == whole.keys[1:]
    np.testing.assert_array_equal(found.crops, whole.crops[1:])
    with pytest.raises(AssertionError):  # the twin: the crops of other faces
        np.testing.assert_array_equal(found.crops, whole.crops[:-1])


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Found by fuzzing: it ended the reader with a UnicodeDecodeError."""
    file = _database(tmp_path) / "aflw.sqlite"
    content = file.read_bytes()
    assert content.count(b"occluded") == 1
    file.write_bytes(content.replace(b"occluded", b"occl\x9dded"))
    assert "cannot be read" in _refused(tmp_path).found


ENDLESS_JOIN = "UPDATE Faces SET file_id = 'a'; UPDATE FaceImages SET file_id = 'a'"  # the square of the rows


def _a_look_costs(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the reader's looks at it, one every thousand of SQLite's steps: the same on any machine."""
    looks = itertools.count()
    monkeypatch.setattr(aflw, "thread_time", lambda: seconds * next(looks))


def test_a_question_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain tables too can be made so that they join to the square of their rows."""
    folder = _database(tmp_path, ENDLESS_JOIN, count=3000)
    monkeypatch.setattr(limits, "DATABASE_S", 0.1)  # nine million pairs take more than a second
    assert "more than 0.1 s of CPU time" in _refused(folder).found


def test_a_question_of_more_steps_than_its_time_allows_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _database(tmp_path, ENDLESS_JOIN, count=3000)
    monkeypatch.setattr(limits, "DATABASE_S", 0.1)
    _a_look_costs(1e-4, monkeypatch)  # nine million pairs are looked at 225,510 times
    assert "more than 0.1 s of CPU time" in _refused(folder).found


def test_a_question_of_three_thousand_faces_ends_in_that_time_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _database(tmp_path, count=3000)
    monkeypatch.setattr(limits, "DATABASE_S", 0.1)
    _a_look_costs(1e-4, monkeypatch)  # three thousand faces are looked at 588 times
    assert aflw.read(folder, source="aflw@train", split="train").skipped


@pytest.mark.parametrize(
    ("name", "most", "found"),
    [
        ("DATABASE_BYTES", 1000, "where at most 1,000 are read"),
        ("DATABASE_ROWS", 5, "more than 5 rows"),
    ],
)
def test_limits_of_a_database_are_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int, found: str
) -> None:
    monkeypatch.setattr(limits, name, most)
    assert found in _refused(_database(tmp_path)).found


@pytest.mark.parametrize("count", [20_000, 80_000])
def test_a_text_longer_than_a_page_is_refused(tmp_path: Path, count: int) -> None:
    """The shorter one is the twin: its face alone is left out."""
    name = f"UPDATE FaceImages SET filepath = printf('%.*c', {count}, 'a') WHERE file_id = 'image3.png'"
    folder = _database(tmp_path, name)
    if count > limits.DATABASE_VALUE_BYTES:
        assert "too big" in _refused(folder).found
    else:
        skipped = [
            reason
            for split in ("train", "test")
            for reason in aflw.read(folder, source="aflw", split=split).skipped
            if reason != "no box"
        ]
        assert skipped == ["path too long"]


def test_reading_a_database_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = _database(tmp_path, "PRAGMA journal_mode = WAL")
    before = sorted(path.name for path in folder.iterdir())
    aflw.read(folder, source="aflw@train", split="train")
    assert sorted(path.name for path in folder.iterdir()) == before


# -- .mat --------------------------------------------------------------------------------------------------------------


GOOD = mat_entry(mat_text("a.png"), mat_numbers(1, 2, 30, 40))


def _read(folder: Path, content: bytes) -> dict[str, np.ndarray]:
    (folder / "Bounding Boxes").mkdir(exist_ok=True)
    (folder / "Bounding Boxes/bounding_boxes_ibug.mat").write_bytes(content)
    return read_boxes(folder, ("ibug",), source="w300@challenging-found")


@pytest.mark.parametrize("form", [mat_list, lambda entry: mat_packed(mat_list(entry))], ids=["plain", "compressed"])
def test_a_whole_mat_file_is_read_twin(tmp_path: Path, form: Callable[[bytes], bytes]) -> None:
    boxes = _read(tmp_path, MAT_HEAD + form(GOOD))
    assert {key: box.tolist() for key, box in boxes.items()} == {"ibug/a.png": [0.5, 1.5, 29.0, 38.0]}


def _small(kind: int, content: bytes) -> bytes:
    """Up to four bytes in the tag itself, as MATLAB writes them."""
    return struct.pack("<I", len(content) << 16 | kind) + content.ljust(4, b"\0")


def test_a_mat_file_as_matlab_writes_it_is_read(tmp_path: Path) -> None:
    """Text in 16 bits, whole numbers in as few bytes as hold them, small elements in their tags."""
    name = mat_matrix(4, (1, 5), mat_element(4, "ä.png".encode("utf-16-le")))
    box = mat_matrix(6, (1, 4), _small(2, bytes((1, 2, 30, 40))))
    boxes = _read(tmp_path, MAT_HEAD + mat_list(mat_entry(name, box)))
    assert {key: found.tolist() for key, found in boxes.items()} == {"ibug/ä.png": [0.5, 1.5, 29.0, 38.0]}
    with pytest.raises(DataError, match="4 numbers of kind 2 in 3 bytes"):  # the twin: one byte fewer
        _read(tmp_path, MAT_HEAD + mat_list(mat_entry(name, mat_matrix(6, (1, 4), _small(2, bytes((1, 2, 30)))))))


def _deep(levels: int) -> bytes:
    found = mat_numbers(1)
    for _ in range(levels):
        found = mat_matrix(1, (1, 1), found)
    return found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "no .mat file"),
        (MAT_HEAD.replace(b"\0\1", b"\0\2"), "no .mat file"),
        (MAT_HEAD, "no variable 'bounding_boxes'"),
        (MAT_HEAD + mat_list(GOOD)[:-60], "an element of 344 bytes, where 284 are left"),
        (MAT_HEAD + mat_list(GOOD, count=2**31 - 1), "an array of 2,147,483,647 values"),
        (
            MAT_HEAD + mat_list(mat_entry(mat_matrix(4, (2**30, 2), b""), mat_numbers(1, 2, 3, 4))),
            "an array of 2,147,483,648 values",
        ),
        (MAT_HEAD + mat_list(mat_entry(mat_text("a.png"), mat_numbers(1, 2, 3))), "not enough values"),
        (MAT_HEAD + mat_list(mat_entry(mat_text("a.png"), mat_numbers(1, 2, 3, np.nan))), "a box at 1, 2, 3, nan"),
        (MAT_HEAD + mat_list(mat_entry(mat_text("a.png"), mat_text("12"))), "not enough values"),
        (MAT_HEAD + mat_list(mat_numbers(1)), "only integers"),
        (MAT_HEAD + mat_list(mat_matrix(5, (1, 1), b"")), "an array of class 5"),
        (MAT_HEAD + mat_list(_deep(50)), "more than 16 deep"),
        (MAT_HEAD + mat_packed(mat_list(GOOD))[:-9], "bytes, where"),
        (MAT_HEAD + struct.pack("<II", 15, 4) + b"abcd", "damaged"),
        (
            MAT_HEAD + mat_packed(mat_list(mat_matrix(6, (1, 2**21), mat_element(9, bytes(2**24))))),
            "unpacked more than 8,388,608 bytes",
        ),
    ],
)
def test_a_mat_file_that_lies_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    with pytest.raises(DataError) as refused:
        _read(tmp_path, content)
    assert found in refused.value.found
    assert "bounding_boxes_ibug.mat cannot be read" in refused.value.found


def test_the_limit_on_bytes_of_a_mat_file_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAT_BYTES", 200)
    with pytest.raises(DataError, match="where at most 200 are read"):
        _read(tmp_path, MAT_HEAD + mat_list(GOOD))


@pytest.mark.parametrize("do_compression", [False, True])
def test_what_another_writer_writes_is_read_alike(tmp_path: Path, do_compression: bool) -> None:
    io_of_scipy = pytest.importorskip("scipy.io", reason="SciPy writes .mat files")
    kinds = {"f8": np.array([1.5, -2.0]), "u1": np.array([3, 250], np.uint8), "i8": np.array([2**40, -1])}
    kinds |= {"f4": np.array([0.5], np.float32), "text": "a ä", "empty": np.zeros(0)}
    io_of_scipy.savemat(str(tmp_path / "a.mat"), kinds, do_compression=do_compression)
    for name, value in kinds.items():
        found = read_mat(tmp_path / "a.mat", name)
        if isinstance(value, str):
            assert found == value
        else:
            np.testing.assert_array_equal(found, value)
    stream = io.BytesIO()
    io_of_scipy.savemat(stream, {"f8": np.array([1.5, -3.0])})
    (tmp_path / "b.mat").write_bytes(stream.getvalue())
    with pytest.raises(AssertionError):  # the twin: one value is another
        np.testing.assert_array_equal(read_mat(tmp_path / "b.mat", "f8"), kinds["f8"])
