"""How far one model's raw outputs are from another's, output by output, on the same pictures.

One LSB is the step of the reference's integer grid for that output (else the model's own); float outputs are divided by
it. What counts as agreement depends on the pair, see RULES; a pair without a rule is measured and not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeface.data.pack import Images, in_batches
from edgeface.errors import DataError, ModelError
from edgeface.evaluate import Outputs
from quantize.grid import simulate
from quantize.rounding import Kernels
from targets.protocol import TimedRunner
from targets.runners import CheckpointRunner

# A whole step, with room for the float32 rounding of (code − zero point)·scale on either side.
ONE_LSB = 1.0 + 1e-3
SAME = 1e-3
FLOAT_OUTPUT_DB = 40.0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a pair must hold.

    Attributes:
        within_1_lsb: Least share of values within one LSB, or None.
        exact: Least share of values on the same step, or None.
        sqnr_db: Least signal-to-noise ratio of each output, or None.
    """

    within_1_lsb: float | None = None
    exact: float | None = None
    sqnr_db: float | None = None


_FP32, _FP16, _BYTES, _PALETTE = Rule(sqnr_db=80.0), Rule(sqnr_db=45.0), Rule(sqnr_db=15.0), Rule(sqnr_db=12.0)
_SAME_GRID = Rule(within_1_lsb=1.0, exact=0.998)

# (reference's precision, model's precision, model's runtime) to rule. The ratios are floors well below what correct
# files show and far above what a wrong layer leaves: float32 sums in another order keep above 100 dB; weights in half
# floats carry 2^-12 of relative rounding, 72 dB for one layer; dynamic int8 rounds all values anew in each layer.
RULES: dict[tuple[str, str, str], Rule] = {
    ("fake-quant", "w8a8", "tflite-xnnpack"): Rule(within_1_lsb=1.0),
    ("fake-quant", "w8a8", "tensorflow"): Rule(within_1_lsb=1.0),
    ("fake-quant", "w8a8", "tflite-builtin"): Rule(sqnr_db=15.0),
    ("fake-quant", "w8a8", "tflite-2.14"): Rule(sqnr_db=15.0),
    ("fake-quant", "w8a8", "openvino"): _SAME_GRID,
    ("fake-quant", "w8a8", "mil"): _SAME_GRID,
    ("fake-quant", "w8a8", "onnxruntime"): _SAME_GRID,
    **{
        ("fp32", precision, runtime): rule
        for precision, rule in (("fp32", _FP32), ("fp16", _FP16), ("w8a32", Rule(sqnr_db=15.0)))
        for runtime in (
            *("tflite-xnnpack", "tflite-builtin", "tflite-2.14", "tensorflow"),
            *("torch", "openvino", "onnxruntime"),
        )
    },
    **{("fp32", precision, "mil"): rule for precision, rule in (("fp16", _FP16), ("w8", _BYTES), ("p6", _PALETTE))},
}

