"""The albedo of one face, painted on the unrolled head before it is bent into shape and lit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces import canvas
from edgeface.data.faces.canvas import Mask, Picture, Points
from edgeface.data.faces.draw import Person, Shot
from edgeface.data.faces.head import MODE_INDEX
from edgeface.data.faces.template import ANGLE_MAX, SPANS, Y_BOTTOM, Y_TOP, half_width, to_grid

ROWS: Final = 192  # 48 texels an eye distance: 1.5 times a 128 px picture's
COLUMNS: Final = 232
_SHEET: Final = (ROWS, COLUMNS)
_MARKED: Final = slice(44, 176)  # rows from the forehead's highest line to under the chin
_ACTIONS: Final = ("smile", "raise", "lower", "wrinkle")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What the head is covered with.

    Attributes:
        skin: (3, ROWS, COLUMNS) display RGB, 0 to 255, of everything but scalp hair.
        hair: (ROWS, COLUMNS, 2) float32: coverage of scalp hair in [0, 1], and the brightness of its strands around 1.
    """

    skin: Picture
    hair: NDArray[np.float32]


def to_texels(points: Points) -> Points:
    """Canonical (..., 2) points → (..., 2) texel columns and rows, texel centres at whole numbers."""
    return np.asarray(to_grid(points) * np.array([COLUMNS, ROWS]) - 0.5)


@cache
def _angle() -> NDArray[np.float64]:
    return np.asarray(((np.arange(COLUMNS) + 0.5) / COLUMNS * 2 - 1) * ANGLE_MAX)


@cache
def _height() -> NDArray[np.float64]:
    return np.asarray(Y_TOP + (np.arange(ROWS) + 0.5) / ROWS * (Y_BOTTOM - Y_TOP))


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


def _creases(lines: list[list[tuple[float, float]]], *, thick: int, soft: float) -> NDArray[np.float64]:
    """Soft dark lines through canonical points, mirrored to both sides; peak 1."""
    drawn = [to_texels(np.array([(sign * x, y) for x, y in line])) for line in lines for sign in (1.0, -1.0)]
    blurred = canvas.blur(canvas.stroke(_SHEET, drawn, thick=thick).astype(np.float64), 0, soft)
    return np.asarray(blurred / blurred.max())


@cache
def _beard() -> NDArray[np.float32]:
    """(ROWS, COLUMNS) where a full beard grows, in [0, 1]."""
    x, y = _canonical()
    around = np.abs(_angle())[None, :]
    low = np.clip((y - 0.86) / 0.12, 0, 1) * np.clip((2.0 - y) / 0.2, 0, 1)
    side = np.clip((around - 0.98) / 0.3, 0, 1) * np.clip((y - 0.2) / 0.5, 0, 1)
    beard = np.maximum(low, side) * np.clip(1.62 - around, 0, 0.3) / 0.3
    beard = beard * (1 - 0.9 * np.exp(-0.5 * (((np.abs(x) - 0.66) / 0.17) ** 2 + ((y - 1.0) / 0.17) ** 2)))
    beard = beard * (1 - np.exp(-0.5 * ((x / 0.33) ** 4 + ((y - 1.12) / 0.13) ** 4)))  # the lips
    return np.asarray(np.clip(beard, 0, 1), dtype=np.float32)


