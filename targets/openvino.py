"""OpenVINO IR files: the only module that imports openvino.

Every file has one input, `image`, a (1, H, W, 3) uint8 RGB picture (or float32 standardized values), which is
standardized and turned to channels first inside, and one float32 output per task, named after it, in the task's shape.
An operation is named after its node: `NODE` holds the node's result, `NODE/sum`, `NODE/multiply` and so on lead to it.

The w8a8 file is laid out so that OpenVINO's int8 kernels compute the integer grid of quantize/grid.py and nothing else.
Written the usual way, with weights q·s_w and activations (q − z)·s, a kernel evaluates fma(float(acc)·(s_x·s_w) + bias,
1/s_y, z_y) with a rounding at every step, and about three activations in a million land on another integer than the
specification says; layers behind them spread that. So tensors hold their codes times a power of two near their scale,
by which float32 multiplies exactly, and the scales themselves stand in one number per channel:

    acc = clamp(Σ (q_x − z_x)·p_x · q_w·p_w[c] + q_b·p_x·p_w[c])   exact, as long as sums stay below 2^24
    k   = round_half_even(acc · M[c]/(p_x·p_w[c]))                 float32(acc)·M with M = s_x·s_w[c]/s_y, rounded once
    y   = FakeQuantize(k; −128 − z_y … 127 − z_y)·p_y              cuts whole numbers, so rounds nothing

Without the clamp, to the range of int32 or to what a ReLU leaves of it, the tool-kit would multiply sum and bias by M
one by one; with p = 1 it would be free to drop the factor, fold int8 weights into float ones, and sums would lie beyond
what half floats hold, where other plug-ins compute in them. The picture itself, u8 with zero point 128, is the first
kernel's input. Max-feature-map pools over pairs of columns after a change of view that costs nothing where channels lie
last in memory, as they do in the CPU's int8 kernels: a split and a maximum there copy each half.

On x86 without VNNI no layout helps: oneDNN's kernels add pairs of products in 16 bits there, which saturate
(`adds_exactly`), and a runner refuses to answer with them.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.config import to_plain
from edgeface.errors import EdgefaceError, MissingToolError, ModelError, UnsupportedError
from edgeface.evaluate import Outputs
from edgeface.files import output_error
from edgeface.memory import limit_error
from edgeface.precision import check
from edgeface.processes import signals_on_own_stack
from edgeface.specs import ModelSpec
from quantize.graph import INPUT, SHARING, Graph, Node
from quantize.grid import Quantized, require_input_grid
from targets import artifacts
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

NOTE = "edgeface"  # key of the metadata entry
LAYERS = ("conv2d", "linear")

_INT8 = ("u8", "i8")
# Operations of the compiled network that compute nothing.
_PASSIVE = ("Input", "Output", "Const", "Constant", "Reshape")
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul", "GroupConvolution")


def write(
    files: Mapping[str, Path],
    *,
    graph: Graph | None,
    quantized: Quantized | None,
    model: ModelSpec,
    float_input: bool = False,
    lap: Callable[[str], None] = lambda step: None,
) -> None:
    """Write files of one network; each is an .xml with its .bin beside it.

    Args:
        files: Precision to the path to write.
        graph: The float network, for every precision but w8a8.
        quantized: The integer network, for w8a8.
        model: What each file says it is.
        float_input: The input stays float32 (1, H, W, 3), a standardized picture (x − mean)/std.
        lap: Told of each step when it is done.

    Raises:
        UnsupportedError: The picture is not the int8 input as it stands, or no network was given for a precision.
        ModelError: A file would differ from its network; the message names the layer. It is not written then.
        MissingToolError: openvino is not installed.
        OutputError: The folder cannot be written.
    """
    openvino = _openvino()
    for precision, path in files.items():
        check("openvino", precision, where="writing OpenVINO IR")
        integers = quantized if precision == "w8a8" else None
        network = integers.graph if integers is not None else graph if precision != "w8a8" else None
        if network is None:
            raise UnsupportedError(
                f"{precision!r} without the {'integer' if precision == 'w8a8' else 'float'} network",
                expected="the checkpoint it is made from",
                where="writing OpenVINO IR",
                do="Run `edgeface quantize` first" if precision == "w8a8" else "Build from the run that holds both",
            )
        if integers is not None:
            require_input_grid(network)
        built = _Builder(graph=network, quantized=integers).model(float_input)
        note = {"schema": 1, "model": to_plain(model), "precision": precision}
        built.set_rt_info(json.dumps(note, sort_keys=True), [NOTE])
        try:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".openvino-") as folder:
                aside = Path(folder) / path.name
                openvino.save_model(built, str(aside), compress_to_fp16=precision == "fp16")
                if integers is not None:
                    check_w8a8(aside, integers, float_input=float_input)
                else:
                    check_float(aside, network, precision=precision, float_input=float_input)
                # The .xml last: without it the weights are nobody's.
                os.replace(aside.with_suffix(".bin"), path.with_suffix(".bin"))
                os.replace(aside, path)
        except OSError as error:
            raise output_error(error, where=path) from error
        lap(f"write {precision}")


def read_note(path: Path) -> dict[str, Any]:
    """What `write` stored in a file; empty when it is none of ours."""
    try:
        root = ElementTree.parse(path).getroot()
        entry = root.find(f"rt_info/{NOTE}")
        found = json.loads(entry.attrib["value"]) if entry is not None else {}
    except (ElementTree.ParseError, KeyError, ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def unit(scale: float | NDArray[np.float32]) -> NDArray[np.float32]:
    """The power of two nearest to each scale, by ratio: what a step of a tensor is worth in the w8a8 file."""
    nearest: NDArray[np.float32] = np.exp2(np.rint(np.log2(np.asarray(scale, np.float64)))).astype(np.float32)
    return nearest


@dataclass(kw_only=True)
class _Builder:
    """A graph as an OpenVINO model; its integers when `quantized` is given.

    Attributes:
        graph: The network.
        quantized: Its integers, or None for the float network.
        values: INPUT and node name to the output of the operation that holds its result.
    """

    graph: Graph
    quantized: Quantized | None
    values: dict[str, Any] = field(default_factory=dict)

    def model(self, float_input: bool) -> Any:
        openvino = _openvino()
        side = self.graph.input_px
        dtype = np.float32 if float_input else np.uint8
        image = self._add("parameter", INPUT, [1, side, side, 3], dtype)
        image.get_node().output(0).set_names({INPUT})
        self.values[INPUT] = self._front(image, float_input=float_input)
        for node in self.graph.nodes:
            inputs = [self.values[name] for name in node.inputs]
            self.values[node.name] = self._node(node, inputs)
        results = []
        for output, name in self.graph.outputs.items():
            value = self._view(f"{output}/view", self._real(output, name), (1, *self.graph.output_shape(output)))
            value.get_node().output(0).set_names({output})
            results.append(self._add("result", f"{output}/result", value).get_node())
        return openvino.Model(results, [image.get_node()], NOTE)

    def _front(self, image: Any, *, float_input: bool) -> Any:
        """From the picture to a standardized map, channels first."""
        x = image
        if not float_input:
            mean, std = (np.array(v, np.float32).reshape(1, 1, 1, 3) for v in (self.graph.mean, self.graph.std))
            x = self._add("convert", f"{INPUT}/float", x, np.float32)
            x = self._add("subtract", f"{INPUT}/centred", x, self._constant(f"{INPUT}/mean", mean))
            x = self._add("divide", f"{INPUT}/standardized", x, self._constant(f"{INPUT}/std", std))
        if self.quantized is not None:
            scale, _ = self.quantized.activations[INPUT]
            x = self._clamped(INPUT, f"{INPUT}/codes", x, step=np.float32(scale))
        return self._transposed(f"{INPUT}/planes", x, (0, 3, 1, 2))

    def _node(self, node: Node, inputs: Sequence[Any]) -> Any:
        if self.quantized is None:
            return self._float_node(node, inputs)
        match node.op:
            case "conv2d" | "linear" if node.name in self.quantized.floats:
                return self._float_layer(node, inputs[0])
            case "conv2d" | "linear":
                return self._integer_layer(node, inputs[0])
            case "mean":
                return self._integer_mean(node, inputs[0])
            case "add":
                return self._integer_add(node, inputs)
            case "mfm":
                return self._integer_mfm(node, inputs[0])
            case _:
                return self._moved(node, inputs[0], name=node.name)

    def _float_node(self, node: Node, inputs: Sequence[Any]) -> Any:
        last = f"{node.name}/before" if node.relu else node.name
        match node.op:
            case "conv2d" | "linear":
                weight = self._constant(f"{node.name}/weight", self.graph.weights[node.name].numpy())
                total = self._sum(node, inputs[0], weight)
                y = self._with_bias(node, total, self.graph.biases[node.name].numpy(), name=last)
            case "mfm":
                axis = self._constant(f"{node.name}/axis", np.int64(1))
                halves = self._add("split", f"{node.name}/halves", inputs[0], axis, 2).get_node()
                y = self._add("maximum", last, halves.output(0), halves.output(1))
            case "add":
                y = self._add("add", last, *inputs)
            case "mean":
                y = self._add("reduce_mean", last, inputs[0], self._axes(node), False)
            case _:
                y = self._moved(node, inputs[0], name=last)
        return self._add("relu", node.name, y) if node.relu else y

    def _float_layer(self, node: Node, x: Any) -> Any:
        """One of `floats`: reads real values, and is rounded to its own grid unless it is an output."""
        assert self.quantized is not None
        scale, _ = self.quantized.activations[node.inputs[0]]
        real = self._times(f"{node.name}/real", x, np.float32(scale) / unit(scale))
        weight = self._constant(f"{node.name}/weight", self.graph.weights[node.name].numpy())
        leaves = node.name in self.graph.outputs.values()
        total = self._sum(node, real, weight)
        bias = self.graph.biases[node.name].numpy()
        y = self._with_bias(node, total, bias, name=node.name if leaves and not node.relu else f"{node.name}/biased")
        if node.relu:
            y = self._add("relu", node.name if leaves else f"{node.name}/relu", y)
        if leaves:
            return y
        out_scale, _ = self.quantized.activations[node.name]
        return self._rounded(node, self._times(f"{node.name}/multiply", y, np.float32(1.0) / np.float32(out_scale)))

    def _integer_layer(self, node: Node, x: Any) -> Any:
        assert self.quantized is not None
        scale, _ = self.quantized.activations[node.inputs[0]]
        codes, scales = self.quantized.weights[node.name], self.quantized.weight_scales[node.name]
        rank = codes.ndim - 1
        stored = self._add("convert", f"{node.name}/codes", self._constant(f"{node.name}/int8", codes), np.float32)
        weight = self._times(f"{node.name}/weight", stored, unit(scales).reshape(-1, *[1] * rank))
        step = unit(scale) * unit(scales)  # (out,), exact
        bias = self.quantized.biases[node.name].astype(np.float64) * step
        y = self._with_bias(node, self._sum(node, x, weight), bias.astype(np.float32), name=f"{node.name}/biased")
        return self._requantized(node, y, self._multiplier(node, scales), step=step)

    def _integer_mean(self, node: Node, x: Any) -> Any:
        assert self.quantized is not None
        scale, _ = self.quantized.activations[node.inputs[0]]
        total = self._add("reduce_sum", f"{node.name}/sum", x, self._axes(node), False)
        cells = math.prod(self._shape(node.inputs[0])[1:])
        multiplier = self._multiplier(node, np.ones((), np.float32)) / np.float32(cells)
        return self._requantized(node, total, multiplier, step=unit(scale))

    def _integer_add(self, node: Node, inputs: Sequence[Any]) -> Any:
        assert self.quantized is not None
        out_scale, _ = self.quantized.activations[node.name]
        terms = []
        for place, (name, x) in enumerate(zip(node.inputs, inputs, strict=True)):
            scale, _ = self.quantized.activations[name]
            # Rounding whole numbers changes nothing, and keeps the tool-kit from moving scales through the sum.
            whole = self._times(f"{node.name}/whole{place}", x, np.float32(1.0) / unit(scale))
            kept = self._add("round", f"{node.name}/kept{place}", whole, "half_to_even")
            terms.append(self._times(f"{node.name}/term{place}", kept, np.float32(scale) / np.float32(out_scale)))
        total = self._add("add", f"{node.name}/sum", *terms)
        if node.relu:
            total = self._add("relu", f"{node.name}/relu", total)
        return self._rounded(node, total)

    def _integer_mfm(self, node: Node, x: Any) -> Any:
        """The maximum of two halves of the channels, as max-pooling of pairs that lie side by side."""
        if len(node.shape) == 1:
            pairs = self._view(f"{node.name}/pairs", x, (1, 1, 2, *node.shape))
            y = self._pooled(f"{node.name}/pooled", pairs, kernel=(2, 1), stride=(2, 1))
            return self._view(node.name, y, (1, *node.shape))
        channels, height, width = node.shape
        last = self._transposed(f"{node.name}/last", x, (0, 2, 3, 1))
        pairs = self._view(f"{node.name}/pairs", last, (1, height, 2 * width, channels))
        first = self._transposed(f"{node.name}/first", pairs, (0, 3, 1, 2))
        return self._pooled(node.name, first, kernel=(1, 2), stride=(1, 2))

    def _multiplier(self, node: Node, weight_scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """M of quantize/grid.py as XNNPACK computes it, every operation in float32."""
        assert self.quantized is not None
        source, result = self.quantized.activations[node.inputs[0]][0], self.quantized.activations[node.name][0]
        multiplier: NDArray[np.float32] = np.float32(source) * weight_scales / np.float32(result)
        return multiplier

    def _requantized(self, node: Node, acc: Any, multiplier: NDArray[np.float32], *, step: Any) -> Any:
        """A sum times its multiplier, as a whole number on the node's grid; `step` is what one of the sum is worth."""
        most = 2.0**31 * float(np.max(step))
        acc = self._add("clamp", f"{node.name}/clamp", acc, 0.0 if node.relu else -most, most)
        factor = np.asarray(multiplier / step, np.float32)
        shaped = _by_channel(factor, len(node.shape)) if factor.ndim else factor
        y = self._times(f"{node.name}/multiply", acc, shaped)
        return self._rounded(node, y)

    def _rounded(self, node: Node, y: Any) -> Any:
        assert self.quantized is not None
        y = self._add("round", f"{node.name}/round", y, "half_to_even")
        if _leaves(self.graph, node.name):
            # Its real values are asked for next, so no kernel need pack it into bytes.
            _, zero_point = self.quantized.activations[node.name]
            return self._add("clamp", node.name, y, -128.0 - zero_point, 127.0 - zero_point)
        return self._clamped(node.name, node.name, y, step=np.float32(1.0))

    def _clamped(self, owner: str, name: str, x: Any, *, step: np.float32) -> Any:
        """Whole numbers of steps, cut to the grid of `owner`, in its units."""
        assert self.quantized is not None
        scale, zero_point = self.quantized.activations[owner]
        least, greatest = np.float32(-128 - zero_point), np.float32(127 - zero_point)
        limits = (least * step, greatest * step, least * unit(scale), greatest * unit(scale))
        names = ("in_low", "in_high", "out_low", "out_high")
        constants = [
            self._constant(f"{name}/{part}", np.float32(limit)) for part, limit in zip(names, limits, strict=True)
        ]
        return self._add("fake_quantize", name, x, *constants, 256)

    def _real(self, output: str, name: str) -> Any:
        """An output's real values: its codes times its scale, where it has codes."""
        if self.quantized is None or name in self.quantized.floats:
            return self.values[name]
        scale, _ = self.quantized.activations[name]
        step = np.float32(1.0) if _leaves(self.graph, name) else unit(scale)
        # One factor per channel: a single last factor the kernel would take as the inverse of its inverse.
        factor = np.full(self._shape(name), np.float32(scale) / step, np.float32)
        return self._times(f"{output}/value", self.values[name], factor[None])

    def _sum(self, node: Node, x: Any, weight: Any) -> Any:
        name = f"{node.name}/sum"
        if node.op == "linear":
            return self._add("matmul", name, x, weight, False, True)
        top, bottom, left, right = node.padding
        return self._add("convolution", name, x, weight, list(node.stride), [top, left], [bottom, right], [1, 1])

    def _with_bias(self, node: Node, total: Any, bias: NDArray[np.float32], *, name: str) -> Any:
        constant = self._constant(f"{node.name}/bias", _by_channel(bias, len(node.shape)))
        return self._add("add", name, total, constant)

    def _moved(self, node: Node, x: Any, *, name: str) -> Any:
        if node.op == "flatten":
            return self._view(name, x, (1, *node.shape))
        if node.op == "cells":
            return self._transposed(name, x, (0, 2, 3, 1))
        return self._pooled(name, x, kernel=node.kernel, stride=node.stride)

    def _pooled(self, name: str, x: Any, *, kernel: tuple[int, int], stride: tuple[int, int]) -> Any:
        return self._add("max_pool", name, x, list(stride), [1, 1], [0, 0], [0, 0], list(kernel), "floor")

    def _view(self, name: str, x: Any, shape: tuple[int, ...]) -> Any:
        return self._add("reshape", name, x, self._constant(f"{name}/shape", np.array(shape, np.int64)), False)

    def _transposed(self, name: str, x: Any, order: tuple[int, ...]) -> Any:
        return self._add("transpose", name, x, self._constant(f"{name}/order", np.array(order, np.int64)))

    def _times(self, name: str, x: Any, factor: Any) -> Any:
        return self._add("multiply", name, x, self._constant(f"{name}/factor", np.asarray(factor, np.float32)))

    def _axes(self, node: Node) -> Any:
        return self._constant(f"{node.name}/axes", np.array([2, 3], np.int64))

    def _shape(self, name: str) -> tuple[int, ...]:
        return (3, self.graph.input_px, self.graph.input_px) if name == INPUT else self.graph.node(name).shape

    def _constant(self, name: str, value: Any) -> Any:
        return self._add("constant", name, np.ascontiguousarray(value) if np.ndim(value) else value)

    def _add(self, operation: str, name: str, *arguments: Any) -> Any:
        made = getattr(_opset(), operation)(*arguments)
        # Every operation, or the tool-kit numbers it and the same network gives another file.
        made.set_friendly_name(name)
        return made.output(0)


