"""Where a face sits in a picture: crops, 2×3 matrices, and the one resampler.

Coordinates are continuous: (0, 0) is the outer corner of the first pixel, so the centre of pixel i is i + 0.5. A matrix
(…, 2, 3) takes a point as A·p + b.

`crop_image` is the pre-processing contract. Evaluation, prediction, packing and the code shipped with a model must give
the same bytes, so it is defined in integers: output pixel j of an axis is centred at c = left + (j + 0.5)·s in source
pixels, s = side / px. Source pixel i weighs max(0, 1 − |i + 0.5 − c| / max(1, s)): linear interpolation when enlarging,
a triangle as wide as two output pixels when shrinking, so that nothing aliases. Positions beyond the picture take its
border pixel. The weights of one output pixel are normalised to 2048 and made whole by differences of their rounded
running sum; rows and columns are applied with exact integer sums, and the result is (sum + 2^21) >> 22.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import DataError, UnsupportedError
from edgeface.tasks import MIRROR_POINTS, TASKS, Kind

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", NDArray[np.float32], NDArray[np.float64], "Tensor")

WEIGHT_BITS = 11  # two passes of 8-bit pixels stay below 2^30; one pass below float32's exact 2^24


def crop_matrix(crops: NDArray[np.floating[Any]], *, margin: float = 1.0) -> NDArray[np.float64]:
    """Matrices from source-image pixels to crop sides (0 to 1 inside the crop).

    Args:
        crops: (N, 3) centre x, centre y, side in source pixels.
        margin: Factor on the side.

    Returns:
        (N, 2, 3).
    """
    centre, side = crops[:, :2].astype(np.float64), crops[:, 2].astype(np.float64) * margin
    matrices = np.zeros((len(crops), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1.0 / side
    matrices[:, :, 2] = 0.5 - centre / side[:, None]
    return matrices


def invert_matrix(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, 2, 3) matrices that undo (…, 2, 3) matrices."""
    linear = np.linalg.inv(matrices[..., :2])
    shift = -(linear @ matrices[..., 2:])
    return np.asarray(np.concatenate([linear, shift], axis=-1))


def compose_matrix(second: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, 2, 3) matrices that apply `first`, then `second`."""
    linear = second[..., :2] @ first[..., :2]
    shift = second[..., :2] @ first[..., 2:] + second[..., 2:]
    return np.asarray(np.concatenate([linear, shift], axis=-1))


def apply_matrix(matrices: Array, points: Array) -> Array:
    """Moves each sample's points by its matrix.

    Written out term by term, because a batched matrix product may round differently for another batch size.

    Args:
        matrices: (N, 2, 3).
        points: (N, K, 2).

    Returns:
        (N, K, 2).
    """
    columns = matrices[:, None]  # (N, 1, 2, 3)
    return columns[..., 0] * points[..., 0:1] + columns[..., 1] * points[..., 1:2] + columns[..., 2]


def relabel_mirrored(labels: dict[str, Tensor], mirrored: Tensor) -> dict[str, Tensor]:
    """Exchanges left and right in the labels of mirrored samples.

    Landmark coordinates are not moved (the mirroring matrix has done that); their order is.

    Args:
        labels: Task name to labels, N rows each.
        mirrored: (N,) bool.

    Raises:
        UnsupportedError: A landmark set whose mirrored order is not known.
    """
    import torch

    changed = dict(labels)
    for name, values in labels.items():
        task = TASKS[name]
        if task.kind is Kind.LANDMARKS:
            require_mirror(name)
            order = torch.tensor(MIRROR_POINTS[task.points])
            changed[name] = torch.where(mirrored[:, None, None], values[:, order], values)
        elif task.mirror and task.kind is Kind.ATTRIBUTES:
            changed[name] = torch.where(mirrored[:, None], values[:, list(task.mirror)], values)
        elif task.mirror:
            # One more entry at the end, so that index -1 (no label) stays -1.
            table = torch.tensor([*task.mirror, -1])
            changed[name] = torch.where(mirrored, table[values], values)
    return changed


def require_mirror(name: str) -> None:
    """Raises UnsupportedError when samples with labels of this task cannot be mirrored."""
    task = TASKS[name]
    if task.kind is Kind.LANDMARKS and task.points not in MIRROR_POINTS:
        raise UnsupportedError(
            f"mirroring of {name!r}, whose left-right order is not known",
            expected=f"landmarks with {', '.join(map(str, MIRROR_POINTS))} points",
            where="augment.mirror_share",
            do="Set augment.mirror_share to 0",
        )


def crop_image(
    image: NDArray[np.uint8], crop: NDArray[np.float32], *, px: int, margin: float = 1.0
) -> NDArray[np.uint8]:
    """Cuts a square out of a picture and resamples it, as the module's docstring defines.

    Args:
        image: (H, W, 3) RGB.
        crop: (3,) centre x, centre y, side in source pixels.
        px: Side of the result in pixels.
        margin: Factor on the side.

    Returns:
        (px, px, 3).

    Raises:
        DataError: The crop is not finite, has no size, or lies wholly outside the picture.
    """
    x, y, side = (float(value) for value in crop)
    side *= margin
    height, width = image.shape[:2]
    left, top = x - side / 2, y - side / 2
    inside = left < width and top < height and left + side > 0 and top + side > 0
    if not (np.isfinite([x, y, side]).all() and side > 0 and inside):
        raise DataError(
            f"a crop at ({x:g}, {y:g}) of side {side:g}",
            expected=f"a square that touches the {width}x{height} picture",
            do="Correct the box",
        )
    columns, first_column = _weights(left, side, length=width, px=px)
    rows, first_row = _weights(top, side, length=height, px=px)
    part = image[first_row : first_row + rows.shape[1], first_column : first_column + columns.shape[1]]
    # float32 holds every sum of the first pass exactly (below 2^24), float64 every sum of the second (below 2^30), so
    # the order in which a BLAS library adds cannot change the result.
    flat = part.astype(np.float32).reshape(part.shape[0], -1)
    tall = (rows.astype(np.float32) @ flat).reshape(px, part.shape[1], 3)  # (px, w, 3), in 1/2048
    whole = columns @ tall.astype(np.float64)  # (px, px, 3), in 1/2048²
    return ((whole.astype(np.int64) + (1 << (2 * WEIGHT_BITS - 1))) >> (2 * WEIGHT_BITS)).astype(np.uint8)


def _weights(start: float, side: float, *, length: int, px: int) -> tuple[NDArray[np.float64], int]:
    """Whole weights of one axis.

    Returns:
        (px, n) weights, each row summing to 2048, over n neighbouring source pixels; and the first of those pixels.
    """
    scale = side / px
    reach = max(1.0, scale)
    centres = start + (np.arange(px) + 0.5) * scale
    low = int(np.floor(centres[0] - reach))
    taps = np.arange(low, int(np.ceil(centres[-1] + reach)) + 1)
    weights: NDArray[Any] = np.maximum(0.0, 1.0 - np.abs(taps + 0.5 - centres[:, None]) / reach)
    sums = np.cumsum(weights, axis=1)
    whole = np.diff(np.floor(sums / sums[:, -1:] * (1 << WEIGHT_BITS) + 0.5), axis=1, prepend=0.0)
    inside = whole[:, (taps >= 0) & (taps < length)]
    inside[:, 0] += whole[:, taps < 0].sum(axis=1)  # taps beyond the border land on the border pixel
    inside[:, -1] += whole[:, taps >= length].sum(axis=1)
    return inside, max(low, 0)
