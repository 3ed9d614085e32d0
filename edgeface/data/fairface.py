"""FairFace: gender, nine age bins, and seven races to report by.

Source:
    Kärkkäinen and Joo, FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age, WACV 2021; CC BY 4.0. Its
    pictures come from YFCC-100M, whose photographers chose Creative Commons licences of their own.

Layout, as published: `fairface_label_train.csv` and `fairface_label_val.csv` with the columns

    file,age,gender,race,service_test

and pictures in `train/` and `val/` (the edition with margin 0.25, 224×224). Age is one of nine bins; the last, "more
than 70", is read as 70 to 100 years. Copies that went through a spreadsheet hold two bins as dates, `03-Sep` (3-9) and
`Oct-19` (10-19), which are read as the bins they were. Race is a group to report by, not a label to learn.

Splits: `train` and `val` are the published lists; `fit` and `dev` part the training list into nine tenths and one, so
that something can be chosen without the list that is reported on. There is no published test list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import TRAIN_PARTS, Face, Row, Terms, check_split, gather, in_part, read_table
from edgeface.tasks import TASKS

TERMS = Terms(
    name="fairface",
    version=1,
    licence="CC BY 4.0 (FairFace); pictures from YFCC-100M under licences of their own",
    research_only=False,
)
SPLITS = (*TRAIN_PARTS, "val")
RACES = ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern")
AGE_BINS = {
    "0-2": (0, 2),
    "3-9": (3, 9),
    "10-19": (10, 19),
    "20-29": (20, 29),
    "30-39": (30, 39),
    "40-49": (40, 49),
    "50-59": (50, 59),
    "60-69": (60, 69),
    "more than 70": (70, 100),
}

# Medians over 2,000 training faces of the box around a teacher's five points (VGG16 trained on MTFL, four rounds of
# predicting and cropping anew); centre x, side over the width, centre y over the height: (x, y, side).
CROP = (0.495, 0.499, 0.920)

_COLUMNS = ("file", "age", "gender", "race")
_LAYOUT = "the published FairFace folder: fairface_label_train.csv, fairface_label_val.csv, train, val"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


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
        path: Folder that holds the two lists and the two picture folders.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad row instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The folder or list is missing; with `strict`, any bad row or picture.
        UsageError: No such split.
    """
    why = "FairFace publishes no test list; results are reported on fairface@val" if split == "test" else ""
    check_split(split, SPLITS, source=source, why=why)
    part = "val" if split == "val" else "train"

    def parse(row: Row) -> Face | None:
        key = row.path("file")
        if part == "train" and not in_part(key, split):
            return None
        age = age_bin(row["age"])
        if age is None:
            raise row.fault(f"wrong age: {row['age']!r}", expected=f"one of {', '.join(map(repr, AGE_BINS))}")
        gender = row.one_of("gender", ("Male", "Female")).lower()
        return Face(
            key=key,
            crop=CROP,
            labels={"gender": TASKS["gender"].classes.index(gender), "age": AGE_BINS[age]},
            groups={"race": row.one_of("race", RACES), "age": age},
        )

    rows = read_table(path / f"fairface_label_{part}.csv", _COLUMNS, source=source, layout=_LAYOUT)
    return gather(
        path,
        rows,
        parse,
        terms=TERMS,
        tasks=("gender", "age"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def age_bin(text: str) -> str | None:
    """The bin that a cell means, also where a spreadsheet took it for a date; None where it means none."""
    if text in AGE_BINS:
        return text
    parts = re.split(r"[-/ ]", text.lower())
    if len(parts) != 2:
        return None
    # A date that is written without its year comes back as day-month or month-day, with or without leading zeros.
    numbers = [_number(part) for part in parts]
    dates = {(3, 9): "3-9", (9, 3): "3-9", (10, 19): "10-19", (19, 10): "10-19", (10, 2019): "10-19"}
    return dates.get((numbers[0], numbers[1])) if any(part[:3] in _MONTHS for part in parts) else None


def _number(part: str) -> int:
    """Month by name, or a day, month or year in digits; -1 for anything else."""
    if part[:3] in _MONTHS:
        return _MONTHS.index(part[:3]) + 1
    return int(part) if part.isdecimal() and len(part) <= 4 else -1
