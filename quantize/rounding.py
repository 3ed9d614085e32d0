"""How kernel families round: the part of a chip's int8 arithmetic in which they differ (see quantize/grid.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kernels = Literal["xnnpack", "tflite-builtin", "tflite-builtin-arm64", "tflite-builtin-ref", "openvino", "coreml"]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What one unit of a node's integer sum is worth.

    Attributes:
        source: Scale of the node's input.
        weights: Scale of each channel's weights, in a shape that broadcasts over the sums; one 1 for a mean.
        count: Values that a mean divides by; 1 for layers.
        result: Scale of the node's own grid.
    """

    source: float
    weights: NDArray[np.float32]
    count: int
    result: float

    def narrow(self) -> NDArray[np.float32]:
        """The multiplier M of quantize/grid.py, each operation rounded to float32."""
        ratio: NDArray[np.float32] = np.float32(self.source) * self.weights / np.float32(self.result)
        return ratio / np.float32(self.count)

    def wide(self) -> NDArray[np.float64]:
        """The same in float64."""
        ratio: NDArray[np.float64] = np.float64(self.source) * self.weights.astype(np.float64) / np.float64(self.result)
        return ratio / self.count


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


def _fixed_by_shape(accumulated: NDArray[np.int64], multiplier: NDArray[np.floating]) -> NDArray[np.int64]:
    """A matrix times one vector, four outputs or more, as `_fixed_twice_up`; all else as `_fixed_once`.

    Args:
        accumulated: (B, outputs), or (B, C, H, W): one vector where H·W is 1.
        multiplier: Of each output.

    Source:
        Measured: the optimised kernels on ARM64, which have a routine of their own for such a product (TensorFlow Lite,
        cpu_backend_gemm_custom_gemv.h).
    """
    one_vector = accumulated[0, 0].size == 1 and accumulated.shape[1] >= 4
    return (_fixed_twice_up if one_vector else _fixed_once)(accumulated, multiplier)


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


def _add_fused(
    a: NDArray[np.int64], b: NDArray[np.int64], a_scale: float, b_scale: float, out_scale: float
) -> NDArray[np.int64]:
    """fma(a, a_scale/out_scale, b·(b_scale/out_scale)) in float32, ties to even.

    Source:
        Measured: OpenVINO's elementwise kernels on x86.
    """
    a_ratio, b_ratio = (np.float32(scale) / np.float32(out_scale) for scale in (a_scale, b_scale))
    second: NDArray[np.float32] = b.astype(np.float32) * b_ratio
    # 8 bits times 24 are exact in float64, and so is the sum before its one rounding to float32.
    total = a * np.float64(a_ratio) + second
    return np.rint(total.astype(np.float32)).astype(np.int64)


def _add_terms(
    a: NDArray[np.int64], b: NDArray[np.int64], a_scale: float, b_scale: float, out_scale: float
) -> NDArray[np.int64]:
    """Both products and their sum, each rounded to float32, ties to even.

    Source:
        The operations that targets/coreml.py writes.
    """
    first, second = (
        x.astype(np.float32) * (np.float32(scale) / np.float32(out_scale)) for x, scale in ((a, a_scale), (b, b_scale))
    )
    return np.rint(first + second).astype(np.int64)


Multiply = Callable[[NDArray[np.int64], NDArray[np.floating]], NDArray[np.int64]]
Rounding = Callable[[NDArray[np.int64], Steps], NDArray[np.int64]]
Add = Callable[[NDArray[np.int64], NDArray[np.int64], float, float, float], NDArray[np.int64]]


def _narrow(sums: NDArray[np.int64], steps: Steps) -> NDArray[np.int64]:
    return _float32(sums, steps.narrow())


def _wide(multiply: Multiply) -> Rounding:
    def rule(sums: NDArray[np.int64], steps: Steps) -> NDArray[np.int64]:
        return multiply(sums, steps.wide())

    return rule


@dataclass(frozen=True, kw_only=True)
class Family:
    """The rounding rules of one kernel family.

    Attributes:
        conv2d: (sums with their bias, what a unit of them is worth) to q_y − z_y before clamping.
        linear: As `conv2d`.
        mean: As `conv2d`.
        add: (a, b, scale of a, scale of b, scale of the result) to the same.
    """

    conv2d: Rounding
    linear: Rounding
    mean: Rounding
    add: Add


FAMILIES: dict[Kernels, Family] = {
    "xnnpack": Family(conv2d=_narrow, linear=_narrow, mean=_narrow, add=_add_float),
    "tflite-builtin": Family(
        conv2d=_wide(_fixed_twice_up), linear=_wide(_fixed_twice_up), mean=_wide(_fixed_twice), add=_add_fixed
    ),
    "tflite-builtin-arm64": Family(
        conv2d=_wide(_fixed_by_shape), linear=_wide(_fixed_by_shape), mean=_wide(_fixed_twice), add=_add_fixed
    ),
    "tflite-builtin-ref": Family(
        conv2d=_wide(_fixed_twice), linear=_wide(_fixed_once), mean=_wide(_fixed_twice), add=_add_fixed
    ),
    "openvino": Family(conv2d=_narrow, linear=_narrow, mean=_narrow, add=_add_fused),
    "coreml": Family(conv2d=_narrow, linear=_narrow, mean=_narrow, add=_add_terms),
}
