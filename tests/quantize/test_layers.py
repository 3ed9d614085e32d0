"""The noise of every layer of an integer network, against the naive form and against planted faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeface.errors import ModelError
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import Graph, layer_macs
from quantize.grid import Quantized, simulate, snap
from quantize.layers import layer_errors

Pictures = Callable[[int, int], NDArray[np.uint8]]


@pytest.fixture
def quantized(patchwork_graph: Graph, snapped: Callable[[Graph], FakeQuantNetwork]) -> Quantized:
    return snapped(patchwork_graph).quantized()


def test_every_layer_is_there_with_its_operation_and_macs(quantized: Quantized, pictures: Pictures) -> None:
    found = layer_errors(quantized.graph, quantized, pictures(8, 16))
    assert [(error.layer, error.kind) for error in found] == [(node.name, node.op) for node in quantized.graph.nodes]
    macs = layer_macs(quantized.graph)
    assert {error.layer: error.macs for error in found if error.macs} == macs


def test_an_outputs_ratio_equals_that_of_simulator_and_float_network(
    quantized: Quantized, pictures: Pictures, images: Callable[[NDArray[np.uint8]], torch.Tensor]
) -> None:
    from quantize.graph import run

    batch = pictures(12, 16)
    found = {error.layer: error.sqnr_db for error in layer_errors(quantized.graph, quantized, batch, batch=5)}
    real = run(quantized.graph, images(batch))
    codes = simulate(quantized, batch)
    for output, node in quantized.graph.outputs.items():
        scale, zero_point = quantized.output_grid(output)
        rounded = (codes[output].astype(np.float64) - zero_point) * scale
        noise = ((real[output].double().numpy() - rounded) ** 2).sum()
        expected = 10 * math.log10((real[output].double().numpy() ** 2).sum() / noise)
        # The same sums in other orders, of float32 values computed in batches of another size.
        assert found[node] == pytest.approx(expected, abs=1e-3)


def test_a_coarse_grid_shows_at_its_layer_and_behind_it_twin(quantized: Quantized, pictures: Pictures) -> None:
    batch = pictures(8, 16)
    before = {error.layer: error.sqnr_db for error in layer_errors(quantized.graph, quantized, batch)}
    scale, zero_point = quantized.activations["left_0"]
    activations = {**quantized.activations, "left_0": (16 * scale, zero_point)}
    coarse = snap(quantized.graph, activations=activations)
    after = {error.layer: error.sqnr_db for error in layer_errors(quantized.graph, coarse, batch)}
    assert after["stem_0"] == before["stem_0"]
    # Sixteen times the step is 24 dB more noise; it was not all rounding before.
    assert after["left_0"] < before["left_0"] - 12.0
    assert after["choice"] < before["choice"]


def test_a_layer_in_float_at_the_end_is_compared_as_it_is(quantized: Quantized, pictures: Pictures) -> None:
    floats = snap(quantized.graph, activations=quantized.activations, floats=frozenset({"points"}))
    found = {error.layer: error.sqnr_db for error in layer_errors(floats.graph, floats, pictures(8, 16))}
    whole = {error.layer: error.sqnr_db for error in layer_errors(quantized.graph, quantized, pictures(8, 16))}
    assert found["points"] > whole["points"]
    assert found["choice"] == whole["choice"]


def test_another_network_is_refused(quantized: Quantized, pictures: Pictures) -> None:
    first, *rest = quantized.graph.nodes
    other = replace(quantized.graph, nodes=(replace(first, name="stranger"), *rest))
    with pytest.raises(ModelError, match="stranger"):
        layer_errors(other, quantized, pictures(2, 16))
