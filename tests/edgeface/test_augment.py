"""Augmentation: labels follow pixels, and every picture is a pure function of (seed, epoch, id)."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeface.config import load_recipe
from edgeface.data.augment import _DRAWS, _MIRROR, _mix_colours, _views, augment, blur, compress, hash64, uniform
from edgeface.errors import UnsupportedError
from edgeface.specs import AugmentSpec

STILL = AugmentSpec(
    rotation_deg=0.0,
    scale=(1.0, 1.0),
    translation=0.0,
    mirror_share=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    blur_share=0.0,
    blur_px=0.0,
    jpeg_share=0.0,
    occlusion_share=0.0,
)
MOVING = dataclasses.replace(STILL, rotation_deg=30.0, scale=(0.85, 1.25), translation=0.1, mirror_share=0.5)
PACKED, MARGIN, OUT = 96, 1.3, 64


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(count: int, side: int = PACKED) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def dots(points: Tensor, side: int = PACKED) -> Tensor:
    """(B, side, side, 3) pictures with a soft dot at each point's place: red, green, blue for points 0, 1, 2."""
    grid = torch.arange(side) + 0.5
    pictures = torch.zeros(len(points), side, side, 3)
    for channel in range(3):
        at = points[:, channel] * side  # (B, 2)
        across = torch.exp(-0.5 * ((grid - at[:, 0, None]) / 2.0) ** 2)
        down = torch.exp(-0.5 * ((grid - at[:, 1, None]) / 2.0) ** 2)
        pictures[..., channel] = 255.0 * down[:, :, None] * across[:, None, :]
    return pictures.round().byte()


def centres(pictures: Tensor) -> Tensor:
    """(B, 3, 2) centre of mass of each channel of (B, 3, S, S), in crop sides."""
    side = pictures.shape[-1]
    grid = (torch.arange(side) + 0.5) / side
    mass = pictures.sum(dim=(2, 3))
    return torch.stack(
        [(pictures.sum(dim=2) * grid).sum(-1) / mass, (pictures.sum(dim=3) * grid).sum(-1) / mass], dim=-1
    )


def faces(seed: int, count: int = 16) -> Tensor:
    """(B, 5, 2) points in packed crop sides, left of centre, right of centre, middle."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.tensor([[0.42, 0.45], [0.58, 0.45], [0.5, 0.5], [0.44, 0.58], [0.56, 0.58]])
    return base + 0.03 * torch.rand(count, 5, 2, generator=generator)


def moved(points: Tensor, seed: int, *, spec: AugmentSpec = MOVING) -> tuple[Tensor, dict[str, Tensor]]:
    labels = {"landmarks5": points, "pose": torch.zeros(len(points), dtype=torch.int64)}
    return augment(
        dots(points), labels, spec=spec, margin=MARGIN, out_px=OUT, seed=seed, epoch=0, ids=torch.arange(len(points))
    )


def expected_centres(pictures: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Centres of red, green, blue in the label's point order: a mirrored face's first point is the old second."""
    found = centres(pictures)
    return torch.where((labels["pose"] == 4)[:, None, None], found[:, [1, 0, 2]], found)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_augmented_landmarks_land_on_the_same_pixels(seed: int) -> None:
    pictures, labels = moved(faces(seed), seed)
    error_px = (expected_centres(pictures, labels) - labels["landmarks5"][:, :3]).abs().max() * OUT
    # Measured over 300 seeds: at most 0.03 px. Bilinear resampling keeps a dot's centre of mass; rounding its tail to
    # whole grey levels moves it a little.
    assert error_px < 0.1


def test_landmarks_left_in_place_miss_the_pixels_twin() -> None:
    pictures, labels = moved(faces(0), 0)
    assert (expected_centres(pictures, labels) - faces(0)[:, :3]).abs().max() * OUT > 1.0


def test_landmarks_in_the_old_order_miss_the_pixels_twin() -> None:
    pictures, labels = moved(faces(0), 0)
    assert 0 < int((labels["pose"] == 4).sum()) < len(labels["pose"])
    assert (centres(pictures) - labels["landmarks5"][:, :3]).abs().max() * OUT > 1.0


