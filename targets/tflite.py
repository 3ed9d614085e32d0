"""TFLite files: the only module that imports litert-torch, ai-edge-quantizer and the flatbuffer schema.

Every file has one input, `image`, a (1, H, W, 3) uint8 RGB picture, and one output per task, named after it, in the
task's shape: (1, K, 2) for landmarks. The picture becomes the network's input in the first operation: its tensor has
scale 1/64 and zero point 128, so DEQUANTIZE yields (x − 128)/64 exactly, and QUANTIZE to an int8 tensor with the same
scale and zero point 0 subtracts 128.

The w8a8 file carries what quantization-aware training ended with. ai-edge-quantizer rewrites the operations to int8
from QAT's own ranges. It recomputes every number from float extremes, which is another number where a channel is dead
or a scale had to grow, so scales, zero points, weights and biases are then set from the `Quantized` itself; and
`check_w8a8` reads the finished file and compares it tensor by tensor, finding each layer by its values.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeface.config import to_plain
from edgeface.errors import EdgefaceError, MissingToolError, ModelError
from edgeface.files import write_bytes
from edgeface.specs import ModelSpec
from quantize.graph import INPUT, Graph, Node
from quantize.grid import Quantized, require_input_grid
from targets.program import Entry, Program, channels_last_weight, lossless_grid
from targets.silence import silenced

IDENTIFIER = b"TFL3"
NOTE = b"edgeface"  # name of the metadata entry

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# What the converter and the quantizer may leave between a node's tensors; none of them changes a value.
_MOVES = ("RESHAPE", "TRANSPOSE", "PAD", "QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A graph as a float TFLite file in memory, still with its float input.

    Attributes:
        graph: What it was made from.
        content: The flatbuffer.
        activations: Tensor name to the node whose scale it has.
    """

    graph: Graph
    content: bytes = field(repr=False)
    activations: Mapping[str, str]


def lower(graph: Graph) -> Lowered:
    """Convert a graph once; the writers below finish it into files.

    Raises:
        MissingToolError: litert-torch is not installed.
        ModelError: The converter failed, or left an operation that belongs to no node.
    """
    entry: Entry = "picture" if lossless_grid(graph) is None else "standardized"
    program = Program(graph, entry=entry).eval()
    dtype = torch.uint8 if entry == "picture" else torch.float32
    sample = torch.zeros(1, graph.input_px, graph.input_px, 3, dtype=dtype)
    with _quiet(what="litert-torch"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lowered.tflite"
        _import("litert_torch").convert(program, sample_kwargs={"image": sample}).export(str(path))
        content = path.read_bytes()
    model = _parse(content)
    _give_each_layer_its_constants(model)
    _restore_means(model)
    if entry == "picture":  # the arithmetic in front of the network belongs to no node
        _name_outputs(model)
        return Lowered(graph=graph, content=_pack(model), activations={})
    activations = _name_tensors(model, graph)
    return Lowered(graph=graph, content=_pack(model), activations=activations)


def write(
    files: Mapping[str, Path],
    *,
    graph: Graph | None,
    quantized: Quantized | None,
    model: ModelSpec,
    float_input: bool = False,
    lap: Callable[[str], None] = lambda _: None,
) -> None:
    """Write every wanted file.

    Args:
        files: Precision to the file to write.
        graph: Of the float precisions.
        quantized: Of w8a8.
        model: Goes into each file's metadata.
        float_input: Not served yet.
        lap: Told of each step when it is done.
    """
    writers = {"fp32": write_fp32, "fp16": write_fp16, "w8a32": write_w8a32}
    if any(precision in writers for precision in files):
        assert graph is not None
        lowered = lower(graph)
        lap("convert")
    for precision, path in files.items():
        if precision == "w8a8":
            assert quantized is not None
            write_w8a8(quantized, path)
        else:
            writers[precision](lowered, path)
        annotate(path, {"schema": 1, "model": to_plain(model), "precision": precision})
        lap(f"write {precision}")


def write_fp32(lowered: Lowered, path: Path) -> None:
    """Write the float file."""
    write_bytes(path, _with_picture(lowered, lowered.content))


def write_fp16(lowered: Lowered, path: Path) -> None:
    """Write the file with weights stored as half floats and arithmetic in float."""
    with _quiet(what="ai-edge-quantizer"):
        quantizer, qtyping = _import("ai_edge_quantizer.quantizer"), _import("ai_edge_quantizer.qtyping")
        caster = quantizer.Quantizer(bytearray(lowered.content))
        caster.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
            algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
        )
        content = bytes(caster.quantize(enable_progress_report=False).quantized_model)
    write_bytes(path, _with_picture(lowered, content))


