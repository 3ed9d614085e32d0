"""The head's surface: a sheet of vertices around the vertical axis, and the modes that deform it.

Vertices are in eye distances: x to the image's right, y down, z towards the viewer, origin in the head at eye height.
A head is `BASE` plus amounts times `MODES`; the modes are smooth bumps and local moves around the canonical features,
so features painted on the sheet move with it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces.template import ANGLE_MAX, Y_BOTTOM, Y_TOP, half_width

ACROSS: Final = 81  # vertices around the head: 3°, finer than a nostril
DOWN: Final = 81

# Front profile without the nose: depth of the midline at each height, in eye distances from the ear axis.
_PROFILE_Y: Final = (
    -1.95,
    -1.85,
    -1.72,
    -1.5,
    -1.2,
    -0.8,
    -0.4,
    -0.25,
    0.0,
    0.4,
    0.75,
    1.0,
    1.2,
    1.35,
    1.6,
    1.72,
    1.82,
    1.95,
    2.05,
)
_PROFILE: Final = (
    0.03,
    0.42,
    0.76,
    1.06,
    1.27,
    1.39,
    1.44,
    1.45,
    1.40,
    1.40,
    1.44,
    1.47,
    1.44,
    1.37,
    1.40,
    1.34,
    1.14,
    0.72,
    0.45,
)
_NOSE_Y: Final = (-0.30, -0.10, 0.10, 0.30, 0.48, 0.57, 0.64, 0.70, 0.76, 0.85)
_NOSE: Final = (0.0, 0.05, 0.13, 0.24, 0.35, 0.39, 0.35, 0.21, 0.05, 0.0)

_V: Final = np.linspace(0.0, 1.0, DOWN)
_U: Final = np.linspace(-1.0, 1.0, ACROSS)
ANGLE: Final = np.repeat((_U * ANGLE_MAX)[:, None], DOWN, axis=1)
CANON_Y: Final = np.repeat((Y_TOP + _V * (Y_BOTTOM - Y_TOP))[None, :], ACROSS, axis=0)
CANON_X: Final = half_width(CANON_Y) * np.sin(ANGLE)
_FRONT: Final = np.clip(np.cos(ANGLE) * 2.5, 0.0, 1.0)  # features fade out before the ears
_SIGN: Final = np.tanh(CANON_X / 0.12)


def bump(x: float, y: float, *, wide: float, tall: float) -> NDArray[np.float64]:
    """(ACROSS, DOWN) Gaussian window on the face's front at canonical (x, y), height 1."""
    window = np.exp(-0.5 * (((CANON_X - x) / wide) ** 2 + ((CANON_Y - y) / tall) ** 2))
    return np.asarray(window * _FRONT)


def pair(x: float, y: float, *, wide: float, tall: float) -> NDArray[np.float64]:
    """The same window on both sides of the face."""
    return bump(x, y, wide=wide, tall=tall) + bump(-x, y, wide=wide, tall=tall)


def ramp(low: float, high: float) -> NDArray[np.float64]:
    """(ACROSS, DOWN) smooth step in canonical y, 0 at `low` and 1 at `high`."""
    t = np.clip((CANON_Y - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))


def _nose() -> NDArray[np.float64]:
    height = np.interp(CANON_Y, _NOSE_Y, _NOSE)
    wide = 0.105 + 0.045 * np.clip((CANON_Y + 0.1) / 0.7, 0, 1)
    return np.asarray(height * np.exp(-0.5 * (CANON_X / wide) ** 2) * _FRONT)


def _base() -> NDArray[np.float64]:
    # a face is flatter in front than an ellipse
    flat = np.sign(np.cos(ANGLE)) * np.abs(np.cos(ANGLE)) ** 0.86
    z = np.interp(CANON_Y, _PROFILE_Y, _PROFILE) * flat
    z = z + _nose()
    z += 0.13 * pair(0.205, 0.635, wide=0.075, tall=0.075)
    z += 0.07 * pair(0.42, -0.23, wide=0.30, tall=0.10)
    z -= 0.13 * pair(0.47, 0.0, wide=0.22, tall=0.15)
    z += 0.065 * pair(0.505, 0.01, wide=0.15, tall=0.09)
    z += 0.06 * pair(0.72, 0.36, wide=0.26, tall=0.18)
    z -= 0.04 * pair(0.42, 0.85, wide=0.12, tall=0.18)
    z += 0.055 * bump(0.0, 1.01, wide=0.26, tall=0.055)
    z += 0.075 * bump(0.0, 1.17, wide=0.22, tall=0.06)
    z -= 0.05 * bump(0.0, 1.085, wide=0.30, tall=0.025)
    z -= 0.05 * pair(0.43, 1.09, wide=0.09, tall=0.10)
    z -= 0.035 * bump(0.0, 0.88, wide=0.05, tall=0.07)
    z += 0.07 * bump(0.0, 1.58, wide=0.24, tall=0.13)
    ear = np.exp(-0.5 * (((np.abs(ANGLE) - 1.62) / 0.13) ** 2 + ((CANON_Y - 0.18) / 0.27) ** 4))
    x = CANON_X + 0.22 * np.sign(CANON_X) * ear
    # under the chin the sheet runs back towards the throat instead of down
    y = np.where(CANON_Y > 1.80, 1.80 + 0.25 * (CANON_Y - 1.80), CANON_Y)
    return np.stack([x, y, z], axis=-1)


