"""Layers left in float inside an int8 network: the simulator, the fake-quant student and plain arithmetic agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.errors import UnsupportedError
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import INPUT, Graph
from quantize.grid import Quantized, dequantize, simulate, simulate_nodes, snap
from quantize.qat import finish

Pictures = Callable[[int, int], NDArray[np.uint8]]
Images = Callable[[NDArray[np.uint8]], Tensor]

MIX = frozenset({"stem_0", "features_0", "points"})  # a first layer, an inner one and an output


@pytest.fixture
def mixed(patchwork_graph: Graph, pictures: Pictures, images: Images) -> FakeQuantNetwork:
    network = FakeQuantNetwork(patchwork_graph, floats=MIX)
    calibrate(network, [images(pictures(8, 16))], limit=1)
    finish(network)
    return network


def by_hand(quantized: Quantized, name: str, codes: NDArray[np.int8]) -> NDArray[np.float64]:
    """A linear layer in float on dequantized values, by NumPy."""
    scale, zero_point = quantized.activations[quantized.graph.node(name).inputs[0]]
    x = (codes.astype(np.float64) - zero_point) * scale
    weight, bias = quantized.graph.weights[name].double().numpy(), quantized.graph.biases[name].double().numpy()
    y = x @ weight.T + bias
    return np.maximum(y, 0.0) if quantized.graph.node(name).relu else y


def test_a_float_output_is_plain_arithmetic_on_dequantized_values(mixed: FakeQuantNetwork, pictures: Pictures) -> None:
    quantized = mixed.quantized()
    values = simulate_nodes(quantized, pictures(8, 16))
    expected = by_hand(quantized, "points", values["features_0"])
    assert values["points"].dtype == np.float32
    # One rounding to float32.
    np.testing.assert_allclose(values["points"], expected, rtol=2.0**-23, atol=1e-12)
    assert not np.allclose(values["points"], by_hand(quantized, "points", values["features_0"] + 1), rtol=2.0**-23)
    outputs = simulate(quantized, pictures(8, 16))
    assert {name: outputs[name].dtype.name for name in outputs} == {"points": "float32", "choice": "int8"}
    assert np.array_equal(dequantize(quantized, outputs)["points"], outputs["points"])


def test_an_inner_float_layer_is_rounded_to_its_own_grid(mixed: FakeQuantNetwork, pictures: Pictures) -> None:
    quantized = mixed.quantized()
    values = simulate_nodes(quantized, pictures(8, 16))
    scale, zero_point = quantized.activations["features_0"]
    y = by_hand(quantized, "features_0", values["flatten"])
    assert np.array_equal(values["features_0"], np.clip(np.rint(y / scale) + zero_point, -128, 127))
    assert not np.array_equal(values["features_0"], np.clip(np.rint(1.02 * y / scale) + zero_point, -128, 127))  # twin


def test_a_snapped_mix_is_its_simulation_bit_for_bit(
    mixed: FakeQuantNetwork, pictures: Pictures, images: Images
) -> None:
    batch = pictures(16, 16)
    with torch.no_grad():
        outputs = mixed(images(batch))
    quantized = mixed.quantized()

    def differ(other: Quantized) -> bool:
        found = dequantize(other, simulate(other, batch))
        return any(not np.array_equal(outputs[name].numpy(), found[name]) for name in found)

    assert not differ(quantized)
    assert differ(snap(quantized.graph, activations=quantized.activations))
    weights = {**quantized.graph.weights, "points": quantized.graph.weights["points"] * (1 + 2.0**-16)}
    assert differ(replace(quantized, graph=replace(quantized.graph, weights=weights)))


def test_float_layers_keep_their_weights_and_have_no_integer_ones(
    mixed: FakeQuantNetwork, patchwork_graph: Graph
) -> None:
    quantized = mixed.quantized()
    assert quantized.floats == MIX
    assert not MIX & (quantized.weights.keys() | quantized.weight_scales.keys() | quantized.biases.keys())
    for name, weight in patchwork_graph.weights.items():
        kept = torch.equal(quantized.graph.weights[name], weight)
        assert kept == (name in MIX), name
    assert quantized.is_float("points")
    assert not quantized.is_float("choice")


def test_training_rounds_all_but_the_float_layers(patchwork_graph: Graph, pictures: Pictures, images: Images) -> None:
    batch = images(pictures(8, 16))
    network = FakeQuantNetwork(patchwork_graph, floats=MIX)
    calibrate(network, [batch], limit=1)
    values = network.eval().node_values(batch)
    grids = network.activations()

    def on_grid(name: str) -> bool:
        scale, zero_point = grids[name]
        codes = values[name].detach().double() / scale + zero_point
        return bool((codes - codes.round()).abs().max() < 1e-9)  # k·s is exact in float32

    assert {name for name in grids if not on_grid(name)} == {"points"}
    x, weight, bias = values["features_0"], patchwork_graph.weights["points"], patchwork_graph.biases["points"]
    assert torch.equal(values["points"], torch.nn.functional.linear(x, weight, bias))


def test_the_training_form_of_a_mix_rounds_as_its_snapped_form(
    mixed: FakeQuantNetwork, pictures: Pictures, images: Images
) -> None:
    batch = images(pictures(16, 16))
    with torch.no_grad():
        snapped = mixed(batch)["points"]
        mixed.phase = "frozen"
        trained = mixed(batch)["points"]
    # A float32 sum may round one activation in a million another way; outputs of these 16 pictures hold none.
    torch.testing.assert_close(trained, snapped, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(trained, snapped * 1.02, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", INPUT, "nowhere"])
def test_only_layers_with_weights_can_be_float(name: str, patchwork_graph: Graph) -> None:
    with pytest.raises(UnsupportedError, match=name):
        FakeQuantNetwork(patchwork_graph, floats=frozenset({name}))


def test_an_output_that_another_layer_reads_cannot_be_float(patchwork_graph: Graph) -> None:
    graph = replace(patchwork_graph, outputs={**patchwork_graph.outputs, "inner": "features_0"})
    with pytest.raises(UnsupportedError, match=r"features_0.*points"):
        snap(graph, activations={}, floats=frozenset({"features_0"}))
