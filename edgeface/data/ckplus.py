"""CK+: posed expressions from neutral to their peak, 327 labelled sequences of 118 people; 68 landmarks; who it is.

Source:
    Lucey et al., The Extended Cohn-Kanade Dataset (CK+), CVPR workshops 2010; under the agreement of its authors, for
    non-commercial research.

Layout, as published:

    cohn-kanade-images/S005/001/S005_001_00000001.png …
    Emotion/S005/001/S005_001_00000011_emotion.txt             one number, such as 3.0000000e+00; absent: not labelled
    Landmarks/S005/001/S005_001_00000001_landmarks.txt         68 lines of x y

Emotions are 0 neutral, 1 anger, 2 contempt, 3 disgust, 4 fear, 5 happy, 6 sadness, 7 surprise. By the usual protocol
the last three pictures of a labelled sequence carry its emotion and the first is neutral. Contempt is a class of
`expression8` alone. The person is the folder's S005. Landmarks are taken as they stand. [Assumed: they count from the
outer corner of the first pixel.] Files that systems leave behind (.DS_Store) are no pictures.

Crop: about the picture's own landmarks, as the protocol allows (published results align by them): say so beside a
result.

Splits: `foldK-train` and `foldK-test`, K from 1 to 10, share no person: people in the order of their names, every tenth
into one fold. `foldK-fit` and `foldK-dev` part a training list into nine tenths and one by person, to choose by;
`train`, `fit` and `dev` do so with everybody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeface import limits
from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import (
    TRAIN_PARTS,
    Face,
    Row,
    Terms,
    check_split,
    fold_splits,
    gather,
    in_fold,
    people_folds,
    read_files,
)
from edgeface.data.points import crop_about, five_points, read_points
from edgeface.files import read_limited
from edgeface.tasks import EXPRESSIONS, TASKS

TERMS = Terms(name="ckplus", version=1, licence="non-commercial research only (CK+ agreement)", research_only=True)
SPLITS = (*TRAIN_PARTS, *fold_splits(10))
CODES = ("calm", "angry", "contempt", "disgust", "scared", "happy", "sad", "surprised")  # from 0
PEAKS = 3  # last pictures of a sequence that carry its emotion

_LAYOUT = "the published CK+ folder: cohn-kanade-images, Emotion, Landmarks"


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
        path: Folder that holds the three folders.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad file instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: There is no usable face; with `strict`, any bad emotion, landmark file or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Test on @foldK-test what was trained on @foldK-train")
    labels = read_files(path, "Emotion/*/*/*_emotion.txt", source=source, layout=_LAYOUT)
    folds = people_folds(row["file"].split("/")[1] for row in labels)

    def parse(row: Row) -> Face | None:
        key = row.path("file")
        person = key.split("/")[1]
        if not in_fold(person, split, folds):
            return None
        name = CODES[int(row.one_of("code", tuple(map(str, range(len(CODES))))))]
        landmarks = key.replace("cohn-kanade-images", "Landmarks", 1).removesuffix(".png") + "_landmarks.txt"
        points = read_points(path / landmarks)
        five = five_points(points)
        known: dict[str, Any] = {"landmarks68": points, "landmarks5": five}
        known["expression8"] = TASKS["expression8"].classes.index(name)
        if name in EXPRESSIONS:
            known["expression"] = EXPRESSIONS.index(name)
        return Face(key=key, crop=crop_about(five), labels=known, person=person, unit="pixel")

    return gather(
        path,
        [frame for row in labels for frame in _frames(path, row)],
        parse,
        terms=TERMS,
        tasks=("expression", "expression8", "landmarks5", "landmarks68", "identity"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def _frames(path: Path, row: Row) -> list[Row]:
    """The pictures of a labelled sequence that are used, each with its code: the first neutral, the last three."""
    _, person, sequence, name = row["file"].split("/")
    folder = path / "cohn-kanade-images" / person / sequence
    files = [file.relative_to(path).as_posix() for file in sorted(folder.glob(f"{person}_{sequence}_*.png"))]
    broken = Row(where=row.where, cells={"file": f"{folder.relative_to(path).as_posix()}/"})
    try:
        content = read_limited(path / row["file"], limit=limits.LABEL_LINE)
    except (OSError, ValueError) as error:
        return [replace(broken, broken=f"unreadable label: {name!r} ({error})")]
    text = content.decode("utf-8-sig", errors="replace").strip()
    try:
        code = f"{float(text):g}"
    except ValueError:
        code = text
    if len(files) <= PEAKS:
        return [replace(broken, broken=f"short sequence: {len(files)} pictures for {name!r}")]
    return [
        Row(where=row.where, cells={"file": file, "code": code if place else "0"})
        for place, file in enumerate([files[0], *files[-PEAKS:]])
    ]