def _leaves(graph: Graph, name: str) -> bool:
    """Whether a layer, mean or addition is read by nobody but those who read the outputs."""
    if graph.node(name).op in SHARING:  # it holds what a layer before it rounded
        return False
    return name in graph.outputs.values() and not any(name in node.inputs for node in graph.nodes)


def _by_channel(values: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """(out,) in a shape that meets (1, C, H, W) or (1, D)."""
    return values.reshape(1, -1, *[1] * (rank - 1))


class _Ir:
    """A saved file, read back: operations by name, with what they read.

    Args:
        path: The .xml.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = _read(path)
        self.operations: dict[str, Any] = {op.get_friendly_name(): op for op in self.model.get_ops()}
        # Half floats hide behind conversions that the runtime undoes.
        self.seen = {
            name
            for name, op in self.operations.items()
            if op.get_type_name() == "Constant" or (op.get_type_name() == "Convert" and _is_constant(op.input_value(0)))
        }

    def differs(self, layer: str, found: str, expected: str) -> ModelError:
        return _differs(layer, found, expected, where=self.path)

    def take(self, layer: str, name: str, kind: str, *sources: str | None) -> Any:
        """An operation, which must be of a kind and read what it should; None stands for a constant.

        Raises:
            ModelError: It is not so; the layer is named.
        """
        if name not in self.operations:
            raise self.differs(layer, f"no operation {name!r}", f"a {kind} of that name")
        op = self.operations[name]
        if op.get_type_name() != kind:
            raise self.differs(layer, f"{name!r} is a {op.get_type_name()}", f"a {kind}")
        for place, source in enumerate(sources):
            found = op.input_value(place).get_node()
            if source is not None and found.get_friendly_name() != source:
                raise self.differs(layer, f"{name!r} reads {found.get_friendly_name()!r}", repr(source))
            if source is None:
                self.constant(layer, op, place)
        self.seen.add(name)
        return op

    def constant(self, layer: str, op: Any, place: int) -> NDArray[Any]:
        """Values of an operand, in float32 where they are stored in half floats."""
        node, halved = op.input_value(place).get_node(), False
        if node.get_type_name() == "Convert":
            node, halved = node.input_value(0).get_node(), True
        if node.get_type_name() != "Constant":
            raise _differs(
                layer, f"operand {place} of {op.get_friendly_name()!r} is computed", "constants", where=self.path
            )
        data: NDArray[Any] = np.array(node.data)
        return data.astype(np.float32) if halved and data.dtype == np.float16 else data

    def same(self, layer: str, what: str, found: Any, expected: Any) -> None:
        """Compare numbers bit for bit.

        Raises:
            ModelError: They differ; the layer is named.
        """
        found, expected = np.asarray(found), np.asarray(expected)
        if found.shape != expected.shape or not np.array_equal(found, expected):
            raise self.differs(layer, f"{what} {_brief(found)}", _brief(expected))

    def geometry(self, node: Node, op: Any) -> None:
        """Compare strides and padding of a convolution."""
        top, bottom, left, right = node.padding
        found = op.get_attributes()
        expected = {
            "strides": list(node.stride),
            "pads_begin": [top, left],
            "pads_end": [bottom, right],
            "dilations": [1, 1],
        }
        for key, value in expected.items():
            if [int(v) for v in found[key]] != value:
                raise self.differs(node.name, f"{key} {found[key]}", f"{value}")

    def pooling(self, layer: str, op: Any, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        """Compare kernel and strides of a max-pooling."""
        found = op.get_attributes()
        if (tuple(found["kernel"]), tuple(found["strides"])) != (kernel, stride):
            raise _differs(
                layer, f"kernel {found['kernel']}, strides {found['strides']}", f"{kernel}, {stride}", where=self.path
            )

    def channels_last(self, layer: str, op: Any) -> None:
        """Compare the order of axes of a transposition."""
        self.same(layer, "axes", self.constant(layer, op, 1), [0, 2, 3, 1])

    def front(self, graph: Graph, *, float_input: bool) -> str:
        """Check the input and its standardization; the name of the operation that ends it."""
        image = self.take(INPUT, INPUT, "Parameter")
        kind, shape = image.get_element_type().get_type_name(), list(image.get_output_shape(0))
        expected = ("f32" if float_input else "u8", [1, graph.input_px, graph.input_px, 3])
        if (kind, shape) != expected:
            raise self.differs(INPUT, f"{kind} {shape}", f"{expected[0]} {expected[1]}")
        if float_input:
            return INPUT
        self.take(INPUT, f"{INPUT}/float", "Convert", INPUT)
        centred = self.take(INPUT, f"{INPUT}/centred", "Subtract", f"{INPUT}/float", None)
        divided = self.take(INPUT, f"{INPUT}/standardized", "Divide", f"{INPUT}/centred", None)
        for what, op, values in (("mean", centred, graph.mean), ("std", divided, graph.std)):
            stored = self.constant(INPUT, op, 1).ravel()
            wanted = np.array(values, np.float32)
            if _is_half(op.input_value(1)):
                wanted = wanted.astype(np.float16).astype(np.float32)
            self.same(INPUT, what, stored, wanted)
        return f"{INPUT}/standardized"

    def layer(self, node: Node, graph: Graph, *, reads: str, last: str) -> None:
        """Check a layer with float weights, up to its bias, against a graph."""
        kind = "Convolution" if node.op == "conv2d" else "MatMul"
        total = self.take(node.name, f"{node.name}/sum", kind, reads, None)
        if node.op == "conv2d":
            self.geometry(node, total)
        biased = self.take(node.name, last, "Add", f"{node.name}/sum", None)
        for what, op, values in (("weights", total, graph.weights), ("bias", biased, graph.biases)):
            expected = values[node.name].numpy()
            stored = self.constant(node.name, op, 1)
            if _is_half(op.input_value(1)):
                expected = expected.astype(np.float16).astype(np.float32)
            self.same(
                node.name, what, stored.reshape(expected.shape) if stored.size == expected.size else stored, expected
            )

    def outputs(self, graph: Graph, *, ends: Mapping[str, str]) -> None:
        """Check names, shapes and origins of the outputs; then that no operation is left over."""
        found = {name for port in self.model.outputs for name in port.get_names()}
        if found != set(graph.outputs):
            raise self.differs("outputs", f"{sorted(found)}", f"{sorted(graph.outputs)}")
        for output in graph.outputs:
            self.take(output, f"{output}/view", "Reshape", ends[output], None)
            self.take(output, f"{output}/result", "Result", f"{output}/view")
            view = self.operations[f"{output}/view"].output(0)
            if output not in view.get_names():
                raise self.differs(output, "another tensor has its name", f"{ends[output]!r} to have it")
            shape = tuple(int(side) for side in view.get_shape())
            if shape != (1, *graph.output_shape(output)):
                raise self.differs(output, f"shape {shape}", f"{(1, *graph.output_shape(output))}")
        foreign = sorted(set(self.operations) - self.seen)
        if foreign:
            raise _differs(
                foreign[0].split("/")[0], f"an operation {foreign[0]!r}", "none of that name", where=self.path
            )


def check_float(path: Path, graph: Graph, *, precision: str, float_input: bool = False) -> None:
    """Compare a float file with the network it claims to carry, layer by layer.

    Args:
        path: The .xml.
        graph: The network.
        precision: "fp32" or "fp16"; with the latter every constant is the nearest half float.
        float_input: See `write`.

    Raises:
        ModelError: A weight, bias, stride, padding, connection, name or shape differs, or it does not compile.
    """
    ir = _Ir(path)
    x = ir.front(graph, float_input=float_input)
    ir.take(INPUT, f"{INPUT}/planes", "Transpose", x, None)
    ends = {INPUT: f"{INPUT}/planes"} | {node.name: node.name for node in graph.nodes}
    for node in graph.nodes:
        name, reads = node.name, [ends[source] for source in node.inputs]
        last = f"{name}/before" if node.relu else name
        match node.op:
            case "conv2d" | "linear":
                ir.layer(node, graph, reads=reads[0], last=last)
                halved = _is_half(ir.operations[f"{name}/sum"].input_value(1))
                if halved != (precision == "fp16"):
                    raise _differs(name, f"weights in {'half floats' if halved else 'float32'}", precision, where=path)
            case "mfm":
                ir.take(name, f"{name}/halves", "Split", reads[0], None)
                ir.take(name, last, "Maximum", f"{name}/halves", f"{name}/halves")
            case "add":
                ir.take(name, last, "Add", *reads)
            case "mean":
                ir.take(name, last, "ReduceMean", reads[0], None)
            case "flatten":
                ir.take(name, last, "Reshape", reads[0], None)
            case "cells":
                ir.channels_last(name, ir.take(name, last, "Transpose", reads[0], None))
            case "max_pool":
                ir.pooling(name, ir.take(name, last, "MaxPool", reads[0]), node.kernel, node.stride)
        if node.relu:
            ir.take(name, name, "Relu", last)
    ir.outputs(graph, ends={output: ends[name] for output, name in graph.outputs.items()})
    _compiled(ir.model, threads=1, where=path)


def check_w8a8(path: Path, quantized: Quantized, *, float_input: bool = False) -> None:
    """Compare an int8 file with the grid it claims to carry, layer by layer, and compile it.

    Args:
        path: The .xml.
        quantized: The network.
        float_input: See `write`.

    Raises:
        ModelError: A scale, zero point, weight, bias, connection, name or shape differs; or the CPU plug-in computes a
            layer in float that is none of `quantized.floats`, or has a transposition or conversion of its own to do.
    """
    ir = _Ir(path)
    reader = _GridReader(ir=ir, quantized=quantized)
    reader.front(float_input=float_input)
    for node in quantized.graph.nodes:
        reader.node(node)
    reader.outputs()
    compiled = _compiled(ir.model, threads=1, where=path)
    if "INT8" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        _check_kernels(compiled, quantized, where=path, float_input=float_input)


@dataclass(kw_only=True)
class _GridReader:
    """Reads the integer network back out of a w8a8 file and compares it.

    Attributes:
        ir: The file.
        quantized: What it should hold.
        units: INPUT and node name to what one step of it is worth in the file.
        ends: INPUT and node name to the operation that holds it.
    """

    ir: _Ir
    quantized: Quantized
    units: dict[str, np.float32] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)

    def front(self, *, float_input: bool) -> None:
        x = self.ir.front(self.quantized.graph, float_input=float_input)
        scale, _ = self.quantized.activations[INPUT]
        self._grid(INPUT, f"{INPUT}/codes", x, step=np.float32(scale))
        self.ir.take(INPUT, f"{INPUT}/planes", "Transpose", f"{INPUT}/codes", None)
        self.ends[INPUT] = f"{INPUT}/planes"

    def node(self, node: Node) -> None:
        name, reads = node.name, [self.ends[source] for source in node.inputs]
        self.ends[name] = name
        match node.op:
            case "conv2d" | "linear" if name in self.quantized.floats:
                self._float_layer(node, reads[0])
            case "conv2d" | "linear":
                self._layer(node, reads[0])
            case "mean":
                total = self.ir.take(name, f"{name}/sum", "ReduceSum", reads[0], None)
                self.ir.same(name, "axes", self.ir.constant(name, total, 1), [2, 3])
                cells = total.input_value(0).get_shape()
                ratio = self._scale(node.inputs[0]) / self._scale(name) / np.float32(cells[2] * cells[3])
                self._requantized(node, f"{name}/sum", self.units[node.inputs[0]], ratio)
            case "add":
                self._add(node, reads)
            case "mfm":
                self._mfm(node, reads[0])
            case "flatten":
                self.ir.take(name, name, "Reshape", reads[0], None)
                self.units[name] = self.units[node.inputs[0]]
            case "cells":
                self.ir.channels_last(name, self.ir.take(name, name, "Transpose", reads[0], None))
                self.units[name] = self.units[node.inputs[0]]
            case "max_pool":
                self.ir.pooling(name, self.ir.take(name, name, "MaxPool", reads[0]), node.kernel, node.stride)
                self.units[name] = self.units[node.inputs[0]]

    def outputs(self) -> None:
        graph, ends = self.quantized.graph, {}
        for output, name in graph.outputs.items():
            ends[output] = self.ends[name]
            if name not in self.quantized.floats:
                ends[output] = f"{output}/value"
                value = self.ir.take(output, f"{output}/value", "Multiply", self.ends[name], None)
                self._factor(output, value, self.units[name], self._scale(name))
        self.ir.outputs(graph, ends=ends)

    def _scale(self, name: str) -> np.float32:
        return np.float32(self.quantized.activations[name][0])

    def _layer(self, node: Node, reads: str) -> None:
        name, ir = node.name, self.ir
        kind = "Convolution" if node.op == "conv2d" else "MatMul"
        total = ir.take(name, f"{name}/sum", kind, reads, f"{name}/weight")
        if node.op == "conv2d":
            ir.geometry(node, total)
        weight = ir.take(name, f"{name}/weight", "Multiply", f"{name}/codes", None)
        codes = ir.constant(name, ir.take(name, f"{name}/codes", "Convert", None), 0)
        if codes.dtype != np.int8:
            raise ir.differs(name, f"weights stored as {codes.dtype}", "int8")
        ir.same(name, "weights", codes, self.quantized.weights[name])
        units = ir.constant(name, weight, 1).ravel() * self.units[node.inputs[0]]
        if not _powers_of_two(units):
            raise ir.differs(name, f"weight units {_brief(units)}", "powers of two")
        biased = ir.take(name, f"{name}/biased", "Add", f"{name}/sum", None)
        ir.same(
            name,
            "bias",
            ir.constant(name, biased, 1).ravel() / units,
            self.quantized.biases[name].astype(np.float32),
        )
        ratio = self._scale(node.inputs[0]) * self.quantized.weight_scales[name] / self._scale(name)
        self._requantized(node, f"{name}/biased", units, ratio)

    def _float_layer(self, node: Node, reads: str) -> None:
        name = node.name
        real = self.ir.take(name, f"{name}/real", "Multiply", reads, None)
        self._factor(name, real, self.units[node.inputs[0]], self._scale(node.inputs[0]))
        leaves = name in self.quantized.graph.outputs.values()
        last = name if leaves and not node.relu else f"{name}/biased"
        self.ir.layer(node, self.quantized.graph, reads=f"{name}/real", last=last)
        if node.relu:
            self.ir.take(name, name if leaves else f"{name}/relu", "Relu", last)
            last = f"{name}/relu"
        if not leaves:
            multiply = self.ir.take(name, f"{name}/multiply", "Multiply", last, None)
            self._factor(name, multiply, np.float32(1.0), np.float32(1.0) / self._scale(name))
            self._rounded(node, f"{name}/multiply")

    def _add(self, node: Node, reads: Sequence[str]) -> None:
        name = node.name
        for place, (source, read) in enumerate(zip(node.inputs, reads, strict=True)):
            whole = self.ir.take(name, f"{name}/whole{place}", "Multiply", read, None)
            self._factor(name, whole, self.units[source], np.float32(1.0))
            self.ir.take(name, f"{name}/kept{place}", "Round", f"{name}/whole{place}")
            term = self.ir.take(name, f"{name}/term{place}", "Multiply", f"{name}/kept{place}", None)
            self._factor(name, term, np.float32(1.0), self._scale(source) / self._scale(name))
        self.ir.take(name, f"{name}/sum", "Add", f"{name}/term0", f"{name}/term1")
        if node.relu:
            self.ir.take(name, f"{name}/relu", "Relu", f"{name}/sum")
        self._rounded(node, f"{name}/relu" if node.relu else f"{name}/sum")

    def _mfm(self, node: Node, reads: str) -> None:
        name = node.name
        self.units[name] = self.units[node.inputs[0]]
        if len(node.shape) == 1:
            self.ir.take(name, f"{name}/pairs", "Reshape", reads, None)
            self.ir.pooling(name, self.ir.take(name, f"{name}/pooled", "MaxPool", f"{name}/pairs"), (2, 1), (2, 1))
            self.ir.take(name, name, "Reshape", f"{name}/pooled", None)
            return
        channels, height, width = node.shape
        last = self.ir.take(name, f"{name}/last", "Transpose", reads, None)
        pairs = self.ir.take(name, f"{name}/pairs", "Reshape", f"{name}/last", None)
        first = self.ir.take(name, f"{name}/first", "Transpose", f"{name}/pairs", None)
        self.ir.same(name, "order", self.ir.constant(name, last, 1), [0, 2, 3, 1])
        self.ir.same(name, "pairs", self.ir.constant(name, pairs, 1), [1, height, 2 * width, channels])
        self.ir.same(name, "order", self.ir.constant(name, first, 1), [0, 3, 1, 2])
        self.ir.pooling(name, self.ir.take(name, name, "MaxPool", f"{name}/first"), (1, 2), (1, 2))

    def _requantized(self, node: Node, reads: str, units: Any, ratio: Any) -> None:
        name = node.name
        clamp = self.ir.take(name, f"{name}/clamp", "Clamp", reads).get_attributes()
        enough = clamp["max"] >= 2.0**31 * np.max(units) and (clamp["min"] == 0.0 or clamp["min"] == -clamp["max"])
        if not enough or (clamp["min"] == 0.0) != node.relu:
            expected = f"{'0' if node.relu else '-2^31'} to 2^31 steps of {_brief(np.asarray(units))}"
            raise self.ir.differs(name, f"sums cut to {clamp['min']} … {clamp['max']}", expected)
        multiply = self.ir.take(name, f"{name}/multiply", "Multiply", f"{name}/clamp", None)
        self._factor(name, multiply, units, ratio)
        self._rounded(node, f"{name}/multiply")

    def _rounded(self, node: Node, reads: str) -> None:
        name = node.name
        rounded = self.ir.take(name, f"{name}/round", "Round", reads)
        if rounded.get_attributes()["mode"].lower() != "half_to_even":
            raise self.ir.differs(name, f"rounding {rounded.get_attributes()['mode']!r}", "half_to_even")
        if not _leaves(self.quantized.graph, name):
            self._grid(name, name, f"{name}/round", step=np.float32(1.0))
            return
        clamp = self.ir.take(name, name, "Clamp", f"{name}/round").get_attributes()
        _, zero_point = self.quantized.activations[name]
        self.ir.same(name, "zero point: range", [clamp["min"], clamp["max"]], [-128 - zero_point, 127 - zero_point])
        self.units[name] = np.float32(1.0)

    def _factor(self, layer: str, op: Any, units: Any, expected: Any) -> None:
        """A multiplier, less the units it takes away, must be the expected ratio of scales."""
        found = self.ir.constant(layer, op, 1).ravel() * units
        self.ir.same(layer, "scale", found, np.broadcast_to(expected, found.shape))

    def _grid(self, owner: str, name: str, reads: str, *, step: np.float32) -> None:
        """Check limits of a FakeQuantize against the grid of `owner`, and learn its unit."""
        op = self.ir.take(owner, name, "FakeQuantize", reads, None, None, None, None)
        _, zero_point = self.quantized.activations[owner]
        low, high, out_low, out_high = (self.ir.constant(owner, op, place) for place in (1, 2, 3, 4))
        if op.get_attributes()["levels"] != 256:
            raise self.ir.differs(owner, f"{op.get_attributes()['levels']} levels", "256")
        limits = np.array([-128 - zero_point, 127 - zero_point], np.float32)
        self.ir.same(owner, "zero point or scale: range", np.array([low, high]) / step, limits)
        unit_found = (out_high - out_low) / np.float32(255)
        if unit_found.size != 1 or not _powers_of_two(unit_found):
            raise self.ir.differs(owner, f"unit {_brief(unit_found)}", "a power of two")
        self.ir.same(owner, "zero point: range", np.array([out_low, out_high]) / unit_found, limits)
        self.units[owner] = np.float32(unit_found)


def _check_kernels(compiled: Any, quantized: Quantized, *, where: Path, float_input: bool) -> None:
    """Look at the compiled network: integer kernels for every layer, and nothing else computed in float."""
    layers = {node.name for node in quantized.graph.nodes if node.op in LAYERS}
    kernels = [_Kernel.of(op) for op in compiled.get_runtime_model().get_ops()]
    seen: set[str] = set()
    for kernel in kernels:
        if kernel.kind in _PRODUCTS:
            name = next((owner for owner in kernel.owners if owner in layers), kernel.owners[0])
            seen.add(name)
            if kernel.precision not in _INT8 and name not in quantized.floats:
                raise _differs(name, f"computed in {kernel.precision}", "u8 or i8", where=where)
    missing = sorted(layers - seen)
    if missing:
        raise _differs(missing[0], "no kernel in the compiled network", "one", where=where)
    if quantized.floats:  # conversions to and fro are what was asked for
        return
    views = tuple(f"{output}/view" for output in quantized.graph.outputs)
    moved = {node.name for node in quantized.graph.nodes if node.op == "cells"}
    for kernel in kernels:
        if kernel.kind in _PRODUCTS or kernel.kind in _PASSIVE or kernel.prepared:
            continue
        if kernel.names[0].startswith(views) or (float_input and INPUT in kernel.owners):
            continue
        if kernel.kind == "Transpose" and kernel.precision in _INT8 and not moved.isdisjoint(kernel.owners):
            continue
        if kernel.kind == "Transpose" or kernel.precision not in _INT8:
            found = f"a {kernel.kind} in {kernel.precision} that was not asked for"
            raise _differs(kernel.owners[0], found, "integer kernels", where=where)


@dataclass(frozen=True, kw_only=True)
class _Kernel:
    """One operation of a compiled network.

    Attributes:
        kind: What the plug-in calls it.
        precision: What it computes in.
        names: Operations of the file that were fused into it; its own name when there is none.
        owners: The nodes these belong to.
        prepared: Whether it reads constants alone, and so runs once, when the network is loaded.
    """

    kind: str
    precision: str
    names: tuple[str, ...]
    owners: tuple[str, ...]
    prepared: bool

    @classmethod
    def of(cls, op: Any) -> _Kernel:
        info = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        names = tuple(filter(None, info["originalLayersNames"].split(","))) or (op.get_friendly_name(),)
        sources = [port.get_source_output().get_node().get_rt_info()["layerType"].astype(str) for port in op.inputs()]
        return cls(
            kind=info["layerType"],
            precision=info["runtimePrecision"],
            names=names,
            owners=tuple(name.split("/")[0] for name in names),
            prepared=bool(sources) and all(source in ("Const", "Constant") for source in sources),
        )


def probe(path: Path) -> None:
    """Load and run a file in a process of its own, which a broken one may take down.

    Raises:
        ModelError: It could not be run.
        MissingToolError: openvino is not installed.
    """
    _openvino()
    try_apart(_PROBE, path, runtime="OpenVINO", expected="a whole .xml with its .bin beside it")


_PROBE = """
import sys
import openvino
compiled = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_NUM_THREADS": 1})
if all(port.get_partial_shape().is_static for port in compiled.inputs):
    compiled.create_infer_request().infer()
"""


class OpenvinoRunner:
    """An OpenVINO file on the CPU, one picture at a time.

    Args:
        path: The .xml.
        spec: Its input and outputs; None takes the outputs that are named after a task and have its size.
        runtime: "openvino".
        precision: What its manifest calls it; "" reads it off the constants.
        threads: CPU threads.

    Raises:
        ModelError: It cannot be read or compiled, or lacks an output.
        UnsupportedError: It has several inputs, or one without a fixed shape.
        MissingToolError: openvino is not installed.
    """

    def __init__(self, path: Path, *, spec: ModelSpec | None, runtime: str, precision: str, threads: int) -> None:
        self.path = path
        self.runtime = runtime
        self.threads = threads
        self._model = _read(path)
        if len(self._model.inputs) != 1:
            raise UnsupportedError(f"{len(self._model.inputs)} inputs", expected="one, a picture", where=str(path))
        sides = self._model.input(0).get_partial_shape()
        if len(sides) > 1 and sides[0].is_dynamic and all(side.is_static for side in list(sides)[1:]):
            self._model.reshape([1, *(side.get_length() for side in list(sides)[1:])])
        if not self._model.input(0).get_partial_shape().is_static:
            raise UnsupportedError(
                f"an input of shape {self._model.input(0).get_partial_shape()}",
                expected="a fixed shape",
                where=str(path),
                do="Export it for a batch of 1 and a fixed size",
            )
        compiled = _compiled(self._model, threads=threads, where=path)
        self._request = compiled.create_infer_request()
        self._picture = _openvino().Tensor(compiled.input(0).get_element_type(), compiled.input(0).get_shape())
        self._request.set_input_tensor(self._picture)
        self._saturates = _largest_weight(self._model) > _SAFE_WEIGHT and not adds_exactly()
        self._compiled = compiled
        self._outputs = {_name(port): port for port in compiled.outputs}
        self._own = spec is not None  # a float input of a file of ours is the standardized picture
        self.spec = spec or _minimal_spec(path, compiled.input(0), self._outputs)
        self.precision = precision or _observed_precision(self._model)
        require_outputs(self.spec, self._outputs, where=str(path))

    @property
    def size_bytes(self) -> int:
        return artifacts.size_bytes(self.path)

    @property
    def macs(self) -> int | None:
        return macs(self._model)

    @property
    def grids(self) -> Grids:
        """Empty: outputs leave in float."""
        return {}

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        side = self.spec.input_px
        require_pictures(batch, side, where=str(self.path))
        if self._saturates:
            raise MissingToolError(
                "this CPU adds pairs of int8 products in 16 bits, which saturate",
                expected="one with AVX512-VNNI or AVX-VNNI, where int8 sums are exact",
                where=str(self.path),
                do="Run the fp32 or fp16 file here",
            )
        picture = self._picture.data
        standardized = picture.dtype == np.float32 and self._own
        if not (standardized or picture.dtype == np.uint8) or picture.shape != (1, side, side, 3):
            raise takes_no_picture(f"{picture.dtype.name} {picture.shape}", where=str(self.path))
        rows = {
            output.name: np.empty((len(batch), *output.shape), np.float32) for output in self.spec.outputs
        }  # filled picture by picture: a copy of 12 kB is nothing beside one inference
        sources = {name: self._request.get_tensor(self._outputs[name]).data for name in rows}
        for row, pixels in enumerate(standardize(batch, self.spec) if standardized else batch):
            picture[0] = pixels
            self._request.infer(share_outputs=True)
            for name, source in sources.items():
                rows[name][row] = source.reshape(rows[name].shape[1:])
        return rows

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare."""
        return self.hold(random_input(self._picture.data.shape, self._picture.data.dtype, seed=seed))

    def hold(self, sample: NDArray[Any]) -> Callable[[], None]:
        """See FileRunner.hold."""
        self._picture.data[:] = sample
        return functools.partial(self._request.infer, share_outputs=True)

    @property
    def inputs(self) -> tuple[Port, ...]:
        return (_port(self._compiled.input(0)),)

    @property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(map(_port, self._outputs.values()))

    @property
    def operations(self) -> Operations | None:
        """See FileRunner.operations: the executed graph, by the arithmetic of each layer."""
        found: dict[str, dict[str, int]] = {}
        for op in self._compiled.get_runtime_model().get_ops():
            told = op.get_rt_info()
            kind, precision = (str(_plain(told, key)) for key in ("layerType", "runtimePrecision"))
            if kind not in ("Input", "Output", "Const"):
                counts = found.setdefault(f"CPU {precision}", {})
                counts[kind] = counts.get(kind, 0) + 1
        return found

    def answer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """See FileRunner.answer."""
        rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self._outputs}
        for sample in batch:
            self._picture.data[:] = sample[None]
            self._request.infer(share_outputs=True)
            for name, port in self._outputs.items():
                rows[name].append(self._request.get_tensor(port).data.astype(np.float32))
        return {name: np.concatenate(parts) for name, parts in rows.items()}


