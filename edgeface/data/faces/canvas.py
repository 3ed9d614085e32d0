"""Fills, lines and blends on planar pictures: the only place that draws with OpenCV.

Pictures are (3, H, W) float32 display RGB, 0 to 255, so that NumPy broadcasts over whole planes. Masks are (H, W) uint8
coverage, 255 full, anti-aliased. Points are (P, 2) with pixel centres at whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
Mask = NDArray[np.uint8]
Points = NDArray[np.float64]
RGB = tuple[float, float, float]

_SHIFT: Final = 4  # cv2 draws with 1/16 pixel
_FIXED: Final = float(1 << _SHIFT)


def _fixed(points: Points, largest: int) -> NDArray[np.int32]:
    # far-away corners would overflow cv2's fixed point
    kept = np.minimum(np.maximum(points, -4.0 * largest), 5.0 * largest)
    kept *= _FIXED
    return np.rint(kept, out=kept).astype(np.int32).reshape(-1, 1, 2)


def polygons(shape: tuple[int, int], outlines: Sequence[Points]) -> Mask:
    """Filled polygons that do not meet."""
    import cv2

    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [_fixed(outline, max(shape)) for outline in outlines], (255,), cv2.LINE_AA, _SHIFT)
    return mask


def polygon(shape: tuple[int, int], outline: Points) -> Mask:
    """A filled polygon."""
    return polygons(shape, [outline])


def stroke(shape: tuple[int, int], lines: Sequence[Points], *, thick: int, closed: bool = False) -> Mask:
    """Lines through points, `thick` pixels wide."""
    import cv2

    mask = np.zeros(shape, np.uint8)
    cv2.polylines(mask, [_fixed(line, max(shape)) for line in lines], closed, (255,), thick, cv2.LINE_AA, _SHIFT)
    return mask


def ellipses(
    shape: tuple[int, int], centres: Points, radii: tuple[float, float], *, degrees: float = 0.0, value: int = 255
) -> Mask:
    """Filled ellipses of one size."""
    import cv2

    mask = np.zeros(shape, np.uint8)
    axes = (round(radii[0] * _FIXED), round(radii[1] * _FIXED))
    for x, y in np.rint(centres * _FIXED).astype(int).tolist():
        cv2.ellipse(mask, (x, y), axes, degrees, 0, 360, (value,), -1, cv2.LINE_AA, _SHIFT)
    return mask


def discs(shape: tuple[int, int], centres: Points, radius: float) -> Mask:
    """Filled circles around (P, 2) centres."""
    import cv2

    mask = np.zeros(shape, np.uint8)
    for x, y in np.rint(centres * _FIXED).astype(int).tolist():
        cv2.circle(mask, (x, y), round(radius * _FIXED), (255,), -1, cv2.LINE_AA, _SHIFT)
    return mask


def rings(ground: Picture, centres: Points, circles: Sequence[tuple[float, RGB]]) -> Picture:
    """A picture with the same filled circles around each centre, each circle over the ones before.

    Args:
        centres: (P, 2).
        circles: Radius and colour of each.
    """
    import cv2

    drawn = np.ascontiguousarray(ground.transpose(1, 2, 0).astype(np.uint8))  # cv2 smooths edges in uint8 alone
    for x, y in np.rint(centres * _FIXED).astype(int).tolist():
        for radius, colour in circles:
            cv2.circle(drawn, (x, y), round(radius * _FIXED), colour, -1, cv2.LINE_AA, _SHIFT)
    return drawn.transpose(2, 0, 1).astype(np.float32)


def blur(mask: NDArray[Any], size: int, sigma: float) -> NDArray[Any]:
    """Gaussian blur of one plane with an odd kernel of `size`; 0 takes the size from `sigma`."""
    import cv2

    return np.asarray(cv2.GaussianBlur(mask, (size, size), sigma, borderType=cv2.BORDER_REPLICATE))


def both(first: Mask, second: Mask) -> Mask:
    """Coverage of what two masks share."""
    import cv2

    return np.asarray(cv2.multiply(first, second, scale=1.0 / 255.0), dtype=np.uint8)


def lay(picture: Picture, mask: Mask, colour: Sequence[float] | NDArray[Any], strength: float = 1.0) -> None:
    """Lays a colour, or a picture of the same size, over a picture through a mask of its size.

    Args:
        colour: (3,) RGB or (3, H, W).
        strength: Opacity where the mask is full.
    """
    import cv2

    left, top, wide, tall = cv2.boundingRect(mask)
    if wide == 0:
        return
    rows, columns = slice(top, top + tall), slice(left, left + wide)
    part = picture[:, rows, columns]
    over = np.asarray(colour, dtype=np.float32)
    over = over[:, rows, columns] if over.ndim == 3 else over[:, None, None]
    difference = over - part
    difference *= mask[rows, columns] * np.float32(strength / 255.0)
    part += difference
