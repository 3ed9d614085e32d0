"""TFLite files: the only module that imports litert-torch.

Every file has one input, `image`, a (1, H, W, 3) uint8 RGB picture, and one output per task, named after it, in the
task's shape: (1, K, 2) for landmarks. The picture becomes the network's input in the first operation: its tensor has
scale 1/64 and zero point 128, so DEQUANTIZE yields (x − 128)/64 exactly, and QUANTIZE to an int8 tensor with the same
scale and zero point 0 subtracts 128. A network with other statistics begins with CAST, SUB and DIV.

litert-torch converts a network's structure once, with stand-in weights that are all different, so that it finds no two
layers equal and no constant to fold. Every file of a build is that structure with constants put in: the student's for
the float precisions, and for w8a8 the integers, scales and zero points that quantization-aware training ended with. No
tool re-derives a number. `targets/tflite_check.py` then reads each finished file and compares it with the network.
"""

from __future__ import annotations

import contextlib
import gc
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeface.config import to_plain
from edgeface.errors import EdgefaceError, ModelError, UnsupportedError
from edgeface.files import write_bytes
from edgeface.specs import ModelSpec
from quantize.graph import INPUT, Graph, Node
from quantize.grid import Quantized, require_input_grid
from targets.flatbuffer import LAYERS, Flatbuffer, enum, import_tool, options
from targets.program import Program, lossless_grid
from targets.silence import silenced
from targets.tflite_check import (
    MOVES,
    Same,
    Stored,
    bias_steps,
    check_float,
    check_w8a8,
    differs,
    float_weight,
    integer_weight,
    match,
)

NOTE = "edgeface"  # name of the metadata entry

