"""The network as one torch module in TFLite's layout, for its converter, and what targets ask of a graph.

Its input is a standardized picture in the layout phones hold one, (1, H, W, 3), and its answer is a dictionary of named
outputs. Whoever writes the file puts the uint8 picture in front.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeface.errors import ModelError
from edgeface.specs import ModelSpec
from quantize.graph import INPUT, Graph, Node, apply


class Program(nn.Module):
    """A graph as a module that converters can trace: batch 1, picture in (1, H, W, 3), outputs by name.

    Args:
        graph: The network.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        # Buffers are numbered, since node names may hold characters a buffer's name may not.
        self.slots = {node.name: slot for slot, node in enumerate(graph.nodes) if node.name in graph.weights}
        for name, slot in self.slots.items():
            weight = channels_last(graph, graph.node(name), graph.weights[name])
            self.register_buffer(f"weight_{slot}", weight.detach().float().clone())
            self.register_buffer(f"bias_{slot}", graph.biases[name].detach().float().clone())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Raw outputs.

        Args:
            image: (1, H, W, 3), float (x − mean)/std.

        Returns:
            Output name to (1, *shape).
        """
        values: dict[str, Tensor] = {INPUT: image}  # maps are kept channels last, as they lie in the file
        for node in self.graph.nodes:
            values[node.name] = self._compute(node, [values[name] for name in node.inputs])
        return {
            output: values[name].reshape(1, *self.graph.output_shape(output))
            if output in self.graph.output_shapes
            else values[name]
            for output, name in self.graph.outputs.items()
        }

    def _compute(self, node: Node, inputs: list[Tensor]) -> Tensor:
        # Whatever can work channels last does, and padding too, so that no TRANSPOSE is left in the file.
        x = inputs[0]
        match node.op:
            case "flatten":
                return x.flatten(1)
            case "cells":
                return x
            case "mean":
                value = x.mean((1, 2))
                return F.relu(value) if node.relu else value
            case "mfm":
                return torch.maximum(*x.chunk(2, dim=-1))
            case "add":
                value = x + inputs[1]
                return F.relu(value) if node.relu else value
        top, bottom, left, right = node.padding
        if (top, left) != (bottom, right):
            inputs, node = [F.pad(x, (0, 0, left, right, top, bottom))], replace(node, padding=(0, 0, 0, 0))
        if x.ndim == 4:
            inputs = [value.permute(0, 3, 1, 2) for value in inputs]
        weights = {}
        if node.name in self.slots:
            slot = self.slots[node.name]
            weights = {"weight": self.get_buffer(f"weight_{slot}"), "bias": self.get_buffer(f"bias_{slot}")}
        value = apply(node, inputs, **weights)
        return value.permute(0, 2, 3, 1) if x.ndim == 4 else value


def flattened_map(graph: Graph, node: Node) -> tuple[int, int, int] | None:
    """(C, H, W) of the map whose flattened form a linear node reads, or None."""
    if node.op != "linear" or node.inputs[0] == INPUT:
        return None
    source = graph.node(node.inputs[0])
    if source.op != "flatten":
        return None
    before = source.inputs[0]
    channels, height, width = (3, graph.input_px, graph.input_px) if before == INPUT else graph.node(before).shape
    return channels, height, width


def channels_last(graph: Graph, node: Node, weight: Tensor) -> Tensor:
    """A node's weight; behind a flatten its columns are in the order of an (H, W, C) map instead of (C, H, W)."""
    shape = flattened_map(graph, node)
    if shape is None:
        return weight
    return weight.reshape(-1, *shape).permute(0, 2, 3, 1).flatten(1)


def lossless_grid(graph: Graph) -> tuple[float, int] | None:
    """As `lossless_grid_of`, for a graph."""
    return lossless_grid_of(graph.mean, graph.std)


def lossless_grid_of(mean: tuple[float, float, float], std: tuple[float, float, float]) -> tuple[float, int] | None:
    """Scale and zero point at which the uint8 picture is already the standardized input.

    Returns:
        (1/std, mean) when one power-of-two std and one whole mean serve every channel, else None.
    """
    if len(set(mean)) > 1 or len(set(std)) > 1:
        return None
    if mean[0] != int(mean[0]) or not 0 <= mean[0] <= 255 or math.frexp(std[0])[0] != 0.5:
        return None
    return 1.0 / std[0], int(mean[0])


def check_outputs(graph: Graph, spec: ModelSpec) -> None:
    """Refuse a graph that does not have a spec's input and outputs.

    Raises:
        ModelError: Naming what differs.
    """
    found = {name: tuple(graph.output_shape(name)) for name in graph.outputs}
    expected = {output.name: tuple(output.shape) for output in spec.outputs}
    if found != expected or graph.input_px != spec.input_px:
        raise ModelError(
            f"outputs {found} of a {graph.input_px} px picture",
            expected=f"{expected} of a {spec.input_px} px picture",
            where=f"the graph of {spec.name!r}",
            do="Take the graph and the spec from the same checkpoint",
        )
