"""Training crops vary: geometry, light, patches, blur and compression, on whole batches.

Every random number is a hash of (seed, epoch, sample id, draw number), so a sample's picture does not depend on the
batch it is in, on the number of workers, or on where a run was resumed. For the same reason OpenCV is handed one
picture at a time, and products of matrices over a batch are written out.

The order is that of a camera: the face moves (one bilinear resampling), the light changes, something covers the face,
the lens blurs, the file is compressed. The result is whole numbers from 0 to 255, as a deployed network will see.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.data.derive import EYE_CENTRES
from edgeface.data.geometry import apply_matrix, relabel_mirrored, require_mirror
from edgeface.specs import AugmentSpec
from edgeface.tasks import TASKS, Kind

# Draw numbers; a choice keeps its number for ever, so that adding one does not change the others.
(
    _ROTATION,
    _SCALE,
    _SHIFT_X,
    _SHIFT_Y,
    _MIRROR,
    _BRIGHTNESS,
    _CONTRAST,
    _SATURATION,
    _COVER,
    _COVER_POINT,
    _COVER_WIDTH,
    _COVER_HEIGHT,
    _COVER_RED,
    _COVER_GREEN,
    _COVER_BLUE,
    _COVER_GRAIN,
    _BLUR,
    _BLUR_SIGMA,
    _COMPRESS,
    _QUALITY,
    _COVER_X,
    _COVER_Y,
    _HUE,
    _SHEAR,
    _EXPOSURE,
) = range(25)
_DRAWS = 25

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG uses it
_PATCH_SIDE = (0.08, 0.4)  # width and height of a covering patch, in output crop sides
_GRAIN = 96.0  # largest noise amplitude inside a patch, grey levels; half of the patches are flat
_LOWEST_QUALITY, _HIGHEST_QUALITY = 20, 95


def hash64(seed: int, epoch: int, ids: Tensor, *, draws: int) -> Tensor:
    """Counter-based random bits.

    Args:
        seed: Any integer.
        epoch: 0 or more.
        ids: (B,) int64 sample ids.
        draws: Number of draws per sample.

    Returns:
        (B, draws) int64 with 64 random bits each.

    Source:
        The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), chained over the four counters.
    """
    state = _mix(torch.tensor([_signed(seed)]))
    state = _mix(state + _signed(epoch * _WEYL))
    state = _mix(state + ids * _signed(_WEYL))  # (B,)
    counters = (torch.arange(draws) + 1) * _signed(_WEYL)
    return _mix(state[:, None] + counters)


def uniform(seed: int, epoch: int, ids: Tensor, *, draws: int) -> Tensor:
    """(B, draws) float64 in [0, 1), from `hash64`."""
    bits = hash64(seed, epoch, ids, draws=draws)
    return _logical_shift(bits, 11).double() * 2.0**-53


def augment(
    images: Tensor,
    labels: dict[str, Tensor],
    *,
    spec: AugmentSpec,
    margin: float,
    out_px: int,
    seed: int,
    epoch: int,
    ids: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A new look at packed crops.

    Args:
        images: (B, S, S, 3) uint8 RGB, packed with `margin`.
        labels: Task name to labels with B rows; landmarks in sides of the packed crop.
        spec: How much crops vary.
        margin: Side of the packed crops over the side of the nominal crop.
        out_px: Side of the result in pixels.
        seed: With `epoch` and `ids`, decides every draw.
        epoch: 0 or more.
        ids: (B,) int64 sample ids.

    Returns:
        (B, 3, out_px, out_px) float32 with whole values 0 to 255, and the labels with landmarks in sides of the OUTPUT
        crop (outside 0 to 1 where the point left it), left and right exchanged in mirrored samples, a known
        `occlusion` label set to 1 where a patch was placed, and of `eyes_occluded` the eye that it covers.

    Raises:
        UnsupportedError: Mirroring of landmarks whose mirrored order is not known.
    """
    if spec.mirror_share > 0.0:
        for name in labels:
            require_mirror(name)
    draw = uniform(seed, epoch, ids, draws=_DRAWS)
    mirrored = draw[:, _MIRROR] < spec.mirror_share
    to_packed, to_output = _views(draw, mirrored, spec=spec, margin=margin)
    pictures = _resample(images.numpy(), to_packed, out_px=out_px, margin=margin, border=spec.border)

    moved = dict(labels)
    for name, values in labels.items():
        if TASKS[name].kind is Kind.LANDMARKS:
            moved[name] = apply_matrix(to_output, values.double()).float()
    if spec.mirror_share > 0.0:
        moved = relabel_mirrored(moved, mirrored)

    _change_light(pictures, draw, spec=spec)
    if spec.occlusion_share > 0.0:
        chosen = torch.nonzero(draw[:, _COVER] < spec.occlusion_share).squeeze(1)
        if len(chosen):
            centres, halves = _patch_centres(moved, draw, chosen), _patch_halves(draw, chosen)
            _cover(pictures, chosen, centres, halves, draw)
            if "occlusion" in moved:
                occlusion = moved["occlusion"].clone()
                occlusion[chosen] = torch.where(occlusion[chosen] >= 0, 1, occlusion[chosen])
                moved["occlusion"] = occlusion
            if "eyes_occluded" in moved:
                eyes = moved["eyes_occluded"].clone()
                under = _eyes_under(moved, chosen, centres, halves)
                eyes[chosen] = torch.where((eyes[chosen] >= 0) & under, 1, eyes[chosen])
                moved["eyes_occluded"] = eyes
    if spec.blur_share > 0.0 and spec.blur_px > 0.0:
        chosen = torch.nonzero(draw[:, _BLUR] < spec.blur_share).squeeze(1)
        if len(chosen):
            blur(pictures, chosen, draw[chosen, _BLUR_SIGMA] * spec.blur_px, largest_px=spec.blur_px)
    if spec.jpeg_share > 0.0:
        chosen = torch.nonzero(draw[:, _COMPRESS] < spec.jpeg_share).squeeze(1)
        if len(chosen):
            steps = _HIGHEST_QUALITY - _LOWEST_QUALITY + 1
            compress(pictures, chosen, _LOWEST_QUALITY + torch.floor(draw[chosen, _QUALITY] * steps))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), moved


