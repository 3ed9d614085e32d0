"""Core ML packages: the only module that imports coremltools.

Every file is an ML program with one input, `image`, an RGB picture of the network's side (or a float32 (1, H, W, 3)
array of standardized values), which is standardized inside, and one float32 output per task, named after it, in the
task's shape. A node's result is the value that carries its name. Programs are built operation by operation with the MIL
builder and written through an empty pass pipeline, so that nothing moves a quantization point or rounds a constant.

fp16, w8 and p6 compute in half floats: the weights are half floats, int8 with one half-float scale per output channel,
or 6-bit indices into 64 half floats per tensor.

In the w8a8 file every tensor is in steps of its own scale, so that dequantize and quantize only move zero points:

    NODE_steps = q_x − z_x                                     dequantize, scale 1
    NODE_total = Σ (q_x − z_x)·(q_w·p[c]) + q_b·p[c]           int8 weights, scale p[c]: a power of two near M
    NODE       = NODE_total·(M[c]/p[c])                        M[c] = s_x·s_w[c]/s_y
    NODE_codes = clamp(round_half_even(NODE) + z_y)            quantize, scale 1

It is the network of quantize/grid.py; true scales stand only where an output leaves, and around a layer left in float.
Products and sums are exact in float32, in any order, as long as sums stay below 2^24, because multiplying by a power of
two is; so each activation is float32(acc)·M rounded once: XNNPACK's rule, to the bit. With weights of scale M[c] each
q_w·M[c] is rounded, and up to 1.8 % of the outputs land on another step than the fake-quant student's; with true scales
everywhere up to 1.3 %.

All of it is declared float32. A program's constants are of the type it computes in, and half floats, of 11 significant
bits, would change M and the biases: the file would be another network, off by a step in some percent of its
activations. The price: Core ML gives the Neural Engine half-float operations only, so this file runs on the CPU or GPU,
and the fp16, w8 and p6 files are those for the Neural Engine. What half floats would make of it, the runtime "mil-fp16"
estimates. None of it has been run on a device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import re
import struct
import sys
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.config import to_plain
from edgeface.errors import EdgefaceError, MissingToolError, ModelError, UnsupportedError
from edgeface.evaluate import Outputs
from edgeface.files import output_error, write_folder
from edgeface.precision import IOS, IOS_VERSIONS, check
from edgeface.specs import ModelSpec
from quantize.graph import INPUT, Graph, Node
from quantize.grid import Quantized, require_input_grid
from quantize.rounding import Steps
from targets import artifacts
from targets.foreign import minimal_spec, require_outputs
from targets.program import lossless_grid
from targets.protocol import Grids
from targets.silence import silenced

NOTE = "edgeface"  # key of the user-defined metadata
LAYERS = ("conv2d", "linear")
PALETTE = 64  # values of a p6 tensor
_ROUNDS = 1000  # of 0.1 ms at most
_LEAST_PALETTE = 1024  # weights; of fewer a palette saves next to nothing

_MODEL = "com.apple.CoreML/model.mlmodel"
_WEIGHTS = "com.apple.CoreML/weights"
_SPECIFICATION = {16: 7, 17: 8, 18: 9}  # iOS version to the least format that it reads
_PICTURE_SHIFT = np.float32(-128.0)
_KINDS = {
    "conv2d": "conv",
    "linear": "linear",
    "max_pool": "max_pool",
    "mfm": "maximum",
    "add": "add",
    "mean": "reduce_mean",
    "flatten": "reshape",
    "cells": "transpose",
}
_CHANNELS_LAST = (0, 2, 3, 1)
_DERIVED = (
    *("planes", "half", "scaled", "standardized", "codes", "steps", "real", "sum", "total", "value", "weight", "row"),
    *("halves", "halves_0", "halves_1", "term0", "term1"),
)
# Optional tool-kits that coremltools loads with itself (5 s of tensorflow) for converters that are not used here.
_UNUSED = ("tensorflow", "sklearn", "torchao", "xgboost", "libsvm", "torchaudio")


def write(
    files: Mapping[str, Path],
    *,
    graph: Graph | None,
    quantized: Quantized | None,
    model: ModelSpec,
    float_input: bool = False,
    ios: int = IOS,
    lap: Callable[[str], None] = lambda _: None,
) -> None:
    """Write every wanted package, each checked before it takes its place.

    Args:
        files: Precision to the .mlpackage to write.
        graph: Of fp16, w8 and p6.
        quantized: Of w8a8.
        model: Goes into each file's metadata.
        float_input: Take float32 (1, H, W, 3) of standardized values instead of the picture.
        ios: Least iOS version that shall run it.
        lap: Told of each step when it is done.

    Raises:
        UnsupportedError: The version cannot run a precision, or the picture is not the quantized input as it stands.
        ModelError: A file would differ from what it shall hold; the message names the layer.
        MissingToolError: coremltools is not installed.
    """
    if ios not in IOS_VERSIONS:
        raise UnsupportedError(
            f"iOS {ios}", expected=f"one of {', '.join(map(str, IOS_VERSIONS))}", where="--ios", do="Choose one of them"
        )
    for precision in files:
        check("ios", precision, where="target ios", ios=ios)
    for precision, path in files.items():
        held = quantized if precision == "w8a8" else None
        network = held.graph if held is not None else graph if precision != "w8a8" else None
        if network is None:
            raise UnsupportedError(
                f"{precision!r} without the {'integer' if precision == 'w8a8' else 'float'} network",
                expected="the checkpoint it is made from",
                where="writing Core ML",
                do="Run `edgeface quantize` first" if precision == "w8a8" else "Build from the run that holds both",
            )
        _require_names(network)
        if held is not None:
            require_input_grid(network)
        with _quiet():
            writer = _Writer(graph=network, quantized=held, precision=precision, ios=ios)
            spec, weights = _serialize(writer.program(float_input=float_input), network, float_input, ios)
        note = {"schema": 1, "model": to_plain(model), "precision": precision}
        spec.description.metadata.userDefined[NOTE] = json.dumps(note, sort_keys=True)
        checked: Callable[[Path], None] = (
            partial(check_w8a8, quantized=held, float_input=float_input, ios=ios)
            if held is not None
            else partial(check_float, graph=network, precision=precision, float_input=float_input, ios=ios)
        )
        _save(path, spec, weights, checked=checked)
        lap(f"write {precision}")


@dataclass
class _Writer:
    """One graph on its way into a MIL program.

    Attributes:
        values: INPUT and node name to its float value; of a w8a8 program to its int8 codes.
        dequantized: What a dequantized value is called, to it.
    """

    graph: Graph
    quantized: Quantized | None
    precision: str
    ios: int
    values: dict[str, Any] = field(default_factory=dict)
    dequantized: dict[str, Any] = field(default_factory=dict)

    def program(self, *, float_input: bool) -> Any:
        mil = _import("coremltools.converters.mil.mil")
        self.mb = _import("coremltools.converters.mil").Builder
        side = self.graph.input_px
        shape = (1, side, side, 3) if float_input else (1, 3, side, side)
        program = mil.Program()
        inputs = {INPUT: self.mb.placeholder(shape, dtype=mil.types.fp32)}
        with mil.Function(inputs, opset_version=_target(self.ios)) as function:
            front = self._front(function.inputs[INPUT], float_input=float_input)
            self.values[INPUT] = front if self.quantized is None else self._codes(INPUT, front, real=float_input)
            leaving: dict[str, Any] = {}
            for node in self.graph.nodes:
                self.values[node.name] = self._node(node, leaving)
            function.set_outputs(
                [self._output(output, leaving.get(name)) for output, name in self.graph.outputs.items()]
            )
        program.add_function("main", function)
        return program

    def _front(self, image: Any, *, float_input: bool) -> Any:
        """From the picture to a standardized map, channels first."""
        x = image
        if float_input:
            x = self.mb.transpose(x=x, perm=(0, 3, 1, 2), name=f"{INPUT}_planes")
        if self.quantized is not None:
            # The picture's codes are pixel − 128.
            return x if float_input else self.mb.add(x=x, y=_PICTURE_SHIFT, name=f"{INPUT}_standardized")
        exact = lossless_grid(self.graph) is not None
        # Bytes, and bytes over a power of two and shifted, are exact in half floats; other statistics want more bits.
        if exact or float_input:
            x = self.mb.cast(x=x, dtype="fp16", name=f"{INPUT}_half")
        if not float_input:
            scale, bias = _standardisation(self.graph)
            dtype = np.float16 if exact else np.float32
            x = self.mb.mul(x=x, y=scale.astype(dtype), name=f"{INPUT}_scaled")
            x = self.mb.add(x=x, y=bias.astype(dtype), name=f"{INPUT}_standardized")
            if not exact:
                x = self.mb.cast(x=x, dtype="fp16", name=f"{INPUT}_half")
        return x

    def _codes(self, name: str, value: Any, *, real: bool) -> Any:
        """A value on its grid; `real` says that it is in real units rather than in steps."""
        assert self.quantized is not None
        scale, zero_point = self.quantized.activations[name]
        return self.mb.quantize(
            input=value,
            scale=np.float32(scale if real else 1.0),
            zero_point=np.int8(zero_point),
            output_dtype="int8",
            name=f"{name}_codes",
        )

    def _dequantized(self, name: str, *, label: str, real: bool) -> Any:
        assert self.quantized is not None
        if label not in self.dequantized:
            scale, zero_point = self.quantized.activations[name]
            self.dequantized[label] = self.mb.dequantize(
                input=self.values[name],
                scale=np.float32(scale if real else 1.0),
                zero_point=np.int8(zero_point),
                name=label,
            )
        return self.dequantized[label]

    def _node(self, node: Node, leaving: dict[str, Any]) -> Any:
        if self.quantized is None:
            return self._float_node(node, [self.values[name] for name in node.inputs])
        if node.op == "flatten":
            # Integers are put in a row as they are.
            return self.mb.reshape(x=self.values[node.inputs[0]], shape=(1, *node.shape), name=f"{node.name}_codes")
        if node.op == "cells":
            return self.mb.transpose(x=self.values[node.inputs[0]], perm=_CHANNELS_LAST, name=f"{node.name}_codes")
        real = node.name in self.quantized.floats
        inputs = [self._dequantized(name, label=_read_label(name, real=real), real=real) for name in node.inputs]
        value = self._float_node(node, inputs)
        if _leaves_in_float(self.quantized, node):
            leaving[node.name] = value
            return value
        return self._codes(node.name, value, real=real)

    def _float_node(self, node: Node, inputs: Sequence[Any]) -> Any:
        own = _label(self.graph, node.name)
        last = f"{node.name}_sum" if node.relu else own
        in_steps = self.quantized is not None and node.name not in self.quantized.floats
        total = f"{node.name}_total" if in_steps and node.op in (*LAYERS, "mean") else last
        x = inputs[0]
        match node.op:
            case "conv2d":
                y = self.mb.conv(
                    x=x,
                    weight=self._weight(node),
                    bias=self._bias(node),
                    strides=node.stride,
                    pad_type="custom",
                    pad=node.padding,
                    name=total,
                )
            case "linear":
                y = self.mb.linear(x=x, weight=self._weight(node), bias=self._bias(node), name=total)
            case "max_pool":
                y = self.mb.max_pool(x=x, kernel_sizes=node.kernel, strides=node.stride, pad_type="valid", name=last)
            case "mfm":
                halves = self.mb.split(x=x, num_splits=2, axis=1, name=f"{node.name}_halves")
                y = self.mb.maximum(x=halves[0], y=halves[1], name=last)
            case "add" if self.quantized is not None:
                terms = [
                    self.mb.mul(x=term, y=ratio, name=f"{node.name}_term{place}")
                    for place, (term, ratio) in enumerate(zip(inputs, add_ratios(self.quantized, node), strict=True))
                ]
                y = self.mb.add(x=terms[0], y=terms[1], name=last)
            case "add":
                y = self.mb.add(x=x, y=inputs[1], name=last)
            case "mean" if self.quantized is not None:
                y = self.mb.reduce_sum(x=x, axes=(2, 3), keep_dims=False, name=total)
            case "mean":
                y = self.mb.reduce_mean(x=x, axes=(2, 3), keep_dims=False, name=last)
            case "flatten":
                y = self.mb.reshape(x=x, shape=(1, *node.shape), name=last)
            case "cells":
                y = self.mb.transpose(x=x, perm=_CHANNELS_LAST, name=last)
        if total != last:
            assert self.quantized is not None
            y = self.mb.mul(x=y, y=_rest(self.quantized, node), name=last)
        return self.mb.relu(x=y, name=own) if node.relu else y

    def _bias(self, node: Node) -> NDArray[Any]:
        if self.quantized is not None:
            return _bias_values(self.quantized, node)
        return _halves(self.graph.biases[node.name].detach().cpu().numpy(), where=node.name)

    def _weight(self, node: Node) -> Any:
        name = f"{node.name}_weight"
        weight = self.graph.weights[node.name].detach().cpu().numpy()
        if self.quantized is not None:
            if node.name in self.quantized.floats:
                return weight.astype(np.float32)
            return self._scaled(self.quantized.weights[node.name], unit(multiplier(self.quantized, node)), name)
        if self.precision == "w8":
            return self._scaled(*_int8(weight, where=node.name), name)
        if self.precision == "p6" and _is_palettised(weight):
            return self._palettised(weight, where=node.name, name=name)
        return _halves(weight, where=node.name)

    def _scaled(self, codes: NDArray[np.int8], scales: NDArray[Any], name: str) -> Any:
        if self.ios >= 18:
            by_channel = scales.reshape(-1, *[1] * (codes.ndim - 1))
            return self.mb.constexpr_blockwise_shift_scale(data=codes, scale=by_channel, name=name)
        return self.mb.constexpr_affine_dequantize(
            quantized_data=codes, zero_point=np.int8(0), scale=scales, axis=0, name=name
        )

    def _palettised(self, weight: NDArray[np.float32], *, where: str, name: str) -> Any:
        palette, indices = palettise(_halves(weight, where=where))
        if self.ios >= 18:
            six_bits = _import("coremltools.converters.mil.mil").types.np_uint6_dtype
            return self.mb.constexpr_lut_to_dense(
                indices=indices.astype(six_bits), lut=palette.reshape(*[1] * weight.ndim, PALETTE, 1), name=name
            )
        return self.mb.constexpr_lut_to_dense(
            indices=_pack6(indices), lut=palette, shape=np.array(weight.shape, np.uint32), name=name
        )

    def _output(self, output: str, leaves: Any) -> Any:
        """One named float32 output."""
        name = self.graph.outputs[output]
        shape, own = (1, *self.graph.output_shape(output)), (1, *self.graph.node(name).shape)
        label = output if shape == own else f"{output}_row"
        if leaves is not None:
            value = self.mb.identity(x=leaves, name=label)
        elif self.quantized is not None:
            value = self._dequantized(name, label=label, real=True)
        else:
            value = self.mb.cast(x=self.values[name], dtype="fp32", name=label)
        return value if shape == own else self.mb.reshape(x=value, shape=shape, name=output)


def palettise(weight: NDArray[np.float16]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """The nearest of 64 values for each weight.

    Args:
        weight: Any shape.

    Returns:
        The palette, (64,) in rising order, and each weight's index, of the weight's shape.

    Source:
        Lloyd's algorithm in one dimension from fixed starts; nothing is drawn at random.
    """
    values = np.sort(weight.astype(np.float64).ravel())
    if len(distinct := np.unique(values)) <= PALETTE:
        centres = np.concatenate([distinct, np.full(PALETTE - len(distinct), distinct[-1])])
    else:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        # Half of them where the weights are dense, half in even steps, or the few large weights get none.
        quantiles = values[((np.arange(PALETTE // 2) + 0.5) / (PALETTE // 2) * values.size).astype(int)]
        centres = np.sort(np.concatenate([quantiles, np.linspace(values[0], values[-1], PALETTE // 2)]))
        for _ in range(_ROUNDS):
            edges = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
            bounds = np.concatenate([[0], edges, [len(values)]])
            counts = np.diff(bounds)
            moved = np.where(counts > 0, np.diff(sums[bounds]) / np.maximum(counts, 1), centres)
            if np.array_equal(moved, centres):
                break
            centres = moved
    palette = np.sort(centres.astype(np.float16))
    middles = (palette[1:].astype(np.float64) + palette[:-1]) / 2
    return palette, np.searchsorted(middles, weight.astype(np.float64)).astype(np.uint8)


def _is_palettised(weight: NDArray[np.float32]) -> bool:
    return weight.size >= _LEAST_PALETTE


def _pack6(indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Six bits each, the lowest first, without gaps."""
    bits = np.unpackbits(indices.reshape(-1, 1), axis=1, bitorder="little", count=6)
    return np.packbits(bits.ravel(), bitorder="little")


