"""The integer grid: the written specification of what a chip computes at w8a8, and a simulator that follows it.

Activations. q in −128…127 stands for (q − z)·s, with one float32 scale s and one zero point z per tensor; 0 is always
on the grid. The picture's q is uint8 − 128 with s = 1/64, z = 0. max_pool, mfm and flatten keep their input's grid.

Weights. q in −127…127 stands for q·s_w[c], one scale per output channel c, s_w = largest magnitude / 127.

Biases. int32, standing for q·s_x·s_w[c], where s_x is the scale of the node's input.

Scales carry 16 significant bits (`coarse`). Then k·s is exact in float32 for every integer |k| ≤ 255. So a range
written as least and greatest value gives back the same scale bit for bit, whichever way a tool-kit computes it; weights
on their grid have the scale that put them there; and every value of a float32 network on the grid is exactly a k·s.

conv2d, linear    acc[c] = Σ (q_x − z_x)·q_w + q_b                    in int32
                  q_y = clamp(round(acc·M[c]) + z_y)                  M = s_x·s_w[c] / s_y
mean              acc = Σ (q_x − z_x)                                 M = s_x / (s_y·H·W)
add               q_y = clamp(round((q_a − z_a)·s_a/s_y + (q_b − z_b)·s_b/s_y) + z_y)
clamp is to −128…127, and to z_y…127 with a ReLU. How `round(acc·M)` is computed is what kernel families differ in:

xnnpack              M and the product in float32, ties to even
openvino             the same; targets/openvino.py lays its files out so. add: each operand times s/s_y, in float32, the
                     first fused with the sum, ties to even
coreml               the same; targets/coreml.py lays its files out so. add: each operand times s/s_y, and their sum, in
                     float32, ties to even
tflite-builtin-ref   fixed-point M of 31 bits; conv2d, mean and add round twice, ties away from zero; linear once, up
tflite-builtin       the same, but conv2d and linear round twice, ties up (as on x86)
tflite-builtin-arm64 the same, but conv2d and linear round once, ties up, unless they give one vector of 4 or more

Measured: xnnpack and the two builtin rules equal LiteRT's files bit for bit in every operation, and openvino those of
OpenVINO, on x86 with AVX-512.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.errors import ModelError, UnsupportedError
from quantize.graph import INPUT, SHARING, Graph, Node, apply
from quantize.rounding import FAMILIES, Kernels, Steps

INPUT_SCALE = 1.0 / 64.0
INPUT_ZERO_POINT = 0

# Below these a scale only makes other numbers overflow: a dead channel's bias would leave int32, and XNNPACK refuses a
# multiplier M of 256 or more. 2^-16 is a range of 0.004, 2^-24 a largest weight of 8e-6.
LEAST_ACTIVATION_SCALE = 2.0**-16
LEAST_WEIGHT_SCALE = 2.0**-24
LARGEST_BIAS = 2**30  # half of int32, the rest is left to the sum of products


def coarse(scale: Tensor) -> Tensor:
    """Float32 scales rounded to 16 significant bits, half away from zero."""
    # The float32 significand has 24 bits, so the last 8 go; a carry into the exponent is the right next number.
    return ((scale.view(torch.int32) + 0x80) & ~0xFF).view(torch.float32)


def activation_grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The grid of an activation range.

    Args:
        low: Any shape, float32, at most 0.
        high: As `low`, at least 0.

    Returns:
        Scale (float32, 16 significant bits) and zero point (int32, −128 to 127).
    """
    scale = coarse(((high - low) / 255).clamp_min(LEAST_ACTIVATION_SCALE))
    zero_point = torch.round(-128 - low / scale).clamp(-128, 127)
    return scale, zero_point.to(torch.int32)