def test_landmarks_outside_the_crop_are_kept() -> None:
    points = faces(0)
    points[:, 4] = torch.tensor([0.99, 0.99])  # 0.49 of a packed side off centre: 0.64 of the nominal side
    _, labels = moved(points, 0, spec=STILL)
    assert labels["landmarks5"][:, 4].allclose(torch.tensor([0.5 + 0.49 * MARGIN, 0.5 + 0.49 * MARGIN]), atol=1e-6)


def test_without_variation_the_picture_is_unchanged() -> None:
    images = noise(3, side=32)
    same, _ = augment(images, {}, spec=STILL, margin=1.0, out_px=32, seed=0, epoch=0, ids=torch.arange(3))
    assert same.equal(images.permute(0, 3, 1, 2).float())


def test_one_degree_changes_the_picture_twin() -> None:
    images = noise(3, side=32)
    spec = dataclasses.replace(STILL, rotation_deg=1.0)
    turned, _ = augment(images, {}, spec=spec, margin=1.0, out_px=32, seed=0, epoch=0, ids=torch.arange(3))
    assert not turned.equal(images.permute(0, 3, 1, 2).float())


def test_mirroring_reverses_columns_and_mirroring_twice_is_identity() -> None:
    images = noise(3, side=32)
    spec = dataclasses.replace(STILL, mirror_share=1.0)
    labels = {"landmarks5": torch.rand(3, 5, 2), "pose": torch.tensor([0, 3, -1])}

    def once(pictures: Tensor, known: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return augment(pictures, known, spec=spec, margin=1.0, out_px=32, seed=0, epoch=0, ids=torch.arange(3))

    mirrored, relabelled = once(images, labels)
    assert mirrored.equal(images.permute(0, 3, 1, 2).flip(3).float())
    assert relabelled["pose"].tolist() == [4, 1, -1]
    back, again = once(mirrored.byte().permute(0, 2, 3, 1), relabelled)
    assert back.equal(images.permute(0, 3, 1, 2).float())
    assert again["landmarks5"].allclose(labels["landmarks5"], atol=1e-6)  # float32 rounding of 1 - x, twice
    assert again["pose"].equal(labels["pose"])
    assert not relabelled["landmarks5"].allclose(labels["landmarks5"], atol=1e-3)


def everything(ids: Tensor, *, seed: int = 7, epoch: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    """All effects at once, on a picture and labels that depend on the id alone."""
    images, points = noise(64)[ids], faces(5, 64)[ids]
    labels = {"landmarks5": points, "pose": ids % 5, "occlusion": ids % 2}
    return augment(images, labels, spec=AugmentSpec(), margin=MARGIN, out_px=OUT, seed=seed, epoch=epoch, ids=ids)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 2), (10, 7), (32, 32)])
def test_a_sample_looks_the_same_in_any_batch(first: int, count: int) -> None:
    whole, whole_labels = everything(torch.arange(64))
    part, part_labels = everything(torch.arange(first, first + count))
    assert part.equal(whole[first : first + count])
    for name, values in part_labels.items():
        assert values.equal(whole_labels[name][first : first + count])


def test_a_sample_looks_the_same_on_two_threads_and_in_another_order() -> None:
    whole, _ = everything(torch.arange(64))
    torch.set_num_threads(2)
    turned, _ = everything(torch.arange(63, -1, -1))
    assert turned.equal(whole.flip(0))


def test_a_sample_looks_different_in_another_epoch_or_with_another_seed_twin() -> None:
    whole, _ = everything(torch.arange(64))
    assert not everything(torch.arange(64), epoch=4)[0].equal(whole)
    assert not everything(torch.arange(64), seed=8)[0].equal(whole)


def test_pictures_are_whole_numbers_from_0_to_255() -> None:
    pictures, _ = everything(torch.arange(64))
    assert pictures.shape == (64, 3, OUT, OUT)
    assert pictures.dtype == torch.float32
    assert pictures.equal(pictures.round())
    assert pictures.min() >= 0
    assert pictures.max() <= 255


