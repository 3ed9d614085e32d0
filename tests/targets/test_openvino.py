"""The IR files: int8 ones compute the integer grid to the bit, and the checks that say so notice every change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeface.config import to_plain
from edgeface.errors import MissingToolError, ModelError, UnsupportedError
from edgeface.specs import STUDENTS, ModelSpec, NetworkSpec
from quantize.graph import INPUT, Graph, Node, macs, run, trace
from quantize.grid import Quantized, coarse, dequantize, simulate, simulate_nodes, snap
from targets import openvino as target
from targets.openvino import OpenvinoRunner

from .conftest import quantize_network, random_network, random_pictures, spec_of

WIDTHS = {"tcdcn_relu": 0.5}
Outputs = Mapping[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def quantized_students() -> dict[str, Quantized]:
    return {name: quantize_network(random_network(name, width=WIDTHS.get(name, 0.25))) for name in STUDENTS}


@pytest.fixture(scope="session")
def int8_files(quantized_students: dict[str, Quantized], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("openvino")
    return {name: write_int8(quantized_students[name], folder / f"{name}.xml") for name in STUDENTS}


@pytest.fixture(scope="session")
def float_graph() -> Graph:
    return trace(random_network("edge_s"))


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return spec_of(NetworkSpec(backbone="edge_s", width=0.25, input_px=32))


def any_spec(graph: Graph) -> ModelSpec:
    """A spec for graphs whose outputs are no tasks."""
    from edgeface.specs import OutputSpec

    outputs = tuple(OutputSpec(name=name, task="gender", shape=graph.output_shape(name)) for name in graph.outputs)
    return ModelSpec(name="any", input_px=graph.input_px, outputs=outputs)


def write_int8(quantized: Quantized, path: Path, *, float_input: bool = False) -> Path:
    model = any_spec(quantized.graph)
    target.write({"w8a8": path}, graph=None, quantized=quantized, model=model, float_input=float_input)
    return path


def write_float(graph: Graph, path: Path, *, precision: str = "fp32") -> Path:
    target.write({precision: path}, graph=graph, quantized=None, model=any_spec(graph))
    return path


def answers(path: Path, graph: Graph, pictures: NDArray[np.uint8]) -> Outputs:
    runner = OpenvinoRunner(path, spec=any_spec(graph), runtime="openvino", precision="", threads=1)
    return runner.run(pictures)


def same(found: Outputs, expected: Outputs) -> bool:
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in expected)
    return all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("student", STUDENTS)
def test_int8_file_equals_the_simulator_bit_for_bit(
    student: str, quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    quantized, pictures = quantized_students[student], random_pictures(24, 32)

    found = answers(int8_files[student], quantized.graph, pictures)

    assert same(found, dequantize(quantized, simulate(quantized, pictures, kernels="openvino")))
    # No student adds, so the fake-quant network and TFLite's files say the same.
    assert same(found, dequantize(quantized, simulate(quantized, pictures, kernels="xnnpack")))


@pytest.mark.parametrize("student", STUDENTS)
def test_simulator_of_one_changed_weight_differs_from_the_file_twin(
    student: str, quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    quantized, pictures = quantized_students[student], random_pictures(24, 32)
    name = quantized.graph.outputs["landmarks5"]
    weight = quantized.weights[name].copy()
    weight[0] = np.where(weight[0] < 100, weight[0] + 20, weight[0] - 20)

    changed = replace(quantized, weights={**quantized.weights, name: weight})

    found = answers(int8_files[student], quantized.graph, pictures)
    assert not same(found, dequantize(changed, simulate(changed, pictures, kernels="openvino")))


def integers(generator: np.random.Generator, *shape: int) -> NDArray[np.int8]:
    return generator.integers(-127, 128, shape).astype(np.int8)


def every_operation(zero_points: Mapping[str, int], *, relu: bool) -> Quantized:
    """Each operation once, with odd sizes and uneven padding, and every node an output."""
    generator = np.random.default_rng(0)
    nodes = (
        Node(name="wide", op="conv2d", inputs=(INPUT,), shape=(16, 9, 9), kernel=(3, 3), padding=(1, 1, 1, 1)),
        Node(name="same", op="conv2d", inputs=("wide",), shape=(16, 9, 9), kernel=(2, 3), padding=(0, 1, 2, 0)),
        Node(name="sum", op="add", inputs=("wide", "same"), shape=(16, 9, 9), relu=relu),
        Node(name="mean", op="mean", inputs=("sum",), shape=(16,)),
        Node(name="halved", op="mfm", inputs=("sum",), shape=(8, 9, 9)),
        Node(name="pooled", op="max_pool", inputs=("halved",), shape=(8, 4, 3), kernel=(2, 3), stride=(2, 3)),
        Node(
            name="strided",
            op="conv2d",
            inputs=("pooled",),
            shape=(8, 2, 2),
            kernel=(3, 3),
            stride=(2, 2),
            padding=(0, 1, 1, 1),
            relu=relu,
        ),
        Node(name="flat", op="flatten", inputs=("strided",), shape=(32,)),
        Node(name="linear", op="linear", inputs=("flat",), shape=(512,), relu=relu),
        Node(name="half", op="mfm", inputs=("linear",), shape=(256,)),
        Node(name="head", op="linear", inputs=("half",), shape=(64,)),
    )
    weights = {
        "wide": integers(generator, 16, 3, 3, 3),
        "same": integers(generator, 16, 16, 2, 3),
        "strided": integers(generator, 8, 8, 3, 3),
        "linear": integers(generator, 512, 32),
        "head": integers(generator, 64, 256),
    }
    scales = {"wide": 0.0213, "same": 0.0311, "sum": 0.0291, "mean": 0.0131, "strided": 0.06, "linear": 0.11}
    grids = {INPUT: (1 / 64, 0)}
    for node in nodes:
        if node.op in ("max_pool", "mfm", "flatten"):
            grids[node.name] = grids[node.inputs[0]]
        else:
            rounded = float(coarse(torch.tensor(scales.get(node.name, 0.2))))
            grids[node.name] = (rounded, zero_points.get(node.name, 0))
    graph = Graph(
        input_px=9,
        nodes=nodes,
        outputs={node.name: node.name for node in nodes},
        weights={name: torch.zeros(weight.shape) for name, weight in weights.items()},
        biases={name: torch.zeros(len(weight)) for name, weight in weights.items()},
        mean=(128.0,) * 3,
        std=(64.0,) * 3,
    )
    return Quantized(
        graph=graph,
        activations=grids,
        weights=weights,
        weight_scales={
            name: coarse(torch.tensor(generator.uniform(0.002, 0.004, len(weight)), dtype=torch.float32)).numpy()
            for name, weight in weights.items()
        },
        biases={
            name: generator.integers(-20000, 20000, len(weight)).astype(np.int32) for name, weight in weights.items()
        },
    )


@pytest.mark.parametrize(
    ("zero_points", "relu"),
    [
        ({"wide": -128, "same": -128, "sum": -128, "strided": -128, "linear": -128}, True),
        ({"wide": 3, "same": -20, "sum": 11, "mean": 40, "strided": -5, "linear": 9, "head": 1}, False),
        ({}, False),
        ({"wide": 127, "same": -100, "sum": 5, "mean": -128, "strided": 30, "linear": -77}, True),
    ],
    ids=["from zero", "mixed", "symmetric", "relu off the end"],
)
def test_every_operation_equals_the_simulator_bit_for_bit(
    zero_points: Mapping[str, int], relu: bool, tmp_path: Path
) -> None:
    quantized, pictures = every_operation(zero_points, relu=relu), random_pictures(40, 12)[:, :9, :9]

    path = write_int8(quantized, tmp_path / "every.xml")

    found = answers(path, quantized.graph, pictures)
    expected = simulate_nodes(quantized, pictures, kernels="openvino")
    for node in quantized.graph.nodes:
        scale, zero_point = quantized.activations[node.name]
        assert np.array_equal(np.rint(found[node.name] / np.float32(scale)) + zero_point, expected[node.name]), node.op


@pytest.mark.slow
def test_a_million_sums_and_additions_round_as_the_simulator_says(tmp_path: Path) -> None:
    """Near ties are one in a hundred thousand: enough sums that a rounding too many shows."""
    pictures = random_pictures(400, 12)[:, :9, :9]
    for zero_points in ({"wide": 3, "same": -20, "sum": 11, "linear": 9}, {"wide": -128, "same": -128, "linear": -128}):
        quantized = every_operation(zero_points, relu=False)
        found = answers(write_int8(quantized, tmp_path / "many.xml"), quantized.graph, pictures)
        expected = simulate_nodes(quantized, pictures, kernels="openvino")
        differ = {}
        for node in quantized.graph.nodes:
            scale, zero_point = quantized.activations[node.name]
            codes = np.rint(found[node.name] / np.float32(scale)) + zero_point
            differ[node.name] = int((codes != expected[node.name]).sum())
        assert not any(differ.values()), differ


def test_scales_multiplied_one_by_one_land_on_other_integers_twin() -> None:
    """Why the file looks as it does: the usual layout, in the order in which OpenVINO computes it."""
    acc = np.arange(-2_000_000, 2_000_000)
    bias, unit, scale = 51_000, np.float32(1 / 64) * np.float32(0.0000931299), np.float32(0.0219)
    exact = np.rint((acc + bias).astype(np.float32) * (unit / scale))
    usual = np.rint((acc.astype(np.float32) * unit + np.float32(bias * float(unit))) * (np.float32(1) / scale))
    assert 0 < int((exact != usual).sum()) < len(acc) / 1000


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


def _weight_scale_up(quantized: Quantized) -> Quantized:
    name = quantized.graph.nodes[0].name
    scale = quantized.weight_scales[name].copy()
    scale[-1] *= np.float32(1.00001)
    return replace(quantized, weight_scales={**quantized.weight_scales, name: scale})


def _next_scale(quantized: Quantized) -> Quantized:
    return _scaled(quantized, quantized.graph.nodes[1].name, 1.000001)


def _scale_up_by_two_percent(quantized: Quantized) -> Quantized:
    return _scaled(quantized, quantized.graph.outputs["landmarks5"], 1.02)


def _scaled(quantized: Quantized, name: str, factor: float) -> Quantized:
    scale, zero_point = quantized.activations[name]
    return replace(
        quantized, activations={**quantized.activations, name: (float(np.float32(scale * factor)), zero_point)}
    )


def _next_zero_point(quantized: Quantized) -> Quantized:
    return _shifted(quantized, quantized.graph.nodes[0].name)


def _next_zero_point_of_an_output(quantized: Quantized) -> Quantized:
    return _shifted(quantized, quantized.graph.outputs["landmarks5"])


def _input_zero_point(quantized: Quantized) -> Quantized:
    return _shifted(quantized, INPUT)


def _shifted(quantized: Quantized, name: str) -> Quantized:
    scale, zero_point = quantized.activations[name]
    return replace(quantized, activations={**quantized.activations, name: (scale, zero_point + 1)})


def _outputs_exchanged(quantized: Quantized) -> Quantized:
    outputs = dict(quantized.graph.outputs)
    outputs["gender"], outputs["smile"] = outputs["smile"], outputs["gender"]
    return replace(quantized, graph=replace(quantized.graph, outputs=outputs))


def _one_output_less(quantized: Quantized) -> Quantized:
    outputs = {name: node for name, node in quantized.graph.outputs.items() if name != "smile"}
    return replace(quantized, graph=replace(quantized.graph, outputs=outputs))


def _another_relu(quantized: Quantized) -> Quantized:
    return _with_node(quantized, 1, relu=not quantized.graph.nodes[1].relu)


def _another_padding(quantized: Quantized) -> Quantized:
    top, bottom, left, right = quantized.graph.nodes[0].padding
    return _with_node(quantized, 0, padding=(bottom, top, left + 1, right))


def _another_stride(quantized: Quantized) -> Quantized:
    return _with_node(quantized, 0, stride=(1, 1))


def _another_input(quantized: Quantized) -> Quantized:
    return _with_node(quantized, 2, inputs=(quantized.graph.nodes[0].name,))


def _with_node(quantized: Quantized, place: int, **changes: Any) -> Quantized:
    nodes = list(quantized.graph.nodes)
    nodes[place] = replace(nodes[place], **changes)
    return replace(quantized, graph=replace(quantized.graph, nodes=tuple(nodes)))


def _a_layer_in_float(quantized: Quantized) -> Quantized:
    return replace(quantized, floats=frozenset({quantized.graph.nodes[2].name}))


def test_check_accepts_the_files_that_were_written(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    for student, path in int8_files.items():
        target.check_w8a8(path, quantized_students[student])


@pytest.mark.parametrize(
    "change",
    [
        _one_weight_up,
        _one_bias_up,
        _weight_scale_up,
        _next_scale,
        _scale_up_by_two_percent,
        _next_zero_point,
        _next_zero_point_of_an_output,
        _input_zero_point,
        _outputs_exchanged,
        _one_output_less,
        _another_relu,
        _another_padding,
        _another_stride,
        _another_input,
        _a_layer_in_float,
    ],
)
def test_check_notices_any_difference_twin(
    change: Callable[[Quantized], Quantized], quantized_students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    with pytest.raises(ModelError, match="layer '"):
        target.check_w8a8(int8_files["edge_s"], change(quantized_students["edge_s"]))


def test_check_notices_a_layer_that_the_runtime_computes_in_float_twin(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path], tmp_path: Path
) -> None:
    whole = quantized_students["edge_s"]
    name = whole.graph.nodes[3].name
    mixed = snap(whole.graph, activations=whole.activations, floats=frozenset({name}))
    path = write_int8(mixed, tmp_path / "mixed.xml")

    target._check_kernels(compiled(int8_files["edge_s"]), whole, where=path, float_input=False)
    target._check_kernels(compiled(path), mixed, where=path, float_input=False)
    with pytest.raises(ModelError, match=f"layer '{name}': computed in f32"):
        target._check_kernels(compiled(path), whole, where=path, float_input=False)


def test_check_notices_a_float_island_between_integer_layers_twin(tmp_path: Path) -> None:
    """A maximum of two halves without a FakeQuantize behind it: the layout that looks natural."""
    import openvino
    from openvino import opset13 as ops

    quantized = every_operation({"linear": 5}, relu=False)
    path = write_int8(quantized, tmp_path / "island.xml")
    model = openvino.Core().read_model(str(path))
    operations = {op.get_friendly_name(): op for op in model.get_ops()}
    halves = ops.split(operations["linear"].output(0), ops.constant(np.int64(1)), 2)
    island = ops.sin(ops.maximum(halves.output(0), halves.output(1)))
    island.set_friendly_name("half/island")
    for reader in list(operations["half"].output(0).get_target_inputs()):
        reader.replace_source_output(island.output(0))
    settings = {"INFERENCE_PRECISION_HINT": "f32"}

    with pytest.raises(ModelError, match=r"layer '(half|head)'"):
        target._check_kernels(
            openvino.Core().compile_model(model, "CPU", settings), quantized, where=path, float_input=False
        )


def compiled(path: Path) -> Any:
    import openvino

    return openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def test_check_notices_a_float_file_twin(
    float_graph: Graph, quantized_students: dict[str, Quantized], tmp_path: Path
) -> None:
    path = write_float(float_graph, tmp_path / "float.xml")

    with pytest.raises(ModelError, match="layer 'image'"):
        target.check_w8a8(path, quantized_students["edge_s"])


def test_max_feature_map_that_pools_other_pairs_is_noticed_twin(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "pairs.xml"
    path.write_text(int8_files["lightcnn9"].read_text().replace('strides="1, 2" ', 'strides="2, 2" ', 1))
    path.with_suffix(".bin").write_bytes(int8_files["lightcnn9"].with_suffix(".bin").read_bytes())
    assert path.read_text() != int8_files["lightcnn9"].read_text()

    with pytest.raises(ModelError):
        target.check_w8a8(path, quantized_students["lightcnn9"])


def test_two_equal_heads_keep_their_own_outputs(tmp_path: Path) -> None:
    network = random_network("cnn5")
    network.heads["smile"].load_state_dict(network.heads["gender"].state_dict())
    quantized, pictures = quantize_network(network), random_pictures(4, 32)

    found = answers(write_int8(quantized, tmp_path / "equal.xml"), quantized.graph, pictures)

    assert same(found, dequantize(quantized, simulate(quantized, pictures, kernels="openvino")))


def test_dead_channel_keeps_its_bias(tmp_path: Path) -> None:
    network = random_network("cnn5")
    with torch.no_grad():
        head = network.heads["gender"]
        assert isinstance(head, torch.nn.Linear)
        head.weight[0] = 0.0
    quantized, pictures = quantize_network(network), random_pictures(4, 32)

    found = answers(write_int8(quantized, tmp_path / "dead.xml"), quantized.graph, pictures)

    assert same(found, dequantize(quantized, simulate(quantized, pictures, kernels="openvino")))


def test_layers_left_in_float_read_and_give_the_grid(quantized_students: dict[str, Quantized], tmp_path: Path) -> None:
    whole, pictures = quantized_students["edge_s"], random_pictures(24, 32)
    inner, head = whole.graph.nodes[3].name, whole.graph.outputs["landmarks5"]
    quantized = snap(whole.graph, activations=whole.activations, floats=frozenset({inner, head}))

    path = write_int8(quantized, tmp_path / "mixed.xml")

    found = answers(path, quantized.graph, pictures)
    expected = dequantize(quantized, simulate(quantized, pictures, kernels="openvino"))
    # Float sums come in another order: an activation next to a tie may move, by one step of a few thousand of them.
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= 1.01 * quantized.output_grid(name)[0]
        assert np.mean(np.abs(found[name] - value) < 0.01 * quantized.output_grid(name)[0]) > 0.9
    steps = found["landmarks5"] / np.float32(quantized.output_grid("landmarks5")[0])
    assert np.abs(steps - np.rint(steps)).max() > 0.1  # it leaves in float
    with pytest.raises(ModelError, match=f"layer '{inner}'"):  # the twin
        target.check_w8a8(path, whole)


COMPILED = "import sys, openvino; model = openvino.Core().compile_model(sys.argv[1], 'CPU')"
OPENED = """
import sys
from pathlib import Path
from targets import openvino
path = Path(sys.argv[1])
model = openvino._compiled(openvino._read(path), threads=1, where=path)
"""
STACK = """
import ctypes
from edgeface.processes import _SignalStack
found = _SignalStack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
print(bool(found.start))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is looked after on Linux alone")
@pytest.mark.parametrize(
    ("program", "left"), [(OPENED, False), (COMPILED, True)], ids=["opened", "compiled alone, twin"]
)
def test_an_open_file_leaves_signals_on_the_stack_of_the_program(
    program: str, left: bool, int8_files: Mapping[str, Path]
) -> None:
    """The plug-in sets a stack for signals and frees it with its last model; the next Ctrl-C would end the process."""
    command = [sys.executable, "-c", program + STACK, str(int8_files["edge_s"])]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == str(left)


