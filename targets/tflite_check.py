"""What a TFLite file computes, read from the file alone and compared with the network it claims to be.

Each layer is found by the values of its weights and by what it reads, never by its place or its name. Then everything
that decides its result is compared: strides, padding, ReLU, types, scales, zero points, and which output is whose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeface.errors import ModelError
from quantize.graph import INPUT, Graph, Node
from quantize.grid import Quantized
from targets.flatbuffer import LAYERS, Flatbuffer, enum
from targets.program import channels_last, lossless_grid

# What may stand between a node's tensors without changing a value, rounding to the tensor's grid aside.
MOVES = ("RESHAPE", "TRANSPOSE", "PAD", "QUANTIZE", "DEQUANTIZE")
_HALVES = ("SLICE", "STRIDED_SLICE", "SPLIT")
_PICTURE = ("CAST", "SUB", "DIV")
_NODE_OP = {
    "CONV_2D": "conv2d",
    "FULLY_CONNECTED": "linear",
    "MAX_POOL_2D": "max_pool",
    "MAXIMUM": "mfm",
    "ADD": "add",
    "MEAN": "mean",
}

Stored = tuple[NDArray[Any], NDArray[np.float32]]  # values, and their scales, which float values have none of
Same = Callable[[Node, Stored, Stored], bool]


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which node each part of a file belongs to.

    Attributes:
        tensors: Tensor index to the node whose grid it has (`root` names), activations only.
        nodes: Place of an operator to the node it computes; operators that only move values are not in it.
    """

    tensors: Mapping[int, str]
    nodes: Mapping[int, str]


def root(graph: Graph, name: str) -> str:
    """The node itself, or what a flatten or cells reads: a file may do these with RESHAPE or with nothing."""
    while name != INPUT and graph.node(name).op in ("flatten", "cells"):
        name = graph.node(name).inputs[0]
    return name


def match(file: Flatbuffer, graph: Graph, same: Same) -> Match:
    """Find each operator's node.

    Args:
        file: Of this network.
        graph: The network.
        same: Whether a node's weight and bias are these.

    Raises:
        ModelError: An operation belongs to no node, or to more than one.
    """
    outputs = {index: name for name, index in file.outputs.items()}
    tensors: dict[int, str] = {file.input: INPUT}
    halves: set[int] = set()
    nodes: dict[int, str] = {}
    readers: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
    for node in graph.nodes:
        key = tuple(sorted(root(graph, name) for name in node.inputs))
        readers.setdefault((node.op, key), []).append(node)
    for place, operator in enumerate(file.operators):
        kind = file.kind(operator)
        read = [int(index) for index in operator.inputs if int(index) in tensors]
        output = int(operator.outputs[0])
        where = file.name(output)
        if kind in MOVES or (kind in _PICTURE and read and tensors[read[0]] == INPUT):
            if read:  # a half-float weight's DEQUANTIZE reads no activation
                tensors[output] = tensors[read[0]]
            continue
        if kind in _HALVES and read:
            for index in operator.outputs:
                tensors[int(index)] = tensors[read[0]]
                halves.add(int(index))
            continue
        op = _NODE_OP.get(kind)
        if op is None or not read:
            raise differs(where, f"operation {kind}", f"one of {', '.join((*_NODE_OP, *MOVES, 'SLICE'))}")
        if op == "mfm" and not halves.issuperset(read):
            raise differs(where, "MAXIMUM of tensors that are not two halves of one", "a max-feature-map")
        names = sorted({tensors[index] for index in read} if op == "mfm" else [tensors[index] for index in read])
        found = readers.get((op, tuple(names)), [])
        if op in ("conv2d", "linear"):
            weight, bias = _stored(file, operator, 1), _stored(file, operator, 2)
            found = [node for node in found if same(node, weight, bias)]
        if len(found) > 1:
            wanted = _consumer_output(file, output, outputs)
            found = [node for node in found if wanted is not None and graph.outputs.get(wanted) == node.name] or found
        if len(found) != 1:
            raise differs(
                where,
                f"{kind} on {', '.join(map(repr, names))} equals {len(found)} layers of the network",
                "exactly one with these weights",
            )
        tensors[output] = root(graph, found[0].name)
        nodes[place] = found[0].name
    return Match(tensors=tensors, nodes=nodes)


