"""From drawn numbers to pixels: pose, rasteriser, light, hair, clothes, glasses, occluders, sensor; and the labels.

The rasteriser scatters a dense grid of the unrolled head over the picture, far side first so that nearer parts overwrite,
then moves each pixel's place on the sheet by the inverse Jacobian to the pixel's exact centre. Albedo and light are read
from the sheet at that place. No triangle is ever visited in Python.

Inside this module pixel centres lie at whole numbers; what leaves it is continuous, with (0, 0) the outer corner of the
first pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces import head, paint
from edgeface.data.faces.draw import Person, Shot
from edgeface.data.faces.template import ORDERS, SPANS, features, to_grid

FRAME: Final = 1.5  # side of the picture over the side of the nominal crop

Vertices = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One picture and what is exactly known of it.

    Attributes:
        image: (px, px, 3) uint8 RGB.
        points: (P, 2) float32 feature points in picture pixels, hidden ones included.
        occluded: True when a drawn occluder covers one of the five points.
        cover: (px, px) uint8, 255 where the head's sheet is seen, before glasses and occluders.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    occluded: bool
    cover: NDArray[np.uint8]


@cache
def _noise() -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.Philox(key=np.array([7, 3], dtype=np.uint64)))
    return generator.standard_normal((640, 640, 3), dtype=np.float32)


@cache
def _orders(across: int, down: int) -> tuple[tuple[NDArray[np.float32], ...], NDArray[np.float32], NDArray[np.float32]]:
    """Grid numbers (from 1) in the four painting orders, and each dense row's and column's place on the coarse grid."""
    number = np.arange(1, across * down + 1, dtype=np.float32).reshape(across, down)
    orders = tuple(np.ascontiguousarray(number[::a, ::d]).reshape(-1) for a in (1, -1) for d in (1, -1))
    u = ((np.arange(across, dtype=np.float32) + 0.5) * (head.ACROSS / across) - 0.5).astype(np.float32)
    v = ((np.arange(down, dtype=np.float32) + 0.5) * (head.DOWN / down) - 0.5).astype(np.float32)
    return orders, u, v


def rotation(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """(3, 3) from head to camera axes: yaw, then pitch, then roll in the picture."""
    cy, sy, cp, sp, cr, sr = (
        math.cos(yaw),
        math.sin(yaw),
        math.cos(pitch),
        math.sin(pitch),
        math.cos(roll),
        math.sin(roll),
    )
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return tilt @ nod @ turn


def sample(grid: Vertices, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear values of a coarse grid.

    Args:
        grid: (ACROSS, DOWN, C).
        places: (P, 2) fractions of the sheet, across and down.

    Returns:
        (P, C).
    """
    u = np.clip(places[:, 0] * (head.ACROSS - 1), 0, head.ACROSS - 1.001)
    v = np.clip(places[:, 1] * (head.DOWN - 1), 0, head.DOWN - 1.001)
    i, j = u.astype(np.int64), v.astype(np.int64)
    a, b = (u - i)[:, None], (v - j)[:, None]
    near = grid[i, j] * (1 - b) + grid[i, j + 1] * b
    far = grid[i + 1, j] * (1 - b) + grid[i + 1, j + 1] * b
    return np.asarray(near * (1 - a) + far * a)


def _slopes(grid: Vertices) -> tuple[Vertices, Vertices]:
    """Central differences per vertex along both axes of the sheet."""
    across = np.empty_like(grid)
    across[1:-1] = (grid[2:] - grid[:-2]) * np.float32(0.5)
    across[0], across[-1] = grid[1] - grid[0], grid[-1] - grid[-2]
    down = np.empty_like(grid)
    down[:, 1:-1] = (grid[:, 2:] - grid[:, :-2]) * np.float32(0.5)
    down[:, 0], down[:, -1] = grid[:, 1] - grid[:, 0], grid[:, -1] - grid[:, -2]
    return across, down


