"""CelebA: forty attributes, five landmarks and the person of 202,599 pictures of celebrities.

Source:
    Liu, Luo, Wang, Tang, Deep Learning Face Attributes in the Wild, ICCV 2015; for non-commercial research.

Layout, as published (`Anno`, `Eval`, `Img`), or with all of it side by side:

    Anno/list_attr_celeba.txt                first the number of pictures, then the 40 names, then 000001.jpg -1 1 …
    Anno/list_landmarks_align_celeba.txt     the same, with the ten names lefteye_x lefteye_y righteye_x … rightmouth_y
    Anno/identity_CelebA.txt                 000001.jpg 2880
    Eval/list_eval_partition.txt             000001.jpg 0        0 train, 1 validation, 2 test
    Img/img_align_celeba/000001.jpg          178×218

An attribute is 1 or -1. All forty are `attributes40`; four are also tasks of their own: Male gender, Smiling smile,
Eyeglasses glasses, Mouth_Slightly_Open mouth_open. Landmarks, in whole pixels of the aligned picture, are taken as they
stand. [Assumed: they count from the outer corner of the first pixel.] Without the
list of people there is no identity, without the list of landmarks no landmarks.

Crop: fixed, for the pictures are aligned: the median of the crops about the landmarks of the training list, or, without
their list, the constants below. [Assumed: eyes at (69, 111) and (108, 111), mouth at (71, 152) and (106, 152).]

Splits: `train`, `val` and `test` as published; `fit` and `dev` part `train` into nine tenths and one, by person where
the people are known. Published splits share no person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from edgeface.data.corpus import Corpus
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
    read_lines,
    table_lines,
)
from edgeface.data.mtfl import CROP_OVER_EXTENT
from edgeface.data.points import Points, usual_crop
from edgeface.errors import DataError
from edgeface.tasks import CELEBA_ATTRIBUTES, TASKS

TERMS = Terms(name="celeba", version=1, licence="non-commercial research only (CelebA)", research_only=True)
SPLITS = (*TRAIN_PARTS, "val", "test")
WIDTH, HEIGHT = 178, 218
CROP = (88.5 / WIDTH, 131.5 / HEIGHT, CROP_OVER_EXTENT * 41 / WIDTH)

# Attribute to the task it also is, and the class that 1 stands for.
OWN_TASKS = {
    "Male": ("gender", "male"),
    "Smiling": ("smile", "smiling"),
    "Eyeglasses": ("glasses", "glasses"),
    "Mouth_Slightly_Open": ("mouth_open", "open"),
}

_POINTS = tuple(
    f"{name}_{axis}" for name in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"
)
_LAYOUT = "the published CelebA folder: Anno, Eval, Img/img_align_celeba"
_CODES = {**dict.fromkeys(TRAIN_PARTS, "0"), "val": "1", "test": "2"}


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
        path: Folder that holds Anno, Eval and Img, or their contents.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad line instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: A list is missing or is of another form, or there is no usable face; with `strict`, any bad line or
            picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source)
    attributes = _list_with_names(path, "list_attr_celeba.txt", CELEBA_ATTRIBUTES, source=source)
    parts = _list(path, "Eval", "list_eval_partition.txt", source=source)
    people: Mapping[str, str] = {}
    if first_there(path, ("Anno/identity_CelebA.txt", "identity_CelebA.txt")).is_file():
        people = _list(path, "Anno", "identity_CelebA.txt", source=source)
    name = "list_landmarks_align_celeba.txt"
    points: Mapping[str, Points | DataError] = {}
    crop = CROP
    if first_there(path, (f"Anno/{name}", name)).is_file():
        points = {row.cells["file"]: _five(row) for row in _list_with_names(path, name, _POINTS, source=source)}
        train = [five for key, five in points.items() if parts.get(key) == "0" and not isinstance(five, DataError)]
        x, y, side = usual_crop(train)
        crop = (x / WIDTH, y / HEIGHT, side / WIDTH)
    folder = first_there(path, ("Img/img_align_celeba", "img_align_celeba")).relative_to(path).as_posix()

    def parse(row: Row) -> Face | None:
        file = row.path("file")
        if file not in parts:
            raise row.fault(f"in no part: {file!r}", expected="a line of list_eval_partition.txt")
        if parts[file] not in ("0", "1", "2"):
            raise row.fault(f"wrong part: {parts[file]!r}", expected="0, 1 or 2")
        if parts[file] != _CODES[split]:
            return None
        person = people.get(file, "")
        if _CODES[split] == "0" and not in_part(person or file, split):
            return None
        yes = [row.one_of(name, ("1", "-1")) == "1" for name in CELEBA_ATTRIBUTES]
        labels: dict[str, object] = {"attributes40": np.array(yes, dtype=np.int8)}
        for attribute, (task, positive) in OWN_TASKS.items():
            index = TASKS[task].classes.index(positive)
            labels[task] = index if yes[CELEBA_ATTRIBUTES.index(attribute)] else 1 - index
        if file in points:
            five = points[file]
            if isinstance(five, DataError):
                raise five
            labels["landmarks5"] = five / (WIDTH, HEIGHT)
        return Face(key=f"{folder}/{file}", crop=crop, labels=labels, person=person)

    own = tuple(task for task, _ in OWN_TASKS.values())
    known = (*(("landmarks5",) if points else ()), *(("identity",) if people else ()))
    return gather(
        path,
        attributes,
        parse,
        terms=TERMS,
        tasks=("attributes40", *own, *known),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def _list(path: Path, folder: str, name: str, *, source: str) -> dict[str, str]:
    """File to the one word that a list has for it; "" where its line is broken."""
    listing = first_there(path, (f"{folder}/{name}", name))
    rows = read_lines(listing, ("file", "word"), source=source, layout=_LAYOUT)
    return {row.cells["file"]: "" if row.broken else row.cells["word"] for row in rows}


def _five(row: Row) -> Points | DataError:
    """(5, 2) in pixels, or what is wrong with the line; that is told when its face is asked for."""
    try:
        if row.broken:
            raise row.fault(row.broken, expected="a name and ten numbers")
        return row.numbers(_POINTS).reshape(5, 2)
    except DataError as error:
        return error


def _list_with_names(path: Path, name: str, columns: tuple[str, ...], *, source: str) -> Iterator[Row]:
    """Rows of a list that begins with their number and the names of its columns."""
    listing = first_there(path, (f"Anno/{name}", name))
    rows = read_lines(listing, ("file", *columns), source=source, layout=_LAYOUT, skip=2)
    lines = table_lines(listing)
    count, names = next(lines, "").strip(), tuple(next(lines, "").split())
    if not (count.isdecimal() and len(count) < 10) or names != columns:
        raise DataError(
            f"the first lines {count[:40]!r} and {' '.join(names[:3])!r} …",
            expected=f"the number of pictures, and the {len(columns)} names that begin with {' '.join(columns[:3])!r}",
            where=f"{listing}:1",
            do="Use the corpus as published",
        )
    pictures = sum(1 for line in lines if line.strip())
    if int(count) != pictures:
        raise DataError(
            f"{pictures} pictures",
            expected=f"{count}, as its first line says",
            where=str(listing),
            do="Fetch it again",
        )
    return rows
