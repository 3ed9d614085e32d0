"""The albedo of one face, painted on the unrolled head before it is bent into shape and lit."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces.draw import RGB, Person, Shot
from edgeface.data.faces.template import ANGLE_MAX, SPANS, Y_BOTTOM, Y_TOP, half_width, to_grid

ROWS: Final = 192  # 48 texels an eye distance: 1.5 times a 128 px picture's
COLUMNS: Final = 232
_SHIFT: Final = 4  # cv2 draws with 1/16 texel

Image = NDArray[np.float32]


def to_texels(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Canonical (..., 2) points → (..., 2) texel columns and rows, texel centres at whole numbers."""
    return to_grid(points) * np.array([COLUMNS, ROWS]) - 0.5


@cache
def _angle() -> NDArray[np.float64]:
    return ((np.arange(COLUMNS) + 0.5) / COLUMNS * 2 - 1) * ANGLE_MAX


@cache
def _height() -> NDArray[np.float64]:
    return Y_TOP + (np.arange(ROWS) + 0.5) / ROWS * (Y_BOTTOM - Y_TOP)


@cache
def _canonical() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y = np.repeat(_height()[:, None], COLUMNS, axis=1)
    return half_width(y) * np.sin(_angle())[None, :], y


def _bump(x: float, y: float, wide: float, tall: float) -> NDArray[np.float64]:
    cx, cy = _canonical()
    front = np.clip(np.cos(_angle()) * 3, 0, 1)[None, :]
    return np.asarray(np.exp(-0.5 * (((cx - x) / wide) ** 2 + ((cy - y) / tall) ** 2)) * front)


def _pair(x: float, y: float, wide: float, tall: float) -> NDArray[np.float64]:
    return _bump(x, y, wide, tall) + _bump(-x, y, wide, tall)


def _strokes(lines: list[list[tuple[float, float]]], *, thick: int, soft: float) -> NDArray[np.float64]:
    """Soft dark lines through canonical points, mirrored to both sides; peak 1."""
    import cv2

    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    for line in lines:
        for sign in (1.0, -1.0):
            points = to_texels(np.array([(sign * x, y) for x, y in line]))
            cv2.polylines(mask, [_fixed(points)], False, 255, thick, cv2.LINE_AA, _SHIFT)
    blurred = cv2.GaussianBlur(mask, (0, 0), soft).astype(np.float64)
    return np.asarray(blurred / max(blurred.max(), 1.0))


# Dark marks that every face mixes in its own amounts.
_SHADES: Final = (
    "socket",
    "circles",
    "nasolabial",
    "forehead",
    "crow",
    "glabella",
    "under_eye",
    "jowl",
    "beard",
    "stubble_line",
)