def check_float(content: bytes, graph: Graph, *, precision: str, float_input: bool = False) -> None:
    """Compare a file of float activations with the network it claims to be.

    Args:
        content: The file.
        graph: The network.
        precision: "fp32", "fp16" or "w8a32": how the weights are stored.
        float_input: As of `tflite.write`.

    Raises:
        ModelError: A layer, output, type or the picture's way in differs, or a TRANSPOSE or needless PAD is left.
    """
    file = Flatbuffer(content)
    weights = {"fp32": "FLOAT32", "fp16": "FLOAT16", "w8a32": "INT8"}[precision]
    found = match(file, graph, _float_parameters(graph))
    stored = set()
    for place in found.nodes:
        operator = file.operators[place]
        if file.kind(operator) in LAYERS:
            stored.add(_source(file, int(operator.inputs[1])))
            if file.dtype(_source(file, int(operator.inputs[1]))) != weights:
                raise differs(
                    found.nodes[place], f"a {file.dtype(int(operator.inputs[1]))} weight", f"{weights} weights"
                )
    for index in range(len(file.tensors)):
        kind = file.dtype(index)
        if kind not in ("FLOAT32", "INT32") and index not in stored and index != file.input:
            raise differs(file.name(index), f"a {kind} tensor", "float activations")
    _check_structure(file, graph, found)
    _check_picture(file, graph, integer=False, float_input=float_input)


def check_w8a8(content: bytes, quantized: Quantized, *, float_input: bool = False) -> None:
    """Compare an int8 file with the grid it claims to carry, tensor by tensor.

    Args:
        content: The file.
        quantized: The integer network; its `floats` must be float in the file, and nothing else.
        float_input: As of `tflite.write`.

    Raises:
        ModelError: A scale, zero point, weight, bias, type, stride, padding, ReLU or output differs, a float tensor is
            where none should be, or a TRANSPOSE or needless PAD is left.
    """
    file = Flatbuffer(content)
    graph = quantized.graph
    found = match(file, graph, _integer_parameters(quantized))
    floats = _float_tensors(file, found, quantized)
    for index in range(len(file.tensors)):
        kind = file.dtype(index)
        if index == file.input:
            continue
        if index in floats or kind not in ("INT8", "INT32"):
            if index in floats and kind == "FLOAT32":
                continue
            expected = "float32, as the quantization asks" if index in floats else "int8 tensors only"
            raise differs(file.name(index), f"a {kind} tensor", expected)
        if index in found.tensors:
            owner = found.tensors[index]
            _check_grid(file, index, quantized.activations[owner], where=owner)
    for place, name in found.nodes.items():
        operator = file.operators[place]
        if file.kind(operator) in LAYERS and name not in quantized.floats:
            _check_integer_layer(file, operator, name, quantized)
    for operator in file.operators:
        # Between two int8 tensors of one grid there is nothing to round.
        if file.kind(operator) == "QUANTIZE" and file.dtype(int(operator.inputs[0])) == "INT8":
            raise differs(file.name(int(operator.outputs[0])), "int8 rounded again", "one rounding")
    _check_structure(file, graph, found)
    _check_picture(file, graph, integer=True, float_input=float_input)


def float_weight(graph: Graph, node: Node) -> NDArray[np.float32]:
    """A layer's weight as a file stores it: OHWI or (out, in), channels last behind a flatten."""
    return file_layout(graph, node, graph.weights[node.name].detach().float().numpy())


def integer_weight(quantized: Quantized, node: Node) -> NDArray[np.int8]:
    """As `float_weight`, on the integer grid."""
    return file_layout(quantized.graph, node, quantized.weights[node.name])


def file_layout(graph: Graph, node: Node, weight: NDArray[Any]) -> NDArray[Any]:
    """A weight in the graph's order of axes, in TFLite's."""
    if weight.ndim == 4:
        return np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
    return np.ascontiguousarray(channels_last(graph, node, torch.from_numpy(np.ascontiguousarray(weight))).numpy())


def bias_steps(quantized: Quantized, node: Node) -> NDArray[np.float32]:
    """Scales of a layer's int32 bias."""
    scales = quantized.weight_scales[node.name].astype(np.float32)
    steps: NDArray[np.float32] = np.float32(quantized.activations[node.inputs[0]][0]) * scales
    return steps


def differs(where: str, found: str, expected: str) -> ModelError:
    return ModelError(
        found,
        expected=expected,
        where=f"layer {where!r} of the TFLite file",
        do="The file was not written; report this network's recipe",
    )


def _float_parameters(graph: Graph) -> Same:
    def same(node: Node, weight: Stored, bias: Stored) -> bool:
        return _is_float(graph, node, weight, bias)

    return same


def _integer_parameters(quantized: Quantized) -> Same:
    def same(node: Node, weight: Stored, bias: Stored) -> bool:
        if node.name in quantized.floats:
            return weight[0].dtype == np.float32 and _is_float(quantized.graph, node, weight, bias)
        return (
            weight[0].dtype == np.int8
            and np.array_equal(weight[0], integer_weight(quantized, node))
            and np.array_equal(bias[0], quantized.biases[node.name])
        )

    return same


