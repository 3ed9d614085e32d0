"""Everything farther than the face: background, hair behind the head, skull, neck, clothes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces import canvas, head
from edgeface.data.faces.camera import Camera, noise
from edgeface.data.faces.canvas import Picture
from edgeface.data.faces.draw import Person, Shot
from edgeface.data.faces.paint import strands


def backdrop(person: Person, shot: Shot, camera: Camera, px: int) -> Picture:
    """Draws a new picture for the face to be laid over."""
    d = shot.draws
    shape = (px, px)
    picture = _wall(d, px)
    unit = camera.scale
    tilt = math.sin(shot.roll)
    neck, skull = camera.project(np.array([[0.0, 0.9, 0.1], [0.0, -0.45, -0.15]]))
    strand = strands(px, px)[(person.texture + 1) % 8]
    dim = 0.60 + 0.35 * d[24]
    hair = (np.array(person.hair, np.float32) * np.float32(dim))[:, None, None] * strand
    full = person.hair_volume

    if person.hair_length > 0.42:
        spread = 0.75 + 0.5 * d[25]
        half = np.array([[1.0, -0.3], [1.04, 0.3], [spread + 0.1, 0.8], [spread * 0.95, 1.0]])
        outline = np.concatenate([half * (-1, 1), half[::-1]])
        mass = outline * ((1.18 + 1.2 * full) * unit, (0.9 + 1.7 * person.hair_length) * unit) + skull
        mass[:, 0] -= tilt * 0.5 * unit * np.maximum(outline[:, 1], 0.0)
        canvas.lay(picture, canvas.blur(canvas.polygon(shape, mass), 5, 1.0), hair)

    # shoulders and neck follow the head's place but not its turn
    build = 1.0 + 0.08 * float(person.modes[head.MODE_INDEX["width"]]) - 0.14 * (person.feminine - 0.5)
    grey = d[26]
    wear = np.array([grey, 0.6 * grey + 0.4 * d[27], 0.6 * grey + 0.4 * d[28]]) * 210 + 18
    down = neck + np.array([-tilt * 0.6 * unit, 1.45 * unit])
    throat_half = 0.80 * build
    reach, slope = (2.5 + 0.5 * d[29]) * build, 0.75 + 0.35 * d[30]
    right = np.array(
        [[0.78 * build, -0.12], [0.55 * (reach + 0.78 * build), 0.35 * slope], [reach, slope], [reach * 1.1, 9.0]]
    )
    shoulders = np.concatenate([(right * (-1, 1))[::-1], right]) * unit + down
    canvas.lay(picture, canvas.polygon(shape, shoulders), wear * (0.6 + 0.4 * d[31]))
    opening = 0.25 + 0.5 * d[32]
    low = np.array([[throat_half, 0.05], [0.34, opening], [-0.34, opening], [-throat_half, 0.05]]) * unit + down
    high = np.array([[-throat_half, 0.1], [throat_half, 0.1]]) * unit + neck
    across = (np.arange(px) - neck[0]) / unit
    shade = (0.48 + 0.3 * d[24]) * np.clip(1.0 - 0.35 * across**2 + 0.35 * across * shot.light[0], 0.35, 1.15)
    skin = np.array(person.skin)[:, None, None] * shade
    throat = canvas.blur(canvas.polygon(shape, np.concatenate([high, low])), 3, 0.7)
    canvas.lay(picture, throat, np.broadcast_to(skin, (3, px, px)))
    if d[33] < 0.35:  # a collar
        wing = np.array([[0.85 * build, -0.1], [0.9, 0.35], [0.0, 0.75]])
        collar = np.concatenate([wing * (-1, 1), wing[-2::-1], [[0.0, 0.5]]]) * unit + down
        canvas.lay(picture, canvas.polygon(shape, collar), wear * 0.5 + 110 * d[34])

    # the back of the skull: an ellipsoid seen at the head's turn
    hairy = person.hair_length > 0
    radii = np.array([1.16, 1.36, 1.46]) + full if hairy else np.array([1.13, 1.32, 1.42])
    spread_two = ((camera.turn * radii**2) @ camera.turn.T)[:2, :2]
    (xx, xy), (_, yy) = spread_two.tolist()
    mean, spread = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)  # its principal axes
    axes = (math.sqrt(mean + spread) * unit, math.sqrt(mean - spread) * unit)
    degrees = math.degrees(0.5 * math.atan2(2 * xy, xx - yy))
    mask = canvas.blur(canvas.ellipses(shape, skull[None], axes, degrees=degrees), 3, 0.8)
    canvas.lay(picture, mask, hair if hairy else np.array(person.skin) * 0.7)
    return picture


def _wall(d: list[float], px: int) -> Picture:
    import cv2

    cells = 3 + int(d[10] * 6)
    start = int(d[11] * 500)
    coarse = noise()[:, start : start + cells, start : start + cells]
    contrast = np.float32(12 + 60 * d[12] * d[12])
    base = np.array([d[13], 0.75 * d[13] + 0.25 * d[14], 0.75 * d[13] + 0.25 * d[15]], np.float32) * 215 + 20
    cells_rgb: NDArray[Any] = base[:, None, None] + contrast * (
        np.float32(0.35) * coarse + np.float32(0.9) * coarse[:1]
    )
    kind = cv2.INTER_CUBIC if d[16] < 0.75 else cv2.INTER_NEAREST
    picture = np.empty((3, px, px), np.float32)
    for plane, small in zip(picture, cells_rgb, strict=True):
        cv2.resize(small, (px, px), dst=plane, interpolation=kind)
    if d[17] < 0.4:  # a frame, a door, a shelf
        left, wide = (d[18] * 1.2 - 0.3) * px, (0.08 + 0.35 * d[19]) * px
        slant = (d[20] - 0.5) * 0.3 * px
        box = np.array([[left, -5], [left + wide, -5], [left + wide + slant, px + 5], [left + slant, px + 5]])
        grey = 40 + 180 * d[21]
        canvas.lay(
            picture, canvas.polygon((px, px), box), (grey, grey + 50 * (d[22] - 0.5), grey + 50 * (d[23] - 0.5)), 0.8
        )
    return picture
