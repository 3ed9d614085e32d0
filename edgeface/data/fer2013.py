"""FER2013: 48×48 grey faces in seven expressions, pixels and all in one table.

Source:
    Goodfellow et al., Challenges in Representation Learning: A report on three machine learning contests, ICONIP 2013;
    pictures for research only.

Layout, as published: `fer2013.csv` with the columns

    emotion,pixels,Usage

where emotion is 0 angry, 1 disgust, 2 fear, 3 happy, 4 sad, 5 surprise, 6 neutral, and pixels are 2,304 numbers from 0
to 255, row by row, parted by blanks. The later copy, `icml_face_data.csv`, has other order and blanks in its first
line: `emotion, Usage, pixels`. Pictures of one colour, of which there are some, are left out and counted. The FER+
votes for the same pictures are the corpus `ferplus`.

Splits: `train`, `val` and `test` are Training, PublicTest and PrivateTest; `fit` and `dev` part Training into nine
tenths and one, so that something can be chosen without a list that is reported on.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.data.corpus import Corpus
from edgeface.data.ferplus import CROP
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
    read_table,
)
from edgeface.tasks import EXPRESSIONS

TERMS = Terms(name="fer2013", version=1, licence="research only (FER2013 pictures)", research_only=True)
SPLITS = (*TRAIN_PARTS, "val", "test")
CODES = ("angry", "disgust", "scared", "happy", "sad", "surprised", "calm")  # of column emotion, from 0
PX = 48

_PARTS = {**dict.fromkeys(TRAIN_PARTS, "Training"), "val": "PublicTest", "test": "PrivateTest"}
_LAYOUT = "the published FER2013 folder: fer2013.csv (or icml_face_data.csv)"


def read(path: Path, *, source: str, split: str, strict: bool = False) -> Corpus:
    """Reads one split; its pictures stay in memory, 2 kB each.

    Args:
        path: Folder that holds the table.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad row instead of counting it in `skipped`.

    Raises:
        DataError: The table is missing, or has no row of the split; with `strict`, any bad row.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source)
    usage = _PARTS[split]
    pictures: dict[str, NDArray[np.uint8]] = {}
    seen: Counter[str] = Counter()

    def parse(row: Row) -> Face | LeftOut | None:
        found = row.one_of("Usage", tuple(dict.fromkeys(_PARTS.values())))
        seen[found] += 1
        key = f"{found}/{seen[found]:05d}"  # the table names no picture: its place among those of its usage
        if found != usage or (usage == "Training" and not in_part(key, split)):
            return None
        code = row.one_of("emotion", tuple(map(str, range(len(CODES)))))
        picture = _picture(row)
        if picture.min() == picture.max():
            return LeftOut(key=key, reason="picture of one colour")
        pictures[key] = picture
        return Face(key=key, crop=CROP, labels={"expression": EXPRESSIONS.index(CODES[int(code)])})

    table = first_there(path, ("fer2013.csv", "icml_face_data.csv"))
    return gather(
        path,
        read_table(table, ("emotion", "pixels", "Usage"), source=source, layout=_LAYOUT),
        parse,
        terms=TERMS,
        tasks=("expression",),
        source=source,
        split=split,
        strict=strict,
        embedded=pictures,
    )


def _picture(row: Row) -> NDArray[np.uint8]:
    """(48, 48, 3) from the text of a row's pixels."""
    words = row["pixels"].split()
    try:
        pixels = np.array(words, dtype=np.int64)
    except (ValueError, OverflowError):
        pixels = np.array([-1])
    if pixels.size != PX * PX or pixels.min() < 0 or pixels.max() > 255:
        raise row.fault(f"wrong pixels: {len(words)} words", expected=f"{PX * PX} whole numbers from 0 to 255")
    return np.broadcast_to(pixels.astype(np.uint8).reshape(PX, PX, 1), (PX, PX, 3))  # one grey behind three channels