class _Camera:
    """Weak perspective from head coordinates to picture pixels, for one shot."""

    def __init__(self, shot: Shot, px: int) -> None:
        self.turn = rotation(shot.yaw, shot.pitch, shot.roll)
        self.scale = shot.scale * px / FRAME
        self.distance = shot.camera
        self.offset = np.zeros(2)
        self._turn32 = self.turn.T.astype(np.float32)

    def turned(self, vertices: NDArray[np.floating]) -> NDArray[np.floating]:
        shape = vertices.shape
        return (vertices.reshape(-1, 3) @ (self._turn32 if vertices.dtype == np.float32 else self.turn.T)).reshape(
            shape
        )

    def flat(self, turned: NDArray[np.floating]) -> NDArray[np.floating]:
        near = self.scale / (1.0 - turned[..., 2:] * (1.0 / self.distance))
        return turned[..., :2] * near + self.offset.astype(turned.dtype)

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.flat(self.turned(points)), dtype=np.float64)


def _place(person: Person, shot: Shot, px: int) -> tuple[Vertices, _Camera, NDArray[np.float64], NDArray[np.float64]]:
    """The deformed head, the camera that centres it, and the feature points: canonical and in the picture."""
    canonical = features(shot.features)
    places = to_grid(canonical)
    surface = head.surface(person.modes + shot.modes)
    camera = _Camera(shot, px)
    five = camera.project(sample(surface, places[ORDERS[5]]))
    centre = (five.min(0) + five.max(0)) / 2
    camera.offset = (px - 1) / 2 + np.array(shot.shift) * px / FRAME - centre
    return surface, camera, canonical, camera.project(sample(surface, places))


def locate(person: Person, shot: Shot, *, px: int) -> tuple[NDArray[np.float32], bool]:
    """What `render_face` would say of a face without drawing it: its points, and whether one of the five is occluded."""
    points = _place(person, shot, px)[3]
    occluder = _occluder(person, shot, points, px)
    return (points + 0.5).astype(np.float32), occluder is not None and _hides(occluder[0], points)


def render_face(person: Person, shot: Shot, *, px: int) -> Rendered:
    """Renders one face into a picture of px by px pixels."""
    surface, camera, canonical, points = _place(person, shot, px)
    if person.hair_volume > 0.0 and person.hair_length > 0.0:
        cover = paint.hair_cover(person, head.ANGLE[:, 0], head.CANON_Y[0], soft=0.22).T.astype(np.float32)
        surface = surface + (np.float32(person.hair_volume) * cover)[..., None] * head.OUTWARD
    turned = camera.turned(surface)
    flat = camera.flat(turned)
    light = _lit(person, shot, turned)
    sheet = paint.paint(person, shot, paint.to_texels(canonical))
    canvas = _behind(person, shot, camera, px)
    pixels, colour, alpha, depth, cover8 = _raster(shot, flat, light, sheet, px)
    where = canvas.reshape(-1, 3)
    where[pixels] += alpha[:, None] * (colour - where[pixels])
    if shot.glasses:
        _glasses(canvas, shot, camera, surface, depth)
    occluded = False
    occluder = _occluder(person, shot, points, px)
    if occluder is not None:
        mask, tint, shadow = occluder
        if shadow is not None:
            _over(canvas, shadow, (30.0, 18.0, 14.0), 0.6)
        _over(canvas, mask, tint)
        occluded = _hides(mask, points)
    image = _sensor(canvas, shot, px)
    return Rendered(image=image, points=(points + 0.5).astype(np.float32), occluded=occluded, cover=cover8)