def _is_float(graph: Graph, node: Node, weight: Stored, bias: Stored) -> bool:
    """Whether stored values are a layer's: exactly, rounded to half floats, or to within half a step of int8."""
    expected = float_weight(graph, node)
    if weight[0].shape != expected.shape or not np.array_equal(bias[0], graph.biases[node.name].detach().numpy()):
        return False
    values, scales = weight
    if values.dtype == np.float32:
        return np.array_equal(values, expected)
    if values.dtype == np.float16:
        return np.array_equal(values, expected.astype(np.float16))
    steps = scales.astype(np.float64).reshape(-1, *[1] * (values.ndim - 1))
    # One rounding in float32 lies between a value and its code.
    return bool(np.all(np.abs(expected - values * steps) <= steps * (0.5 + 1e-4)))


def _producer(file: Flatbuffer, index: int) -> Any:
    return next((operator for operator in file.operators if index in [int(i) for i in operator.outputs]), None)


def _source(file: Flatbuffer, index: int) -> int:
    """Where a constant lies: itself, or the half floats that a DEQUANTIZE widens."""
    operator = _producer(file, index)
    return index if operator is None or file.kind(operator) != "DEQUANTIZE" else int(operator.inputs[0])


def _stored(file: Flatbuffer, operator: Any, operand: int) -> Stored:
    """A layer's weight (1) or bias (2)."""
    nothing = np.zeros(0, np.float32)
    if len(operator.inputs) <= operand or int(operator.inputs[operand]) < 0:
        return nothing, nothing
    index = _source(file, int(operator.inputs[operand]))
    values = file.constant(index)
    if values is None:
        return nothing, nothing
    return values, file.scales(index)


def _consumer_output(file: Flatbuffer, index: int, outputs: Mapping[int, str]) -> str | None:
    """The output that a tensor is, or that a RESHAPE makes of it."""
    if index in outputs:
        return outputs[index]
    for operator in file.operators:
        if file.kind(operator) == "RESHAPE" and int(operator.inputs[0]) == index:
            return outputs.get(int(operator.outputs[0]))
    return None


def _float_tensors(file: Flatbuffer, found: Match, quantized: Quantized) -> set[int]:
    """The tensors that must be float32: operands and results of `floats`, and outputs that leave in float."""
    floats = set()
    for place, name in found.nodes.items():
        if name not in quantized.floats:
            continue
        operator = file.operators[place]
        floats |= {int(index) for index in (*operator.inputs, *operator.outputs)}
        source = _producer(file, int(operator.inputs[0]))
        # Reading another float layer's result as it is would leave out a rounding that the specification has.
        if source is None or file.kind(source) != "DEQUANTIZE" or file.dtype(int(source.inputs[0])) != "INT8":
            raise differs(name, "an operand that was not rounded", "DEQUANTIZE of an int8 tensor")
    named = {output: index for output, index in file.outputs.items() if output in quantized.graph.outputs}
    return floats | {index for output, index in named.items() if quantized.is_float(output)}


def _check_integer_layer(file: Flatbuffer, operator: Any, name: str, quantized: Quantized) -> None:
    kinds = [file.dtype(int(index)) for index in (*operator.inputs, *operator.outputs)]
    if kinds != ["INT8", "INT8", "INT32", "INT8"]:
        raise differs(name, f"types {kinds}", "int8 x int8 + int32 -> int8")
    node = quantized.graph.node(name)
    scales = quantized.weight_scales[name].astype(np.float32)
    for operand, expected in ((1, scales), (2, bias_steps(quantized, node))):
        index = int(operator.inputs[operand])
        if not np.array_equal(file.scales(index), expected) or any(file.zero_points(index)):
            what = "weight" if operand == 1 else "bias"
            raise differs(name, f"{what} scales {file.scales(index)[:4]}", f"{expected[:4]}")
    if file.axis(int(operator.inputs[1])) != 0:
        raise differs(name, "weight scales along another axis", "one per output channel")


def _check_grid(file: Flatbuffer, index: int, grid: tuple[float, int], *, where: str) -> None:
    scales, zero_points = file.scales(index), file.zero_points(index)
    if not np.array_equal(scales, np.array([grid[0]], np.float32)) or zero_points != [int(grid[1])]:
        raise differs(
            where, f"scale {scales.tolist()}, zero point {zero_points}", f"{np.float32(grid[0])}, {int(grid[1])}"
        )


