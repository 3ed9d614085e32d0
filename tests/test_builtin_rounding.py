"""Constants for which TFLite's two kernel families round alike, on a small network."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.builtin_rounding import Computed, no_ties, powers_of_two
from edgeface.specs import ModelSpec, output_spec
from quantize.grid import Quantized, simulate

from .targets.conftest import quantize_network, random_network, random_pictures

PICTURES = random_pictures(48, 32)


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    return quantize_network(random_network("edge_s"))


def share_equal(quantized: Quantized) -> float:
    once, twice = (simulate(quantized, PICTURES, kernels=kernels) for kernels in ("xnnpack", "tflite-builtin"))
    return float(np.mean(np.concatenate([(once[name] == twice[name]).ravel() for name in once])))


def test_without_ties_both_kernels_compute_the_same(quantized: Quantized) -> None:
    assert share_equal(no_ties(quantized)) == 1.0


def test_powers_of_two_alone_leave_ties(quantized: Quantized) -> None:
    assert share_equal(quantized) < 1.0
    assert share_equal(powers_of_two(quantized)) < 1.0


def test_every_sum_is_two_modulo_four(quantized: Quantized) -> None:
    changed = no_ties(quantized)
    assert all((weights % 4 == 0).all() for weights in changed.weights.values())
    assert all((biases % 4 == 2).all() for biases in changed.biases.values())


def test_known_outputs_are_handed_out_in_order() -> None:
    values = {"gender": np.arange(10, dtype=np.float32).reshape(5, 2)}
    runner = Computed(ModelSpec(name="x", input_px=8, outputs=(output_spec("gender"),)), values)
    parts = [runner.run(np.zeros((count, 8, 8, 3), np.uint8))["gender"] for count in (3, 2)]
    assert np.array_equal(np.concatenate(parts), values["gender"])