@cache
def _shades() -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Dark marks that every face mixes in its own amounts: names, and (marks, _MARKED rows * COLUMNS) in [0, 1]."""
    forehead = [
        [(0.0, -0.58), (0.35, -0.60), (0.62, -0.55)],
        [(0.0, -0.74), (0.35, -0.77), (0.65, -0.72)],
        [(0.0, -0.90), (0.5, -0.91)],
    ]
    crow = [[(0.82, -0.03), (1.0, -0.10)], [(0.83, 0.02), (1.02, 0.02)], [(0.82, 0.07), (0.99, 0.14)]]
    _, y = _canonical()
    around = np.abs(_angle())[None, :]
    fold = np.exp(-0.5 * (((around - 1.58) / 0.05) ** 2 + ((y - 0.18) / 0.17) ** 2))
    behind = np.exp(-0.5 * (((around - 1.84) / 0.06) ** 2 + ((y - 0.2) / 0.4) ** 4))
    maps = {
        "socket": 0.8 * _pair(0.34, -0.03, 0.12, 0.10) + 0.5 * _pair(0.55, -0.12, 0.22, 0.05),
        "circles": _pair(0.45, 0.16, 0.16, 0.055),
        "nasolabial": _creases([[(0.25, 0.62), (0.34, 0.74), (0.43, 0.90), (0.49, 1.08)]], thick=2, soft=1.6),
        "forehead": _creases(forehead, thick=1, soft=1.0),
        "crow": _creases(crow, thick=1, soft=0.9),
        "glabella": _creases([[(0.07, -0.34), (0.09, -0.18)]], thick=1, soft=1.0),
        "under_eye": _creases([[(0.28, 0.12), (0.42, 0.19), (0.60, 0.19), (0.72, 0.13)]], thick=1, soft=1.0),
        "jowl": _creases([[(0.46, 1.14), (0.52, 1.28), (0.52, 1.40)]], thick=2, soft=1.6),
        "ear": 0.9 * fold + 0.7 * behind,
    }
    kept = [np.clip(value[_MARKED], 0, 1).reshape(-1) for value in maps.values()]
    return tuple(maps), np.stack(kept).astype(np.float32)


@cache
def _flush() -> NDArray[np.float32]:
    """(ROWS, COLUMNS) where blood shows: cheeks, nose, ears, chin."""
    ear = np.exp(-0.5 * ((np.abs(_angle())[None, :] - 1.62) / 0.12) ** 2 - 0.5 * ((_canonical()[1] - 0.2) / 0.3) ** 4)
    face = 0.9 * _pair(0.62, 0.48, 0.24, 0.20) + 0.8 * _bump(0, 0.58, 0.18, 0.14) + 0.3 * _bump(0, 1.6, 0.3, 0.15)
    return np.asarray(face + 0.8 * ear, dtype=np.float32)


@cache
def _grain() -> NDArray[np.float32]:
    """(8, ROWS, COLUMNS) skin mottling, mean 0, standard deviation 1."""
    import cv2

    generator = np.random.Generator(np.random.Philox(key=np.array([7, 1], dtype=np.uint64)))
    sheets = []
    for _ in range(8):
        sheet = np.zeros(_SHEET, np.float32)
        for cells, weight in ((6, 1.0), (20, 0.7), (64, 0.6)):
            coarse = generator.standard_normal((cells, cells)).astype(np.float32)
            sheet += weight * cv2.resize(coarse, (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC)
        sheet += 0.35 * generator.standard_normal(_SHEET).astype(np.float32)
        sheets.append((sheet - sheet.mean()) / sheet.std())
    return np.stack(sheets)


@cache
def strands(rows: int, columns: int) -> NDArray[np.float32]:
    """(8, rows, columns) brightness of hair strands that run down, mean 1."""
    import cv2

    generator = np.random.Generator(np.random.Philox(key=np.array([7, 2], dtype=np.uint64)))
    sheets = []
    for _ in range(8):
        sheet = 0.2 * generator.standard_normal(_SHEET).astype(np.float32)
        for shape, weight in (((6, 150), 0.6), ((4, 22), 0.6), ((9, 3), 0.5)):
            coarse = generator.standard_normal(shape).astype(np.float32)
            sheet += weight * cv2.resize(coarse, (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC)
        resized = cv2.resize(sheet, (columns, rows), interpolation=cv2.INTER_LINEAR)
        sheets.append(np.clip(1.0 + 0.17 * resized, 0.4, 1.8))
    return np.stack(sheets).astype(np.float32)


@cache
def _frizz() -> NDArray[np.float32]:
    """(8, ROWS, COLUMNS) how far the hair's edge strays, in eye distances."""
    return np.asarray((strands(ROWS, COLUMNS) - 1.0) * 0.55, dtype=np.float32)


