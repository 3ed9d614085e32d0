"""How much noise each layer of the integer network adds up to, against the same network in floating point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.errors import ModelError
from quantize.graph import INPUT, Graph, apply, layer_macs
from quantize.grid import Quantized, simulate_nodes


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The result of one layer in integers beside its result in float.

    Attributes:
        layer: Node name.
        kind: Its operation, such as "conv2d" (quantize.graph.Op).
        sqnr_db: Signal to noise over all faces, of its own rounding and that of the layers before it; infinite
            where the two are equal.
        macs: Multiply-accumulates of one picture; 0 for layers without weights.
    """

    layer: str
    kind: str
    sqnr_db: float
    macs: int


@torch.no_grad()
def layer_errors(graph: Graph, quantized: Quantized, images: NDArray[np.uint8], *, batch: int = 64) -> list[LayerError]:
    """Every layer's signal-to-noise ratio, in execution order.

    Args:
        graph: The network in float: `quantized.graph`, which shows rounding alone, or the float student, which also
            shows how far training has moved the layers.
        quantized: The network on the integer grid.
        images: (N, I, I, 3) RGB pictures.
        batch: Pictures at once.

    Raises:
        ModelError: The two are not the same layers.
    """
    nodes = {node.name: node for node in quantized.graph.nodes}
    if [(node.name, node.op, node.shape) for node in graph.nodes] != [(n.name, n.op, n.shape) for n in nodes.values()]:
        raise ModelError(
            f"layers {', '.join(node.name for node in graph.nodes)}",
            expected=f"those of the integer network: {', '.join(nodes)}",
            where="layer errors",
            do="Compare a network with what it was quantized from",
        )
    leaves = set(quantized.graph.outputs.values())
    signal = dict.fromkeys(nodes, 0.0)
    noise = dict.fromkeys(nodes, 0.0)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (graph.mean, graph.std))
    for start in range(0, len(images), batch):
        pictures = np.array(images[start : start + batch])  # a copy: torch wants to be able to write
        held = simulate_nodes(quantized, pictures)
        values: dict[str, Tensor] = {INPUT: (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - mean) / std}
        for name, node in nodes.items():
            weight, bias = graph.weights.get(name), graph.biases.get(name)
            values[name] = apply(node, [values[each] for each in node.inputs], weight=weight, bias=bias)
            real = values[name].double()
            rounded = torch.from_numpy(held[name]).double()
            if not (name in quantized.floats and name in leaves):
                scale, zero_point = quantized.activations[name]
                rounded = (rounded - zero_point) * scale
            signal[name] += float(real.square().sum())
            noise[name] += float((real - rounded).square().sum())
    macs = layer_macs(graph)
    return [
        LayerError(layer=name, kind=node.op, sqnr_db=_decibels(signal[name], noise[name]), macs=macs.get(name, 0))
        for name, node in nodes.items()
    ]


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf
