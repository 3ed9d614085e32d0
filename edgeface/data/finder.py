"""Faces in a picture, and the nominal crop of a face box.

The nominal crop that networks are trained and scored on is the square around the middle of the five landmarks' box, its
side 2.26 times that box's longer side. A detector does not know the landmarks, so its box is mapped there by constants.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import DataError, MissingToolError

if TYPE_CHECKING:
    import cv2

CASCADE = "haarcascade_frontalface_alt2.xml"

# From the box of OpenCV's frontal cascade (a square from above the brows to the chin) to the nominal crop: medians over
# 600 faces of MTFL's training list, of which the cascade finds 96 %: side 0.99 of the box, with a standard deviation of
# 0.11; centre 0.01 to the right (0.02) and 0.09 down (0.03), in box sides.
CROP_PER_BOX = 1.0
DOWN_PER_BOX = 0.09

_LONGEST_PX = 1280  # pictures are searched at most this large, which bounds the time
_SMALLEST_SHARE = 1 / 16  # smallest face searched for, over the picture's shorter side
_SMALLEST_PX = 24
_SCALE_STEP = 1.1
_NEIGHBOURS = 4  # overlapping hits that make a face; fewer find more and invent more


def find_faces(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Boxes of the frontal faces in a picture, largest first.

    Args:
        image: (H, W, 3) RGB.

    Returns:
        (N, 4) left, top, width, height in pixels of the picture.

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
    smallest = max(_SMALLEST_PX, round(min(grey.shape) * _SMALLEST_SHARE))
    found = _cascade().detectMultiScale(
        cv2.equalizeHist(grey), scaleFactor=_SCALE_STEP, minNeighbors=_NEIGHBOURS, minSize=(smallest, smallest)
    )
    boxes = np.asarray(found, np.float32).reshape(-1, 4) / np.float32(shrink)
    return boxes[np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")]


def crop_of_box(box: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nominal crop of a face box.

    Args:
        box: (4,) left, top, width, height in pixels, from above the brows to the chin as detectors draw it. Of a box
            that is not square the longer side counts.

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
    side = max(width, height)
    return np.array([left + width / 2, top + height / 2 + DOWN_PER_BOX * side, CROP_PER_BOX * side], dtype=np.float32)


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