def write_w8a32(lowered: Lowered, path: Path) -> None:
    """Write the dynamic-range file: int8 weights, activations quantized as they come."""
    with _quiet(what="ai-edge-quantizer"):
        quantizer, recipe = _import("ai_edge_quantizer.quantizer"), _import("ai_edge_quantizer.recipe")
        dynamic = quantizer.Quantizer(bytearray(lowered.content), recipe.dynamic_wi8_afp32())
        content = bytes(dynamic.quantize(enable_progress_report=False).quantized_model)
    write_bytes(path, _with_picture(lowered, content))


def write_w8a8(quantized: Quantized, path: Path) -> None:
    """Write the int8 file that holds exactly `quantized`.

    Raises:
        UnsupportedError: The picture is not the quantized input as it stands.
        ModelError: The file would differ from `quantized`; the message names the layer.
        MissingToolError: A tool-kit is not installed.
    """
    require_input_grid(quantized.graph)
    lowered = lower(quantized.graph)
    with _quiet(what="ai-edge-quantizer"):
        operations = _import("ai_edge_quantizer.qtyping").TFLOperationName
        recipe = _import("ai_edge_quantizer.recipe").static_wi8_ai8()
        static = _import("ai_edge_quantizer.quantizer").Quantizer(bytearray(lowered.content), recipe)
        for boundary in (operations.INPUT, operations.OUTPUT):
            static.add_static_config(".*", boundary, activation_num_bits=8, weight_num_bits=8)
        content = bytes(static.quantize(_ranges(lowered, quantized), enable_progress_report=False).quantized_model)
    model = _parse(content)
    _set_grid(model, lowered, quantized)
    scale, zero_point = quantized.activations[INPUT]
    _add_picture(model, scale=scale, zero_point=zero_point + 128, operation="QUANTIZE")
    content = _pack(model)
    check_w8a8(content, quantized)
    write_bytes(path, content)


def check_w8a8(content: bytes, quantized: Quantized) -> None:
    """Compare an int8 file with the grid it claims to carry, tensor by tensor.

    Raises:
        ModelError: A scale, zero point, weight, bias, type or output differs, or a float tensor or a TRANSPOSE is left.
    """
    model = _parse(content)
    graph, subgraph = quantized.graph, model.subgraphs[0]
    for index, tensor in enumerate(subgraph.tensors):
        kind = _type_name(tensor.type)
        if kind not in ("INT8", "INT32", "UINT8") or (kind == "UINT8" and index != subgraph.inputs[0]):
            raise _differs(_text(tensor.name), f"a {kind} tensor", "int8 tensors only")
    values = _match(model, graph, _integer_parameters(quantized))
    seen: set[str] = set()
    for operator in subgraph.operators:
        kind = _operation(model, operator)
        if kind == "TRANSPOSE":
            raise _differs(_text(subgraph.tensors[operator.outputs[0]].name), "a TRANSPOSE", "none")
        if kind in _LAYERS:
            node = values.made[operator.outputs[0]]
            seen.add(node)
            _check_layer(model, operator, node, quantized)
    missing = {node.name for node in graph.nodes if node.op in ("conv2d", "linear")} - seen
    if missing:
        raise _differs(sorted(missing)[0], "no operation in the file", "one CONV_2D or FULLY_CONNECTED")
    for index, owner in values.tensors.items():
        if _type_name(subgraph.tensors[index].type) == "UINT8":
            continue
        _check_scale(subgraph.tensors[index], quantized.activations[owner], where=owner)
    picture = subgraph.tensors[subgraph.inputs[0]]
    scale, zero_point = quantized.activations[INPUT]
    _check_scale(picture, (scale, zero_point + 128), where=INPUT)
    named = {_text(entry.name): int(entry.tensorIndex) for entry in model.signatureDefs[0].outputs}
    if set(named) != set(graph.outputs):
        raise _differs("outputs", f"{sorted(named)}", f"{sorted(graph.outputs)}")
    for output, index in named.items():
        if values.tensors.get(index) != _root(graph, graph.outputs[output]):
            raise _differs(output, f"the values of {values.tensors.get(index)!r}", f"of {graph.outputs[output]!r}")
        shape = tuple(int(side) for side in subgraph.tensors[index].shape)
        if shape != (1, *graph.output_shape(output)):
            raise _differs(output, f"shape {shape}", f"{(1, *graph.output_shape(output))}")