def _modes() -> dict[str, NDArray[np.float64]]:
    zero = np.zeros_like(CANON_X)
    x, y = CANON_X, CANON_Y

    def move(
        *, dx: NDArray[np.float64] = zero, dy: NDArray[np.float64] = zero, dz: NDArray[np.float64] = zero
    ) -> NDArray[np.float64]:
        return np.stack([dx, dy, dz], axis=-1)

    eyes = pair(0.505, 0.0, wide=0.26, tall=0.14)
    brows = pair(0.53, -0.28, wide=0.40, tall=0.13)
    corner_left = bump(-0.41, 1.085, wide=0.17, tall=0.12)
    corner_right = bump(0.41, 1.085, wide=0.17, tall=0.12)
    corners = corner_left + corner_right
    lower = np.clip(y - 0.1, 0.0, None)
    mouth = bump(0.0, 1.1, wide=0.42, tall=0.20)
    smile_cheeks = pair(0.62, 0.52, wide=0.20, tall=0.16)

    def corner_up(corner: NDArray[np.float64], cheek_x: float) -> NDArray[np.float64]:
        side = 1.0 if cheek_x > 0 else -1.0
        cheek = bump(cheek_x, 0.52, wide=0.20, tall=0.16)
        return move(dx=side * 0.05 * corner, dy=-0.10 * corner - 0.03 * cheek, dz=0.05 * cheek)

    return {
        # who it is; one unit is one standard deviation among drawn people
        "width": move(dx=0.05 * x),
        "length": move(dy=0.055 * lower),
        "jaw_width": move(dx=0.07 * x * ramp(0.7, 1.35)),
        "chin_long": move(dy=0.065 * ramp(1.2, 1.7)),
        "chin_out": move(dz=0.08 * bump(0.0, 1.6, wide=0.32, tall=0.18)),
        "cheek_full": move(dz=0.06 * pair(0.6, 0.75, wide=0.28, tall=0.28), dx=0.035 * _SIGN * ramp(0.2, 0.9)),
        "cheekbone": move(
            dz=0.04 * pair(0.75, 0.35, wide=0.2, tall=0.14), dx=0.03 * _SIGN * pair(1.0, 0.3, wide=0.3, tall=0.2)
        ),
        "nose_long": move(dy=0.05 * bump(0.0, 0.62, wide=0.30, tall=0.22)),
        "nose_wide": move(dx=0.17 * x * bump(0.0, 0.63, wide=0.24, tall=0.15)),
        "nose_out": move(dz=0.19 * _nose()),
        "nose_bridge": move(dz=0.045 * bump(0.0, 0.15, wide=0.10, tall=0.22)),
        "nose_tip": move(
            dy=-0.03 * bump(0.0, 0.58, wide=0.12, tall=0.09), dz=0.03 * bump(0.0, 0.57, wide=0.1, tall=0.08)
        ),
        "nose_side": move(dx=0.018 * bump(0.0, 0.5, wide=0.22, tall=0.25)),
        "eye_apart": move(dx=0.025 * _SIGN * eyes),
        "eye_size": move(dx=0.10 * (x - 0.505 * _SIGN) * eyes, dy=0.10 * y * eyes),
        "eye_tall": move(dy=0.16 * y * eyes),
        "eye_tilt": move(dy=-0.13 * (np.abs(x) - 0.505) * eyes),
        "eye_down": move(dy=0.025 * (eyes + brows)),
        "eye_deep": move(dz=-0.04 * eyes),
        "mouth_wide": move(dx=0.09 * x * mouth),
        "mouth_down": move(dy=0.035 * mouth),
        "lip_out": move(dz=0.03 * bump(0.0, 1.09, wide=0.28, tall=0.12)),
        "mouth_side": move(dx=0.015 * mouth, dy=0.02 * x * mouth),
        "brow_up": move(dy=-0.028 * brows),
        "brow_ridge": move(dz=0.045 * pair(0.4, -0.22, wide=0.28, tall=0.09)),
        "forehead": move(dz=0.05 * bump(0.0, -0.9, wide=0.7, tall=0.35)),
        "crown": move(dy=-0.07 * (1 - ramp(-1.7, -0.6))),
        "ear_out": move(
            dx=0.07 * np.sign(x) * np.exp(-0.5 * (((np.abs(ANGLE) - 1.62) / 0.2) ** 2 + ((y - 0.15) / 0.3) ** 4))
        ),
        # growing up: 1 is a small child
        "child": move(
            dx=0.05 * x * ramp(0.9, 0.2)
            - 0.10 * x * ramp(1.0, 1.7)
            + 0.16 * (x - 0.505 * _SIGN) * eyes
            - 0.14 * x * mouth
            - 0.12 * x * bump(0.0, 0.63, wide=0.24, tall=0.15),
            dy=-0.20 * lower
            + 0.22 * y * eyes
            - 0.10 * bump(0.0, 0.6, wide=0.25, tall=0.2)
            - 0.10 * (1 - ramp(-1.8, -0.5)),
            dz=-0.30 * _nose()
            + 0.06 * pair(0.6, 0.8, wide=0.28, tall=0.25)
            - 0.06 * pair(0.42, -0.23, wide=0.3, tall=0.1)
            + 0.07 * bump(0.0, -0.8, wide=0.7, tall=0.4),
        ),
        # what it does; one unit is the full action
        "smile": move(
            dx=0.085 * _SIGN * corners,
            dy=-0.10 * corners - 0.03 * smile_cheeks + 0.012 * mouth,
            dz=0.07 * smile_cheeks - 0.04 * mouth,
        ),
        "frown": move(dy=0.085 * corners, dx=-0.01 * _SIGN * corners),
        "stretch": move(dx=0.075 * _SIGN * corners, dy=0.02 * corners),
        "smirk_left": corner_up(corner_left, -0.62),
        "smirk_right": corner_up(corner_right, 0.62),
        "jaw": move(dy=0.27 * ramp(1.2, 1.58) - 0.03 * ramp(1.6, 2.0), dz=-0.10 * ramp(1.2, 1.8)),
        "pucker": move(dx=-0.38 * x * mouth, dz=0.06 * bump(0.0, 1.1, wide=0.2, tall=0.15)),
        "raise": move(dy=-0.105 * brows),
        "raise_inner": move(
            dy=-0.095 * bump(0.0, -0.27, wide=0.26, tall=0.14) + 0.03 * pair(0.85, -0.24, wide=0.16, tall=0.1)
        ),
        "lower": move(
            dy=0.10 * bump(0.0, -0.27, wide=0.30, tall=0.13) + 0.03 * brows,
            dx=-0.07 * _SIGN * pair(0.25, -0.26, wide=0.14, tall=0.12),
        ),
        "wrinkle": move(
            dy=-0.045 * bump(0.0, 0.6, wide=0.34, tall=0.18) - 0.055 * bump(0.0, 0.99, wide=0.28, tall=0.09),
            dx=0.10 * x * bump(0.0, 0.63, wide=0.24, tall=0.12),
            dz=0.03 * pair(0.35, 0.5, wide=0.15, tall=0.15),
        ),
    }


