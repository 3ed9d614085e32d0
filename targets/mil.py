"""Core ML packages executed off-Mac: a saved ML program, operation by operation, by torch's kernels.

What is executed is what the file holds: the protobuf and its weights file are decoded here, constants once at opening,
and an operation that is not in OPERATIONS is refused by name before anything runs. Every result is held against the
shape that the file declares for it.

Arithmetic "fp32": every operation takes and returns float32 values, whatever float type it declares; half floats appear
only as stored constants. Sums of products and of values (conv, linear, matmul, reduce, avg_pool) and transcendental
functions are computed in float64 and rounded to float32 once. Float32 implementations differ in the order of their sums
and nothing else, and this is the value that all of them approximate.

Arithmetic "fp16": the operands and the result of every operation are rounded to half floats, integers stay integers,
and sums are accumulated in float32. A phone may compute so; which operations do, and in what their sums are held, is
for the device to choose, so this shows an order of magnitude and promises nothing.

quantize and dequantize are MIL's, in float32 with ties to even as its own evaluation rounds them:
quantized = clip(round(input/scale) + zero_point), unquantized = scale·(input − zero_point).

A batch of B pictures goes through the program at once, B standing where the file says 1 in front. Where an operation
would mix pictures then (`_separate`), they go through one by one.

Sources:
    coremltools 9.0: converters/mil/mil/ops/defs/iOS15 … iOS18 (what operations compute; "same" padding in _utils.py),
    iOS17/quantization_ops.py, mlmodel/format/MIL.proto, mlmodel/src/MILBlob/Blob/StorageFormat.hpp (the weights file).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgeface.errors import EdgefaceError, ModelError, UnsupportedError
from edgeface.evaluate import Outputs
from edgeface.specs import ModelSpec
from targets import artifacts
from targets.coreml import read_model, weights_file
from targets.foreign import minimal_spec, require_outputs, standardize, try_apart
from targets.protocol import Grids, Operations, Port

Arithmetic = Literal["fp32", "fp16"]

# Doubles that the largest unfolded map of a convolution may take; more pictures at once gain nothing.
_CHUNK_BYTES = 1 << 27


@dataclass(frozen=True, kw_only=True)
class Value:
    """The declared type of a value.

    Attributes:
        name: Its name.
        dtype: "fp32", "fp16", "int8", …
        shape: Its shape; None where it is not fixed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a program.

    Attributes:
        kind: Its type, such as "conv".
        name: What its maker called it: the layer.
        reads: Parameter to the names of the values it is given.
        constants: Parameter to an array or a string written in place.
        makes: Its results.
    """

    kind: str
    name: str
    reads: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, Any]
    makes: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A package, decoded.

    Attributes:
        path: Where it lies.
        inputs: What it takes.
        picture: (width, height, "RGB", "BGR" or "GRAYSCALE") when the input is an image, else None.
        operations: In execution order, without the constants.
        constants: Name of a constant to an array, or to a string.
        outputs: Names of the values that leave.
        metadata: What its maker wrote into it.
    """

    path: Path
    inputs: tuple[Value, ...]
    picture: tuple[int, int, str] | None
    operations: tuple[Operation, ...]
    constants: Mapping[str, Any]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]

    def declared(self) -> dict[str, Value]:
        """Every value that is no constant, by name."""
        made = [value for operation in self.operations for value in operation.makes]
        return {value.name: value for value in (*self.inputs, *made)}


def read_program(path: Path) -> Program:
    """Decode a package, constants and all.

    Raises:
        ModelError: It is broken or cut short; the message names the package.
        UnsupportedError: It is no ML program, or holds constants of a type that is not read here.
        MissingToolError: coremltools, which knows the protobuf, is not installed.
    """
    model = read_model(path)
    kind = model.WhichOneof("Type")
    if kind is None:
        raise _broken(path, "its model file holds no model")
    if kind != "mlProgram":
        raise UnsupportedError(
            f"a Core ML model of type {kind!r}",
            expected="an ML program",
            where=str(path),
            do="Convert it again for iOS 15 or later, or run it on a Mac: --runtime coreml",
        )
    if "main" not in model.mlProgram.functions:
        raise _broken(path, "its program has no function 'main'")
    function = model.mlProgram.functions["main"]
    if function.opset not in function.block_specializations:
        raise _broken(path, f"its program has no block for {function.opset!r}")
    block = function.block_specializations[function.opset]
    decoder = _Decoder(path=path)
    constants: dict[str, Any] = {}
    operations = []
    for op in block.operations:
        if not op.outputs:
            raise _unknown(op.type, op.type, where=path)
        if op.type == "const":
            constants[op.outputs[0].name] = decoder.constant(op.attributes["val"], of=op.outputs[0].name)
        else:
            operations.append(decoder.operation(op))
    described = [entry.type for entry in model.description.input if entry.type.WhichOneof("Type") == "imageType"]
    image = described[0].imageType if len(described) == len(function.inputs) == 1 else None
    program = Program(
        path=path,
        inputs=tuple(decoder.value(entry) for entry in function.inputs),
        picture=(int(image.width), int(image.height), _enum(image, "colorSpace")) if image is not None else None,
        operations=tuple(operations),
        constants=constants,
        outputs=tuple(block.outputs),
        metadata=dict(model.description.metadata.userDefined),
    )
    _require_order(program)
    return program


def _broken(path: Path, found: str) -> ModelError:
    return ModelError(found, expected="a whole .mlpackage", where=str(path), do="Copy or build it again")


def _unknown(kind: str, layer: str, *, where: Path) -> UnsupportedError:
    return UnsupportedError(
        f"operation {kind!r} of layer {layer!r}",
        expected=f"one of {', '.join(sorted({*OPERATIONS, *CONSTANT_EXPRESSIONS}))}",
        where=str(where),
        do="Run it on a Mac: --runtime coreml",
    )