def annotate(path: Path, note: Mapping[str, object]) -> None:
    """Store a JSON object in a file's metadata, so that the file by itself says what it is."""
    schema = _schema()
    model = _parse(path.read_bytes())
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(note, sort_keys=True).encode(), np.uint8)
    entry.name, entry.buffer = NOTE, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(kept for kept in model.metadata or [] if _text(kept.name) != NOTE.decode()), entry]
    write_bytes(path, _pack(model))


def read_note(content: bytes) -> dict[str, Any]:
    """What `annotate` stored in a file that LiteRT can load; empty when it is none of ours."""
    model = _parse(content)
    for entry in model.metadata or []:
        if _text(entry.name) == NOTE.decode():
            try:
                note = json.loads(np.asarray(model.buffers[entry.buffer].data, np.uint8).tobytes())
            except ValueError:
                return {}
            return note if isinstance(note, dict) else {}
    return {}


def operations(content: bytes) -> list[str]:
    """Builtin operation names of a file in execution order."""
    model = _parse(content)
    return [_operation(model, operator) for operator in model.subgraphs[0].operators]


def macs(content: bytes) -> int:
    """Multiply-accumulates of one run, counted from the convolutions and fully connected layers of a file."""
    model = _parse(content)
    total = 0
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            kind = _operation(model, operator)
            if kind not in _LAYERS:
                continue
            weight = subgraph.tensors[operator.inputs[1]].shape
            made = subgraph.tensors[operator.outputs[0]].shape
            if kind == "FULLY_CONNECTED":
                total += int(np.prod(made[:-1])) * int(np.prod(weight))
            else:
                # Every weight meets every output position once, OHWI or, depthwise, 1HWO alike.
                total += int(np.prod(made[1:3])) * int(np.prod(weight))
    return total


Parameters = Callable[[Node], tuple[NDArray[Any], NDArray[Any]]]


@dataclass(frozen=True)
class _Match:
    """Which node each tensor of a file belongs to.

    Attributes:
        tensors: Tensor index to the node whose scale it has (`_root` names), activations only.
        made: Tensor index to the convolution or linear node that makes it.
    """

    tensors: dict[int, str]
    made: dict[int, str]


def _float_parameters(graph: Graph) -> Parameters:
    def read(node: Node) -> tuple[NDArray[Any], NDArray[Any]]:
        weight = channels_last_weight(graph, node) if node.op == "linear" else graph.weights[node.name]
        return _file_layout(weight.detach().float().numpy()), graph.biases[node.name].detach().float().numpy()

    return read


def _integer_parameters(quantized: Quantized) -> Parameters:
    weights = {name: torch.from_numpy(integers) for name, integers in quantized.weights.items()}
    graph = replace(quantized.graph, weights=weights)

    def read(node: Node) -> tuple[NDArray[Any], NDArray[Any]]:
        weight = channels_last_weight(graph, node) if node.op == "linear" else weights[node.name]
        return _file_layout(weight.numpy()), quantized.biases[node.name]

    return read