def _lit(person: Person, shot: Shot, turned: Vertices) -> Vertices:
    """(ACROSS, DOWN, 4) diffuse light, highlight, facing (positive when seen) and depth of each vertex."""
    across, down = _slopes(turned)
    nx = across[..., 1] * down[..., 2] - across[..., 2] * down[..., 1]
    ny = across[..., 2] * down[..., 0] - across[..., 0] * down[..., 2]
    nz = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
    norm = np.float32(1.0) / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))
    nx, ny, nz = nx * norm, ny * norm, nz * norm
    d = shot.draws
    lx, ly, lz = (np.float32(value) for value in shot.light)
    key = nx * lx + ny * ly + nz * lz
    wrap = np.float32(0.25)
    diffuse = np.clip((key + wrap) / (1 + wrap), 0.0, None)
    fill = np.clip(-nx * lx * np.float32(0.6) + nz * np.float32(0.8), 0.0, None)
    strength = 0.35 + 0.55 * d[5]
    sky = np.float32(0.75) - np.float32(0.25) * ny
    ambient = (1.0 - strength) * (0.75 + 0.25 * d[6])
    total = np.float32(strength * 1.05) * diffuse + np.float32(ambient) * sky + np.float32(0.22 * d[7]) * fill
    total = total * head.HOLLOW
    hx, hy, hz = shot.light[0], shot.light[1], shot.light[2] + 1.0
    length = math.sqrt(hx * hx + hy * hy + hz * hz)
    half = np.clip((nx * np.float32(hx) + ny * np.float32(hy) + nz * np.float32(hz)) / np.float32(length), 0.0, 1.0)
    shine = half**14 * np.float32(40.0 * (0.25 + d[8]) * strength)
    return np.stack([total, shine, nz, turned[..., 2]], axis=-1).astype(np.float32)


