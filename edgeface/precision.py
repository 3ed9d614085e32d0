"""Which target takes which precision: data, imported by recipes, quantize and targets alike.

fp32    float weights and arithmetic
fp16    weights stored as half floats
w8      int8 weights, fp16 arithmetic
p6      weights palettised to 64 values
w8a32   int8 weights, float activations quantized on the fly (dynamic range)
w8a8    int8 weights and activations, from QAT's own ranges
"""

from __future__ import annotations

from edgeface.errors import UnsupportedError

PRECISIONS: dict[str, tuple[str, ...]] = {
    "android": ("fp32", "fp16", "w8a32", "w8a8"),
    "ios": ("fp16", "w8", "p6", "w8a8"),
    "openvino": ("fp32", "fp16", "w8a8"),
    "onnx": ("fp32", "w8a8"),
}

TARGETS = tuple(PRECISIONS)

IOS_VERSIONS = (16, 17, 18)
IOS = 17
# Core ML quantizes activations since iOS 17.
LEAST_IOS = {"w8a8": 17}


def of_target(target: str, *, ios: int = IOS) -> tuple[str, ...]:
    """Every precision a target takes; () for an unknown target."""
    taken = PRECISIONS.get(target, ())
    return tuple(p for p in taken if target != "ios" or ios >= LEAST_IOS.get(p, 0))


def check(target: str, precision: str, *, where: str, ios: int = IOS) -> None:
    """Refuse a pair that is not in the table.

    Raises:
        UnsupportedError: Naming what the target accepts.
    """
    if target not in PRECISIONS:
        raise UnsupportedError(
            f"{target!r} is not a target",
            expected=f"one of {', '.join(map(repr, TARGETS))}",
            where=where,
            do="Choose one of them",
        )
    if precision not in PRECISIONS[target]:
        raise UnsupportedError(
            f"{precision!r} cannot run on target {target!r}",
            expected=f"one of {', '.join(map(repr, PRECISIONS[target]))}",
            where=where,
            do="Choose one of them",
        )
    if precision not in of_target(target, ios=ios):
        raise UnsupportedError(
            f"{precision!r} for iOS {ios}; it needs iOS {LEAST_IOS[precision]}",
            expected=f"one of {', '.join(map(repr, of_target(target, ios=ios)))}",
            where=where,
            do=f"Type --ios {LEAST_IOS[precision]}, or another --precision",
        )