def sqnr_db(graph: Graph, path: Path) -> float:
    """Least signal-to-noise ratio of a float file's outputs against the graph's, in dB."""
    pictures = random_pictures(8, graph.input_px)
    expected = run(graph, torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
    found = answers(path, graph, pictures)
    assert found.keys() == expected.keys()
    ratios = []
    for name, value in expected.items():
        noise = found[name].astype(np.float64) - value.numpy()
        ratios.append(10 * np.log10(np.square(value.numpy()).sum() / np.square(noise).sum()))
    return float(min(ratios))


# float32 sums in another order keep 120 dB here; half-float weights (2^-12 relative) 60.
@pytest.mark.parametrize(("precision", "floor_db"), [("fp32", 100.0), ("fp16", 50.0)])
@pytest.mark.parametrize("student", STUDENTS)
def test_float_files_compute_the_graph(student: str, precision: str, floor_db: float, tmp_path: Path) -> None:
    graph = trace(random_network(student, width=WIDTHS.get(student, 0.25)))

    path = write_float(graph, tmp_path / "file.xml", precision=precision)

    assert sqnr_db(graph, path) > floor_db
    name = graph.nodes[0].name if student == "edge_s" else graph.outputs["landmarks5"]
    flipped = replace(graph, weights={**graph.weights, name: graph.weights[name].flip(0)})
    assert sqnr_db(flipped, path) < 15.0  # the twin


def test_float_files_take_other_statistics_mean_and_add(tmp_path: Path) -> None:
    whole = every_operation({}, relu=True).graph
    generator = torch.Generator().manual_seed(0)
    graph = replace(
        whole,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        weights={name: torch.randn(weight.shape, generator=generator) * 0.1 for name, weight in whole.weights.items()},
        biases={name: torch.randn(bias.shape, generator=generator) for name, bias in whole.biases.items()},
    )
    pictures = random_pictures(8, 12)[:, :9, :9]

    found = answers(write_float(graph, tmp_path / "file.xml"), graph, pictures)

    expected = run(graph, torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
    for name, value in expected.items():
        # float32 sums in another order.
        assert np.allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-4), name
        assert not np.allclose(found[name], value.numpy() * 1.02, rtol=1e-4, atol=1e-4), name  # the twin


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "change",
    [
        lambda graph: replace(graph, weights={**graph.weights, graph.outputs["gender"]: torch.zeros(2, 32)}),
        lambda graph: replace(graph, biases={n: b * 1.02 for n, b in graph.biases.items()}),
        lambda graph: replace(graph, mean=(127.0,) * 3),
        lambda graph: replace(graph, std=(65.0,) * 3),
        lambda graph: replace(graph, outputs={**graph.outputs, "smile": graph.outputs["gender"]}),
        lambda graph: replace(graph, nodes=(replace(graph.nodes[0], relu=False), *graph.nodes[1:])),
        lambda graph: replace(graph, nodes=(replace(graph.nodes[0], padding=(0, 0, 0, 0)), *graph.nodes[1:])),
    ],
)
def test_check_of_float_files_notices_any_difference_twin(
    change: Callable[[Graph], Graph], precision: str, float_graph: Graph, tmp_path: Path
) -> None:
    path = write_float(float_graph, tmp_path / "file.xml", precision=precision)
    target.check_float(path, float_graph, precision=precision)

    with pytest.raises(ModelError, match="layer '"):
        target.check_float(path, change(float_graph), precision=precision)


