"""The readers of AFLW, AFW, 300-W and WFLW, on tiny files in their published form, with drawn faces."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeface.data import aflw
from edgeface.data.corpus import Corpus
from edgeface.data.inspect import inspect
from edgeface.data.points import crop_about
from edgeface.data.sources import open_source
from edgeface.data.synthetic import read
from edgeface.errors import DataError, UsageError
from edgeface.tasks import TASKS


@cache
def drawn() -> Corpus:
    return read("synthetic:24")


@cache
def rendered(index: int) -> Image.Image:
    return Image.fromarray(drawn().load(index))


def picture(file: Path, index: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rendered(index).save(file)


def labelled(name: str, index: int) -> np.ndarray:
    return np.asarray(drawn().labels[name][index], dtype=np.float64)


# --- 300-W and AFW


def write_pts(file: Path, index: int) -> None:
    picture(file, index)
    lines = "\n".join(f"{x + 0.5:.6f} {y + 0.5:.6f}" for x, y in labelled("landmarks68", index))
    file.with_suffix(".pts").write_text(f"version: 1\nn_points:  68\n{{\n{lines}\n}}\n")


W300 = {  # picture to drawn face
    "afw/134212_1.jpg": 0,
    "afw/134212_2.JPG": 1,
    "helen/trainset/100032540_1.jpg": 2,
    "helen/trainset/100032540_1_mirror.jpg": 3,
    "lfpw/trainset/image_0001.png": 4,
    "helen/testset/30427236_1.jpg": 5,
    "lfpw/testset/image_0001.png": 6,
    "ibug/image_092 _01.jpg": 7,
    "300W/01_Indoor/indoor_001.png": 8,
    "300W/02_Outdoor/outdoor_001.png": 9,
}
PARTS = {"train": (0, 1, 2, 4), "common": (5, 6), "challenging": (7,), "full": (5, 6, 7), "private": (8, 9)}


def write_w300(folder: Path) -> Path:
    for name, index in W300.items():
        write_pts(folder / "w300" / name, index)
    return folder


@pytest.mark.parametrize("split", PARTS)
def test_w300_splits_and_landmarks(tmp_path: Path, split: str) -> None:
    corpus = open_source(f"w300@{split}", root=write_w300(tmp_path), strict=True)
    names = {index: name for name, index in W300.items()}
    assert corpus.keys == tuple(names[index] for index in PARTS[split])
    for row, index in enumerate(PARTS[split]):
        np.testing.assert_allclose(corpus.labels["landmarks68"][row], labelled("landmarks68", index), atol=1e-4)
        np.testing.assert_allclose(
            corpus.crops[row], crop_about(corpus.labels["landmarks5"][row].astype(float)), rtol=1e-5
        )
    assert corpus.groups["set"].tolist() == [names[index].split("/")[0] for index in PARTS[split]]
    assert corpus.skipped == (
        {"mirrored copy": ("helen/trainset/100032540_1_mirror.jpg (100032540_1_mirror.pts)",)}
        if split == "train"
        else {}
    )
    assert corpus.load(0).shape[2] == 3


def test_w300_faces_lie_on_their_pictures(tmp_path: Path) -> None:
    corpus = open_source("w300@full", root=write_w300(tmp_path))
    found = inspect("w300@full", root=tmp_path)["tasks"]["landmarks5"]
    assert found == {"labelled": 3, "mirrored_eyes": 0, "outside_crop": 0}
    # The first point of a file is one-based: what is written as (1, 1) is the middle of the first pixel.
    assert corpus.labels["landmarks68"][0, 0, 0] == pytest.approx(labelled("landmarks68", 5)[0, 0], abs=1e-4)
    assert corpus.labels["landmarks68"][0, 0, 0] != pytest.approx(labelled("landmarks68", 5)[0, 0] + 0.5, abs=1e-4)


def write_boxes(root: Path, *, shift: float = 0.0) -> None:
    savemat = pytest.importorskip("scipy.io", reason="SciPy writes .mat files").savemat
    folder = root / "w300/Bounding Boxes"
    folder.mkdir()
    for place in ("afw", "helen/trainset", "lfpw/trainset", "helen/testset", "lfpw/testset", "ibug"):
        entries = []
        for name, index in W300.items():
            if name.rpartition("/")[0] == place and "mirror" not in name:
                x, y, side = crop_about(labelled("landmarks5", index))
                box = np.array([[x - 0.3 * side, y - 0.25 * side, x + 0.2 * side, y + 0.25 * side]]) + 0.5 + shift
                entries.append({"imgName": name.rpartition("/")[2], "bb_detector": box, "bb_ground_truth": box + 1})
        cells = np.empty((1, len(entries)), dtype=object)
        for place_in_list, entry in enumerate(entries):
            cells[0, place_in_list] = entry
        savemat(str(folder / f"bounding_boxes_{place.replace('/', '_')}.mat"), {"bounding_boxes": cells})


@pytest.mark.parametrize(("split", "count"), [("common", 2), ("challenging", 1), ("full", 3)])
def test_w300_found_takes_the_organisers_detections(tmp_path: Path, split: str, count: int) -> None:
    root = write_w300(tmp_path)
    write_boxes(root)
    about, found = (open_source(f"w300@{split}{end}", root=root, strict=True) for end in ("", "-found"))
    assert len(found) == count
    assert found.keys == about.keys
    # Detections here lie about the landmarks alike in every face, so that the constants give the crop about them back,
    # but for the difference between five points and the five of sixty-eight.
    assert np.abs(found.crops - about.crops).max() < 0.15 * about.crops[:, 2].max()
    assert not np.array_equal(found.crops, about.crops)


def test_w300_test_crops_know_nothing_of_the_test_landmarks(tmp_path: Path) -> None:
    root = write_w300(tmp_path)
    write_boxes(root)
    before = open_source("w300@full-found", root=root)
    write_pts(root / "w300/ibug/image_092 _01.jpg", 11)
    after = open_source("w300@full-found", root=root)
    assert not np.allclose(before.labels["landmarks68"][2], after.labels["landmarks68"][2])
    np.testing.assert_array_equal(before.crops, after.crops)
    with pytest.raises(AssertionError):  # the twin: crops about the landmarks do know
        np.testing.assert_array_equal(open_source("w300@full", root=root).crops, before.crops)


def test_w300_found_does_without_a_training_face_whose_points_are_broken(tmp_path: Path) -> None:
    root = write_w300(tmp_path)
    write_boxes(root)
    before = open_source("w300@full-found", root=root, strict=True)
    next((root / "w300/lfpw/trainset").glob("*.pts")).write_text("version: 1\n")
    np.testing.assert_allclose(open_source("w300@full-found", root=root, strict=True).crops, before.crops, rtol=0.05)
    next((root / "w300/ibug").glob("*.pts")).write_text("version: 1\n")
    with pytest.raises(DataError):  # the twin: a face of the split itself is not done without
        open_source("w300@full-found", root=root, strict=True)


def test_w300_without_boxes_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bounding_boxes_ibug\.mat cannot be read"):
        open_source("w300@challenging-found", root=write_w300(tmp_path))


def test_a_pts_file_without_a_picture_or_with_a_point_missing_is_listed(tmp_path: Path) -> None:
    root = write_w300(tmp_path)
    (root / "w300/lfpw/testset/image_0001.png").unlink()
    file = root / "w300/helen/testset/30427236_1.pts"
    file.write_text("\n".join(line for number, line in enumerate(file.read_text().splitlines()) if number != 9))
    skipped = open_source("w300@full", root=root).skipped
    assert {reason: len(keys) for reason, keys in skipped.items()} == {"wrong landmark file": 1, "missing picture": 1}
    with pytest.raises(DataError, match="134 numbers"):
        open_source("w300@full", root=root, strict=True)


@pytest.mark.parametrize("inner", ["afw", ""])
def test_afw_is_for_testing_alone(tmp_path: Path, inner: str) -> None:
    for name, index in W300.items():
        if name.startswith("afw/"):
            write_pts(tmp_path / "afw" / inner / name.removeprefix("afw/"), index)
    corpus = open_source("afw", root=tmp_path, strict=True)
    assert len(corpus) == 2
    np.testing.assert_allclose(corpus.labels["landmarks68"][1], labelled("landmarks68", 1), atol=1e-4)
    assert inspect("afw@test", root=tmp_path)["tasks"]["landmarks5"]["outside_crop"] == 0
    with pytest.raises(UsageError, match="for testing alone"):
        open_source("afw@train", root=tmp_path)


# --- WFLW

LISTS = "wflw/WFLW_annotations/list_98pt_rect_attr_train_test"


def wflw_line(index: int, file: str, flags: str = "0 0 0 0 0 0", *, points: np.ndarray | None = None) -> str:
    points = labelled("landmarks98", index) if points is None else points
    x, y, side = crop_about(labelled("landmarks5", index))
    rectangle = f"{x - 0.25 * side:.3f} {y - 0.3 * side:.3f} {x + 0.25 * side:.3f} {y + 0.2 * side:.3f}"
    return f"{' '.join(f'{value:.6f}' for value in points.ravel())} {rectangle} {flags} {file}"


def write_wflw(folder: Path, *more: str) -> Path:
    (folder / LISTS).mkdir(parents=True)
    train = [wflw_line(index, f"{index % 4}--Parade/p_{index // 2}.jpg") for index in range(8)]
    test = [wflw_line(8, "37--Soccer/s_1.jpg", "1 0 0 0 1 0"), wflw_line(9, "37--Soccer/s_1.jpg", "0 1 1 1 0 1")]
    (folder / LISTS / "list_98pt_rect_attr_train.txt").write_text("\n".join([*train, *more]) + "\n")
    (folder / LISTS / "list_98pt_rect_attr_test.txt").write_text("\n".join(test) + "\n")
    for line in (*train, *test):
        picture(folder / "wflw/WFLW_images" / line.split()[-1], 0)
    return folder


def test_wflw_reads_points_flags_and_several_faces_of_a_picture(tmp_path: Path) -> None:
    root = write_wflw(tmp_path)
    corpus = open_source("wflw@test", root=root, strict=True)
    assert corpus.keys == ("WFLW_images/37--Soccer/s_1.jpg#1", "WFLW_images/37--Soccer/s_1.jpg#2")
    for row, index in enumerate((8, 9)):
        np.testing.assert_allclose(corpus.labels["landmarks98"][row], labelled("landmarks98", index), atol=1e-4)
    assert corpus.labels["occlusion"].tolist() == [1, 0]
    assert {name: values.tolist() for name, values in corpus.groups.items()} == {
        "pose": ["large", "normal"],
        "expression": ["normal", "exaggerated"],
        "illumination": ["normal", "extreme"],
        "make_up": ["no", "yes"],
        "occlusion": ["yes", "no"],
        "blur": ["clear", "blurred"],
    }
    assert corpus.load(1).shape == corpus.load(0).shape
    assert len(open_source("wflw@train", root=root)) == 8


def test_wflw_crops_come_from_the_rectangle_and_training_constants(tmp_path: Path) -> None:
    root = write_wflw(tmp_path)
    corpus = open_source("wflw@test", root=root)
    truth = np.array([crop_about(labelled("landmarks5", index)) for index in (8, 9)])
    # a tenth: the five of ninety-eight are not quite the five that the rectangles were drawn about
    assert np.abs(corpus.crops - truth).max() < 0.1 * truth[:, 2].max()
    listing = root / LISTS / "list_98pt_rect_attr_test.txt"
    lines = listing.read_text().splitlines()
    listing.write_text(
        "\n".join([wflw_line(8, "37--Soccer/s_1.jpg", points=labelled("landmarks98", 3)), lines[1]]) + "\n"
    )
    moved = open_source("wflw@test", root=root)
    np.testing.assert_array_equal(moved.crops, corpus.crops)
    assert not np.allclose(moved.labels["landmarks98"][0], corpus.labels["landmarks98"][0])
    listing.write_text("\n".join([wflw_line(5, "37--Soccer/s_1.jpg"), lines[1]]) + "\n")
    assert not np.array_equal(open_source("wflw@test", root=root).crops, corpus.crops)  # the twin: another rectangle


WFLW_FAULTS = {
    "short line": wflw_line(0, "0--Parade/p_0.jpg").partition(" ")[2],
    "wrong x0": "nan " + wflw_line(0, "0--Parade/p_0.jpg").partition(" ")[2],
    "wrong pose": wflw_line(0, "0--Parade/p_0.jpg", "2 0 0 0 0 0"),
    "wrong rectangle": " ".join([*wflw_line(0, "a").split()[:196], "9 9 9 20", *"000000", "0--Parade/p_0.jpg"]),
    "missing picture": wflw_line(0, "0--Parade/gone.jpg"),
}


@pytest.mark.parametrize("reason", WFLW_FAULTS)
def test_a_bad_line_of_wflw_is_listed_and_strict_names_it(tmp_path: Path, reason: str) -> None:
    root = write_wflw(tmp_path, WFLW_FAULTS[reason])
    corpus = open_source("wflw@train", root=root)
    assert {name: len(keys) for name, keys in corpus.skipped.items()} == {reason: 1}
    assert "jpg" in corpus.skipped[reason][0] or reason == "short line"
    with pytest.raises(DataError) as caught:
        open_source("wflw@train", root=root, strict=True)
    assert caught.value.where.endswith("train.txt:9")


def test_wflw_fit_and_dev_keep_a_picture_together(tmp_path: Path) -> None:
    root = write_wflw(tmp_path)
    files = {}
    for part in ("fit", "dev"):
        try:
            files[part] = {key.partition("#")[0] for key in open_source(f"wflw@{part}", root=root).keys}
        except DataError:
            files[part] = set()
    assert not files["fit"] & files["dev"]
    assert len(files["fit"] | files["dev"]) == 8
    assert inspect("wflw@test", root=root)["groups"]["pose"] == {"large": 1, "normal": 1}


# --- AFLW

SCHEMA = """
    CREATE TABLE Faces (face_id INTEGER PRIMARY KEY, file_id TEXT, db_id TEXT);
    CREATE TABLE FaceImages (image_id INTEGER PRIMARY KEY, db_id TEXT, file_id TEXT, filepath TEXT, bw INTEGER,
        width INTEGER, height INTEGER);
    CREATE TABLE FaceRect (face_id INTEGER PRIMARY KEY, x INTEGER, y INTEGER, w INTEGER, h INTEGER,
        annot_type_id INTEGER);
    CREATE TABLE FacePose (face_id INTEGER PRIMARY KEY, roll REAL, pitch REAL, yaw REAL, annot_type_id INTEGER);
    CREATE TABLE FaceMetaData (face_id INTEGER PRIMARY KEY, sex TEXT, occluded INTEGER, glasses INTEGER, bw INTEGER,
        annot_type_id INTEGER);
    CREATE TABLE FeatureCoords (face_id INTEGER, feature_id INTEGER, x REAL, y REAL, annot_type_id INTEGER);
