"""The cascade: its histograms against a loop, and that it finds what a start missed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distill.cascade import CascadeSpec, around_truth, describe, fit, gradient_maps, pooled, scattered
from edgeface.errors import DataError

SMALL = CascadeSpec(cells=(0.15, 0.1), grid=2)
GENERATOR = np.random.default_rng(0)


def spots(count: int, *, px: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with two bright discs of different size, and their centres in crop sides."""
    generator = np.random.default_rng(count)
    first = generator.uniform(0.25, 0.45, (count, 2))
    points = np.stack([first, first + np.array([0.3, 0.1]) + generator.uniform(-0.05, 0.05, (count, 2))], axis=1)
    places = (np.arange(px) + 0.5) / px
    pictures = np.zeros((count, px, px))
    for point, radius in ((0, 0.06), (1, 0.1)):
        x, y = points[:, point, 0, None, None], points[:, point, 1, None, None]
        distance = np.hypot(places[None, None, :] - x, places[None, :, None] - y)
        pictures += 200.0 * np.clip((radius - distance) * px + 0.5, 0.0, 1.0)
    images = np.repeat(np.clip(pictures, 0, 255).astype(np.uint8)[..., None], 3, axis=3)
    return images, points.astype(np.float32)


def test_gradients_are_counted_by_direction_as_a_loop_counts_them() -> None:
    images = GENERATOR.integers(0, 256, (1, 6, 6, 3), dtype=np.uint8)
    grey = np.pad(images[0].astype(float) @ [0.299, 0.587, 0.114], 1, mode="edge")
    expected = np.zeros((8, 3, 3))
    for row in range(6):
        for column in range(6):
            across = (grey[row + 1, column + 2] - grey[row + 1, column]) / 2
            down = (grey[row + 2, column + 1] - grey[row, column + 1]) / 2
            place = (math.atan2(down, across) / (2 * math.pi) * 8) % 8
            length = math.hypot(across, down) / 4  # a quarter of its block
            expected[int(place) % 8, row // 2, column // 2] += (1 - place % 1) * length
            expected[(int(place) + 1) % 8, row // 2, column // 2] += place % 1 * length
    maps = gradient_maps(images, directions=8)[0].numpy()
    np.testing.assert_allclose(maps, expected, atol=1e-3)
    assert np.abs(maps[::-1] - expected).max() > 1.0  # the twin: the opposite directions


def test_a_points_histogram_has_length_one_and_follows_the_picture() -> None:
    images, points = spots(3)

    def found(images: np.ndarray, moved: float) -> torch.Tensor:
        blocks = pooled(gradient_maps(images), cell=0.1)
        return describe(blocks, torch.from_numpy(points) + torch.tensor([moved, 0.0]), cell=0.1, grid=2)

    here = found(images, 0.0)
    assert here.shape == (3, 2 * 4 * 8)
    np.testing.assert_allclose(here.view(3, 2, -1).norm(dim=2).numpy(), 1.0, atol=1e-5)
    shifted = np.roll(images, 4, axis=2)  # two blocks
    np.testing.assert_allclose(found(shifted, 0.1).numpy(), here.numpy(), atol=1e-4)
    assert (found(shifted, 0.0) - here).abs().max() > 0.1


def test_a_cascade_finds_points_that_its_start_missed() -> None:
    images, truth = spots(400)
    starts = scattered(truth.mean(axis=0), count=400, runs=3, spread=0.03, seed=0)
    cascade = fit(gradient_maps(images), truth, starts, spec=SMALL)
    others, wanted = spots(100)
    start = np.repeat(truth.mean(axis=0)[None], 100, axis=0)

    before = float(np.abs(start - wanted).mean())
    after = float(np.abs(cascade.run(gradient_maps(others), start) - wanted).mean())

    assert after < 0.5 * before
    # The twin: pictures of other faces.
    other = cascade.run(gradient_maps(others[::-1]), start)
    assert float(np.abs(other - wanted).mean()) > 0.9 * before
    np.testing.assert_array_equal(start, np.repeat(truth.mean(axis=0)[None], 100, axis=0))  # is not changed


def test_each_stage_is_the_ridge_regression_of_what_is_left() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model", reason="NOT_RUN: no scikit-learn here")
    images, truth = spots(60)
    starts = scattered(truth.mean(axis=0), count=60, runs=2, spread=0.03, seed=0)
    spec = CascadeSpec(cells=(0.12,), grid=2, ridge=0.02)
    maps = gradient_maps(images)
    (step,) = fit(maps, truth, starts, spec=spec).steps
    blocks = pooled(maps, cell=0.12)
    parts = [describe(blocks, torch.from_numpy(run), cell=0.12, grid=2).double().numpy() for run in starts]
    features, left = np.concatenate(parts), (truth - starts).reshape(120, -1)
    alpha = spec.ridge * float((features**2).sum(axis=0).mean())
    model = sklearn.Ridge(alpha=alpha).fit(features, left)
    np.testing.assert_allclose(step[:-1].numpy().T, model.coef_, atol=1e-4)
    np.testing.assert_allclose(step[-1].numpy(), model.intercept_, atol=1e-4)
    other = sklearn.Ridge(alpha=alpha * 3).fit(features, left)
    assert np.abs(step[:-1].numpy().T - other.coef_).max() > 1e-3  # the twin


def test_starts_are_drawn_around_what_they_are_asked_for() -> None:
    shape = GENERATOR.uniform(0.2, 0.8, (5, 2)).astype(np.float32)
    starts = scattered(shape, count=2000, runs=2, spread=0.05, seed=1)
    np.testing.assert_allclose(starts[0], np.repeat(shape[None], 2000, axis=0), atol=1e-6)
    assert np.std(starts[1].mean(axis=1), axis=0) == pytest.approx([0.05, 0.05], rel=0.1)
    truth = GENERATOR.uniform(0.2, 0.8, (300, 5, 2)).astype(np.float32)
    errors = np.stack([np.full((5, 2), 0.1), np.full((5, 2), -0.2)]).astype(np.float32)
    moved = around_truth(truth, errors, runs=2, seed=0) - truth
    assert {round(float(value), 4) for value in moved.ravel()} == {0.1, -0.2}
    assert (np.ptp(moved, axis=(2, 3)) < 1e-6).all()  # one face's error whole, not point by point


def test_unlabelled_faces_are_refused() -> None:
    images, truth = spots(10)
    starts = truth[None].copy()
    truth[3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        fit(gradient_maps(images), truth, starts, spec=SMALL)
    with pytest.raises(DataError, match="10 pictures"):
        fit(gradient_maps(images), truth[:9], starts[:, :9], spec=SMALL)