def _int8(weight: NDArray[np.float32], *, where: str) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes −127 to 127 and one half-float scale per output channel."""
    by_channel = [-1, *[1] * (weight.ndim - 1)]
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    # A half float rounds by up to 2^-11; a scale that fell below largest/127 would cut the largest weight.
    scales = _halves(np.maximum(largest / 127 * (1 + 2.0**-11), 2.0**-14), where=where)
    codes = np.rint(weight.astype(np.float64) / scales.astype(np.float64).reshape(by_channel))
    return np.clip(codes, -127, 127).astype(np.int8), scales


def _halves(values: NDArray[Any], *, where: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ModelError("a constant that half floats cannot hold", expected="at most 65504", where=f"layer {where!r}")
    return halves


def multiplier(quantized: Quantized, node: Node) -> NDArray[np.float32]:
    """M of quantize/grid.py, each operation rounded to float32: (out,) of a layer, () of a mean."""
    graph, source = quantized.graph, node.inputs[0]
    scales, count = np.ones((), np.float32), 1
    if node.op == "mean":
        count = math.prod((graph.input_px,) * 2 if source == INPUT else graph.node(source).shape[1:])
    else:
        scales = quantized.weight_scales[node.name]
    steps = Steps(
        source=quantized.activations[source][0],
        weights=scales,
        count=count,
        result=quantized.activations[node.name][0],
    )
    return np.asarray(steps.narrow(), np.float32)


def add_ratios(quantized: Quantized, node: Node) -> tuple[np.float32, np.float32]:
    """What a step of each operand of an add is worth in steps of the sum."""
    first, second, result = (np.float32(quantized.activations[name][0]) for name in (*node.inputs, node.name))
    return np.float32(first / result), np.float32(second / result)


def unit(multipliers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The power of two nearest to each multiplier, by ratio: the scale of a layer's int8 weights in the file."""
    return np.asarray(np.exp2(np.rint(np.log2(multipliers.astype(np.float64)))), np.float32)


