"""Whether a file's answers are those expected of it: to the bit where arithmetic is integer, else by signal to noise.

The golden faces of a bundle, and every device, are judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.litert import TfliteRunner
from targets.parity import difference
from targets.protocol import Grids, TimedRunner

Codes = Mapping[str, NDArray[Any]]

# Least signal-to-noise ratio of a file's answers on another machine than the one that wrote them. int8 arithmetic is
# the same everywhere; float sums differ in order; dynamic int8 amplifies that at the edge of a step.
FLOORS_DB = {"fp32": 60.0, "fp16": 45.0, "w8a32": 15.0, "w8": 45.0, "p6": 45.0, "w8a8": 15.0}

# Runtimes that compute int8 alike on every processor; the kernels of others round by a few steps otherwise.
EXACT = ("tflite-xnnpack",)

# Answers of another output, or of one face, are recognised by this share of equal values.
ALIKE = 0.99


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How one output's answers differ from those expected.

    Attributes:
        equal: Share of values that are the same to the bit.
        max_lsb: Largest difference in steps of the output's grid; None for an output without one.
        max_abs: Largest difference, in the output's unit.
        sqnr_db: Power of what was expected over power of the difference; infinite when they are equal.
        n: Values compared.
    """

    equal: float
    max_lsb: float | None
    max_abs: float
    sqnr_db: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A file's answers against those expected.

    Attributes:
        outputs: Output name to its agreement; those that can be compared.
        faults: What is wrong, one sentence for each output concerned; none is a pass.
    """

    outputs: Mapping[str, Agreement]
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.faults

    @property
    def bit_identical(self) -> bool:
        return self.passed and all(found.equal == 1.0 for found in self.outputs.values())

    @property
    def equal(self) -> float:
        """Share of all values that are the same to the bit."""
        return sum(found.equal * found.n for found in self.outputs.values()) / sum(
            found.n for found in self.outputs.values()
        )

    @property
    def max_lsb(self) -> float | None:
        steps = [found.max_lsb for found in self.outputs.values() if found.max_lsb is not None]
        return max(steps) if steps else None

    @property
    def sqnr_db(self) -> float:
        return min(found.sqnr_db for found in self.outputs.values())


def answers_of(runner: TimedRunner, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What a file answers: the integers themselves where they leave the file."""
    return runner.run_codes(images) if isinstance(runner, TfliteRunner) else dict(runner.run(images))


def must_be_identical(precision: str, runtime: str, *, reference: str, floats: bool) -> bool:
    """True where answers may not differ by a single bit.

    Args:
        precision: Of the file.
        runtime: What ran it.
        reference: What computed the answers that are expected.
        floats: Whether some of its layers compute in float.
    """
    return precision == "w8a8" and not floats and runtime == reference and runtime in EXACT


def judge(expected: Codes, found: Codes, *, precision: str, grids: Grids, identical: bool) -> Judgement:
    """Compare answers, output by output, and name what is wrong.

    Args:
        expected: Output name to (N, …); the integers where they leave the file.
        found: As `expected`.
        precision: Of the file; decides the floor.
        grids: Output name to (scale, zero point) of what is integer, or was before it left the file.
        identical: Whether a single bit may differ.
    """
    outputs, faults = {}, []
    for name, right in expected.items():
        if name not in found:
            faults.append(f"output {name!r} is missing; there are {', '.join(map(repr, found)) or 'none'}")
            continue
        answer = found[name]
        if answer.shape != right.shape or answer.dtype != right.dtype:
            faults.append(
                f"output {name!r} is {answer.dtype} {answer.shape} where {right.dtype} {right.shape} was expected"
                f"{_looks_like(name, answer, expected, found)}"
            )
            continue
        outputs[name] = _agreement(right, answer, grid=grids.get(name))
        if why := _fault(outputs[name], right, answer, precision=precision, identical=identical):
            faults.append(f"output {name!r} {why}{_looks_like(name, answer, expected, found)}")
    return Judgement(outputs=outputs, faults=tuple(faults))


def _agreement(expected: NDArray[Any], found: NDArray[Any], *, grid: tuple[float, int] | None) -> Agreement:
    integer = expected.dtype.kind in "iu"
    scale, zero_point = grid if grid is not None else (1.0, 0)
    values: list[NDArray[Any]] = [
        (codes.astype(np.float64) - zero_point) * scale if integer else codes.astype(np.float64)
        for codes in (expected, found)
    ]
    gap = difference(values[0], values[1], lsb=None if grid is None else scale)
    return Agreement(
        equal=float((expected == found).mean()),
        max_lsb=gap.max_lsb,
        max_abs=gap.max_abs,
        sqnr_db=gap.sqnr_db,
        n=gap.n,
    )


def _fault(
    agreement: Agreement,
    expected: NDArray[Any],
    found: NDArray[Any],
    *,
    precision: str,
    identical: bool,
) -> str:
    finite = np.isfinite(found.astype(np.float64))
    if not finite.all():
        return f"holds NaN or infinity in {int((~finite).sum())} of {found.size} values"
    if agreement.equal == 1.0:
        return ""
    if len(found) > 1 and (found == found[:1]).all() and not (expected == expected[:1]).all():
        return f"is the same for all {len(found)} faces"
    steps = "" if agreement.max_lsb is None else f", by up to {agreement.max_lsb:.3g} LSB"
    if identical:
        return f"differs in {1.0 - agreement.equal:.3%} of its values{steps}, where none may"
    floor = FLOORS_DB[precision]
    if not agreement.sqnr_db >= floor:
        return f"is {agreement.sqnr_db:.1f} dB from what was expected{steps}, where {floor:.0f} dB are asked"
    return ""


def _looks_like(name: str, answer: NDArray[Any], expected: Codes, found: Codes) -> str:
    """Whose answers these are, when they are another output's: "" when they are nobody's."""
    for other, right in expected.items():
        if other == name or not _alike(right, answer):
            continue
        if other in found and name in expected and _alike(expected[name], found[other]):
            return f"; {name!r} and {other!r} look exchanged"
        return f"; it looks like {other!r}"
    return ""


def _alike(expected: NDArray[Any], found: NDArray[Any]) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype or expected.size == 0:
        return False
    if (expected == found).mean() >= ALIKE:
        return True
    if expected.dtype.kind != "f" or not np.isfinite(found.astype(np.float64)).all():
        return False
    return difference(expected, found, lsb=None).sqnr_db >= min(FLOORS_DB.values())