def move_answers(
    answers: dict[str, Tensor], *, spec: AugmentSpec, margin: float, seed: int, epoch: int, ids: Tensor
) -> dict[str, Tensor]:
    """A teacher's answers for the packed crops, as they hold for the views that `augment` makes of them.

    Args:
        answers: Task name to (B, K, 2) points in sides of the packed crop, or to raw outputs; NaN where there are none.
        spec: As for `augment`, and so are the rest.
        margin: Side of the packed crops over the side of the nominal crop.
        seed: With `epoch` and `ids`, decides every draw.
        epoch: 0 or more.
        ids: (B,) int64 sample ids.

    Returns:
        The same; points in sides of the output crop, and the logits of left and right exchanged in mirrored samples.
        What light, patches, blur and compression would have changed in the answers is not in them.
    """
    draw = uniform(seed, epoch, ids, draws=_DRAWS)
    mirrored = draw[:, _MIRROR] < spec.mirror_share
    _, to_output = _views(draw, mirrored, spec=spec, margin=margin)
    moved = {}
    for name, values in answers.items():
        if TASKS[name].kind is Kind.LANDMARKS:
            points = apply_matrix(to_output, values.double()).float()
            moved[name] = relabel_mirrored({name: points}, mirrored)[name] if spec.mirror_share > 0.0 else points
        elif TASKS[name].mirror:
            moved[name] = torch.where(mirrored[:, None], values[:, list(TASKS[name].mirror)], values)
        else:
            moved[name] = values
    return moved


