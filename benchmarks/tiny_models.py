"""The smallest files of each format that use what edgeface's readers read: what fuzzing and hostile tests start from.

    python -m benchmarks.tiny_models onnx|openvino|coreml|tflite FOLDER

Each is a network of a picture (1, 8, 8, 3) or (1, 3, 8, 8) to `gender` (1, 2), once in float and once quantized. It is
written by a process of its own, so that none of the converters stays in the process that reads.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
SIDE, CHANNELS = 8, 4
_DRAWN = np.random.default_rng(3)
KERNEL: NDArray[np.float32] = _DRAWN.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32)
MATRIX: NDArray[np.float32] = _DRAWN.normal(size=(2, CHANNELS)).astype(np.float32)
BIAS: NDArray[np.float32] = _DRAWN.normal(size=CHANNELS).astype(np.float32)


def onnx_files(folder: Path) -> None:
    """float.onnx, and int8.onnx with quantize and dequantize nodes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str, values: Any) -> Any:
        return numpy_helper.from_array(np.asarray(values), name)

    picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIDE, SIDE))
    answer = helper.make_tensor_value_info("gender", TensorProto.FLOAT, (1, 2))
    tail = [
        helper.make_node("Relu", ["map"], ["positive"], name="relu"),
        helper.make_node("GlobalAveragePool", ["positive"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["row"], name="flatten", axis=1),
        helper.make_node("Gemm", ["row", "matrix"], ["gender"], name="gemm", transB=1),
    ]
    held = [tensor("bias", BIAS), tensor("matrix", MATRIX)]
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    plain = [helper.make_node("Conv", ["image", "kernel", "bias"], ["map"], name="conv", **conv), *tail]
    codes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["codes"], name="quantize"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["real"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["kernel", "scales", "zeros"], ["weight"], name="weights", axis=0),
        helper.make_node("Conv", ["real", "weight", "bias"], ["map"], name="conv", **conv),
        *tail,
    ]
    integers = [
        *(tensor("kernel", (KERNEL * 40).astype(np.int8)), tensor("scales", np.full(CHANNELS, 0.025, np.float32))),
        *(tensor("zeros", np.zeros(CHANNELS, np.int8)), tensor("scale", np.float32(0.02))),
        tensor("zero", np.int8(-3)),
    ]
    for name, nodes, constants in (
        ("float.onnx", plain, [tensor("kernel", KERNEL), *held]),
        ("int8.onnx", codes, [*integers, *held]),
    ):
        graph = helper.make_graph(nodes, "tiny", [picture], [answer], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        (folder / name).write_bytes(model.SerializeToString())


def openvino_files(folder: Path) -> None:
    """float.xml and int8.xml with a .bin each."""
    import openvino
    from openvino import opset8 as ops

    picture = ops.parameter([1, 3, SIDE, SIDE], np.float32, name="image")

    def network(x: Any, kernel: Any) -> Any:
        made = ops.convolution(x, kernel, [2, 2], [1, 1], [1, 1], [1, 1])
        made = ops.relu(ops.add(made, ops.constant(BIAS.reshape(1, -1, 1, 1))))
        row = ops.reduce_mean(made, ops.constant(np.array([2, 3], np.int64)), keep_dims=False)
        answer = ops.matmul(row, ops.constant(MATRIX), False, True)
        answer.output(0).set_names({"gender"})
        return openvino.Model([answer], [picture], "tiny")

    picture.output(0).set_names({"image"})
    low, high = (ops.constant(np.float32(value)) for value in (-2.0, 2.0))
    codes = ops.convert(ops.constant((KERNEL * 40).astype(np.int8)), "f32")
    weight = ops.multiply(codes, ops.constant(np.full((CHANNELS, 1, 1, 1), 0.025, np.float32)))
    for name, model in (
        ("float.xml", network(picture, ops.constant(KERNEL))),
        ("int8.xml", network(ops.fake_quantize(picture, low, high, low, high, 256), weight)),
    ):
        openvino.save_model(model, folder / name, compress_to_fp16=False)


def coreml_files(folder: Path) -> None:
    """float.mlpackage, and int8.mlpackage of int8 weights and activations and a palette."""
    import coremltools
    from coremltools.converters.mil import Builder as mb  # noqa: N813 (as its documentation calls it)
    from coremltools.converters.mil import mil

    target = coremltools.target.iOS17

    def plain(x: Any) -> Any:
        made = mb.conv(x=x, weight=KERNEL, bias=BIAS, strides=(2, 2), pad_type="custom", pad=(1, 1, 1, 1))
        halves = mb.split(x=mb.relu(x=made), num_splits=2, axis=1)
        row = mb.reduce_mean(x=mb.maximum(x=halves[0], y=halves[1]), axes=(2, 3), keep_dims=False)
        return mb.linear(x=row, weight=MATRIX[:, :2], name="gender")

    def integers(x: Any) -> Any:
        codes = mb.quantize(input=x, scale=np.float32(0.02), zero_point=np.int8(-3), output_dtype="int8")
        real = mb.dequantize(input=codes, scale=np.float32(0.02), zero_point=np.int8(-3))
        weight = mb.constexpr_affine_dequantize(
            quantized_data=(KERNEL * 40).astype(np.int8),
            zero_point=np.int8(0),
            scale=np.full(CHANNELS, 0.025, np.float32),
            axis=0,
        )
        made = mb.max_pool(x=mb.conv(x=real, weight=weight), kernel_sizes=(2, 2), strides=(2, 2), pad_type="valid")
        row = mb.reshape(x=mb.reduce_sum(x=made, axes=(2, 3), keep_dims=True), shape=(1, CHANNELS))
        palette = mb.constexpr_lut_to_dense(
            indices=np.array([0b11100100, 0b00011011], np.uint8),
            lut=np.array([-1.0, -0.5, 0.5, 1.0], np.float32),
            shape=np.array([2, CHANNELS], np.uint32),
        )
        return mb.linear(x=row, weight=palette, name="gender")

    for name, build in (("float", plain), ("int8", integers)):
        program = mil.Program()
        shape = (1, 3, SIDE, SIDE)
        placeholder = mb.placeholder(shape, dtype=mil.types.fp32)
        with mil.Function({"image": placeholder}, opset_version=target) as function:
            function.set_outputs([build(function.inputs["image"])])
        program.add_function("main", function)
        coremltools.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            inputs=[coremltools.TensorType(name="image", shape=shape, dtype=np.float32)],
            minimum_deployment_target=target,
            compute_precision=coremltools.precision.FLOAT32,
            pass_pipeline=coremltools.PassPipeline.EMPTY,
            skip_model_load=True,
        ).save(str(folder / f"{name}.mlpackage"))


def tflite_files(folder: Path) -> None:
    """int8.tflite, a convolution with weights of a scale per channel."""
    from benchmarks.fuzz.bundles import small_tflite

    (folder / "int8.tflite").write_bytes(small_tflite())


MAKERS: dict[str, Callable[[Path], None]] = {
    "onnx": onnx_files,
    "openvino": openvino_files,
    "coreml": coreml_files,
    "tflite": tflite_files,
}


def make_apart(kind: str, folder: Path) -> None:
    """Write the files of a format into a folder, from a process of its own.

    Raises:
        ImportError: Its tool-kit is not installed, or does not work.
    """
    argv = [sys.executable, "-m", "benchmarks.tiny_models", kind, str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    if done.returncode != 0:
        raise ImportError(f"{kind}: {done.stderr.strip().splitlines()[-1:]}")


if __name__ == "__main__":
    MAKERS[sys.argv[1]](Path(sys.argv[2]))