# Runtimes whose w8a8 arithmetic is a family of quantize/rounding.py, and the least share of outputs that must equal it.
# TFLite's built-in kernels choose their rounding per kernel and CPU: on x86 all that was measured is equal.
SIMULATED: dict[str, tuple[Kernels, float]] = {
    "tflite-xnnpack": ("xnnpack", 1.0),
    "tensorflow": ("xnnpack", 1.0),
    "tflite-builtin": ("tflite-builtin", 0.995),
    "tflite-2.14": ("tflite-builtin", 0.995),  # leaves int8 to its built-in kernels
    "openvino": ("openvino", 1.0),
    "mil": ("coreml", 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one output differs.

    Attributes:
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        sqnr_db: Power of the reference over power of the difference; infinite when they are equal.
        max_lsb: Largest difference in LSB; None when neither side is integer.
        within_1_lsb: Share of values at most one LSB apart.
        exact: Share of values on the same step; of equal floats when neither side is integer.
        n: Values compared.
    """

    max_abs: float
    mean_abs: float
    sqnr_db: float
    max_lsb: float | None
    within_1_lsb: float | None
    exact: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The comparison of two models.

    Attributes:
        outputs: Output name to its difference.
        samples: Pictures.
        simulator: Share of integer outputs equal to the integer simulator's; None when it does not apply.
        rule: The rule of this pair, or None.
        passed: Verdict; None without a rule.
    """

    outputs: Mapping[str, Difference]
    samples: int
    simulator: float | None
    rule: Rule | None
    passed: bool | None

    def as_json(self) -> dict[str, object]:
        """The `parity` object of the command line's JSON contract."""
        return {
            "schema": 1,
            "outputs": {name: vars(difference) for name, difference in self.outputs.items()},
            "samples": self.samples,
            "simulator_exact": self.simulator,
            "rule": None if self.rule is None else vars(self.rule),
            "pass": self.passed,
        }


def compare(
    reference: TimedRunner,
    model: TimedRunner,
    *,
    images: Images,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Parity:
    """Run both on the same pictures.

    Args:
        reference: What the model should agree with.
        model: What is judged.
        images: (N, H, W, 3) RGB at the input size of both.
        batch: Pictures per call.
        progress: Called with the number of pictures done.

    Raises:
        DataError: No pictures, or the two take different ones.
        ModelError: They share no output.
    """
    if len(images) == 0:
        raise DataError("no pictures", expected="at least one", where="parity")
    if reference.spec.input_px != model.spec.input_px:
        raise DataError(
            f"inputs of {reference.spec.input_px} and {model.spec.input_px} px",
            expected="one input size",
            where="parity",
            do="Compare a file with the student it was built from; eval --teacher compares across sizes",
        )
    names = [output.name for output in reference.spec.outputs if output.name in _names(model)]
    if not names:
        raise ModelError(
            f"outputs {sorted(_names(model))}", expected=f"some of {sorted(_names(reference))}", where="parity"
        )
    left: list[Outputs] = []
    right: list[Outputs] = []
    done = 0
    for part in in_batches(images, batch):
        left.append(reference.run(part))
        right.append(model.run(part))
        done += len(part)
        if progress is not None:
            progress(done)
    outputs = {}
    for name in names:
        grid = reference.grids.get(name) or model.grids.get(name)
        outputs[name] = difference(
            np.concatenate([part[name] for part in left]),
            np.concatenate([part[name] for part in right]),
            lsb=None if grid is None else grid[0],
        )
    simulator = simulator_share(reference, model, images=images, batch=batch)
    rule = RULES.get((reference.precision, model.precision, model.runtime))
    return Parity(
        outputs=outputs,
        samples=len(images),
        simulator=simulator,
        rule=rule,
        passed=None
        if rule is None
        else _holds(rule, outputs, floats=_float_outputs(reference)) and _follows(simulator, model.runtime),
    )


def difference(reference: NDArray[np.float32], model: NDArray[np.float32], *, lsb: float | None) -> Difference:
    """How two arrays of one output differ.

    Args:
        reference: (N, …).
        model: As `reference`.
        lsb: Value of one step, or None.
    """
    expected, found = reference.astype(np.float64), model.astype(np.float64)
    gap = np.abs(found - expected)
    noise = float(np.square(gap).sum())
    signal = float(np.square(expected).sum())
    finite = bool(np.isfinite(gap).all())
    steps = None if lsb is None else gap / lsb
    return Difference(
        max_abs=float(gap.max()),
        mean_abs=float(gap.mean()),
        sqnr_db=_decibels(signal, noise) if finite else float("-inf"),
        max_lsb=None if steps is None else float(steps.max()),
        within_1_lsb=None if steps is None else float((steps <= ONE_LSB).mean()),
        exact=float((gap == 0.0).mean() if steps is None else (steps <= SAME).mean()),
        n=int(gap.size),
    )


def simulator_share(reference: TimedRunner, model: TimedRunner, *, images: Images, batch: int = 64) -> float | None:
    """Share of a w8a8 file's outputs on the step that the integer simulator gives, or None for other pairs.

    Only runtimes in SIMULATED are held to it.
    """
    if not isinstance(reference, CheckpointRunner) or reference.quantized is None:
        return None
    if model.precision != "w8a8" or model.runtime not in SIMULATED:
        return None
    same = total = 0
    for part in in_batches(images, batch):
        simulated = simulate(reference.quantized, part, kernels=SIMULATED[model.runtime][0])
        found = model.run(part)
        for name, codes in simulated.items():
            if reference.quantized.is_float(name):
                continue
            scale, zero_point = reference.quantized.output_grid(name)
            steps = found[name].astype(np.float64) / scale + zero_point
            same += int((np.abs(steps.reshape(codes.shape) - codes) <= SAME).sum())
            total += codes.size
    return same / total if total else None


def _follows(share: float | None, runtime: str) -> bool:
    return share is None or share >= SIMULATED[runtime][1]


def _names(runner: TimedRunner) -> set[str]:
    return {output.name for output in runner.spec.outputs}


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return float("inf")
    return float(10.0 * np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def _float_outputs(reference: TimedRunner) -> set[str]:
    """Outputs that leave a network on the integer grid in float, because its last layer is one of `floats`."""
    quantized = getattr(reference, "quantized", None)
    return set() if quantized is None else {name for name in _names(reference) if quantized.is_float(name)}


def _holds(rule: Rule, outputs: Mapping[str, Difference], *, floats: set[str]) -> bool:
    for name, found in outputs.items():
        if name in floats:
            # One step of a layer before it is all that may differ.
            if not found.sqnr_db >= FLOAT_OUTPUT_DB:
                return False
            continue
        if rule.within_1_lsb is not None and (found.within_1_lsb is None or found.within_1_lsb < rule.within_1_lsb):
            return False
        if rule.exact is not None and found.exact < rule.exact:
            return False
        if rule.sqnr_db is not None and not found.sqnr_db >= rule.sqnr_db:
            return False
    return True