@cache
def shade_maps() -> NDArray[np.float32]:
    """(len(_SHADES), ROWS * COLUMNS) in [0, 1]."""
    x, y = _canonical()
    beard = np.clip((y - 0.86) / 0.12, 0, 1) * np.clip((2.0 - y) / 0.2, 0, 1)
    beard = np.maximum(beard, np.clip((np.abs(_angle())[None, :] - 1.05) / 0.1, 0, 1) * np.clip((y - 0.3) / 0.2, 0, 1))
    beard *= np.clip(1.75 - np.abs(_angle())[None, :], 0, 0.2) * 5
    cheek = np.exp(-0.5 * (((np.abs(x) - 0.66) / 0.17) ** 2 + ((y - 1.0) / 0.17) ** 2))
    beard *= 1 - 0.9 * cheek
    beard *= 1 - np.exp(-0.5 * ((x / 0.33) ** 4 + ((y - 1.12) / 0.13) ** 4))  # the lips and below
    maps = {
        "socket": 0.8 * _pair(0.34, -0.03, 0.12, 0.10) + 0.5 * _pair(0.55, -0.12, 0.22, 0.05),
        "circles": _pair(0.45, 0.16, 0.16, 0.055),
        "nasolabial": _strokes([[(0.25, 0.62), (0.34, 0.74), (0.43, 0.90), (0.49, 1.08)]], thick=2, soft=1.6),
        "forehead": _strokes(
            [[(0.0, -0.58), (0.35, -0.60), (0.62, -0.55)], [(0.0, -0.74), (0.35, -0.77), (0.65, -0.72)], [(0.0, -0.90), (0.5, -0.91)]],
            thick=1, soft=1.0,
        ),
        "crow": _strokes(
            [[(0.82, -0.03), (1.0, -0.10)], [(0.83, 0.02), (1.02, 0.02)], [(0.82, 0.07), (0.99, 0.14)]], thick=1, soft=0.9
        ),
        "glabella": _strokes([[(0.07, -0.34), (0.09, -0.18)]], thick=1, soft=1.0),
        "under_eye": _strokes([[(0.28, 0.12), (0.42, 0.19), (0.60, 0.19), (0.72, 0.13)]], thick=1, soft=1.0),
        "jowl": _strokes([[(0.46, 1.14), (0.52, 1.28), (0.52, 1.40)]], thick=2, soft=1.6),
        "beard": beard,
        "stubble_line": _bump(0.0, 1.31, 0.2, 0.05),
    }  # fmt: skip
    return np.stack([np.clip(maps[name], 0, 1).reshape(-1) for name in _SHADES]).astype(np.float32)


@cache
def _flush() -> NDArray[np.float32]:
    """(ROWS, COLUMNS) where blood shows: cheeks, nose, ears, chin."""
    flush = 0.9 * _pair(0.62, 0.48, 0.24, 0.20) + 0.8 * _bump(0, 0.58, 0.18, 0.14) + 0.3 * _bump(0, 1.6, 0.3, 0.15)
    flush = flush + 0.8 * np.exp(-0.5 * ((np.abs(_angle())[None, :] - 1.62) / 0.12) ** 2) * np.exp(
        -0.5 * ((_canonical()[1] - 0.2) / 0.3) ** 4
    )
    return np.asarray(flush, dtype=np.float32)


