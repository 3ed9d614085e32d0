"""RAF-DB (basic): seven expressions by about forty raters each, gender, five ages, three races.

Source:
    Li, Deng, Du, Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the Wild,
    CVPR 2017; for non-commercial research.

Layout, as published, in `basic`:

    EmoLabel/list_patition_label.txt                   (so spelled) lines of train_00001.jpg 5
    Image/aligned/train_00001_aligned.jpg              100×100
    Annotation/manual/train_00001_manu_attri.txt       five lines of x y in the original picture, then gender, race, age

Expressions are 1 surprise, 2 fear, 3 disgust, 4 happiness, 5 sadness, 6 anger, 7 neutral; gender is 0 male, 1 female,
2 unsure (no label); race 0 Caucasian, 1 African-American, 2 Asian; age 0 to 4 for 0-3, 4-19, 20-39, 40-69 and over
69, read as 70 to 100 years. Without Annotation/manual there are expressions alone. Race and age are groups to report
by. The landmarks lie in the original pictures and are not read: the aligned pictures, which results are reported on,
were turned and cut.

Crop: the whole picture. [Assumed: no picture was at hand to measure on.]

Splits: `train` and `test` as the names say; `fit` and `dev` part `train` into nine tenths and one, to choose by.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeface import limits
from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import TRAIN_PARTS, Face, Row, Terms, check_split, gather, in_part, read_lines
from edgeface.errors import DataError
from edgeface.files import read_limited
from edgeface.tasks import EXPRESSIONS, TASKS

TERMS = Terms(name="rafdb", version=1, licence="non-commercial research only (RAF-DB)", research_only=True)
SPLITS = (*TRAIN_PARTS, "test")
CROP = (0.5, 0.5, 1.0)
CODES = ("surprised", "scared", "disgust", "happy", "sad", "angry", "calm")  # from 1
RACES = ("Caucasian", "African-American", "Asian")
AGES = {"0-3": (0, 3), "4-19": (4, 19), "20-39": (20, 39), "40-69": (40, 69), "70+": (70, 100)}

_ATTRIBUTES = (("0", "1", "2"), ("0", "1", "2"), ("0", "1", "2", "3", "4"))  # codes of gender, race and age
_LAYOUT = "the published RAF-DB folder basic: EmoLabel, Image/aligned, Annotation/manual"


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
        path: Folder that holds basic, or is it.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad line or file instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The list is missing or has no usable face; with `strict`, any bad line, attribute file or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Choose by @dev, and train on @fit meanwhile")
    base = path / "basic" if (path / "basic").is_dir() else path
    attributes = base / "Annotation" / "manual"
    described = attributes.is_dir()

    def parse(row: Row) -> Face | None:
        name = row.path("file").removesuffix(".jpg")
        part = name.partition("_")[0]
        if part not in ("train", "test"):
            raise row.fault(f"wrong name: {row['file']!r}", expected="train_ or test_ and a number")
        if part != ("test" if split == "test" else "train") or (split != "test" and not in_part(name, split)):
            return None
        code = row.one_of("expression", tuple(map(str, range(1, len(CODES) + 1))))
        labels: dict[str, object] = {"expression": EXPRESSIONS.index(CODES[int(code) - 1])}
        groups: dict[str, str] = {}
        if described:
            more, groups = _attributes(attributes / f"{name}_manu_attri.txt")
            labels |= more
        return Face(key=f"Image/aligned/{name}_aligned.jpg", crop=CROP, labels=labels, groups=groups)

    rows = read_lines(
        base / "EmoLabel" / "list_patition_label.txt", ("file", "expression"), source=source, layout=_LAYOUT
    )
    return gather(
        base,
        rows,
        parse,
        terms=TERMS,
        tasks=("expression", *(("gender", "age") if described else ())),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def _attributes(file: Path) -> tuple[dict[str, object], dict[str, str]]:
    """Labels and groups of a manual attribute file."""
    try:
        words = read_limited(file, limit=limits.LABEL_LINE).decode("utf-8-sig").split()
    except (OSError, ValueError) as error:
        raise DataError(
            f"missing attribute file: {file.name!r} ({error})", expected="a text file", where=str(file), do="Restore it"
        ) from None
    codes = words[10:]
    if len(words) != 13 or any(code not in known for code, known in zip(codes, _ATTRIBUTES, strict=True)):
        raise DataError(
            f"wrong attribute file: {file.name!r} with {words[10:]} after the landmarks",
            expected="five lines of x y, then gender 0 to 2, race 0 to 2 and age 0 to 4",
            where=str(file),
            do="Copy the file again",
        )
    gender, race, age = map(int, codes)
    name = tuple(AGES)[age]
    labels: dict[str, object] = {"age": AGES[name]}
    if gender < 2:
        labels["gender"] = TASKS["gender"].classes.index(("male", "female")[gender])
    return labels, {"race": RACES[race], "age": name}