def test_missing_labels_stay_missing() -> None:
    labels = {
        "landmarks5": torch.full((8, 5, 2), math.nan),
        "pose": torch.full((8,), -1),
        "occlusion": torch.full((8,), -1),
    }
    spec = dataclasses.replace(AugmentSpec(), occlusion_share=1.0)
    _, after = augment(noise(8), labels, spec=spec, margin=MARGIN, out_px=OUT, seed=0, epoch=0, ids=torch.arange(8))
    assert after["landmarks5"].isnan().all()
    assert after["pose"].eq(-1).all()
    assert after["occlusion"].eq(-1).all()


def covered(share: float, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    white = torch.full((32, PACKED, PACKED, 3), 255, dtype=torch.uint8)
    spec = dataclasses.replace(STILL, occlusion_share=share)
    return augment(white, labels, spec=spec, margin=MARGIN, out_px=OUT, seed=1, epoch=0, ids=torch.arange(32))


def test_a_patch_covers_a_landmark_and_sets_the_occlusion_label() -> None:
    pictures, labels = covered(1.0, {"landmarks5": faces(2, 32), "occlusion": torch.zeros(32, dtype=torch.int64)})
    touched = (pictures < 255).any(dim=1)  # (B, S, S)
    at = (labels["landmarks5"] * OUT).long().clamp(0, OUT - 1)
    on_a_point = torch.stack([touched[torch.arange(32), at[:, k, 1], at[:, k, 0]] for k in range(5)]).any(dim=0)
    assert on_a_point.all()
    assert labels["occlusion"].eq(1).all()
    area = touched.float().mean(dim=(1, 2))
    # Sides are 0.08 to 0.4 of the crop, one pixel of 64 more or less.
    assert area.min() >= (0.08 - 1 / OUT) ** 2
    assert area.max() <= (0.4 + 1 / OUT) ** 2


def test_without_a_patch_nothing_is_covered_twin() -> None:
    pictures, labels = covered(0.0, {"landmarks5": faces(2, 32), "occlusion": torch.zeros(32, dtype=torch.int64)})
    assert pictures.eq(255).all()
    assert labels["occlusion"].eq(0).all()


def test_patches_need_no_landmarks() -> None:
    pictures, _ = covered(1.0, {})
    assert (pictures < 255).any(dim=1).flatten(1).any(dim=1).all()


def test_the_share_of_covered_samples_is_the_recipes() -> None:
    pictures, labels = covered(0.4, {"occlusion": torch.zeros(32, dtype=torch.int64)})
    touched = (pictures < 255).flatten(1).any(dim=1)
    assert labels["occlusion"].bool().equal(touched)
    assert 0 < int(touched.sum()) < 32


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # The first draw of each test is the same; brightness moves all levels by one amount.
        ({"brightness": 0.1}, lambda before, after: (after - before).flatten(1).std(dim=1).max() <= 0.5),
        # Exposure multiplies all levels by one factor: what they were to each other they stay.
        ({"exposure": 0.3}, lambda before, after: (after / before).flatten(1).std(dim=1).max() <= 0.005),
        # Contrast leaves mid-grey where it is and keeps the order of levels.
        ({"contrast": 0.3}, lambda before, after: ((after - 128).sign() * (before - 128).sign() >= 0).all()),
        # Saturation leaves the luma where it is, up to rounding of three channels.
        ({"saturation": 0.3}, lambda before, after: (luma(after) - luma(before)).abs().max() <= 1.0),
    ],
)
def test_light_changes_what_it_says(change: dict[str, float], expected) -> None:
    levels = torch.randint(90, 166, (8, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()
    spec = dataclasses.replace(STILL, **change)
    after, _ = augment(levels, {}, spec=spec, margin=1.0, out_px=16, seed=0, epoch=0, ids=torch.arange(8))
    before = levels.permute(0, 3, 1, 2).float()
    assert not after.equal(before)
    assert expected(before, after)


def test_colours_are_mixed_as_written_out() -> None:
    pictures = noise(3, side=16).numpy()
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64) * 0.4
    matrices[:, :, 3] *= 50.0

    def distance(matrices: Tensor) -> float:
        mixed = pictures.copy()
        _mix_colours(mixed, matrices)
        return float(np.abs(mixed - expected).max())

    each = matrices.numpy()
    expected = np.clip(np.einsum("bhwc,bdc->bhwd", pictures, each[:, :, :3]) + each[:, None, None, :, 3], 0.0, 255.0)
    # Half a level of rounding, and factors in 1024ths: three of them are off by up to 255 / 2048 level each.
    assert distance(matrices) <= 0.5 + 3 * 255 / 2048
    assert distance(torch.roll(matrices, 1, dims=0)) > 10.0, "the twin: each by its neighbour's"


@pytest.mark.parametrize("mirror_share", [0.0, 1.0])
def test_slanted_landmarks_land_on_the_same_pixels(mirror_share: float) -> None:
    points = faces(3)
    spec = dataclasses.replace(STILL, shear_deg=20.0, mirror_share=mirror_share)
    pictures, labels = moved(points, 3, spec=spec)
    error_px = (expected_centres(pictures, labels) - labels["landmarks5"][:, :3]).abs().max() * OUT
    assert error_px < 0.1  # as in test_augmented_landmarks_land_on_the_same_pixels
    _, straight = moved(points, 3, spec=dataclasses.replace(spec, shear_deg=0.0))
    assert (straight["landmarks5"] - labels["landmarks5"])[..., 0].abs().max() > 0.03  # the twin: no slant
    assert (straight["landmarks5"] - labels["landmarks5"])[..., 1].abs().max() < 1e-6  # a slant moves along x alone


def test_hue_turns_colours_and_leaves_grey_and_luma() -> None:
    spec = dataclasses.replace(STILL, hue=0.3)

    def turned(images: Tensor) -> Tensor:
        return augment(images, {}, spec=spec, margin=1.0, out_px=16, seed=0, epoch=0, ids=torch.arange(8))[0]

    grey = torch.full((8, 16, 16, 3), 90, dtype=torch.uint8)
    assert (turned(grey) - 90.0).abs().max() == 0.0
    colour = grey.clone()
    colour[..., 0] = 120
    changed = turned(colour)
    assert (changed - colour.permute(0, 3, 1, 2)).abs().max() > 10.0
    before = 90.0 + 30.0 * 0.299
    assert (luma(changed) - before).abs().max() < 1.0  # each channel is rounded by at most a half


def test_beyond_the_crop_it_is_white_or_repeated_as_the_recipe_says() -> None:
    black = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)

    def shown(border: str) -> Tensor:
        spec = dataclasses.replace(STILL, scale=(1.5, 1.5), border=border)
        return augment(black, {}, spec=spec, margin=1.0, out_px=32, seed=0, epoch=0, ids=torch.arange(4))[0]

    assert shown("repeat").max() == 0.0
    white = shown("white")
    assert (white[:, :, :3] == 255.0).all()
    assert (white[:, :, 12:20, 12:20] == 0.0).all()