def test_half_floats_are_told_from_whole_ones(float_graph: Graph, tmp_path: Path) -> None:
    path = write_float(float_graph, tmp_path / "file.xml", precision="fp16")

    with pytest.raises(ModelError, match="half floats"):
        target.check_float(path, float_graph, precision="fp32")


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_float_input_takes_standardized_values(
    precision: str, float_graph: Graph, quantized_students: dict[str, Quantized], tmp_path: Path
) -> None:
    quantized = quantized_students["edge_s"]
    files = {name: {precision: tmp_path / f"{name}.xml"} for name in ("picture", "values")}
    model = any_spec(float_graph)
    target.write(files["picture"], graph=float_graph, quantized=quantized, model=model)
    target.write(files["values"], graph=float_graph, quantized=quantized, model=model, float_input=True)
    pictures = random_pictures(2, 32)

    expected = answers(files["picture"][precision], float_graph, pictures)
    values_in = compiled(files["values"][precision])
    for row, picture in enumerate(pictures):
        values = (picture[None].astype(np.float32) - 128.0) / 64.0
        found = values_in({"image": values})
        for name, value in expected.items():
            assert np.array_equal(found[name][0], value[row])
            assert not np.array_equal(values_in({"image": -values})[name][0], value[row])  # the twin
    # A file of ours is handed the picture's standardized values; what a stranger's expects is not known.
    assert same(answers(files["values"][precision], float_graph, pictures), expected)
    stranger = OpenvinoRunner(files["values"][precision], spec=None, runtime="openvino", precision="", threads=1)
    with pytest.raises(UnsupportedError, match="time it alone"):
        stranger.run(random_pictures(1, stranger.spec.input_px))


