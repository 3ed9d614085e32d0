"""WFLW: 98 landmarks and six difficulties on 10,000 faces.

Source:
    Wu, Qian, Yang, Wang, Cai, Zhou, Look at Boundary: A Boundary-Aware Face Alignment Algorithm, CVPR 2018; for
    non-commercial research.

Layout, as published: pictures in `WFLW_images`, and in `WFLW_annotations/list_98pt_rect_attr_train_test` the lists
`list_98pt_rect_attr_train.txt` and `…_test.txt`, one face a line of 207 fields:

    x0 y0 … x97 y97   x_min y_min x_max y_max   pose expression illumination make-up occlusion blur   37--Soccer/a.jpg

The last six are 1 for a large pose, an exaggerated expression, an extreme illumination, and so on: groups to report
by, which are the published test subsets; occlusion is also a label. Pictures hold several faces, so a face's key ends
in the number of the face in its list. Coordinates are taken as they stand. [Assumed: they count from the outer
corner of the first pixel.] `landmarks5` are taken from the 98: the pupils (96, 97), the tip of the nose (54), the
corners of the mouth (76, 82).

Crop: by the face's published rectangle, as the protocol allows, and constants: where the crop about the landmarks lies
in the rectangle, in the median over the training list. No test landmark enters.

Splits: `train` (7,500) and `test` (2,500) as published; `fit` and `dev` part `train` into nine tenths and one by
picture, to choose by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from edgeface.data.corpus import Corpus
from edgeface.data.images import read_size
from edgeface.data.listing import TRAIN_PARTS, Face, Row, Terms, check_split, gather, in_part, read_lines
from edgeface.data.points import Points, crop_in, five_points, usual_place
from edgeface.errors import DataError

TERMS = Terms(name="wflw", version=1, licence="non-commercial research only (WFLW)", research_only=True)
SPLITS = (*TRAIN_PARTS, "test")

# The six flags, and what 0 and 1 are called.
FLAGS = {
    "pose": ("normal", "large"),
    "expression": ("normal", "exaggerated"),
    "illumination": ("normal", "extreme"),
    "make_up": ("no", "yes"),
    "occlusion": ("no", "yes"),
    "blur": ("clear", "blurred"),
}

_POINTS = tuple(f"{axis}{point}" for point in range(98) for axis in "xy")
_RECTANGLE = ("x_min", "y_min", "x_max", "y_max")
_COLUMNS = (*_POINTS, *_RECTANGLE, *FLAGS, "file")
_LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"
_LAYOUT = f"the published WFLW folder: WFLW_images, {_LISTS}"


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
        path: Folder that holds WFLW_images and WFLW_annotations.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad line instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: A list is missing, or there is no usable face; with `strict`, any bad line or picture.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Choose by @dev, and train on @fit meanwhile")
    test = split == "test"
    place = _usual_place(read_lines(_listing(path, "train"), _COLUMNS, source=source, layout=_LAYOUT))
    rows = read_lines(_listing(path, "test" if test else "train"), _COLUMNS, source=source, layout=_LAYOUT)
    faces: Counter[str] = Counter()

    def parse(row: Row) -> Face | None:
        file = row.path("file")
        faces[file] += 1
        if not test and not in_part(file, split):
            return None
        flags = {name: int(row.one_of(name, ("0", "1"))) for name in FLAGS}
        points = _points(row)
        return Face(
            key=f"WFLW_images/{file}#{faces[file]}",
            file=f"WFLW_images/{file}",
            crop=crop_in(_rectangle(row), place),
            labels={"landmarks98": points, "landmarks5": five_points(points), "occlusion": flags["occlusion"]},
            groups={name: FLAGS[name][flag] for name, flag in flags.items()},
            unit="pixel",
        )

    return gather(
        path,
        rows,
        parse,
        terms=TERMS,
        tasks=("landmarks5", "landmarks98", "occlusion"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def _listing(path: Path, part: str) -> Path:
    return path / _LISTS / f"list_98pt_rect_attr_{part}.txt"


def _usual_place(train: Iterable[Row]) -> tuple[float, float, float]:
    """Where the crop lies in the rectangle, in the median over the faultless lines of the training list."""
    boxes, faces = [], []
    for row in train:
        try:
            if not row.broken:
                box, five = _rectangle(row), five_points(_points(row))
                boxes.append(box)
                faces.append(five)
        except DataError:
            continue  # `gather` counts it when its turn comes
    return usual_place(boxes, faces)


def _points(row: Row) -> Points:
    return row.numbers(_POINTS).reshape(98, 2)


def _rectangle(row: Row) -> Points:
    """Left, top, width and height: (4,)."""
    left, top, right, bottom = row.numbers(_RECTANGLE)
    if right <= left or bottom <= top:
        raise row.fault(
            f"wrong rectangle: {left:g} {top:g} {right:g} {bottom:g}", expected="x_min < x_max and y_min < y_max"
        )
    return np.array([left, top, right - left, bottom - top])