def _require_order(program: Program) -> None:
    """Every value is made before it is read, and once."""
    known = {*program.constants, *(value.name for value in program.inputs)}
    for operation in program.operations:
        for name in (name for names in operation.reads.values() for name in names):
            if name not in known:
                raise _broken(program.path, f"layer {operation.name!r} reads {name!r}, which nothing before it makes")
        known |= {value.name for value in operation.makes}
    missing = [name for name in program.outputs if name not in known]
    if missing or not program.outputs:
        raise _broken(program.path, f"nothing makes the outputs {missing}" if missing else "no outputs")


@dataclass(frozen=True, kw_only=True)
class _Type:
    """How a type is called, held and stored; `blob` is its number in a weights file."""

    name: str
    dtype: Any
    bits: int
    blob: int = 0


_TYPES = {
    "FLOAT16": _Type(name="fp16", dtype=np.float16, bits=16, blob=1),
    "FLOAT32": _Type(name="fp32", dtype=np.float32, bits=32, blob=2),
    "FLOAT64": _Type(name="fp64", dtype=np.float64, bits=64),
    "UINT8": _Type(name="uint8", dtype=np.uint8, bits=8, blob=3),
    "INT8": _Type(name="int8", dtype=np.int8, bits=8, blob=4),
    "INT16": _Type(name="int16", dtype=np.int16, bits=16, blob=6),
    "UINT16": _Type(name="uint16", dtype=np.uint16, bits=16, blob=7),
    "INT4": _Type(name="int4", dtype=np.int8, bits=4, blob=8),
    "UINT1": _Type(name="uint1", dtype=np.uint8, bits=1, blob=9),
    "UINT2": _Type(name="uint2", dtype=np.uint8, bits=2, blob=10),
    "UINT4": _Type(name="uint4", dtype=np.uint8, bits=4, blob=11),
    "UINT3": _Type(name="uint3", dtype=np.uint8, bits=3, blob=12),
    "UINT6": _Type(name="uint6", dtype=np.uint8, bits=6, blob=13),
    "INT32": _Type(name="int32", dtype=np.int32, bits=32, blob=14),
    "UINT32": _Type(name="uint32", dtype=np.uint32, bits=32, blob=15),
    "INT64": _Type(name="int64", dtype=np.int64, bits=64),
    "UINT64": _Type(name="uint64", dtype=np.uint64, bits=64),
    "BOOL": _Type(name="bool", dtype=np.bool_, bits=8),
    "STRING": _Type(name="string", dtype=np.str_, bits=0),
}
# Of the 64 bytes before each blob: sentinel, type, size in bytes, offset in the file.
_BLOB = struct.Struct("<IIQQ")
_BLOB_BYTES = 64
_SENTINEL = 0xDEADBEEF
_STORAGE = b"\2\0\0\0"  # the version, after the number of blobs


def _enum(message: Any, name: str) -> str:
    """The name of an enum field's value, "" for one that this protobuf does not know."""
    known = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number.get(getattr(message, name))
    return str(known.name) if known is not None else ""


@dataclass(kw_only=True)
class _Decoder:
    """Protobuf messages of one package into Python's and numpy's types."""

    path: Path
    files: dict[str, bytes] = field(default_factory=dict)

    def value(self, declared: Any) -> Value:
        tensor = declared.type.tensorType
        kind = _enum(tensor, "dataType")
        fixed = declared.type.WhichOneof("type") == "tensorType" and tensor.rank == len(tensor.dimensions)
        fixed = fixed and all(side.WhichOneof("dimension") == "constant" for side in tensor.dimensions)
        return Value(
            name=declared.name,
            dtype=_TYPES[kind].name if kind in _TYPES else kind.lower(),
            shape=tuple(int(side.constant.size) for side in tensor.dimensions) if fixed else None,
        )

    def operation(self, op: Any) -> Operation:
        name = op.outputs[0].name
        reads: dict[str, tuple[str, ...]] = {}
        constants: dict[str, Any] = {}
        for parameter, argument in op.inputs.items():
            held = [bound.WhichOneof("binding") for bound in argument.arguments]
            if held == ["value"]:
                constants[parameter] = self.constant(argument.arguments[0].value, of=name)
            elif "value" in held:
                raise UnsupportedError(
                    f"{parameter!r} of layer {name!r} ({op.type}) mixes constants with values",
                    expected="constants with names",
                    where=str(self.path),
                )
            else:
                reads[parameter] = tuple(bound.name for bound in argument.arguments)
        for attribute, value in op.attributes.items():
            constants[attribute] = self.constant(value, of=name)
        called = constants.pop("name", name)
        return Operation(
            kind=op.type,
            name=str(called),
            reads=reads,
            constants=constants,
            makes=tuple(self.value(entry) for entry in op.outputs),
        )

    def constant(self, stored: Any, *, of: str) -> Any:
        """An array, or a string."""
        tensor = stored.type.tensorType
        kind = _TYPES.get(_enum(tensor, "dataType"))
        if stored.type.WhichOneof("type") != "tensorType" or kind is None:
            raise UnsupportedError(
                f"a constant of type {_enum(tensor, 'dataType') or stored.type.WhichOneof('type')!r} in {of!r}",
                expected="a tensor of numbers or a string",
                where=str(self.path),
                do="Run it on a Mac: --runtime coreml",
            )
        shape = tuple(int(side.constant.size) for side in tensor.dimensions)
        if stored.WhichOneof("value") == "blobFileValue":
            return self._array(self._blob(stored.blobFileValue, kind, of=of), kind, shape, of=of)
        held = stored.immediateValue.tensor.WhichOneof("value")
        if held is None:
            raise _broken(self.path, f"the constant {of!r} has no value")
        values = getattr(stored.immediateValue.tensor, held).values
        if held == "bytes":
            return self._array(values, kind, shape, of=of)
        if len(values) != math.prod(shape):
            raise _broken(self.path, f"{len(values)} values for the constant {of!r} of shape {shape}")
        if held == "strings":
            return str(values[0]) if not shape else list(values)
        return np.array(list(values), kind.dtype).reshape(shape)

    def _array(self, raw: bytes, kind: _Type, shape: tuple[int, ...], *, of: str) -> NDArray[Any]:
        count = math.prod(shape)
        if len(raw) != (count * kind.bits + 7) // 8 or kind.bits == 0:
            raise _broken(self.path, f"{len(raw)} bytes for the constant {of!r}, {shape} of {kind.name}")
        if kind.bits < 8:
            return _unpacked(raw, kind.bits, count, signed=kind.name.startswith("int")).reshape(shape)
        return np.frombuffer(raw, np.dtype(kind.dtype).newbyteorder("<")).reshape(shape).astype(kind.dtype)

    def _blob(self, place: Any, kind: _Type, *, of: str) -> bytes:
        content = self._file(place.fileName, of=of)
        start = int(place.offset)
        if start + _BLOB_BYTES > len(content):
            raise _broken(self.path, f"its weights end before byte {start + _BLOB_BYTES}, where {of!r} is described")
        if content[4:8] != _STORAGE:
            raise _broken(self.path, f"its weights begin with {content[:8]!r}, not as a weights file of version 2")
        sentinel, blob, size, offset = _BLOB.unpack_from(content, start)
        if sentinel != _SENTINEL:
            raise _broken(self.path, f"byte {start} of its weights does not begin the constant {of!r}")
        if blob != kind.blob:
            raise _broken(self.path, f"the constant {of!r} is stored as type {blob}, not as {kind.name} ({kind.blob})")
        if offset + size > len(content):
            raise _broken(self.path, f"its weights end before byte {offset + size}, inside the constant {of!r}")
        return content[offset : offset + size]

    def _file(self, name: str, *, of: str) -> bytes:
        if name not in self.files:
            root = weights_file(self.path).parent.parent
            file = root / name.removeprefix("@model_path/")
            if not file.resolve().is_relative_to(self.path.resolve()):
                raise _broken(self.path, f"the constant {of!r} lies outside the package, in {name!r}")
            try:
                self.files[name] = file.read_bytes()
            except OSError as error:
                raise _broken(self.path, f"{file.name} cannot be read ({error.strerror})") from error
        return self.files[name]


