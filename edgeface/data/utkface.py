"""UTKFace: age, gender and five races, written in the names of the pictures; 68 landmarks where their lists are there.

Source:
    Zhang, Song, Qi, Age Progression/Regression by Conditional Adversarial Autoencoder, CVPR 2017; for non-commercial
    research, the pictures' rights stay with their owners.

Layout, as published ("aligned and cropped"): 200×200 pictures in `UTKFace` named

    AGE_GENDER_RACE_DATE.jpg.chip.jpg       30_1_2_20170116174525125.jpg.chip.jpg

with gender 0 male, 1 female; race 0 White, 1 Black, 2 Asian, 3 Indian, 4 Others; and, optionally, the three lists
`landmark_list_part1.txt` … `part3.txt`, one picture a line: its name without .chip.jpg, and 68 times x y in whole
pixels of the aligned picture. Some names are malformed. What a name leaves no doubt about is kept:

    39_1_20170116174525125.jpg.chip.jpg     a field short: which of gender and race it is nobody knows; the age is kept
    53__0_20170116184028385.jpg.chip.jpg    an empty field: no label
    24_0_1_20170116220224657 .jpg.chip.jpg  a blank, 55_0_0_20170116232725357jpg.chip.jpg  a missing dot,
    44_1_4_20170116235150272.pg.chip.jpg    a missing letter: read as meant

and any other is listed as faulty. An age above 100, of which the age output knows none, is no label. Race is a group to
report by.

Crop: the pictures were cut by dlib, as FairFace's were; its measured constants serve here. [Assumed: the same padding.]

Splits: none is published. `test` is a fifth of the pictures, by a hash of the name; `train` the rest, parted by `fit`
and `dev` into nine tenths and one. People are not named, so one may stand on both sides.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeface.data.corpus import Corpus
from edgeface.data.fairface import CROP
from edgeface.data.images import read_size
from edgeface.data.listing import (
    TRAIN_PARTS,
    Face,
    Row,
    Terms,
    check_split,
    first_there,
    gather,
    in_part,
    read_files,
    read_lines,
)
from edgeface.data.points import Points, five_points
from edgeface.tasks import AGE_STAGES, TASKS

TERMS = Terms(name="utkface", version=1, licence="non-commercial research only (UTKFace)", research_only=True)
SPLITS = (*TRAIN_PARTS, "test")
RACES = ("White", "Black", "Asian", "Indian", "Others")

_LAYOUT = "the published folder of aligned and cropped faces: UTKFace/AGE_GENDER_RACE_DATE.jpg.chip.jpg"
_PICTURES = "*.[jJ][pP][gG]"
_NAME = re.compile(
    r"^(?P<age>\d{1,3})_(?P<rest>(?:\d?_){1,2})(?P<date>\d{14,17}) ?\.?j?pg(?:\.chip\.jpg)?$", re.IGNORECASE
)
_COLUMNS = ("file", *(f"{axis}{point}" for point in range(68) for axis in "xy"))


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
        path: Folder that holds the pictures, or holds them in UTKFace.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first name that cannot be read instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: There is no usable face; with `strict`, any bad name, line or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Choose by @dev, and train on @fit meanwhile")
    folder = "UTKFace/" if (path / "UTKFace").is_dir() else ""
    landmarks = _landmarks(path, source=source)

    def parse(row: Row) -> Face | None:
        key = row.path("file")
        name = key.removeprefix(folder)
        if is_test(name) != (split == "test") or (split != "test" and not in_part(name, split)):
            return None
        labels, groups = _said(row, name)
        line = landmarks.get(name.removesuffix(".chip.jpg"))
        if line is not None:
            points = _points(line)
            # Whole pixels of dlib: (0, 0) is the centre of the first pixel.
            labels |= {"landmarks68": points / 200, "landmarks5": five_points(points) / 200}
        return Face(key=key, crop=CROP, labels=labels, groups=groups)

    return gather(
        path,
        read_files(path, f"{folder}{_PICTURES}", source=source, layout=_LAYOUT),
        parse,
        terms=TERMS,
        tasks=("age", "gender", *(("landmarks5", "landmarks68") if landmarks else ())),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def is_test(name: str) -> bool:
    """Whether a picture is in the fifth that is tested on."""
    return hashlib.sha256(f"utkface test {name}".encode()).digest()[0] % 5 == 0


def _said(row: Row, name: str) -> tuple[dict[str, object], dict[str, str]]:
    """Labels and groups that a name leaves no doubt about."""
    known = _NAME.match(name)
    if known is None:
        raise row.fault(f"wrong name: {name!r}", expected="AGE_GENDER_RACE_DATE.jpg.chip.jpg")
    fields = known["rest"].split("_")[:-1]
    gender, race = fields if len(fields) == 2 else ("", "")
    if gender not in ("", "0", "1") or race not in ("", "0", "1", "2", "3", "4"):
        raise row.fault(f"wrong name: {name!r}", expected="gender 0 or 1, race 0 to 4")
    years = int(known["age"])
    labels: dict[str, object] = {"age": np.array([years, years])} if years < AGE_STAGES else {}
    if gender:
        labels["gender"] = TASKS["gender"].classes.index(("male", "female")[int(gender)])
    return labels, {"race": RACES[int(race)] if race else ""}


def _landmarks(path: Path, *, source: str) -> dict[str, Row]:
    """Name without .chip.jpg to its line, of the lists that are there."""
    found: dict[str, Row] = {}
    for part in (1, 2, 3):
        name = f"landmark_list_part{part}.txt"
        listing = first_there(path, (name, f"UTKFace/{name}"))
        if listing.is_file():
            rows = read_lines(listing, _COLUMNS, source=source, layout=_LAYOUT)
            found |= {row.cells["file"]: row for row in rows}
    return found


def _points(row: Row) -> Points:
    if row.broken:
        raise row.fault(row.broken, expected="a name and 136 numbers")
    return row.numbers(_COLUMNS[1:]).reshape(68, 2) + 0.5
