"""Agreement is measured as its formulas say, and a file that is off by more than a step does not pass."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeface.errors import DataError
from edgeface.evaluate import Outputs
from edgeface.specs import ModelSpec, NetworkSpec
from targets.parity import RULES, compare, difference
from targets.runners import open_model

from .conftest import random_pictures, spec_of


class Stub:
    """A model whose answers are chosen."""

    runtime = "tflite-xnnpack"
    size_bytes = 0
    macs = None

    def __init__(self, outputs: Outputs, *, precision: str, scale: float | None, input_px: int = 32) -> None:
        self.spec: ModelSpec = spec_of(NetworkSpec(backbone="edge_s", input_px=input_px))
        self.precision = precision
        self.grids = {} if scale is None else dict.fromkeys(outputs, (scale, 0))
        self.outputs = outputs

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        return {name: values[: len(batch)] for name, values in self.outputs.items()}

    def prepare(self, seed: int):  # type: ignore[no-untyped-def]
        raise NotImplementedError


PICTURES = random_pictures(6, 32)


def outputs(*, seed: int = 0) -> Outputs:
    generator = np.random.default_rng(seed)
    shapes = {"landmarks5": (6, 5, 2), "gender": (6, 2), "smile": (6, 2)}
    return {name: generator.integers(-100, 100, shape).astype(np.float32) * 0.25 for name, shape in shapes.items()}


def test_difference_is_what_its_formulas_say() -> None:
    reference = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    model = np.array([[1.0, -2.5, 3.25, 0.5]], np.float32)

    found = difference(reference, model, lsb=0.25)

    assert (found.max_abs, found.mean_abs, found.max_lsb) == (0.5, 0.1875, 2.0)
    assert (found.within_1_lsb, found.exact, found.n) == (0.75, 0.5, 4)
    signal, noise = 1.0 + 4.0 + 9.0 + 0.25, 0.25 + 0.0625
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise))


def test_equal_arrays_have_no_noise() -> None:
    values = np.ones((3, 2), np.float32)

    found = difference(values, values, lsb=None)

    assert (found.sqnr_db, found.exact, found.max_lsb) == (math.inf, 1.0, None)


def test_not_a_number_is_never_agreement() -> None:
    found = difference(np.ones((1, 2), np.float32), np.array([[1.0, np.nan]], np.float32), lsb=1.0)

    assert found.sqnr_db == -math.inf
    assert found.within_1_lsb == 0.5


def test_one_step_passes() -> None:
    expected = outputs()
    found = {name: values + 0.25 for name, values in expected.items()}

    parity = compare(
        Stub(expected, precision="fake-quant", scale=0.25), Stub(found, precision="w8a8", scale=0.25), images=PICTURES
    )

    assert parity.passed is True
    assert {output.max_lsb for output in parity.outputs.values()} == {1.0}


def test_two_steps_of_one_value_fail_twin() -> None:
    expected = outputs()
    found = {name: values.copy() for name, values in expected.items()}
    found["smile"][3, 1] += 0.5

    parity = compare(
        Stub(expected, precision="fake-quant", scale=0.25), Stub(found, precision="w8a8", scale=0.25), images=PICTURES
    )

    assert parity.passed is False
    assert parity.outputs["smile"].within_1_lsb == pytest.approx(11 / 12)


def test_exchanged_outputs_fail_twin() -> None:
    expected = outputs()
    found = {**expected, "gender": expected["smile"], "smile": expected["gender"]}

    parity = compare(
        Stub(expected, precision="fp32", scale=None), Stub(found, precision="fp32", scale=None), images=PICTURES
    )

    assert parity.passed is False


def test_pair_without_a_rule_is_measured_but_not_judged() -> None:
    parity = compare(
        Stub(outputs(), precision="w8a8", scale=0.25), Stub(outputs(), precision="bf16", scale=None), images=PICTURES
    )

    assert (parity.rule, parity.passed) == (None, None)
    assert parity.as_json()["pass"] is None


def test_models_of_two_input_sizes_are_refused() -> None:
    small = Stub(outputs(), precision="fp32", scale=None)
    large = Stub(outputs(), precision="fp32", scale=None, input_px=64)

    with pytest.raises(DataError, match="32 and 64"):
        compare(small, large, images=PICTURES)


@pytest.mark.parametrize(
    ("stage", "precision"), [("student", "fp32"), ("student", "fp16"), ("student", "w8a32"), ("qat", "w8a8")]
)
def test_every_built_file_agrees_with_its_student(
    stage: str, precision: str, run_folder: Path, bundle_folder: Path
) -> None:
    model = open_model(bundle_folder, precision=precision)

    parity = compare(open_model(run_folder / stage), model, images=random_pictures(20, 32))

    assert parity.rule == RULES[(parity_name(stage), precision, "tflite-xnnpack")]
    assert parity.passed is True
    assert parity.simulator == (1.0 if precision == "w8a8" else None)


def parity_name(stage: str) -> str:
    return {"student": "fp32", "qat": "fake-quant"}[stage]


def test_int8_file_against_the_float_student_is_not_taken_for_float_twin(run_folder: Path, bundle_folder: Path) -> None:
    runner = open_model(bundle_folder, precision="w8a8")
    reference = open_model(run_folder / "student")
    images = random_pictures(20, 32)

    found = [
        difference(reference.run(images)[name], runner.run(images)[name], lsb=None).sqnr_db
        for name in ("landmarks5", "gender", "smile")
    ]

    fp16 = RULES[("fp32", "fp16", "tflite-xnnpack")].sqnr_db
    assert fp16 is not None
    assert max(found) < fp16


class Lazy:
    """Pictures that are read where they are asked for, as those of shards are."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images, self.asked = images, list[int]()
        self.shape = images.shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        found = self._images[rows]
        self.asked.append(len(found))
        return found


class Sums(Stub):
    """A model whose answers follow from the pictures."""

    def __init__(self, *, factor: float) -> None:
        super().__init__(outputs(), precision="fp32", scale=None)
        self.factor = factor

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        sums = batch.astype(np.int64).sum(axis=(1, 2, 3))
        return {
            name: np.sin(self.factor * sums.reshape(-1, *[1] * (values.ndim - 1)) + values[:1]).astype(np.float32)
            for name, values in self.outputs.items()
        }


def test_pictures_are_asked_for_batch_by_batch_and_agree_as_those_in_memory() -> None:
    models, lazy = (Sums(factor=1.0), Sums(factor=1.1)), Lazy(PICTURES)
    found = compare(*models, images=lazy, batch=4)
    assert lazy.asked == [4, 2]
    assert found == compare(*models, images=PICTURES, batch=4)
    assert found != compare(*models, images=Lazy(PICTURES[:4]), batch=4)  # twin: two pictures that are forgotten
