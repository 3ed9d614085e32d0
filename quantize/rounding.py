"""How kernel families round: the part of a chip's int8 arithmetic in which they differ (see quantize/grid.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kernels = Literal["xnnpack", "tflite-builtin", "tflite-builtin-ref"]


def _float32(accumulated: NDArray[np.int64], multiplier: NDArray[np.floating]) -> NDArray[np.int64]:
    """float32(acc)·float32(M), ties to even. Source: XNNPACK, the fp32 requantization of its qs8 kernels."""
    product = accumulated.astype(np.float32) * multiplier.astype(np.float32)
    # Clamping before the cast keeps values beyond int64 defined; the result is clamped to int8 anyway.
    return np.rint(np.clip(product, -(2.0**30), 2.0**30)).astype(np.int64)


def _fixed_point(multiplier: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A multiplier as significand·2^(exponent − 31), the significand an integer in [2^30, 2^31).

    Source:
        TensorFlow Lite, QuantizeMultiplier.
    """
    fraction, exponent = np.frexp(multiplier.astype(np.float64))
    significand = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    carry = significand == 2**31
    significand, exponent = np.where(carry, significand // 2, significand), exponent.astype(np.int64) + carry
    vanishes = exponent < -31
    return np.where(vanishes, 0, significand), np.where(vanishes, 0, exponent)


def _fixed_once(accumulated: NDArray[np.int64], multiplier: NDArray[np.floating]) -> NDArray[np.int64]:
    """Fixed point, one rounding, half up. Source: TensorFlow Lite's single-rounding MultiplyByQuantizedMultiplier."""
    significand, exponent = _fixed_point(multiplier)
    shift = 31 - exponent
    rounded: NDArray[np.int64] = (accumulated * significand + (np.int64(1) << (shift - 1))) >> shift
    return rounded


def _high_product(
    accumulated: NDArray[np.int64], multiplier: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """acc·significand / 2^31 rounded half up, and the right shift that is left to do.

    Source:
        gemmlowp's saturating rounding doubling high multiply, as in Jacob et al., arXiv:1712.05877, section 2.2.
    """
    significand, exponent = _fixed_point(multiplier)
    product = (accumulated << np.maximum(exponent, 0)) * significand
    return (product + 2**30) >> 31, np.maximum(-exponent, 0)


def _fixed_twice(accumulated: NDArray[np.int64], multiplier: NDArray[np.floating]) -> NDArray[np.int64]:
    """Fixed point, rounded at bit 31 and again at the rest, half away from zero.

    Source:
        TensorFlow Lite's MultiplyByQuantizedMultiplier.
    """
    high, shift = _high_product(accumulated, multiplier)
    mask = (np.int64(1) << shift) - 1
    rounded: NDArray[np.int64] = (high >> shift) + ((high & mask) > (mask >> 1) + (high < 0))
    return rounded


def _fixed_twice_up(accumulated: NDArray[np.int64], multiplier: NDArray[np.floating]) -> NDArray[np.int64]:
    """Fixed point, rounded at bit 31 and again at the rest, half up.

    Source:
        Measured: the optimised kernels (ruy) on x86 compute this in every value, and the rule above in all but the
        negative ties.
    """
    high, shift = _high_product(accumulated, multiplier)
    rounded: NDArray[np.int64] = (high + ((np.int64(1) << shift) >> 1)) >> shift
    return rounded


def add_ratios(a_scale: float, b_scale: float, out_scale: float) -> tuple[int, int, int]:
    """a_scale/out_scale and b_scale/out_scale as integers over 2^shift, the larger with 21 bits.

    Source:
        XNNPACK, the parameters of its qs8 add.
    """
    ratios = np.array([a_scale, b_scale], np.float32) / np.float32(out_scale)
    shift = 20 - (int(np.frexp(ratios.max())[1]) - 1)
    first, second = np.rint(ratios.astype(np.float64) * 2.0**shift)
    return int(first), int(second), shift


def _add_float(
    a: NDArray[np.int64], b: NDArray[np.int64], a_scale: float, b_scale: float, out_scale: float
) -> NDArray[np.int64]:
    """Both operands times a fixed-point ratio, one rounding, half up."""
    first, second, shift = add_ratios(a_scale, b_scale, out_scale)
    total: NDArray[np.int64] = a * first + b * second + (1 << (shift - 1))
    rounded: NDArray[np.int64] = total >> shift
    return rounded


def _add_fixed(
    a: NDArray[np.int64], b: NDArray[np.int64], a_scale: float, b_scale: float, out_scale: float
) -> NDArray[np.int64]:
    """Operands scaled up by 2^20, brought to twice the larger scale, added, brought to the output's.

    Source:
        TensorFlow Lite, reference ADD for int8.
    """
    common = 2.0 * max(a_scale, b_scale)
    total = sum(_fixed_twice(x << 20, np.array(scale / common)) for x, scale in ((a, a_scale), (b, b_scale)))
    return _fixed_twice(np.asarray(total), np.array(common / (2.0**20 * out_scale)))


Rounding = Callable[[NDArray[np.int64], NDArray[np.floating]], NDArray[np.int64]]
Add = Callable[[NDArray[np.int64], NDArray[np.int64], float, float, float], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The rounding rules of one kernel family.

    Attributes:
        conv2d: (sums, multiplier) to rounded sums.
        linear: As `conv2d`.
        mean: As `conv2d`.
        add: (a, b, scale of a, scale of b, scale of the result) to rounded sums.
        narrow: Whether multipliers are computed in float32 rather than float64.
    """

    conv2d: Rounding
    linear: Rounding
    mean: Rounding
    add: Add
    narrow: bool = False


FAMILIES: dict[Kernels, Family] = {
    "xnnpack": Family(conv2d=_float32, linear=_float32, mean=_float32, add=_add_float, narrow=True),
    "tflite-builtin": Family(conv2d=_fixed_twice_up, linear=_fixed_twice_up, mean=_fixed_twice, add=_add_fixed),
    "tflite-builtin-ref": Family(conv2d=_fixed_twice, linear=_fixed_once, mean=_fixed_twice, add=_add_fixed),
}