def _views(draw: Tensor, mirrored: Tensor, *, spec: AugmentSpec, margin: float) -> tuple[Tensor, Tensor]:
    """Matrices (B, 2, 3) float64 from output to packed crop sides, and back."""

    def spread(index: int, amount: float) -> Tensor:
        return (draw[:, index] * 2.0 - 1.0) * amount

    angle = spread(_ROTATION, math.radians(spec.rotation_deg))
    low, high = spec.scale
    # Drawn on a logarithmic scale: half as large is as likely as twice as large.
    size = low * torch.exp(draw[:, _SCALE] * math.log(high / low))
    x, y = spread(_SHIFT_X, spec.translation), spread(_SHIFT_Y, spec.translation)
    flip = torch.where(mirrored, -1.0, 1.0).double()
    cos, sin = torch.cos(angle), torch.sin(angle)

    # packed = 0.5 + (R · (flip · size · (output − 0.5)) + shift) / margin
    a, b = cos * size * flip / margin, -sin * size / margin
    c, d = sin * size * flip / margin, cos * size / margin
    slant = torch.tan(spread(_SHEAR, math.radians(spec.shear_deg)))
    if spec.shear_deg > 0.0:  # output · (1, slant; 0, 1) first
        b, d = b + a * slant, d + c * slant
    e, f = x / margin, y / margin
    forward = torch.stack([a, b, 0.5 + e - 0.5 * (a + b), c, d, 0.5 + f - 0.5 * (c + d)], dim=1)
    # output = 0.5 + flip · Rᵀ · ((packed − 0.5) · margin − shift) / size
    p, q = flip * cos * margin / size, flip * sin * margin / size
    r, s = -sin * margin / size, cos * margin / size
    if spec.shear_deg > 0.0:
        p, q = p - slant * r, q - slant * s
    u, v = 0.5 + e, 0.5 + f
    back = torch.stack([p, q, 0.5 - p * u - q * v, r, s, 0.5 - r * u - s * v], dim=1)
    return forward.reshape(-1, 2, 3), back.reshape(-1, 2, 3)


