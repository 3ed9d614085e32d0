"""AFLW: 21 landmarks where visible, box, pose, sex, glasses and occlusion of 24,386 faces in pictures from Flickr.

Source:
    Koestinger, Wohlhart, Roth, Bischof, Annotated Facial Landmarks in the Wild, ICCV workshops 2011; for
    non-commercial research.

Layout, as published: the database `data/aflw.sqlite` with the tables

    Faces(face_id, file_id, db_id)                 FaceImages(image_id, db_id, file_id, filepath, bw, width, height)
    FaceRect(face_id, x, y, w, h, …)               FacePose(face_id, roll, pitch, yaw, …), in radians
    FeatureCoords(face_id, feature_id, x, y, …)    FaceMetaData(face_id, sex, occluded, glasses, bw, …)

and pictures in `data/flickr/0`, `2` and `3`, as `filepath` ("0/image00002.jpg") says. Points that cannot be seen are
absent; `landmarks5` needs all of LeftEyeCenter 8, RightEyeCenter 11, NoseCenter 15, MouthLeftCorner 18 and
MouthRightCorner 20 (left as seen in the picture). Sex is m or f, glasses and occluded 0 or 1. Faces without a box
(twelve are known) are left out and counted. Coordinates are taken as they stand. [Assumed: they count from the outer
corner of the first pixel.]

Pose is the yaw in MTFL's five steps (0, 30 and 60 degrees to either side, so parted at 15 and 45). Which sign of yaw is
which side is not documented, so the database is asked: a face turns to where its nose lies between the eyes, and the
sign follows from the sum over all faces that show the three.

Crop: by the face's published box, as the corpus's protocol allows, and constants: where the crop about the landmarks
lies in the box, in the median over the training faces. No test landmark enters.

Splits: none is published with the database. `test` is a fifth of the pictures, by a hash of the file; `train` the rest,
parted by `fit` and `dev` into nine tenths and one. MTFL's test pictures are AFLW's: a network trained on this corpus
cannot be reported on `mtfl@test`.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np

from edgeface import limits
from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import (
    TRAIN_PARTS,
    Face,
    LeftOut,
    Row,
    Terms,
    check_split,
    first_there,
    gather,
    in_part,
)
from edgeface.data.points import Points, crop_in, usual_place
from edgeface.errors import DataError
from edgeface.tasks import TASKS

TERMS = Terms(
    name="aflw",
    version=1,
    licence="non-commercial research only (AFLW, Graz University of Technology)",
    research_only=True,
)
SPLITS = (*TRAIN_PARTS, "test")
FIVE = (8, 11, 15, 18, 20)  # feature_id of the five landmarks
STEPS_DEGREES = (15.0, 45.0)

_LAYOUT = "the published AFLW folder: data/aflw.sqlite, data/flickr"
_TABLES = ("Faces", "FaceImages", "FaceRect", "FacePose", "FaceMetaData", "FeatureCoords")
_FARTHEST_PX = 1e6  # beyond it no picture reaches
_STEPS = 1000  # of SQLite's, from one look at the clock to the next
_FACES = """
    SELECT CAST(Faces.face_id AS INTEGER) AS face, CAST(COALESCE(FaceImages.filepath, '') AS TEXT) AS file,
           CAST(FaceRect.x AS REAL) AS x, CAST(FaceRect.y AS REAL) AS y, CAST(FaceRect.w AS REAL) AS w,
           CAST(FaceRect.h AS REAL) AS h, CAST(FacePose.yaw AS REAL) AS yaw, FaceMetaData.sex AS sex,
           FaceMetaData.glasses AS glasses, FaceMetaData.occluded AS occluded
    FROM Faces
    JOIN FaceImages ON FaceImages.file_id = Faces.file_id
    LEFT JOIN FaceRect ON FaceRect.face_id = Faces.face_id
    LEFT JOIN FacePose ON FacePose.face_id = Faces.face_id
    LEFT JOIN FaceMetaData ON FaceMetaData.face_id = Faces.face_id
    GROUP BY Faces.face_id ORDER BY FaceImages.filepath, Faces.face_id