@cache
def _grain() -> NDArray[np.float32]:
    """(8, ROWS, COLUMNS) skin mottling, mean 0, standard deviation 1."""
    import cv2

    generator = np.random.Generator(np.random.Philox(key=np.array([7, 1], dtype=np.uint64)))
    sheets = []
    for _ in range(8):
        sheet = np.zeros((ROWS, COLUMNS), np.float32)
        for cells, weight in ((6, 1.0), (20, 0.7), (64, 0.6)):
            coarse = generator.standard_normal((cells, cells)).astype(np.float32)
            sheet += weight * cv2.resize(coarse, (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC)
        sheet += 0.35 * generator.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        sheets.append((sheet - sheet.mean()) / sheet.std())
    return np.stack(sheets)


@cache
def strands() -> NDArray[np.float32]:
    """(8, ROWS, COLUMNS) hair strands running down the sheet, mean 0."""
    import cv2

    generator = np.random.Generator(np.random.Philox(key=np.array([7, 2], dtype=np.uint64)))
    sheets = []
    for _ in range(8):
        fine = cv2.resize(
            generator.standard_normal((6, 150)).astype(np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC
        )
        broad = cv2.resize(
            generator.standard_normal((4, 22)).astype(np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC
        )
        sheet = 0.6 * fine + 0.6 * broad + 0.25 * generator.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        sheets.append(sheet.astype(np.float32))
    return np.stack(sheets)


def _fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.round(points * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)


def hair_cover(
    person: Person, angle: NDArray[np.float64], height: NDArray[np.float64], *, soft: float
) -> NDArray[np.float64]:
    """How much of each place of the sheet is covered by hair.

    Args:
        angle: (C,) radians around the head, 0 in front.
        height: (R,) canonical y.
        soft: Width of the hair's edge, in eye distances.

    Returns:
        (R, C) in [0, 1].
    """
    around = np.abs(angle)
    # the edge: forehead, temples, sideburns in front of the ear, then behind it
    side = 0.10 if person.hair_length < 0.42 else 0.35 + 1.5 * person.hair_length
    front = -0.28 - person.hairline - 0.10 * person.hair_peak * np.cos(angle * 2.2)
    if person.fringe > 0.0:
        away = np.clip((angle - person.parting) / 1.1, -1, 1)
        front = front + person.fringe * (person.hairline - 0.06) * (1 - away**2)
    burn = np.clip((around - 0.92) / 0.22, 0.0, 1.0)
    edge = front + (side - front) * burn * burn * (3 - 2 * burn)
    if person.hair_length < 0.42:
        edge = np.where(around > 1.42, np.maximum(edge - 0.55 * np.clip((around - 1.42) / 0.1, 0, 1), -0.4), edge)
    if person.bald:
        edge = np.where(around > 1.15, np.minimum(edge, -0.25), -3.0)
        edge = edge - 0.0
        crown = np.clip((height + 0.75) / 0.3, 0.0, 1.0)
        return np.asarray(np.clip((edge[None, :] - height[:, None]) / soft + 0.5, 0.0, 1.0) * crown[:, None])
    return np.asarray(np.clip((edge[None, :] - height[:, None]) / soft + 0.5, 0.0, 1.0))


def _blend(
    sheet: Image, mask: NDArray[Any], colour: RGB | NDArray[Any], where: tuple[int, int], strength: float = 1.0
) -> None:
    """Lays a colour over the part of the sheet that starts at `where` (column, row), through a uint8 mask."""
    rows, columns = mask.shape
    part = sheet[where[1] : where[1] + rows, where[0] : where[0] + columns]
    alpha = (mask * np.float32(strength / 255.0))[..., None]
    part += alpha * (np.asarray(colour, dtype=np.float32) - part)


class _Patch:
    """A rectangle of the sheet in which one feature is drawn."""

    def __init__(self, points: NDArray[np.float64], *, around: int) -> None:
        low = np.maximum(np.floor(points.min(0)).astype(int) - around, 0)
        high = np.minimum(np.ceil(points.max(0)).astype(int) + around, (COLUMNS, ROWS))
        self.where = (int(low[0]), int(low[1]))
        self.shape = (int(high[1] - low[1]), int(high[0] - low[0]))
        self.origin = low

    def fill(self, points: NDArray[np.float64]) -> NDArray[np.uint8]:
        import cv2

        mask = np.zeros(self.shape, np.uint8)
        cv2.fillPoly(mask, [_fixed(points - self.origin)], 255, cv2.LINE_AA, _SHIFT)
        return mask

    def line(self, points: NDArray[np.float64], *, thick: int) -> NDArray[np.uint8]:
        import cv2

        mask = np.zeros(self.shape, np.uint8)
        cv2.polylines(mask, [_fixed(points - self.origin)], False, 255, thick, cv2.LINE_AA, _SHIFT)
        return mask

    def disc(self, centre: NDArray[np.float64], radius: float) -> NDArray[np.uint8]:
        import cv2

        mask = np.zeros(self.shape, np.uint8)
        at = np.round((centre - self.origin) * (1 << _SHIFT)).astype(int)
        cv2.circle(mask, (int(at[0]), int(at[1])), round(radius * (1 << _SHIFT)), 255, -1, cv2.LINE_AA, _SHIFT)
        return mask


def _texels(points: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    return points[SPANS[name]]


def paint(person: Person, shot: Shot, points: NDArray[np.float64]) -> Image:
    """Paints one face.

    Args:
        points: (P, 2) texel positions of all feature points.

    Returns:
        (ROWS, COLUMNS, 3) float32 display RGB, 0 to 255, without any light.
    """
    import cv2

    d = shot.draws
    skin = np.array(person.skin, dtype=np.float32)
    luma = float(skin.mean()) / 255.0
    wrinkles = person.wrinkles
    modes = {name: float(shot.modes[index]) for name, index in _ACTION_INDEX.items()}
    amounts = {
        "socket": 0.10 + 0.08 * d[0],
        "circles": (0.34 + 0.14 * d[1] if person.dark_circles else 0.03),
        "nasolabial": 0.06 + 0.24 * wrinkles + 0.20 * modes["smile"] + 0.15 * modes["wrinkle"],
        "forehead": 0.34 * max(wrinkles - 0.1, 0.0) + 0.16 * max(modes["raise"], 0.0) * (0.3 + wrinkles),
        "crow": 0.30 * max(wrinkles - 0.1, 0.0) + 0.16 * modes["smile"] * (0.2 + wrinkles),
        "glabella": 0.18 * wrinkles + 0.40 * modes["lower"],
        "under_eye": 0.05 + 0.26 * wrinkles,
        "jowl": 0.26 * max(wrinkles - 0.25, 0.0),
        "beard": 0.0,
        "stubble_line": 0.06,
    }
    weights = np.array([amounts[name] for name in _SHADES], dtype=np.float32)
    tone = (1.0 - weights @ shade_maps()).reshape(ROWS, COLUMNS)
    grain = _grain()[person.texture]
    tone *= 1.0 + np.float32(0.014 + 0.022 * wrinkles + 0.012 * person.acne) * grain
    sheet = tone[..., None] * skin
    flush = _flush() * np.float32((0.05 + 0.10 * d[2]) * luma + 0.12 * person.make_up)
    sheet[..., 1] *= 1.0 - flush
    sheet[..., 2] *= 1.0 - 0.8 * flush

    if person.beard > 0.0:
        cover = shade_maps()[_SHADES.index("beard")].reshape(ROWS, COLUMNS)
        dense = np.clip(cover * np.float32(1.5 * person.beard) + np.float32(0.12) * grain * cover, 0.0, 0.92)
        sheet += dense[..., None] * (np.array(person.hair, np.float32) * 0.85 - sheet)

    _marks(sheet, person)
    _lips(sheet, person, shot, points)
    for side in ("left", "right"):
        _eye(sheet, person, shot, points, side=side)
        _brow(sheet, person, points, side=side)
    _nostrils(sheet, points)

    cover = hair_cover(person, _angle(), _height(), soft=0.10)
    streak = strands()[person.texture]
    if person.hair_length == 0.0 and not person.bald:
        cover = cover * 0.5
    alpha = np.clip(cover * 1.25 + 0.16 * streak * (cover > 0.0) * (1.0 - cover), 0.0, 1.0).astype(np.float32)
    hair = np.array(person.hair, np.float32) * (1.0 + np.float32(0.16) * streak)[..., None]
    rows = int(np.flatnonzero(alpha.max(axis=1) > 0).max(initial=0)) + 1
    sheet[:rows] += alpha[:rows, :, None] * (hair[:rows] - sheet[:rows])
    # the sheet of hair throws a soft shadow on the brow below its edge
    del cv2
    return sheet


def _marks(sheet: Image, person: Person) -> None:
    """Acne and spots: small discs at places that belong to the person."""
    import cv2

    if not (person.acne or person.spots):
        return
    generator = np.random.Generator(np.random.Philox(key=np.array([11, int(person.age * 1e6)], dtype=np.uint64)))
    for present, count, tint, radius in (
        (person.acne, 16, (0.97, 0.66, 0.66), 1.5),
        (person.spots, 34, (0.74, 0.62, 0.54), 1.1),
    ):
        if not present:
            continue
        where = generator.random((count, 4))
        x = (0.18 + 0.72 * where[:, 0]) * np.where(where[:, 1] < 0.5, -1.0, 1.0)
        y = np.where(where[:, 3] < 0.25, -0.85 + 0.45 * where[:, 2], 0.25 + 1.2 * where[:, 2])
        mask = np.zeros((ROWS, COLUMNS), np.uint8)
        for (column, row), size in zip(to_texels(np.stack([x, y], -1)), where[:, 3], strict=True):
            cv2.circle(
                mask, (round(column * 16), round(row * 16)), round((radius + size) * 16), 200, -1, cv2.LINE_AA, _SHIFT
            )
        _blend(sheet, cv2.GaussianBlur(mask, (3, 3), 0.7), np.array(person.skin) * tint, (0, 0), 0.85)


def _eye(sheet: Image, person: Person, shot: Shot, points: NDArray[np.float64], *, side: str) -> None:
    import cv2

    upper, lower = _texels(points, f"lid_upper_{side}"), _texels(points, f"lid_lower_{side}")
    crease = _texels(points, f"crease_{side}")
    pupil = _texels(points, f"pupil_{side}")[0]
    patch = _Patch(np.concatenate([upper, lower, crease]), around=6)
    opening = float((lower - upper)[:, 1].max())
    if person.make_up > 0.2:
        _blend(sheet, cv2.GaussianBlur(patch.fill(np.concatenate([crease, upper[::-1]])), (5, 5), 1.2),
               np.array(person.skin) * (0.62, 0.5, 0.55), patch.where, 0.8 * person.make_up)  # fmt: skip
    fold = cv2.GaussianBlur(patch.line(crease, thick=1), (3, 3), 0.8)
    _blend(sheet, fold, np.array(person.skin) * 0.55, patch.where, 0.55)
    if opening > 1.2:
        ball = patch.fill(np.concatenate([upper, lower[::-1]]))
        rows = np.arange(patch.shape[0], dtype=np.float32)[:, None] + patch.origin[1]
        lit = np.clip(0.72 + 0.30 * (rows - float(upper[:, 1].min())) / max(opening, 1.0), 0.6, 1.0)
        white = np.array([226, 218, 212], np.float32) * (0.93 + 0.07 * shot.draws[3]) * lit[..., None]
        _blend(sheet, ball, np.broadcast_to(white, (*patch.shape, 3)), patch.where)
        shown = ball.astype(np.uint16)
        for radius, colour, strength in (
            (4.6, np.array(person.iris) * 0.45, 1.0),
            (3.9, np.array(person.iris), 1.0),
            (1.9, np.array([12.0, 10, 10]), 1.0),
        ):
            disc = (patch.disc(pupil, radius) * shown // 255).astype(np.uint8)
            _blend(sheet, disc, colour * (0.9 if radius > 2 else 1.0), patch.where, strength)
        glint = pupil + np.array([1.6 if shot.light[0] > 0 else -1.6, -1.5])
        _blend(sheet, (patch.disc(glint, 0.9) * shown // 255).astype(np.uint8), (250.0, 250.0, 250.0), patch.where, 0.9)
        _blend(sheet, patch.line(lower, thick=1), np.array(person.skin) * (0.62, 0.48, 0.45), patch.where, 0.5)
    lash = np.array(person.brow) * 0.4 + 6
    thick = 2 if person.feminine > 0.5 or person.make_up > 0.3 else 1
    _blend(sheet, patch.line(upper, thick=thick), lash, patch.where, 0.85 if thick == 2 else 0.8)


def _brow(sheet: Image, person: Person, points: NDArray[np.float64], *, side: str) -> None:
    import cv2

    upper, lower = _texels(points, f"brow_upper_{side}"), _texels(points, f"brow_lower_{side}")
    patch = _Patch(np.concatenate([upper, lower]), around=4)
    mask = cv2.GaussianBlur(patch.fill(np.concatenate([upper, lower[::-1]])), (3, 3), 0.9)
    streak = _grain()[(person.texture + 3) % 8][: patch.shape[0], : patch.shape[1]]
    hair = np.array(person.brow, np.float32) * (1.0 + 0.14 * streak)[..., None]
    _blend(sheet, mask, hair, patch.where, 0.86)


def _nostrils(sheet: Image, points: NDArray[np.float64]) -> None:
    import cv2

    both = _texels(points, "nostril")
    patch = _Patch(both, around=6)
    mask = np.zeros(patch.shape, np.uint8)
    for centre in both:
        at = np.round((centre - patch.origin) * (1 << _SHIFT)).astype(int)
        cv2.ellipse(mask, (int(at[0]), int(at[1])), (56, 26), 0, 0, 360, 255, -1, cv2.LINE_AA, _SHIFT)
    _blend(sheet, cv2.GaussianBlur(mask, (3, 3), 0.8), (38.0, 22.0, 18.0), patch.where, 0.8)


def _lips(sheet: Image, person: Person, shot: Shot, points: NDArray[np.float64]) -> None:
    import cv2

    top, bottom = _texels(points, "lip_top"), _texels(points, "lip_bottom")
    inner_top, inner_bottom = _texels(points, "seam_top"), _texels(points, "seam_bottom")
    patch = _Patch(np.concatenate([top, bottom]), around=5)
    lip = np.array(person.lip)
    soft = 0.5 if person.make_up > 0.3 else 1.0
    whole = cv2.GaussianBlur(patch.fill(np.concatenate([top, bottom[::-1]])), (5, 5), soft)
    _blend(sheet, whole, lip * 0.94, patch.where, 0.9)
    lower = cv2.GaussianBlur(patch.fill(np.concatenate([inner_bottom, bottom[::-1]])), (3, 3), 0.8)
    _blend(sheet, lower, lip * 1.08, patch.where, 0.6)
    opening = float((inner_bottom - inner_top)[:, 1].max())
    if opening > 0.7:
        hole = patch.fill(np.concatenate([inner_top, inner_bottom[::-1]]))
        _blend(sheet, hole, (52.0, 20.0, 20.0), patch.where, 0.97)
        shown = hole.astype(np.uint16)
        tooth = np.array([228.0, 222.0, 206.0]) * (0.9 + 0.1 * shot.draws[4]) * (0.94 - 0.14 * person.wrinkles)
        if shot.smile > 0.2 or shot.features["teeth"] > 0.0:
            reach = np.minimum(inner_bottom[:, 1], inner_top[:, 1] + (5.2 if shot.features["gap"] > 0 else 6.0))
            edge = np.stack([inner_top[:, 0], reach], -1)
            upper = patch.fill(np.concatenate([inner_top[2:-2], edge[2:-2][::-1]]))
            _blend(
                sheet, cv2.GaussianBlur((upper * shown // 255).astype(np.uint8), (3, 3), 0.6), tooth, patch.where, 0.93
            )
        if opening > 7.0:
            tongue = patch.fill(np.concatenate([inner_bottom[3:-3] - (0.0, 0.36 * opening), inner_bottom[3:-3][::-1]]))
            _blend(
                sheet,
                cv2.GaussianBlur((tongue * shown // 255).astype(np.uint8), (5, 5), 1.2),
                (150.0, 72.0, 70.0),
                patch.where,
                0.7,
            )
    else:
        seam = cv2.GaussianBlur(patch.line(inner_top, thick=1), (3, 3), 0.6)
        _blend(sheet, seam, lip * 0.32, patch.where, 1.0)
    for corner in (top[0], top[-1]):
        _blend(
            sheet,
            cv2.GaussianBlur(patch.disc(corner, 1.2), (5, 5), 1.0),
            np.array(person.skin) * 0.45,
            patch.where,
            0.7,
        )


def _action_index() -> dict[str, int]:
    from edgeface.data.faces.head import MODE_INDEX

    return {name: MODE_INDEX[name] for name in ("smile", "raise", "lower", "wrinkle")}


_ACTION_INDEX: Final = _action_index()
assert math.isfinite(ANGLE_MAX)
