"""The exported program computes what the graph computes, in the layout phones use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgeface.errors import ModelError
from edgeface.specs import NetworkSpec
from quantize.graph import Graph, run, trace
from targets.program import Program, channels_last, check_outputs, flattened_map, lossless_grid_of

from .conftest import random_network, random_pictures, spec_of

# float32 sums in another order; outputs are of order 1.
TOLERANCE = 1e-4


def program_outputs(graph: Graph, picture: Tensor) -> dict[str, Tensor]:
    """Of one (1, 3, H, W) picture with values 0 to 255."""
    pixels = picture.permute(0, 2, 3, 1)
    with torch.no_grad():
        return Program(graph).eval()((pixels - torch.tensor(graph.mean)) / torch.tensor(graph.std))


def largest_gap(graph: Graph, other: Graph) -> float:
    picture = torch.from_numpy(random_pictures(1, graph.input_px)).permute(0, 3, 1, 2).float()
    expected, found = run(graph, picture), program_outputs(other, picture)
    assert expected.keys() == found.keys()
    assert all(expected[name].shape == found[name].shape for name in expected)
    return max(float((expected[name] - found[name]).abs().max()) for name in expected)


@pytest.mark.parametrize("backbone", ["edge_s", "cnn5", "vgg11", "lightcnn9", "tcdcn_relu"])
def test_program_computes_the_graph(backbone: str) -> None:
    graph = trace(random_network(backbone))

    assert largest_gap(graph, graph) < TOLERANCE


def test_program_of_one_changed_weight_differs_twin() -> None:
    graph = trace(random_network("edge_s"))
    name = next(iter(graph.weights))
    changed = graph.weights[name].clone()
    changed.view(-1)[0] += 0.1

    assert largest_gap(graph, replace(graph, weights={**graph.weights, name: changed})) > TOLERANCE


def test_flattened_weights_are_reordered_to_channels_last() -> None:
    graph = trace(random_network("edge_s"))
    node = next(node for node in graph.nodes if flattened_map(graph, node) is not None)
    channels, height, width = flattened_map(graph, node) or (0, 0, 0)
    weight, moved = graph.weights[node.name], channels_last(graph, node, graph.weights[node.name])

    for c, y, x in ((0, 0, 0), (channels - 1, 0, 1), (1, height - 1, width - 1)):
        assert torch.equal(moved[:, (y * width + x) * channels + c], weight[:, (c * height + y) * width + x])
    assert not torch.equal(moved, weight)


def test_picture_is_the_input_only_for_one_whole_mean_and_a_power_of_two() -> None:
    assert lossless_grid_of((128.0,) * 3, (64.0,) * 3) == (1 / 64, 128)
    assert lossless_grid_of((128.0,) * 3, (60.0,) * 3) is None
    assert lossless_grid_of((127.5,) * 3, (64.0,) * 3) is None
    assert lossless_grid_of((128.0, 128.0, 127.0), (64.0,) * 3) is None


def test_graph_of_another_network_is_refused() -> None:
    graph = trace(random_network("edge_s"))
    spec = spec_of(NetworkSpec(backbone="edge_s", input_px=32))

    check_outputs(graph, spec)
    with pytest.raises(ModelError, match="landmarks5"):
        check_outputs(replace(graph, output_shapes={}), spec)