# The versions that TFLite gives its int8 operations; an older runtime that lacks one says so instead of guessing.
# Source: TensorFlow Lite, tools/versioning/op_version.cc.
_INT8_VERSIONS = {
    "CONV_2D": 3,
    "FULLY_CONNECTED": 5,
    "MAX_POOL_2D": 2,
    "ADD": 2,
    "MEAN": 2,
    "MAXIMUM": 2,
    "SLICE": 2,
    "PAD": 2,
    "RESHAPE": 1,
}
_HALF_FLOAT_DEQUANTIZE = 3
_INT8_DEQUANTIZE = 2
_HYBRID_CONV_PER_CHANNEL = 5


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A network without its numbers: what the converter sees.

    Attributes:
        input_px: As of Graph.
        nodes: As of Graph.
        outputs: Output name, node name and shape of one sample.
        shapes: Node name and shape of its weight.
    """

    input_px: int
    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A structure as a float TFLite file in memory, its input float, its weights stand-ins.

    Attributes:
        structure: What it was made from.
        content: The flatbuffer. A layer's constants are called `NODE/weight` and `NODE/bias`.
        activations: Tensor name to the node whose grid it has.
    """

    structure: Structure
    content: bytes = field(repr=False)
    activations: Mapping[str, str]


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
        graph: The float network, for every precision but w8a8.
        quantized: The integer network, for w8a8.
        model: What each file says it is.
        float_input: The input stays float32 (1, H, W, 3), a standardized picture (x − mean)/std.
        lap: Told of each step when it is done.

    Raises:
        UnsupportedError: The picture is not the int8 input as it stands, or no network was given for a precision.
        ModelError: A file would differ from its network; the message names the layer. Nothing is written then.
        MissingToolError: A tool-kit is not installed.
    """
    contents: dict[str, bytes] = {}
    lowered: Lowered | None = None
    for precision in files:
        network = _network(precision, graph, quantized)
        structure = structure_of(network)
        if lowered is None or lowered.structure != structure:
            lowered = lower(structure)
            lap("convert")
        if precision == "w8a8":
            assert quantized is not None
            content = _integer_file(lowered, quantized, float_input=float_input)
            check_w8a8(content, quantized, float_input=float_input)
        else:
            content = _float_file(lowered, network, precision=precision, float_input=float_input)
            check_float(content, network, precision=precision, float_input=float_input)
        contents[precision] = _noted(content, {"schema": 1, "model": to_plain(model), "precision": precision})
        lap(f"write {precision}")
    for precision, path in files.items():
        write_bytes(path, contents[precision])


def read_note(path: Path) -> dict[str, Any]:
    """What `write` stored in a file that LiteRT can load; empty when it is none of ours."""
    note = Flatbuffer(path.read_bytes()).metadata(NOTE)
    if note is None:
        return {}
    try:
        found = json.loads(note)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def structure_of(graph: Graph) -> Structure:
    return Structure(
        input_px=graph.input_px,
        nodes=graph.nodes,
        outputs=tuple((output, name, graph.output_shape(output)) for output, name in sorted(graph.outputs.items())),
        shapes=tuple(
            (node.name, tuple(graph.weights[node.name].shape)) for node in graph.nodes if node.name in graph.weights
        ),
    )


# A search over precisions writes many files of one network.
@lru_cache(maxsize=8)
def lower(structure: Structure) -> Lowered:
    """Convert a network's structure.

    Raises:
        MissingToolError: litert-torch is not installed.
        ModelError: The converter failed, or left an operation that belongs to no node.
    """
    graph = _with_stand_ins(structure)
    sample = torch.zeros(1, graph.input_px, graph.input_px, 3)
    with _quiet(what="litert-torch"), _uncollected(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lowered.tflite"
        program = Program(graph).eval()
        import_tool("litert_torch").convert(program, sample_kwargs={"image": sample}).export(str(path))
        content = path.read_bytes()
    file = Flatbuffer(content)
    _restore_means(file)
    _restore_convolutions(file)
    activations = _name_tensors(file, graph)
    file.drop_unused()
    return Lowered(structure=structure, content=file.pack(), activations=activations)


def _network(precision: str, graph: Graph | None, quantized: Quantized | None) -> Graph:
    if precision == "w8a8" and quantized is not None:
        require_input_grid(quantized.graph)
        return quantized.graph
    if precision != "w8a8" and graph is not None:
        return graph
    raise UnsupportedError(
        f"{precision} without {'an integer' if precision == 'w8a8' else 'a float'} network",
        expected="the network that the precision is built from",
        where="writing TFLite files",
    )


def _with_stand_ins(structure: Structure) -> Graph:
    generator = torch.Generator().manual_seed(0)
    return Graph(
        input_px=structure.input_px,
        nodes=structure.nodes,
        outputs={output: name for output, name, _ in structure.outputs},
        output_shapes={output: shape for output, _, shape in structure.outputs},
        weights={name: torch.randn(shape, generator=generator) for name, shape in structure.shapes},
        biases={name: torch.randn(shape[0], generator=generator) for name, shape in structure.shapes},
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )


def _restore_means(file: Flatbuffer) -> None:
    """Turn SUM back into MEAN: the converter writes the mean of a 1×1 map as a sum, which quantizes differently."""
    for operator in file.operators:
        if file.kind(operator) != "SUM":
            continue
        before, after = file.shape(int(operator.inputs[0])), file.shape(int(operator.outputs[0]))
        if int(np.prod(before)) == int(np.prod(after)):
            file.set_kind(operator, "MEAN", version=1)


def _restore_convolutions(file: Flatbuffer) -> None:
    """Turn the depthwise form of a convolution of one channel back: one layout of weights, one axis of scales."""
    for operator in file.operators:
        if file.kind(operator) != "DEPTHWISE_CONV_2D" or file.shape(int(operator.inputs[0]))[3] != 1:
            continue
        weight = file.constant(int(operator.inputs[1]))
        assert weight is not None
        operator.inputs = [int(index) for index in operator.inputs]
        operator.inputs[1] = file.add_constant("weight", weight.transpose(3, 1, 2, 0))
        depthwise, plain = operator.builtinOptions, options("Conv2DOptionsT")
        plain.padding, plain.fusedActivationFunction = depthwise.padding, depthwise.fusedActivationFunction
        plain.strideH, plain.strideW = depthwise.strideH, depthwise.strideW
        operator.builtinOptions, operator.builtinOptionsType = plain, enum("BuiltinOptions", "Conv2DOptions")
        file.set_kind(operator, "CONV_2D", version=1)


def _name_tensors(file: Flatbuffer, graph: Graph) -> dict[str, str]:
    """Call each tensor after the node it belongs to, and each output after its task.

    Returns:
        Activation tensor's name to the node whose grid it has.
    """
    found = match(file, graph, _exactly(graph))
    wanted: dict[int, str] = dict(found.tensors)
    for place, name in found.nodes.items():
        operator = file.operators[place]
        if file.kind(operator) in LAYERS:
            wanted[int(operator.inputs[1])] = f"{name}/weight"
            wanted[int(operator.inputs[2])] = f"{name}/bias"
    outputs = {index: name for name, index in file.outputs.items()}
    taken = set(outputs.values())
    for index in range(len(file.tensors)):
        name = outputs.get(index, "")
        if not name:
            stem = wanted.get(index, "constant")
            name, count = stem, 1
            while name in taken:
                count += 1
                name = f"{stem}.{count}"
            taken.add(name)
        file.rename(index, name)
    return {file.name(index): node for index, node in found.tensors.items()}


def _exactly(graph: Graph) -> Same:
    def same(node: Node, weight: Stored, bias: Stored) -> bool:
        return np.array_equal(weight[0], float_weight(graph, node)) and np.array_equal(
            bias[0], graph.biases[node.name].numpy()
        )

    return same


def _layer(file: Flatbuffer, operator: Any, graph: Graph) -> Node | None:
    """The layer that an operator of a lowered file computes; `lower` named its constants, and found it by values."""
    if file.kind(operator) not in LAYERS:
        return None
    return graph.node(file.name(int(operator.inputs[1])).removesuffix("/weight"))


def _float_file(lowered: Lowered, graph: Graph, *, precision: str, float_input: bool) -> bytes:
    file = Flatbuffer(lowered.content)
    widened = []
    for operator in list(file.operators):
        node = _layer(file, operator, graph)
        if node is None:
            continue
        weight = float_weight(graph, node)
        index = int(operator.inputs[1])
        file.set_constant(int(operator.inputs[2]), graph.biases[node.name].detach().float().numpy())
        if precision == "fp32":
            file.set_constant(index, weight)
        elif precision == "fp16":
            half = file.add_constant(f"{node.name}/weight/half", weight.astype(np.float16))
            operator.inputs = [
                int(operator.inputs[0]),
                file.add_tensor("", weight.shape, "FLOAT32"),
                *operator.inputs[2:],
            ]
            file.rename(index, f"{node.name}/unused")
            file.rename(int(operator.inputs[1]), f"{node.name}/weight")
            widened.append(
                file.operator("DEQUANTIZE", [half], [int(operator.inputs[1])], version=_HALF_FLOAT_DEQUANTIZE)
            )
        else:
            codes, scales = dynamic_weight(weight)
            file.set_constant(index, codes)
            file.set_grid(index, scales, [0] * len(scales))
            if file.kind(operator) == "CONV_2D":
                file.set_kind(operator, "CONV_2D", version=_HYBRID_CONV_PER_CHANNEL)
    file.operators[:0] = widened
    _add_picture(file, graph, kind="DEQUANTIZE", float_input=float_input)
    file.drop_unused()
    return file.pack()


def dynamic_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight of the dynamic-range file: int8 codes and scales, one per output channel of a convolution.

    A fully connected layer has one scale: with more, tflite-runtime 2.14 takes the first for all, and says nothing.
    """
    flat = np.abs(weight.reshape(len(weight), -1))
    largest = flat.max(axis=1) if weight.ndim == 4 else flat.max(keepdims=True).ravel()
    scales = np.maximum(largest / np.float32(127), np.float32(np.finfo(np.float32).tiny)).astype(np.float32)
    steps = scales.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(weight / steps), -127, 127).astype(np.int8), scales


