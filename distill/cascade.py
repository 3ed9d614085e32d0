"""A cascade of linear regressors that moves landmarks from a start towards the face: what TCDCN's output was tried as a
start of.

Zhang et al. (ECCV 2014) start RCPR from their network instead of from training shapes drawn by chance; their cascade is
not well enough described to repeat. Here it is the supervised descent method, which is: gradient histograms around each
point, and one ridge regression a stage from them to the step that is still to go. It needs no network and none of its
features; it is a yardstick, and part of nothing that is built.

Source:
    Xiong, De la Torre, Supervised Descent Method and Its Applications to Face Alignment, CVPR 2013, eq. 8 and 9. Their
    SIFT is here its dense form on an upright grid, their least squares has a ridge, and cells shrink from stage to
    stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgeface.errors import DataError

_CHUNK = 256  # faces whose gradients are worked out at once
_ROWS = 4096  # rows whose products are added in float32 before they join the sum
_LUMA = (0.299, 0.587, 0.114)
_CLIP = 0.2  # Lowe, IJCV 2004, section 6.1


@dataclass(frozen=True, kw_only=True)
class CascadeSpec:
    """The dials of a cascade.

    Attributes:
        cells: Side of a point's grid of cells, in crop sides, one a stage; as many stages as entries, coarse to fine.
        grid: Cells along a side of that grid.
        directions: Directions of gradients told apart.
        ridge: Weight of the squared coefficients, over the mean square of a feature times the number of rows.
    """

    cells: tuple[float, ...] = (0.12, 0.1, 0.08, 0.06, 0.05)
    grid: int = 4
    directions: int = 8
    ridge: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """A fitted cascade.

    Attributes:
        spec: Its dials.
        steps: Of each stage (F + 1, 2 K): coefficients of the features, last of a constant 1.
    """

    spec: CascadeSpec
    steps: tuple[Tensor, ...]

    def run(self, maps: Tensor, start: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points after the last stage.

        Args:
            maps: (N, D, S, S) from `gradient_maps`.
            start: (N, K, 2) points in crop sides.

        Returns:
            (N, K, 2) in crop sides.
        """
        points = torch.tensor(start, dtype=torch.float32)
        for cell, step in zip(self.spec.cells, self.steps, strict=True):
            features = describe(pooled(maps, cell=cell), points, cell=cell, grid=self.spec.grid)
            points = points + (_with_one(features) @ step).view_as(points)
        return np.asarray(points.numpy())


def fit(maps: Tensor, truth: NDArray[np.float32], starts: NDArray[np.float32], *, spec: CascadeSpec) -> Cascade:
    """Fit a cascade stage by stage, each on where the stage before it left the points.

    Args:
        maps: (N, D, S, S) from `gradient_maps`.
        truth: (N, K, 2) points in crop sides.
        starts: (R, N, K, 2) starts of each face, in crop sides.
        spec: The dials.

    Raises:
        DataError: A point or start is not finite, or the shapes differ.
    """
    if starts.shape[1:] != truth.shape or len(maps) != len(truth):
        raise DataError(
            f"{len(maps)} pictures, points of shape {truth.shape}, starts of shape {starts.shape}",
            expected="(N, K, 2) points and (R, N, K, 2) starts of the same faces",
            where="cascade",
        )
    if not (np.isfinite(truth).all() and np.isfinite(starts).all()):
        raise DataError("points that are not finite", expected="labelled faces alone", where="cascade")
    points, goal = torch.from_numpy(starts.astype(np.float32)), torch.from_numpy(truth.astype(np.float32))
    steps = []
    for cell in spec.cells:
        blocks = pooled(maps, cell=cell)
        features = torch.cat([describe(blocks, run, cell=cell, grid=spec.grid) for run in points])
        step = ridge_regression(features, (goal - points).flatten(0, 1).flatten(1), ridge=spec.ridge)
        points = points + (_with_one(features) @ step).view_as(points)
        steps.append(step)
    return Cascade(spec=spec, steps=tuple(steps))


def gradient_maps(images: NDArray[np.uint8], *, directions: int = CascadeSpec.directions) -> Tensor:
    """How strong the brightness changes in each direction, over blocks of two by two pixels.

    Args:
        images: (N, S, S, 3) RGB, S even.
        directions: D; a gradient between two of them counts to both.

    Returns:
        (N, D, S/2, S/2) float32, 0 or more.
    """
    return torch.cat([_gradients(images[rows], directions) for rows in _chunks(len(images))])