"""
_POINTS = f"""
    SELECT CAST(face_id AS INTEGER), feature_id, CAST(COALESCE(x, 0) AS REAL), CAST(COALESCE(y, 0) AS REAL)
    FROM FeatureCoords WHERE feature_id IN {FIVE}
"""


def read(
    path: Path,
    *,
    source: str,
    split: str,
    strict: bool = False,
    size_of: Callable[[Path], tuple[int, int]] = read_size,
) -> Corpus:
    """Reads one split.

    Args:
        path: Folder that holds data/aflw.sqlite, or is data.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad face instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The database is missing or is none, or there is no usable face; with `strict`, any bad face.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Choose by @dev, and train on @fit meanwhile")
    database = first_there(path, ("data/aflw.sqlite", "aflw.sqlite", "aflw/data/aflw.sqlite"))
    found, points = _query(database, source=source)
    rows = [_row(database, face) for face in found]
    boxes = {face["face"]: _box(face) for face in found if None not in (face[name] for name in "xywh")}
    whole = [face["face"] for face in found if not is_test(face["file"]) and _whole(points, boxes, face["face"])]
    # A face that reaches to infinity would take every crop along; `gather` counts it when its turn comes.
    known = [face for face in whole if _fits(boxes[face]) and _fits(_five(points[face]))]
    place = usual_place([boxes[face] for face in known], [_five(points[face]) for face in known])
    side = _side_of_positive_yaw(found, points)

    def parse(row: Row) -> Face | LeftOut | None:
        file, face = row.path("file"), int(row["face"])
        if is_test(file) != (split == "test") or (split != "test" and not in_part(file, split)):
            return None
        key = f"{file}#{face}"
        if face not in boxes:
            return LeftOut(key=key, reason="no box")
        if min(boxes[face][2:]) <= 0 or not _fits(boxes[face]):
            raise row.fault(f"wrong box: {boxes[face].tolist()}", expected="pixels, width and height above 0")
        labels: dict[str, Any] = _attributes(row)
        if side and row["yaw"]:
            labels["pose"] = _step(side * row.number("yaw", -7.0, 7.0))
        if _whole(points, boxes, face):
            five = _five(points[face])
            if not _fits(five):
                raise row.fault(f"wrong landmarks: {five.tolist()}", expected="pixels")
            labels["landmarks5"] = five
        crop = crop_in(boxes[face], place)
        return Face(key=key, file=f"flickr/{file}", crop=crop, labels=labels, unit="pixel")

    return gather(
        database.parent,
        rows,
        parse,
        terms=TERMS,
        tasks=("landmarks5", "pose", "gender", "glasses", "occlusion"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def is_test(file: str) -> bool:
    """Whether a picture is in the fifth that is tested on."""
    return hashlib.sha256(f"aflw test {file}".encode()).digest()[0] % 5 == 0


def _query(database: Path, *, source: str) -> tuple[list[dict[str, Any]], dict[int, dict[int, tuple[float, float]]]]:
    """Faces, and of each face the points that are seen: feature_id to x, y."""
    if not database.is_file():
        raise DataError(
            f"{database} is missing",
            expected=_LAYOUT,
            where=source,
            do="Set EDGEFACE_DATA to the folder that holds the corpora, or type this one's path: aflw:PATH",
        )
    expected = "the published SQLite database"
    size = database.stat().st_size
    if size > limits.DATABASE_BYTES:
        most = f"at most {limits.DATABASE_BYTES:,} are read"
        raise DataError(f"{database} cannot be read ({size:,} bytes, where {most})", expected=expected, where=source)
    end = thread_time() + limits.DATABASE_S

    def is_late() -> bool:
        return thread_time() > end

    try:
        # Immutable: no lock, no journal and no shared memory file, which could be hostile too, is looked for.
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.DATABASE_VALUE_BYTES)
            connection.set_progress_handler(is_late, _STEPS)
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
                connection.execute(f"PRAGMA {pragma}")
            for table in _TABLES:
                _check_table(connection, table, database=database)
            connection.row_factory = sqlite3.Row
            found = [dict(row) for row in _answer(connection, _FACES, database=database)]
            connection.row_factory = None
            points: dict[int, dict[int, tuple[float, float]]] = {}
            for face, feature, x, y in _answer(connection, _POINTS, database=database):
                points.setdefault(face, {})[feature] = (x, y)
    except (sqlite3.Error, ValueError) as error:  # names that are no UTF-8 are no error of SQLite's
        why = f"more than {limits.DATABASE_S:g} s of CPU time" if is_late() else str(error)
        raise DataError(
            f"{database} cannot be read ({why})",
            expected=expected,
            where=source,
            do="Fetch the database as published",
        ) from None
    return found, points


def _check_table(connection: sqlite3.Connection, name: str, *, database: Path) -> None:
    """See that a table holds what it gives: a view or a computed column would run SQL of whoever wrote the file."""
    schema = connection.execute("SELECT type, rootpage FROM sqlite_master WHERE name = ? COLLATE NOCASE", (name,))
    for kind, page in schema.fetchmany(limits.DATABASE_ROWS):
        if kind != "table" or not page:
            raise _foreign(database, f"{name} is a {kind if kind != 'table' else 'virtual table'}")
    for _, column, *_, hidden in connection.execute(f"PRAGMA table_xinfo({name})"):
        if hidden:
            raise _foreign(database, f"column {column!r} of {name} is computed")


def _foreign(database: Path, found: str) -> DataError:
    return DataError(
        found,
        expected=f"plain tables: {', '.join(_TABLES)}",
        where=str(database),
        do="Fetch the database as published",
    )


def _answer(connection: sqlite3.Connection, query: str, *, database: Path) -> list[Any]:
    """All rows of an answer.

    Raises:
        DataError: There are more than `limits` allows.
    """
    rows = connection.execute(query).fetchmany(limits.DATABASE_ROWS + 1)
    if len(rows) > limits.DATABASE_ROWS:
        raise DataError(
            f"{database} cannot be read (more than {limits.DATABASE_ROWS:,} rows)",
            expected="the published SQLite database",
            where=str(database),
            do="Fetch the database as published",
        )
    return rows


def _row(database: Path, face: Mapping[str, Any]) -> Row:
    cells = {name: "" if value is None else str(value) for name, value in face.items()}
    return Row(where=f"{database}:face {face['face']}", cells=cells)


def _box(face: Mapping[str, Any]) -> Points:
    return np.array([face[name] for name in "xywh"], dtype=np.float64)


def _fits(pixels: Points) -> bool:
    return bool((np.abs(pixels) < _FARTHEST_PX).all())


def _whole(points: Mapping[int, Mapping[int, tuple[float, float]]], boxes: Mapping[int, Points], face: int) -> bool:
    return face in boxes and set(points.get(face, ())) == set(FIVE)


def _five(seen: Mapping[int, tuple[float, float]]) -> Points:
    return np.array([seen[feature] for feature in FIVE])


def _side_of_positive_yaw(found: list[dict[str, Any]], points: Mapping[int, Mapping[int, tuple[float, float]]]) -> int:
    """1 where faces of positive yaw turn to the picture's right, -1 to its left, 0 where no face tells."""
    total = 0.0
    for face in found:
        seen = points.get(face["face"], {})
        if face["yaw"] is not None and set(FIVE[:3]) <= set(seen):
            (left, _), (right, _), (nose, _) = (seen[feature] for feature in FIVE[:3])
            if right != left and _fits(np.array([left, right, nose, face["yaw"]])):
                total += float(face["yaw"]) * (nose - (left + right) / 2) / abs(right - left)
    return int(np.sign(total))


def _step(yaw: float) -> int:
    """Class of `pose` of a yaw in radians, positive to the picture's right."""
    steps = int(np.searchsorted(STEPS_DEGREES, abs(np.degrees(yaw)), side="right"))
    return 2 + (steps if yaw > 0 else -steps)


def _attributes(row: Row) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    if row["sex"]:
        gender = {"m": "male", "f": "female"}[row.one_of("sex", ("m", "f"))]
        labels["gender"] = TASKS["gender"].classes.index(gender)
    for column, task in (("glasses", "glasses"), ("occluded", "occlusion")):
        if row[column]:
            labels[task] = int(row.one_of(column, ("0", "1")))
    return labels