def grid_range(scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value on a grid; exact, and `activation_grid` of them is the same grid."""
    return scale * (-128 - zero_point), scale * (127 - zero_point)


def weight_scales(weight: Tensor, bias: Tensor, input_scale: Tensor) -> Tensor:
    """Per-channel weight scales.

    Args:
        weight: (out, …) float32.
        bias: (out,); a channel whose bias would leave the int32 grid takes a larger scale.
        input_scale: Scale of the node's input, one element.

    Returns:
        (out,) float32 with 16 significant bits.
    """
    scale = weight.detach().abs().flatten(1).amax(1) / 127
    room = bias.detach().abs() / (input_scale * LARGEST_BIAS)
    return coarse(torch.maximum(scale, room).clamp_min(LEAST_WEIGHT_SCALE))


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A network on the integer grid: what every w8a8 file must hold.

    Attributes:
        graph: The same network in floating point, its weights and biases snapped to the grid.
        activations: (scale, zero point) of INPUT and of every node; scales are float32-exact.
        weights: Node name to int8, −127 to 127, in the graph's order of axes.
        weight_scales: Node name to float32 (out,).
        biases: Node name to int32 (out,).
        floats: conv2d and linear nodes computed in float32: they read dequantized values, have no integer weights, and
            their result is rounded to its grid again, unless it is an output, which then leaves in float.
    """

    graph: Graph
    activations: Mapping[str, tuple[float, int]]
    weights: Mapping[str, NDArray[np.int8]]
    weight_scales: Mapping[str, NDArray[np.float32]]
    biases: Mapping[str, NDArray[np.int32]]
    floats: frozenset[str] = frozenset()

    def output_grid(self, output: str) -> tuple[float, int]:
        """(scale, zero point) of a named output; its scale is that output's LSB."""
        return self.activations[self.graph.outputs[output]]

    def is_float(self, output: str) -> bool:
        """Whether a named output leaves in float."""
        return self.graph.outputs[output] in self.floats


def dequantize(quantized: Quantized, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Outputs as the float32 values they stand for; one that leaves in float is that value already."""
    values = {}
    for name, codes in outputs.items():
        if quantized.is_float(name):
            values[name] = codes.astype(np.float32, copy=False)
            continue
        scale, zero_point = quantized.output_grid(name)
        values[name] = (codes.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return values


def require_input_grid(graph: Graph) -> None:
    """Refuse a network whose picture is not its own quantized input.

    Raises:
        UnsupportedError: mean and std are not 128 and 64.
    """
    if graph.mean != (128.0,) * 3 or graph.std != (64.0,) * 3:
        raise UnsupportedError(
            f"standardisation with mean {graph.mean} and std {graph.std}",
            expected="mean 128 and std 64 in every channel: then the picture itself is the int8 input",
            where="quantization to w8a8",
            do="Quantize a student; a network with other statistics can be built in fp32 or fp16",
        )


def require_floats(graph: Graph, floats: Collection[str]) -> None:
    """Refuse a choice of float layers that has no meaning.

    Raises:
        UnsupportedError: One is no conv2d or linear node, or is an output that another layer reads too.
    """
    for name in sorted(floats):
        if name not in graph.weights:
            raise UnsupportedError(
                f"{name!r} to be computed in float",
                expected=f"convolutions or linear layers: {', '.join(graph.weights)}",
                where="a mix of precisions",
            )
        readers = [node.name for node in graph.nodes if name in node.inputs]
        if readers and name in graph.outputs.values():
            # It would have to leave in float and be rounded for its reader at once.
            raise UnsupportedError(
                f"layer {name!r} in float, an output which {', '.join(map(repr, readers))} read",
                expected="an output that no layer reads, or an inner layer",
                where="a mix of precisions",
                do=f"Leave {name!r} in int8",
            )


def snap(
    graph: Graph, *, activations: Mapping[str, tuple[float, int]], floats: frozenset[str] = frozenset()
) -> Quantized:
    """The nearest network on the grid.

    Args:
        graph: Float weights and biases.
        activations: (scale, zero point) of INPUT and every node.
        floats: See Quantized.floats; these layers keep their weights as they are.

    Raises:
        UnsupportedError: The input's standardisation is not that of the grid, or `floats` cannot be.
        ModelError: A weight or bias is not a finite number.
    """
    require_input_grid(graph)
    require_floats(graph, floats)
    weights: dict[str, NDArray[np.int8]] = {}
    scales: dict[str, NDArray[np.float32]] = {}
    biases: dict[str, NDArray[np.int32]] = {}
    snapped_weights: dict[str, Tensor] = {}
    snapped_biases: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.name not in graph.weights:
            continue
        weight, bias = graph.weights[node.name].detach().cpu(), graph.biases[node.name].detach().cpu()
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise ModelError("weights that are not finite", where=f"layer {node.name!r}", do="Train it again")
        if node.name in floats:
            snapped_weights[node.name], snapped_biases[node.name] = weight, bias
            continue
        input_scale = activations[node.inputs[0]][0]
        scale = weight_scales(weight, bias, torch.tensor(input_scale, dtype=torch.float32))
        by_channel = scale.double().view(-1, *[1] * (weight.ndim - 1))
        codes = torch.round(weight.double() / by_channel).clamp(-127, 127)
        step = scale.double() * input_scale
        bias_codes = torch.round(bias.double() / step)
        weights[node.name] = codes.to(torch.int8).numpy()
        scales[node.name] = scale.numpy()
        biases[node.name] = bias_codes.to(torch.int32).numpy()
        snapped_weights[node.name] = (codes * by_channel).float()
        snapped_biases[node.name] = (bias_codes * step).float()
    return Quantized(
        graph=replace(graph, weights=snapped_weights, biases=snapped_biases),
        activations=dict(activations),
        weights=weights,
        weight_scales=scales,
        biases=biases,
        floats=floats,
    )


def simulate(
    quantized: Quantized, batch: NDArray[np.uint8], *, kernels: Kernels = "xnnpack"
) -> dict[str, NDArray[Any]]:
    """The outputs a chip computes, bit for bit.

    Args:
        quantized: The network.
        batch: (B, H, W, 3) RGB pictures.
        kernels: Whose rounding.

    Returns:
        Output name to (B, *shape): int8, or float32 for an output that leaves in float.
    """
    values = simulate_nodes(quantized, batch, kernels=kernels)
    graph = quantized.graph
    return {
        output: values[name].reshape(len(batch), *graph.output_shape(output)) for output, name in graph.outputs.items()
    }


def simulate_nodes(
    quantized: Quantized, batch: NDArray[np.uint8], *, kernels: Kernels = "xnnpack"
) -> dict[str, NDArray[Any]]:
    """As `simulate`, for INPUT and every node: (B, *node.shape), channels first."""
    if kernels not in get_args(Kernels):
        raise UnsupportedError(
            f"{kernels!r} is not a kernel family",
            expected=f"one of {', '.join(map(repr, get_args(Kernels)))}",
            where="simulation of the integer grid",
        )
    side = quantized.graph.input_px
    if batch.dtype != np.uint8 or batch.shape[1:] != (side, side, 3):
        raise ModelError(f"pictures {batch.dtype} {batch.shape}", expected=f"uint8 (B, {side}, {side}, 3)")
    pictures = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    values: dict[str, NDArray[Any]] = {INPUT: (pictures.astype(np.int16) - 128).astype(np.int8)}
    leaves = set(quantized.graph.outputs.values())
    for node in quantized.graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if node.name in quantized.floats:
            y = _float_node(quantized, node, inputs[0])
            values[node.name] = y if node.name in leaves else _to_codes(y, *quantized.activations[node.name])
        else:
            values[node.name] = _simulate_node(quantized, node, inputs, kernels=kernels)
    return values


@torch.no_grad()
def _float_node(quantized: Quantized, node: Node, codes: NDArray[np.int8]) -> NDArray[np.float32]:
    scale, zero_point = quantized.activations[node.inputs[0]]
    # Summed in float64 and rounded once: the value every float32 kernel is near to, whatever its order of summation.
    x = (torch.from_numpy(codes).double() - zero_point) * scale
    weight, bias = quantized.graph.weights[node.name].double(), quantized.graph.biases[node.name].double()
    return apply(node, [x], weight=weight, bias=bias).float().numpy()


def _to_codes(values: NDArray[np.float32], scale: float, zero_point: int) -> NDArray[np.int8]:
    codes: NDArray[np.float32] = np.rint(values / np.float32(scale)) + np.float32(zero_point)
    return np.clip(codes, -128, 127).astype(np.int8)


@torch.no_grad()
def _simulate_node(
    quantized: Quantized, node: Node, inputs: list[NDArray[np.int8]], *, kernels: Kernels
) -> NDArray[np.int8]:
    # Sums of products of small integers are exact in float64 (below 2^53) in any order; float32 would be so only below
    # 2^24 and without Winograd kernels.
    operands = [torch.from_numpy(codes).double() for codes in inputs]
    if node.op in SHARING:
        return apply(node, operands).to(torch.int8).numpy()
    family = FAMILIES[kernels]
    grids = [quantized.activations[name] for name in node.inputs]
    out_scale, out_zero = quantized.activations[node.name]
    least = max(-128, out_zero) if node.relu else -128
    centred = [x - zero for x, (_, zero) in zip(operands, grids, strict=True)]
    in_scale = grids[0][0]
    if node.op == "add":
        rounded = family.add(
            centred[0].numpy().astype(np.int64),
            centred[1].numpy().astype(np.int64),
            grids[0][0],
            grids[1][0],
            out_scale,
        )
        return np.clip(rounded + out_zero, least, 127).astype(np.int8)
    if node.op == "mean":
        sums = centred[0].sum((2, 3))
        count = inputs[0].shape[2] * inputs[0].shape[3]
        scales = np.ones(1, np.float32)
    else:
        weight = torch.from_numpy(quantized.weights[node.name]).double()
        bias = torch.from_numpy(quantized.biases[node.name]).double()
        sums = apply(replace(node, relu=False), centred, weight=weight, bias=bias)
        count = 1
        scales = quantized.weight_scales[node.name]
    accumulated = sums.numpy()
    if np.abs(accumulated).max(initial=0.0) >= 2.0**31:
        raise ModelError(f"layer {node.name!r}: a sum leaves int32", expected="weights that a chip can add up")
    by_channel = scales.reshape(1, -1, *[1] * (accumulated.ndim - 2))
    steps = Steps(source=in_scale, weights=by_channel, count=count, result=out_scale)
    rule = {"conv2d": family.conv2d, "linear": family.linear, "mean": family.mean}[node.op]
    rounded = rule(accumulated.astype(np.int64), steps)
    return np.clip(rounded + out_zero, least, 127).astype(np.int8)
