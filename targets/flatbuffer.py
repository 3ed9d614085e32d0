"""TFLite's container read, changed and written: the only module that imports its schema and flatbuffers.

Nothing here knows what a network is: tensors, constants, operations in execution order, one signature.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface import limits
from edgeface.errors import MissingToolError, ModelError

IDENTIFIER = b"TFL3"

# Operations that multiply and accumulate.
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

_DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
}


class Flatbuffer:
    """A TFLite file as objects.

    Args:
        content: The file.

    Attributes:
        model: The schema's ModelT, every buffer inside it.
        tensors: TensorT of the first subgraph, by index.
        operators: OperatorT of the first subgraph, in execution order.

    Raises:
        ModelError: It is no whole TFLite file, or refers to tensors, buffers or operator codes that it does not have.
    """

    def __init__(self, content: bytes) -> None:
        schema = _schema()
        try:
            _require_few_objects(schema.Model.GetRootAsModel(content, 0), size=len(content))
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
            for buffer in self.model.buffers:
                if buffer.offset > 1:  # stored behind the flatbuffer
                    buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
                    buffer.offset = buffer.size = 0
            _require_whole(self.model)
        # The schema's generated readers check nothing: what a wrong offset raises is struct.error, IndexError, …
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ModelError(
                f"not a whole TFLite file ({reason[:200]})",
                expected="a flatbuffer whose offsets and indices lie inside it",
                do="Copy or build it again",
            ) from error

    def pack(self) -> bytes:
        """The file, with the operator codes that its operators use."""
        builder = import_tool("flatbuffers").Builder(1 << 20)
        buffers = self.model.buffers
        self.model.buffers = [_AlignedBuffer(buffer.data) for buffer in buffers]
        try:
            builder.Finish(self.model.Pack(builder), IDENTIFIER)
        finally:
            self.model.buffers = buffers
        return bytes(builder.Output())

    @property
    def tensors(self) -> list[Any]:
        found: list[Any] = self.model.subgraphs[0].tensors
        return found

    @property
    def operators(self) -> list[Any]:
        found: list[Any] = self.model.subgraphs[0].operators
        return found

    @property
    def input(self) -> int:
        """Index of the first input tensor.

        Raises:
            ModelError: There is none.
        """
        inputs = self.model.subgraphs[0].inputs
        if not inputs:
            raise ModelError("no input", expected="a network that takes a picture", do="Name another file")
        return int(inputs[0])

    @property
    def outputs(self) -> dict[str, int]:
        """Output name to tensor index, by the signature; by the tensors' names when there is none."""
        if self.model.signatureDefs:
            return {_text(entry.name): int(entry.tensorIndex) for entry in self.model.signatureDefs[0].outputs}
        return {self.name(index): int(index) for index in self.model.subgraphs[0].outputs}

    def kind(self, operator: Any) -> str:
        """Builtin name of an operator."""
        code = _builtin(self.model.operatorCodes[operator.opcodeIndex])
        return _names("BuiltinOperator").get(code, f"BUILTIN_{code}")

    def version(self, operator: Any) -> int:
        """Version of its operation that an operator asks for."""
        return int(self.model.operatorCodes[operator.opcodeIndex].version)

    def name(self, index: int) -> str:
        return _text(self.tensors[index].name)

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(int(side) for side in self.tensors[index].shape)

    def dtype(self, index: int) -> str:
        """The schema's name of a tensor's type."""
        code = int(self.tensors[index].type)
        return _names("TensorType").get(code, f"TYPE_{code}")

    def scales(self, index: int) -> NDArray[np.float32]:
        """Quantization scales of a tensor; empty when it has none."""
        quantization = self.tensors[index].quantization
        found = None if quantization is None else quantization.scale
        return np.asarray([] if found is None else found, np.float32)

    def zero_points(self, index: int) -> list[int]:
        quantization = self.tensors[index].quantization
        found = None if quantization is None else quantization.zeroPoint
        return [] if found is None else [int(zero) for zero in found]

    def axis(self, index: int) -> int:
        """The axis that a tensor's scales belong to."""
        quantization = self.tensors[index].quantization
        return 0 if quantization is None else int(quantization.quantizedDimension)

    def constant(self, index: int) -> NDArray[Any] | None:
        """A constant's values, or None when the tensor is computed.

        Raises:
            ModelError: Its bytes are not those of its type and shape.
        """
        data = self.model.buffers[self.tensors[index].buffer].data
        dtype = _DTYPES.get(self.dtype(index))
        if data is None or dtype is None:
            return None
        try:
            return np.frombuffer(np.asarray(data, np.uint8).tobytes(), dtype).reshape(self.shape(index))
        except ValueError as error:
            raise ModelError(
                f"{len(data):,} bytes for a constant {self.dtype(index)} {self.shape(index)}",
                expected="as many as its type and shape need",
                where=self.name(index),
                do="Copy or build it again",
            ) from error

    def rename(self, index: int, name: str) -> None:
        self.tensors[index].name = name.encode()

    def set_type(self, index: int, dtype: str) -> None:
        self.tensors[index].type = getattr(_schema().TensorType, dtype)

    def set_grid(self, index: int, scales: Sequence[float] | NDArray[np.float32], zero_points: Sequence[int]) -> None:
        """Give a tensor its scales and zero points, along its first axis when there are several."""
        quantization = _schema().QuantizationParametersT()
        quantization.scale = [float(np.float32(scale)) for scale in scales]
        quantization.zeroPoint = [int(zero) for zero in zero_points]
        self.tensors[index].quantization = quantization

    def set_constant(self, index: int, values: NDArray[Any]) -> None:
        """Give a tensor values of its own, and their type and shape."""
        schema = _schema()
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        tensor = self.tensors[index]
        tensor.shape = [int(side) for side in values.shape]
        tensor.shapeSignature = None
        self.set_type(index, next(name for name, dtype in _DTYPES.items() if values.dtype == dtype))
        # The former buffer may be another constant's too.
        tensor.buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)

    def add_tensor(self, name: str, shape: Sequence[int], dtype: str) -> int:
        """Append a computed tensor; its index."""
        schema = _schema()
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.hasRank = name.encode(), [int(side) for side in shape], True
        tensor.quantization = schema.QuantizationParametersT()
        tensor.buffer = len(self.model.buffers)
        self.model.buffers.append(schema.BufferT())
        self.tensors.append(tensor)
        self.set_type(len(self.tensors) - 1, dtype)
        return len(self.tensors) - 1

    def add_constant(self, name: str, values: NDArray[Any]) -> int:
        """Append a constant; its index."""
        index = self.add_tensor(name, values.shape, "FLOAT32")
        self.set_constant(index, values)
        return index

    def operator(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], *, version: int = 1, options: Any = None
    ) -> Any:
        """A new operator, which is not yet in the list.

        Args:
            kind: Builtin name.
            inputs: Tensor indices.
            outputs: Tensor indices.
            version: Of the operation.
            options: The schema's options object of this kind, such as Pool2DOptionsT.
        """
        schema = _schema()
        made = schema.OperatorT()
        made.inputs, made.outputs = list(inputs), list(outputs)
        if options is not None:
            made.builtinOptions = options
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.set_kind(made, kind, version=version)
        return made

    def set_kind(self, operator: Any, kind: str, *, version: int) -> None:
        """Turn an operator into another kind or version."""
        schema = _schema()
        builtin = getattr(schema.BuiltinOperator, kind)
        for index, code in enumerate(self.model.operatorCodes):
            if _builtin(code) == builtin and code.version == version:
                operator.opcodeIndex = index
                return
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1

    def drop_unused(self) -> None:
        """Leave out tensors, buffers and operator codes that nothing refers to."""
        subgraph, entry = self.model.subgraphs[0], self.model.signatureDefs[0]
        lists = [subgraph.inputs, subgraph.outputs]
        for operator in self.operators:
            lists += [operator.inputs, operator.outputs]
        kept = sorted({int(index) for indices in lists for index in indices if index >= 0})
        place = {index: new for new, index in enumerate(kept)} | {-1: -1}
        subgraph.tensors = [self.tensors[index] for index in kept]
        subgraph.inputs, subgraph.outputs = ([place[int(i)] for i in indices] for indices in lists[:2])
        for operator in self.operators:
            operator.inputs = [place[int(index)] for index in operator.inputs]
            operator.outputs = [place[int(index)] for index in operator.outputs]
        for tensor_map in (*entry.inputs, *entry.outputs):
            tensor_map.tensorIndex = place[int(tensor_map.tensorIndex)]
        codes = sorted({int(operator.opcodeIndex) for operator in self.operators})
        for operator in self.operators:
            operator.opcodeIndex = codes.index(int(operator.opcodeIndex))
        self.model.operatorCodes = [self.model.operatorCodes[index] for index in codes]
        empty = _schema().BufferT()  # buffer 0 is empty by convention
        buffers = [empty]
        for tensor in self.tensors:
            buffer = self.model.buffers[tensor.buffer]
            tensor.buffer = 0
            if buffer.data is not None and len(buffer.data):
                tensor.buffer = len(buffers)
                buffers.append(buffer)
        self.model.buffers = buffers
        self.model.metadata = None

    def metadata(self, name: str) -> bytes | None:
        """A metadata entry's bytes."""
        for entry in self.model.metadata or []:
            if _text(entry.name) == name:
                data = self.model.buffers[entry.buffer].data
                return b"" if data is None else np.asarray(data, np.uint8).tobytes()
        return None

    def set_metadata(self, name: str, value: bytes) -> None:
        schema = _schema()
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(value, np.uint8)
        entry.name, entry.buffer = name.encode(), len(self.model.buffers)
        self.model.buffers.append(buffer)
        self.model.metadata = [*(kept for kept in self.model.metadata or [] if _text(kept.name) != name), entry]