def _file_layout(weight: NDArray[Any]) -> NDArray[Any]:
    """OIHW to TFLite's OHWI; (out, in) stays."""
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1)) if weight.ndim == 4 else weight


def _root(graph: Graph, name: str) -> str:
    """The node itself, or what a flatten reads: the file may do a flatten with RESHAPE or with nothing."""
    by_name = {node.name: node for node in graph.nodes}
    while name != INPUT and by_name[name].op == "flatten":
        name = by_name[name].inputs[0]
    return name


def _match(model: Any, graph: Graph, parameters: Parameters) -> _Match:
    """Find each tensor's node: layers by the values of their weights and by what they read, never by order or name.

    Raises:
        ModelError: An operation belongs to no node, or to more than one.
    """
    subgraph = model.subgraphs[0]
    outputs = {entry.tensorIndex: _text(entry.name) for entry in model.signatureDefs[0].outputs}
    tensors: dict[int, str] = {int(subgraph.inputs[0]): INPUT}
    halves: set[int] = set()
    made: dict[int, str] = {}
    readers: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
    for node in graph.nodes:
        key = tuple(sorted(_root(graph, name) for name in node.inputs))
        readers.setdefault((node.op, key), []).append(node)
    for operator in subgraph.operators:
        kind = _operation(model, operator)
        read = [int(index) for index in operator.inputs if int(index) in tensors]
        output = int(operator.outputs[0])
        where = _text(subgraph.tensors[output].name)
        if kind in _MOVES:
            if read:  # the half-float files also have DEQUANTIZE on constants, which carry no node
                tensors[output] = tensors[read[0]]
            continue
        if kind in ("SLICE", "STRIDED_SLICE", "SPLIT"):
            for index in operator.outputs:
                tensors[int(index)] = tensors[read[0]]
                halves.add(int(index))
            continue
        op = _NODE_OP.get(kind)
        if op is None or not read:
            raise _differs(where, f"operation {kind}", f"one of {', '.join((*_NODE_OP, *_MOVES, 'SLICE'))}")
        if op == "mfm" and not halves.issuperset(read):
            raise _differs(where, "MAXIMUM of tensors that are not two halves of one", "a max-feature-map")
        names = sorted({tensors[index] for index in read} if op == "mfm" else [tensors[index] for index in read])
        found = readers.get((op, tuple(names)), [])
        if op in ("conv2d", "linear"):
            weight, bias = _weight(model, operator), _bias(model, operator)
            found = [node for node in found if _same(parameters(node), (weight, bias))]
        if len(found) > 1:
            wanted = _consumer_output(model, output, outputs)
            found = [node for node in found if wanted is not None and graph.outputs[wanted] == node.name] or found
        if len(found) != 1:
            raise _differs(
                where,
                f"{kind} on {', '.join(map(repr, names))} equals {len(found)} layers of the network",
                "exactly one with these weights",
            )
        tensors[output] = _root(graph, found[0].name)
        if op in ("conv2d", "linear"):
            made[output] = found[0].name
    return _Match(tensors=tensors, made=made)


_NODE_OP = {
    "CONV_2D": "conv2d",
    "DEPTHWISE_CONV_2D": "conv2d",  # what a convolution of one channel is lowered to
    "FULLY_CONNECTED": "linear",
    "MAX_POOL_2D": "max_pool",
    "MAXIMUM": "mfm",
    "ADD": "add",
    "MEAN": "mean",
}


def _same(expected: tuple[NDArray[Any], NDArray[Any]], found: tuple[NDArray[Any] | None, NDArray[Any] | None]) -> bool:
    weight, bias = found
    if weight is None or weight.shape != expected[0].shape or not np.array_equal(weight, expected[0]):
        return False
    return not np.any(expected[1]) if bias is None else np.array_equal(bias, expected[1])


def _consumer_output(model: Any, index: int, outputs: Mapping[int, str]) -> str | None:
    """The signature output that a tensor is, or that a RESHAPE makes of it."""
    if index in outputs:
        return outputs[index]
    for operator in model.subgraphs[0].operators:
        if _operation(model, operator) == "RESHAPE" and int(operator.inputs[0]) == index:
            return outputs.get(int(operator.outputs[0]))
    return None


