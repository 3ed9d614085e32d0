"""Things before the face: eyeglasses, and occluders such as hands and masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces import canvas
from edgeface.data.faces.camera import Camera, Vertices, sample
from edgeface.data.faces.canvas import Mask, Picture, Points
from edgeface.data.faces.draw import RGB, Person, Shot
from edgeface.data.faces.template import ORDERS, SPANS, to_grid

_FRAMES = ((20, 18, 18), (60, 36, 24), (130, 130, 134), (168, 130, 70), (90, 20, 24))
_TINTS = ((14, 14, 16), (44, 28, 18), (20, 30, 36))


def glasses(picture: Picture, shot: Shot, camera: Camera, surface: Vertices, depth: NDArray[np.float32]) -> None:
    """Draws the shot's glasses over a picture.

    Args:
        depth: (H, W) of the head, in eye distances towards the viewer; lower than any lens where there is no head.
    """
    px = len(depth)
    shape = (px, px)
    d = shot.draws
    dark = shot.glasses == 2
    eyes = sample(surface, to_grid(np.array([[-0.505, 0.0], [0.505, 0.0], [0.0, 0.1]])))
    front = float(eyes[2, 2]) + 0.16
    frame = _FRAMES[int(d[35] * len(_FRAMES))]
    thick = max(1, round(px / 128 * (1.0 + 2.2 * d[36] * (d[37] < 0.7))))
    wide, tall = 0.36 + 0.07 * d[38] + 0.04 * dark, 0.24 + 0.10 * d[39] + 0.05 * dark
    power = 2 / (2.0 + 2.5 * d[40])
    turn = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    ring_x = np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power * wide
    ring_y = np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power * tall + 0.05
    bridge = []
    for sign, eye in ((-1.0, eyes[0]), (1.0, eyes[1])):
        x = eye[0] + sign * 0.03 + ring_x
        solid = np.stack([x, eye[1] + ring_y, front - 0.28 * np.abs(x) ** 1.6], -1)
        rim = camera.project(solid)
        far = np.float32(camera.turned(solid)[:, 2].mean())
        lens = canvas.polygon(shape, rim)
        lens *= depth < far + np.float32(0.12)  # a lens behind the nose does not show
        if dark:
            canvas.lay(picture, lens, _TINTS[int(d[41] * len(_TINTS))], 0.93)
        else:
            canvas.lay(picture, lens, (205.0, 215.0, 225.0), 0.05 + 0.08 * d[42])
        if d[43] < 0.35:  # a reflection
            glare = rim.mean(0) + (rim[[16, 19, 22, 25]] - rim.mean(0)) * 0.6
            spot = canvas.both(canvas.blur(canvas.polygon(shape, glare), 3, 0.8), lens)
            canvas.lay(picture, spot, (255.0, 255.0, 255.0), 0.15 + 0.4 * d[44])
        line = canvas.stroke(shape, [rim], thick=thick, closed=True)
        if math.sin(shot.yaw) * sign < 0.12:  # the temple on the near side
            end = eye[0] + sign * (0.03 + wide)
            hinge = [end, eye[1] - 0.06, front - 0.28 * abs(end) ** 1.6]
            temple = camera.project(np.array([hinge, [sign * 1.24, eye[1] - 0.04, 0.05]]))
            line = np.maximum(line, canvas.stroke(shape, [temple], thick=thick))
        else:
            line *= depth < far + np.float32(0.25)
        canvas.lay(picture, line, frame, 0.92)
        bridge.append([eye[0] - sign * (wide - 0.03), eye[1] - 0.04, front - 0.02])
    middle = [(bridge[0][0] + bridge[1][0]) / 2, bridge[0][1] - 0.03, front + 0.02]
    over = camera.project(np.array([bridge[0], middle, bridge[1]]))
    canvas.lay(picture, canvas.stroke(shape, [over], thick=thick), frame, 0.92)


@dataclass(frozen=True, kw_only=True)
class Occluder:
    """A thing before the face: its coverage, its colour, and the shadow it throws."""

    mask: Mask
    colour: RGB
    shadow: Mask | None = None

    def hides(self, points: Points) -> bool:
        """True when one of the five points lies under it; `points` are all feature points in pixels."""
        px = len(self.mask)
        five = np.rint(points[ORDERS[5]]).astype(int).tolist()
        return any(0 <= x < px and 0 <= y < px and self.mask[y, x] > 127 for x, y in five)


def occluder(person: Person, shot: Shot, points: Points, px: int) -> Occluder | None:
    """The shot's occluder, placed by the feature points; None for a clear face."""
    import cv2

    d = shot.draws
    five = points[ORDERS[5]]
    unit = float(np.linalg.norm(points[SPANS["jaw"]][0] - points[SPANS["jaw"]][16])) / 2.1  # about an eye distance
    shape = (px, px)
    grey = 40 + 180 * d[45]
    colour: RGB = (grey, grey + 70 * (d[46] - 0.5), grey + 70 * (d[47] - 0.5))
    aim = five[int(d[48] * 5)] + (np.array([d[49], d[50]]) - 0.5) * 0.45 * unit
    side = -1.0 if d[53] < 0.5 else 1.0
    if shot.occluder == 0:
        return None
    if shot.occluder == 1:  # a cloth mask from the nose's bridge to under the chin
        jaw, bridge = points[SPANS["jaw"]], points[SPANS["bridge"]][2]
        top = np.stack([jaw[28] * 0.45 + bridge * 0.55, bridge, jaw[4] * 0.45 + bridge * 0.55])
        hull = cv2.convexHull(np.concatenate([jaw[4:29], top]).astype(np.float32))
        cloth = (0.35 * colour[0] + 140, 0.35 * colour[1] + 140, 0.35 * colour[2] + 140)
        return Occluder(mask=canvas.polygon(shape, np.asarray(hull, np.float64).reshape(-1, 2)), colour=cloth)
    if shot.occluder == 2:  # fingers
        way = math.radians(60 + 60 * d[51])
        along = np.array([math.cos(way), math.sin(way)]) * 2.6 * unit
        beside = np.array([-math.sin(way), math.cos(way)]) * 0.30 * unit
        starts = [aim + beside * finger + along * 0.04 * abs(finger) ** 1.5 for finger in (-1.5, -0.5, 0.5, 1.5)]
        thick = max(2, round(0.27 * unit))
        mask = canvas.stroke(shape, [np.stack([start, start + along]) for start in starts], thick=thick)
        lit = 0.75 + 0.25 * d[52]
        hand: RGB = (person.skin[0] * lit, person.skin[1] * lit, person.skin[2] * lit)
        inner = np.asarray(cv2.erode(mask, np.ones((2, 2), np.uint8)), dtype=np.uint8)
        return Occluder(mask=inner, colour=hand, shadow=canvas.blur(mask, 5, 1.2))
    if shot.occluder == 3:  # a strand of hair over one eye
        eye = five[0] if side < 0 else five[1]
        drop = np.array([[-0.1, -1.2], [0.45, -1.2], [0.35, 0.2], [0.30, 1.1], [0.1, 1.3], [-0.2, 0.1]])
        hair: RGB = (person.hair[0] * 0.85, person.hair[1] * 0.85, person.hair[2] * 0.85)
        mask = canvas.blur(canvas.polygon(shape, eye + drop * (side * unit, unit)), 5, 1.2)
        return Occluder(mask=mask, colour=hair)
    if shot.occluder == 4:  # a thing held before the face
        size = (0.25 + 0.35 * d[51]) * unit
        mask = canvas.ellipses(shape, aim[None], (size, size * (0.5 + d[52])), degrees=180 * d[53])
        return Occluder(mask=mask, colour=colour)
    # something at the picture's edge: a shoulder, a microphone
    corner = five[3 if side < 0 else 4] + np.array([0.0, 0.25 * unit * (d[49] - 0.4)])
    edge = np.array([[-0.35, -0.05], [1.6, -0.5], [2.5, 3.0], [-0.2, 2.5]]) * (side * unit, unit)
    return Occluder(mask=canvas.polygon(shape, corner + edge), colour=colour)
