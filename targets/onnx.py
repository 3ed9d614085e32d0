"""ONNX files and ONNX Runtime: the only module that imports onnx, onnxslim and onnxruntime.

A file has one input, `image`, a (1, H, W, 3) uint8 RGB picture, and one float32 output per task, named after it, in the
task's shape. ONNX's operations want channels first, so the picture is transposed once, while it is still uint8; that is
the only transposition. Layers keep the names of the graph's nodes. Operation set 21 is the first whose quantization has
every type used here; ONNX Runtime 1.31 takes it and all later ones.

The w8a8 file is quantized in the QDQ form: an operation in float between DequantizeLinear and QuantizeLinear, which a
runtime replaces by its integer kernel. Its numbers are those of a `Quantized`:

picture      the codes themselves: scale 1/64, zero point 128; no arithmetic of ours precedes the first layer
activations  uint8, one scale and zero point per tensor: the grid of QAT moved up by 128, code and zero point alike
weights      int8, DequantizeLinear over axis 0 with the scale of each channel
biases       int32, DequantizeLinear with scale s_x·s_w[c]

The codes are uint8 rather than int8 because then the picture has the type of every other tensor: ONNX Runtime fuses a
layer only when what it reads and what it makes are of one type, and on x86 it turns int8 into uint8 by itself anyway.
max_pool, max-feature-map, flatten and cells work on the codes: they keep the grid and cannot round.
"""

from __future__ import annotations

import importlib
import json
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.config import to_plain
from edgeface.errors import EdgefaceError, MissingToolError, ModelError, OutputError, UnsupportedError
from edgeface.evaluate import Outputs
from edgeface.files import write_bytes
from edgeface.memory import limit_error
from edgeface.precision import check
from edgeface.specs import ModelSpec
from quantize.graph import INPUT, SHARING, Graph, Node
from quantize.grid import Quantized, require_input_grid
from targets.foreign import (
    minimal_spec,
    random_input,
    require_outputs,
    require_pictures,
    standardize,
    takes_no_picture,
    try_apart,
)
from targets.protocol import Grids, Operations, Port
from targets.silence import silenced

NOTE = "edgeface"  # key of the metadata entry
OPSET = 21
IR_VERSION = 10  # that of operation set 21

SHIFT = 128  # codes in the file are uint8
_INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul")


def write(
    files: Mapping[str, Path],
    *,
    graph: Graph | None,
    quantized: Quantized | None,
    model: ModelSpec,
    float_input: bool = False,
    lap: Callable[[str], None] = lambda step: None,
) -> None:
    """Write files of one network.

    Args:
        files: Precision to the path to write.
        graph: The float network, for fp32.
        quantized: The integer network, for w8a8.
        model: What each file says it is.
        float_input: The input is float32 (1, H, W, 3), a standardized picture (x − mean)/std.
        lap: Told of each step when it is done.

    Raises:
        UnsupportedError: The picture is not the int8 input as it stands, or no network was given for a precision.
        ModelError: A file would differ from its network; the message names the layer. It is not written then.
        MissingToolError: onnx, onnxslim or onnxruntime is not installed.
        OutputError: The folder cannot be written.
    """
    for precision, path in files.items():
        check("onnx", precision, where="writing ONNX")
        source = quantized if precision == "w8a8" else graph
        if source is None:
            raise UnsupportedError(
                f"{precision!r} without the {'integer' if precision == 'w8a8' else 'float'} network",
                expected="the checkpoint it is made from",
                where="writing ONNX",
                do="Run `edgeface quantize` first" if precision == "w8a8" else "Build from the run that holds both",
            )
        if isinstance(source, Quantized):
            require_input_grid(source.graph)
        note = {"schema": 1, "model": to_plain(model), "precision": precision}
        content = _slimmed(_build(source, note=note, float_input=float_input))
        if isinstance(source, Quantized):
            check_w8a8(content, source)
        else:
            check_fp32(content, source)
        write_bytes(path, content)
        lap(f"write {precision}")