def _ranges(lowered: Lowered, quantized: Quantized) -> dict[str, dict[str, NDArray[np.float32]]]:
    """The calibration result ai-edge-quantizer takes: each tensor's extremes, from QAT's own scales."""
    ranges = {}
    for tensor, node in lowered.activations.items():
        scale, zero_point = quantized.activations[node]
        low, high = scale * (-128 - zero_point), scale * (127 - zero_point)
        ranges[tensor] = {"min": np.array([[low]], np.float32), "max": np.array([[high]], np.float32)}
    return ranges


def _set_grid(model: Any, lowered: Lowered, quantized: Quantized) -> None:
    """Set the exact scales, zero points, weights and biases in a file the quantizer made.

    The quantizer keeps the tensor names that `lower` gave by matching values; `check_w8a8` does not rely on that.

    Raises:
        ModelError: A layer the quantizer did not turn into int8.
    """
    subgraph = model.subgraphs[0]
    parameters = _integer_parameters(quantized)
    tensors = {_text(tensor.name): tensor for tensor in subgraph.tensors}
    for name, owner in lowered.activations.items():
        if name not in tensors or _type_name(tensors[name].type) != "INT8":
            raise _differs(owner, "not quantized", "an int8 tensor")
        scale, zero_point = quantized.activations[owner]
        tensors[name].quantization.scale = [float(np.float32(scale))]
        tensors[name].quantization.zeroPoint = [int(zero_point)]
    for operator in subgraph.operators:
        kind = _operation(model, operator)
        if kind not in _LAYERS:
            continue
        weight_tensor, bias_tensor = (subgraph.tensors[int(index)] for index in operator.inputs[1:3])
        name = _text(weight_tensor.name).removesuffix("/weight")
        if name not in quantized.weights or (_type_name(weight_tensor.type), _type_name(bias_tensor.type)) != (
            "INT8",
            "INT32",
        ):
            raise _differs(name, "not quantized", "an int8 weight and an int32 bias")
        node = quantized.graph.node(name)
        weight, bias = parameters(node)
        scales = quantized.weight_scales[name].astype(np.float32)
        if kind == "DEPTHWISE_CONV_2D":
            weight = weight.transpose(3, 1, 2, 0)
        _put(model, weight_tensor, weight.astype(np.int8), scales)
        _put(model, bias_tensor, bias.astype(np.int32), np.float32(quantized.activations[node.inputs[0]][0]) * scales)


def _put(model: Any, tensor: Any, integers: NDArray[Any], scales: NDArray[np.float32]) -> None:
    buffer = model.buffers[tensor.buffer]
    buffer.data = np.frombuffer(np.ascontiguousarray(integers).tobytes(), np.uint8)
    tensor.quantization.scale = [float(scale) for scale in scales]
    tensor.quantization.zeroPoint = [0] * len(scales)


def _check_layer(model: Any, operator: Any, name: str, quantized: Quantized) -> None:
    tensors = model.subgraphs[0].tensors
    kinds = [_type_name(tensors[int(index)].type) for index in (*operator.inputs, *operator.outputs)]
    if kinds != ["INT8", "INT8", "INT32", "INT8"]:
        raise _differs(name, f"types {kinds}", "int8 x int8 + int32 -> int8")
    node = quantized.graph.node(name)
    scales = quantized.weight_scales[name].astype(np.float32)
    steps = np.float32(quantized.activations[node.inputs[0]][0]) * scales
    for index, expected in ((1, scales), (2, steps)):
        tensor = tensors[int(operator.inputs[index])]
        found = np.asarray(tensor.quantization.scale, np.float32)
        if not np.array_equal(found, expected) or np.any(np.asarray(tensor.quantization.zeroPoint)):
            raise _differs(name, f"{'weight' if index == 1 else 'bias'} scales {found[:4]}", f"{expected[:4]}")
    relu = operator.builtinOptions.fusedActivationFunction == _schema().ActivationFunctionType.RELU
    if relu != node.relu:
        raise _differs(name, "a fused ReLU" if relu else "no fused ReLU", "the other")