def _rest(quantized: Quantized, node: Node) -> NDArray[np.float32]:
    """What a sum of the file is multiplied by, exact: M/p as (out, 1, 1) or (out,) of a layer, M itself of a mean."""
    whole = multiplier(quantized, node)
    return whole if node.op == "mean" else (whole / unit(whole)).reshape(-1, *[1] * (len(node.shape) - 1))


def _bias_values(quantized: Quantized, node: Node) -> NDArray[np.float32]:
    """A layer's bias as the file holds it: q_b·p[c], exact below 2^24, or real for a layer left in float."""
    if node.name in quantized.floats:
        return np.asarray(quantized.graph.biases[node.name].detach().cpu().numpy(), np.float32)
    return np.asarray(quantized.biases[node.name].astype(np.float32) * unit(multiplier(quantized, node)), np.float32)


def _read_label(name: str, *, real: bool) -> str:
    """What the dequantized value of a node is called: in real units, or in steps of its own."""
    return f"{name}_real" if real else f"{name}_steps"


def _leaves_in_float(quantized: Quantized, node: Node) -> bool:
    return node.name in quantized.floats and node.name in quantized.graph.outputs.values()


def _standardisation(graph: Graph) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factor and summand that standardize a picture: one number where the channels agree, and (1, 3, 1, 1) else."""
    mean, std = np.array(graph.mean, np.float64), np.array(graph.std, np.float64)
    if len(set(graph.mean)) == len(set(graph.std)) == 1:
        return np.array(1.0 / std[0], np.float32), np.array(-mean[0] / std[0], np.float32)
    return (1.0 / std).astype(np.float32).reshape(1, 3, 1, 1), (-mean / std).astype(np.float32).reshape(1, 3, 1, 1)


def _require_names(graph: Graph) -> None:
    """Refuse what a program cannot name, or would name like a value derived from another."""
    names = [node.name for node in graph.nodes]
    for name in (*names, *graph.outputs):
        derived = any(name == f"{other}_{suffix}" for other in (INPUT, *names, *graph.outputs) for suffix in _DERIVED)
        if derived or name == INPUT or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UnsupportedError(
                f"a layer or output called {name!r}",
                expected=f"letters, digits and underscores, and none of the endings {', '.join(_DERIVED)} behind the "
                "name of another",
                where="writing Core ML",
                do="Rename it",
            )


def _label(graph: Graph, name: str) -> str:
    """What a node's value is called: its name, unless an output bears it."""
    return f"{name}_value" if name in graph.outputs else name