"""
YAWS = (-70, -46, -30, -14, 0, 14, 16, 44, 46, 80)  # degrees, positive to the right of the picture
STEPS = (0, 0, 1, 2, 2, 2, 3, 3, 4, 4)


def write_aflw(folder: Path, *, sign: int = 1, unseen: tuple[int, ...] = (3,), boxless: tuple[int, ...] = (5,)) -> Path:
    base = folder / "aflw/data"
    base.mkdir(parents=True)
    with closing(sqlite3.connect(base / "aflw.sqlite")) as database:
        database.executescript(SCHEMA)
        for face in range(20):
            file = f"{(0, 2, 3)[face % 3]}/image{face // 2:05d}.jpg"
            yaw = YAWS[face % 10]
            database.execute("INSERT INTO Faces VALUES (?, ?, 'aflw')", (face, Path(file).name))
            picture(base / "flickr" / file, 0)
            five = np.array([[30.0, 40], [70, 40], [50 + 30 * np.sin(np.radians(yaw)), 60], [35, 80], [65, 80]]) + face
            x, y, side = crop_about(five)
            if face not in boxless:
                box = (x - 0.2 * side, y - 0.3 * side, 0.5 * side, 0.5 * side)
                database.execute("INSERT INTO FaceRect VALUES (?, ?, ?, ?, ?, 1)", (face, *box))
            pose = (0.0, 0.0, sign * np.radians(yaw))
            database.execute("INSERT INTO FacePose VALUES (?, ?, ?, ?, 1)", (face, *pose))
            data = ("mf"[face % 2], face % 5 == 0, face % 4 == 0)
            database.execute("INSERT INTO FaceMetaData VALUES (?, ?, ?, ?, 0, 1)", (face, *data))
            for feature, (px, py) in zip(aflw.FIVE, five, strict=True):
                if not (face in unseen and feature == 8):
                    database.execute("INSERT INTO FeatureCoords VALUES (?, ?, ?, ?, 1)", (face, feature, px, py))
            database.execute("INSERT INTO FeatureCoords VALUES (?, 21, 50, 95, 1)", (face,))
        for number, (file_id,) in enumerate(database.execute("SELECT DISTINCT file_id FROM Faces").fetchall()):
            face = next(index for index in range(20) if f"image{index // 2:05d}.jpg" == file_id)
            path = f"{(0, 2, 3)[face % 3]}/{file_id}"
            database.execute("INSERT INTO FaceImages VALUES (?, 'aflw', ?, ?, 0, 96, 96)", (number, file_id, path))
        database.commit()
    return folder


def both(root: Path) -> dict[int, tuple[Corpus, int]]:
    """Face to the corpus and row that hold it, over both sides."""
    found = {}
    for split in ("train", "test"):
        corpus = open_source(f"aflw@{split}", root=root, strict=True)
        found |= {int(key.partition("#")[2]): (corpus, row) for row, key in enumerate(corpus.keys)}
    return found


@pytest.mark.parametrize("sign", [1, -1])
def test_aflw_pose_follows_the_nose_whatever_the_sign_of_yaw(tmp_path: Path, sign: int) -> None:
    faces = both(write_aflw(tmp_path, sign=sign))
    assert {face: int(corpus.labels["pose"][row]) for face, (corpus, row) in faces.items()} == {
        face: STEPS[face % 10] for face in range(20) if face != 5
    }


def test_aflw_reads_what_the_database_says(tmp_path: Path) -> None:
    faces = both(write_aflw(tmp_path))
    assert set(faces) == set(range(20)) - {5}
    for face, (corpus, row) in faces.items():
        five = corpus.labels["landmarks5"][row]
        if face == 3:
            assert np.isnan(five).all()
        else:
            np.testing.assert_allclose(five[[0, 4]], [[30 + face, 40 + face], [65 + face, 80 + face]], rtol=1e-6)
        assert TASKS["gender"].classes[corpus.labels["gender"][row]] == ("male", "female")[face % 2]
        assert corpus.labels["occlusion"][row] == int(face % 5 == 0)
        assert corpus.labels["glasses"][row] == int(face % 4 == 0)
        assert corpus.keys[row].startswith(f"{(0, 2, 3)[face // 2 * 2 % 3]}/image{face // 2:05d}.jpg#")
        assert corpus.load(row).ndim == 3
    assert faces[4][0].research_only


def test_aflw_boxes_give_the_crop_and_a_face_without_one_is_left_out(tmp_path: Path) -> None:
    root = write_aflw(tmp_path)
    faces = both(root)
    skipped: dict[str, Any] = {}
    for split in ("train", "test"):
        skipped |= open_source(f"aflw@{split}", root=root).skipped
    assert list(skipped) == ["no box"]
    for face, (corpus, row) in faces.items():
        # written about the landmarks of the faces that are seen in full; the nose of a profile widens some crops
        x, y, side = corpus.crops[row]
        assert (x, y) == pytest.approx((50 + face, 60 + face), abs=0.12 * float(side))


def test_aflw_parts_by_picture(tmp_path: Path) -> None:
    root = write_aflw(tmp_path)
    sides = [
        {key.partition("#")[0] for key in open_source(f"aflw@{split}", root=root).keys} for split in ("train", "test")
    ]
    assert not sides[0] & sides[1]
    found = inspect("aflw@train", root=root)
    assert found["named"] == 0
    assert found["tasks"]["landmarks5"]["mirrored_eyes"] == 0


def test_a_file_that_is_no_aflw_database_is_refused(tmp_path: Path) -> None:
    root = write_aflw(tmp_path)
    with closing(sqlite3.connect(root / "aflw/data/aflw.sqlite")) as database:
        database.execute("DROP TABLE FaceRect")
        database.commit()
    with pytest.raises(DataError, match="no such table: FaceRect"):
        open_source("aflw", root=root)
    (root / "aflw/data/aflw.sqlite").write_bytes(b"not a database, however long it may be" * 9)
    with pytest.raises(DataError, match="cannot be read"):
        open_source("aflw", root=root)
    (root / "aflw/data/aflw.sqlite").unlink()
    with pytest.raises(DataError, match=r"aflw\.sqlite is missing"):
        open_source("aflw", root=root)


def test_a_wrong_value_in_the_database_is_listed(tmp_path: Path) -> None:
    root = write_aflw(tmp_path)
    train = open_source("aflw", root=root)
    face = int(train.keys[0].partition("#")[2])
    with closing(sqlite3.connect(root / "aflw/data/aflw.sqlite")) as database:
        database.execute("UPDATE FaceMetaData SET sex = 'x' WHERE face_id = ?", (face,))
        database.commit()
    again = open_source("aflw", root=root)
    assert {name: len(keys) for name, keys in again.skipped.items() if name != "no box"} == {"wrong sex": 1}
    assert len(again) == len(train) - 1