def _check_scale(tensor: Any, expected: tuple[float, int], *, where: str) -> None:
    quantization = tensor.quantization
    scale = [] if quantization is None or quantization.scale is None else [np.float32(s) for s in quantization.scale]
    zero = [] if quantization is None or quantization.zeroPoint is None else [int(z) for z in quantization.zeroPoint]
    if scale != [np.float32(expected[0])] or zero != [int(expected[1])]:
        raise _differs(where, f"scale {scale}, zero point {zero}", f"{np.float32(expected[0])}, {expected[1]}")


def _differs(where: str, found: str, expected: str) -> ModelError:
    return ModelError(
        found,
        expected=expected,
        where=f"layer {where!r} of the TFLite file",
        do="The file was not written; report this network's recipe",
    )


def _with_picture(lowered: Lowered, content: bytes) -> bytes:
    model = _parse(content)
    grid = lossless_grid(lowered.graph)
    if grid is None:
        _rename_input(model)
    else:
        _add_picture(model, scale=grid[0], zero_point=grid[1], operation="DEQUANTIZE")
    return _pack(model)


def _add_picture(model: Any, *, scale: float, zero_point: int, operation: str) -> None:
    """Make the input a uint8 picture that one QUANTIZE or DEQUANTIZE turns into the former input, exactly."""
    schema = _schema()
    subgraph = model.subgraphs[0]
    former = int(subgraph.inputs[0])
    subgraph.tensors[former].name = b"image/standardized"
    picture = schema.TensorT()
    picture.shape = [int(side) for side in subgraph.tensors[former].shape]
    picture.type = schema.TensorType.UINT8
    picture.name = b"image"
    picture.buffer = len(model.buffers)
    picture.hasRank = True
    picture.quantization = schema.QuantizationParametersT()
    picture.quantization.scale = [float(np.float32(scale))]
    picture.quantization.zeroPoint = [int(zero_point)]
    model.buffers.append(schema.BufferT())
    subgraph.tensors.append(picture)
    index = len(subgraph.tensors) - 1
    code = getattr(schema.BuiltinOperator, operation)
    operator = schema.OperatorT()
    operator.opcodeIndex = _operator_code(model, code)
    operator.inputs, operator.outputs = [index], [former]
    subgraph.operators.insert(0, operator)
    subgraph.inputs = [index]
    for entry in model.signatureDefs[0].inputs:
        entry.name, entry.tensorIndex = b"image", index


def _operator_code(model: Any, builtin: int) -> int:
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == 1:
            return index
    code = _schema().OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _rename_input(model: Any) -> None:
    model.subgraphs[0].tensors[int(model.subgraphs[0].inputs[0])].name = b"image"
    for entry in model.signatureDefs[0].inputs:
        entry.name = b"image"


def _name_tensors(model: Any, graph: Graph) -> dict[str, str]:
    """Call each tensor after the node it belongs to, and each output after its task.

    Returns:
        Activation tensor's name to the node whose scale it has.
    """
    subgraph = model.subgraphs[0]
    match = _match(model, graph, _float_parameters(graph))
    wanted: dict[int, str] = dict(match.tensors)
    for operator in subgraph.operators:
        layer = match.made.get(int(operator.outputs[0]))
        if layer is not None:
            wanted[int(operator.inputs[1])] = f"{layer}/weight"
            wanted[int(operator.inputs[2])] = f"{layer}/bias"
    outputs = {int(entry.tensorIndex): _text(entry.name) for entry in model.signatureDefs[0].outputs}
    taken = set(outputs.values())
    for index, tensor in enumerate(subgraph.tensors):
        name = outputs.get(index)
        if name is None:
            stem = wanted.get(index, "constant")
            name, count = stem, 1
            while name in taken:
                count += 1
                name = f"{stem}.{count}"
            taken.add(name)
        tensor.name = name.encode()
    return {_text(subgraph.tensors[index].name): node for index, node in match.tensors.items()}


