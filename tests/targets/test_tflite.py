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
from edgeface.specs import STUDENTS, NetworkSpec
from quantize.graph import INPUT, Graph, macs, run, trace
from quantize.grid import Quantized, dequantize, simulate, snap
from targets import flatbuffer, tflite
from targets.flatbuffer import Flatbuffer
from targets.litert import TfliteRunner, delegated
from targets.tflite_check import check_float, check_w8a8

from .conftest import quantize_network, random_network, random_pictures, spec_of

WIDTHS = {"lightcnn9": 0.25, "tcdcn_relu": 0.5}
FLOATS = ("fp32", "fp16", "w8a32")
MODEL = spec_of(NetworkSpec(backbone="edge_s", width=0.25, input_px=32))


@pytest.fixture(scope="session")
def quantized_students() -> dict[str, Quantized]:
    return {name: quantize_network(random_network(name, width=WIDTHS.get(name, 0.25))) for name in STUDENTS}


@pytest.fixture(scope="session")
def int8_files(quantized_students: dict[str, Quantized], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("int8")
    files = {name: folder / f"{name}.tflite" for name in STUDENTS}
    for name, path in files.items():
        write_w8a8(quantized_students[name], path)
    return files


@pytest.fixture(scope="session")
def float_graph() -> Graph:
    return trace(random_network("edge_s"))


@pytest.fixture(scope="session")
def float_files(float_graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("float")
    files = {precision: folder / f"edge_s.{precision}.tflite" for precision in FLOATS}
    tflite.write(files, graph=float_graph, quantized=None, model=MODEL)
    return files


def write_w8a8(quantized: Quantized, path: Path, *, float_input: bool = False) -> None:
    tflite.write({"w8a8": path}, graph=None, quantized=quantized, model=MODEL, float_input=float_input)


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
@pytest.mark.parametrize(
    ("kernels", "rounding"),
    [
        ("AUTO", "xnnpack"),
        ("BUILTIN_REF", "tflite-builtin-ref"),
        ("BUILTIN_WITHOUT_DEFAULT_DELEGATES", "tflite-builtin"),
    ],
)
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
    operations = flatbuffer.operations(content)

    assert operations[0] == "QUANTIZE"
    assert operations.count("QUANTIZE") == 1
    assert not {"TRANSPOSE", "PAD", "DEQUANTIZE", "DEPTHWISE_CONV_2D"} & set(operations)
    assert flatbuffer.macs(content) == macs(quantized_students[student].graph)


@pytest.mark.parametrize("student", STUDENTS)
def test_xnnpack_takes_everything_but_the_picture_and_the_maxima(student: str, int8_files: dict[str, Path]) -> None:
    """It has no QUANTIZE from uint8 to int8 and no int8 MAXIMUM; the halves of a max-feature-map it does cut."""
    left = {op for op, (taken, total) in delegated(int8_files[student]).items() if taken < total}

    assert left == {"QUANTIZE"} | ({"MAXIMUM"} if student == "lightcnn9" else set())


def test_xnnpack_takes_every_float_operation(float_files: dict[str, Path]) -> None:
    for path in float_files.values():
        assert all(taken == total for taken, total in delegated(path).values())


def test_count_of_delegated_operations_sees_a_stranger_twin(int8_files: dict[str, Path], tmp_path: Path) -> None:
    """An operation that XNNPACK does not have, in the middle of the file."""
    file = Flatbuffer(int8_files["edge_s"].read_bytes())
    operator = next(o for o in file.operators if file.kind(o) == "FULLY_CONNECTED")
    source = int(operator.inputs[0])
    signs = file.add_tensor("signs", file.shape(source), "FLOAT32")
    wide = file.add_tensor("wide", file.shape(source), "FLOAT32")
    back = file.add_tensor("back", file.shape(source), "INT8")
    file.set_grid(back, file.scales(source), file.zero_points(source))
    way = [
        file.operator("DEQUANTIZE", [source], [wide], version=2),
        file.operator("SIGN", [wide], [signs]),
        file.operator("QUANTIZE", [signs], [back]),
    ]
    place = file.operators.index(operator)
    file.operators[place:place] = way
    operator.inputs = [back, *operator.inputs[1:]]
    (tmp_path / "stranger.tflite").write_bytes(file.pack())

    found = delegated(tmp_path / "stranger.tflite")

    assert found["SIGN"] == (0, 1)
    assert found["CONV_2D"] == delegated(int8_files["edge_s"])["CONV_2D"]


def test_int8_operations_carry_the_versions_that_older_runtimes_check(int8_files: dict[str, Path]) -> None:
    file = Flatbuffer(int8_files["edge_s"].read_bytes())
    versions = {file.kind(operator): file.version(operator) for operator in file.operators}

    assert versions == {"QUANTIZE": 1, "CONV_2D": 3, "RESHAPE": 1, "FULLY_CONNECTED": 5}


def test_constants_lie_on_sixteen_bytes(int8_files: dict[str, Path]) -> None:
    """As the schema asks; runtimes read weights where they lie in the file."""
    content = int8_files["edge_s"].read_bytes()
    file = Flatbuffer(content)
    for index in range(len(file.tensors)):
        values = file.constant(index)
        if values is not None and values.nbytes > 64 and values.any():
            assert content.index(values.tobytes()) % 16 == 0


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
        check_w8a8(path.read_bytes(), quantized_students[student])


def _another_stride(quantized: Quantized) -> Quantized:
    nodes = tuple(
        replace(node, stride=(3 - node.stride[0], node.stride[1])) if place == 1 else node
        for place, node in enumerate(quantized.graph.nodes)
    )
    return replace(quantized, graph=replace(quantized.graph, nodes=nodes))


def _another_padding(quantized: Quantized) -> Quantized:
    nodes = tuple(
        replace(node, padding=(1, 1, 1, 1)) if place == 0 else node for place, node in enumerate(quantized.graph.nodes)
    )
    return replace(quantized, graph=replace(quantized.graph, nodes=nodes))


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
        _another_stride,
        _another_padding,
    ],
)
def test_check_notices_any_difference_twin(
    change: Callable[[Quantized], Quantized], quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    with pytest.raises(ModelError, match="layer"):
        check_w8a8(int8_files["edge_s"].read_bytes(), change(quantized_students["edge_s"]))


def test_check_notices_a_float_file_twin(
    float_files: dict[str, Path], quantized_students: dict[str, Quantized]
) -> None:
    with pytest.raises(ModelError, match="layer"):
        check_w8a8(float_files["fp32"].read_bytes(), quantized_students["edge_s"])


def _transposed(file: Flatbuffer) -> None:
    """The last layer's operand turned over and back."""
    operator = next(o for o in file.operators if file.kind(o) == "FULLY_CONNECTED")
    source = int(operator.inputs[0])
    order = file.add_constant("order", np.array([0, 1], np.int32))
    moved = file.add_tensor("moved", file.shape(source), file.dtype(source))
    file.set_grid(moved, file.scales(source), file.zero_points(source))
    file.operators.insert(file.operators.index(operator), file.operator("TRANSPOSE", [source, order], [moved]))
    operator.inputs = [moved, *operator.inputs[1:]]


def _padded(file: Flatbuffer) -> None:
    """The second convolution's SAME written as PAD and VALID."""
    operator = [o for o in file.operators if file.kind(o) == "CONV_2D"][1]
    source = int(operator.inputs[0])
    one, rows, columns, channels = file.shape(source)
    pads = file.add_constant("pads", np.array([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32))
    padded = file.add_tensor("padded", (one, rows + 1, columns + 1, channels), file.dtype(source))
    file.set_grid(padded, file.scales(source), file.zero_points(source))
    file.operators.insert(file.operators.index(operator), file.operator("PAD", [source, pads], [padded]))
    operator.inputs = [padded, *operator.inputs[1:]]
    operator.builtinOptions.padding = flatbuffer.enum("Padding", "VALID")


def _outputs_swapped(file: Flatbuffer) -> None:
    first, second = (entry for entry in file.model.signatureDefs[0].outputs if entry.name in (b"gender", b"smile"))
    first.tensorIndex, second.tensorIndex = second.tensorIndex, first.tensorIndex


@pytest.mark.parametrize(
    ("change", "reason"),
    [(_transposed, "TRANSPOSE"), (_padded, "PAD"), (_outputs_swapped, "values of")],
)
@pytest.mark.parametrize("precision", [*FLOATS, "w8a8"])
def test_check_notices_a_changed_structure_twin(
    change: Callable[[Flatbuffer], None],
    reason: str,
    precision: str,
    float_files: dict[str, Path],
    int8_files: dict[str, Path],
    float_graph: Graph,
    quantized_students: dict[str, Quantized],
) -> None:
    path = int8_files["edge_s"] if precision == "w8a8" else float_files[precision]
    file = Flatbuffer(path.read_bytes())
    change(file)

    def check(content: bytes) -> None:
        if precision == "w8a8":
            check_w8a8(content, quantized_students["edge_s"])
        else:
            check_float(content, float_graph, precision=precision)

    check(path.read_bytes())
    with pytest.raises(ModelError, match=reason):
        check(file.pack())


@pytest.mark.parametrize("precision", FLOATS)
def test_check_of_a_float_file_notices_weights_and_precision_twin(
    precision: str, float_files: dict[str, Path], float_graph: Graph
) -> None:
    content = float_files[precision].read_bytes()
    check_float(content, float_graph, precision=precision)
    name = float_graph.outputs["gender"]
    weight = float_graph.weights[name].clone()
    weight[0, 0] += weight.abs().max() / 64  # two steps of int8
    other = "fp16" if precision == "fp32" else "fp32"

    with pytest.raises(ModelError, match="layer"):
        check_float(content, replace(float_graph, weights={**float_graph.weights, name: weight}), precision=precision)
    with pytest.raises(ModelError, match="weight"):
        check_float(content, float_graph, precision=other)
    with pytest.raises(ModelError, match="image"):
        check_float(content, replace(float_graph, mean=(64.0,) * 3), precision=precision)


def test_dead_channel_keeps_its_scale(tmp_path: Path) -> None:
    """A channel of zeros, whose scale a converter that recomputes it from the weights gets wrong."""
    network = random_network("cnn5")
    with torch.no_grad():
        head = network.heads["gender"]
        assert isinstance(head, torch.nn.Linear)
        head.weight[0] = 0.0
        head.bias.zero_()
    quantized = quantize_network(network)

    write_w8a8(quantized, tmp_path / "dead.tflite")

    pictures = random_pictures(4, 32)
    assert share_equal(codes_of(tmp_path / "dead.tflite", pictures), simulate(quantized, pictures)) == 1.0


def test_two_equal_heads_keep_a_grid_each(tmp_path: Path) -> None:
    """A converter that sees the weights computes them once, and one of two QAT scales is lost."""
    network = random_network("cnn5")
    network.heads["smile"].load_state_dict(network.heads["gender"].state_dict())
    quantized = quantize_network(network)
    scale, zero_point = quantized.output_grid("smile")
    grids = {**quantized.activations, quantized.graph.outputs["smile"]: (scale * 2, zero_point)}
    quantized = replace(quantized, activations=grids)

    write_w8a8(quantized, tmp_path / "equal.tflite")

    pictures = random_pictures(4, 32)
    found = codes_of(tmp_path / "equal.tflite", pictures)
    assert share_equal(found, simulate(quantized, pictures)) == 1.0
    assert not np.array_equal(found["gender"], found["smile"])


def test_picture_with_other_statistics_is_refused_for_int8(
    quantized_students: dict[str, Quantized], tmp_path: Path
) -> None:
    quantized = quantized_students["edge_s"]
    other = replace(quantized, graph=replace(quantized.graph, mean=(123.675, 116.28, 103.53)))

    with pytest.raises(UnsupportedError, match="mean 128"):
        write_w8a8(other, tmp_path / "other.tflite")
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
@pytest.mark.parametrize(("precision", "floor_db"), [("fp32", 100.0), ("fp16", 50.0), ("w8a32", 20.0)])
def test_float_files_compute_the_graph(
    precision: str, floor_db: float, float_files: dict[str, Path], float_graph: Graph
) -> None:
    assert sqnr_db(float_graph, float_files[precision]) > floor_db


def test_float_file_of_a_changed_layer_differs_twin(float_files: dict[str, Path], float_graph: Graph) -> None:
    name = float_graph.nodes[0].name
    weights = {**float_graph.weights, name: float_graph.weights[name].flip(0)}

    # Above the floor of none of the precisions: a wrong layer cannot pass for rounding.
    assert sqnr_db(replace(float_graph, weights=weights), float_files["fp32"]) < 15.0


def test_network_with_other_statistics_is_built_in_float(float_graph: Graph, tmp_path: Path) -> None:
    graph = replace(float_graph, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))

    tflite.write({"fp32": tmp_path / "file.tflite"}, graph=graph, quantized=None, model=MODEL)

    assert sqnr_db(graph, tmp_path / "file.tflite") > 100.0
    with pytest.raises(ModelError, match="image"):
        check_float((tmp_path / "file.tflite").read_bytes(), replace(graph, std=(58.395,) * 3), precision="fp32")


def test_half_floats_halve_the_file_and_int8_quarters_it(float_files: dict[str, Path]) -> None:
    sizes = {precision: path.stat().st_size for precision, path in float_files.items()}

    # 12 kB of names, shapes and biases do not shrink.
    assert sizes["fp16"] < sizes["fp32"] / 2 + 12_000
    assert sizes["w8a32"] < sizes["fp32"] / 4 + 12_000


@pytest.mark.parametrize("precision", [*FLOATS, "w8a8"])
def test_float_input_answers_as_the_picture_does(
    precision: str,
    float_graph: Graph,
    quantized_students: dict[str, Quantized],
    float_files: dict[str, Path],
    int8_files: dict[str, Path],
    tmp_path: Path,
) -> None:
    """(x − 128)/64 is exact in float32, so nothing may differ."""
    path, quantized = tmp_path / "floating.tflite", quantized_students["edge_s"]
    tflite.write({precision: path}, graph=float_graph, quantized=quantized, model=MODEL, float_input=True)
    pictures = random_pictures(4, 32)

    floating = TfliteRunner(path, spec=MODEL, runtime="tflite-xnnpack", precision=precision, threads=1)
    usual = int8_files["edge_s"] if precision == "w8a8" else float_files[precision]
    expected = TfliteRunner(usual, spec=MODEL, runtime="tflite-xnnpack", precision=precision, threads=1).run(pictures)

    found = floating.run(pictures)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    # Twin: the statistics are those of the spec, not of the runner.
    other = TfliteRunner(
        path, spec=replace(MODEL, std=(32.0,) * 3), runtime="tflite-xnnpack", precision=precision, threads=1
    )
    assert not np.array_equal(other.run(pictures)["gender"], expected["gender"])


def test_float_input_with_other_statistics_needs_no_arithmetic(float_graph: Graph, tmp_path: Path) -> None:
    statistics = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    graph, model = replace(float_graph, **statistics), replace(MODEL, **statistics)  # type: ignore[arg-type]
    path = tmp_path / "file.tflite"

    tflite.write({"fp32": path}, graph=graph, quantized=None, model=model, float_input=True)

    pictures = random_pictures(4, 32)
    expected = run(graph, torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
    found = TfliteRunner(path, spec=model, runtime="tflite-xnnpack", precision="fp32", threads=1).run(pictures)
    assert not {"CAST", "SUB", "DIV", "DEQUANTIZE"} & set(flatbuffer.operations(path.read_bytes()))
    # float32 sums in another order; outputs are of order 1.
    assert all(np.allclose(found[name], value.numpy(), atol=1e-4) for name, value in expected.items())


def test_same_graph_gives_the_same_file(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path], tmp_path: Path
) -> None:
    write_w8a8(quantized_students["cnn5"], tmp_path / "again.tflite")

    assert (tmp_path / "again.tflite").read_bytes() == int8_files["cnn5"].read_bytes()


def test_runner_dequantizes_as_the_grid_says(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    quantized, pictures = quantized_students["edge_s"], random_pictures(5, 32)

    runner = TfliteRunner(int8_files["edge_s"], spec=MODEL, runtime="tflite-xnnpack", precision="w8a8", threads=1)
    found, expected = runner.run(pictures), dequantize(quantized, simulate(quantized, pictures))

    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert dict(runner.grids) == {name: quantized.output_grid(name) for name in expected}


def mixed(student: str, quantized: Quantized, *floats: str) -> Quantized:
    """The same student with layers of its own float weights left in float."""
    graph = trace(random_network(student, width=WIDTHS.get(student, 0.25)))
    return snap(graph, activations=quantized.activations, floats=frozenset(floats))


def _first(graph: Graph) -> str:
    return graph.nodes[0].name


def _second_and_an_output(graph: Graph) -> tuple[str, str]:
    return [node.name for node in graph.nodes if node.op == "conv2d"][1], graph.outputs["landmarks5"]


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("choice", ["first", "middle and output", "all"])
def test_layers_left_in_float_answer_as_the_specification_says(
    student: str, choice: str, quantized_students: dict[str, Quantized], tmp_path: Path
) -> None:
    graph = quantized_students[student].graph
    floats = {
        "first": (_first(graph),),
        "middle and output": _second_and_an_output(graph),
        "all": tuple(graph.weights),
    }[choice]
    quantized, pictures = mixed(student, quantized_students[student], *floats), random_pictures(6, 32)

    write_w8a8(quantized, tmp_path / "mixed.tflite")

    found = codes_of(tmp_path / "mixed.tflite", pictures)
    expected = simulate(quantized, pictures)
    for name, values in expected.items():
        assert found[name].dtype == (np.float32 if quantized.is_float(name) else np.int8)
        # float32 sums in another order fall on the other side of a rounding now and then: one code in a few hundred
        # inside the network, which later layers spread to a few steps of an output.
        step = 1.0 if not quantized.is_float(name) else quantized.output_grid(name)[0]
        assert np.mean(np.abs(found[name].astype(np.float64) - values) <= step) > 0.95
    runner = TfliteRunner(tmp_path / "mixed.tflite", spec=MODEL, runtime="tflite-xnnpack", precision="w8a8", threads=1)
    assert set(runner.grids) == {name for name in expected if not quantized.is_float(name)}
    # Twin: the layers make a difference.
    whole = dequantize(quantized_students[student], simulate(quantized_students[student], pictures))
    assert not all(np.array_equal(dequantize(quantized, expected)[name], whole[name]) for name in whole)


def test_check_demands_exactly_the_float_layers_twin(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path], tmp_path: Path
) -> None:
    plain = quantized_students["edge_s"]
    first, output = _first(plain.graph), plain.graph.outputs["gender"]
    quantized = mixed("edge_s", plain, first, output)
    write_w8a8(quantized, tmp_path / "mixed.tflite")
    content = (tmp_path / "mixed.tflite").read_bytes()

    check_w8a8(content, quantized)
    for other in (plain, mixed("edge_s", plain, first), mixed("edge_s", plain, output)):
        with pytest.raises(ModelError, match="layer"):
            check_w8a8(content, other)
    with pytest.raises(ModelError, match="layer"):
        check_w8a8(int8_files["edge_s"].read_bytes(), quantized)


def test_check_demands_a_rounding_between_two_float_layers_twin(
    quantized_students: dict[str, Quantized], tmp_path: Path
) -> None:
    plain = quantized_students["edge_s"]
    first, second = (node.name for node in plain.graph.nodes[:2])
    quantized = mixed("edge_s", plain, first, second)
    write_w8a8(quantized, tmp_path / "mixed.tflite")
    file = Flatbuffer((tmp_path / "mixed.tflite").read_bytes())
    one, two = [operator for operator in file.operators if file.kind(operator) == "CONV_2D"][:2]
    two.inputs = [int(one.outputs[0]), *two.inputs[1:]]

    with pytest.raises(ModelError, match="not rounded"):
        check_w8a8(file.pack(), quantized)


def test_missing_tool_kit_is_named(monkeypatch: pytest.MonkeyPatch, float_graph: Graph) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "litert_torch", None)

    with pytest.raises(MissingToolError, match="pip install"):
        tflite.lower(replace(tflite.structure_of(float_graph), input_px=16))