def test_input_is_the_uint8_picture_and_outputs_carry_the_tasks_names(int8_files: dict[str, Path]) -> None:
    import openvino

    model = openvino.Core().read_model(str(int8_files["edge_s"]))

    (picture,) = model.inputs
    assert picture.get_names() == {"image"}
    assert picture.get_element_type().get_type_name() == "u8"
    assert list(picture.get_shape()) == [1, 32, 32, 3]
    found = {name: (list(port.get_shape()), port.get_element_type()) for port in model.outputs for name in port.names}
    shapes = {"landmarks5": [1, 5, 2], "gender": [1, 2], "smile": [1, 2]}
    assert found == {name: (shape, openvino.Type.f32) for name, shape in shapes.items()}


def test_runner_reports_what_is_on_disk(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path], spec: ModelSpec
) -> None:
    path = int8_files["edge_s"]
    runner = OpenvinoRunner(path, spec=spec, runtime="openvino", precision="", threads=2)

    assert runner.precision == "w8a8"
    assert runner.size_bytes == path.stat().st_size + path.with_suffix(".bin").stat().st_size
    assert runner.macs == macs(quantized_students["edge_s"].graph)
    assert runner.grids == {}
    runner.prepare(seed=0)()
    with pytest.raises(ModelError, match="uint8"):
        runner.run(np.zeros((1, 16, 16, 3), np.uint8))
    assert {name: value.shape for name, value in runner.run(random_pictures(0, 32)).items()} == {
        "landmarks5": (0, 5, 2),
        "gender": (0, 2),
        "smile": (0, 2),
    }


