"""The files: w8a8 carries the integer network to the bit, and the check that says so notices every kind of change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeface.errors import MissingToolError, ModelError, UnsupportedError
from edgeface.specs import STUDENTS
from quantize.graph import INPUT, Graph, macs, run, trace
from quantize.grid import Quantized, dequantize, simulate
from targets import tflite
from targets.litert import TfliteRunner

from .conftest import quantize_network, random_network, random_pictures, spec_of

WIDTHS = {"lightcnn9": 0.25, "tcdcn_relu": 0.5}


@pytest.fixture(scope="session")
def quantized_students() -> dict[str, Quantized]:
    return {name: quantize_network(random_network(name, width=WIDTHS.get(name, 0.25))) for name in STUDENTS}


@pytest.fixture(scope="session")
def int8_files(quantized_students: dict[str, Quantized], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("int8")
    files = {name: folder / f"{name}.tflite" for name in STUDENTS}
    for name, path in files.items():
        tflite.write_w8a8(quantized_students[name], path)
    return files


@pytest.fixture(scope="session")
def float_graph() -> Graph:
    return trace(random_network("edge_s"))


@pytest.fixture(scope="session")
def lowered(float_graph: Graph) -> tflite.Lowered:
    return tflite.lower(float_graph)


def codes_of(path: Path, pictures: NDArray[np.uint8], *, kernels: str = "AUTO") -> dict[str, NDArray[Any]]:
    """Raw outputs of a file under one of LiteRT's kernel sets."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=str(path), num_threads=1, experimental_op_resolver_type=getattr(OpResolverType, kernels)
    )
    runner = interpreter.get_signature_runner()
    rows = [{name: value.copy() for name, value in runner(image=picture[None]).items()} for picture in pictures]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def share_equal(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[np.int8]]) -> float:
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in expected)
    return float(np.mean(np.concatenate([(found[name] == expected[name]).ravel() for name in expected])))


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize(("kernels", "rounding"), [("AUTO", "xnnpack"), ("BUILTIN_REF", "tflite-builtin-ref")])
def test_int8_file_equals_the_simulator_bit_for_bit(
    student: str, kernels: str, rounding: Any, quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    pictures = random_pictures(12, 32)

    found = codes_of(int8_files[student], pictures, kernels=kernels)

    assert share_equal(found, simulate(quantized_students[student], pictures, kernels=rounding)) == 1.0


def test_simulator_of_one_changed_weight_differs_from_the_file_twin(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    quantized, pictures = quantized_students["edge_s"], random_pictures(12, 32)
    name = quantized.graph.outputs["landmarks5"]
    weight = quantized.weights[name].copy()
    weight[0] = np.where(weight[0] < 100, weight[0] + 20, weight[0] - 20)

    changed = replace(quantized, weights={**quantized.weights, name: weight})

    assert share_equal(codes_of(int8_files["edge_s"], pictures), simulate(changed, pictures)) < 1.0


@pytest.mark.parametrize("student", STUDENTS)
def test_int8_file_has_no_transpose_and_as_many_products_as_the_graph(
    student: str, quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    content = int8_files[student].read_bytes()
    operations = tflite.operations(content)

    assert operations[0] == "QUANTIZE"
    assert operations.count("QUANTIZE") == 1
    assert not {"TRANSPOSE", "DEQUANTIZE"} & set(operations)
    assert tflite.macs(content) == macs(quantized_students[student].graph)


def test_stride_of_two_needs_no_pad(int8_files: dict[str, Path]) -> None:
    assert "PAD" not in tflite.operations(int8_files["edge_s"].read_bytes())


def test_input_is_the_uint8_picture_and_outputs_carry_the_tasks_names(int8_files: dict[str, Path]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(int8_files["edge_s"]))
    (picture,) = interpreter.get_input_details()

    assert (picture["name"], picture["dtype"], tuple(picture["shape"])) == ("image", np.uint8, (1, 32, 32, 3))
    assert picture["quantization"] == (1 / 64, 128)
    assert interpreter.get_signature_list()["serving_default"] == {
        "inputs": ["image"],
        "outputs": ["gender", "landmarks5", "smile"],
    }
    shapes = {detail["name"]: tuple(detail["shape"]) for detail in interpreter.get_output_details()}
    assert shapes == {"gender": (1, 2), "landmarks5": (1, 5, 2), "smile": (1, 2)}


def test_file_holds_the_integers_of_the_network_as_its_interpreter_reads_them(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    quantized = quantized_students["edge_s"]
    interpreter = Interpreter(
        model_path=str(int8_files["edge_s"]),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    tensors = {detail["name"]: detail for detail in interpreter.get_tensor_details()}
    for name, weight in quantized.weights.items():
        detail = tensors[f"{name}/weight"]
        assert np.array_equal(detail["quantization_parameters"]["scales"], quantized.weight_scales[name])
        if weight.ndim == 4:
            stored = interpreter.get_tensor(detail["index"])
            assert stored.dtype == np.int8
            assert np.array_equal(stored, weight.transpose(0, 2, 3, 1))
        assert np.array_equal(interpreter.get_tensor(tensors[f"{name}/bias"]["index"]), quantized.biases[name])


def _one_weight_up(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["gender"]
    weight = quantized.weights[name].copy()
    weight[0, 0] += 1 if weight[0, 0] < 127 else -1
    return replace(quantized, weights={**quantized.weights, name: weight})


def _one_bias_up(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["gender"]
    bias = quantized.biases[name].copy()
    bias[1] += 1
    return replace(quantized, biases={**quantized.biases, name: bias})


def _next_weight_scale(quantized: Quantized) -> Quantized:
    name = quantized.graph.nodes[0].name
    scale = quantized.weight_scales[name].copy()
    scale[-1] = np.nextafter(scale[-1], np.float32(1.0))
    return replace(quantized, weight_scales={**quantized.weight_scales, name: scale})


def _next_scale(quantized: Quantized) -> Quantized:
    name = quantized.graph.nodes[1].name
    scale, zero_point = quantized.activations[name]
    moved = float(np.nextafter(np.float32(scale), np.float32(1.0)))
    return replace(quantized, activations={**quantized.activations, name: (moved, zero_point)})


def _next_zero_point(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["landmarks5"]
    scale, zero_point = quantized.activations[name]
    return replace(quantized, activations={**quantized.activations, name: (scale, zero_point + 1)})


def _input_zero_point(quantized: Quantized) -> Quantized:
    return replace(quantized, activations={**quantized.activations, INPUT: (1 / 64, 1)})


def _outputs_exchanged(quantized: Quantized) -> Quantized:
    outputs = dict(quantized.graph.outputs)
    outputs["gender"], outputs["smile"] = outputs["smile"], outputs["gender"]
    return replace(quantized, graph=replace(quantized.graph, outputs=outputs))


def _one_output_less(quantized: Quantized) -> Quantized:
    outputs = {name: node for name, node in quantized.graph.outputs.items() if name != "smile"}
    return replace(quantized, graph=replace(quantized.graph, outputs=outputs))


def _another_relu(quantized: Quantized) -> Quantized:
    nodes = tuple(
        replace(node, relu=not node.relu) if place == 1 else node for place, node in enumerate(quantized.graph.nodes)
    )
    return replace(quantized, graph=replace(quantized.graph, nodes=nodes))


def test_check_accepts_the_file_that_was_written(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    for student, path in int8_files.items():
        tflite.check_w8a8(path.read_bytes(), quantized_students[student])


@pytest.mark.parametrize(
    "change",
    [
        _one_weight_up,
        _one_bias_up,
        _next_weight_scale,
        _next_scale,
        _next_zero_point,
        _input_zero_point,
        _outputs_exchanged,
        _one_output_less,
        _another_relu,
    ],
)
def test_check_notices_any_difference_twin(
    change: Callable[[Quantized], Quantized], quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    with pytest.raises(ModelError, match="layer"):
        tflite.check_w8a8(int8_files["edge_s"].read_bytes(), change(quantized_students["edge_s"]))


def test_check_notices_a_float_file_twin(lowered: tflite.Lowered, quantized_students: dict[str, Quantized]) -> None:
    with pytest.raises(ModelError, match="FLOAT32"):
        tflite.check_w8a8(lowered.content, quantized_students["edge_s"])


def test_dead_channel_keeps_its_scale(tmp_path: Path) -> None:
    """A channel of zeros, whose scale a converter that recomputes it from the weights gets wrong."""
    network = random_network("cnn5")
    with torch.no_grad():
        head = network.heads["gender"]
        assert isinstance(head, torch.nn.Linear)
        head.weight[0] = 0.0
        head.bias.zero_()
    quantized = quantize_network(network)

    tflite.write_w8a8(quantized, tmp_path / "dead.tflite")

    pictures = random_pictures(4, 32)
    assert share_equal(codes_of(tmp_path / "dead.tflite", pictures), simulate(quantized, pictures)) == 1.0


def test_two_equal_heads_are_refused_by_name(tmp_path: Path) -> None:
    """The converter computes them once, and one of two QAT scales would be lost."""
    network = random_network("cnn5")
    network.heads["smile"].load_state_dict(network.heads["gender"].state_dict())

    with pytest.raises(ModelError, match="heads_"):
        tflite.write_w8a8(quantize_network(network), tmp_path / "equal.tflite")
    assert not any(tmp_path.iterdir())


def test_picture_with_other_statistics_is_refused_for_int8(
    quantized_students: dict[str, Quantized], tmp_path: Path
) -> None:
    quantized = quantized_students["edge_s"]
    other = replace(quantized, graph=replace(quantized.graph, mean=(123.675, 116.28, 103.53)))

    with pytest.raises(UnsupportedError, match="mean 128"):
        tflite.write_w8a8(other, tmp_path / "other.tflite")
    assert not any(tmp_path.iterdir())


def sqnr_db(graph: Graph, path: Path) -> float:
    """Least signal-to-noise ratio of a float file's outputs against the graph's, in dB."""
    pictures = random_pictures(8, graph.input_px)
    expected = run(graph, torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
    found = codes_of(path, pictures)
    assert found.keys() == expected.keys()
    ratios = []
    for name, value in expected.items():
        noise = found[name].astype(np.float64) - value.numpy()
        ratios.append(10 * np.log10(np.square(value.numpy()).sum() / np.square(noise).sum()))
    return float(min(ratios))


# float32 sums in another order keep 120 dB here; half-float weights (2^-12 relative) 60; dynamic int8 about 30.
@pytest.mark.parametrize(
    ("write", "floor_db"),
    [(tflite.write_fp32, 100.0), (tflite.write_fp16, 50.0), (tflite.write_w8a32, 20.0)],
)
def test_float_files_compute_the_graph(
    write: Callable[[tflite.Lowered, Path], None],
    floor_db: float,
    lowered: tflite.Lowered,
    float_graph: Graph,
    tmp_path: Path,
) -> None:
    write(lowered, tmp_path / "file.tflite")

    assert sqnr_db(float_graph, tmp_path / "file.tflite") > floor_db


def test_float_file_of_a_changed_layer_differs_twin(
    lowered: tflite.Lowered, float_graph: Graph, tmp_path: Path
) -> None:
    tflite.write_fp32(lowered, tmp_path / "file.tflite")
    name = float_graph.nodes[0].name
    weights = {**float_graph.weights, name: float_graph.weights[name].flip(0)}

    # Above the floor of none of the precisions: a wrong layer cannot pass for rounding.
    assert sqnr_db(replace(float_graph, weights=weights), tmp_path / "file.tflite") < 15.0


def test_network_with_other_statistics_is_built_in_float(float_graph: Graph, tmp_path: Path) -> None:
    graph = replace(float_graph, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))

    tflite.write_fp32(tflite.lower(graph), tmp_path / "file.tflite")

    assert sqnr_db(graph, tmp_path / "file.tflite") > 100.0


def test_half_floats_halve_the_file_and_int8_quarters_it(lowered: tflite.Lowered, tmp_path: Path) -> None:
    sizes = {}
    for write in (tflite.write_fp32, tflite.write_fp16, tflite.write_w8a32):
        write(lowered, tmp_path / "file.tflite")
        sizes[write] = (tmp_path / "file.tflite").stat().st_size

    # 12 kB of names, shapes and biases do not shrink.
    assert sizes[tflite.write_fp16] < sizes[tflite.write_fp32] / 2 + 12_000
    assert sizes[tflite.write_w8a32] < sizes[tflite.write_fp32] / 4 + 12_000


def test_same_graph_gives_the_same_file(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path], tmp_path: Path
) -> None:
    tflite.write_w8a8(quantized_students["cnn5"], tmp_path / "again.tflite")

    assert (tmp_path / "again.tflite").read_bytes() == int8_files["cnn5"].read_bytes()


def test_runner_dequantizes_as_the_grid_says(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    from edgeface.specs import NetworkSpec

    quantized, pictures = quantized_students["edge_s"], random_pictures(5, 32)
    spec = spec_of(NetworkSpec(backbone="edge_s", input_px=32))

    runner = TfliteRunner(int8_files["edge_s"], spec=spec, runtime="tflite-xnnpack", precision="w8a8", threads=1)
    found, expected = runner.run(pictures), dequantize(quantized, simulate(quantized, pictures))

    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert dict(runner.grids) == {name: quantized.output_grid(name) for name in expected}


def test_missing_tool_kit_is_named(monkeypatch: pytest.MonkeyPatch, float_graph: Graph) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "litert_torch", None)

    with pytest.raises(MissingToolError, match="pip install"):
        tflite.lower(float_graph)