def _integer_file(lowered: Lowered, quantized: Quantized, *, float_input: bool) -> bytes:
    """The structure with the integers of `quantized`, and DEQUANTIZE and QUANTIZE around its float layers."""
    file = Flatbuffer(lowered.content)
    graph = quantized.graph
    former = list(file.operators)
    owners = {index: lowered.activations.get(file.name(index)) for index in range(len(file.tensors))}
    leaving = {index for output, index in file.outputs.items() if quantized.is_float(output)}
    grids = {index: quantized.activations[owner] for index, owner in owners.items() if owner is not None}
    made: list[Any] = []
    integer: dict[int, int] = {}  # a tensor of the lowered file to the one that holds it on its grid
    rounded: dict[int, int] = {}  # and to the one that holds those codes in float

    def on_grid(index: int) -> int:
        if index not in integer:
            integer[index] = file.add_tensor(f"{file.name(index)}/int8", file.shape(index), "INT8")
            file.set_grid(integer[index], [grids[index][0]], [grids[index][1]])
            made.append(file.operator("QUANTIZE", [index], [integer[index]]))
        return integer[index]

    def in_float(index: int) -> int:
        if index not in rounded:
            source = on_grid(index)
            rounded[index] = file.add_tensor(f"{file.name(source)}/float", file.shape(index), "FLOAT32")
            made.append(file.operator("DEQUANTIZE", [source], [rounded[index]], version=_INT8_DEQUANTIZE))
        return rounded[index]

    def becomes_integer(index: int) -> None:
        file.set_type(index, "INT8")
        file.set_grid(index, [grids[index][0]], [grids[index][1]])
        integer[index] = index

    becomes_integer(file.input)
    for operator in former:
        node, kind = _layer(file, operator, graph), file.kind(operator)
        operands = [int(index) for index in operator.inputs]
        results = [int(index) for index in operator.outputs]
        if node is not None and node.name in quantized.floats:
            file.set_constant(operands[1], float_weight(graph, node))
            file.set_constant(operands[2], graph.biases[node.name].detach().float().numpy())
            operator.inputs = [in_float(operands[0]), *operands[1:]]
        elif kind == "RESHAPE" and results[0] in leaving:
            pass  # an output that leaves in float takes its shape in float
        elif kind in (*_INT8_VERSIONS, *MOVES):
            operator.inputs = [on_grid(index) if index in grids else index for index in operands]
            for index in results:
                becomes_integer(index)
            file.set_kind(operator, kind, version=_INT8_VERSIONS[kind])
        else:
            raise differs(file.name(results[0]), f"operation {kind}", f"one of {', '.join(_INT8_VERSIONS)}")
        if node is not None and node.name not in quantized.floats:
            scales = quantized.weight_scales[node.name].astype(np.float32)
            file.set_constant(operands[1], integer_weight(quantized, node))
            file.set_grid(operands[1], scales, [0] * len(scales))
            file.set_constant(operands[2], quantized.biases[node.name].astype(np.int32))
            file.set_grid(operands[2], bias_steps(quantized, node), [0] * len(scales))
        made.append(operator)
    file.operators[:] = made
    _add_picture(file, graph, kind="QUANTIZE", float_input=float_input)
    file.drop_unused()
    return file.pack()