BASE: Final = _base().astype(np.float32)  # (ACROSS, DOWN, 3)
_NAMED: Final = _modes()
MODE_NAMES: Final = tuple(_NAMED)
MODES: Final = np.stack([_NAMED[name].reshape(-1) for name in MODE_NAMES]).astype(np.float32)  # (M, ACROSS*DOWN*3)
MODE_INDEX: Final = {name: index for index, name in enumerate(MODE_NAMES)}

# Outward direction of each vertex, along which hair grows.
_OUT = np.stack([CANON_X, np.clip(CANON_Y + 0.45, -3, 0.0), BASE[..., 2]], axis=-1)
OUTWARD: Final = (_OUT / np.maximum(np.linalg.norm(_OUT, axis=-1, keepdims=True), 1e-6)).astype(np.float32)

# How much of the sky each vertex sees: hollows are darker.
HOLLOW: Final = np.clip(
    1.0
    - 0.26 * pair(0.40, 0.0, wide=0.17, tall=0.12)
    - 0.10 * pair(0.55, -0.06, wide=0.24, tall=0.08)
    - 0.30 * bump(0.0, 0.755, wide=0.20, tall=0.05)
    - 0.16 * pair(0.29, 0.66, wide=0.05, tall=0.10)
    - 0.16 * bump(0.0, 1.31, wide=0.22, tall=0.05)
    - 0.12 * pair(0.45, 1.09, wide=0.07, tall=0.07)
    - 0.55 * ramp(1.72, 1.98)
    - 0.25 * np.exp(-0.5 * ((np.abs(ANGLE) - 1.36) / 0.10) ** 2) * ramp(-0.2, 0.2) * (1 - ramp(0.7, 1.2)),
    0.2,
    1.0,
).astype(np.float32)


FIRST_ACTION: Final = MODE_INDEX["smile"]  # modes from here on are what a face does, those before who it is


def displaced(amounts: NDArray[np.float32], *, first: int) -> NDArray[np.float32]:
    """How far vertices move for the amounts of some neighbouring modes.

    Args:
        amounts: (n,) of the modes from `first` on, in the order of `MODE_NAMES`.

    Returns:
        (ACROSS, DOWN, 3), to be added to `BASE`.
    """
    # Not `@`: how a matrix library sums depends on its number of threads.
    moved = np.einsum("m,mv->v", amounts, MODES[first : first + len(amounts)])
    return np.asarray(moved.reshape(ACROSS, DOWN, 3))
