"""Training crops vary: geometry, light, patches, blur and compression, on whole batches.

Every random number is a hash of (seed, epoch, sample id, draw number), so a sample's picture does not depend on the
batch it is in, on the number of workers, or on where a run was resumed. For the same reason no arithmetic here depends
on the order in which a library adds: products of matrices are written out, or are exact in whole numbers.

The order is that of a camera: the face moves (one bilinear resampling), the light changes, something covers the face,
the lens blurs, the file is compressed. The result is whole numbers from 0 to 255, as a deployed network will see.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
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

# Quantization tables of ITU-T T.81, annex K.1 and K.2.
_LUMA_TABLE = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 32),
)


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
    pictures = _resample(images, to_packed, out_px=out_px, margin=margin, border=spec.border)

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
            sigma = draw[chosen, _BLUR_SIGMA] * spec.blur_px
            pictures[chosen] = blur(pictures[chosen], sigma, largest_px=spec.blur_px)
    pictures.clamp_(0.0, 255.0).round_()
    if spec.jpeg_share > 0.0:
        chosen = torch.nonzero(draw[:, _COMPRESS] < spec.jpeg_share).squeeze(1)
        if len(chosen):
            steps = _HIGHEST_QUALITY - _LOWEST_QUALITY + 1
            quality = _LOWEST_QUALITY + torch.floor(draw[chosen, _QUALITY] * steps)
            pictures[chosen] = compress(pictures[chosen], quality)
    return pictures, moved


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


def _resample(images: Tensor, to_packed: Tensor, *, out_px: int, margin: float, border: str) -> Tensor:
    """(B, 3, out_px, out_px) float32 view of (B, S, S, 3) uint8 crops."""
    pictures = images.float().permute(0, 3, 1, 2)  # a view: what is sampled need not be copied into planes first
    shrink = int(images.shape[1] / (margin * out_px))
    if shrink >= 2:
        # Bilinear resampling looks at neighbours only; a larger step would alias.
        pictures = F.interpolate(pictures, size=-(-images.shape[1] // shrink), mode="area")
    steps = (torch.arange(out_px).float() + 0.5) / out_px
    # grid_sample counts from -1 to 1 over the outer edges of the picture (align_corners=False).
    matrix = (to_packed * 2.0 - torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)).float()
    grid = torch.empty(len(images), out_px, out_px, 2)
    for axis in range(2):
        along_x = matrix[:, axis, 0, None] * steps  # (B, W)
        along_y = matrix[:, axis, 1, None] * steps + matrix[:, axis, 2, None]  # (B, H)
        torch.add(along_x[:, None, :], along_y[:, :, None], out=grid[..., axis])
    if border == "white":
        pictures = F.grid_sample(pictures - 255.0, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return pictures + 255.0
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _change_light(pictures: Tensor, draw: Tensor, *, spec: AugmentSpec) -> None:
    """Hue, exposure, brightness, contrast about mid-grey and saturation, in place on (B, 3, H, W)."""

    def column(index: int, amount: float) -> Tensor:
        return ((draw[:, index] * 2.0 - 1.0) * amount).float()[:, None, None, None]

    if spec.hue > 0.0:
        _turn_hue(pictures, column(_HUE, 2.0 * math.pi * spec.hue))
    if spec.exposure > 0.0:
        pictures.mul_(1.0 + column(_EXPOSURE, spec.exposure)).clamp_(max=255.0)
    contrast = 1.0 + column(_CONTRAST, spec.contrast)
    if spec.saturation > 0.0:
        colour = 1.0 + column(_SATURATION, spec.saturation)
        grey = pictures[:, 0] * _LUMA[0]
        grey += pictures[:, 1] * _LUMA[1]
        grey += pictures[:, 2] * _LUMA[2]
        grey = grey[:, None] * (contrast * (1.0 - colour))
        grey += 128.0 * (1.0 - contrast) + 255.0 * column(_BRIGHTNESS, spec.brightness)
        pictures.mul_(contrast * colour).add_(grey)
    else:
        pictures.mul_(contrast).add_(128.0 * (1.0 - contrast) + 255.0 * column(_BRIGHTNESS, spec.brightness))
    pictures.clamp_(0.0, 255.0)


def _turn_hue(pictures: Tensor, angle: Tensor) -> None:
    """Turns the plane of colour differences by (B, 1, 1, 1) radians, in place; a grey pixel and every luma stay.

    JPEG's plane, not HSV's circle, where a dark pixel's hue is mostly noise.
    """
    red, green, blue = pictures.unbind(1)
    luma = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]).unsqueeze(1)
    blueness, redness = (blue.unsqueeze(1) - luma) / 1.772, (red.unsqueeze(1) - luma) / 1.402
    cos, sin = torch.cos(angle), torch.sin(angle)
    blueness, redness = cos * blueness - sin * redness, sin * blueness + cos * redness
    pictures[:, 0:1] = luma + redness * 1.402
    pictures[:, 1:2] = luma - redness * (1.402 * _LUMA[0] / _LUMA[1]) - blueness * (1.772 * _LUMA[2] / _LUMA[1])
    pictures[:, 2:3] = luma + blueness * 1.772


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


def _cover(pictures: Tensor, chosen: Tensor, centres: Tensor, half: Tensor, draw: Tensor) -> None:
    """Puts a rectangle of one colour, flat or grainy, over each chosen picture of (B, 3, H, W), in place."""
    side = pictures.shape[-1]
    steps = (torch.arange(side).float() + 0.5) / side
    beside = (steps - centres[:, 0, None]).abs() <= half[:, 0, None]  # (n, W)
    above = (steps - centres[:, 1, None]).abs() <= half[:, 1, None]  # (n, H)
    inside = (above[:, :, None] & beside[:, None, :])[:, None]  # (n, 1, H, W)
    colour = (draw[chosen][:, [_COVER_RED, _COVER_GREEN, _COVER_BLUE]] * 255.0).float()[:, :, None, None]
    grain = ((draw[chosen, _COVER_GRAIN] * 2.0 - 1.0).clamp(min=0.0) * _GRAIN).float()[:, None, None, None]
    # One field of noise for all: patches differ in place, size and colour, and a field each would cost the most.
    field = uniform(0, 0, torch.arange(side), draws=side).float() * 2.0 - 1.0
    pictures[chosen] = torch.where(inside, (colour + grain * field).clamp(0.0, 255.0), pictures[chosen])


def blur(pictures: Tensor, sigma: Tensor, *, largest_px: float) -> Tensor:
    """Gaussian blur with its own width for each picture; the border is repeated.

    Args:
        pictures: (n, 3, H, W).
        sigma: (n,) standard deviations in pixels, 0 to `largest_px`.
        largest_px: Decides the number of taps.

    Returns:
        (n, 3, H, W).
    """
    reach = max(1, math.ceil(2.5 * largest_px))
    taps = torch.arange(-reach, reach + 1).double()
    weights = torch.exp(-0.5 * (taps / sigma.double().clamp(min=1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).float()
    for axis in (2, 3):
        length = pictures.shape[axis]
        padded = F.pad(pictures, (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach), mode="replicate")
        total = torch.zeros_like(pictures)
        for tap in range(2 * reach + 1):
            total += padded.narrow(axis, tap, length) * weights[:, tap, None, None, None]
        pictures = total
    return pictures


def compress(pictures: Tensor, quality: Tensor) -> Tensor:
    """What a JPEG file of that quality would keep, without chroma subsampling.

    Args:
        pictures: (n, 3, H, W) whole values 0 to 255.
        quality: (n,) 1 to 100, as libjpeg counts it.

    Returns:
        (n, 3, H, W) whole values 0 to 255.

    Source:
        ITU-T T.81: the 8×8 transform and the tables of annex K, scaled by quality as libjpeg does.
    """
    height, width = pictures.shape[2:]
    padded = F.pad(pictures, (0, -width % 8, 0, -height % 8), mode="replicate")
    red, green, blue = padded.unbind(1)
    luma = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
    planes = torch.stack([luma - 128.0, (blue - luma) / 1.772, (red - luma) / 1.402], dim=1).round_()
    rows, columns = planes.shape[2] // 8, planes.shape[3] // 8
    blocks = planes.reshape(-1, 3, rows, 8, columns, 8).permute(0, 1, 2, 4, 3, 5).reshape(-1, 3, rows * columns, 64)

    transform = _cosines()
    coefficients = (blocks.double() @ transform) * 2.0**-_COSINE_BITS
    q = quality.double()[:, None, None]
    factor = torch.where(q < 50.0, 5000.0 / q, 200.0 - 2.0 * q)
    tables = torch.tensor([_LUMA_TABLE, _CHROMA_TABLE, _CHROMA_TABLE], dtype=torch.float64)
    tables = torch.floor((tables * factor + 50.0) / 100.0).clamp(1.0, 255.0)[:, :, None]  # (n, 3, 1, 64)
    kept = (coefficients / tables).round_().mul_(tables)
    restored = ((kept @ transform.T) * 2.0**-_COSINE_BITS).float()

    planes = restored.reshape(-1, 3, rows, columns, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(planes.shape)
    luma, blueness, redness = planes[:, 0] + 128.0, planes[:, 1], planes[:, 2]
    red, blue = luma + redness * 1.402, luma + blueness * 1.772
    green = luma - redness * (1.402 * _LUMA[0] / _LUMA[1]) - blueness * (1.772 * _LUMA[2] / _LUMA[1])
    out = torch.stack([red, green, blue], dim=1).clamp_(0.0, 255.0).round_()
    return out[:, :, :height, :width]


_COSINE_BITS = 20  # 8-bit pixels × 20-bit basis × 64 terms stay far below float64's exact 2^53


def _cosines() -> Tensor:
    """(64, 64) orthonormal 2-D cosine basis in whole 2^-20ths: block pixels (rows) to coefficients (columns)."""
    place = torch.arange(8).double()
    basis = torch.cos((2.0 * place[:, None] + 1.0) * place[None, :] * (math.pi / 16.0)) * 0.5  # (pixel, frequency)
    basis[:, 0] *= math.sqrt(0.5)
    return torch.round(torch.kron(basis, basis) * 2.0**_COSINE_BITS)


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
