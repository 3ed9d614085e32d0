"""From head coordinates to picture pixels, for one shot."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeface.data.faces import head
from edgeface.data.faces.draw import Person, Shot
from edgeface.data.faces.template import ORDERS, features, to_grid

FRAME: Final = 1.5  # side of the picture over the side of the nominal crop

Vertices = NDArray[np.float32]  # (ACROSS, DOWN, C)


@cache
def noise() -> NDArray[np.float32]:
    """(3, 640, 640) standard normal numbers that backgrounds and sensors cut their noise from."""
    generator = np.random.Generator(np.random.Philox(key=np.array([7, 3], dtype=np.uint64)))
    return generator.standard_normal((3, 640, 640), dtype=np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """(3, 3) from head to camera axes: yaw, then pitch, then roll in the picture."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(tilt @ nod @ turn)


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
    rows = grid.reshape(-1, grid.shape[-1])
    corner = i * head.DOWN + j
    near = np.take(rows, corner, axis=0) * (1 - b) + np.take(rows, corner + 1, axis=0) * b
    corner += head.DOWN
    far = np.take(rows, corner, axis=0) * (1 - b) + np.take(rows, corner + 1, axis=0) * b
    return np.asarray(near * (1 - a) + far * a)


class Camera:
    """Weak perspective: things shrink with distance, and straight lines stay straight nearly everywhere."""

    def __init__(self, shot: Shot, px: int) -> None:
        self.turn = rotation(shot.yaw, shot.pitch, shot.roll)
        self.scale = shot.scale * px / FRAME  # pixels an eye distance, where z is 0
        self.distance = shot.camera
        self.offset = np.zeros(2)

    def turned(self, points: NDArray[Any]) -> NDArray[Any]:
        """(..., 3) head coordinates → the same in camera axes, z towards the viewer."""
        turn = self.turn.T.astype(points.dtype)
        return np.asarray((points.reshape(-1, 3) @ turn).reshape(points.shape))

    def flat(self, turned: NDArray[Any]) -> NDArray[Any]:
        """(..., 3) in camera axes → (..., 2) pixels."""
        flat = np.empty((*turned.shape[:-1], 2), turned.dtype)
        near = turned[..., 2] * (-1.0 / self.distance)
        near += 1.0
        np.divide(self.scale, near, out=near)
        for axis in (0, 1):
            np.multiply(turned[..., axis], near, out=flat[..., axis])
            flat[..., axis] += self.offset[axis]
        return flat

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) head coordinates → (..., 2) pixels."""
        return np.asarray(self.flat(self.turned(points)), dtype=np.float64)


@lru_cache(maxsize=4)
def _resting(person: Person) -> Vertices:
    """A person's head with a face at rest; the shots of one person often follow each other."""
    return head.BASE + head.displaced(person.modes[: head.FIRST_ACTION], first=0)


def place(person: Person, shot: Shot, px: int) -> tuple[Vertices, Camera, NDArray[np.float64], NDArray[np.float64]]:
    """The deformed head, the camera that centres it, and the feature points: canonical and in the picture."""
    canonical = features(shot.features)
    surface = _resting(person) + head.displaced(shot.modes[head.FIRST_ACTION :], first=head.FIRST_ACTION)
    camera = Camera(shot, px)
    solid = sample(surface, to_grid(canonical))
    five = camera.project(solid[ORDERS[5]])
    centre = (five.min(0) + five.max(0)) / 2
    camera.offset = (px - 1) / 2 + np.array(shot.shift) * px / FRAME - centre
    return surface, camera, canonical, camera.project(solid)