def _unpacked(raw: bytes, bits: int, count: int, *, signed: bool) -> NDArray[Any]:
    """Integers of at most eight bits, the lowest bit first, without gaps.

    Raises:
        ValueError: There are fewer.
    """
    if len(raw) * 8 < bits * count:
        raise ValueError(f"{len(raw)} bytes for {count} values of {bits} bits")
    held = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little", count=bits * count).reshape(count, bits)
    values: NDArray[np.int64] = (held.astype(np.int64) << np.arange(bits)).sum(axis=1)
    if signed:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return values.astype(np.int8 if signed else np.uint8)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One operation at work.

    Attributes:
        given: Parameter to a tensor, a list of them or a string.
        results: How many values it makes.
        wide: The type that sums are held in.
        pictures: B when it stands in front of every value, else None.
    """

    given: Mapping[str, Any]
    results: int
    wide: torch.dtype
    pictures: int | None

    def tensor(self, name: str) -> Tensor:
        value = self.given[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is {value!r}, no tensor")
        return value

    def summed(self, name: str) -> Tensor:
        """As `tensor`, in the type that sums are held in."""
        return self.tensor(name).to(self.wide)

    def optional(self, name: str) -> Tensor | None:
        return self.summed(name) if name in self.given else None

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        return [int(v) for v in self.tensor(name).reshape(-1).tolist()] if name in self.given else list(default)

    def integer(self, name: str, default: int) -> int:
        return self.ints(name, [default])[0]

    def real(self, name: str, default: float) -> float:
        return float(self.tensor(name)) if name in self.given else default

    def flag(self, name: str) -> bool:
        return name in self.given and bool(self.tensor(name))

    def text(self, name: str, default: str, accepted: Sequence[str]) -> str:
        value = self.given.get(name, default)
        if value not in accepted:
            raise ValueError(f"{name} is {value!r}, none of {', '.join(map(repr, accepted))}")
        return str(value)


Kernel = Callable[[_Call], Tensor | list[Tensor]]

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVG_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _conv(call: _Call) -> Tensor:
    x, weight = call.summed("x"), call.summed("weight")
    sides = x.ndim - 2
    strides, dilations = call.ints("strides", [1] * sides), call.ints("dilations", [1] * sides)
    reach = [dilation * (side - 1) + 1 for dilation, side in zip(dilations, weight.shape[2:], strict=True)]
    x = _padded(x, _window_pads(call, x, reach, strides), 0.0)
    groups = call.integer("groups", 1)
    made: Tensor = _CONV[sides](x, weight, call.optional("bias"), stride=strides, dilation=dilations, groups=groups)
    return made


def _window_pads(call: _Call, x: Tensor, reach: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) of each side of a map."""
    sides = x.shape[2:]
    match call.text("pad_type", "valid", ("valid", "custom", "same", "same_lower")):
        case "valid":
            return [(0, 0)] * len(sides)
        case "custom":
            pads = call.ints("pad", [0] * 2 * len(sides))
            return list(zip(pads[::2], pads[1::2], strict=True))
        case kind:
            found = []
            for size, stride, length in zip(sides, strides, reach, strict=True):
                total = max((-(-size // stride) - 1) * stride + length - size, 0)
                less, more = total // 2, total - total // 2
                found.append((less, more) if kind == "same" else (more, less))
            return found


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float) -> Tensor:
    """The last axes padded; `pads` in their order."""
    if not any(map(any, pads)):
        return x
    # torch counts axes from the last.
    return functional.pad(x, [end for pair in reversed(pads) for end in pair], value=value)


def _pool_windows(call: _Call, x: Tensor) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    kernel = call.ints("kernel_sizes", [])
    strides = call.ints("strides", [1] * len(kernel))
    return kernel, strides, _window_pads(call, x, kernel, strides)


def _max_pool(call: _Call) -> Tensor:
    x = call.tensor("x")
    kernel, strides, pads = _pool_windows(call, x)
    pool = _MAX_POOL[len(kernel)]
    if call.flag("ceil_mode"):  # MIL allows symmetric padding only, and means torch's
        made: Tensor = pool(x, kernel, strides, padding=[before for before, _ in pads], ceil_mode=True)
    else:
        made = pool(_padded(x, pads, -math.inf), kernel, strides)
    return made


def _avg_pool(call: _Call) -> Tensor:
    x = call.summed("x")
    kernel, strides, pads = _pool_windows(call, x)
    pool, inside = _AVG_POOL[len(kernel)], call.flag("exclude_padding_from_average")
    if call.flag("ceil_mode"):
        before = [first for first, _ in pads]
        made: Tensor = pool(x, kernel, strides, padding=before, ceil_mode=True, count_include_pad=not inside)
        return made
    made = pool(_padded(x, pads, 0.0), kernel, strides)
    if inside:
        made = made / pool(_padded(torch.ones_like(x), pads, 0.0), kernel, strides)
    return made


def _linear(call: _Call) -> Tensor:
    return functional.linear(call.summed("x"), call.summed("weight"), call.optional("bias"))


def _matmul(call: _Call) -> Tensor:
    x, y = call.summed("x"), call.summed("y")
    return (x.mT if call.flag("transpose_x") else x) @ (y.mT if call.flag("transpose_y") else y)


def _batch_norm(call: _Call) -> Tensor:
    x = call.summed("x")
    mean, variance, gamma, beta = (
        value.reshape(1, -1, *[1] * (x.ndim - 2)) if value is not None else None
        for value in map(call.optional, ("mean", "variance", "gamma", "beta"))
    )
    assert mean is not None
    assert variance is not None
    made = (x - mean) / torch.sqrt(variance + call.real("epsilon", 1e-5))
    made = made * gamma if gamma is not None else made
    return made + beta if beta is not None else made


def _prelu(call: _Call) -> Tensor:
    x = call.tensor("x")
    alpha = call.tensor("alpha").reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, x * alpha)


def _leaky_relu(call: _Call) -> Tensor:
    x = call.tensor("x")
    return torch.where(x > 0, x, x * call.real("alpha", 0.01))


def _clip(call: _Call) -> Tensor:
    return call.tensor("x").clamp(call.tensor("alpha"), call.tensor("beta"))


def _softmax(call: _Call) -> Tensor:
    return call.summed("x").softmax(call.integer("axis", -1))


def _real_div(call: _Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    if not (x.is_floating_point() or y.is_floating_point()):
        raise ValueError("integers are divided")
    return x / y


def _along(call: _Call, name: str, x: Tensor) -> Tensor:
    """A scale or zero point in float32, broadcast along `axis` of x."""
    value = call.tensor(name).float()
    if value.ndim == 0:
        return value
    axis = call.integer("axis", 0) % x.ndim
    return value.reshape([-1 if place == axis else 1 for place in range(x.ndim)])


def _quantize(call: _Call) -> Tensor:
    x = call.tensor("input")
    codes = torch.round(x / _along(call, "scale", x))
    if "zero_point" in call.given:
        codes = codes + _along(call, "zero_point", x)
    if bool(codes.isnan().any()):
        raise ValueError("a value is not a number")
    match call.text("output_dtype", "", ("int8", "uint8")):
        case "int8":
            return codes.clamp(-128, 127).to(torch.int8)
        case _:
            return codes.clamp(0, 255).to(torch.uint8)


def _dequantize(call: _Call) -> Tensor:
    codes = call.tensor("input").float()
    if "zero_point" in call.given:
        codes = codes - _along(call, "zero_point", codes)
    return codes * _along(call, "scale", codes)


def _cast(call: _Call) -> Tensor:
    kinds = {"fp32": torch.float32, "fp16": torch.float32, "bool": torch.bool, "int8": torch.int8, "uint8": torch.uint8}
    kinds |= dict.fromkeys(("int16", "uint16", "int32", "uint32", "int64"), torch.int64)
    # From a float to an integer: towards zero.
    return call.tensor("x").to(kinds[call.text("dtype", "", tuple(kinds))])


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Kernel:
    def kernel(call: _Call) -> Tensor:
        x = call.tensor("x")
        made = function(call.summed("x"), call.ints("axes", range(x.ndim)), call.flag("keep_dims"))
        return made if x.is_floating_point() else made.to(x.dtype)

    return kernel


def _reshape(call: _Call) -> Tensor:
    x = call.tensor("x")
    shape = [x.shape[place] if side == 0 else side for place, side in enumerate(call.ints("shape", []))]
    if call.pictures is not None:
        shape[0] = call.pictures
    return x.reshape(shape)


def _squeeze(call: _Call) -> Tensor:
    x = call.tensor("x")
    return x.squeeze([axis % x.ndim for axis in call.ints("axes", range(x.ndim))])


def _expand_dims(call: _Call) -> Tensor:
    x, axes = call.tensor("x"), call.ints("axes", [])
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(call: _Call) -> Tensor:
    values, axis = list(call.given["values"]), call.integer("axis", 0)
    if call.pictures is not None:  # a constant is the same for every picture
        values = [value.expand(call.pictures, *value.shape[1:]) for value in values]
    if not call.flag("interleave"):
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def _split(call: _Call) -> list[Tensor]:
    x, axis = call.tensor("x"), call.integer("axis", 0)
    sizes = call.ints("split_sizes", [x.shape[axis] // call.results] * call.results)
    return list(torch.split(x, sizes, axis))


def _slice_by_index(call: _Call) -> Tensor:
    x = call.tensor("x")
    none, rank = [0] * x.ndim, x.ndim
    begins, ends, strides = call.ints("begin", none), call.ints("end", x.shape), call.ints("stride", [1] * rank)
    open_begins, open_ends = call.ints("begin_mask", none), call.ints("end_mask", none)
    points = call.ints("squeeze_mask", none)
    for axis in reversed(range(rank)):  # a squeezed axis moves those behind it
        if axis == 0 and call.pictures is not None:
            continue
        if points[axis]:
            x = x.select(axis, begins[axis])
            continue
        part = slice(
            None if open_begins[axis] else begins[axis], None if open_ends[axis] else ends[axis], strides[axis]
        )
        x = x.index_select(axis, torch.tensor(range(x.shape[axis])[part], dtype=torch.int64))
    return x


def _slice_by_size(call: _Call) -> Tensor:
    x = call.tensor("x")
    for axis, (begin, size) in enumerate(zip(call.ints("begin", []), call.ints("size", []), strict=True)):
        if axis > 0 or call.pictures is None:
            x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _pad(call: _Call) -> Tensor:
    x, ends = call.tensor("x"), call.ints("pad", [])
    mode = call.text("mode", "constant", ("constant", "reflect", "replicate"))
    pads = list(zip(ends[::2], ends[1::2], strict=True))
    if mode == "constant":
        return _padded(x, pads, call.real("constant_val", 0.0))
    while pads and pads[0] == (0, 0):  # torch reflects the last axes only
        del pads[0]
    return functional.pad(x, [end for pair in reversed(pads) for end in pair], mode=mode)


def _unary(function: Callable[[Tensor], Tensor]) -> Kernel:
    return lambda call: function(call.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Kernel:
    return lambda call: function(call.tensor("x"), call.tensor("y"))


def _affine(given: Mapping[str, Any]) -> NDArray[Any]:
    codes, scale = given["quantized_data"], given["scale"]
    axis = int(given["axis"]) % codes.ndim
    shape = [-1 if place == axis else 1 for place in range(codes.ndim)]
    zero = np.asarray(given["zero_point"], np.float32)
    values: NDArray[Any] = codes.astype(np.float32) - (zero.reshape(shape) if zero.ndim else zero)
    values = values * (scale.reshape(shape) if scale.ndim else scale).astype(np.float32)
    return values.astype(scale.dtype)


def _blockwise(given: Mapping[str, Any]) -> NDArray[Any]:
    codes, scale = given["data"], given["scale"]
    values = codes.astype(np.float32)
    if "offset" in given:
        values = values - _spread(given["offset"].astype(np.float32), codes.shape)
    values = values * _spread(scale.astype(np.float32), codes.shape)
    return np.asarray(values, scale.dtype)


def _spread(blocks: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """One value per block repeated over the block."""
    for axis, (count, side) in enumerate(zip(blocks.shape, shape, strict=True)):
        blocks = np.repeat(blocks, side // count, axis=axis)
    return blocks


def _palette(given: Mapping[str, Any]) -> NDArray[Any]:
    lut, indices = given["lut"], given["indices"]
    if "shape" in given:  # iOS 16: one palette, packed indices
        shape = [int(side) for side in given["shape"]]
        bits = int(lut.size - 1).bit_length()
        chosen = _unpacked(indices.tobytes(), bits, math.prod(shape), signed=False)
        return np.asarray(lut.reshape(-1)[chosen].reshape(shape))
    if lut.shape[-1] != 1:
        raise NotImplementedError("palettes of vectors")
    tables = lut[..., 0]  # (blocks along each axis…, values)
    for axis, side in enumerate(indices.shape):
        tables = np.repeat(tables, side // tables.shape[axis], axis=axis) if tables.shape[axis] > 1 else tables
    tables = np.broadcast_to(tables, (*indices.shape, tables.shape[-1]))
    return np.asarray(np.take_along_axis(tables, indices[..., None].astype(np.int64), axis=-1)[..., 0])


# What a kernel returns is rounded to float32, in "fp16" to a half float, by its caller.
OPERATIONS: dict[str, Kernel] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": _clip,
    "concat": _concat,
    "conv": _conv,
    "dequantize": _dequantize,
    "expand_dims": _expand_dims,
    "identity": _unary(lambda x: x),
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mul": _binary(torch.mul),
    "pad": _pad,
    "prelu": _prelu,
    "quantize": _quantize,
    "real_div": _real_div,
    "reduce_mean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_sum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "relu": _unary(torch.relu),
    "relu6": _unary(lambda x: x.clamp(0.0, 6.0)),
    "reshape": _reshape,
    "sigmoid": lambda call: torch.sigmoid(call.summed("x")),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "softmax": _softmax,
    "split": _split,
    "squeeze": _squeeze,
    "sub": _binary(torch.sub),
    "tanh": lambda call: torch.tanh(call.summed("x")),
    "transpose": lambda call: call.tensor("x").permute(call.ints("perm", [])),
}
# Operations that lend a constant another form; arrays in, one array out.
CONSTANT_EXPRESSIONS: dict[str, Callable[[Mapping[str, Any]], NDArray[Any]]] = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_cast": lambda given: given["source_val"].astype(np.float32),
    "constexpr_lut_to_dense": _palette,
}

# Each value of the result comes from one value, or one window, of the same picture.
_POINTWISE = (
    *("abs", "avg_pool", "cast", "clip", "identity", "leaky_relu", "max_pool", "prelu", "relu", "relu6", "reshape"),
    *("sigmoid", "tanh"),
)
_BROADCAST = ("add", "maximum", "minimum", "mul", "real_div", "sub")


def _separate(kind: str, given: Mapping[str, Any], ranks: Mapping[str, int], result_rank: int) -> bool:
    """Whether B in place of the leading 1 of every computed operand gives each picture its own result.

    Args:
        kind: The operation, each result of which leads with 1 too.
        given: Its constant parameters: tensors and strings.
        ranks: Its computed operands' ranks, at least 1.
        result_rank: The rank of its first result.
    """

    def axes(name: str, rank: int) -> list[int] | None:
        return [int(axis) % rank for axis in given[name].reshape(-1).tolist()] if name in given else None

    def spreads(name: str) -> bool:
        """A constant that broadcasts over the leading axis."""
        return bool(given[name].ndim < result_rank or given[name].shape[0] == 1)

    rank = next(iter(ranks.values()))
    if kind in _POINTWISE:
        return True
    if kind in _BROADCAST:
        return all(r == result_rank for r in ranks.values()) and all(spreads(n) for n in ("x", "y") if n in given)
    match kind:
        case "conv" | "batch_norm":
            return set(ranks) == {"x"}
        case "linear":
            return set(ranks) == {"x"} and rank >= 2
        case "matmul" if set(ranks) == {"x"}:
            return rank >= (3 if "transpose_x" in given and bool(given["transpose_x"]) else 2) and (
                given["y"].ndim <= 2 or (given["y"].ndim <= rank and spreads("y"))
            )
        case "matmul" if set(ranks) == {"y"}:
            return rank >= 3 and given["x"].ndim <= rank and spreads("x")
        case "matmul":
            return ranks["x"] == ranks["y"] >= 3
        case "softmax":
            return (axes("axis", rank) or [rank - 1]) != [0]
        case "split" | "concat":
            return axes("axis", rank) != [0]
        case "quantize" | "dequantize":
            return set(ranks) == {"input"} and (given["scale"].ndim == 0 or axes("axis", rank) != [0])
        case "reduce_mean" | "reduce_sum" | "squeeze":
            return "axes" in given and 0 not in (axes("axes", rank) or [])
        case "expand_dims":
            return 0 not in (axes("axes", result_rank) or [])
        case "transpose":
            return (axes("perm", rank) or [1])[0] == 0
        case "pad":
            return "pad" in given and (given["pad"].numel() < 2 * rank or not bool(given["pad"][:2].any()))
        case "slice_by_size":
            return {"begin", "size"} <= given.keys() and int(given["begin"][0]) == 0
        case "slice_by_index":
            squeezed = "squeeze_mask" in given and bool(given["squeeze_mask"][0])
            return {"begin", "end"} <= given.keys() and not squeezed
    return False


@dataclass(frozen=True, kw_only=True)
class _Step:
    """An operation ready to run: what it reads, what it is always given, and which values nobody needs after it."""

    operation: Operation
    constants: Mapping[str, Any]
    reads: Mapping[str, tuple[str, ...]]
    done_with: tuple[str, ...] = ()


class Executor:
    """A program with its constants decoded, ready to run.

    Args:
        program: The program.
        arithmetic: "fp32" or "fp16"; see the module.

    Attributes:
        shape: Of its one input; leads with 1.
        separate: Whether pictures go through it together.

    Raises:
        UnsupportedError: It holds an operation that is not known here, whose message names it and its layer; or it
            takes something else than one array of a fixed shape that leads with 1.
        ModelError: A constant cannot be what the file says.
    """

    def __init__(self, program: Program, *, arithmetic: Arithmetic = "fp32") -> None:
        if arithmetic not in get_args(Arithmetic):
            raise UnsupportedError(
                f"arithmetic {arithmetic!r}", expected=f"one of {', '.join(map(repr, get_args(Arithmetic)))}"
            )
        for operation in program.operations:
            if operation.kind not in OPERATIONS and operation.kind not in CONSTANT_EXPRESSIONS:
                raise _unknown(operation.kind, operation.name, where=program.path)
        taken = [value.shape for value in program.inputs]
        if len(taken) != 1 or taken[0] is None or taken[0][:1] != (1,):
            raise UnsupportedError(
                f"inputs of shape {taken}", expected="one, of a fixed shape (1, …)", where=str(program.path)
            )
        self.program = program
        self.shape = taken[0]
        self._half = arithmetic == "fp16"
        self._constants: dict[str, Any] = {}
        self._steps = self._prepared()
        declared = program.declared()
        self.separate = all(self._is_separate(step, declared) for step in self._steps)
        shapes = [value.shape or (1,) for value in declared.values()]
        # A convolution of 3 by 3 unfolds its map ninefold.
        self._chunk = max(1, _CHUNK_BYTES // (8 * 9 * max(map(math.prod, shapes)))) if self.separate else 1

    def run(self, values: NDArray[np.float32], *, every: bool = False) -> dict[str, NDArray[Any]]:
        """The outputs of a batch of inputs.

        Args:
            values: (B, …), what the program's one input takes without its leading 1.
            every: All computed values, not the outputs alone.

        Returns:
            Name to (B, …), without the leading 1 that the file declares, where it does.

        Raises:
            ModelError: The program cannot be computed; the message names the layer.
        """
        if values.shape[1:] != self.shape[1:]:
            where = str(self.program.path)
            raise ModelError(f"an input {values.shape}", expected=f"(B, …) of {self.shape}", where=where)
        parts: dict[str, list[NDArray[Any]]] = {}
        for start in range(0, len(values), self._chunk):
            part = torch.from_numpy(np.array(values[start : start + self._chunk], np.float32))
            for name, value in self._run(part, every=every).items():
                parts.setdefault(name, []).append(value.numpy())
        return {name: np.concatenate(found) for name, found in parts.items()}

    def _prepared(self) -> list[_Step]:
        """Operations that need a picture; those that need none are computed here."""
        program = self.program
        arrays = dict(program.constants)
        self._constants = {name: self._operand(value) for name, value in arrays.items()}
        steps: list[_Step] = []
        for operation in program.operations:
            names = [name for given in operation.reads.values() for name in given]
            if operation.kind in CONSTANT_EXPRESSIONS:
                array = self._expression(operation, arrays)
                arrays[operation.makes[0].name] = array
                self._constants[operation.makes[0].name] = self._operand(array)
                continue
            literal = {parameter: self._operand(value) for parameter, value in operation.constants.items()}
            step = _Step(operation=operation, constants=literal, reads=operation.reads)
            if all(name in self._constants for name in names):
                self._constants |= self._compute(step, self._constants, pictures=None)
                continue
            fixed = {
                parameter: self._constants[given[0]]
                for parameter, given in operation.reads.items()
                if len(given) == 1 and parameter != "values" and given[0] in self._constants
            }
            reads = {parameter: given for parameter, given in operation.reads.items() if parameter not in fixed}
            steps.append(replace(step, constants=literal | fixed, reads=reads))
        last = {name: place for place, step in enumerate(steps) for given in step.reads.values() for name in given}
        gone: dict[int, list[str]] = {}
        for name, place in last.items():
            if name not in program.outputs and name not in self._constants:
                gone.setdefault(place, []).append(name)
        return [replace(step, done_with=tuple(gone.get(place, ()))) for place, step in enumerate(steps)]

    def _expression(self, operation: Operation, arrays: Mapping[str, Any]) -> NDArray[Any]:
        missing = [name for given in operation.reads.values() for name in given if name not in arrays]
        given = dict(operation.constants) | {
            parameter: arrays[names[0]] for parameter, names in operation.reads.items() if not missing
        }
        try:
            if missing:
                raise NotImplementedError(f"{missing[0]!r}, which is no constant")
            return CONSTANT_EXPRESSIONS[operation.kind](given)
        except NotImplementedError as error:
            raise UnsupportedError(
                f"{operation.kind} of layer {operation.name!r} with {error}",
                expected="constants, and palettes of single values",
                where=str(self.program.path),
                do="Run it on a Mac: --runtime coreml",
            ) from error
        except (KeyError, ValueError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise _broken(
                self.program.path, f"{operation.kind} of layer {operation.name!r} makes no sense ({error})"
            ) from error

    def _operand(self, value: Any) -> Any:
        """A constant as kernels take it."""
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.kind == "f":
            return self._rounded(torch.from_numpy(value.astype(np.float32)))
        small = value.dtype in (np.int8, np.uint8, np.bool_)
        return torch.from_numpy(value.copy() if small else value.astype(np.int64))

    def _rounded(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        value = value.float()
        return value.half().float() if self._half else value

    def _is_separate(self, step: _Step, declared: Mapping[str, Value]) -> bool:
        computed = {
            parameter: [declared[name] for name in names if name in declared and name not in self._constants]
            for parameter, names in step.reads.items()
        }
        values = [value for given in computed.values() for value in given] + list(step.operation.makes)
        if any(value.shape is None or value.shape[:1] != (1,) for value in values):
            return False
        ranks = {parameter: len(given[0].shape or ()) for parameter, given in computed.items() if given}
        return _separate(step.operation.kind, step.constants, ranks, len(step.operation.makes[0].shape or ()))

    @torch.inference_mode()
    def _run(self, batch: Tensor, *, every: bool) -> dict[str, Tensor]:
        count = len(batch)
        known: dict[str, Any] = {self.program.inputs[0].name: self._rounded(batch)}
        kept: dict[str, Tensor] = {}
        for step in self._steps:
            made = self._compute(step, known, pictures=count if self.separate else None)
            known |= made
            if every:
                kept |= made
            for name in step.done_with:
                known.pop(name, None)
        wanted = kept | {name: self._lookup(known, name) for name in self.program.outputs}
        return {name: self._by_picture(name, value, count) for name, value in wanted.items()}

    def _by_picture(self, name: str, value: Tensor, count: int) -> Tensor:
        if name in self._constants:  # an output that no picture changes
            return value.expand(count, *value.shape)
        return value if self.separate else value.reshape(1, *value.shape[int(value.shape[:1] == (1,)) :])

    def _lookup(self, known: Mapping[str, Any], name: str) -> Any:
        return known[name] if name in known else self._constants[name]

    def _compute(self, step: _Step, known: Mapping[str, Any], *, pictures: int | None) -> dict[str, Tensor]:
        operation = step.operation
        given: dict[str, Any] = dict(step.constants)
        for parameter, names in step.reads.items():
            found = [self._lookup(known, name) for name in names]
            given[parameter] = found if parameter == "values" or len(found) != 1 else found[0]
        wide = torch.float32 if self._half else torch.float64
        call = _Call(given=given, results=len(operation.makes), wide=wide, pictures=pictures)
        try:
            made = OPERATIONS[operation.kind](call)
            values = [self._rounded(value) for value in (made if isinstance(made, list) else [made])]
            if len(values) != len(operation.makes):
                raise ValueError(f"{len(values)} results, {len(operation.makes)} declared")
            for value, declared in zip(values, operation.makes, strict=True):
                shape = declared.shape
                if pictures is not None and shape is not None:
                    shape = (pictures, *shape[1:])
                if shape is not None and tuple(value.shape) != shape:
                    raise ValueError(f"{declared.name!r} comes out as {tuple(value.shape)}, declared {shape}")
        except EdgefaceError:
            raise
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
            raise _broken(
                self.program.path,
                f"{operation.kind} of layer {operation.name!r} cannot be computed ({type(error).__name__}: {error})",
            ) from error
        return {declared.name: value for declared, value in zip(operation.makes, values, strict=True)}


def execute(
    path: Path, batch: NDArray[np.uint8], *, spec: ModelSpec | None = None, arithmetic: Arithmetic = "fp32"
) -> dict[str, NDArray[Any]]:
    """Every value that a package computes from pictures, to find the first layer that differs.

    Args:
        path: The .mlpackage.
        batch: (B, H, W, 3) RGB.
        spec: Its statistics, for a package that takes standardized values.
        arithmetic: "fp32" or "fp16".

    Returns:
        Value name to (B, …), in execution order, outputs included.

    Raises:
        ModelError: It is broken.
        UnsupportedError: It holds an operation that is not known here, or takes no pictures.
    """
    program = read_program(path)
    return Executor(program, arithmetic=arithmetic).run(_feed(program, batch, spec), every=True)


def _feed(program: Program, batch: NDArray[np.uint8], spec: ModelSpec | None) -> NDArray[np.float32]:
    """Pictures as the program's input without its leading 1.

    An ML program has no preprocessing but its operations: an image input is bytes as float32, channels first.
    """
    shape = program.inputs[0].shape if len(program.inputs) == 1 else None
    side = spec.input_px if spec is not None else program.picture[0] if program.picture is not None else 0
    if batch.dtype != np.uint8 or batch.ndim != 4 or (side and batch.shape[1:] != (side, side, 3)):
        raise ModelError(
            f"pictures {batch.dtype} {batch.shape}", expected=f"uint8 (B, {side}, {side}, 3)", where=str(program.path)
        )
    if program.picture is not None and program.picture[2] in ("RGB", "BGR") and shape == (1, 3, *batch.shape[1:3]):
        ordered = batch if program.picture[2] == "RGB" else batch[..., ::-1]
        return ordered.transpose(0, 3, 1, 2).astype(np.float32)
    if program.picture is None and spec is not None and shape == (1, *batch.shape[1:]):
        return standardize(batch, spec)
    raise UnsupportedError(
        f"inputs {[(value.name, value.dtype, value.shape) for value in program.inputs]}, picture {program.picture}",
        expected=f"one RGB image of {side} px: how a picture becomes other numbers is not written in the file",
        where=str(program.path),
        do="It can still be timed: edgeface bench",
    )


def macs(program: Program) -> int:
    """Multiply-accumulates of one picture in convolutions and linear layers, as their declared shapes tell."""
    sizes = {name: np.size(value) for name, value in program.constants.items()}
    sizes |= {name: math.prod(value.shape) for name, value in program.declared().items() if value.shape is not None}
    total = 0
    for operation in program.operations:
        if operation.kind in ("conv", "linear"):
            held = operation.constants.get("weight")
            size = np.size(held) if held is not None else sizes.get(operation.reads["weight"][0], 0)
            made = operation.makes[0].shape or ()
            total += int(size) * math.prod(made[2:] if operation.kind == "conv" else made[:-1])
    return total


def _minimal_spec(program: Program) -> ModelSpec:
    shapes = {name: value.shape for name, value in program.declared().items() if value.shape is not None}
    outputs = {name: shapes[name] for name in program.outputs if name in shapes}
    side = program.picture[0] if program.picture is not None else 0
    return minimal_spec(program.path.stem, side=side, outputs=outputs)


def observed_precision(program: Program) -> str:
    """The precision that a program's operations and constants show."""
    kinds = {operation.kind for operation in program.operations}
    if "quantize" in kinds:
        return "w8a8"
    if "constexpr_lut_to_dense" in kinds:
        return "p6"
    if kinds & {"constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"}:
        return "w8"
    return "fp16" if any(value.dtype == "fp16" for value in program.declared().values()) else "fp32"


_PROBE = """
import contextlib, sys
from pathlib import Path
from edgeface.errors import MissingToolError, ModelError, UnsupportedError
from targets.mil import MilRunner
try:
    with contextlib.suppress(MissingToolError, UnsupportedError):  # whoever opens the package next says the same
        MilRunner(Path(sys.argv[1]), spec=None, runtime="mil", precision="", threads=1).prepare(0)()
except ModelError as error:
    sys.exit(error.found)
"""


def probe(path: Path) -> None:
    """Load and run a package in a process of its own: its sizes could ask torch for all memory, or for hours.

    Raises:
        ModelError: It could not be run within `limits`.
    """
    try_apart(_PROBE, path, runtime="edgeface's executor of Core ML packages", expected="a whole .mlpackage")


class MilRunner:
    """A package in edgeface's own executor.

    Args:
        path: The .mlpackage.
        spec: Its input and outputs; None takes the outputs that are named after a task and have its size.
        runtime: What to call it: "mil" or "mil-fp16".
        precision: What its manifest calls it; "" reads it off the operations.
        threads: CPU threads.
        arithmetic: "fp32" or "fp16"; see the module.

    Raises:
        ModelError: It is broken, or lacks an output.
        UnsupportedError: It holds an operation that is not known here.
        MissingToolError: coremltools, which knows the protobuf, is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        spec: ModelSpec | None,
        runtime: str,
        precision: str,
        threads: int,
        arithmetic: Arithmetic = "fp32",
    ) -> None:
        self.path, self.runtime, self.threads = path, runtime, threads
        self._program = read_program(path)
        self._own = spec  # a float input of a file of ours is the standardized picture
        self.spec = spec or _minimal_spec(self._program)
        self.precision = precision or observed_precision(self._program)
        require_outputs(self.spec, self._program.outputs, where=str(path))
        self._executor = Executor(self._program, arithmetic=arithmetic)

    @property
    def size_bytes(self) -> int:
        return artifacts.size_bytes(self.path)

    @property
    def macs(self) -> int | None:
        return macs(self._program)

    @property
    def grids(self) -> Grids:
        """Empty: outputs leave in float."""
        return {}

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """See evaluate.Runner.run."""
        if len(batch) == 0:
            return {output.name: np.zeros((0, *output.shape), np.float32) for output in self.spec.outputs}
        with _threads(self.threads):
            values = self._executor.run(_feed(self._program, batch, self._own))
        return {
            output.name: values[output.name].astype(np.float32).reshape(len(batch), *output.shape)
            for output in self.spec.outputs
        }

    @property
    def inputs(self) -> tuple[Port, ...]:
        # Image inputs too are bytes as float32 to the operations, channels first.
        return tuple(Port(name=value.name, dtype="float32", shape=value.shape or ()) for value in self._program.inputs)

    @property
    def outputs(self) -> tuple[Port, ...]:
        shapes = {name: value.shape or () for name, value in self._program.declared().items()}
        return tuple(Port(name=name, dtype="float32", shape=shapes[name]) for name in self._program.outputs)

    @property
    def operations(self) -> Operations | None:
        """See FileRunner.operations: this executor says nothing of who would compute what on a device."""
        return None

    def answer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """See FileRunner.answer."""
        with _threads(self.threads):
            values = self._executor.run(np.asarray(batch, np.float32))
        return {name: values[name].astype(np.float32) for name in self._program.outputs}

    def hold(self, sample: NDArray[Any]) -> Callable[[], None]:
        """See FileRunner.hold."""
        values = np.asarray(sample, np.float32)

        def once() -> None:
            with _threads(self.threads):
                self._executor.run(values)

        return once

    def prepare(self, seed: int) -> Callable[[], None]:
        """See TimedRunner.prepare."""
        generator = np.random.default_rng(seed)
        shape = self._executor.shape
        if self._program.picture is not None:
            values = generator.integers(0, 256, shape).astype(np.float32)
        else:
            values = generator.uniform(-1.0, 1.0, shape).astype(np.float32)
        return self.hold(values)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
