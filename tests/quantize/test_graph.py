"""Tracing: what is folded and fused, what is refused, and that the graph still computes the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeface.errors import UnsupportedError
from edgeface.models.layers import Conv2dSame
from edgeface.models.network import MultiTaskNetwork
from edgeface.specs import STUDENTS
from quantize.graph import INPUT, Graph, macs, run, scale_owners, trace, trace_module

Pictures = Callable[[int, int], NDArray[np.uint8]]
Images = Callable[[NDArray[np.uint8]], Tensor]

# In float64 folding and the order of summation move a value by about 2^-53 per term; the networks here add fewer than
# 2^12 terms per value in at most 12 layers, on values of order 1 to 100: 100·12·2^12·2^-53 = 5e-10.
FOLDED = 5e-10


def largest_difference(network: nn.Module, graph: Graph, images: Tensor) -> float:
    """Over all outputs, network in evaluation mode against graph."""
    with torch.no_grad():
        expected, found = network.eval()(images), run(graph, images)
    assert expected.keys() == found.keys()
    assert all(expected[name].shape == found[name].shape for name in expected)
    return max(float((expected[name] - found[name]).abs().max()) for name in expected)


def perturbed(graph: Graph) -> Graph:
    """The graph with one weight of its first layer off by a millionth."""
    name = next(iter(graph.weights))
    weight = graph.weights[name].clone()
    weight.view(-1)[0] += 1e-6
    return replace(graph, weights={**graph.weights, name: weight})


@pytest.mark.parametrize("backbone", STUDENTS)
def test_every_student_traces_to_a_graph_that_computes_it(
    backbone: str, make_student: Callable[[str], MultiTaskNetwork], pictures: Pictures, images: Images
) -> None:
    network = make_student(backbone).double()
    graph = trace(network)
    batch = images(pictures(3, 64)).double()
    assert largest_difference(network, graph, batch) < FOLDED
    assert graph.output_shape("landmarks5") == (5, 2)


@pytest.mark.parametrize("backbone", STUDENTS)
def test_every_student_traces_to_a_graph_that_computes_it_twin(
    backbone: str, make_student: Callable[[str], MultiTaskNetwork], pictures: Pictures, images: Images
) -> None:
    network = make_student(backbone).double()
    graph = perturbed(trace(network))
    assert largest_difference(network, graph, images(pictures(3, 64)).double()) > FOLDED


def test_every_operation_is_computed_as_in_the_network(
    patchwork: nn.Module, pictures: Pictures, images: Images
) -> None:
    graph = trace_module(patchwork.double(), input_px=16)
    assert {node.op for node in graph.nodes} == {"conv2d", "linear", "max_pool", "mfm", "add", "mean", "flatten"}
    batch = images(pictures(3, 16)).double()
    assert largest_difference(patchwork, graph, batch) < FOLDED
    assert largest_difference(patchwork, perturbed(graph), batch) > FOLDED  # the twin


def test_float32_tracing_stays_within_rounding(patchwork: nn.Module, pictures: Pictures, images: Images) -> None:
    # Folding rounds each weight once, 2^-24 of it, and sums of up to 96 terms of order 1 in 6 layers round as often:
    # 6·96·2^-24 = 3.4e-5 at worst.
    graph = trace_module(patchwork, input_px=16)
    assert largest_difference(patchwork, graph, images(pictures(3, 16))) < 3.4e-5


def test_batch_norm_relu_and_dropout_leave_no_node(patchwork_graph: Graph) -> None:
    nodes = {node.name: node for node in patchwork_graph.nodes}
    assert list(nodes) == [
        "stem_0", "left_0", "add", "maxout_0", "maxout_1", "pool", "flatten", "features_0", "points", "mean", "choice",
    ]  # fmt: skip
    assert {name for name, node in nodes.items() if node.relu} == {"stem_0", "add", "features_0"}
    assert nodes["add"].inputs == ("left_0", "stem_0")
    assert nodes["stem_0"].padding == (0, 1, 0, 1)  # SAME, stride 2 on an even side: one row and column behind
    assert nodes["maxout_0"].padding == (0, 0, 1, 1)
    assert nodes["pool"].shape == (6, 4, 4)


def test_pools_maxouts_and_flattens_share_their_inputs_scale(patchwork_graph: Graph) -> None:
    owners = scale_owners(patchwork_graph)
    assert owners["pool"] == owners["flatten"] == owners["maxout_1"] == "maxout_0"
    assert all(owners[name] == name for name in (INPUT, "stem_0", "left_0", "add", "mean", "points", "choice"))


def test_macs_count_every_product(patchwork_graph: Graph) -> None:
    # Output cells times products per cell, by hand from the layer table of the patchwork.
    by_hand = 8 * 8 * 8 * 27 + 8 * 8 * 8 * 72 + 12 * 8 * 8 * 24 + 96 * 12 + 12 * 10 + 6 * 2
    assert macs(patchwork_graph) == by_hand


def test_tracing_reads_the_standardisation(patchwork_graph: Graph) -> None:
    assert patchwork_graph.mean == (128.0, 128.0, 128.0)
    assert patchwork_graph.std == (64.0, 64.0, 64.0)


def test_luma_is_marked_as_fixed(make_student: Callable[[str], MultiTaskNetwork]) -> None:
    graph = trace(make_student("tcdcn_relu"))
    assert graph.fixed == (graph.nodes[0].name,)
    assert trace(make_student("edge_s")).fixed == ()


def test_tracing_leaves_the_network_alone(patchwork: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in patchwork.state_dict().items()}
    graph = trace_module(patchwork.train(), input_px=16)
    next(iter(graph.weights.values())).zero_()
    assert patchwork.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in patchwork.state_dict().items())


class Sandwich(nn.Module):
    """A convolution, the layer in question, and a head on its flattened result."""

    def __init__(self, layer: nn.Module, *, features: int = 256) -> None:
        super().__init__()
        self.conv = Conv2dSame(3, 4, 3)
        self.questionable = layer
        self.head = nn.Linear(features, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"answer": self.head(self.questionable(self.conv(images)).flatten(1))}


@pytest.mark.parametrize(
    ("layer", "features"),
    [
        (nn.Tanh(), 256),
        (nn.LeakyReLU(), 256),
        (nn.Conv2d(4, 4, 3, 1, 1, groups=2), 256),
        (nn.Conv2d(4, 4, 3, 1, 2, dilation=2), 256),
        (nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect"), 256),
        (nn.MaxPool2d(3, 2, 1), 64),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 64),
        (nn.AvgPool2d(2), 64),
        (nn.AdaptiveAvgPool2d(2), 16),
        (nn.GroupNorm(2, 4), 256),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_without_integer_form_is_refused_by_name(layer: nn.Module, features: int) -> None:
    with pytest.raises(UnsupportedError, match="questionable"):
        trace_module(Sandwich(layer, features=features), input_px=8)


def test_the_same_sandwich_with_a_relu_is_accepted() -> None:
    graph = trace_module(Sandwich(nn.ReLU()), input_px=8)
    assert [node.op for node in graph.nodes] == ["conv2d", "flatten", "linear"]


class Written(nn.Module):
    """A forward pass given as a function of (module, images)."""

    def __init__(self, forward: Callable[[Written, Tensor], object]) -> None:
        super().__init__()
        self.conv = Conv2dSame(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(256, 2)
        self.written = forward

    def forward(self, images: Tensor) -> object:
        return self.written(self, images)


def _branches_around_relu(m: Written, x: Tensor) -> object:
    y = m.conv(x)
    return {"answer": m.head((F.relu(y) + y).flatten(1))}


def _reads_before_norm(m: Written, x: Tensor) -> object:
    y = m.conv(x)
    pooled = m.pool(y)
    return {"answer": m.norm(y), "other": pooled}


def _outputs_before_relu(m: Written, x: Tensor) -> object:
    y = m.conv(x)
    return {"answer": y, "other": F.relu(y)}


def _relu_behind_pool(m: Written, x: Tensor) -> object:
    return {"answer": F.relu(m.pool(m.conv(x)))}


def _norm_behind_relu(m: Written, x: Tensor) -> object:
    return {"answer": m.norm(F.relu(m.conv(x)))}


def _multiplies(m: Written, x: Tensor) -> object:
    return {"answer": m.conv(x) * 2}


def _swallows_the_batch(m: Written, x: Tensor) -> object:
    return {"answer": m.conv(x).reshape(1, -1)}


def _returns_a_tensor(m: Written, x: Tensor) -> object:
    return m.conv(x)


def _uses_a_layer_twice(m: Written, x: Tensor) -> object:
    y = m.conv(x)
    return {"answer": m.head(y.flatten(1)), "other": m.head(m.conv(x).flatten(1))}


def _chooses_by_value(m: Written, x: Tensor) -> object:
    return {"answer": m.conv(x if x.sum() > 0 else -x)}


def _adds_a_constant(m: Written, x: Tensor) -> object:
    return {"answer": m.conv(x) + 1.0}


def _means_over_channels(m: Written, x: Tensor) -> object:
    return {"answer": m.conv(x).mean(1)}


def _output_is_the_input(m: Written, x: Tensor) -> object:
    return {"answer": x}


@pytest.mark.parametrize(
    "forward",
    [
        _branches_around_relu,
        _reads_before_norm,
        _outputs_before_relu,
        _relu_behind_pool,
        _norm_behind_relu,
        _multiplies,
        _swallows_the_batch,
        _returns_a_tensor,
        _uses_a_layer_twice,
        _chooses_by_value,
        _adds_a_constant,
        _means_over_channels,
        _output_is_the_input,
    ],
)
def test_a_wiring_that_fusing_would_change_is_refused(forward: Callable[[Written, Tensor], object]) -> None:
    with pytest.raises(UnsupportedError):
        trace_module(Written(forward), input_px=8)