def test_a_later_picture_does_not_change_earlier_answers(int8_files: dict[str, Path], spec: ModelSpec) -> None:
    runner = OpenvinoRunner(int8_files["edge_s"], spec=spec, runtime="openvino", precision="w8a8", threads=1)
    pictures = random_pictures(3, 32)

    together = runner.run(pictures)
    alone = [runner.run(picture[None]) for picture in pictures]

    for name, values in together.items():
        assert np.array_equal(values, np.concatenate([answer[name] for answer in alone]))
        assert not np.array_equal(values[0], values[1])  # the twin


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8a8"])
def test_a_file_alone_says_what_it_is(
    precision: str, float_graph: Graph, quantized_students: dict[str, Quantized], spec: ModelSpec, tmp_path: Path
) -> None:
    path = tmp_path / "file.xml"
    target.write({precision: path}, graph=float_graph, quantized=quantized_students["edge_s"], model=spec)

    assert target.read_note(path) == {"schema": 1, "model": to_plain(spec), "precision": precision}
    assert OpenvinoRunner(path, spec=None, runtime="openvino", precision="", threads=1).precision == precision


def test_same_network_gives_the_same_file(
    quantized_students: dict[str, Quantized], int8_files: dict[str, Path], tmp_path: Path
) -> None:
    again = write_int8(quantized_students["cnn5"], tmp_path / "cnn5.xml")

    for suffix in (".xml", ".bin"):
        assert again.with_suffix(suffix).read_bytes() == int8_files["cnn5"].with_suffix(suffix).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"cnn5.xml", "cnn5.bin"}


