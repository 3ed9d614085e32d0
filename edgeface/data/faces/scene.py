"""From drawn numbers to pixels: light, rasteriser, sensor; and the points that belong to them.

The rasteriser scatters a dense grid of the unrolled head over the picture, far side first so that nearer parts
overwrite, then moves each pixel's place on the sheet by the inverse Jacobian to the pixel's exact centre. Albedo and
light are read from the sheet at that place. No triangle is ever visited in Python.

Inside this package pixel centres lie at whole numbers; what leaves this module is continuous, with (0, 0) the outer
corner of the first pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces import canvas, head, paint
from edgeface.data.faces.backdrop import backdrop
from edgeface.data.faces.camera import Vertices, noise, place
from edgeface.data.faces.canvas import Mask, Picture
from edgeface.data.faces.draw import Person, Shot
from edgeface.data.faces.worn import glasses, occluder

_SQUARE = np.ones((3, 3), np.uint8)


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
    cover: Mask


def locate(person: Person, shot: Shot, *, px: int) -> tuple[NDArray[np.float32], bool]:
    """What `render_face` says of a face, without drawing it: its points, and whether one of the five is occluded."""
    points = place(person, shot, px)[3]
    thing = occluder(person, shot, points, px)
    return (points + 0.5).astype(np.float32), thing is not None and thing.hides(points)


def render_face(person: Person, shot: Shot, *, px: int) -> Rendered:
    """Renders one face into a picture of px by px pixels."""
    surface, camera, canonical, points = place(person, shot, px)
    grown = _with_hair(surface, person)
    turned = camera.turned(grown)
    flat = camera.flat(turned)
    light = _lit(shot, turned)
    sheet = paint.paint(person, shot, paint.to_texels(canonical))
    picture = backdrop(person, shot, camera, px)
    depth, cover = _raster(picture, person, shot, flat, light, sheet)
    if shot.glasses:
        glasses(picture, shot, camera, surface, depth)
    thing = occluder(person, shot, points, px)
    if thing is not None:
        if thing.shadow is not None:
            canvas.lay(picture, thing.shadow, (30.0, 18.0, 14.0), 0.6)
        canvas.lay(picture, thing.mask, thing.colour)
    return Rendered(
        image=_sensor(picture, shot),
        points=(points + 0.5).astype(np.float32),
        occluded=thing is not None and thing.hides(points),
        cover=cover,
    )


def _with_hair(surface: Vertices, person: Person) -> Vertices:
    """The head with the thickness of its hair; the features stay where they are."""
    if person.hair_volume == 0.0 or person.hair_length == 0.0:
        return surface
    return surface + _hair_shell(person)


@lru_cache(maxsize=4)
def _hair_shell(person: Person) -> Vertices:
    """How far hair lifts each vertex outwards."""
    import cv2

    edge = paint.hair_edge(person, head.ANGLE[:, 0]).astype(np.float32)
    thick = (edge[:, None] - head.CANON_Y[:1].astype(np.float32)) * np.float32(1 / 0.30)
    np.clip(thick, 0.0, 1.0, out=thick)
    # it rises inside the hair's edge, not on the skin beside it
    thick = canvas.blur(np.asarray(cv2.erode(thick, _SQUARE)), 5, 1.4)
    thick *= np.float32(person.hair_volume)
    return np.asarray(thick[..., None] * head.OUTWARD, dtype=np.float32)


def _slopes(grid: NDArray[np.float32]) -> tuple[Vertices, Vertices]:
    """Central differences per vertex along both axes of the sheet."""
    across = np.empty_like(grid)
    np.subtract(grid[2:], grid[:-2], out=across[1:-1])
    across[1:-1] *= np.float32(0.5)
    across[0], across[-1] = grid[1] - grid[0], grid[-1] - grid[-2]
    down = np.empty_like(grid)
    np.subtract(grid[:, 2:], grid[:, :-2], out=down[:, 1:-1])
    down[:, 1:-1] *= np.float32(0.5)
    down[:, 0], down[:, -1] = grid[:, 1] - grid[:, 0], grid[:, -1] - grid[:, -2]
    return across, down


@dataclass(frozen=True, kw_only=True)
class _Light:
    """Per vertex of the head: (ACROSS, DOWN, 3) diffuse light, highlight and depth; (ACROSS, DOWN) facing, > 0 seen."""

    shading: Vertices
    facing: NDArray[np.float32]


def _lit(shot: Shot, turned: Vertices) -> _Light:
    across, down = _slopes(turned)
    ax, ay, az = across[..., 0], across[..., 1], across[..., 2]
    dx, dy, dz = down[..., 0], down[..., 1], down[..., 2]
    normal = np.stack([ay * dz - az * dy, az * dx - ax * dz, ax * dy - ay * dx])
    normal /= np.sqrt(np.einsum("cij,cij->ij", normal, normal) + np.float32(1e-12))
    d = shot.draws
    strength = 0.30 + 0.50 * d[5]
    ambient = (1.0 - strength) * (0.90 + 0.25 * d[6])
    # rows: key light, cool fill from the other side, sky, the highlight's half vector
    bisector = shot.light + np.array([0.0, 0.0, 1.0])
    axes = np.stack(
        [shot.light, [-0.6 * shot.light[0], 0.0, 0.8], [0.0, -0.25, 0.0], bisector / np.linalg.norm(bisector)]
    )
    key, fill, sky, half = (axes.astype(np.float32) @ normal.reshape(3, -1)).reshape(4, *normal.shape[1:])
    wrap = 0.25
    total = np.float32(strength * 1.05 / (1 + wrap)) * np.maximum(key + np.float32(wrap), 0)
    total += np.float32(ambient) * (sky + np.float32(0.78))
    total += np.float32(0.28 * d[7]) * np.maximum(fill, 0)
    shading = np.empty((*total.shape, 3), np.float32)
    np.multiply(total, head.HOLLOW, out=shading[..., 0])
    half = np.maximum(half, 0)
    half *= half
    half *= half
    half *= half
    shading[..., 1] = half * half * np.float32(40.0 * (0.25 + d[8]) * strength)
    shading[..., 2] = turned[..., 2]
    return _Light(shading=shading, facing=normal[2])


@cache
def _grid(across: int, down: int) -> tuple[tuple[NDArray[np.float32], ...], NDArray[np.float32], NDArray[np.float32]]:
    """Grid numbers (from 1) in the four painting orders, and each dense row's and column's place on the coarse grid."""
    number = np.arange(1, across * down + 1, dtype=np.float32).reshape(across, down)
    orders = tuple(np.ascontiguousarray(number[::a, ::d]).reshape(-1) for a in (1, -1) for d in (1, -1))
    u = ((np.arange(across, dtype=np.float32) + 0.5) * (head.ACROSS / across) - 0.5).astype(np.float32)
    v = ((np.arange(down, dtype=np.float32) + 0.5) * (head.DOWN / down) - 0.5).astype(np.float32)
    return orders, u, v


def _raster(
    picture: Picture, person: Person, shot: Shot, flat: Vertices, light: _Light, sheet: paint.Sheet
) -> tuple[NDArray[np.float32], Mask]:
    """Lays the head over the picture; returns its depth (-9 where it is not) and the pixels that show it."""
    import cv2

    px = picture.shape[1]
    # below 1 px between neighbours where the head is nearest, so that holes are single pixels
    grown = shot.scale / 0.377
    across, down = math.ceil(1.32 * px * grown / 8) * 8, math.ceil(1.16 * px * grown / 8) * 8
    orders, place_u, place_v = _grid(across, down)
    dense = cv2.resize(flat, (down, across), interpolation=cv2.INTER_LINEAR)
    facing = cv2.resize(light.facing, (down, across), interpolation=cv2.INTER_LINEAR)
    # unsigned: a negative place is a very large one
    column = (dense[..., 0] + np.float32(0.5)).astype(np.int32)
    row = (dense[..., 1] + np.float32(0.5)).astype(np.int32)
    seen = (column.view(np.uint32) < px) & (row.view(np.uint32) < px) & (facing > 0)

    # nearer parts must come last: with the nose to the right the right side is far; looking up the chin's side is near
    flip_u, flip_v = shot.yaw > 0, shot.pitch < 0
    way = (slice(None, None, -1 if flip_u else 1), slice(None, None, -1 if flip_v else 1))
    kept = np.flatnonzero(seen[way])
    row *= np.int32(px)
    row += column
    target = np.take(row[way].reshape(-1), kept)
    first = np.zeros(px * px, np.float32)
    first[target] = np.take(orders[2 * flip_u + flip_v], kept)
    number = first.reshape(px, px)
    hit = (number > 0).astype(np.uint8) * np.uint8(255)
    cover: Mask = np.asarray(cv2.morphologyEx(hit, cv2.MORPH_CLOSE, _SQUARE), dtype=np.uint8)
    filled = np.maximum(number, (number == 0) * np.asarray(cv2.dilate(number, _SQUARE)))
    pixels = np.flatnonzero(cover)
    index = np.take(filled, pixels).astype(np.int64) - 1
    i = index // down
    j = index - i * down

    # np.take of one wide number is several times faster than indexing rows of two
    corners = dense.reshape(-1).view(np.complex64)
    at = np.take(corners, index)
    along_u = np.take(corners, index + down, mode="clip") - at
    along_v = np.take(corners, index + 1, mode="clip") - at
    xu, yu, xv, yv = along_u.real, along_u.imag, along_v.real, along_v.imag
    y = pixels // px
    dx = (pixels - y * px).astype(np.float32) - at.real
    dy = y.astype(np.float32) - at.imag
    det = xu * yv - yu * xv
    det[np.abs(det) < 1e-3] = np.inf  # edge-on: stay at the vertex
    # in steps of the dense grid, then of the coarse one
    u = np.take(place_u, i)
    u += np.clip((yv * dx - xv * dy) / det, -1.5, 1.5) * np.float32(head.ACROSS / across)
    v = np.take(place_v, j)
    v += np.clip((xu * dy - yu * dx) / det, -1.5, 1.5) * np.float32(head.DOWN / down)

    count = len(pixels)
    maps = np.zeros((2, -(-max(count, 1) // 64), 64), np.float32)  # cv2.remap refuses sides of 2**15 or more
    maps.reshape(2, -1)[:, :count] = u, v

    def read(source: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        values = cv2.remap(source, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.ascontiguousarray(values.reshape(-1, source.shape[-1])[:count].T, dtype=np.float32)

    diffuse, shine, near = read(light.shading, maps[1], maps[0])
    columns = maps[0] * np.float32(paint.COLUMNS / (head.ACROSS - 1)) - np.float32(0.5)
    rows = maps[1] * np.float32(paint.ROWS / (head.DOWN - 1)) - np.float32(0.5)
    colour = read(cv2.merge(list(sheet.skin)).astype(np.float32, copy=False), columns, rows)
    hair, strand = read(sheet.hair, columns, rows)
    covered = np.array(person.hair, np.float32)[:, None] * strand
    covered -= colour
    covered *= hair
    colour += covered
    warmth = np.float32(0.09 * (shot.draws[9] - 0.4))
    colour *= diffuse
    colour += shine
    colour[0] *= 1 + warmth
    colour[2] *= 1 - warmth
    alpha = np.take(canvas.blur(cover, 3, 0.7), pixels) * np.float32(1 / 255)
    planes = picture.reshape(3, -1)
    before = np.take(planes, pixels, axis=1)
    colour -= before
    colour *= alpha
    colour += before
    for plane, values in zip(planes, colour, strict=True):
        plane[pixels] = values
    depth = np.full(px * px, -9.0, np.float32)
    depth[pixels] = near
    return depth.reshape(px, px), cover


def _sensor(picture: Picture, shot: Shot) -> NDArray[np.uint8]:
    """Lens blur, low resolution, exposure, colour cast and noise."""
    import cv2

    d = shot.draws
    px = picture.shape[1]
    image: NDArray[np.float32] = np.asarray(cv2.merge(list(picture)), dtype=np.float32)
    if d[60] < 0.25:
        low = max(24, round(px * (0.35 + 0.4 * d[61])))
        small = cv2.resize(image, (low, low), interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(small, (px, px), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    else:
        image = canvas.blur(image, 0, (0.35 + 0.9 * d[61]) * px / 128)
    gain = 0.85 + 0.45 * d[62]
    contrast = 0.8 + 0.45 * d[63]
    cast = np.array([1 + 0.14 * (d[64] - 0.5), 1.0, 1 + 0.14 * (d[65] - 0.5)])
    mix = np.diag(cast)
    if d[66] < 0.08:
        mix = np.tile([0.299, 0.587, 0.114], (3, 1))
    # one pass: exposure, contrast around the middle, colour, and rounding to the nearest in the conversion below
    linear = np.concatenate([mix * gain * contrast, np.full((3, 1), 128 * (1 - contrast))], axis=1)
    toned = cv2.transform(image, linear.astype(np.float32))
    top, left = int(d[67] * (640 - px)), int(d[68] * (640 - px))
    grain = _grain_tiles()[top : top + px, left : left + px]
    strength = 1.0 + 7.0 * d[69] ** 2
    noisy = cv2.scaleAdd(grain, strength, toned)
    return np.asarray(cv2.convertScaleAbs(np.maximum(noisy, 0, out=noisy)), dtype=np.uint8)


@cache
def _grain_tiles() -> NDArray[np.float32]:
    return np.ascontiguousarray(noise().transpose(1, 2, 0))
