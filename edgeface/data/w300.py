"""300-W: 68 landmarks on the faces of AFW, HELEN, LFPW and IBUG, by one annotation.

Source:
    Sagonas, Tzimiropoulos, Zafeiriou, Pantic, 300 Faces in-the-Wild Challenge, ICCV workshops 2013; Sagonas et al.,
    Image and Vision Computing 2016; for non-commercial research.

Layout, as published: a picture (.jpg or .png) and a .pts file of the same name for each face (edgeface/data/points.py
says what is in it), in

    afw   helen/trainset   helen/testset   lfpw/trainset   lfpw/testset   ibug   300W/01_Indoor   300W/02_Outdoor

and, optionally, the organisers' detections in `Bounding Boxes/bounding_boxes_lfpw_testset.mat` and so on. Mirrored
copies (`…_mirror`), which some downloads hold, are left out and counted. `landmarks5` are taken from the 68: the
means around each eye, the tip of the nose (30), the corners of the mouth (48, 54). The folder, a part of the path, is
the group `set`.

Splits, as they are used: `train` is AFW and the two training sets (3,148 faces), `common` the two test sets (554),
`challenging` IBUG (135), `full` both (689), `private` the challenge's own 600 indoors and outdoors. `fit` and `dev`
part `train` into nine tenths and one, to choose by.

Crop: about the face's own landmarks. The protocol allows it (most published errors start from such boxes), but a result
so obtained knows where the labels are: say so beside it. `common-found`, `challenging-found` and `full-found` take the
organisers' detections instead, and constants of the training faces: where the crop about the landmarks lies in the box,
in the median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    picture_beside,
    read_files,
)
from edgeface.data.mat import read_mat
from edgeface.data.points import Points, crop_about, crop_in, five_points, read_pts, usual_place
from edgeface.errors import DataError

TERMS = Terms(
    name="w300", version=1, licence="non-commercial research only (300-W, Imperial College)", research_only=True
)
PLACES = {
    "train": ("afw", "helen/trainset", "lfpw/trainset"),
    "common": ("helen/testset", "lfpw/testset"),
    "challenging": ("ibug",),
    "full": ("helen/testset", "lfpw/testset", "ibug"),
    "private": ("300W/01_Indoor", "300W/02_Outdoor"),
}
FOUND = "-found"
SPLITS = (*TRAIN_PARTS, *list(PLACES)[1:], *(f"{split}{FOUND}" for split in ("common", "challenging", "full")))
# Splits that should have no face in common. `full` is `common` and `challenging`.
_REPORTED = ("common", "challenging", "private")
APART = {
    "train": _REPORTED,
    "fit": ("dev", *_REPORTED),
    "dev": ("fit", *_REPORTED),
    "common": ("train", "challenging", "private"),
    "challenging": ("train", "common", "private"),
    "full": ("train", "private"),
    "private": ("train", "full"),
}
APART |= {f"{split}{FOUND}": APART[split] for split in ("common", "challenging", "full")}

_LAYOUT = "the published 300-W folders, in each a picture and a .pts file for each face"
_BOXES = ("Bounding Boxes", "Bounding_Boxes", "bounding_boxes")


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
        path: Folder that holds the folders above.
        source: The source as typed, for messages.
        split: One of SPLITS.
        strict: Raise at the first bad .pts file or picture instead of counting it in `skipped`.
        size_of: Width and height of a picture.

    Raises:
        DataError: A folder is missing or has no usable face; with `strict`, any bad file.
        UsageError: No such split.
    """
    check_split(split, SPLITS, source=source, why="Choose by @dev; report on @full, @common and @challenging")
    part = split.removesuffix(FOUND)
    boxes: dict[str, Points] | None = None
    place = (0.0, 0.0, 0.0)
    if split != part:
        boxes = read_boxes(path, PLACES[part], source=source)
        place = _usual_place(path, source=source)

    def crop(key: str, five: Points) -> tuple[float, float, float] | None:
        if boxes is None:
            return crop_about(five)
        return crop_in(boxes[key], place) if key in boxes else None

    return read_annotated(
        path,
        "train" if part in TRAIN_PARTS else part,
        crop,
        wanted=lambda key: part not in TRAIN_PARTS or in_part(key, part),
        terms=TERMS,
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def read_annotated(
    path: Path,
    part: str,
    crop: Callable[[str, Points], tuple[float, float, float] | None],
    *,
    wanted: Callable[[str], bool],
    terms: Terms,
    source: str,
    split: str,
    strict: bool,
    size_of: Callable[[Path], tuple[int, int]],
    places: Sequence[str] = (),
) -> Corpus:
    """Faces of folders in which a .pts file stands beside each picture.

    Args:
        path: The corpus's folder.
        part: Key of PLACES; not read where `places` are given.
        crop: Key and (5, 2) landmarks to a crop in pixels; None leaves the face out.
        wanted: Whether a key belongs to the split.
        terms: The corpus's name and terms.
        source: The source as typed.
        split: The split.
        strict: As `gather`.
        size_of: As `gather`.
        places: Folders inside `path`.

    Raises:
        DataError: A folder has no .pts file, or no face is usable; with `strict`, any bad file.
    """
    chosen = places or PLACES[part]
    rows = [row for place in chosen for row in _pts_files(path, place, source=source)]

    def parse(row: Row) -> Face | LeftOut | None:
        file = path / row.path("file")
        key = picture_beside(file).relative_to(path).as_posix()
        if not wanted(key):
            return None
        if file.stem.endswith("_mirror"):
            return LeftOut(key=key, reason="mirrored copy")
        points = read_pts(file)
        five = five_points(points)
        where = crop(key, five)
        if where is None:
            return LeftOut(key=key, reason="no detection")
        group = row["file"].split("/")[0] if "/" in row["file"] else terms.name
        return Face(
            key=key,
            crop=where,
            labels={"landmarks68": points, "landmarks5": five},
            groups={"set": group},
            unit="pixel",
        )

    return gather(
        path,
        rows,
        parse,
        terms=terms,
        tasks=("landmarks5", "landmarks68"),
        source=source,
        split=split,
        strict=strict,
        size_of=size_of,
    )


def read_boxes(path: Path, places: Sequence[str], *, source: str) -> dict[str, Points]:
    """The organisers' detections: picture, as a key of the corpus, to left, top, width, height in pixels: (4,).

    Raises:
        DataError: A file is missing or is of another form.
    """
    folder = next((path / name for name in _BOXES if (path / name).is_dir()), path / _BOXES[0])
    boxes: dict[str, Points] = {}
    for place in places:
        file = folder / f"bounding_boxes_{place.replace('/', '_')}.mat"
        try:
            entries = read_mat(file, "bounding_boxes")
            for entry in [entries] if isinstance(entries, dict) else entries:  # one face comes without its list
                left, top, right, bottom = (float(value) for value in entry["bb_detector"])
                box = _box(left, top, right, bottom)
                if not np.isfinite(box).all():
                    raise ValueError(f"a box at {left:g}, {top:g}, {right:g}, {bottom:g}")
                boxes[f"{place}/{entry['imgName']}"] = box
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise DataError(
                f"{file} cannot be read ({error or type(error).__name__})",
                expected="a list 'bounding_boxes' of imgName, bb_detector and bb_ground_truth",
                where=source,
                do="Fetch the organisers' boxes, or take the split without -found",
            ) from None
    return boxes


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([left - 0.5, top - 0.5, right - left, bottom - top])  # MATLAB counts pixel centres from 1


def _usual_place(path: Path, *, source: str) -> tuple[float, float, float]:
    """Where the crop lies in a detection, in the median over the training faces whose points can be read."""
    boxes = read_boxes(path, PLACES["train"], source=source)
    seen, faces = [], []
    for place in PLACES["train"]:
        for row in _pts_files(path, place, source=source):
            file = path / row["file"]
            key = picture_beside(file).relative_to(path).as_posix()
            if key in boxes:
                try:
                    faces.append(five_points(read_pts(file)))
                except DataError:
                    continue  # `gather` counts it when its turn comes
                seen.append(boxes[key])
    return usual_place(seen, faces)


def _pts_files(path: Path, place: str, *, source: str) -> list[Row]:
    return read_files(path, f"{place}/*.pts" if place else "*.pts", source=source, layout=_LAYOUT)