def _plain(told: Any, key: str) -> Any:
    value = told[key] if key in told else ""  # noqa: SIM401 (it is no dict and has no `get`)
    return getattr(value, "value", value)


def _port(port: Any) -> Port:
    dtype = np.dtype(port.get_element_type().to_dtype()).name
    shape = tuple(int(side.get_length()) if side.is_static else None for side in port.get_partial_shape())
    return Port(name=_name(port), dtype=dtype, shape=shape)


# Two products of 255 and 64 still fit into 16 bits.
_SAFE_WEIGHT = 64


def _largest_weight(model: Any) -> int:
    """Largest magnitude of an int8 constant, 0 when there is none."""
    int8 = _openvino().Type.i8  # NumPy knows not all of the others
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    stored = [op.data for op in constants if op.get_element_type() == int8]
    return max((int(np.abs(values.astype(np.int16)).max()) for values in stored if values.size), default=0)


@functools.cache
def adds_exactly() -> bool:
    """Whether the int8 kernels of this CPU add their products without saturating: a sum of the largest is tried."""
    ops, channels, unit_size = _opset(), 64, np.float32(2.0**-7)
    picture = ops.parameter([1, channels, 4, 4], np.uint8)
    limits = [ops.constant(np.float32(limit)) for limit in (0.0, 255.0, 0.0, 255.0 * unit_size)]
    codes = ops.fake_quantize(ops.convert(picture, np.float32), *limits, 256)
    stored = ops.convert(ops.constant(np.full((channels, channels, 1, 1), 127, np.int8)), np.float32)
    weight = ops.multiply(stored, ops.constant(np.full((channels, 1, 1, 1), unit_size, np.float32)))
    total = ops.convolution(codes, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    model = _openvino().Model([total], [picture], "largest")
    compiled = _compiled(model, threads=1, where=Path("a sum of int8 products"))
    (found,) = compiled([np.full((1, channels, 4, 4), 255, np.uint8)]).values()
    return bool((found == channels * 255 * 127 * float(unit_size) ** 2).all())


def macs(model: Any) -> int | None:
    """Multiply-accumulates of one inference of an OpenVINO model; None when a shape is not fixed."""
    total = 0
    for op in model.get_ops():
        kind = op.get_type_name()
        if kind not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        shapes = [op.get_output_partial_shape(0), *(op.get_input_partial_shape(place) for place in (0, 1))]
        if not all(shape.is_static for shape in shapes):
            return None
        result, first, weight = (shape.to_shape() for shape in shapes)
        if kind == "MatMul":
            depth = first[-2] if op.get_attributes()["transpose_a"] and len(first) > 1 else first[-1]
            total += math.prod(result) * depth
        else:
            # OIHW, or with the groups in front: each output value takes one filter's weights.
            filters = weight[0] if kind == "Convolution" else weight[0] * weight[1]
            total += math.prod(result) * (math.prod(weight) // filters)
    return total


def _minimal_spec(path: Path, picture: Any, outputs: Mapping[str, Any]) -> ModelSpec:
    shape = picture.get_shape()
    fixed = {name: tuple(port.get_shape()) for name, port in outputs.items() if port.get_partial_shape().is_static}
    return minimal_spec(path.stem, side=int(shape[1]) if len(shape) == 4 else 0, outputs=fixed)


def _observed_precision(model: Any) -> str:
    kinds = {op.get_type_name() for op in model.get_ops()}
    stored = {
        op.get_element_type().get_type_name()
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and math.prod(op.get_output_shape(0)) > 1
    }
    if stored & set(_INT8):
        return "w8a8" if "FakeQuantize" in kinds else "w8a32"
    return "fp16" if "f16" in stored else "fp32"


def _name(port: Any) -> str:
    names = sorted(port.get_names())
    return names[0] if names else str(port.get_node().get_friendly_name())


def _read(path: Path) -> Any:
    core = _core()
    try:
        model = core.read_model(str(path))
        for op in model.get_ops():  # each name once, here: later ones are read wherever they are needed
            _ = op.get_friendly_name(), [port.get_names() for port in op.outputs()]
    except RuntimeError as error:
        raise _broken(path, error) from error
    except UnicodeDecodeError as error:
        raise _broken(path, RuntimeError(f"a name in it is no UTF-8 text: {error}")) from error
    return model


def _compiled(model: Any, *, threads: int, where: Path) -> Any:
    """A model on the CPU for one picture at a time.

    On CPUs with bfloat16 the plug-in would compute float layers in it: parity and the fp32 baseline need float32. No
    stream means no thread of the plug-in's: the caller's computes, and hands nothing over to another.
    """
    settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    settings |= {"NUM_STREAMS": 0} if threads == 1 else {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    try:
        compiled = _core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _broken(where, error) from error
    signals_on_own_stack()  # or Ctrl-C after the last model is let go would end the process
    return compiled


def _broken(path: Path, error: RuntimeError) -> EdgefaceError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return limit_error(error) or ModelError(
        f"OpenVINO cannot run it ({lines[-1][-300:] if lines else 'no reason given'})",
        expected="a whole .xml with its .bin beside it",
        where=str(path),
        do="Copy or build it again",
    )


def _is_constant(port: Any) -> bool:
    return bool(port.get_node().get_type_name() == "Constant")


def _is_half(port: Any) -> bool:
    node = port.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_element_type().get_type_name() == "f16")


def _powers_of_two(values: NDArray[np.float32]) -> bool:
    return bool(np.all(np.frexp(values)[0] == 0.5))


def _brief(values: NDArray[Any]) -> str:
    return f"{np.array2string(values.ravel(), threshold=6, edgeitems=2, precision=9)} of shape {values.shape}"


def _differs(layer: str, found: str, expected: str, *, where: Path) -> ModelError:
    return ModelError(f"layer {layer!r}: {found}", expected=expected, where=where.name, do="Report this as a fault")


def _core() -> Any:
    return _openvino().Core()


def load_runtime() -> None:
    """Import what runs a file, so that the time a file takes to open does not hold it.

    Raises:
        MissingToolError: It is not installed.
    """
    _core()


def _openvino() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingToolError(
            f"openvino cannot be imported ({error})",
            expected="the OpenVINO tool-kit",
            where="target openvino",
            do="pip install 'edgeface[openvino]'",
        ) from error


def _opset() -> Any:
    _openvino()
    return importlib.import_module("openvino.opset13")