def test_exposure_is_a_factor_up_to_its_amount_and_stops_at_white() -> None:
    spec = dataclasses.replace(STILL, exposure=0.3)
    levels = torch.tensor([20, 100, 250], dtype=torch.uint8).repeat_interleave(3).view(1, 1, 3, 3).repeat(64, 1, 1, 1)
    pictures = levels.repeat(1, 3, 1, 1)  # (64, 3, 3, 3): three columns of one grey each
    after, _ = augment(pictures, {}, spec=spec, margin=1.0, out_px=3, seed=0, epoch=0, ids=torch.arange(64))
    factors = after[:, 0, 1] / torch.tensor([20.0, 100.0, 250.0])
    assert factors[:, 1].min() >= 0.69
    assert 1.25 < factors[:, 1].max() <= 1.31
    assert factors[:, 1].min() < 0.75
    assert after.max() == 255.0
    shifted, _ = augment(
        pictures,
        {},
        spec=dataclasses.replace(STILL, brightness=0.3),
        margin=1.0,
        out_px=3,
        seed=0,
        epoch=0,
        ids=torch.arange(64),
    )
    moved = shifted[:, 0, 1] - torch.tensor([20.0, 100.0, 250.0])
    assert (moved[:, 0] - moved[:, 1]).abs().median() <= 1.0  # the twin: brightness is a shift, the same for all levels
    assert (after[:, 0, 1, 1] - 100.0).abs().mean() > 3.0 * (after[:, 0, 1, 0] - 20.0).abs().mean()