def _add_picture(file: Flatbuffer, graph: Graph, *, kind: str, float_input: bool) -> None:
    """Put `image` in front: a uint8 picture, or a standardized one, that becomes the former input.

    Args:
        file: Whose input is the network's: float, or int8.
        graph: For its statistics.
        kind: The operation that makes the former input of a picture whose grid says it all.
        float_input: As of `write`.
    """
    former = file.input
    if float_input and kind == "DEQUANTIZE":  # the network's input is the float picture already
        _become_input(file, former)
        return
    grid = lossless_grid(graph)
    file.rename(former, "image/standardized")
    picture = file.add_tensor("image", file.shape(former), "FLOAT32" if float_input else "UINT8")
    if float_input:
        way = [file.operator(kind, [picture], [former])]
    elif grid is not None:
        file.set_grid(picture, [grid[0]], [grid[1]])
        way = [file.operator(kind, [picture], [former])]
    else:
        shape = file.shape(former)
        cast = file.add_tensor("image/cast", shape, "FLOAT32")
        centred = file.add_tensor("image/centred", shape, "FLOAT32")
        mean = file.add_constant("image/mean", np.array(graph.mean, np.float32))
        std = file.add_constant("image/std", np.array(graph.std, np.float32))
        types = options("CastOptionsT")
        types.inDataType, types.outDataType = enum("TensorType", "UINT8"), enum("TensorType", "FLOAT32")
        way = [
            file.operator("CAST", [picture], [cast], options=types),
            file.operator("SUB", [cast, mean], [centred], options=options("SubOptionsT")),
            file.operator("DIV", [centred, std], [former], options=options("DivOptionsT")),
        ]
    file.operators[:0] = way
    _become_input(file, picture)


def _become_input(file: Flatbuffer, index: int) -> None:
    file.rename(index, INPUT)
    file.model.subgraphs[0].inputs = [index]
    for entry in file.model.signatureDefs[0].inputs:
        entry.name, entry.tensorIndex = INPUT.encode(), index


def _noted(content: bytes, note: Mapping[str, object]) -> bytes:
    file = Flatbuffer(content)
    file.set_metadata(NOTE, json.dumps(note, sort_keys=True).encode())
    return file.pack()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Millions of objects live while a tool-kit is imported and traces; looking through them is a tenth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _quiet(*, what: str) -> Iterator[None]:
    """Keep a tool-kit silent, and turn its failure into a ModelError that ends with its last words."""
    with silenced() as written:
        try:
            yield
        except EdgefaceError:
            raise
        except Exception as error:
            tail = written()[-800:]
            raise ModelError(
                f"{what} failed: {type(error).__name__}: {error}",
                expected="a network it can convert",
                where="the TFLite conversion",
                do=f"Its last words: {tail}" if tail else "",
            ) from error
