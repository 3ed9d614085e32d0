"""Oulu-CASIA (visible light, strong illumination): six posed expressions of 80 people, and who it is.

Source:
    Zhao, Huang, Taini, Li, Pietikäinen, Facial expression recognition from near-infrared videos, Image and Vision
    Computing 2011; under the agreement of its authors, for research.

Layout, as published (the faces cut out by its authors; the folder above may be PreProcess_Img, PreProcessImg or none):

    PreProcess_Img/VL_Acropped/Strong/P001/Anger/000.jpeg …

with Anger, Disgust, Fear, Happiness, Sadness and Surprise. Sequences go from neutral to the peak; by the usual protocol
the last three pictures carry the expression, and no other is used. The person is the folder's P001. The near-infrared
pictures and the weak and dark illuminations are not read.

Crop: the whole picture. [Assumed: no picture was at hand to measure on.]

Splits: `foldK-train` and `foldK-test`, K from 1 to 10, share no person: people in the order of their names, every tenth
into one fold. `foldK-fit` and `foldK-dev` part a training list into nine tenths and one by person, to choose by;
`train`, `fit` and `dev` do so with everybody.
"""

from __future__ import annotations

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
    first_there,
    fold_splits,
    gather,
    in_fold,
    people_folds,
    read_files,
)
from edgeface.tasks import EXPRESSIONS

TERMS = Terms(name="oulu_casia", version=1, licence="research only (Oulu-CASIA agreement)", research_only=True)
SPLITS = (*TRAIN_PARTS, *fold_splits(10))
CROP = (0.5, 0.5, 1.0)
FOLDERS = {
    "Anger": "angry",
    "Disgust": "disgust",
    "Fear": "scared",
    "Happiness": "happy",
    "Sadness": "sad",
    "Surprise": "surprised",
}
PEAKS = 3  # last pictures of a sequence that carry its expression

_LAYOUT = "the published Oulu-CASIA folder: PreProcess_Img/VL_Acropped/Strong/P001/Anger/000.jpeg"
_STRONG = "VL_Acropped/Strong"


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
        path: Folder that holds PreProcess_Img, or VL_Acropped.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad folder or picture instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: There is no usable face; with `strict`, any bad folder or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Test on @foldK-test what was trained on @foldK-train")
    above = ("PreProcess_Img", "PreProcessImg", "PreProcess Img", ".")
    base = first_there(path, tuple(f"{folder}/{_STRONG}" for folder in above))
    pictures = read_files(base, "P*/*/*.jpeg", source=source, layout=_LAYOUT)
    folds = people_folds(row["file"].split("/")[0] for row in pictures)
    sequences: dict[str, list[Row]] = {}
    for row in pictures:
        sequences.setdefault(row["file"].rpartition("/")[0], []).append(row)

    def parse(row: Row) -> Face | None:
        person, folder, _ = row["file"].split("/")
        if not in_fold(person, split, folds):
            return None
        if folder not in FOLDERS:
            raise row.fault(f"wrong folder: {folder!r}", expected=f"one of {', '.join(FOLDERS)}")
        return Face(
            key=row["file"], crop=CROP, labels={"expression": EXPRESSIONS.index(FOLDERS[folder])}, person=person
        )

    return gather(
        base,
        [row for frames in sequences.values() for row in frames[-PEAKS:]],
        parse,
        terms=TERMS,
        tasks=("expression", "identity"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )
