"""Where the features lie on the unrolled head, and the published landmark orders over them.

Canonical coordinates: x to the image's right and y down, as seen from the front, in units of the distance between the
eye centres, origin midway between them. The head's surface is unrolled around its vertical axis; `to_grid` turns
canonical coordinates into fractions of that unrolled sheet.

Every feature point is an affine function of a few drawn numbers (`FEATURE_MODES`), so painting and labels read the same
array: a lid that closes takes its landmarks with it.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Y_TOP: Final = -1.95
Y_BOTTOM: Final = 2.05
ANGLE_MAX: Final = math.radians(118.0)  # the sheet ends behind the ears; the back of the skull is drawn apart

# Half-width of the head at each height, in eye distances (an adult: 63 mm between the eyes, 150 mm across the head).
_WIDTH_Y: Final = (-1.95, -1.85, -1.72, -1.5, -1.2, -0.8, -0.4, 0.0, 0.4, 0.8, 1.1, 1.35, 1.55, 1.7, 1.82, 1.95, 2.05)
_WIDTH: Final = (0.02, 0.32, 0.58, 0.86, 1.07, 1.19, 1.21, 1.17, 1.13, 1.07, 0.98, 0.86, 0.73, 0.60, 0.46, 0.33, 0.28)


def half_width(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half-width of the undeformed head at height `y`, in eye distances."""
    return np.interp(y, _WIDTH_Y, _WIDTH)


