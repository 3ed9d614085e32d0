"""Landmarks as corpora publish them: .pts files, five points out of more, and the crop that goes with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.data.mtfl import CROP_OVER_EXTENT
from edgeface.errors import DataError
from edgeface.files import read_limited

Points = NDArray[np.float64]

# Indices whose mean is each of the five: left eye, right eye, nose tip, left and right mouth corner as seen in the
# picture. Of 68 points the eyes are the six around each; of 98 (WFLW) there is one in each pupil.
_FIVE: dict[int, tuple[tuple[int, ...], ...]] = {
    5: ((0,), (1,), (2,), (3,), (4,)),
    68: (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,)),
    98: ((96,), (97,), (54,), (76,), (82,)),
}
_SEEN = 2000  # faces that constants are medians of
_REPAIR = "Copy the file again, or read without --strict to leave it out"


def read_pts(file: Path, *, points: int = 68) -> Points:
    """Points of a .pts file in pixels of the picture, counted from the outer corner of the first pixel.

    The file holds `version: 1`, `n_points: 68`, and one `x y` a line between braces; comments (`//` or `#`) and empty
    lines may stand anywhere. Its coordinates are MATLAB's: (1, 1) is the centre of the first pixel.

    Args:
        file: The file.
        points: How many points it must hold.

    Returns:
        (points, 2).

    Raises:
        DataError: It cannot be read, or holds another number of points.

    Source:
        Sagonas et al., 300 Faces in-the-Wild Challenge, ICCV workshops 2013, and the annotations' web page.
    """
    return read_points(file, points=points) - 0.5


def read_points(file: Path, *, points: int = 68) -> Points:
    """Points of a file of `x y` lines as they stand, with braces, heads and comments as in .pts files or without.

    Args:
        file: The file.
        points: How many points it must hold.

    Returns:
        (points, 2).

    Raises:
        DataError: It cannot be read, or holds another number of points.
    """
    try:
        text = read_limited(file, limit=limits.LABEL_LINE).decode("utf-8-sig", errors="replace")
    except (OSError, ValueError) as error:
        raise DataError(
            f"missing landmark file: {file.name!r} ({error})", expected="a file", where=str(file), do=_REPAIR
        ) from None
    lines = [line.split("//")[0].split("#")[0] for line in text.splitlines()]
    head, brace, body = "\n".join(lines).partition("{")
    try:
        values = [float(word) for word in (body if brace else head).partition("}")[0].split()]
    except ValueError as error:
        raise DataError(
            f"wrong landmark file: {file.name!r} ({error})", expected="numbers alone", where=str(file), do=_REPAIR
        ) from None
    if len(values) != 2 * points or not all(map(math.isfinite, values)):
        raise DataError(
            f"wrong landmark file: {file.name!r} with {len(values)} numbers",
            expected=f"{points} points, so {2 * points} finite numbers",
            where=str(file),
            do=_REPAIR,
        )
    return np.array(values).reshape(points, 2)


def five_points(points: Points) -> Points:
    """The five landmarks out of (68, 2) or (98, 2) points, in their unit: (5, 2)."""
    return np.stack([points[list(chosen)].mean(axis=0) for chosen in _FIVE[len(points)]])


def crop_about(five: Points) -> tuple[float, float, float]:
    """The nominal crop about (5, 2) landmarks, in their unit: centre x, centre y, side."""
    low, high = five.min(axis=0), five.max(axis=0)
    x, y = (low + high) / 2
    return float(x), float(y), CROP_OVER_EXTENT * float((high - low).max())


def usual_crop(faces: Sequence[Points]) -> tuple[float, float, float]:
    """The median over aligned pictures of the crop about each one's (5, 2) landmarks, in their unit.

    At most 2,000 faces are looked at, evenly over the list.

    Raises:
        DataError: No face is given.
    """
    crops = np.array([crop_about(faces[place]) for place in _evenly(len(faces))])
    x, y, side = np.median(crops, axis=0)
    return float(x), float(y), float(side)


def usual_place(boxes: Sequence[Points], faces: Sequence[Points]) -> tuple[float, float, float]:
    """Where the crop about the landmarks usually lies in the box that a corpus publishes with a face.

    Test crops may know the box and constants from training faces, and nothing of the face's own landmarks.

    Args:
        boxes: N times (4,): left, top, width, height.
        faces: N times (5, 2), in the same unit.

    Returns:
        Centre x and y from the box's centre, and the side, all over the box's longer side: medians over at most 2,000
        faces, evenly over the list.

    Raises:
        DataError: No face is given.
    """
    chosen = _evenly(len(faces))
    crops = np.array([crop_about(faces[place]) for place in chosen])
    centres, longer = _centre_and_side(np.array([boxes[place] for place in chosen]))
    x, y, side = np.median((crops - np.c_[centres, np.zeros(len(crops))]) / longer[:, None], axis=0)
    return float(x), float(y), float(side)


def crop_in(box: Points, place: tuple[float, float, float]) -> tuple[float, float, float]:
    """The crop of a (4,) box, left, top, width, height, by the constants of `usual_place`."""
    centres, longer = _centre_and_side(box[None])
    (x, y), side = centres[0], float(longer[0])
    return float(x) + place[0] * side, float(y) + place[1] * side, place[2] * side


def _centre_and_side(boxes: Points) -> tuple[Points, Points]:
    return boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:].max(axis=1)


def _evenly(count: int) -> list[int]:
    if not count:
        raise DataError(
            "no training face with landmarks",
            expected="at least one, to find where faces usually lie",
            do="Complete this copy of the corpus",
        )
    return [int(place) for place in np.linspace(0, count - 1, min(count, _SEEN)).round()]