def test_the_transforms_of_the_attribute_notes_are_a_recipe_of_their_own() -> None:
    """RandomCrop 112 of 128, flip, jitter .3, affine 20 degrees, .1, .8 to 1.2, no shear, no hue, white beyond."""
    spec = AugmentSpec(
        mirror_share=0.5,
        brightness=0.0,
        exposure=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.0,
        rotation_deg=20.0,
        translation=0.1,
        scale=(0.8, 1.2),
        shear_deg=0.0,
        border="white",
        blur_share=0.0,
        jpeg_share=0.0,
        occlusion_share=0.0,
    )
    images, labels = moved(faces(1), 1, spec=spec)
    assert images.shape == (16, 3, OUT, OUT)
    assert torch.isfinite(labels["landmarks5"]).all()
    packaged = load_recipe("transforms-notes").augment
    assert (packaged.exposure, packaged.brightness, packaged.border) == (spec.exposure, spec.brightness, spec.border)


def luma(pictures: Tensor) -> Tensor:
    return (pictures * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1)


def naive_blur(picture: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    height, width = picture.shape[1:]
    out = np.zeros_like(picture, dtype=np.float64)
    for row in range(height):
        for column in range(width):
            for a, dy in zip(weights, offsets, strict=True):
                for b, dx in zip(weights, offsets, strict=True):
                    out[:, row, column] += (
                        a * b * picture[:, np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)]
                    )
    return out


@pytest.mark.parametrize(
    ("dtype", "most"),
    # float32 sums of 49 terms up to 255; whole numbers are rounded once.
    [(np.float32, 1e-3), (np.uint8, 0.501)],
)
def test_blur_equals_the_naive_gaussian(dtype: type, most: float) -> None:
    pictures = noise(3, side=9).numpy().astype(dtype)
    blurred = pictures.copy()
    blur(blurred, torch.tensor([0, 2]), torch.tensor([0.5, 1.2], dtype=torch.float64), largest_px=1.2)

    def distance(place: int, sigma: float) -> float:
        expected = naive_blur(pictures[place].transpose(2, 0, 1), sigma, 3)
        return float(np.abs(blurred[place].transpose(2, 0, 1) - expected).max())

    assert distance(0, 0.5) <= most
    assert distance(2, 1.2) <= most
    assert (blurred[1] == pictures[1]).all()  # not among the chosen
    assert distance(0, 0.6) > most


def photo() -> np.ndarray:
    """(48, 48, 3) smooth colours with some grain: what JPEG is made for."""
    y, x = np.mgrid[0:48, 0:48] / 48
    smooth = np.stack([200 * x + 30, 150 * y + 60, 128 + 90 * np.sin(6 * x * y)], axis=-1)
    grain = np.random.default_rng(0).normal(0, 6, smooth.shape)
    return np.clip(smooth + grain, 0, 255).round().astype(np.uint8)


def as_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(file)).astype(np.float64)


def compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    pictures = picture[None].copy()
    compress(pictures, torch.tensor([0]), torch.tensor([float(quality)]))
    return pictures[0].astype(np.float64)


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_compression_equals_a_real_jpeg_file(quality: int) -> None:
    difference = np.abs(compressed(photo(), quality) - as_jpeg(photo(), quality)).mean()
    # Measured 0.4 to 0.9 grey levels: libjpeg's integer transform and colour tables round on their own.
    assert difference < 1.0


def test_compression_differs_from_a_file_of_another_quality_twin() -> None:
    assert np.abs(compressed(photo(), 50) - as_jpeg(photo(), 20)).mean() > 1.0


def test_compression_takes_sides_that_are_no_multiple_of_8() -> None:
    pictures = noise(3, side=20).numpy()
    before = pictures.copy()
    compress(pictures, torch.tensor([0, 1]), torch.tensor([90.0, 20.0]))
    assert [(now != then).any() for now, then in zip(pictures, before, strict=True)] == [True, True, False]


