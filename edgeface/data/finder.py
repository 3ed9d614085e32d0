"""Faces in a picture, and the nominal crop of a face box.

The nominal crop that networks are trained and scored on is the square around the middle of the five landmarks' box, its
side 2.26 times that box's longer side. A detector does not know the landmarks, so its box is mapped there by constants.

`benchmarks/results/detector.md` says what that costs: landmark errors with the found box beside those with the crop of
the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import DataError, MissingToolError

if TYPE_CHECKING:
    import cv2

CASCADE = "haarcascade_frontalface_alt2.xml"


@dataclass(frozen=True, kw_only=True)
class BoxToCrop:
    """From a detector's box to the nominal crop, in sides of the box (the longer one, where they differ).

    Attributes:
        side: Side of the crop.
        down: How far the crop's centre lies below the box's. To the right it is 0: left and right are alike.
    """

    side: float
    down: float


# haar: medians over 1,000 faces of MTFL's training list. For 97 % of them the largest box that `find_faces` gives is on
# the face: side 0.967 of that box, with a standard deviation of 0.106; centre 0.003 to the right (0.028), 0.083 down
# (0.030).
DETECTORS = {"haar": BoxToCrop(side=0.97, down=0.083)}

_LONGEST_PX = 1280  # pictures are searched at most this large, which bounds the time
_SMALLEST_SHARE = 1 / 16  # smallest face searched for, over the picture's shorter side
_SMALLEST_PX = 24
_SCALE_STEP = 1.1
_NEIGHBOURS = 4  # overlapping hits that make a face; fewer find more and invent more

# A face that fills its picture is missed, or found too small, because the cascade looks at no window that crosses the
# border: such pictures are searched again with their border repeated. On samples of 200 to 300 pictures that finds a
# face in 99 % for 93 % of MEBeauty's and in 74 % for 56 % of FairFace's, in boxes 18 and 20 % larger.
_FILLING_SHARE = 0.5  # of the picture's shorter side, from which on a face is searched for again
_BORDER_SHARE = 0.25  # width of the repeated border over the same side


def find_faces(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Boxes of the frontal faces in a picture, largest first.

    Args:
        image: (H, W, 3) RGB.

    Returns:
        (N, 4) left, top, width, height in pixels of the picture. The centre of a box lies in the picture; a box of a
        face that fills it may reach beyond.

    Raises:
        MissingToolError: This OpenCV carries no face cascades.
    """
    import cv2

    height, width = image.shape[:2]
    shrink = min(1.0, _LONGEST_PX / max(height, width))
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    if shrink < 1.0:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    grey = cv2.equalizeHist(grey)
    shorter = min(grey.shape)
    boxes = _detect(grey, smallest=round(shorter * _SMALLEST_SHARE))
    filling = _FILLING_SHARE * shorter
    if len(boxes) == 0 or boxes[:, 2].max() >= filling:
        border = round(_BORDER_SHARE * shorter)
        wide = cv2.copyMakeBorder(grey, border, border, border, border, cv2.BORDER_REPLICATE)
        large = _detect(wide, smallest=round(filling)) - np.array([border, border, 0, 0], np.float32)
        large = large[_inside(large, np.array([[0, 0, grey.shape[1], grey.shape[0]]], np.float32)).any(axis=1)]
        if len(large):
            boxes = np.concatenate([large, boxes[~_inside(boxes, large).any(axis=1)]])
    boxes /= np.float32(shrink)
    return boxes[np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")]


def crop_of_box(box: NDArray[np.float32], *, detector: str = "haar") -> NDArray[np.float32]:
    """The nominal crop of a face box.

    Args:
        box: (4,) left, top, width, height in pixels, from above the brows to the chin as detectors draw it. Of a box
            that is not square the longer side counts.
        detector: Whose box it is, a key of DETECTORS.

    Returns:
        (3,) centre x, centre y, side in pixels.

    Raises:
        DataError: The box is not finite or has no size.
    """
    left, top, width, height = (float(value) for value in box)
    if not np.isfinite([left, top, width, height]).all() or width <= 0 or height <= 0:
        raise DataError(
            f"a box {left:g},{top:g},{width:g},{height:g}",
            expected="left,top,width,height in pixels, width and height above 0",
            do="Correct the box",
        )
    side, to_crop = max(width, height), DETECTORS[detector]
    x, y = left + width / 2, top + height / 2 + to_crop.down * side
    return np.array([x, y, to_crop.side * side], dtype=np.float32)


def _detect(grey: NDArray[Any], *, smallest: int) -> NDArray[np.float32]:
    smallest = max(_SMALLEST_PX, smallest)
    found = _cascade().detectMultiScale(
        grey, scaleFactor=_SCALE_STEP, minNeighbors=_NEIGHBOURS, minSize=(smallest, smallest)
    )
    return np.asarray(found, np.float32).reshape(-1, 4)


def _inside(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N, M): whether the centre of each of N boxes lies in each of M others."""
    centres = boxes[:, None, :2] + boxes[:, None, 2:] / 2
    low, high = others[None, :, :2], others[None, :, :2] + others[None, :, 2:]
    return np.asarray(((low <= centres) & (centres < high)).all(axis=-1))


@lru_cache(maxsize=1)
def _cascade() -> cv2.CascadeClassifier:
    import cv2

    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE) if hasattr(cv2, "data") else None
    if cascade is None or cascade.empty():
        raise MissingToolError(
            f"OpenCV {cv2.__version__} without {CASCADE}",
            expected="opencv-python-headless 4.x, which carries the face cascades",
            do="Install it, or name the face with --box x,y,w,h",
        )
    return cascade