def _resample(
    images: NDArray[np.uint8], to_packed: Tensor, *, out_px: int, margin: float, border: str
) -> NDArray[np.uint8]:
    """(B, out_px, out_px, 3) view of (B, S, S, 3) crops."""
    import cv2

    shrink = int(images.shape[1] / (margin * out_px))
    if shrink >= 2:
        # Bilinear resampling looks at neighbours only; a larger step would alias.
        side = -(-images.shape[1] // shrink)
        images = np.stack([cv2.resize(each, (side, side), interpolation=cv2.INTER_AREA) for each in images])
    # OpenCV counts pixels from the centre of the first one, the matrices count sides from the outer edge.
    scale = images.shape[1] / out_px
    linear = to_packed[:, :, :2] * scale
    offset = to_packed[:, :, 2:] * images.shape[1] + (linear.sum(dim=2, keepdim=True) - 1.0) * 0.5
    matrices = torch.cat([linear, offset], dim=2).numpy()
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    beyond = cv2.BORDER_CONSTANT if border == "white" else cv2.BORDER_REPLICATE
    views = np.empty((len(images), out_px, out_px, 3), np.uint8)
    # One by one in whole numbers, which is three times as fast as grid_sample on the batch.
    for image, matrix, view in zip(images, matrices, views, strict=True):
        cv2.warpAffine(image, matrix, (out_px, out_px), view, how, beyond, (255.0, 255.0, 255.0))
    return views


def _change_light(pictures: NDArray[np.uint8], draw: Tensor, *, spec: AugmentSpec) -> None:
    """Hue, exposure, brightness, contrast about mid-grey and saturation, in place on (B, H, W, 3)."""

    def amount(index: int, largest: float) -> Tensor:
        return ((draw[:, index] * 2.0 - 1.0) * largest)[:, None, None]

    same, grey = torch.eye(3).double(), torch.tensor(_LUMA).double()
    none = torch.zeros(len(pictures), 3, 1).double()
    if spec.hue > 0.0:
        _mix_colours(pictures, torch.cat([_hue_turns(amount(_HUE, 2.0 * math.pi * spec.hue)), none], dim=2))
    if spec.exposure > 0.0:
        _mix_colours(pictures, torch.cat([(1.0 + amount(_EXPOSURE, spec.exposure)) * same, none], dim=2))
    contrast, colour = 1.0 + amount(_CONTRAST, spec.contrast), 1.0 + amount(_SATURATION, spec.saturation)
    shift = 128.0 * (1.0 - contrast) + 255.0 * amount(_BRIGHTNESS, spec.brightness)
    _mix_colours(pictures, torch.cat([contrast * (colour * same + (1.0 - colour) * grey), none + shift], dim=2))


def _hue_turns(angle: Tensor) -> Tensor:
    """(B, 3, 3) turns of the plane of colour differences by (B, 1, 1) radians; a grey pixel and every luma stay.

    JPEG's plane, not HSV's circle, where a dark pixel's hue is mostly noise.
    """
    same, luma = torch.eye(3).double(), torch.tensor(_LUMA).double()
    blueness, redness = (same[2] - luma) / 1.772, (same[0] - luma) / 1.402
    cos, sin = torch.cos(angle), torch.sin(angle)
    blueness, redness = cos * blueness - sin * redness, sin * blueness + cos * redness  # (B, 1, 3)
    red, blue = luma + redness * 1.402, luma + blueness * 1.772
    green = luma - redness * (1.402 * _LUMA[0] / _LUMA[1]) - blueness * (1.772 * _LUMA[2] / _LUMA[1])
    return torch.cat([red, green, blue], dim=1)


def _mix_colours(pictures: NDArray[np.uint8], matrices: Tensor) -> None:
    """Each pixel's colours by the (3, 4) matrix of its picture, last column added, in place on (B, H, W, 3)."""
    import cv2

    for picture, matrix in zip(pictures, matrices.float().numpy(), strict=True):
        cv2.transform(picture, matrix, picture)


def _patch_centres(labels: dict[str, Tensor], draw: Tensor, chosen: Tensor) -> Tensor:
    """(n, 2) centres in output crop sides: a random known landmark of each sample, or anywhere without one."""
    anywhere = draw[chosen][:, [_COVER_X, _COVER_Y]]
    sets = [labels[name][chosen] for name in sorted(labels) if TASKS[name].kind is Kind.LANDMARKS]
    if not sets:
        return anywhere.float()
    points = torch.cat(sets, dim=1)  # (n, K, 2)
    known = torch.isfinite(points).all(dim=2)
    # The r-th known point is the first whose running count exceeds r.
    wanted = torch.floor(draw[chosen, _COVER_POINT] * known.sum(dim=1)).long()
    place = (known.cumsum(dim=1) > wanted[:, None]).int().argmax(dim=1)
    at = points[torch.arange(len(chosen)), place]
    # A landmark that left the crop would put the patch where it covers nothing.
    return torch.where(known.any(dim=1)[:, None], at.clamp(0.0, 1.0), anywhere.float())


def _patch_halves(draw: Tensor, chosen: Tensor) -> Tensor:
    """(n, 2) half widths and half heights of the patches, in output crop sides."""
    low, high = _PATCH_SIDE
    return ((low + (high - low) * draw[chosen][:, [_COVER_WIDTH, _COVER_HEIGHT]]) / 2.0).float()


def _eyes_under(labels: dict[str, Tensor], chosen: Tensor, centres: Tensor, halves: Tensor) -> Tensor:
    """(n, 2) bool: whether the centre of the left and of the right eye lies under the patch."""
    under = torch.zeros(len(chosen), 2, dtype=torch.bool)
    for name in sorted(labels):
        if TASKS[name].kind is Kind.LANDMARKS:
            points = labels[name][chosen]
            eyes = torch.stack([points[:, list(ends)].mean(dim=1) for ends in EYE_CENTRES[TASKS[name].points]], dim=1)
            under |= ((eyes - centres[:, None]).abs() <= halves[:, None]).all(dim=2)  # of no landmarks: NaN, not under
    return under


def _cover(pictures: NDArray[np.uint8], chosen: Tensor, centres: Tensor, half: Tensor, draw: Tensor) -> None:
    """Puts a rectangle of one colour, flat or grainy, over each chosen picture of (B, H, W, 3), in place."""
    side = pictures.shape[1]
    steps = (torch.arange(side).float() + 0.5) / side
    inside = (steps - centres[:, :, None]).abs() <= half[:, :, None]  # (n, 2, S): along x, along y
    first, count = inside.int().argmax(dim=2), inside.sum(dim=2)
    colours = (draw[chosen][:, [_COVER_RED, _COVER_GREEN, _COVER_BLUE]] * 255.0).float().numpy()
    grain = ((draw[chosen, _COVER_GRAIN] * 2.0 - 1.0).clamp(min=0.0) * _GRAIN).float().tolist()
    for place, corner, size, colour, rough in zip(
        chosen.tolist(), first.tolist(), count.tolist(), colours, grain, strict=True
    ):
        across, down = (slice(begin, begin + length) for begin, length in zip(corner, size, strict=True))
        patch = colour + np.float32(rough) * _field(side)[down, across]
        pictures[place, down, across] = patch.clip(0.0, 255.0).round()


@cache
def _field(side: int) -> NDArray[np.float32]:
    """(side, side, 1) noise from -1 to 1, one for all: patches differ in place, size and colour."""
    field: NDArray[np.float32] = (uniform(0, 0, torch.arange(side), draws=side).float() * 2.0 - 1.0).numpy()[..., None]
    return field


def blur(pictures: NDArray[Any], chosen: Tensor, sigma: Tensor, *, largest_px: float) -> None:
    """Gaussian blur with its own width for each chosen picture, in place; the border is repeated.

    Args:
        pictures: (B, H, W, 3) uint8, or float32.
        chosen: (n,) rows.
        sigma: (n,) standard deviations in pixels, 0 to `largest_px`.
        largest_px: Decides the number of taps.
    """
    import cv2

    taps = 2 * max(1, math.ceil(2.5 * largest_px)) + 1
    for place, width in zip(chosen.tolist(), sigma.clamp(min=1e-3).tolist(), strict=True):
        # GaussianBlur takes up to twice as long for whole numbers, and is up to 1.3 levels off.
        weights = cv2.getGaussianKernel(taps, width)
        cv2.sepFilter2D(pictures[place], -1, weights, weights, pictures[place], borderType=cv2.BORDER_REPLICATE)


def compress(pictures: NDArray[np.uint8], chosen: Tensor, quality: Tensor) -> None:
    """Leave of each chosen picture what a JPEG file of that quality keeps, without chroma subsampling.

    Args:
        pictures: (B, H, W, 3).
        chosen: (n,) rows.
        quality: (n,) 1 to 100, as libjpeg counts it.
    """
    import cv2

    whole = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_QUALITY]
    for place, wanted in zip(chosen.tolist(), quality.tolist(), strict=True):
        # imencode takes the first colour for blue.
        _, file = cv2.imencode(".jpg", cv2.cvtColor(pictures[place], cv2.COLOR_RGB2BGR), [*whole, int(wanted)])
        pictures[place] = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR_RGB))


_WEYL = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd


def _signed(value: int) -> int:
    """The int64 with the same 64 low bits."""
    low = value & (2**64 - 1)
    return low - 2**64 if low >= 2**63 else low


def _logical_shift(bits: Tensor, places: int) -> Tensor:
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _logical_shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _logical_shift(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _logical_shift(state, 31)