def hair_edge(person: Person, angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Height of the scalp hair's lower edge around the head.

    Args:
        angle: (C,) radians around the head, 0 in front.

    Returns:
        (C,) canonical y; hair grows above it (and, on a bald head, below -0.75).
    """
    around = np.abs(angle)
    short = person.hair_length < 0.42
    side = 0.10 if short else 0.35 + 1.5 * person.hair_length
    front = -0.28 - person.hairline - 0.10 * person.hair_peak * np.cos(angle * 2.2)
    if person.fringe > 0.0:
        away = np.clip((angle - person.parting) / 1.1, -1, 1)
        front = front + person.fringe * (person.hairline - 0.15) * (1 - away**2)
    # forehead, temples, sideburns before the ear, then above and behind it
    burn = np.clip((around - 0.92) / 0.22, 0.0, 1.0)
    edge = front + (side - front) * burn * burn * (3 - 2 * burn)
    if short:
        edge = np.where(around > 1.42, np.maximum(edge - 0.55 * np.clip((around - 1.42) / 0.1, 0, 1), -0.4), edge)
    if person.bald:
        edge = np.where(around > 1.15, np.minimum(edge, -0.25), -3.0)
    return np.asarray(edge)


def _hair(person: Person) -> NDArray[np.float32]:
    hair = np.empty((*_SHEET, 2), np.float32)
    edge = hair_edge(person, _angle()).astype(np.float32)
    height = _height().astype(np.float32)
    cover = (edge[None, :] - height[:, None]) + _frizz()[person.texture]
    cover *= np.float32(1 / 0.12)
    np.clip(cover, 0.0, 1.0, out=cover)
    if person.bald:
        cover *= np.clip((height + 0.75) / 0.3, 0.0, 1.0)[:, None]
    elif person.hair_length == 0.0:
        cover *= np.float32(0.5)
    hair[..., 0] = cover
    hair[..., 1] = strands(ROWS, COLUMNS)[person.texture]
    return hair


class _Patch:
    """A rectangle of the sheet in which one feature is drawn."""

    def __init__(self, sheet: Picture, points: Points, *, around: int) -> None:
        low = np.maximum(np.floor(points.min(0)).astype(int) - around, 0)
        high = np.minimum(np.ceil(points.max(0)).astype(int) + around, (COLUMNS, ROWS))
        self.origin = low
        self.shape = (int(high[1] - low[1]), int(high[0] - low[0]))
        self.part = sheet[:, low[1] : high[1], low[0] : high[0]]

    def fill(self, *outlines: Points) -> Mask:
        return canvas.polygons(self.shape, [outline - self.origin for outline in outlines])

    def line(self, *lines: Points, thick: int) -> Mask:
        return canvas.stroke(self.shape, [line - self.origin for line in lines], thick=thick)

    def discs(self, centres: Points, radius: float) -> Mask:
        return canvas.discs(self.shape, centres - self.origin, radius)


def _sum(weights: NDArray[np.float32], maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted sum of shades. Not `@`: how a matrix library sums depends on its number of threads."""
    return np.asarray(np.einsum("n,nm->m", weights, maps).reshape(-1, COLUMNS))


@lru_cache(maxsize=4)
def _resting(person: Person) -> Sheet:
    """What a person's shots share, which often follow each other: skin without features, and scalp hair."""
    wrinkles = person.wrinkles
    amounts = {
        "socket": 0.14,
        "circles": 0.41 if person.dark_circles else 0.03,
        "nasolabial": 0.06 + 0.24 * wrinkles,
        "forehead": 0.34 * max(wrinkles - 0.1, 0.0),
        "crow": 0.30 * max(wrinkles - 0.1, 0.0),
        "glabella": 0.18 * wrinkles,
        "under_eye": 0.05 + 0.26 * wrinkles,
        "jowl": 0.26 * max(wrinkles - 0.25, 0.0),
        "ear": 0.35,
    }
    names, maps = _shades()
    weights = np.array([amounts[name] for name in names], dtype=np.float32)
    tone = np.ones(_SHEET, np.float32)
    tone[_MARKED] -= _sum(weights, maps)
    grain = _grain()[person.texture]
    tone *= np.float32(1.0) + np.float32(0.014 + 0.022 * wrinkles + 0.012 * person.acne) * grain
    skin = np.array(person.skin, np.float32)
    pale = np.float32(person.flush * float(skin.mean()) / 255.0 + 0.12 * person.make_up)
    sheet = np.empty((3, *_SHEET), np.float32)
    np.multiply(tone, skin[0], out=sheet[0])
    tone *= np.float32(1.0) - pale * _flush()
    np.multiply(tone, skin[1], out=sheet[1])
    np.multiply(tone, skin[2], out=sheet[2])
    if person.beard > 0.0:
        grown = slice(102, 188)  # from the sideburns to the throat
        dense = _beard()[grown] * (np.float32(1.5 * person.beard) + np.float32(0.12) * grain[grown])
        np.clip(dense, 0.0, 0.92, out=dense)
        for plane, shade in zip(sheet[:, grown], np.array(person.hair, np.float32) * np.float32(0.85), strict=True):
            plane += dense * (shade - plane)
    _marks(sheet, person)
    return Sheet(skin=sheet, hair=_hair(person))


def paint(person: Person, shot: Shot, points: Points) -> Sheet:
    """Paints one face.

    Args:
        points: (P, 2) texel positions of all feature points.
    """
    resting = _resting(person)
    sheet = resting.skin.copy()
    smile, lift, lower, wrinkle = (float(shot.modes[MODE_INDEX[name]]) for name in _ACTIONS)
    if smile or lift or lower or wrinkle:
        folds = {
            "nasolabial": 0.22 * smile + 0.15 * wrinkle,
            "forehead": 0.16 * lift * (0.3 + person.wrinkles),
            "crow": 0.16 * smile * (0.2 + person.wrinkles),
            "glabella": 0.40 * lower,
            "under_eye": 0.10 * smile,
        }
        names, maps = _shades()
        weights = np.array([folds.get(name, 0.0) for name in names], dtype=np.float32)
        sheet[:, _MARKED] *= np.float32(1.0) - _sum(weights, maps)
    _lips(sheet, person, shot, points)
    _eyes(sheet, person, shot, points)
    _brows(sheet, person, points)
    nostrils = _Patch(sheet, points[SPANS["nostril"]], around=6)
    holes = canvas.ellipses(nostrils.shape, points[SPANS["nostril"]] - nostrils.origin, (3.5, 1.6))
    canvas.lay(nostrils.part, canvas.blur(holes, 3, 0.8), np.array(person.skin) * 0.2, 0.8)
    return Sheet(skin=sheet, hair=resting.hair)


def _marks(sheet: Picture, person: Person) -> None:
    """Acne and spots: small discs at places that belong to the person."""
    skin = np.array(person.skin)
    kinds = (
        (person.acne, person.marks[:16], (0.95, 0.76, 0.74), 1.9),
        (person.spots, person.marks[16:], (0.76, 0.66, 0.58), 1.3),
    )
    for present, places, tint, radius in kinds:
        if present:
            mask = canvas.ellipses(_SHEET, to_texels(places), (radius, radius), value=200)
            canvas.lay(sheet, canvas.blur(mask, 3, 0.8), skin * tint, 0.9)


_SIDES: Final = ("left", "right")


def _eyes(sheet: Picture, person: Person, shot: Shot, points: Points) -> None:
    upper = [points[SPANS[f"lid_upper_{side}"]] for side in _SIDES]
    lower = [points[SPANS[f"lid_lower_{side}"]] for side in _SIDES]
    crease = [points[SPANS[f"crease_{side}"]] for side in _SIDES]
    pupils = np.concatenate([points[SPANS[f"pupil_{side}"]] for side in _SIDES])
    patch = _Patch(sheet, np.concatenate([*upper, *lower, *crease]), around=5)
    skin = np.array(person.skin)
    if person.make_up > 0.2:
        lids = patch.fill(*(np.concatenate([top, low[::-1]]) for top, low in zip(crease, upper, strict=True)))
        canvas.lay(patch.part, canvas.blur(lids, 5, 1.2), skin * (0.62, 0.5, 0.55), 0.8 * person.make_up)
    canvas.lay(patch.part, canvas.blur(patch.line(*crease, thick=1), 3, 0.8), skin * 0.55, 0.55)
    opening = float((lower[0] - upper[0])[:, 1].max())
    if opening > 1.2:
        balls = patch.fill(*(np.concatenate([top, low[::-1]]) for top, low in zip(upper, lower, strict=True)))
        rows = np.arange(patch.shape[0]) + (patch.origin[1] - float(upper[0][:, 1].min()))
        lit = np.clip(0.72 + 0.30 * rows / opening, 0.6, 1.0)[None, :, None]
        white = np.array([226.0, 218.0, 212.0])[:, None, None] * ((0.93 + 0.07 * shot.draws[3]) * lit)
        white = np.broadcast_to(white, (3, *patch.shape)).astype(np.float32)
        red, green, blue = person.iris
        circles = ((4.6, (red * 0.42, green * 0.42, blue * 0.42)), (3.9, person.iris), (1.9, (12.0, 10.0, 10.0)))
        canvas.lay(patch.part, balls, canvas.rings(white, pupils - patch.origin, circles))
        glints = patch.discs(pupils + np.array([1.6 if shot.light[0] > 0 else -1.6, -1.5]), 0.9)
        canvas.lay(patch.part, canvas.both(glints, balls), (250.0, 250.0, 250.0), 0.9)
        canvas.lay(patch.part, patch.line(*lower, thick=1), skin * (0.62, 0.48, 0.45), 0.5)
    thick = 2 if person.feminine > 0.5 or person.make_up > 0.3 else 1
    canvas.lay(patch.part, patch.line(*upper, thick=thick), np.array(person.brow) * 0.4 + 6, 0.82)


def _brows(sheet: Picture, person: Person, points: Points) -> None:
    upper = [points[SPANS[f"brow_upper_{side}"]] for side in _SIDES]
    lower = [points[SPANS[f"brow_lower_{side}"]] for side in _SIDES]
    patch = _Patch(sheet, np.concatenate([*upper, *lower]), around=4)
    outlines = [np.concatenate([top, low[::-1]]) for top, low in zip(upper, lower, strict=True)]
    grain = _grain()[(person.texture + 3) % 8][: patch.shape[0], : patch.shape[1]]
    hair = np.array(person.brow, np.float32)[:, None, None] * (np.float32(1.0) + np.float32(0.14) * grain)
    canvas.lay(patch.part, canvas.blur(patch.fill(*outlines), 3, 0.9), hair, 0.86)


def _lips(sheet: Picture, person: Person, shot: Shot, points: Points) -> None:
    top, bottom = points[SPANS["lip_top"]], points[SPANS["lip_bottom"]]
    inner_top, inner_bottom = points[SPANS["seam_top"]], points[SPANS["seam_bottom"]]
    patch = _Patch(sheet, np.concatenate([top, bottom]), around=5)
    lip = np.array(person.lip)
    whole = patch.fill(np.concatenate([top, bottom[::-1]]))
    canvas.lay(patch.part, canvas.blur(whole, 5, 0.5 if person.make_up > 0.3 else 1.0), lip * 0.94, 0.9)
    lower = canvas.blur(patch.fill(np.concatenate([inner_bottom, bottom[::-1]])), 3, 0.8)
    canvas.lay(patch.part, lower, lip * 1.08, 0.6)
    opening = float((inner_bottom - inner_top)[:, 1].max())
    if opening > 0.7:
        hole = patch.fill(np.concatenate([inner_top, inner_bottom[::-1]]))
        canvas.lay(patch.part, hole, (52.0, 20.0, 20.0), 0.97)
        if shot.features["teeth"] > 0.0:
            tooth = np.array([228.0, 222.0, 206.0]) * (0.9 + 0.1 * shot.draws[4]) * (0.94 - 0.14 * person.wrinkles)
            reach = np.minimum(inner_bottom[:, 1], inner_top[:, 1] + (5.2 if shot.features["gap"] > 0 else 6.0))
            edge = np.stack([inner_top[:, 0], reach], -1)
            row = canvas.both(patch.fill(np.concatenate([inner_top[1:-1], edge[1:-1][::-1]])), hole)
            canvas.lay(patch.part, canvas.blur(row, 3, 0.6), tooth, 0.95)
        if opening > 7.0:
            back = inner_bottom[3:-3] - (0.0, 0.36 * opening)
            tongue = canvas.both(patch.fill(np.concatenate([back, inner_bottom[3:-3][::-1]])), hole)
            canvas.lay(patch.part, canvas.blur(tongue, 5, 1.2), (150.0, 72.0, 70.0), 0.7)
    else:
        canvas.lay(patch.part, canvas.blur(patch.line(inner_top, thick=1), 3, 0.6), lip * 0.32)
    corners = canvas.blur(patch.discs(top[[0, -1]], 1.2), 5, 1.0)
    canvas.lay(patch.part, corners, np.array(person.skin) * 0.45, 0.7)