def test_one_conversion_serves_the_float_and_the_int8_student(
    float_graph: Graph, quantized_students: dict[str, Quantized], int8_files: dict[str, Path], tmp_path: Path
) -> None:
    laps: list[str] = []
    files = {precision: tmp_path / f"{precision}.tflite" for precision in ("fp32", "w8a8")}

    tflite.write(files, graph=float_graph, quantized=quantized_students["edge_s"], model=MODEL, lap=laps.append)

    assert laps == ["convert", "write fp32", "write w8a8"]
    assert files["w8a8"].read_bytes() == int8_files["edge_s"].read_bytes()
    # Twin: another structure is converted anew.
    laps.clear()
    tflite.write(files, graph=float_graph, quantized=quantized_students["cnn5"], model=MODEL, lap=laps.append)
    assert laps == ["convert", "write fp32", "convert", "write w8a8"]


def test_garbage_collection_is_as_it_was_after_a_conversion(float_graph: Graph) -> None:
    import gc

    assert gc.isenabled()
    with pytest.raises(ModelError):
        tflite.lower(replace(tflite.structure_of(float_graph), shapes=()))
    assert gc.isenabled()


def test_file_says_what_it_is(int8_files: dict[str, Path], tmp_path: Path) -> None:
    note = tflite.read_note(int8_files["edge_s"])
    file = Flatbuffer(int8_files["edge_s"].read_bytes())
    file.set_metadata("edgeface", b"[1]")
    (tmp_path / "other.tflite").write_bytes(file.pack())

    assert (note["schema"], note["precision"], note["model"]["name"]) == (1, "w8a8", "edge_s")
    assert tflite.read_note(tmp_path / "other.tflite") == {}


def test_precision_without_its_network_is_refused(float_graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="w8a8"):
        tflite.write({"w8a8": tmp_path / "x.tflite"}, graph=float_graph, quantized=None, model=MODEL)
    assert not any(tmp_path.iterdir())