def to_grid(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places canonical points on the unrolled sheet.

    Args:
        points: (..., 2) canonical x and y.

    Returns:
        (..., 2) fractions of the sheet: across (0 behind the image-left ear, 1 behind the other) and down.
    """
    ratio = np.clip(points[..., 0] / half_width(points[..., 1]), -0.985, 0.985)  # 0.985: 80°, just before the ear
    across = 0.5 + np.arcsin(ratio) / (2 * ANGLE_MAX)
    down = (points[..., 1] - Y_TOP) / (Y_BOTTOM - Y_TOP)
    return np.stack([across, down], axis=-1)


def _feature_points() -> tuple[dict[str, slice], NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Feature points, named stretches of them, and how drawn numbers move them. Left is the image's left."""
    names: dict[str, slice] = {}
    parts: list[NDArray[np.float64]] = []
    moves: dict[str, list[tuple[slice, NDArray[np.float64]]]] = {}
    count = 0

    def add(name: str, points: NDArray[np.float64], **by: NDArray[np.float64]) -> None:
        nonlocal count
        names[name] = slice(count, count + len(points))
        parts.append(points)
        for mode, move in by.items():
            moves.setdefault(mode, []).append((names[name], move))
        count += len(points)

    def only_y(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([np.zeros_like(values), values], axis=-1)

    t = np.linspace(0.0, 1.0, 13)  # outer to inner corner of an eye
    bow = 4 * t * (1 - t)
    for side, sign in (("left", -1.0), ("right", 1.0)):
        x = sign * (0.745 - 0.475 * t)
        line = 0.012 * t + 0.004  # the inner corner hangs a little lower
        lower = line + 0.062 * bow**0.8
        shut = lower - 0.012 * bow
        lift = -(0.158 * bow**0.75 * (1 + 0.18 * (t - 0.5)))
        add(f"lid_upper_{side}", np.stack([x, shut], -1), **{f"open_{side}": only_y(lift)})
        add(f"lid_lower_{side}", np.stack([x, lower], -1))
        add(f"crease_{side}", np.stack([x, shut - 0.05 * bow**0.5], -1), **{f"open_{side}": only_y(0.86 * lift)})
        add(f"eye_{side}", np.array([[sign * 0.505, 0.012]]))
        zero = np.array([[sign * 0.505, 0.006]])
        add(f"pupil_{side}", zero, gaze_x=np.array([[1.0, 0.0]]), gaze_y=np.array([[0.0, 1.0]]))
        s = np.linspace(0.0, 1.0, 9)  # outer to inner end of a brow
        brow_x = sign * (0.88 - 0.70 * s)
        arch = -0.235 - 0.12 * np.sin(np.pi * np.clip(s * 0.95 + 0.02, 0, 1)) ** 0.9 - 0.035 * s
        half = 0.012 + 0.040 * np.sin(np.pi * np.clip(0.08 + 0.72 * s, 0, 1))
        bend = only_y(-0.05 * np.sin(np.pi * s))
        slope = only_y(-0.06 * (0.5 - s))
        add(
            f"brow_upper_{side}",
            np.stack([brow_x, arch - half], -1),
            brow_thick=only_y(-half),
            brow_arch=bend,
            brow_slope=slope,
        )
        add(
            f"brow_lower_{side}",
            np.stack([brow_x, arch + half], -1),
            brow_thick=only_y(half * 0.6),
            brow_arch=bend,
            brow_slope=slope,
        )
        add(
            f"brow_middle_{side}",
            np.stack([brow_x, arch], -1),
            brow_thick=only_y(-half * 0.2),
            brow_arch=bend,
            brow_slope=slope,
        )

    add("bridge", np.array([[0.0, -0.03], [0.0, 0.17], [0.0, 0.37], [0.0, 0.575]]))
    add(
        "nose_side",
        np.array([[-0.155, 0.05], [-0.20, 0.47], [-0.265, 0.60], [0.155, 0.05], [0.20, 0.47], [0.265, 0.60]]),
    )
    add("nose_base", np.array([[-0.215, 0.70], [-0.11, 0.735], [0.0, 0.755], [0.11, 0.735], [0.215, 0.70]]))
    add("nostril", np.array([[-0.115, 0.695], [0.115, 0.695]]))

    m = np.linspace(-1.0, 1.0, 13)
    x = 0.40 * m
    dome = np.clip(1 - m**2, 0, None)
    seam = 1.085 + 0.012 * dome - 0.01 * np.exp(-((m / 0.15) ** 2))
    top = 1.085 - 0.115 * dome**0.75 + 0.022 * np.exp(-((m / 0.16) ** 2))
    bottom = 1.085 + 0.158 * dome**0.62
    drop = dome**0.6
    add(
        "lip_top",
        np.stack([x, top], -1),
        gap=only_y(-0.03 * drop),
        lips=only_y(-0.035 * dome),
        teeth=only_y(-0.02 * drop),
    )
    add(
        "lip_bottom",
        np.stack([x, bottom], -1),
        gap=only_y(0.27 * drop),
        lips=only_y(0.045 * dome),
        teeth=only_y(0.035 * drop),
    )
    n = np.linspace(-0.93, 0.93, 13)
    xi = 0.40 * n
    dome_in = 1 - (n / 0.95) ** 2
    line = np.interp(n, m, seam)
    add("seam_top", np.stack([xi, line], -1), gap=only_y(-0.02 * dome_in), teeth=only_y(-0.018 * dome_in**0.5))
    add("seam_bottom", np.stack([xi, line], -1), gap=only_y(0.27 * dome_in**0.6), teeth=only_y(0.05 * dome_in**0.5))

    half_jaw = np.array(
        [
            [1.16, -0.05],
            [1.135, 0.20],
            [1.11, 0.43],
            [1.075, 0.66],
            [1.02, 0.88],
            [0.945, 1.07],
            [0.855, 1.24],
            [0.745, 1.39],
            [0.60, 1.53],
            [0.44, 1.65],
            [0.25, 1.735],
            [0.0, 1.78],
        ]
    )
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(half_jaw, axis=0).T))])
    even = np.linspace(0.0, along[-1], 17)
    side_x, side_y = np.interp(even, along, half_jaw[:, 0]), np.interp(even, along, half_jaw[:, 1])
    left = np.stack([-side_x, side_y], -1)
    right = np.stack([side_x, side_y], -1)[-2::-1]
    add("jaw", np.concatenate([left, right]))

    base = np.concatenate(parts)
    modes: dict[str, NDArray[np.float64]] = {}
    for mode, entries in moves.items():
        modes[mode] = np.zeros_like(base)
        for where, move in entries:
            modes[mode][where] = move
    return names, base, modes


SPANS, FEATURES, FEATURE_MODES = _feature_points()
FEATURE_MODE_NAMES: Final = tuple(FEATURE_MODES)
_MODE_STACK: Final = np.stack([FEATURE_MODES[name] for name in FEATURE_MODE_NAMES])  # (modes, points, 2)


def features(amounts: dict[str, float]) -> NDArray[np.float64]:
    """All feature points of one face.

    Args:
        amounts: Mode of `FEATURE_MODE_NAMES` → its amount.

    Returns:
        (P, 2) canonical coordinates, stretches named by `SPANS`.
    """
    weights = np.array([amounts[name] for name in FEATURE_MODE_NAMES])
    return np.asarray(FEATURES + np.tensordot(weights, _MODE_STACK, axes=1))


def _at(name: str, *offsets: int) -> list[int]:
    span = SPANS[name]
    count = span.stop - span.start
    return [span.start + offset % count for offset in offsets]