def naive_hash(seed: int, epoch: int, sample: int, draw: int) -> int:
    mask, weyl = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    state = mix(seed & mask)
    state = mix((state + epoch * weyl) & mask)
    state = mix((state + sample * weyl) & mask)
    return mix((state + (draw + 1) * weyl) & mask)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 10_000), st.integers(0, 2**40))
def test_random_bits_equal_the_written_out_hash(seed: int, epoch: int, sample: int) -> None:
    bits = hash64(seed, epoch, torch.tensor([sample]), draws=3)[0].tolist()
    assert [value & (2**64 - 1) for value in bits] == [naive_hash(seed, epoch, sample, draw) for draw in range(3)]
    assert bits[0] & (2**64 - 1) != naive_hash(seed, epoch, sample + 1, 0)


def test_draws_are_uniform_and_uncorrelated() -> None:
    drawn = uniform(0, 0, torch.arange(20_000), draws=4)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # Standard error of a mean of 20000 uniform numbers is 0.002, of a correlation 0.007: five of each.
    assert (drawn.mean(dim=0) - 0.5).abs().max() < 0.0102
    assert (torch.corrcoef(drawn.T) - torch.eye(4)).abs().max() < 0.035
    assert (uniform(0, 1, torch.arange(20_000), draws=1)[:, 0] - drawn[:, 0]).abs().max() > 0.5


@pytest.mark.parametrize(("aside_px", "held"), [(0.0, True), (0.1, False)], ids=["", "twin"])
@pytest.mark.parametrize("border", ["repeat", "white"])
def test_a_look_equals_bilinear_sampling_of_the_packed_crop(border: str, aside_px: float, held: bool) -> None:
    images, ids = dots(faces(4)), torch.arange(16)
    spec = dataclasses.replace(MOVING, scale=(1.2, 1.6), shear_deg=10.0, border=border)
    seen, _ = augment(images, {}, spec=spec, margin=MARGIN, out_px=OUT, seed=5, epoch=1, ids=ids)
    draw = uniform(5, 1, ids, draws=_DRAWS)
    to_packed, _ = _views(draw, draw[:, _MIRROR] < spec.mirror_share, spec=spec, margin=MARGIN)
    steps = (torch.arange(OUT) + 0.5) / OUT
    at = torch.stack([steps.expand(OUT, OUT), steps[:, None].expand(OUT, OUT), torch.ones(OUT, OUT)], dim=-1).double()
    grid = torch.einsum("nij,hwj->nhwi", to_packed, at) * 2.0 - 1.0 + 2.0 * aside_px / PACKED
    level = 255.0 if border == "white" else 0.0
    wanted = level + torch.nn.functional.grid_sample(
        images.permute(0, 3, 1, 2).double() - level,
        grid,
        padding_mode="zeros" if border == "white" else "border",
        align_corners=False,
    )
    # Whole levels are up to 0.5 off; places in 32nds of a pixel up to 1/64 along x and along y, of a dot that rises by
    # 109 levels a pixel along the diagonal (1.7 levels), or of white beside black, by 255 along both (8.0).
    assert (float((seen - wanted).abs().max()) < (8.5 if border == "white" else 2.2)) is held


def test_large_crops_are_reduced_before_resampling() -> None:
    stripes = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small, _ = augment(stripes, {}, spec=STILL, margin=1.0, out_px=32, seed=0, epoch=0, ids=torch.arange(1))
    assert (small - 127.5).abs().max() <= 1.0  # whole numbers on either side of the mean of 0 and 255


def test_landmarks_without_a_known_mirror_are_refused_only_when_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeface.tasks import MIRROR_POINTS

    monkeypatch.delitem(MIRROR_POINTS, 106, raising=False)
    labels = {"landmarks106": torch.rand(2, 106, 2)}
    with pytest.raises(UnsupportedError, match="landmarks106"):
        augment(noise(2), labels, spec=MOVING, margin=1.3, out_px=16, seed=0, epoch=0, ids=torch.arange(2))
    augment(noise(2), labels, spec=STILL, margin=1.3, out_px=16, seed=0, epoch=0, ids=torch.arange(2))