def foreign(path: Path, *, shape: list[int], inputs: int = 1) -> Path:
    """A file of someone else: float, channels first, one output named after a task."""
    import openvino
    from openvino import opset13 as ops

    pictures = [ops.parameter(shape, np.float32) for _ in range(inputs)]
    total = pictures[0] if inputs == 1 else ops.add(pictures[0], pictures[1])
    mean = ops.reduce_mean(total, ops.constant(np.array([2, 3])), False)
    gender = ops.matmul(mean, ops.constant(np.ones((3, 2), np.float32)), False, False)
    gender.output(0).set_names({"gender"})
    other = ops.relu(mean)
    other.output(0).set_names({"something"})
    openvino.save_model(openvino.Model([gender, other], pictures, "foreign"), str(path), compress_to_fp16=False)
    return path


def test_foreign_file_opens_and_can_be_timed(tmp_path: Path) -> None:
    path = foreign(tmp_path / "foreign.xml", shape=[1, 3, 20, 20])

    target.probe(path)
    runner = OpenvinoRunner(path, spec=None, runtime="openvino", precision="", threads=1)

    assert [output.name for output in runner.spec.outputs] == ["gender"]
    assert (runner.precision, runner.macs, target.read_note(path)) == ("fp32", 6, {})
    runner.prepare(seed=0)()
    with pytest.raises(UnsupportedError, match="time it alone"):
        runner.run(np.zeros((1, runner.spec.input_px, runner.spec.input_px, 3), np.uint8))