def _orders() -> dict[int, NDArray[np.int64]]:
    """Feature point behind each landmark, by the number of points in the order."""
    five = [*_at("eye_left", 0), *_at("eye_right", 0), *_at("bridge", 3), *_at("lip_top", 0, -1)]

    # 68 points as in 300-W: contour, brows, nose, eyes, outer and inner lips, each ring clockwise from its left.
    lips_68 = [
        *_at("lip_top", 0, 2, 4, 6, 8, 10, 12),
        *_at("lip_bottom", 10, 8, 6, 4, 2),
        *_at("seam_top", 0, 3, 6, 9, 12),
        *_at("seam_bottom", 9, 6, 3),
    ]
    sixty_eight = [
        *_at("jaw", *range(0, 33, 2)),
        *_at("brow_middle_left", 0, 2, 4, 6, 8),
        *_at("brow_middle_right", 8, 6, 4, 2, 0),
        *_at("bridge", 0, 1, 2, 3),
        *_at("nose_base", 0, 1, 2, 3, 4),
        *_at("lid_upper_left", 0, 4, 8, 12),
        *_at("lid_lower_left", 8, 4),
        *_at("lid_upper_right", 12, 8, 4, 0),
        *_at("lid_lower_right", 4, 8),
        *lips_68,
    ]

    # 98 points as in WFLW (Wu et al., CVPR 2018).
    ninety_eight = [
        *_at("jaw", *range(33)),
        *_at("brow_upper_left", 0, 2, 4, 6, 8),
        *_at("brow_lower_left", 8, 6, 4, 2),
        *_at("brow_upper_right", 8, 6, 4, 2, 0),
        *_at("brow_lower_right", 2, 4, 6, 8),
        *_at("bridge", 0, 1, 2, 3),
        *_at("nose_base", 0, 1, 2, 3, 4),
        *_at("lid_upper_left", 0, 3, 6, 9, 12),
        *_at("lid_lower_left", 9, 6, 3),
        *_at("lid_upper_right", 12, 9, 6, 3, 0),
        *_at("lid_lower_right", 3, 6, 9),
        *lips_68,
        *_at("pupil_left", 0),
        *_at("pupil_right", 0),
    ]

    # 106 points as the common mobile detectors number them: contour from the chin outwards, then eyes, brows, lips,
    # nose.
    by_index: dict[int, int] = {}

    def place(indices: list[int], points: list[int]) -> None:
        by_index.update(zip(indices, points, strict=True))

    place([1, *range(9, 17), *range(2, 9), 0, *range(24, 17, -1), *range(32, 24, -1), 17], _at("jaw", *range(33)))
    place([35, 41, 40, 42, 39], _at("lid_upper_left", 0, 3, 6, 9, 12))
    place([36, 33, 37], _at("lid_lower_left", 3, 6, 9))
    place([34, 38], _at("eye_left", 0) + _at("pupil_left", 0))
    place([89, 95, 94, 96, 93], _at("lid_upper_right", 12, 9, 6, 3, 0))
    place([90, 87, 91], _at("lid_lower_right", 9, 6, 3))
    place([92, 88], _at("eye_right", 0) + _at("pupil_right", 0))
    place([43, 48, 49, 51, 50], _at("brow_upper_left", 0, 2, 4, 6, 8))
    place([44, 45, 47, 46], _at("brow_lower_left", 2, 4, 6, 8))
    place([102, 103, 104, 105, 101], _at("brow_upper_right", 8, 6, 4, 2, 0))
    place([97, 98, 99, 100], _at("brow_lower_right", 8, 6, 4, 2))
    place([52, 64, 63, 71, 67, 68, 61], _at("lip_top", 0, 2, 4, 6, 8, 10, 12))
    place([58, 59, 53, 56, 55], _at("lip_bottom", 10, 8, 6, 4, 2))
    place([65, 66, 62, 70, 69], _at("seam_top", 0, 3, 6, 9, 12))
    place([57, 60, 54], _at("seam_bottom", 9, 6, 3))
    place([72, 73, 74, 86], _at("bridge", 0, 1, 2, 3))
    place([75, 76, 77, 81, 82, 83], _at("nose_side", 0, 1, 2, 3, 4, 5))
    place([78, 79, 80, 85, 84], _at("nose_base", 0, 1, 2, 3, 4))
    hundred_six = [by_index[index] for index in range(106)]
    return {
        5: np.array(five),
        68: np.array(sixty_eight),
        98: np.array(ninety_eight),
        106: np.array(hundred_six),
    }


ORDERS: Final = _orders()
FEATURE_GRID: Final = to_grid(FEATURES)
