"""PReLU as convolution, ReLU and slopes in the next layer's weights; and the layers that have no such form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeface.errors import ConfigError, UnsupportedError
from edgeface.models.layers import Conv2dSame, MaxFeatureMap, Standardize
from edgeface.models.network import build_network, model_spec
from edgeface.specs import NetworkSpec, StudentSpec, output_spec
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import Graph, run, trace, trace_module
from quantize.grid import dequantize, simulate

Pictures = Callable[[int, int], NDArray[np.uint8]]
Images = Callable[[NDArray[np.uint8]], Tensor]

# As in test_graph.py: folding and other orders of summation in float64.
FOLDED = 5e-10


class Leaky(nn.Module):
    """PReLUs in front of a convolution, a mean, a flatten and a linear layer; one slope, or one a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.standardize = Standardize((128.0,) * 3, (64.0,) * 3)
        self.one = nn.Sequential(Conv2dSame(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.PReLU(4))
        self.two = nn.Sequential(Conv2dSame(4, 6, 3), nn.PReLU())
        self.three = nn.Sequential(nn.Linear(6 * 64, 5), nn.BatchNorm1d(5), nn.PReLU(5))
        self.points = nn.Linear(5, 10)
        self.choice = nn.Linear(6, 2)
        for module in self.modules():
            if isinstance(module, nn.PReLU):
                module.weight.data.uniform_(-0.5, 1.5)  # negative slopes and slopes above 1 are exact, too

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.two(self.one(self.standardize(images)))
        return {"points": self.points(self.three(x.flatten(1))), "choice": self.choice(x.mean((2, 3)))}


@pytest.fixture
def leaky(stirred: Callable[[nn.Module], None]) -> nn.Module:
    torch.manual_seed(0)
    network = Leaky()
    stirred(network)
    return network


def largest_difference(network: nn.Module, graph: Graph, images: Tensor) -> float:
    with torch.no_grad():
        expected, found = network(images), run(graph, images)
    return max(float((expected[name] - found[name]).abs().max()) for name in expected)


def test_prelu_is_rewritten_exactly(leaky: nn.Module, pictures: Pictures, images: Images) -> None:
    graph = trace_module(leaky.double(), input_px=16)
    assert {node.op for node in graph.nodes} == {"conv2d", "linear", "mean", "flatten"}
    batch = images(pictures(4, 16)).double()
    assert largest_difference(leaky, graph, batch) < FOLDED
    for layer in ("one_0", "two_0", "three_0", "points", "choice"):
        weight = graph.weights[layer].clone()
        weight.flatten()[-1] *= 1 + 1e-6  # of the half that reads relu(−x), where there is one
        wrong = replace(graph, weights={**graph.weights, layer: weight})
        assert largest_difference(leaky, wrong, batch) > FOLDED  # the twin


def test_a_rewritten_layer_has_twice_the_channels_and_a_relu(leaky: nn.Module) -> None:
    graph = trace_module(leaky, input_px=16)
    shapes = {node.name: (node.shape, node.relu) for node in graph.nodes}
    assert shapes["one_0"] == ((8, 8, 8), True)
    assert shapes["two_0"] == ((12, 8, 8), True)
    assert shapes["flatten"] == ((768,), False)
    assert shapes["mean"] == ((12,), False)
    assert shapes["three_0"] == ((10,), True)
    assert graph.weights["two_0"].shape == (12, 8, 3, 3)
    assert graph.weights["points"].shape == (10, 10)


def test_a_slope_of_nothing_is_a_relu(pictures: Pictures, images: Images) -> None:
    def network(layer: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return Between(layer)

    batch = images(pictures(2, 8))
    with torch.no_grad():
        flat = run(trace_module(network(nn.PReLU(init=0.0)), input_px=8), batch)["answer"]
        relu = run(trace_module(network(nn.ReLU()), input_px=8), batch)["answer"]
        leaking = run(trace_module(network(nn.PReLU(init=0.1)), input_px=8), batch)["answer"]
    torch.testing.assert_close(flat, relu)
    assert not torch.allclose(leaking, relu)  # the twin


def test_a_rewritten_network_is_simulated_as_it_is_trained(
    leaky: nn.Module, snapped: Callable[[Graph], FakeQuantNetwork], pictures: Pictures, images: Images
) -> None:
    network = snapped(trace_module(leaky, input_px=16))
    batch = pictures(8, 16)
    with torch.no_grad():
        outputs, plain = network(images(batch)), leaky(images(batch))
    for name, values in dequantize(network.quantized(), simulate(network.quantized(), batch)).items():
        assert np.array_equal(outputs[name].numpy(), values)
        expected = plain[name].numpy()
        # Rounding may blur one face's answer, but not to half of what tells faces apart.
        assert float(np.abs(values - expected).mean()) < 0.5 * float(expected.std(0).mean())
        assert float(np.abs(values[::-1] - expected).mean()) > 0.5 * float(expected.std(0).mean())  # the twin


class Between(nn.Module):
    """A convolution, something, and a head."""

    def __init__(self, *layers: nn.Module, features: int = 256) -> None:
        super().__init__()
        self.conv = Conv2dSame(3, 4, 3)
        self.between = nn.Sequential(*layers)
        self.head = nn.Linear(features, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"answer": self.head(self.between(self.conv(images)).flatten(1))}


@pytest.mark.parametrize(
    ("layers", "features", "layer"),
    [
        ((nn.PReLU(4), nn.MaxPool2d(2)), 64, "between.1.*max_pool"),
        ((nn.PReLU(4), MaxFeatureMap()), 128, "between.1.*mfm"),
        ((nn.PReLU(4), nn.BatchNorm2d(4)), 256, "between.1.*batch-norm"),
        ((nn.PReLU(4), nn.PReLU(4)), 256, "between.1.*PReLU"),
        ((nn.ReLU(), nn.PReLU(4)), 256, "between.1.*PReLU"),
    ],
    ids=["max_pool", "mfm", "batch-norm", "twice", "behind a ReLU"],
)
def test_a_prelu_whose_slopes_cannot_move_on_is_refused(
    layers: tuple[nn.Module, ...], features: int, layer: str
) -> None:
    with pytest.raises(UnsupportedError, match=layer):
        trace_module(Between(*layers, features=features), input_px=8)


class Custom(nn.Module):
    """A convolution and a function of (module, its result)."""

    def __init__(self, function: Callable[[Custom, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = Conv2dSame(3, 4, 3)
        self.prelu = nn.PReLU(4)
        self.slope = nn.Parameter(torch.ones(4))
        self.function = function

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"answer": self.function(self, images)}


def _abs(m: Custom, x: Tensor) -> Tensor:
    return m.conv(x).abs()


def _z_score(m: Custom, x: Tensor) -> Tensor:
    return m.conv((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


def _functional_prelu(m: Custom, x: Tensor) -> Tensor:
    return F.prelu(m.conv(x), m.slope)


def _prelu_leaves(m: Custom, x: Tensor) -> Tensor:
    return m.prelu(m.conv(x))


def _prelu_is_added(m: Custom, x: Tensor) -> Tensor:
    y = m.prelu(m.conv(x))
    return y + y


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_abs, "layer 'abs.*magnitudes"),
        (_z_score, "layer 'mean'.*z-score"),
        (_functional_prelu, "slope"),
        (_prelu_leaves, "'answer' is the PReLU of 'conv'"),
        (_prelu_is_added, "layer 'add'.*PReLU of 'conv'"),
    ],
)
def test_a_layer_that_no_target_keeps_integer_is_refused_with_its_reason(
    function: Callable[[Custom, Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        trace_module(Custom(function), input_px=8)


@pytest.mark.parametrize(
    ("backbone", "reasons"),
    [
        (
            "tcdcn",
            ("'backbone.z_score': ZScore.*a division", "'backbone.conv1.abs_tanh' and 4 more: AbsTanh.*magnitudes"),
        ),
        ("tcdcn_local", ("'backbone.z_score'", "'backbone.conv4.conv': LocallyConnected2d.*other weights at every")),
        ("tcdcn_unshared", ("'backbone.z_score'", "'backbone.conv1.conv' and 3 more: LocallyConnected2d")),
    ],
)
def test_a_research_network_is_refused_naming_each_kind_of_layer_and_why(
    backbone: str, reasons: tuple[str, ...]
) -> None:
    network = NetworkSpec(backbone=backbone, width=0.25, input_px=40)
    built = build_network(network, model_spec(network, (output_spec("gender"),)))
    for reason in reasons:
        with pytest.raises(UnsupportedError, match=reason):
            trace(built)


def test_the_deployable_form_of_that_network_is_accepted() -> None:
    network = NetworkSpec(backbone="tcdcn_relu", width=0.25, input_px=40)
    assert trace(build_network(network, model_spec(network, (output_spec("gender"),)))).nodes


def test_edge_s_with_prelu_is_traced_exactly(
    pictures: Pictures, images: Images, stirred: Callable[[nn.Module], None]
) -> None:
    network = NetworkSpec(backbone="edge_s", width=0.25, input_px=32, hidden=8, activation="prelu")
    built = build_network(network, model_spec(network, (output_spec("gender"), output_spec("pose"))))
    stirred(built)
    for module in built.modules():
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.5, 1.5)
    graph, batch = trace(built.double()), images(pictures(3, 32)).double()
    assert largest_difference(built, graph, batch) < FOLDED
    weight = graph.weights["backbone_conv2_conv"].clone()
    weight.flatten()[-1] *= 1 + 1e-6
    wrong = replace(graph, weights={**graph.weights, "backbone_conv2_conv": weight})
    assert largest_difference(built, wrong, batch) > FOLDED  # the twin


@pytest.mark.parametrize("backbone", ["cnn5", "vgg11", "tcdcn_relu"])
def test_prelu_under_a_max_pooling_is_refused_before_anything_is_trained(backbone: str) -> None:
    network = NetworkSpec(backbone=backbone, width=0.25, input_px=40, activation="prelu")
    with pytest.raises(ConfigError, match=f"network.activation: 'prelu'.*max-pooling reads {backbone}"):
        StudentSpec(network=network)
    built = build_network(network, model_spec(network, (output_spec("gender"),)))
    with pytest.raises(UnsupportedError, match="max_pool reads the PReLU"):
        trace(built)