def test_foreign_files_without_one_fixed_picture_are_refused(tmp_path: Path) -> None:
    for name, options, words in (
        ("dynamic", {"shape": [1, 3, -1, 20]}, "fixed shape"),
        ("pair", {"shape": [1, 3, 20, 20], "inputs": 2}, "2 inputs"),
    ):
        path = foreign(tmp_path / f"{name}.xml", **options)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedError, match=words):
            OpenvinoRunner(path, spec=None, runtime="openvino", precision="", threads=1)


def test_broken_files_are_model_errors(int8_files: dict[str, Path], tmp_path: Path, spec: ModelSpec) -> None:
    path = tmp_path / "alone.xml"
    path.write_bytes(int8_files["edge_s"].read_bytes())  # its .bin is missing
    with pytest.raises(ModelError, match="OpenVINO cannot run it"):
        target.probe(path)
    with pytest.raises(ModelError, match=r"\.bin beside it"):
        OpenvinoRunner(path, spec=spec, runtime="openvino", precision="w8a8", threads=1)
    path.write_text("<net")
    with pytest.raises(ModelError, match="OpenVINO cannot run it"):
        target.probe(path)
    assert target.read_note(path) == {}


_ON_AN_OLDER_CPU = """
import sys
from pathlib import Path
import numpy as np
from edgeface.errors import MissingToolError
from targets.openvino import OpenvinoRunner, adds_exactly
assert not adds_exactly()
runner = OpenvinoRunner(Path(sys.argv[1]), spec=None, runtime="openvino", precision="", threads=1)
runner.prepare(seed=0)()
try:
    runner.run(np.zeros((1, 32, 32, 3), np.uint8))
except MissingToolError as error:
    print(error)
"""