def _gradients(images: NDArray[np.uint8], directions: int) -> Tensor:
    pictures = torch.from_numpy(np.ascontiguousarray(images)).float()
    grey = F.pad((pictures * torch.tensor(_LUMA)).sum(dim=3)[:, None], (1, 1, 1, 1), mode="replicate")
    across = (grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]) / 2.0
    down = (grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]) / 2.0
    length = torch.hypot(across, down)
    place = torch.atan2(down, across) / (2.0 * math.pi) * directions
    apart = torch.remainder(place - torch.arange(directions).view(1, -1, 1, 1) + directions / 2.0, directions)
    return F.avg_pool2d(length * (1.0 - (apart - directions / 2.0).abs()).clamp(min=0.0), 2)


def pooled(maps: Tensor, *, cell: float) -> Tensor:
    """Maps over blocks of half a cell: read between blocks, each stands for a cell, as in a gradient histogram."""
    side = min(maps.shape[-1], max(1, round(2.0 / cell)))
    return maps if side == maps.shape[-1] else F.interpolate(maps, size=side, mode="area")


def describe(blocks: Tensor, points: Tensor, *, cell: float, grid: int) -> Tensor:
    """Gradient histograms of the cells around each point.

    Args:
        blocks: (N, D, B, B) from `pooled`.
        points: (N, K, 2) in crop sides.
        cell: Side of a cell, in crop sides.
        grid: Cells along a side of the square around a point.

    Returns:
        (N, K · grid² · D); each point's part has length 1, no value above 0.2 before the last scaling.
    """
    steps = (torch.arange(grid) - (grid - 1) / 2.0) * cell
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).view(1, 1, -1, 2)
    places = (points[:, :, None] + offsets) * 2.0 - 1.0  # grid_sample counts from -1 to 1
    found = F.grid_sample(blocks, places, mode="bilinear", padding_mode="border", align_corners=False)
    found = F.normalize(found.permute(0, 2, 3, 1).flatten(2), dim=2).clamp(max=_CLIP)  # (N, K, grid² · D)
    return F.normalize(found, dim=2).flatten(1)


def ridge_regression(features: Tensor, steps: Tensor, *, ridge: float) -> Tensor:
    """Coefficients from features to steps, the constant last and not held back.

    Args:
        features: (R, F).
        steps: (R, T).
        ridge: As in CascadeSpec.

    Returns:
        (F + 1, T).
    """
    width = features.shape[1] + 1
    square, product = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, steps.shape[1]).double()
    for rows in (slice(start, start + _ROWS) for start in range(0, len(features), _ROWS)):
        part = _with_one(features[rows])
        square += part.T @ part
        product += part.T @ steps[rows]
    held = torch.full((width,), ridge * float(square.diagonal()[:-1].mean()), dtype=torch.float64)
    held[-1] = 0.0
    found: Tensor = torch.linalg.solve(square + torch.diag(held), product)
    return found.float()


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _chunks(count: int) -> Sequence[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]


def scattered(shape: NDArray[np.float32], *, count: int, runs: int, spread: float, seed: int) -> NDArray[np.float32]:
    """Starts around one shape: moved and scaled at random, as a detector's boxes would move it.

    Args:
        shape: (K, 2) in crop sides.
        count: N faces.
        runs: R starts a face; the first is the shape itself.
        spread: Standard deviation of a move, in crop sides, and of the logarithm of the scale.
        seed: Decides every draw.

    Returns:
        (R, N, K, 2) float32.
    """
    generator = np.random.default_rng(seed)
    moves = generator.normal(0.0, spread, (runs, count, 1, 2))
    scales = np.exp(generator.normal(0.0, spread, (runs, count, 1, 1)))
    moves[0], scales[0] = 0.0, 1.0
    centre = shape.mean(axis=0)
    return np.asarray((shape - centre) * scales + centre + moves, np.float32)


def around_truth(
    truth: NDArray[np.float32], errors: NDArray[np.float32], *, runs: int, seed: int
) -> NDArray[np.float32]:
    """Starts as a network would give them on faces it was not trained on: the truth with another face's whole error.

    Args:
        truth: (N, K, 2) in crop sides.
        errors: (V, K, 2) a network's answer minus the truth, on faces held back from its training.
        runs: R starts a face.
        seed: Decides every draw.

    Returns:
        (R, N, K, 2) float32.
    """
    chosen = np.random.default_rng(seed).integers(0, len(errors), (runs, len(truth)))
    return np.asarray(truth + errors[chosen], np.float32)