def _serialize(program: Any, graph: Graph, float_input: bool, ios: int) -> tuple[Any, bytes]:
    """A program as its protobuf and its weights."""
    tools = _import("coremltools")
    side = graph.input_px
    if float_input:
        described = tools.TensorType(name=INPUT, shape=(1, side, side, 3), dtype=np.float32)
    else:
        described = tools.ImageType(name=INPUT, shape=(1, 3, side, side), color_layout=tools.colorlayout.RGB)
    made = tools.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        inputs=[described],
        minimum_deployment_target=_target(ios),
        compute_precision=tools.precision.FLOAT32,  # adds no casts; the program's own types stand
        pass_pipeline=tools.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    file = Path(made.weights_dir) / "weight.bin"
    return made.get_spec(), file.read_bytes() if file.is_file() else b""


def _save(path: Path, spec: Any, weights: bytes, *, checked: Callable[[Path], None]) -> None:
    """Write a package aside, check it, and put it in place; the same content gives the same bytes."""
    items = {
        _MODEL: ("model.mlmodel", "CoreML Model Specification"),
        _WEIGHTS: ("weights", "CoreML Model Weights"),
    }
    keys = {place: str(uuid.uuid5(uuid.NAMESPACE_URL, place)).upper() for place in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            keys[place]: {"author": "com.apple.CoreML", "description": text, "name": name, "path": place}
            for place, (name, text) in items.items()
        },
        "rootModelIdentifier": keys[_MODEL],
    }
    try:
        with write_folder(path) as aside:
            (aside / "Data" / _WEIGHTS).mkdir(parents=True)
            (aside / "Data" / _MODEL).write_bytes(spec.SerializeToString(deterministic=True))
            (aside / "Data" / _WEIGHTS / "weight.bin").write_bytes(weights)
            (aside / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True), encoding="utf-8")
            checked(aside)
    except OSError as error:
        raise output_error(error, where=path) from error


@dataclass(frozen=True, kw_only=True)
class Value:
    """The declared type of a value: its name, "fp32", "fp16", "int8", …, and its shape, 0 where a side is not fixed."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Literal:
    """A constant written in place of a name."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of an ML program.

    Attributes:
        kind: Its type, such as "conv".
        name: Its name, or that of its first result.
        inputs: Parameter to what it is given: names of values, or a Literal.
        outputs: What it makes.
    """

    kind: str
    name: str
    inputs: Mapping[str, tuple[str | Literal, ...]]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A saved ML program, decoded.

    Attributes:
        path: Where it lies.
        specification: Version of the format: 7 is iOS 16, 8 iOS 17, 9 iOS 18.
        inputs: What the program takes.
        picture: (width, height, colour order) of an image input; None for arrays.
        operations: In execution order, constants left out.
        constants: Name of a value to an array or a string.
        outputs: Names of the values that leave, in order.
        described: The outputs' names as the model describes them.
    """

    path: Path
    specification: int
    inputs: tuple[Value, ...]
    picture: tuple[int, int, str] | None
    operations: tuple[Operation, ...]
    constants: Mapping[str, Any]
    outputs: tuple[str, ...]
    described: tuple[str, ...]

    def constant(self, operation: Operation, parameter: str) -> Any:
        """A parameter's constant value; None when it is absent or computed."""
        given = operation.inputs.get(parameter)
        if not given:
            return None
        values = [self.constants.get(one) if isinstance(one, str) else one.value for one in given]
        return values[0] if len(values) == 1 else values

    def producers(self) -> dict[str, Operation]:
        """Name of a value to the operation that makes it."""
        return {value.name: operation for operation in self.operations for value in operation.outputs}