def _raster(
    shot: Shot, flat: Vertices, light: Vertices, sheet: NDArray[np.float32], px: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Which pixels show the head, their colours, coverage and depth."""
    import cv2

    # about 0.6 px between neighbours where the head is nearest, so that holes are rare
    grown = shot.scale / 0.377
    across, down = math.ceil(1.85 * px * grown / 8) * 8, math.ceil(1.5 * px * grown / 8) * 8
    orders, place_u, place_v = _orders(across, down)
    stack = np.concatenate([flat, light[..., 2:3]], axis=-1)
    dense = cv2.resize(stack, (down, across), interpolation=cv2.INTER_LINEAR)
    x, y = dense[..., 0], dense[..., 1]
    column, row = np.rint(x), np.rint(y)
    seen = (dense[..., 2] > 0) & (column >= 0) & (column < px) & (row >= 0) & (row < px)
    target = np.where(seen, row * px + column, np.float32(px * px)).astype(np.int32)

    # nearer parts must come last: with the nose to the right, the right side is far; looking up, the chin's side is near
    flip_u, flip_v = shot.yaw > 0, shot.pitch < 0
    target = target[:: -1 if flip_u else 1, :: -1 if flip_v else 1].reshape(-1)
    first = np.zeros(px * px + 1, np.float32)
    first[target] = orders[2 * flip_u + flip_v]
    number = first[: px * px].reshape(px, px)
    hit = (number > 0).astype(np.uint8) * np.uint8(255)
    whole = cv2.morphologyEx(hit, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    number = np.where(hit > 0, number, cv2.dilate(number, np.ones((3, 3), np.uint8)))
    pixels = np.flatnonzero(whole)
    index = number.reshape(-1)[pixels].astype(np.int64) - 1
    i, j = index // down, index % down

    dx = (pixels % px).astype(np.float32) - x.reshape(-1)[index]
    dy = (pixels // px).astype(np.float32) - y.reshape(-1)[index]
    slope_u, slope_v = _slopes(flat)
    u, v = place_u[i], place_v[j]
    vertex = np.clip(np.rint(u), 0, head.ACROSS - 1).astype(np.int64) * head.DOWN + np.clip(
        np.rint(v), 0, head.DOWN - 1
    ).astype(np.int64)
    su, sv = slope_u.reshape(-1, 2)[vertex], slope_v.reshape(-1, 2)[vertex]
    det = su[:, 0] * sv[:, 1] - su[:, 1] * sv[:, 0]
    det = np.where(np.abs(det) < 1e-3, np.float32(np.inf), det)
    limit = np.float32(0.9)
    u = u + np.clip((sv[:, 1] * dx - sv[:, 0] * dy) / det, -limit, limit)
    v = v + np.clip((su[:, 0] * dy - su[:, 1] * dx) / det, -limit, limit)

    count = len(pixels)
    padded = -(-max(count, 1) // 64) * 64
    maps = np.zeros((2, padded), np.float32)
    maps[0, :count], maps[1, :count] = u, v
    maps = maps.reshape(2, -1, 64)  # cv2.remap refuses sides of 2**15 or more
    shaded = cv2.remap(light, maps[1], maps[0], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, 4)[
        :count
    ]
    column_map = maps[0] * np.float32(paint.COLUMNS / (head.ACROSS - 1)) - np.float32(0.5)
    row_map = maps[1] * np.float32(paint.ROWS / (head.DOWN - 1)) - np.float32(0.5)
    albedo = cv2.remap(sheet, column_map, row_map, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, 3)[
        :count
    ]
    d = shot.draws
    warm = np.array([1.0 + 0.08 * (d[9] - 0.4), 1.0, 1.0 - 0.10 * (d[9] - 0.4)], np.float32)
    colour = albedo * (shaded[:, :1] * warm) + shaded[:, 1:2] * warm
    alpha = cv2.GaussianBlur(whole, (3, 3), 0.7).reshape(-1)[pixels] * np.float32(1 / 255)
    depth = np.full(px * px, -9.0, np.float32)
    depth[pixels] = shaded[:, 3]
    return pixels, colour, alpha, depth.reshape(px, px), whole


def _polygon(px: int, points: NDArray[np.float64]) -> NDArray[np.uint8]:
    import cv2

    mask = np.zeros((px, px), np.uint8)
    cv2.fillPoly(
        mask, [np.round(np.clip(points, -4 * px, 5 * px) * 16).astype(np.int32).reshape(-1, 1, 2)], 255, cv2.LINE_AA, 4
    )
    return mask


def _over(
    canvas: NDArray[np.float32],
    mask: NDArray[np.uint8],
    colour: NDArray[np.float32] | tuple[float, ...],
    strength: float = 1.0,
) -> None:
    """Lays a colour, or a picture, over the canvas through a uint8 mask; only the mask's rows are touched."""
    import cv2

    left, top, wide, tall = cv2.boundingRect(mask)
    if wide == 0:
        return
    window = np.s_[top : top + tall, left : left + wide]
    part = canvas[window]
    paint_colour = np.asarray(colour, dtype=np.float32)
    if paint_colour.ndim == 3:
        paint_colour = paint_colour[window]
    part += (mask[window] * np.float32(strength / 255.0))[..., None] * (paint_colour - part)


def _behind(person: Person, shot: Shot, camera: _Camera, px: int) -> NDArray[np.float32]:
    """Background, hair behind the head, neck, clothes: everything farther than the face."""
    import cv2

    d = shot.draws
    cells = 3 + int(d[10] * 6)
    start = int(d[11] * 500)
    coarse = _noise()[start : start + cells, start : start + cells]
    contrast = 12 + 60 * d[12] * d[12]
    base = np.array([d[13], 0.6 * d[13] + 0.4 * d[14], 0.6 * d[13] + 0.4 * d[15]], np.float32) * 215 + 20
    soft = cv2.INTER_CUBIC if d[16] < 0.75 else cv2.INTER_NEAREST
    canvas = cv2.resize(
        base + np.float32(contrast) * (coarse * 0.35 + 0.9 * coarse[..., :1]), (px, px), interpolation=soft
    )
    if d[17] < 0.4:  # a frame, a door, a shelf
        x0, wide = (d[18] * 1.2 - 0.3) * px, (0.08 + 0.35 * d[19]) * px
        slant = (d[20] - 0.5) * 0.3 * px
        box = np.array([[x0, -5], [x0 + wide, -5], [x0 + wide + slant, px + 5], [x0 + slant, px + 5]])
        _over(canvas, _polygon(px, box), tuple(40 + 180 * d[21 + k] for k in range(3)), 0.8)

    unit = camera.scale
    tilt = math.sin(shot.roll)
    middle = camera.project(np.array([[0.0, 0.9, 0.1], [0.0, -0.45, -0.15]]))
    neck, skull = middle[0], middle[1]
    strand = paint.strands()[(person.texture + 1) % 8]
    streak = cv2.resize(strand, (px, px), interpolation=cv2.INTER_LINEAR)
    dim = 0.55 + 0.35 * d[24]
    hair = np.array(person.hair, np.float32) * dim * (1.0 + 0.14 * streak)[..., None]
    full = person.hair_volume
    if person.hair_length > 0.42:
        wide = (1.18 + 1.2 * full) * unit
        drop = (0.9 + 1.7 * person.hair_length) * unit
        spread = 0.75 + 0.5 * d[25]
        lean = -tilt * 0.5 * unit
        outline = np.array(
            [
                [-1.0, -0.3],
                [-1.04, 0.3],
                [-spread - 0.1, 0.8],
                [-spread * 0.95, 1.0],
                [spread * 0.95, 1.0],
                [spread + 0.1, 0.8],
                [1.04, 0.3],
                [1.0, -0.3],
            ]
        )
        mass = outline * (wide, drop) + skull + np.array([[lean * max(p, 0.0), 0.0] for p in outline[:, 1]])
        _over(canvas, cv2.GaussianBlur(_polygon(px, mass), (5, 5), 1.0), hair)

    # shoulders and neck follow the head's place but not its turn
    wear = np.array([d[26], 0.5 * d[26] + 0.5 * d[27], 0.5 * d[26] + 0.5 * d[28]], np.float32) * 210 + 18
    fat = 1.0 + 0.08 * float(person.modes[head.MODE_INDEX["width"]]) - 0.14 * (person.feminine - 0.5)
    down = neck + np.array([-tilt * 0.6 * unit, 1.45 * unit])
    reach = (2.5 + 0.5 * d[29]) * unit * fat
    slope = (0.5 + 0.35 * d[30]) * unit
    shoulders = (
        np.array(
            [
                [-reach, slope + 0.25 * unit],
                [-0.78 * unit * fat, -0.12 * unit],
                [0.78 * unit * fat, -0.12 * unit],
                [reach, slope + 0.25 * unit],
                [reach * 1.1, 3 * px],
                [-reach * 1.1, 3 * px],
            ]
        )
        + down
    )
    shade = 0.45 + 0.3 * d[24]
    skin = np.array(person.skin, np.float32)
    _over(canvas, _polygon(px, shoulders), wear * (0.6 + 0.4 * d[31]))
    throat = np.array([neck + (-0.80 * unit * fat, 0.1 * unit), neck + (0.80 * unit * fat, 0.1 * unit), down + (0.82 * unit * fat, 0.05 * unit),
                       down + (0.34 * unit, (0.25 + 0.5 * d[32]) * unit), down + (-0.34 * unit, (0.25 + 0.5 * d[32]) * unit), down + (-0.82 * unit * fat, 0.05 * unit)])  # fmt: skip
    across = (np.arange(px, dtype=np.float32) - np.float32(neck[0])) / np.float32(unit)
    round_light = np.clip(1.0 - 0.35 * across**2 + 0.35 * across * np.float32(shot.light[0]), 0.35, 1.15)
    _over(
        canvas,
        cv2.GaussianBlur(_polygon(px, throat), (3, 3), 0.7),
        np.broadcast_to((shade * skin) * round_light[None, :, None], (px, px, 3)),
    )
    if d[33] < 0.35:  # a collar
        fold = np.array([down + (-0.85 * unit * fat, -0.1 * unit), down + (-0.9 * unit, 0.35 * unit), down + (0.0, 0.75 * unit), down + (0.9 * unit, 0.35 * unit),
                         down + (0.85 * unit * fat, -0.1 * unit), down + (0.0, 0.5 * unit)])  # fmt: skip
        _over(canvas, _polygon(px, fold), wear * 0.5 + 110 * d[34])

    # the back of the skull: an ellipsoid seen at the head's turn
    radii = (
        np.array([1.16 + full, 1.36 + full, 1.46 + full]) if person.hair_length > 0 else np.array([1.13, 1.32, 1.42])
    )
    across_two = (camera.turn * radii**2) @ camera.turn.T
    values, vectors = np.linalg.eigh(across_two[:2, :2])
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    mask = np.zeros((px, px), np.uint8)
    at = np.round(skull * 16).astype(int)
    axes = (round(math.sqrt(values[1]) * unit * 16), round(math.sqrt(values[0]) * unit * 16))
    cv2.ellipse(mask, (int(at[0]), int(at[1])), axes, angle, 0, 360, 255, -1, cv2.LINE_AA, 4)
    colour = hair * 1.1 if person.hair_length > 0 else np.broadcast_to(skin * 0.7, (px, px, 3))
    _over(canvas, cv2.GaussianBlur(mask, (3, 3), 0.8), colour)
    return canvas


def _glasses(
    canvas: NDArray[np.float32], shot: Shot, camera: _Camera, surface: Vertices, depth: NDArray[np.float32]
) -> None:
    import cv2

    px = len(canvas)
    d = shot.draws
    dark = shot.glasses == 2
    eyes = sample(surface, to_grid(np.array([[-0.505, 0.0], [0.505, 0.0], [0.0, 0.1]])))
    bridge = float(eyes[2, 2])
    frame = np.array(
        [[20, 18, 18], [60, 36, 24], [130, 130, 134], [168, 130, 70], [90, 20, 24]][int(d[35] * 5)], np.float32
    )
    thick = max(1, round(px / 128 * (1.0 + 2.2 * d[36] * (1.0 if d[37] < 0.7 else 0.0))))
    half_wide, half_tall = 0.36 + 0.07 * d[38] + 0.04 * dark, 0.24 + 0.10 * d[39] + 0.05 * dark
    power = 2.0 + 2.5 * d[40]
    t = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    ring_x = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** (2 / power) * half_wide
    ring_y = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** (2 / power) * half_tall + 0.05
    tint = np.array([[14, 14, 16], [44, 28, 18], [20, 30, 36]][int(d[41] * 3)], np.float32)
    ends = []
    for sign, eye in ((-1.0, eyes[0]), (1.0, eyes[1])):
        x = eye[0] + sign * 0.03 + ring_x
        z = bridge + 0.16 - 0.28 * np.abs(x) ** 1.6
        rim3 = np.stack([x, eye[1] + ring_y, z], -1)
        rim = camera.project(rim3)
        far = camera.turned(rim3)[:, 2].mean()
        lens = _polygon(px, rim)
        free = (depth < np.float32(far + 0.12)).astype(np.uint8)
        _over(canvas, lens * free, tint if dark else (205.0, 215.0, 225.0), 0.93 if dark else 0.05 + 0.08 * d[42])
        if d[43] < 0.35:  # a reflection
            glare = rim.mean(0) + (rim - rim.mean(0)) * 0.6
            _over(
                canvas,
                cv2.GaussianBlur(_polygon(px, glare[[16, 19, 22, 25]]) & lens, (3, 3), 0.8) * free,
                (255.0, 255.0, 255.0),
                0.15 + 0.4 * d[44],
            )
        line = np.zeros((px, px), np.uint8)
        cv2.polylines(
            line,
            [np.round(np.clip(rim, -px, 2 * px) * 16).astype(np.int32).reshape(-1, 1, 2)],
            True,
            255,
            thick,
            cv2.LINE_AA,
            4,
        )
        near = math.sin(shot.yaw) * sign < 0.12
        if near:
            hinge = np.array(
                [
                    eye[0] + sign * (0.03 + half_wide),
                    eye[1] - 0.06,
                    bridge + 0.16 - 0.28 * abs(eye[0] + sign * half_wide) ** 1.6,
                ]
            )
            ear = np.array([sign * 1.24, eye[1] - 0.04, 0.05])
            temple = camera.project(np.stack([hinge, ear]))
            cv2.polylines(
                line,
                [np.round(np.clip(temple, -px, 2 * px) * 16).astype(np.int32).reshape(-1, 1, 2)],
                False,
                255,
                thick,
                cv2.LINE_AA,
                4,
            )
        _over(canvas, line * (depth < np.float32(far + 0.25)).astype(np.uint8) if not near else line, frame, 0.92)
        ends.append(np.array([eye[0] - sign * (half_wide - 0.03), eye[1] - 0.04, bridge + 0.14]))
    line = np.zeros((px, px), np.uint8)
    over = camera.project(np.stack([ends[0], (ends[0] + ends[1]) / 2 + (0, -0.03, 0.04), ends[1]]))
    cv2.polylines(
        line,
        [np.round(np.clip(over, -px, 2 * px) * 16).astype(np.int32).reshape(-1, 1, 2)],
        False,
        255,
        thick,
        cv2.LINE_AA,
        4,
    )
    _over(canvas, line, frame, 0.92)


def _hides(mask: NDArray[np.uint8], points: NDArray[np.float64]) -> bool:
    inside = np.rint(points[ORDERS[5]]).astype(int)
    px = len(mask)
    return any(0 <= x < px and 0 <= y < px and mask[y, x] > 127 for x, y in inside)


def _occluder(
    person: Person, shot: Shot, points: NDArray[np.float64], px: int
) -> tuple[NDArray[np.uint8], tuple[float, ...], NDArray[np.uint8] | None] | None:
    """Coverage and colour of the drawn occluder and the coverage of its shadow; None without one."""
    import cv2

    if shot.occluder == 0:
        return None
    shadow: NDArray[np.uint8] | None = None
    d = shot.draws
    five = points[ORDERS[5]]
    unit = shot.scale * px / FRAME
    mask = np.zeros((px, px), np.uint8)
    tint = tuple(30 + 200 * d[45 + k] for k in range(3))
    if shot.occluder == 1:  # a cloth mask from the nose's bridge to under the chin
        jaw = points[SPANS["jaw"]]
        bridge = points[SPANS["bridge"]][2]
        outline = np.concatenate(
            [
                jaw[4:29] + (0.0, 0.02 * unit),
                (jaw[28] * 0.45 + bridge * 0.55)[None],
                bridge[None],
                (jaw[4] * 0.45 + bridge * 0.55)[None],
            ]
        )
        mask = _polygon(px, cv2.convexHull(outline.astype(np.float32)).reshape(-1, 2).astype(np.float64))
        tint = tuple(0.35 * value + 140 for value in tint)
    elif shot.occluder == 2:  # fingers of a hand before the mouth or a cheek
        tip = five[int(d[48] * 5)] + (np.array([d[49], d[50]]) - 0.5) * 0.4 * unit
        way = math.radians(60 + 60 * d[51])
        along = np.array([math.cos(way), math.sin(way)]) * 2.6 * unit
        beside = np.array([-math.sin(way), math.cos(way)]) * 0.30 * unit
        for finger in (-1.5, -0.5, 0.5, 1.5):
            start = tip + beside * finger + along * 0.04 * abs(finger) ** 1.5
            ends = np.round(np.stack([start, start + along]) * 16).astype(int)
            cv2.line(
                mask,
                tuple(map(int, ends[0])),
                tuple(map(int, ends[1])),
                255,
                max(2, round(0.27 * unit)),
                cv2.LINE_AA,
                4,
            )
        shadow = cv2.GaussianBlur(mask, (5, 5), 1.2)
        mask = cv2.erode(mask, np.ones((2, 2), np.uint8))
        tint = tuple(value * (0.75 + 0.25 * d[52]) for value in person.skin)
    elif shot.occluder == 3:  # a strand of hair over one eye
        side = -1.0 if d[53] < 0.5 else 1.0
        eye = five[0] if side < 0 else five[1]
        drop = (
            np.array([[-0.1, -1.2], [0.45, -1.2], [0.35, 0.2], [0.30, 1.1], [0.1, 1.3], [-0.2, 0.1]])
            * (side, 1.0)
            * unit
        )
        mask = cv2.GaussianBlur(_polygon(px, eye + drop), (5, 5), 1.2)
        tint = tuple(value * 0.85 for value in person.hair)
    elif shot.occluder == 4:  # a thing held before the face
        middle = five[int(d[48] * 5)] + (np.array([d[49], d[50]]) - 0.5) * 0.5 * unit
        size = (0.25 + 0.35 * d[51]) * unit
        cv2.ellipse(
            mask,
            tuple(map(int, np.round(middle * 16))),
            (round(size * 16), round(size * (0.5 + d[52]) * 16)),
            180 * d[53],
            0,
            360,
            255,
            -1,
            cv2.LINE_AA,
            4,
        )
    else:  # something at the picture's edge, a shoulder or a microphone
        corner = five[3 if d[53] < 0.5 else 4] + np.array([0.0, 0.25 * unit * (d[49] - 0.4)])
        way = -1.0 if d[53] < 0.5 else 1.0
        mask = _polygon(
            px,
            np.array(
                [
                    corner + (-0.35 * way * unit, -0.05 * unit),
                    corner + (1.6 * way * unit, -0.5 * unit),
                    corner + (2.5 * way * unit, 3 * unit),
                    corner + (-0.2 * way * unit, 2.5 * unit),
                ]
            ),
        )
    return mask, tint, shadow


def _sensor(canvas: NDArray[np.float32], shot: Shot, px: int) -> NDArray[np.uint8]:
    """Lens blur, low resolution, exposure, colour cast and noise."""
    import cv2

    d = shot.draws
    if d[60] < 0.25:
        low = max(24, round(px * (0.35 + 0.4 * d[61])))
        canvas = cv2.resize(
            cv2.resize(canvas, (low, low), interpolation=cv2.INTER_AREA), (px, px), interpolation=cv2.INTER_LINEAR
        )
    else:
        canvas = cv2.GaussianBlur(canvas, (0, 0), (0.35 + 0.9 * d[61]) * px / 128, borderType=cv2.BORDER_REPLICATE)
    gain = 0.75 + 0.55 * d[62]
    contrast = 0.8 + 0.45 * d[63]
    cast = np.array([1 + 0.14 * (d[64] - 0.5), 1.0, 1 + 0.14 * (d[65] - 0.5)], np.float32)
    if d[66] < 0.08:
        canvas = np.repeat((canvas @ np.array([0.299, 0.587, 0.114], np.float32))[..., None], 3, axis=2)
        cast = np.ones(3, np.float32)
    start, stop = int(d[67] * (640 - px)), int(d[68] * (640 - px))
    grain = _noise()[start : start + px, stop : stop + px]
    strength = np.float32(1.0 + 7.0 * d[69] ** 2)
    mixed = canvas * (np.float32(gain * contrast) * cast) + np.float32(128 * (1 - contrast)) + strength * grain
    return np.asarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