def _require_few_objects(model: Any, *, size: int) -> None:
    """Refuse a file whose offsets lead to the same objects again and again, before they are all read.

    A file of 1 MB could name one list of 100,000 tensors 100,000 times.
    """
    room = min(limits.TFLITE_OBJECTS, size // 4)  # each object costs an honest file at least an offset of 4 bytes
    letters = size

    def spend(objects: int) -> None:
        nonlocal room
        room -= objects
        if room < 0:
            raise ValueError(f"more objects than a file of {size:,} bytes has, or than {limits.TFLITE_OBJECTS:,}")

    spend(model.BuffersLength() + model.OperatorCodesLength() + model.MetadataLength() + model.MetadataBufferLength())
    spend(model.SubgraphsLength() + model.SignatureDefsLength())
    for place in range(model.SubgraphsLength()):
        graph = model.Subgraphs(place)
        spend(graph.TensorsLength() + graph.OperatorsLength() + graph.InputsLength() + graph.OutputsLength())
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            letters -= len(tensor.Name() or b"")
            if letters < 0:
                raise ValueError("names longer than the file")
            spend(tensor.ShapeLength() + tensor.ShapeSignatureLength() + tensor.VariantTensorsLength())
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            spend(operator.InputsLength() + operator.OutputsLength() + operator.IntermediatesLength())
    for place in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(place)
        spend(signature.InputsLength() + signature.OutputsLength())


def _require_whole(model: Any) -> None:
    """Refuse a file that refers to what it does not have; later readers index without looking."""
    if not model.subgraphs or not model.buffers:
        raise ValueError("no network in it")
    for graph in model.subgraphs:
        tensors, operators = graph.tensors or [], graph.operators or []
        for tensor in tensors:
            _require_index(tensor.buffer, model.buffers, "buffer")
            shape = [] if tensor.shape is None else [int(side) for side in tensor.shape]
            if any(side < 0 for side in shape) or math.prod(shape) >= 2**40:
                raise ValueError(f"a tensor of shape {shape[:8]}")
            tensor.shape = shape
        graph.tensors, graph.operators = tensors, operators
        graph.inputs, graph.outputs = _listed(graph.inputs), _listed(graph.outputs)
        for index in (*graph.inputs, *graph.outputs):
            _require_index(index, tensors, "tensor")
        for operator in operators:
            _require_index(operator.opcodeIndex, model.operatorCodes or [], "operator code")
            operator.inputs, operator.outputs = _listed(operator.inputs), _listed(operator.outputs)
            for index in (*operator.inputs, *operator.outputs):
                if index != -1:  # left out
                    _require_index(index, tensors, "tensor")
    for signature in model.signatureDefs or []:
        signature.inputs, signature.outputs = signature.inputs or [], signature.outputs or []
        _require_index(signature.subgraphIndex, model.subgraphs, "subgraph")
        for entry in (*signature.inputs, *signature.outputs):
            _require_index(entry.tensorIndex, model.subgraphs[signature.subgraphIndex].tensors, "tensor")
    for entry in model.metadata or []:
        _require_index(entry.buffer, model.buffers, "buffer")


def _listed(indices: Any) -> list[int]:
    return [] if indices is None else [int(index) for index in indices]


def _require_index(index: Any, of: Sequence[Any], kind: str) -> None:
    if not 0 <= int(index) < len(of):
        raise ValueError(f"{kind} {int(index)} of {len(of)}")


class _AlignedBuffer:
    """A BufferT whose data lies on 16 bytes, as the schema asks and its generated Python does not do."""

    def __init__(self, data: NDArray[np.uint8] | None) -> None:
        self.data = b"" if data is None else np.asarray(data, np.uint8).tobytes()

    def Pack(self, builder: Any) -> Any:  # noqa: N802 (the schema calls it)
        schema = _schema()
        vector = None
        if self.data:
            builder.StartVector(1, len(self.data), 16)
            start = builder.Head() - len(self.data)
            builder.head = start
            builder.Bytes[start : start + len(self.data)] = self.data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def options(name: str) -> Any:
    """A new options object of the schema, such as Pool2DOptionsT."""
    return getattr(_schema(), name)()


def enum(name: str, member: str) -> int:
    """A number of the schema's, such as Padding's SAME."""
    value: int = getattr(getattr(_schema(), name), member)
    return value


def operations(content: bytes) -> list[str]:
    """Builtin operation names of a file in execution order."""
    file = Flatbuffer(content)
    return [file.kind(operator) for operator in file.operators]


def macs(content: bytes) -> int:
    """Multiply-accumulates of one run, counted from the convolutions and fully connected layers of a file."""
    file = Flatbuffer(content)
    total = 0
    for operator in file.operators:
        kind = file.kind(operator)
        if kind not in LAYERS or len(operator.inputs) < 2 or not operator.outputs or -1 in operator.inputs[:2]:
            continue
        weight, made = file.shape(int(operator.inputs[1])), file.shape(int(operator.outputs[0]))
        # Every weight meets every output position once, OHWI or, depthwise, 1HWO alike.
        positions = made[:-1] if kind == "FULLY_CONNECTED" else made[1:3]
        total += math.prod(positions) * math.prod(weight)
    return total


def import_tool(name: str) -> Any:
    """A module of the android tool-kits.

    Raises:
        MissingToolError: It is not installed.
    """
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
    return import_tool("ai_edge_litert.schema_py_generated")


@cache
def _names(enum_name: str) -> dict[int, str]:
    found = vars(getattr(_schema(), enum_name)).items()
    return {value: key for key, value in found if not key.startswith("_")}


def _builtin(code: Any) -> int:
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _text(name: bytes | str | None) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""