def read_package(path: Path) -> Package:
    """Decode a package.

    Raises:
        ModelError: It is broken, or no ML program.
        MissingToolError: coremltools is not installed.
    """
    spec = read_model(path)
    if spec.WhichOneof("Type") != "mlProgram":
        raise ModelError(
            f"a model of type {spec.WhichOneof('Type')!r}",
            expected="an ML program",
            where=str(path),
            do="Convert it again for iOS 15 or later",
        )
    try:
        if "main" not in spec.mlProgram.functions:
            raise ValueError("no function 'main'")
        function = spec.mlProgram.functions["main"]
        block = function.block_specializations[function.opset]
        reader = _Reader(_model_file(path).parent, _proto("MIL_pb2").DataType)
        constants = {
            op.outputs[0].name: reader.value(op.attributes["val"]) for op in block.operations if op.type == "const"
        }
        operations = tuple(reader.operation(op) for op in block.operations if op.type != "const")
        inputs = tuple(reader.typed(entry.name, entry.type) for entry in function.inputs)
    except (KeyError, IndexError, OSError, struct.error, ValueError, TypeError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from error
    return Package(
        path=path,
        specification=spec.specificationVersion,
        inputs=inputs,
        picture=_picture(spec.description.input[0]) if len(spec.description.input) == 1 else None,
        operations=operations,
        constants=constants,
        outputs=tuple(block.outputs),
        described=tuple(entry.name for entry in spec.description.output),
    )


def read_note(path: Path) -> dict[str, Any]:
    """What edgeface wrote into a package; {} when it is none of ours."""
    try:
        note = json.loads(read_model(path).description.metadata.userDefined[NOTE])
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _picture(described: Any) -> tuple[int, int, str] | None:
    if described.type.WhichOneof("Type") != "imageType":
        return None
    image = described.type.imageType
    return int(image.width), int(image.height), str(image.ColorSpace.Name(image.colorSpace))


_DTYPES: dict[str, tuple[str, Any]] = {
    "FLOAT32": ("fp32", np.float32),
    "FLOAT16": ("fp16", np.float16),
    "INT32": ("int32", np.int32),
    "INT16": ("int16", np.int16),
    "INT8": ("int8", np.int8),
    "UINT32": ("uint32", np.uint32),
    "UINT16": ("uint16", np.uint16),
    "UINT8": ("uint8", np.uint8),
    "INT64": ("int64", np.int64),
    "BOOL": ("bool", np.bool_),
    "STRING": ("string", np.str_),
}
_BITS = {"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6, "INT4": 4}
_BLOB = struct.Struct("<IIQQ")  # sentinel, data type, size in bytes, offset of the data
_SENTINEL = 0xDEADBEEF


@dataclass
class _Reader:
    """Decodes the protobuf's values; `root` is the folder that "@model_path" stands for."""

    root: Path
    types: Any
    blobs: dict[str, bytes] = field(default_factory=dict)

    def typed(self, name: str, declared: Any) -> Value:
        tensor = declared.tensorType
        kind = self.types.Name(tensor.dataType)
        return Value(
            name=name,
            dtype=_DTYPES[kind][0] if kind in _DTYPES else kind.lower(),
            shape=tuple(int(side.constant.size) for side in tensor.dimensions),
        )

    def operation(self, op: Any) -> Operation:
        inputs: dict[str, tuple[str | Literal, ...]] = {
            key: tuple(
                bound.name if bound.WhichOneof("binding") == "name" else Literal(self.value(bound.value))
                for bound in argument.arguments
            )
            for key, argument in op.inputs.items()
        }
        name = op.outputs[0].name if op.outputs else op.type
        for key, value in op.attributes.items():
            if key == "name":
                name = str(self.value(value))
            else:
                inputs[key] = (Literal(self.value(value)),)
        outputs = tuple(self.typed(entry.name, entry.type) for entry in op.outputs)
        return Operation(kind=op.type, name=name, inputs=inputs, outputs=outputs)

    def value(self, stored: Any) -> Any:
        if stored.type.WhichOneof("type") != "tensorType":
            raise ValueError(f"a constant of type {stored.type.WhichOneof('type')!r}")
        kind = self.types.Name(stored.type.tensorType.dataType)
        shape = tuple(int(side.constant.size) for side in stored.type.tensorType.dimensions)
        if stored.WhichOneof("value") == "blobFileValue":
            return self._array(self._blob(stored.blobFileValue), kind, shape)
        tensor = stored.immediateValue.tensor
        held = tensor.WhichOneof("value")
        if held is None:
            return np.zeros(shape, _DTYPES[kind][1])
        values = getattr(tensor, held).values
        if held == "strings":
            return str(values[0]) if not shape else list(values)
        if held == "bytes":
            return self._array(values, kind, shape)
        return np.array(list(values), _DTYPES[kind][1]).reshape(shape)

    def _array(self, raw: bytes, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
        count = math.prod(shape)
        if kind in _BITS:
            return unpack_bits(raw, _BITS[kind], count, signed=kind.startswith("INT")).reshape(shape)
        dtype = np.dtype(_DTYPES[kind][1])
        if len(raw) < count * dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes for {count} values of {kind}")
        return np.frombuffer(raw, dtype, count).reshape(shape)

    def _blob(self, place: Any) -> bytes:
        name = place.fileName.replace("@model_path", str(self.root))
        if name not in self.blobs:
            self.blobs[name] = Path(name).read_bytes()
        content = self.blobs[name]
        sentinel, _, size, offset = _BLOB.unpack_from(content, place.offset)
        if sentinel != _SENTINEL or offset + size > len(content):
            raise ValueError(f"{Path(name).name} ends, or holds something else, at byte {place.offset}")
        return content[offset : offset + size]


def unpack_bits(raw: bytes, bits: int, count: int, *, signed: bool) -> NDArray[Any]:
    """Integers of fewer than eight bits, the lowest bit first, without gaps.

    Raises:
        ValueError: There are fewer.
    """
    if len(raw) * 8 < bits * count:
        raise ValueError(f"{len(raw)} bytes for {count} values of {bits} bits")
    held = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little", count=bits * count).reshape(count, bits)
    values = (held.astype(np.int16) << np.arange(bits, dtype=np.int16)).sum(axis=1)
    if signed:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return np.asarray(values, np.int8 if signed else np.uint8)


def check_w8a8(path: Path, quantized: Quantized, *, float_input: bool = False, ios: int = IOS) -> None:
    """Compare a package with the grid it claims to carry, operation by operation and constant by constant.

    Raises:
        ModelError: Naming the layer that differs.
    """
    _Checker(read_package(path), quantized.graph, quantized, precision="w8a8").all(float_input=float_input, ios=ios)


def check_float(path: Path, graph: Graph, *, precision: str, float_input: bool = False, ios: int = IOS) -> None:
    """Compare an fp16, w8 or p6 package with the graph it was made from.

    Raises:
        ModelError: Naming the layer that differs.
    """
    _Checker(read_package(path), graph, None, precision=precision).all(float_input=float_input, ios=ios)


def constant_expression(package: Package, operation: Operation) -> NDArray[Any]:
    """The array that a constexpr_* operation stands for, in its declared type.

    Raises:
        UnsupportedError: Another operation, or a form of one that is not written here.
    """
    dtype = np.float16 if operation.outputs[0].dtype == "fp16" else np.float32

    def given(parameter: str) -> Any:
        return package.constant(operation, parameter)

    match operation.kind:
        case "constexpr_affine_dequantize":
            codes, axis = given("quantized_data"), int(given("axis"))
            by_axis = [-1 if place == axis % codes.ndim else 1 for place in range(codes.ndim)]
            scale, zero = (np.asarray(given(key), np.float32) for key in ("scale", "zero_point"))
            scale, zero = (v.reshape(by_axis) if v.ndim else v for v in (scale, zero))
            return np.asarray((codes.astype(np.float32) - zero) * scale, dtype)
        case "constexpr_blockwise_shift_scale":
            codes = given("data")
            values = codes.astype(np.float32)
            if given("offset") is not None:
                values = values - _blocks(given("offset"), codes.shape)
            return np.asarray(values * _blocks(given("scale"), codes.shape), dtype)
        case "constexpr_lut_to_dense" if given("shape") is not None:
            palette, shape = given("lut"), [int(side) for side in given("shape")]
            bits = int(palette.size - 1).bit_length()
            indices = unpack_bits(given("indices").tobytes(), bits, math.prod(shape), signed=False)
            return np.asarray(palette.reshape(-1)[indices].reshape(shape))
        case "constexpr_lut_to_dense":
            palette, indices = given("lut"), given("indices")
            if palette.size == palette.shape[-2]:  # one palette of single values
                return np.asarray(palette.reshape(-1)[indices])
        case "constexpr_cast":
            return np.asarray(given("source_val"), np.float32)
    raise UnsupportedError(
        f"operation {operation.kind!r} of layer {operation.name!r}",
        expected="weights as int8 with scales, or one palette per tensor",
        where=str(package.path),
        do="Run it on a Mac: --runtime coreml",
    )


def _blocks(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    spread = values.astype(np.float32)
    for axis, side in enumerate(shape):
        spread = np.repeat(spread, side // spread.shape[axis], axis=axis)
    return spread


def _differs(where: str, found: str, expected: str) -> ModelError:
    return ModelError(
        found, expected=expected, where=f"layer {where!r} of the Core ML file", do="Build it again, or report it"
    )


class _Checker:
    """Walks a package along a graph, from the outputs' and layers' names, and accounts for every operation."""

    def __init__(self, package: Package, graph: Graph, quantized: Quantized | None, *, precision: str) -> None:
        self.package, self.graph, self.quantized, self.precision = package, graph, quantized, precision
        self.producers = package.producers()
        self.visited: set[str] = set()

    def all(self, *, float_input: bool, ios: int) -> None:
        self.contract(float_input=float_input, ios=ios)
        front = self.front(float_input=float_input)
        if self.quantized is not None:
            self.codes(INPUT, front, real=float_input)
        for node in self.graph.nodes:
            self.node(node, front)
        for output, name in self.graph.outputs.items():
            self.output(output, name, front)
        for operation in self.package.operations:
            if operation.outputs[0].name not in self.visited:
                found = f"{operation.kind} {operation.name!r}, which belongs to no layer"
                raise _differs(operation.outputs[0].name, found, "no such operation")

    def contract(self, *, float_input: bool, ios: int) -> None:
        """Version, input and outputs."""
        package, side = self.package, self.graph.input_px
        if package.specification != _SPECIFICATION[ios]:
            found = f"specification version {package.specification}"
            raise _differs(INPUT, found, f"{_SPECIFICATION[ios]} (iOS {ios})")
        shape = (1, side, side, 3) if float_input else (1, 3, side, side)
        if package.inputs != (Value(name=INPUT, dtype="fp32", shape=shape),):
            raise _differs(INPUT, f"inputs {package.inputs}", f"one, {INPUT!r}, float32 {shape}")
        picture = None if float_input else (side, side, "RGB")
        if package.picture != picture:
            raise _differs(INPUT, f"picture {package.picture}", f"{picture}")
        for names in (package.outputs, package.described):
            if set(names) != set(self.graph.outputs):
                odd = sorted(set(names) ^ set(self.graph.outputs))[0]
                raise _differs(odd, f"outputs {sorted(names)}", f"{sorted(self.graph.outputs)}")

    def made(self, value: str, kind: str, reads: Sequence[str], *, where: str, **constants: Any) -> Operation:
        """The operation that makes a value: of a kind, with these operands and parameters and no others.

        Args:
            value: What it makes, alone or first.
            kind: Its type.
            reads: Values it reads, in order.
            where: The layer that an error names.
            constants: Parameter to its constant; None for one that is compared elsewhere.
        """
        operation = self.producers.get(value)
        if operation is None or operation.kind != kind:
            found = "nothing" if operation is None else f"{operation.kind} {operation.name!r}"
            raise _differs(where, f"{found} makes {value!r}", f"a {kind}")
        self.visited.add(operation.outputs[0].name)
        operands = [one for key in ("input", "x", "y") for one in operation.inputs.get(key, ())]
        found_reads = [one for one in operands if isinstance(one, str) and one not in self.package.constants]
        if found_reads != list(reads):
            raise _differs(where, f"{kind} {value!r} reads {found_reads}", f"{list(reads)}")
        odd = set(operation.inputs) - set(constants) - {"input", "x", "y"}
        if odd:
            raise _differs(where, f"{kind} {value!r} with {', '.join(sorted(odd))}", "without")
        for parameter, expected in constants.items():
            if expected is not None:
                self.equal(operation, parameter, np.asarray(expected), where=where)
        wanted = self.dtype(value, kind)
        if any(made.dtype != wanted for made in operation.outputs):
            raise _differs(where, f"{kind} {value!r} in {operation.outputs[0].dtype}", wanted)
        return operation

    def dtype(self, value: str, kind: str) -> str:
        """What an operation of this kind has to compute in."""
        if self.quantized is not None:
            return (
                "int8"
                if kind == "quantize" or (kind in ("reshape", "transpose") and value.endswith("_codes"))
                else "fp32"
            )
        in_full = value in self.package.outputs or value == f"{INPUT}_planes"
        before = value in (f"{INPUT}_scaled", f"{INPUT}_standardized") and lossless_grid(self.graph) is None
        leads = any(value == f"{output}_row" for output in self.graph.outputs)
        return "fp32" if in_full or before or leads else "fp16"

    def equal(self, operation: Operation, parameter: str, expected: NDArray[Any], *, where: str) -> None:
        found = self.package.constant(operation, parameter)
        what = parameter.replace("_", " ")
        if found is None:
            raise _differs(where, f"a {what} of {operation.kind} that is no constant", "a constant")
        if expected.dtype.kind in "UOb" or np.asarray(found).dtype.kind in "UOb":
            same = np.asarray(found).reshape(-1).tolist() == expected.reshape(-1).tolist()
        elif expected.dtype == np.int64:  # sides, axes and the like, of which any width will do
            same = np.array_equal(np.asarray(found).reshape(-1), expected.reshape(-1))
        else:
            array = np.asarray(found)
            same = array.dtype == expected.dtype and array.size == expected.size
            same = same and np.array_equal(array.reshape(expected.shape), expected)
        if not same:
            raise _differs(where, f"{what} {_brief(found)}", _brief(expected))

    def front(self, *, float_input: bool) -> str:
        """The name of the standardized map, channels first."""
        planes = f"{INPUT}_planes"
        if float_input:
            self.made(planes, "transpose", [INPUT], where=INPUT, perm=[0, 3, 1, 2])
            if self.quantized is not None:
                return planes
            self.made(f"{INPUT}_half", "cast", [planes], where=INPUT, dtype="fp16")
            return f"{INPUT}_half"
        standardized = f"{INPUT}_standardized"
        if self.quantized is not None:
            self.made(standardized, "add", [INPUT], where=INPUT, y=_PICTURE_SHIFT)
            return standardized
        exact = lossless_grid(self.graph) is not None
        scale, bias = (values.astype(np.float16 if exact else np.float32) for values in _standardisation(self.graph))
        first = f"{INPUT}_half" if exact else INPUT
        self.made(f"{INPUT}_scaled", "mul", [first], where=INPUT, y=scale)
        self.made(standardized, "add", [f"{INPUT}_scaled"], where=INPUT, y=bias)
        self.made(f"{INPUT}_half", "cast", [INPUT if exact else standardized], where=INPUT, dtype="fp16")
        return standardized if exact else f"{INPUT}_half"

    def grid(self, name: str, *, real: bool) -> dict[str, Any]:
        assert self.quantized is not None
        scale, zero_point = self.quantized.activations[name]
        return {"scale": np.float32(scale if real else 1.0), "zero_point": np.int8(zero_point)}

    def codes(self, name: str, read: str, *, real: bool) -> None:
        self.made(f"{name}_codes", "quantize", [read], where=name, output_dtype="int8", **self.grid(name, real=real))

    def node(self, node: Node, front: str) -> None:
        quantized, name = self.quantized, node.name
        if quantized is None:
            self.computed(node, [front if read == INPUT else _label(self.graph, read) for read in node.inputs])
            return
        if node.op == "flatten":
            row = [f"{node.inputs[0]}_codes"]
            self.made(f"{name}_codes", "reshape", row, where=name, shape=[1, *node.shape])
            return
        if node.op == "cells":
            source = [f"{node.inputs[0]}_codes"]
            self.made(f"{name}_codes", "transpose", source, where=name, perm=list(_CHANNELS_LAST))
            return
        real = name in quantized.floats
        reads = [_read_label(read, real=real) for read in node.inputs]
        for label, read in zip(reads, node.inputs, strict=True):
            self.made(label, "dequantize", [f"{read}_codes"], where=name, **self.grid(read, real=real))
        self.computed(node, reads)
        if not _leaves_in_float(quantized, node):
            self.codes(name, _label(self.graph, name), real=real)

    def computed(self, node: Node, reads: Sequence[str]) -> None:
        """A node's own operation, and its ReLU."""
        value, where = _label(self.graph, node.name), node.name
        if node.relu:
            last = f"{node.name}_sum"
            self.made(value, "relu", [last], where=where)
            value = last
        quantized = self.quantized
        if quantized is not None and node.op in (*LAYERS, "mean") and node.name not in quantized.floats:
            total = f"{node.name}_total"
            self.made(value, "mul", [total], where=where, y=_rest(quantized, node))
            value = total
        match node.op:
            case "conv2d":
                window = {"strides": node.stride, "pad": node.padding, "dilations": (1, 1), "groups": 1}
                layer = self.made(
                    value, "conv", reads, where=where, weight=None, bias=None, pad_type="custom", **window
                )
                self.parameters(node, layer)
            case "linear":
                self.parameters(node, self.made(value, "linear", reads, where=where, weight=None, bias=None))
            case "max_pool":
                window = {"kernel_sizes": node.kernel, "strides": node.stride, "pad": (0, 0, 0, 0), "ceil_mode": False}
                self.made(value, "max_pool", reads, where=where, pad_type="valid", **window)
            case "mfm":
                first = self.producers.get(value)
                halves = [str(one) for key in ("x", "y") for one in first.inputs.get(key, ())] if first else []
                self.made(value, "maximum", halves, where=where)
                split = self.made(halves[0], "split", reads, where=where, num_splits=2, axis=1)
                if [half.name for half in split.outputs] != halves:
                    raise _differs(where, f"a maximum of {halves}", "of two halves")
            case "flatten":
                self.made(value, "reshape", reads, where=where, shape=[1, *node.shape])
            case "cells":
                self.made(value, "transpose", reads, where=where, perm=list(_CHANNELS_LAST))
            case "add":
                if self.quantized is not None:
                    terms = [f"{node.name}_term{place}" for place in range(2)]
                    for term, read, ratio in zip(terms, reads, add_ratios(self.quantized, node), strict=True):
                        self.made(term, "mul", [read], where=where, y=ratio)
                    reads = terms
                self.made(value, "add", reads, where=where)
            case "mean":
                kind = "reduce_mean" if self.quantized is None else "reduce_sum"
                self.made(value, kind, reads, where=where, axes=(2, 3), keep_dims=False)

    def parameters(self, node: Node, layer: Operation) -> None:
        """Weight and bias of a layer, and how they are stored."""
        name, quantized = node.name, self.quantized
        weight = self.graph.weights[name].detach().cpu().numpy()
        if quantized is None:
            bias = _halves(self.graph.biases[name].detach().cpu().numpy(), where=name)
            self.equal(layer, "bias", bias, where=name)
            match self.precision:
                case "w8":
                    self.int8(layer, *_int8(weight, where=name), where=name)
                case "p6" if _is_palettised(weight):
                    self.palette(layer, *palettise(_halves(weight, where=name)), where=name)
                case _:
                    self.equal(layer, "weight", _halves(weight, where=name), where=name)
            return
        self.equal(layer, "bias", _bias_values(quantized, node), where=name)
        if name in quantized.floats:
            self.equal(layer, "weight", weight.astype(np.float32), where=name)
        else:
            self.int8(layer, quantized.weights[name], unit(multiplier(quantized, node)), where=name)

    def stored(self, layer: Operation, kinds: Sequence[str], *, where: str) -> Operation:
        """The constant expression of a layer's weights."""
        given = layer.inputs["weight"][0]
        made = self.producers.get(given) if isinstance(given, str) else None
        if made is None or made.kind not in kinds:
            raise _differs(where, f"weights from {made.kind if made else 'a constant'}", f"from {' or '.join(kinds)}")
        self.visited.add(made.outputs[0].name)
        return made

    def int8(self, layer: Operation, codes: NDArray[np.int8], scales: NDArray[Any], *, where: str) -> None:
        made = self.stored(layer, ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"), where=where)
        by_channel = made.kind == "constexpr_affine_dequantize"
        self.equal(made, "quantized_data" if by_channel else "data", codes, where=where)
        self.equal(made, "scale", scales, where=where)
        if by_channel:
            self.equal(made, "zero_point", np.zeros((), np.int8), where=where)
            self.equal(made, "axis", np.zeros((), np.int64), where=where)
        elif "offset" in made.inputs or np.shape(self.package.constant(made, "scale"))[0] != len(scales):
            raise _differs(where, "weights with an offset, or scales along another axis", "symmetric per-channel ones")

    def palette(self, layer: Operation, values: NDArray[np.float16], indices: NDArray[np.uint8], *, where: str) -> None:
        made = self.stored(layer, ("constexpr_lut_to_dense",), where=where)
        self.equal(made, "lut", values, where=where)
        if not np.array_equal(constant_expression(self.package, made), values[indices]):
            raise _differs(where, "another weight", "each from the palette's nearest value")

    def output(self, output: str, name: str, front: str) -> None:
        del front
        value = output
        shape = (1, *self.graph.output_shape(output))
        if shape[1:] != self.graph.node(name).shape:
            value = f"{output}_row"
            self.made(output, "reshape", [value], where=output, shape=shape)
        if self.quantized is None:
            self.made(value, "cast", [_label(self.graph, name)], where=output, dtype="fp32")
        elif self.quantized.is_float(output):
            self.made(value, "identity", [_label(self.graph, name)], where=output)
        else:
            self.made(value, "dequantize", [f"{name}_codes"], where=output, **self.grid(name, real=True))
        expected = Value(name=output, dtype="fp32", shape=shape)
        if expected not in self.producers[output].outputs:
            raise _differs(output, f"{self.producers[output].outputs}", f"{expected}")


def _brief(values: Any) -> str:
    array = np.asarray(values)
    text = np.array2string(array.ravel(), threshold=6, edgeitems=2, precision=9)
    return f"{array.dtype} {array.shape} {text}"


def macs(path: Path) -> int:
    """Multiply-accumulates of one picture, in the convolutions and linear layers of a package."""
    return count_macs(read_package(path))


def count_macs(package: Package) -> int:
    """As `macs`, of a package that is already read."""
    producers = package.producers()
    total = 0
    for operation in package.operations:
        if operation.kind not in ("conv", "linear"):
            continue
        given = operation.inputs["weight"][0]
        if isinstance(given, str) and given in producers:
            size = math.prod(producers[given].outputs[0].shape)
        else:
            size = np.size(package.constant(operation, "weight"))
        made = operation.outputs[0].shape
        total += size * math.prod(made[2:] if operation.kind == "conv" else made[:-1])
    return total


def _minimal_spec(package: Package) -> ModelSpec:
    producers = package.producers()
    shapes = {
        name: next((value.shape for value in producers[name].outputs if value.name == name), ())
        for name in package.outputs
        if name in producers
    }
    return minimal_spec(package.path.stem, side=package.picture[0] if package.picture else 0, outputs=shapes)


def observed_precision(package: Package) -> str:
    """The precision a package's operations show."""
    kinds = {operation.kind for operation in package.operations}
    if "quantize" in kinds:
        return "w8a8"
    if "constexpr_lut_to_dense" in kinds:
        return "p6"
    if kinds & {"constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"}:
        return "w8"
    made = {value.dtype for operation in package.operations for value in operation.outputs}
    return "fp16" if "fp16" in made else "fp32"


def require_pictures(package: Package, spec: ModelSpec, batch: NDArray[np.uint8]) -> None:
    """Refuse a batch, or a package, that is not about colour pictures of the spec's side.

    Raises:
        ModelError: The batch is not (B, H, W, 3) uint8.
        UnsupportedError: The package takes something else.
    """
    side = spec.input_px
    if batch.dtype != np.uint8 or batch.shape[1:] != (side, side, 3):
        raise ModelError(
            f"pictures {batch.dtype} {batch.shape}", expected=f"uint8 (B, {side}, {side}, 3)", where=str(package.path)
        )
    if package.picture not in ((side, side, "RGB"), (side, side, "BGR")) or len(package.inputs) != 1:
        raise UnsupportedError(
            f"inputs {package.inputs}, picture {package.picture}",
            expected=f"one picture of {side} px: how a picture becomes other numbers is not written in the file",
            where=str(package.path),
            do="It can still be timed: edgeface bench",
        )


class CoremlRunner:
    """A package in Core ML itself, one picture at a time; macOS only.

    Args:
        path: The .mlpackage.
        spec: Its input and outputs; None takes the outputs that are named after a task and have its size.
        runtime: "coreml".
        precision: What its manifest calls it; "" reads it off the operations.
        threads: Not used: Core ML chooses.

    Raises:
        MissingToolError: This is no Mac.
    """

    def __init__(self, path: Path, *, spec: ModelSpec | None, runtime: str, precision: str, threads: int) -> None:
        _require_mac(path)
        self.path = path
        self.runtime = runtime
        self.threads = threads
        self._package = read_package(path)
        self.spec = spec or _minimal_spec(self._package)
        self.precision = precision or observed_precision(self._package)
        require_outputs(self.spec, self._package.outputs, where=str(path))
        with _quiet():
            self._model: Any = _import("coremltools").models.MLModel(str(path))

    @property
    def size_bytes(self) -> int:
        return artifacts.size_bytes(self.path)

    @property
    def macs(self) -> int | None:
        return count_macs(self._package)

    @property
    def grids(self) -> Grids:
        """Empty: outputs leave in float."""
        return {}

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        require_pictures(self._package, self.spec, batch)
        name = self._package.inputs[0].name
        rows = [self._model.predict({name: _image(picture)}) for picture in batch]
        return {
            output.name: np.array([row[output.name] for row in rows], np.float32).reshape(len(batch), *output.shape)
            for output in self.spec.outputs
        }

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare."""
        side = self.spec.input_px
        picture = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        given = {self._package.inputs[0].name: _image(picture)}

        def once() -> None:
            self._model.predict(given)

        return once


def _require_mac(path: Path) -> None:
    platform = str(sys.platform)
    if platform != "darwin":
        raise MissingToolError(
            f"Core ML does not exist on {platform!r}",
            expected="macOS",
            where=f"--runtime coreml for {path}",
            do="Run this line on a Mac, or take --runtime mil: edgeface's own executor",
        )


def _image(picture: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(picture)


def read_model(path: Path) -> Any:
    """The parsed `Model` of an .mlpackage (coremltools.proto.Model_pb2), found through its Manifest.json.

    Raises:
        ModelError: A part is missing or malformed.
        MissingToolError: coremltools is not installed.
    """
    file = _model_file(path)
    model = _proto("Model_pb2").Model()
    try:
        model.ParseFromString(file.read_bytes())
    except OSError as error:
        raise _broken(path, f"{file.name} cannot be read ({error.strerror})") from error
    except Exception as error:  # protobuf's own, which has no public name in every version
        raise _broken(path, f"{file.name} cannot be parsed ({error})") from error
    if not model.IsInitialized() or model.specificationVersion < 1:
        raise _broken(path, f"{file.name} holds no model")
    return model


def weights_file(path: Path) -> Path:
    """Where the large constants of an .mlpackage lie, `@model_path/weights/weight.bin` inside it; may be absent.

    Raises:
        ModelError: Its Manifest.json is missing or malformed.
    """
    return _model_file(path).parent / "weights" / "weight.bin"


def _model_file(path: Path) -> Path:
    try:
        manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
        inside = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        file: Path = path / "Data" / inside
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken(path, f"Manifest.json names no model ({type(error).__name__}: {error})") from error
    if not file.resolve().is_relative_to(path.resolve()):
        raise _broken(path, f"Manifest.json points outside the package, to {inside!r}")
    return file


def _broken(path: Path, found: str) -> ModelError:
    return ModelError(found, expected="a whole .mlpackage folder", where=str(path), do="Copy or build it again")


def _proto(name: str) -> Any:
    """One of coremltools' protobuf modules, without the seconds that importing coremltools itself takes."""
    if "coremltools" in sys.modules:
        return _import(f"coremltools.proto.{name}")
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        raise _missing("coremltools is not installed")
    if _PROTO not in sys.modules:
        package = types.ModuleType(_PROTO)
        package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "proto")]
        sys.modules[_PROTO] = package
    return _import(f"{_PROTO}.{name}")


# Its modules import one another relatively, so they live under any name.
_PROTO = "_edgeface_coreml_proto"


def _target(ios: int) -> Any:
    return getattr(_import("coremltools").target, f"iOS{ios}")


def _import(name: str) -> Any:
    """A module without types, or the error that says how to get it."""
    try:
        if name.startswith("coremltools") and "coremltools" not in sys.modules:
            with silenced(), _hidden(_UNUSED):
                importlib.import_module("coremltools")
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(f"{name.split('.')[0]} cannot be imported ({error})") from error


def _missing(found: str) -> MissingToolError:
    return MissingToolError(found, expected="the ios tool-kit", where="target ios", do="pip install 'edgeface[ios]'")


@contextlib.contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Let modules that are not loaded yet look absent."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is how Python marks them
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep coremltools silent, and turn its failure into a ModelError that ends with its last words."""
    with silenced() as written:
        try:
            yield
        except EdgefaceError:
            raise
        except Exception as error:
            tail = written()[-800:]
            raise ModelError(
                f"coremltools failed: {type(error).__name__}: {error}",
                expected="a network it can convert",
                where="the Core ML conversion",
                do=f"Its last words: {tail}" if tail else "",
            ) from error