def _build(source: Graph | Quantized, *, note: Mapping[str, object], float_input: bool) -> Any:
    onnx = _import("onnx")
    builder = _Builder(source) if isinstance(source, Graph) else _Builder(source.graph, source)
    graph = builder.graph
    side, elements = graph.input_px, onnx.TensorProto
    builder.enter(float_input=float_input)
    for node in graph.nodes:
        builder.add(node)
    for output in graph.outputs:
        builder.leave(output)
    kind = elements.FLOAT if float_input else elements.UINT8
    info = onnx.helper.make_tensor_value_info
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            builder.nodes,
            "edgeface",
            [info(INPUT, kind, (1, side, side, 3))],
            [info(output, elements.FLOAT, (1, *graph.output_shape(output))) for output in graph.outputs],
            builder.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgeface",
    )
    onnx.helper.set_model_props(proto, {NOTE: json.dumps(note, sort_keys=True)})
    return proto


@dataclass
class _Builder:
    """Nodes and constants of a file.

    Attributes:
        values: Graph node, or INPUT, to the tensor that holds it: codes at w8a8, else float.
        real: The same to the tensor that holds it in float, made when it is first read.
    """

    graph: Graph
    quantized: Quantized | None = None
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)

    def emit(self, operation: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Append one operation; the name of its result."""
        self.nodes.append(_import("onnx.helper").make_node(operation, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(_import("onnx.numpy_helper").from_array(np.asarray(values, order="C"), name))
        return name

    def grid(self, name: str) -> list[str]:
        """Scale and zero point of a value, as constants named after whose grid it is."""
        assert self.quantized is not None
        scale, zero_point = self.quantized.activations[name]
        names = [f"{name}/scale", f"{name}/zero_point"]
        if not any(constant.name == names[0] for constant in self.constants):
            self.constant(names[0], np.array(scale, np.float32))
            self.constant(names[1], np.array(zero_point + SHIFT, np.uint8))
        return names

    def enter(self, *, float_input: bool) -> None:
        picture = INPUT
        if float_input and self.quantized is not None:
            picture = self.emit("QuantizeLinear", f"{INPUT}/quantize", [picture, *self.grid(INPUT)])
        picture = self.emit("Transpose", f"{INPUT}/transpose", [picture], perm=[0, 3, 1, 2])
        if self.quantized is None and not float_input:
            picture = self.emit("Cast", f"{INPUT}/cast", [picture], to=_import("onnx").TensorProto.FLOAT)
            for operation, statistic, values in (("Sub", "mean", self.graph.mean), ("Div", "std", self.graph.std)):
                column = self.constant(f"{INPUT}/{statistic}", np.array(values, np.float32).reshape(1, 3, 1, 1))
                picture = self.emit(operation, f"{INPUT}/{operation.lower()}", [picture, column])
        self.values[INPUT] = picture

    def read(self, name: str) -> str:
        """A node's result in float."""
        if self.quantized is None:
            return self.values[name]
        if name not in self.real:
            inputs = [self.values[name], *self.grid(name)]
            self.real[name] = self.emit("DequantizeLinear", f"{name}/dequantize", inputs)
        return self.real[name]

    def parameters(self, node: Node) -> list[str]:
        """Weight and bias in float: constants, or dequantized ones."""
        name = node.name
        if self.quantized is None or name in self.quantized.floats:
            values = (self.graph.weights[name], self.graph.biases[name])
            parts = zip(("weight", "bias"), values, strict=True)
            return [self.constant(f"{name}/{part}", value.detach().cpu().float().numpy()) for part, value in parts]
        step = bias_scale(self.quantized, node)
        weight, bias = self.quantized.weights[name], self.quantized.biases[name]
        scales = self.quantized.weight_scales[name]
        inputs = [
            self.constant(f"{name}/weight", weight),
            self.constant(f"{name}/weight/scale", scales),
            self.constant(f"{name}/weight/zero_point", np.zeros(len(scales), np.int8)),
        ]
        real = [self.emit("DequantizeLinear", f"{name}/weight/dequantize", inputs, axis=0)]
        inputs = [self.constant(f"{name}/bias", bias), self.constant(f"{name}/bias/scale", step)]
        return [*real, self.emit("DequantizeLinear", f"{name}/bias/dequantize", inputs, axis=0)]

    def add(self, node: Node) -> None:
        name = node.name
        if node.op in SHARING:
            self.values[name] = self.choose(node, self.values[node.inputs[0]])
            return
        inputs = [self.read(source) for source in node.inputs]
        match node.op:
            case "conv2d":
                top, bottom, left, right = node.padding
                window = {"kernel_shape": node.kernel, "strides": node.stride, "pads": (top, left, bottom, right)}
                value = self.emit("Conv", name, [*inputs, *self.parameters(node)], **window)
            case "linear":
                value = self.emit("Gemm", name, [*inputs, *self.parameters(node)], transB=1)
            case "add":
                value = self.emit("Add", name, inputs)
            case "mean":
                value = self.emit("GlobalAveragePool", name, inputs)
        leaves = name in self.graph.outputs.values()
        if self.quantized is not None and name in self.quantized.floats and not leaves:
            floor = self.constant(f"{name}/floor", guard(node))
            value = self.emit("Max", f"{name}/guard", [value, floor])
        elif node.relu:
            value = self.emit("Relu", f"{name}/relu", [value])
        if self.quantized is not None and not (name in self.quantized.floats and leaves):
            value = self.emit("QuantizeLinear", f"{name}/quantize", [value, *self.grid(name)])
        if node.op == "mean":
            value = self.emit("Flatten", f"{name}/flatten", [value])
        self.values[name] = value

    def choose(self, node: Node, value: str) -> str:
        """A node that only moves or chooses values."""
        match node.op:
            case "max_pool":
                return self.emit("MaxPool", node.name, [value], kernel_shape=node.kernel, strides=node.stride)
            case "mfm":
                halves = [f"{node.name}/halves:{half}" for half in (0, 1)]
                split = _import("onnx.helper").make_node(
                    "Split", [value], halves, name=f"{node.name}/halves", axis=1, num_outputs=2
                )
                self.nodes.append(split)
                return self.emit("Max", node.name, halves)
            case "cells":
                return self.emit("Transpose", node.name, [value], perm=_CHANNELS_LAST)
            case _:
                return self.emit("Flatten", node.name, [value])

    def leave(self, output: str) -> None:
        """The named output of a node, in float and in the task's shape."""
        name = self.graph.outputs[output]
        value, shape = self.values[name], self.graph.output_shape(output)
        if shape != self.graph.node(name).shape:
            sides = self.constant(f"{output}/shape", np.array((1, *shape), np.int64))
            value = self.emit("Reshape", f"{output}/reshape", [value, sides])
        if self.quantized is None or name in self.quantized.floats:
            self.emit("Identity", f"{output}/output", [value])
        else:
            self.emit("DequantizeLinear", f"{output}/output", [value, *self.grid(name)])
        self.nodes[-1].output[0] = output


def guard(node: Node) -> NDArray[np.float32]:
    """Least value of an inner float layer: 0 with a ReLU, else the least float32, which changes nothing.

    ONNX Runtime quantizes a float Conv or Gemm (its Relu included) by scales of its own where it stands between
    DequantizeLinear and QuantizeLinear (its optimiser WeightBiasQuantization). A Max in between keeps it in float.
    """
    return np.array(0.0 if node.relu else np.finfo(np.float32).min, np.float32)


def bias_scale(quantized: Quantized, node: Node) -> NDArray[np.float32]:
    """s_x·s_w[c] of a layer, in float32: (out,)."""
    return np.float32(quantized.activations[node.inputs[0]][0]) * quantized.weight_scales[node.name]


def _slimmed(proto: Any) -> bytes:
    """Drop what no output needs, and refuse a file that ONNX itself finds faulty.

    onnxslim does nothing else here: folding constants or fusing patterns would turn int8 weights into float ones, and
    tying equal constants or nodes would take names and layers away.
    """
    onnx, onnxslim = _import("onnx"), _import("onnxslim")
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    with silenced():
        slim = onnxslim.slim(
            proto,
            skip_optimizations=["constant_folding", "graph_fusion", "subexpression_elimination", "weight_tying"],
        )
    del slim.graph.value_info[:]  # inferred shapes, which every reader infers again
    onnx.helper.set_model_props(slim, kept)
    try:
        onnx.checker.check_model(slim, full_check=True)
    except Exception as error:
        raise ModelError(
            f"ONNX's checker refuses it ({error})", expected="a valid file", where="writing ONNX"
        ) from error
    return bytes(slim.SerializeToString(deterministic=True))


def check_w8a8(file: Path | bytes, quantized: Quantized) -> None:
    """Compare an int8 file with the grid it claims to carry, and see that ONNX Runtime computes it in integers.

    Raises:
        ModelError: A scale, zero point, weight, bias, window, type or output differs, an operation belongs to no
            layer, or ONNX Runtime leaves a layer in float that is none of `quantized.floats`; the layer is named.
    """
    content = file if isinstance(file, bytes) else file.read_bytes()
    _Check(_parse(content), quantized.graph, quantized).all()
    found = fused(content)
    for node in quantized.graph.nodes:
        if node.op not in ("conv2d", "linear"):
            continue
        # Fused operations have names of ONNX Runtime's making; constants keep ours, `_q` behind what it quantized.
        own = (f"{node.name}/weight", f"{node.name}_weight_q")
        kinds = [kind for kind, inputs in found if kind in _INTEGER_KERNELS and set(own) & set(inputs)]
        expected = 0 if node.name in quantized.floats else 1
        if len(kinds) != expected:
            raise _differs(
                node.name,
                f"{' and '.join(kinds) or 'float'} once ONNX Runtime has optimised it",
                f"one of {', '.join(_INTEGER_KERNELS)}" if expected else "float",
            )


def check_fp32(file: Path | bytes, graph: Graph) -> None:
    """Compare a float file with its graph, constant by constant.

    Raises:
        ModelError: Something differs, or an operation belongs to no layer; the layer is named.
    """
    content = file if isinstance(file, bytes) else file.read_bytes()
    _Check(_parse(content), graph, None).all()


def fused(content: bytes) -> list[tuple[str, tuple[str, ...]]]:
    """Operations as ONNX Runtime runs them here, after all of its optimisations: kind, and the tensors each reads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        _session(content, threads=1, where="the file just written", optimised=path)
        return [(node.op_type, tuple(node.input)) for node in _import("onnx").load(str(path)).graph.node]


class _Check:
    """Walks a file along a graph, from the picture to the outputs, and accounts for every operation."""

    def __init__(self, model: Any, graph: Graph, quantized: Quantized | None) -> None:
        numpy_helper = _import("onnx.numpy_helper")
        self.file, self.graph, self.quantized = model.graph, graph, quantized
        self.constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        self.makers = {result: node for node in model.graph.node for result in node.output}
        self.named = {node.name: node for node in model.graph.node}
        self.visited: set[str] = set()
        self.values: dict[str, str] = {}

    def all(self) -> None:
        self.entry()
        for node in self.graph.nodes:
            self.node(node)
        self.outputs()
        for node in self.file.node:
            if node.name not in self.visited:
                raise _differs(node.name, f"{node.op_type}, which belongs to no layer", "no such operation")

    def take(self, tensor: str, kind: str, *, where: str) -> Any:
        """The operation that makes a tensor, which must be of a kind."""
        maker = self.makers.get(tensor)
        if maker is None or maker.op_type != kind:
            raise _differs(where, f"{'nothing' if maker is None else maker.op_type} that makes {tensor!r}", kind)
        self.visited.add(maker.name)
        return maker

    def same(self, tensor: str, expected: NDArray[Any], *, where: str, what: str) -> None:
        found = self.constants.get(tensor)
        if found is None:
            raise _differs(where, f"{what} that is no constant", "a constant")
        if found.dtype != expected.dtype or found.shape != expected.shape or not np.array_equal(found, expected):
            raise _differs(
                where, f"{what} {found.dtype} {found.shape} {_head(found)}", f"{expected.dtype} {_head(expected)}"
            )

    def grid(self, operation: Any, owner: str, *, where: str) -> None:
        assert self.quantized is not None
        scale, zero_point = self.quantized.activations[owner]
        self.same(operation.input[1], np.array(scale, np.float32), where=where, what="scale")
        self.same(operation.input[2], np.array(zero_point + SHIFT, np.uint8), where=where, what="zero point")

    def entry(self) -> None:
        elements = _import("onnx").TensorProto
        (picture,) = self.file.input
        side = self.graph.input_px
        kind, shape = picture.type.tensor_type.elem_type, _shape(picture)
        if picture.name != INPUT or kind not in (elements.UINT8, elements.FLOAT) or shape != (1, side, side, 3):
            raise _differs(INPUT, f"{picture.name!r} {shape}", f"uint8 or float (1, {side}, {side}, 3)")
        source = INPUT
        if self.quantized is not None and kind == elements.FLOAT:
            source = f"{INPUT}/quantize:0"
            operation = self.take(source, "QuantizeLinear", where=INPUT)
            self.reads(operation, [INPUT], where=INPUT)
            self.grid(operation, INPUT, where=INPUT)
        source = self.follow(source, "Transpose", perm=[0, 3, 1, 2])
        if self.quantized is None and kind == elements.UINT8:
            source = self.follow(source, "Cast", to=elements.FLOAT)
            for kind, values in (("Sub", self.graph.mean), ("Div", self.graph.std)):
                before, source = source, self.follow(source, kind)
                column = np.array(values, np.float32).reshape(1, 3, 1, 1)
                self.same(
                    self.makers[source].input[1], column, where=INPUT, what=f"operand of {kind} behind {before!r}"
                )
        self.values[INPUT] = source

    def follow(self, source: str, kind: str, **attributes: Any) -> str:
        """The result of the entry's operation of a kind, which must read `source`."""
        operation = self.named.get(f"{INPUT}/{kind.lower()}")
        if operation is None:
            raise _differs(INPUT, f"no {kind}", f"{kind} of the picture")
        operation = self.take(operation.output[0], kind, where=INPUT)
        self.reads(operation, [source], where=INPUT)
        self.attributes(operation, attributes, where=INPUT)
        return str(operation.output[0])

    def reads(self, operation: Any, sources: list[str], *, where: str) -> None:
        found = list(operation.input)[: len(sources)]
        if found != sources:
            raise _differs(where, f"{operation.op_type} that reads {found}", f"{sources}")

    def attributes(self, operation: Any, expected: Mapping[str, Any], *, where: str) -> None:
        value = _import("onnx.helper").get_attribute_value
        found = {entry.name: value(entry) for entry in operation.attribute}
        if found != dict(expected):
            raise _differs(where, f"{operation.op_type} with {found}", f"{dict(expected)}")

    def real(self, tensor: str, owner: str, *, where: str) -> None:
        """An operand in float must be the value of a node: itself, or its codes dequantized on its grid."""
        if self.quantized is not None:
            operation = self.take(tensor, "DequantizeLinear", where=where)
            self.grid(operation, owner, where=where)
            tensor = operation.input[0]
        if tensor != self.values[owner]:
            raise _differs(where, f"reads {tensor!r}", f"the result of {owner!r}")

    def node(self, node: Node) -> None:
        name = node.name
        operation = self.named.get(name)
        if operation is None:
            raise _differs(name, "no operation of that name", "one")
        operation = self.take(operation.output[0], _KINDS[node.op], where=name)
        result = str(operation.output[0])
        if node.op in SHARING:
            source, expected = [self.values[node.inputs[0]]], _attributes(node)
            if node.op == "mfm":
                halves = self.take(operation.input[0], "Split", where=name)
                self.reads(halves, source, where=name)
                self.attributes(halves, {"axis": 1, "num_outputs": 2}, where=name)
                source = list(halves.output)
            self.reads(operation, source, where=name)
            self.attributes(operation, expected, where=name)
            self.values[name] = result
            return
        self.attributes(operation, _attributes(node), where=name)
        for tensor, owner in zip(operation.input, node.inputs, strict=False):
            self.real(tensor, owner, where=name)
        if node.op in ("conv2d", "linear"):
            self.parameters(node, operation)
        leaves = name in self.graph.outputs.values()
        following = [entry for entry in self.file.node if result in entry.input]
        if self.quantized is not None and name in self.quantized.floats and not leaves:
            if [entry.op_type for entry in following] != ["Max"]:
                raise _differs(
                    name, f"{[entry.op_type for entry in following]} behind it", "Max, which keeps it in float"
                )
            result = str(self.take(following[0].output[0], "Max", where=name).output[0])
            self.same(following[0].input[1], guard(node), where=name, what="least value")
        elif node.relu:
            if [entry.op_type for entry in following] != ["Relu"]:
                raise _differs(name, f"{[entry.op_type for entry in following]} behind it", "Relu")
            result = str(self.take(following[0].output[0], "Relu", where=name).output[0])
        following = [entry for entry in self.file.node if result in entry.input]
        if self.quantized is not None and not (leaves and name in self.quantized.floats):
            if [entry.op_type for entry in following] != ["QuantizeLinear"]:
                raise _differs(name, f"{[entry.op_type for entry in following]} behind it", "QuantizeLinear")
            result = str(self.take(following[0].output[0], "QuantizeLinear", where=name).output[0])
            self.grid(following[0], name, where=name)
        if node.op == "mean":
            flat = self.named.get(f"{name}/flatten")
            if flat is None or list(flat.input) != [result]:
                raise _differs(name, "a mean that is not flattened", "Flatten behind it")
            result = str(self.take(flat.output[0], "Flatten", where=name).output[0])
        self.values[name] = result

    def parameters(self, node: Node, operation: Any) -> None:
        name = node.name
        if len(operation.input) != 3:
            raise _differs(name, f"{len(operation.input)} operands", "3")
        weight, bias = operation.input[1:]
        if self.quantized is None or name in self.quantized.floats:
            for tensor, values, what in ((weight, self.graph.weights, "weight"), (bias, self.graph.biases, "bias")):
                self.same(tensor, values[name].detach().cpu().float().numpy(), where=name, what=what)
            return
        scales = self.quantized.weight_scales[name]
        made = self.take(weight, "DequantizeLinear", where=name)
        self.attributes(made, {"axis": 0}, where=name)
        self.same(made.input[0], self.quantized.weights[name], where=name, what="weight")
        self.same(made.input[1], scales, where=name, what="weight scale")
        self.same(made.input[2], np.zeros(len(scales), np.int8), where=name, what="weight zero point")
        made = self.take(bias, "DequantizeLinear", where=name)
        self.attributes(made, {"axis": 0}, where=name)
        self.same(made.input[0], self.quantized.biases[name], where=name, what="bias")
        self.same(made.input[1], bias_scale(self.quantized, node), where=name, what="bias scale")

    def outputs(self) -> None:
        found = {entry.name: _shape(entry) for entry in self.file.output}
        expected = {output: (1, *self.graph.output_shape(output)) for output in self.graph.outputs}
        if found != expected:
            raise _differs("outputs", f"{found}", f"{expected}")
        for output, name in self.graph.outputs.items():
            in_float = self.quantized is None or name in self.quantized.floats
            value = output
            if not in_float:
                made = self.take(output, "DequantizeLinear", where=output)
                self.grid(made, name, where=output)
                value = made.input[0]
            elif self.makers[output].op_type == "Identity":  # slimming leaves it only where one value is two outputs
                value = self.take(output, "Identity", where=output).input[0]
            if self.graph.output_shape(output) != self.graph.node(name).shape:
                reshape = self.take(value, "Reshape", where=output)
                self.same(reshape.input[1], np.array(expected[output], np.int64), where=output, what="shape")
                value = reshape.input[0]
            if value != self.values[name]:
                raise _differs(output, f"the value {value!r}", f"the result of {name!r}")


_KINDS = {
    "conv2d": "Conv",
    "linear": "Gemm",
    "max_pool": "MaxPool",
    "mfm": "Max",
    "add": "Add",
    "mean": "GlobalAveragePool",
    "flatten": "Flatten",
    "cells": "Transpose",
}
_CHANNELS_LAST = (0, 2, 3, 1)


def _attributes(node: Node) -> dict[str, Any]:
    match node.op:
        case "conv2d":
            top, bottom, left, right = node.padding
            pads = [top, left, bottom, right]
            return {"kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": pads}
        case "linear":
            return {"transB": 1}
        case "max_pool":
            return {"kernel_shape": list(node.kernel), "strides": list(node.stride)}
        case "cells":
            return {"perm": list(_CHANNELS_LAST)}
        case _:
            return {}


def _differs(layer: str, found: str, expected: str) -> ModelError:
    return ModelError(
        f"layer {layer!r}: {found}",
        expected=expected,
        where="the ONNX file against the network it was built from",
        do="Report this: the file would not compute what was trained",
    )


def _head(values: NDArray[Any]) -> str:
    return f"({', '.join(str(value) for value in values.ravel()[:4])}{', …' if values.size > 4 else ''})"


def _shape(value: Any) -> tuple[int, ...]:
    """Sides of a declared value; 0 where one is not fixed."""
    return tuple(int(side.dim_value) for side in value.type.tensor_type.shape.dim)


def _parse(content: bytes, *, where: str = "") -> Any:
    onnx = _import("onnx")
    try:
        return onnx.load_from_string(content)
    except Exception as error:  # protobuf's own, which has no public name in every version
        raise ModelError(
            f"cannot be read ({error})", expected="an ONNX file", where=where, do="Copy or build it again"
        ) from error


def read_note(path: Path) -> dict[str, Any]:
    """What `write` stored in a file; empty when it is none of ours.

    Raises:
        ModelError: It is no ONNX file.
    """
    for entry in _parse(path.read_bytes(), where=str(path)).metadata_props:
        if entry.key == NOTE:
            try:
                note = json.loads(entry.value)
            except (ValueError, RecursionError):
                return {}
            return note if isinstance(note, dict) else {}
    return {}


def macs(path: Path) -> int | None:
    """Multiply-accumulates of one run in convolutions and matrix products; None when shapes are not in the file."""
    onnx = _import("onnx")
    model = _parse(path.read_bytes(), where=str(path))
    shapes = {entry.name: tuple(entry.dims) for entry in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes.update((entry.name, _shape(entry)) for entry in (*inferred.value_info, *inferred.input, *inferred.output))
    total = 0
    for node in model.graph.node:
        if node.op_type not in (
            "Conv",
            "Gemm",
            "MatMul",
            "QLinearConv",
            "QLinearMatMul",
            "ConvInteger",
            "MatMulInteger",
        ):
            continue
        weight = shapes.get(node.input[3 if node.op_type.startswith("QLinear") else 1], ())
        made = shapes.get(node.output[0], ())
        count = math.prod(weight)
        if node.op_type.endswith("MatMul") or node.op_type == "MatMulInteger":
            count *= math.prod(made[:-1])
        elif node.op_type == "Gemm":
            count *= made[0] if made else 0
        else:
            count *= math.prod(made[2:]) if len(made) > 2 else 0
        if not weight or not made or count <= 0:
            return None
        total += count
    return total


_PROBE = """
import sys
from pathlib import Path
from targets.onnx import OnnxRunner
runner = OnnxRunner(Path(sys.argv[1]), spec=None, runtime="onnxruntime", precision="", threads=1)
runner.prepare(0)()
runner.macs  # infers shapes in native code
"""


def probe(path: Path) -> None:
    """Load and run a file in a process of its own, which a broken one may take down.

    Raises:
        ModelError: It could not be run.
        MissingToolError: onnxruntime is not installed.
    """
    _import("onnxruntime")
    try_apart(_PROBE, path, runtime="ONNX Runtime", expected="a whole ONNX file")


class OnnxRunner:
    """An ONNX file in ONNX Runtime on the CPU, one picture at a time.

    Args:
        path: The file.
        spec: Its input and outputs; None takes the outputs that are named after a task and have its size.
        runtime: "onnxruntime".
        precision: What its note calls it; "" reads it off the operations.
        threads: CPU threads.
    """

    def __init__(self, path: Path, *, spec: ModelSpec | None, runtime: str, precision: str, threads: int) -> None:
        self.path = path
        self.runtime = runtime
        self.threads = threads
        self._session = _session(str(path), threads=threads, where=str(path))
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise UnsupportedError(f"{len(inputs)} inputs", expected="one, a picture", where=str(path))
        self._name = str(inputs[0].name)
        self.inputs = (_port(inputs[0]),)
        self.outputs = tuple(map(_port, self._session.get_outputs()))
        # A side that is not fixed, most often the batch, is 1.
        self._shape = tuple(1 if side is None else side for side in self.inputs[0].shape)
        self._kind = str(inputs[0].type)
        self._outputs = {str(entry.name): tuple(entry.shape) for entry in self._session.get_outputs()}
        self._own = spec is not None  # a float input of a file of ours is the standardized picture
        self.spec = spec or _minimal_spec(path, self._shape, self._outputs)
        self.precision = precision or _observed_precision(path)
        require_outputs(self.spec, self._outputs, where=str(path))

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def macs(self) -> int | None:
        return macs(self.path)

    @property
    def grids(self) -> Grids:
        """Empty: outputs leave in float."""
        return {}

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        side = self.spec.input_px
        require_pictures(batch, side, where=str(self.path))
        standardized = self._kind == "tensor(float)" and self._own
        if not (standardized or self._kind == "tensor(uint8)") or self._shape != (1, side, side, 3):
            raise takes_no_picture(f"{self._kind} {self._shape}", where=str(self.path))
        pictures = standardize(batch, self.spec) if standardized else batch
        names = [output.name for output in self.spec.outputs]
        rows = [self._outputs_of(picture, names) for picture in pictures]
        return {
            output.name: np.asarray([row[place] for row in rows], np.float32).reshape(len(batch), *output.shape)
            for place, output in enumerate(self.spec.outputs)
        }

    def _outputs_of(self, sample: NDArray[Any], names: list[str]) -> list[NDArray[Any]]:
        try:
            found: list[NDArray[Any]] = self._session.run(names, {self._name: sample[None]})
        except Exception as error:  # its exceptions have no common public base
            raise _cannot_run(error, where=str(self.path)) from error
        return found

    @property
    def operations(self) -> Operations | None:
        """See FileRunner.operations: what is left once ONNX Runtime has optimised the graph."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            _session(str(self.path), threads=1, where=str(self.path), optimised=path)
            nodes = _parse(path.read_bytes(), where=str(path)).graph.node
        return {"CPUExecutionProvider": dict(Counter(node.op_type for node in nodes))}

    def answer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """See FileRunner.answer."""
        names = [port.name for port in self.outputs]
        rows = [self._outputs_of(sample, names) for sample in batch]
        return {
            name: np.concatenate([row[place] for row in rows]).astype(np.float32) for place, name in enumerate(names)
        }

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare; the picture and the outputs are bound once, so no copy is timed."""
        dtype = _DTYPES.get(self._kind)
        if dtype is None:
            raise UnsupportedError(
                f"an input {self._kind}", expected=f"one of {', '.join(_DTYPES)}", where=str(self.path)
            )
        if None in self.inputs[0].shape[1:]:
            raise UnsupportedError(
                f"an input {self.inputs[0]}",
                expected="sides that are fixed, all but the batch",
                where=str(self.path),
                do="Say its size in a spec: --spec FILE",
            )
        return self.hold(random_input(self._shape, dtype, seed=seed))

    def hold(self, sample: NDArray[Any]) -> Callable[[], None]:
        """See FileRunner.hold."""
        binding = self._session.io_binding()
        value = _import("onnxruntime").OrtValue.ortvalue_from_numpy(sample)
        binding.bind_ortvalue_input(self._name, value)
        for name in self._outputs:
            binding.bind_output(name)
        session = self._session

        def run() -> None:
            session.run_with_iobinding(binding)

        return run


def load_runtime() -> None:
    """Import what runs a file, so that the time a file takes to open does not hold it.

    Raises:
        MissingToolError: It is not installed.
    """
    _import("onnxruntime")


def _port(entry: Any) -> Port:
    kind = _DTYPES.get(str(entry.type))
    shape = tuple(side if isinstance(side, int) and side > 0 else None for side in entry.shape)
    return Port(name=str(entry.name), dtype=str(entry.type) if kind is None else np.dtype(kind).name, shape=shape)


_DTYPES: dict[str, type[Any]] = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


def _session(model: str | bytes, *, threads: int, where: str, optimised: Path | None = None) -> Any:
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        with silenced():
            return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common public base
        if optimised is not None:
            _session(model, threads=threads, where=where)  # raises where the file is at fault, and not the folder
            raise OutputError(
                f"cannot write what ONNX Runtime makes of the file ({error})",
                expected="a folder for temporary files with room",
                where=str(optimised.parent),
                do="Free some room there, or set TMPDIR to another folder",
            ) from error
        raise _cannot_run(error, where=where) from error


def _cannot_run(error: Exception, *, where: str) -> EdgefaceError:
    return limit_error(error) or ModelError(
        f"ONNX Runtime cannot run it ({error})",
        expected="a whole ONNX file",
        where=where,
        do="Copy or build it again",
    )


def _minimal_spec(path: Path, picture: tuple[int, ...], outputs: Mapping[str, tuple[Any, ...]]) -> ModelSpec:
    # The picture's height is its second side channels last, its third channels first.
    side = 0 if len(picture) != 4 else picture[1] if picture[3] == 3 else picture[2]
    # A side that is not fixed, most often the batch, is 1.
    fixed = {name: tuple(n if isinstance(n, int) else 1 for n in shape) for name, shape in outputs.items()}
    return minimal_spec(path.stem, side=side, outputs=fixed)


def _observed_precision(path: Path) -> str:
    model = _parse(path.read_bytes(), where=str(path))
    kinds = {node.op_type for node in model.graph.node}
    if kinds & {"QuantizeLinear", *_INTEGER_KERNELS}:
        return "w8a8"
    if kinds & {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}:
        return "w8a32"
    half = _import("onnx").TensorProto.FLOAT16
    return "fp16" if any(entry.data_type == half for entry in model.graph.initializer) else "fp32"


def _import(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingToolError(
            f"{name.split('.')[0]} cannot be imported ({error})",
            expected="the onnx tool-kits",
            where="target onnx",
            do="pip install 'edgeface[onnx]'",
        ) from error
