"""Quantization without training: our methods leave the grid's networks, bias correction restores means, NNCF runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.errors import UnsupportedError
from edgeface.models.network import MultiTaskNetwork
from edgeface.specs import ModelSpec, OutputSpec
from quantize.baselines import METHODS, nncf_accuracy_controlled, nncf_bias_corrected, post_training
from quantize.graph import Graph, run, trace
from quantize.grid import dequantize, simulate
from quantize.histogram import Histogram

Pictures = Callable[[int, int], NDArray[np.uint8]]
Images = Callable[[NDArray[np.uint8]], Tensor]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_network_on_the_grid(
    method: str, patchwork_graph: Graph, pictures: Pictures, images: Images
) -> None:
    batch = pictures(16, 16)
    network = post_training(patchwork_graph, images(batch).split(8), method=method)
    quantized = network.quantized()
    found = dequantize(quantized, simulate(quantized, batch))
    with torch.no_grad():
        exact, plain = network(images(batch)), run(patchwork_graph, images(batch))
    for name, values in found.items():
        assert np.array_equal(values, exact[name].numpy())
        expected = plain[name].numpy()
        # Rounding may blur one face's answer, but not to half of what tells faces apart.
        assert float(np.abs(values - expected).mean()) < 0.5 * float(expected.std(0).mean())
        assert float(np.abs(values[::-1] - expected).mean()) > 0.5 * float(expected.std(0).mean())  # the twin


def test_the_methods_choose_different_ranges(patchwork_graph: Graph, pictures: Pictures, images: Images) -> None:
    batches = images(pictures(16, 16)).split(8)
    grids = {method: post_training(patchwork_graph, batches, method=method).activations() for method in METHODS}
    assert grids["mse"] == grids["bias_correction"]
    assert len({str(grids[method]) for method in ("minmax", "percentile", "mse")}) == 3
    widths = {method: grids[method]["points"][0] for method in METHODS}
    assert widths["mse"] <= widths["minmax"]
    assert widths["percentile"] <= widths["minmax"]


def test_bias_correction_restores_the_means(patchwork_graph: Graph, pictures: Pictures, images: Images) -> None:
    # One large weight a channel leaves the others of features_0 few steps, which shifts its mean.
    weight = patchwork_graph.weights["features_0"].clone()
    weight[:, 0] = 60.0 * weight.abs().amax()
    graph = replace(patchwork_graph, weights={**patchwork_graph.weights, "features_0": weight})
    batch = pictures(32, 16)

    def shift(method: str) -> float:
        network = post_training(graph, images(batch).split(8), method=method)
        with torch.no_grad():
            return float((network(images(batch))["points"] - run(graph, images(batch))["points"]).mean(0).abs().mean())

    step = post_training(graph, images(batch).split(8), method="mse").activations()["points"][0]
    # What is left is how the result itself rounds: some tenths of a step on the mean of 32.
    assert shift("bias_correction") < min(0.5 * shift("mse"), step)


def test_an_unknown_method_is_refused(patchwork_graph: Graph) -> None:
    with pytest.raises(UnsupportedError, match="'minmax', 'percentile', 'mse', 'bias_correction'"):
        post_training(patchwork_graph, [], method="adaround")


def test_a_network_that_is_not_finite_is_refused(patchwork_graph: Graph) -> None:
    histogram = Histogram()
    histogram.add(torch.tensor([1.0, float("nan")]))
    assert not np.isfinite(histogram.least_squares()).all()


@pytest.fixture
def float_model(
    make_student: Callable[[str], MultiTaskNetwork], tmp_path: Path
) -> tuple[Graph, Any]:  # openvino.Model has no stubs
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    from targets.openvino import write

    graph = trace(make_student("cnn5"))
    outputs = tuple(
        OutputSpec(name=name, task=name, shape=graph.output_shape(name)) for name in ("landmarks5", "gender", "pose")
    )
    path = tmp_path / "float.xml"
    write({"fp32": path}, graph=graph, quantized=None, model=ModelSpec(name="cnn5", input_px=64, outputs=outputs))
    return graph, openvino.Core().read_model(path)


def answers(model: Any, batch: NDArray[np.uint8], output: str) -> NDArray[np.float32]:
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled([picture[None]])[output].copy() for picture in batch])


def rounded_operations(model: Any) -> int:
    return sum(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_nncf_quantizes_with_bias_correction(float_model: tuple[Graph, Any], pictures: Pictures) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed")
    graph, model = float_model
    batch = pictures(24, 64)
    plain = answers(model, batch, "pose")
    quantized = nncf_bias_corrected(model, [picture[None] for picture in batch])
    assert rounded_operations(quantized) >= sum(node.op == "conv2d" for node in graph.nodes)
    assert rounded_operations(model) == 0
    found = answers(quantized, batch, "pose")
    assert not np.array_equal(found, plain)
    assert float(np.abs(found - plain).mean()) < 0.5 * float(plain.std(0).mean())
    assert float(np.abs(found[::-1] - plain).mean()) > 0.5 * float(plain.std(0).mean())  # the twin


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_nncf_accuracy_control_gives_layers_back_until_the_score_holds(
    float_model: tuple[Graph, Any], pictures: Pictures
) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed")
    _, model = float_model
    batch = pictures(12, 64)
    control = [picture[None] for picture in batch]
    expected = answers(model, batch, "landmarks5")

    def score(compiled: Any, places: Any) -> list[float]:
        return [
            1.0 - float(np.abs(compiled([control[place]])["landmarks5"] - expected[place]).mean()) for place in places
        ]

    def controlled(max_drop: float) -> Any:
        return nncf_accuracy_controlled(model, control, control=control, score=score, max_drop=max_drop)

    strict, lax = controlled(1e-4), controlled(10.0)
    assert rounded_operations(strict) < rounded_operations(lax)