def _check_structure(file: Flatbuffer, graph: Graph, found: Match) -> None:
    """Every node once, with its stride, padding and ReLU; every output in its shape; no TRANSPOSE, no needless PAD."""
    for operator in file.operators:
        if file.kind(operator) == "TRANSPOSE":
            raise differs(file.name(int(operator.outputs[0])), "a TRANSPOSE", "none")
    computed = sorted(found.nodes.values())
    expected = sorted(node.name for node in graph.nodes if node.op not in ("flatten", "cells"))
    if computed != expected:
        wrong = sorted(set(expected) ^ set(computed)) or [name for name in expected if computed.count(name) > 1]
        raise differs(wrong[0], f"{computed.count(wrong[0])} operations in the file", "one")
    for place, name in found.nodes.items():
        _check_geometry(file, file.operators[place], graph.node(name))
    if set(file.outputs) != set(graph.outputs):
        raise differs("outputs", f"{sorted(file.outputs)}", f"{sorted(graph.outputs)}")
    for output, index in file.outputs.items():
        if found.tensors.get(index) != root(graph, graph.outputs[output]):
            raise differs(output, f"the values of {found.tensors.get(index)!r}", f"of {graph.outputs[output]!r}")
        if file.shape(index) != (1, *graph.output_shape(output)):
            raise differs(output, f"shape {file.shape(index)}", f"{(1, *graph.output_shape(output))}")


def _check_geometry(file: Flatbuffer, operator: Any, node: Node) -> None:
    options = operator.builtinOptions
    relu = getattr(options, "fusedActivationFunction", 0)
    if relu != enum("ActivationFunctionType", "RELU" if node.relu else "NONE"):
        raise differs(node.name, "a fused ReLU" if relu else "no fused ReLU", "the other")
    if node.op not in ("conv2d", "max_pool"):
        return
    if (options.strideH, options.strideW) != node.stride:
        raise differs(node.name, f"stride {(options.strideH, options.strideW)}", f"{node.stride}")
    if node.op == "max_pool" and (options.filterHeight, options.filterWidth) != node.kernel:
        raise differs(node.name, f"kernel {(options.filterHeight, options.filterWidth)}", f"{node.kernel}")
    source = int(operator.inputs[0])
    rows, columns = file.shape(source)[1:3]
    pads = (0, 0, 0, 0)
    if options.padding == enum("Padding", "SAME"):
        pads = same_pads((rows, columns), node)
    before = _producer(file, source)
    if before is not None and file.kind(before) == "PAD":
        rows, columns = file.shape(int(before.inputs[0]))[1:3]
        if same_pads((rows, columns), node) == node.padding:
            raise differs(node.name, "a PAD", "padding SAME, which is the same")
        added = file.constant(int(before.inputs[1]))
        assert added is not None
        pads = (pads[0] + added[1, 0], pads[1] + added[1, 1], pads[2] + added[2, 0], pads[3] + added[2, 1])
    if tuple(int(pad) for pad in pads) != node.padding:
        raise differs(node.name, f"padding {tuple(int(pad) for pad in pads)}", f"{node.padding}")


def same_pads(size: tuple[int, int], node: Node) -> tuple[int, int, int, int]:
    """Zeros that TFLite's SAME puts at the top, bottom, left and right of a map of (rows, columns)."""
    pads = []
    for side, kernel, stride in zip(size, node.kernel, node.stride, strict=True):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return pads[0], pads[1], pads[2], pads[3]


def _check_picture(file: Flatbuffer, graph: Graph, *, integer: bool, float_input: bool) -> None:
    """The way from the input to the network: the picture's grid, or the arithmetic that stands for it."""
    index, side = file.input, graph.input_px
    expected = ("image", "FLOAT32" if float_input else "UINT8", (1, side, side, 3))
    if (file.name(index), file.dtype(index), file.shape(index)) != expected:
        raise differs(INPUT, f"{file.name(index)} {file.dtype(index)} {file.shape(index)}", f"{expected}")
    way = []
    for operator in file.operators:
        if int(operator.inputs[0]) != index:
            continue
        way.append(operator)
        if file.kind(operator) in (*_PICTURE, "QUANTIZE", "DEQUANTIZE"):
            index = int(operator.outputs[0])
    kinds = [file.kind(operator) for operator in way if file.kind(operator) in (*_PICTURE, "QUANTIZE", "DEQUANTIZE")]
    grid = lossless_grid(graph)
    if integer:
        wanted = ["QUANTIZE"]
    elif float_input:
        wanted = []
    else:
        wanted = ["DEQUANTIZE"] if grid is not None else list(_PICTURE)
    # A first layer in float reads the int8 picture dequantized; that is its own affair.
    if kinds[: len(wanted)] != wanted or any(kind in _PICTURE for kind in kinds[len(wanted) :]):
        raise differs(INPUT, f"{kinds} behind the picture", f"{wanted}")
    if grid is not None and not float_input:
        _check_grid(file, file.input, grid, where=INPUT)
    if grid is None and not float_input:
        for operator, values in zip(way[1:3], (graph.mean, graph.std), strict=True):
            found = file.constant(int(operator.inputs[1]))
            if found is None or not np.array_equal(found.ravel(), np.array(values, np.float32)):
                raise differs(INPUT, f"{file.kind(operator)} {found}", f"{values}")
