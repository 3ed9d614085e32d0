"""FER+: the pictures of FER2013 with the expression votes of ten raters each.

Source:
    Goodfellow et al., Challenges in Representation Learning, 2013 (pictures, for research only); Barsoum et al.,
    Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution, ICMI 2016 (votes,
    MIT licence).

Layout, as published: `fer2013new.csv` with the columns

    Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF

and 48×48 grey pictures in `FER2013Train`, `FER2013Valid` and `FER2013Test`. Rows that hold no face (NF) have no name.

The label is the expression with the most votes. Pictures for which "unknown" or "NF" (no face) alone has the most are
left out and counted. Where two tie for the most there is no majority: the picture stays, without a label. A majority
for contempt is a label of `expression8` and none of `expression`, which does not have that class.

Splits: `train`, `val` and `test` are Training, PublicTest and PrivateTest; `fit` and `dev` part Training into nine
tenths and one, so that something can be chosen without a list that is reported on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import (
    TRAIN_PARTS,
    Face,
    LeftOut,
    Row,
    Terms,
    check_split,
    gather,
    in_part,
    read_table,
)
from edgeface.tasks import EXPRESSIONS, TASKS

TERMS = Terms(
    name="ferplus",
    version=1,
    licence="research only (FER2013 pictures); votes MIT (FER+)",
    research_only=True,
)
SPLITS = (*TRAIN_PARTS, "val", "test")

# Column to class of `expression8`, in the table's order; the last two are no expressions.
VOTES = {
    "neutral": "calm",
    "happiness": "happy",
    "surprise": "surprised",
    "sadness": "sad",
    "anger": "angry",
    "disgust": "disgust",
    "fear": "scared",
    "contempt": "contempt",
    "unknown": "",
    "NF": "",
}

# Medians over 2,000 training faces of the box around a teacher's five points (VGG16 trained on MTFL, four rounds of
# predicting and cropping anew); centre x, side over the width, centre y over the height: (x, y, side).
CROP = (0.503, 0.582, 0.991)

_USAGES = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
_PARTS = {**dict.fromkeys(TRAIN_PARTS, "Training"), "val": "PublicTest", "test": "PrivateTest"}
_LAYOUT = "the published FER+ folder: fer2013new.csv, FER2013Train, FER2013Valid, FER2013Test"


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
        path: Folder that holds fer2013new.csv and the picture folders.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad row instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: The folder or list is missing, or has no row of the split; with `strict`, any bad row or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source)
    usage = _PARTS[split]

    def parse(row: Row) -> Face | LeftOut | None:
        if row.one_of("Usage", tuple(_USAGES)) != usage:
            return None
        votes = np.array([row.number(column, 0, 1000) for column in VOTES])
        if not votes.any() or (votes % 1).any():
            raise row.fault(f"wrong votes: {votes.tolist()}", expected="whole numbers, not all of them 0")
        name = row["Image name"]
        first = [column for column, count in zip(VOTES, votes, strict=True) if count == votes.max()]
        winner = first[0] if len(first) == 1 else ""
        key = f"{_USAGES[usage]}/{name}" if name else ""
        if usage == "Training" and not in_part(key, split):
            return None
        if winner and not VOTES[winner]:
            return LeftOut(key=key, reason=f"{winner!r} has the most votes")
        row.path("Image name")
        return Face(key=key, crop=CROP, labels=_labels(VOTES.get(winner, "")))

    rows = read_table(path / "fer2013new.csv", ("Usage", "Image name", *VOTES), source=source, layout=_LAYOUT)
    return gather(
        path,
        rows,
        parse,
        terms=TERMS,
        tasks=("expression", "expression8"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def _labels(name: str) -> dict[str, int]:
    if not name:
        return {}
    labels = {"expression8": TASKS["expression8"].classes.index(name)}
    return labels | ({"expression": EXPRESSIONS.index(name)} if name in EXPRESSIONS else {})
