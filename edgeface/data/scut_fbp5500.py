"""SCUT-FBP5500: the mean beauty score that sixty raters gave each of 5,500 frontal faces; gender; two ethnicities.

Source:
    Liang et al., SCUT-FBP5500: A Diverse Benchmark Dataset for Multi-Paradigm Facial Beauty Prediction, ICPR 2018; for
    non-commercial research. Layout of SCUT-FBP5500_v2, from the corpus's own repository.

Layout, as published: pictures of 350×350 in `Images`, and in `train_test_files`

    All_labels.txt
    split_of_60%training and 40%testing/train.txt, test.txt
    5_folders_cross_validations_files/cross_validation_K/train_K.txt, test_K.txt      K from 1 to 5

one face a line, `CF437.jpg 2.883333`: name and mean score, 1 to 5. The name's letters are ethnicity (A Asian,
C Caucasian) and gender (F, M); the first edition wrote fty, ftw, mty and mtw. The score becomes `beauty_score` =
(score - 1) / 4; errors are four times as much on the scale of the raters. Ethnicity is a group to report by. The 86
landmarks (`facial landmark`, of an order of their own) are not read.

Crop: the whole picture. [Assumed: no picture was at hand to measure on.]

Splits: `train` and `test` are the 60 % and 40 %; `foldK-train` and `foldK-test` those of the five folds; `fit` and
`dev`, and `foldK-fit` and `foldK-dev`, part a training list into nine tenths and one, to choose by.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import (
    TRAIN_PARTS,
    Face,
    Row,
    Terms,
    check_split,
    fold_and_part,
    fold_splits,
    gather,
    in_part,
    read_lines,
)
from edgeface.tasks import TASKS

LOWEST, HIGHEST = 1.0, 5.0
TERMS = Terms(
    name="scut_fbp5500",
    version=1,
    licence="non-commercial research only (SCUT-FBP5500)",
    research_only=True,
    scales={"beauty_score": (LOWEST, HIGHEST)},
)
SPLITS = (*TRAIN_PARTS, "test", *fold_splits(5))
CROP = (0.5, 0.5, 1.0)

_LAYOUT = "the published SCUT-FBP5500_v2 folder: Images, train_test_files"
_NAME = re.compile(r"^(AF|AM|CF|CM|fty|mty|ftw|mtw)\d+\.jpg$")
_PEOPLE = {
    **dict.fromkeys(("AF", "fty"), ("asian", "female")),
    **dict.fromkeys(("AM", "mty"), ("asian", "male")),
    **dict.fromkeys(("CF", "ftw"), ("caucasian", "female")),
    **dict.fromkeys(("CM", "mtw"), ("caucasian", "male")),
}


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
        path: Folder that holds Images and train_test_files.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad line instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The list is missing or has no usable face; with `strict`, any bad line or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Choose by @dev, and train on @fit meanwhile")
    _, part = fold_and_part(split)

    def parse(row: Row) -> Face | None:
        name = row.path("file")
        known = _NAME.match(name)
        if known is None:
            raise row.fault(f"wrong name: {name!r}", expected="AF, AM, CF or CM, a number and .jpg")
        if part != "test" and not in_part(name, part):
            return None
        ethnicity, gender = _PEOPLE[known.group(1)]
        score = (row.number("score", LOWEST, HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
        return Face(
            key=f"Images/{name}",
            crop=CROP,
            labels={"beauty_score": score, "gender": TASKS["gender"].classes.index(gender)},
            groups={"ethnicity": ethnicity},
        )

    return gather(
        path,
        read_lines(listing(path, split), ("file", "score"), source=source, layout=_LAYOUT),
        parse,
        terms=TERMS,
        tasks=("beauty_score", "gender"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def listing(path: Path, split: str) -> Path:
    """The published list of a split."""
    fold, part = fold_and_part(split)
    name = "test" if part == "test" else "train"
    if fold:
        folds = path / "train_test_files" / "5_folders_cross_validations_files"
        return folds / f"cross_validation_{fold}" / f"{name}_{fold}.txt"
    return path / "train_test_files" / "split_of_60%training and 40%testing" / f"{name}.txt"
