"""Crops, matrices and the one resampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeface.data.geometry import (
    apply_matrix,
    compose_matrix,
    crop_image,
    crop_matrix,
    invert_matrix,
    relabel_mirrored,
    require_mirror,
)
from edgeface.errors import DataError, UnsupportedError
from edgeface.tasks import MIRROR_POINTS

finite = st.floats(-500, 500)
sides = st.floats(1, 1000)


def naive_crop(image: NDArray[np.uint8], crop: tuple[float, float, float], *, px: int, reach_factor: float = 1.0):
    """The docstring of edgeface.data.geometry, one output pixel at a time, in Python integers."""
    x, y, side = crop
    scale = side / px
    reach = max(1.0, scale) * reach_factor

    def taps(start: float, out: int) -> dict[int, int]:
        centre = start + (out + 0.5) * scale
        first = math.floor(start + 0.5 * scale - reach)
        last = math.ceil(start + (px - 0.5) * scale + reach)
        raw = [max(0.0, 1.0 - abs(i + 0.5 - centre) / reach) for i in range(first, last + 1)]
        total = 0.0
        sums = [total := total + weight for weight in raw]
        whole = [math.floor(s / sums[-1] * 2048 + 0.5) for s in sums]
        steps = [b - a for a, b in zip([0, *whole], whole, strict=False)]
        return {i: w for i, w in zip(range(first, last + 1), steps, strict=True) if w}

    height, width = image.shape[:2]
    out = np.zeros((px, px, 3), np.uint8)
    for row in range(px):
        for column in range(px):
            for channel in range(3):
                total = 0
                for i, vertical in taps(y - side / 2, row).items():
                    for j, horizontal in taps(x - side / 2, column).items():
                        pixel = image[min(max(i, 0), height - 1), min(max(j, 0), width - 1), channel]
                        total += vertical * horizontal * int(pixel)
                out[row, column, channel] = (total + (1 << 21)) >> 22
    return out


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def crop(x: float, y: float, side: float) -> NDArray[np.float32]:
    return np.asarray([x, y, side], np.float32)


# Centres and sides are exact in float32, as the crop is stored.
CROPS = [
    (8.0, 8.0, 6.5),  # enlarging
    (9.25, 7.5, 8.0),  # scale 1, off the grid
    (10.0, 9.0, 15.75),  # shrinking
    (3.0, 17.0, 13.0),  # beyond two borders
    (9.0, 9.0, 60.0),  # beyond all borders
    (-4.0, -4.0, 12.0),  # touches one corner only
]


@pytest.mark.parametrize("box", CROPS)
def test_crop_image_equals_the_written_definition(box: tuple[float, float, float]) -> None:
    image = noise(20, 18)
    assert np.array_equal(crop_image(image, crop(*box), px=8), naive_crop(image, box, px=8))


def test_crop_image_differs_from_another_filter_width_twin() -> None:
    image = noise(20, 18)
    assert not np.array_equal(
        crop_image(image, crop(10, 9, 15.75), px=8), naive_crop(image, (10, 9, 15.75), px=8, reach_factor=1.05)
    )


def test_margin_is_a_factor_on_the_side() -> None:
    image = noise(40, 40)
    assert np.array_equal(
        crop_image(image, crop(20, 20, 12), px=8, margin=1.5), crop_image(image, crop(20, 20, 18), px=8)
    )
    assert not np.array_equal(crop_image(image, crop(20, 20, 12), px=8), crop_image(image, crop(20, 20, 18), px=8))


def test_crop_on_the_pixel_grid_is_a_slice() -> None:
    image = noise(20, 24)
    assert np.array_equal(crop_image(image, crop(11, 10, 8), px=8), image[6:14, 7:15])
    assert not np.array_equal(crop_image(image, crop(11, 10, 8), px=8), image[6:14, 8:16])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 255), st.floats(2, 18), st.floats(2, 14), st.floats(0.5, 300))
def test_flat_picture_stays_flat(level: int, x: float, y: float, side: float) -> None:
    image = np.full((16, 20, 3), level, np.uint8)
    assert (crop_image(image, crop(x, y, side), px=5) == level).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(1, 19), st.floats(1, 15), st.floats(1, 60))
def test_beyond_the_border_the_border_pixel_repeats(x: float, y: float, side: float) -> None:
    x, y, side = (float(np.float32(round(value * 8) / 8)) for value in (x, y, side))  # sums with 64 stay exact
    image = noise(16, 20)
    padded = np.pad(image, ((64, 64), (64, 64), (0, 0)), mode="edge")
    assert np.array_equal(
        crop_image(image, crop(x, y, side), px=6), crop_image(padded, crop(x + 64, y + 64, side), px=6)
    )


def test_beyond_the_border_is_not_black_twin() -> None:
    image = noise(16, 20)
    padded = np.pad(image, ((64, 64), (64, 64), (0, 0)))
    assert not np.array_equal(crop_image(image, crop(4, 4, 30), px=6), crop_image(padded, crop(68, 68, 30), px=6))


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest stripes there are
    small = crop_image(stripes, crop(32, 32, 41), px=10).astype(int)
    # A triangle of half-width 4.1 keeps sinc²(4.1 / 2) < 1 % of the finest stripes' contrast: 2.5 of 255 levels, plus
    # rounding.
    assert np.abs(small - 127.5).max() <= 3.0


def test_taking_the_nearest_pixel_would_alias_twin() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    nearest = stripes[:, np.floor(32 - 20.5 + (np.arange(10) + 0.5) * 4.1).astype(int)].astype(int)
    assert np.abs(nearest - 127.5).max() > 100


@pytest.mark.parametrize(
    "box", [(8, 8, 0), (8, 8, -3), (float("nan"), 8, 4), (40, 8, 4), (8, -40, 4), (8, 8, float("inf"))]
)
def test_crop_without_pixels_is_refused(box: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="Expected a square that touches the 20x16 picture"):
        crop_image(noise(16, 20), crop(*box), px=4)


def test_crop_matrix_takes_the_crop_to_the_unit_square() -> None:
    crops = np.asarray([[50, 40, 20], [7, 9, 4]], np.float32)
    corners = np.asarray([[[40, 30], [60, 50], [50, 40]], [[5, 7], [9, 11], [7, 9]]], np.float64)
    expected = np.broadcast_to([[0, 0], [1, 1], [0.5, 0.5]], (2, 3, 2))
    # Differences of float64 numbers below 100, divided once: within a few rounding steps of 1e-16.
    assert np.allclose(apply_matrix(crop_matrix(crops), corners), expected, rtol=0, atol=1e-14)
    assert not np.allclose(apply_matrix(crop_matrix(crops, margin=1.1), corners), expected, rtol=0, atol=1e-2)


@settings(max_examples=100, deadline=None)
@given(finite, finite, sides, st.floats(0.5, 3), st.lists(st.tuples(finite, finite), min_size=1, max_size=5))
def test_warp_then_unwarp_returns_the_landmarks(
    x: float, y: float, side: float, margin: float, points: list[tuple[float, float]]
) -> None:
    matrix = crop_matrix(np.asarray([[x, y, side]], np.float32), margin=margin)
    before = np.asarray([points], np.float64)
    after = apply_matrix(invert_matrix(matrix), apply_matrix(matrix, before))
    # Coordinates up to 1000 sides pass through two products in float64: 1e-16 × 1e3 × 1e3, with room.
    assert np.allclose(after, before, rtol=0, atol=1e-9)
    both = compose_matrix(invert_matrix(matrix), matrix)
    assert np.allclose(both, [[[1, 0, 0], [0, 1, 0]]], rtol=0, atol=1e-9)


def test_unwarp_by_a_perturbed_matrix_does_not_return_the_landmarks_twin() -> None:
    matrix = crop_matrix(np.asarray([[50, 40, 20]], np.float32))
    before = np.asarray([[[45.0, 38.0]]])
    back = invert_matrix(matrix)
    back[0, 0, 1] += 1e-3
    assert not np.allclose(apply_matrix(back, apply_matrix(matrix, before)), before, rtol=0, atol=1e-9)


def test_apply_matrix_agrees_between_numpy_and_torch() -> None:
    rng = np.random.default_rng(0)
    matrices, points = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 5, 2))
    expected = np.einsum("nij,nkj->nki", matrices[..., :2], points) + matrices[:, None, :, 2]
    moved = apply_matrix(torch.from_numpy(matrices), torch.from_numpy(points)).numpy()
    assert np.array_equal(moved, apply_matrix(matrices, points))
    assert np.allclose(moved, expected, rtol=0, atol=1e-12)  # three products of numbers of size 1 in float64
    assert not np.allclose(moved[:, ::-1], expected, rtol=0, atol=1e-12)


def labels_of_two() -> dict[str, torch.Tensor]:
    return {
        "landmarks5": torch.arange(20).reshape(2, 5, 2).float(),
        "landmarks68": torch.arange(272).reshape(2, 68, 2).float(),
        "pose": torch.tensor([0, -1]),
        "gender": torch.tensor([1, 0]),
        "age": torch.tensor([[20.0, 29.0], [31.0, 31.0]]),
    }


def test_mirroring_exchanges_left_and_right() -> None:
    mirrored = relabel_mirrored(labels_of_two(), torch.tensor([True, False]))
    assert mirrored["landmarks5"][0, :, 0].tolist() == [2, 0, 4, 8, 6]
    assert mirrored["landmarks5"][1].equal(labels_of_two()["landmarks5"][1])
    assert mirrored["pose"].tolist() == [4, -1]
    assert mirrored["gender"].tolist() == [1, 0]
    assert not mirrored["landmarks68"][0].equal(labels_of_two()["landmarks68"][0])


def test_mirroring_twice_changes_nothing() -> None:
    both = torch.tensor([True, True])
    once = relabel_mirrored(labels_of_two(), both)
    twice = relabel_mirrored(once, both)
    for name, values in labels_of_two().items():
        assert twice[name].equal(values)
    assert not once["pose"].equal(labels_of_two()["pose"])


def test_missing_class_stays_missing_when_mirrored() -> None:
    labels = {"pose": torch.tensor([-1, 2])}
    assert relabel_mirrored(labels, torch.tensor([True, True]))["pose"].tolist() == [-1, 2]


def test_landmarks_without_a_known_mirror_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_mirror("landmarks68")
    require_mirror("gender")
    monkeypatch.delitem(MIRROR_POINTS, 68)
    with pytest.raises(UnsupportedError, match="mirror_share"):
        require_mirror("landmarks68")


@pytest.mark.parametrize("points", MIRROR_POINTS)
def test_every_mirrored_order_is_its_own_inverse(points: int) -> None:
    order = MIRROR_POINTS[points]
    assert sorted(order) == list(range(points))
    assert [order[partner] for partner in order] == list(range(points))