def _give_each_layer_its_constants(model: Any) -> None:
    """Undo the converter's sharing of equal constants and its leaving out of zero biases: int8 needs one per layer."""
    subgraph = model.subgraphs[0]
    taken: set[int] = set()
    for operator in subgraph.operators:
        if _operation(model, operator) not in _LAYERS:
            continue
        inputs = [int(index) for index in operator.inputs]
        if len(inputs) < 3 or inputs[2] < 0:
            channels = int(subgraph.tensors[int(operator.outputs[0])].shape[-1])
            inputs = [*inputs[:2], _add_constant(model, np.zeros(channels, np.float32))]
        for place in (1, 2):
            values = _constant(model, inputs[place])
            if subgraph.tensors[inputs[place]].buffer in taken and values is not None:
                inputs[place] = _add_constant(model, values)
            taken.add(subgraph.tensors[inputs[place]].buffer)
        operator.inputs = inputs


def _restore_means(model: Any) -> None:
    """Turn SUM back into MEAN: the converter writes the mean of a 1×1 map as a sum, which quantizes differently."""
    schema = _schema()
    subgraph = model.subgraphs[0]
    for operator in subgraph.operators:
        if _operation(model, operator) != "SUM":
            continue
        before, after = (subgraph.tensors[int(index)].shape for index in (operator.inputs[0], operator.outputs[0]))
        if int(np.prod(before)) == int(np.prod(after)):
            operator.opcodeIndex = _operator_code(model, schema.BuiltinOperator.MEAN)


def _add_constant(model: Any, values: NDArray[np.float32]) -> int:
    """Append a float constant; its tensor's index."""
    schema = _schema()
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.shape, tensor.type, tensor.name = list(values.shape), schema.TensorType.FLOAT32, b"constant"
    tensor.buffer, tensor.hasRank = len(model.buffers) - 1, True
    tensor.quantization = schema.QuantizationParametersT()
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _name_outputs(model: Any) -> None:
    for entry in model.signatureDefs[0].outputs:
        model.subgraphs[0].tensors[entry.tensorIndex].name = _text(entry.name).encode()


def _import(name: str) -> Any:
    import importlib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingToolError(
            f"{name.split('.')[0].replace('_', '-')} cannot be imported ({error})",
            expected="the android tool-kits",
            where="target android",
            do="pip install 'edgeface[android]'",
        ) from error


def _schema() -> Any:
    return _import("ai_edge_litert.schema_py_generated")


def _parse(content: bytes) -> Any:
    """The flatbuffer as objects, with every buffer inside it."""
    schema = _schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:  # stored behind the flatbuffer
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def _pack(model: Any) -> bytes:
    flatbuffers = _import("flatbuffers")
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _operation(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _type_name(code: int) -> str:
    return _names("TensorType")[code]


def _names(enum: str) -> dict[int, str]:
    return {value: key for key, value in vars(getattr(_schema(), enum)).items() if not key.startswith("_")}


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _constant(model: Any, index: int) -> NDArray[Any] | None:
    """A constant's values, or None when the tensor is computed."""
    tensor = model.subgraphs[0].tensors[int(index)]
    data = model.buffers[tensor.buffer].data
    if data is None:
        return None
    dtypes = {"FLOAT32": np.float32, "INT8": np.int8, "INT32": np.int32, "FLOAT16": np.float16}
    dtype = dtypes.get(_type_name(tensor.type))
    if dtype is None:
        return None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), dtype).reshape([int(side) for side in tensor.shape])


def _weight(model: Any, operator: Any) -> NDArray[Any] | None:
    """A layer's weight as OHWI or (out, in), whichever operation computes it."""
    weight = _constant(model, operator.inputs[1])
    if weight is not None and _operation(model, operator) == "DEPTHWISE_CONV_2D":
        return weight.transpose(3, 1, 2, 0)
    return weight


def _bias(model: Any, operator: Any) -> NDArray[Any] | None:
    return _constant(model, operator.inputs[2]) if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else None


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