def test_cpu_whose_int8_sums_saturate_is_refused(int8_files: dict[str, Path]) -> None:
    """oneDNN can be held to the instructions of older CPUs, whose products are added in 16 bits."""
    if not target.adds_exactly():
        pytest.skip("this CPU has no VNNI: it is the older one")
    done = subprocess.run(
        [sys.executable, "-c", _ON_AN_OLDER_CPU, str(int8_files["edge_s"])],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "VNNI" in done.stdout


def test_missing_output_is_named(int8_files: dict[str, Path], spec: ModelSpec) -> None:
    other = replace(spec, outputs=(replace(spec.outputs[0], name="pose"), *spec.outputs[1:]))

    with pytest.raises(ModelError, match="pose"):
        OpenvinoRunner(int8_files["edge_s"], spec=other, runtime="openvino", precision="w8a8", threads=1)


def test_what_cannot_be_written_is_refused(
    float_graph: Graph, quantized_students: dict[str, Quantized], spec: ModelSpec, tmp_path: Path
) -> None:
    quantized = quantized_students["edge_s"]
    other = replace(quantized, graph=replace(quantized.graph, mean=(123.675, 116.28, 103.53)))
    path = tmp_path / "file.xml"

    with pytest.raises(UnsupportedError, match="mean 128"):
        target.write({"w8a8": path}, graph=None, quantized=other, model=spec)
    with pytest.raises(UnsupportedError, match="integer network"):
        target.write({"w8a8": path}, graph=float_graph, quantized=None, model=spec)
    with pytest.raises(UnsupportedError, match="float network"):
        target.write({"fp16": path}, graph=None, quantized=quantized, model=spec)
    with pytest.raises(UnsupportedError, match="'w8' cannot run on target 'openvino'"):
        target.write({"w8": path}, graph=float_graph, quantized=quantized, model=spec)
    assert not any(tmp_path.iterdir())


def test_missing_tool_kit_is_named(monkeypatch: pytest.MonkeyPatch, float_graph: Graph, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(MissingToolError, match="pip install"):
        write_float(float_graph, tmp_path / "file.xml")
    with pytest.raises(MissingToolError, match="pip install"):
        target.probe(tmp_path / "file.xml")
