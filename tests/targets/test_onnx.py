"""ONNX files: w8a8 carries the integer network to the bit, and the check that says so notices every kind of change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeface.config import to_plain
from edgeface.errors import MissingToolError, ModelError, UnsupportedError
from edgeface.specs import STUDENTS, ModelSpec, NetworkSpec
from quantize.graph import INPUT, Graph, Node, macs, run, trace
from quantize.grid import Quantized, dequantize, simulate, snap
from targets import onnx as target

from .conftest import quantize_network, random_network, random_pictures, spec_of

WIDTHS = {"tcdcn_relu": 0.5}
SPEC = spec_of(NetworkSpec(backbone="edge_s", input_px=32))


@pytest.fixture(scope="session")
def students() -> dict[str, Quantized]:
    return {name: quantize_network(random_network(name, width=WIDTHS.get(name, 0.25))) for name in STUDENTS}


@pytest.fixture(scope="session")
def int8_files(students: dict[str, Quantized], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    files = {name: folder / f"{name}.onnx" for name in STUDENTS}
    for name, path in files.items():
        target.write({"w8a8": path}, graph=None, quantized=students[name], model=SPEC)
    return files


@pytest.fixture(scope="session")
def float_graph() -> Graph:
    return trace(random_network("edge_s"))


@pytest.fixture(scope="session")
def float_file(float_graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "edge_s.fp32.onnx"
    target.write({"fp32": path}, graph=float_graph, quantized=None, model=SPEC)
    return path


def runner(path: Path, *, spec: ModelSpec | None = SPEC, precision: str = "w8a8") -> target.OnnxRunner:
    return target.OnnxRunner(path, spec=spec, runtime="onnxruntime", precision=precision, threads=1)


def share_equal(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in expected)
    return float(np.mean(np.concatenate([(found[name] == expected[name]).ravel() for name in expected])))


@pytest.mark.parametrize("student", STUDENTS)
def test_int8_file_equals_the_simulator_bit_for_bit(
    student: str, students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    pictures = random_pictures(8, 32)
    expected = dequantize(students[student], simulate(students[student], pictures, kernels="xnnpack"))

    assert share_equal(runner(int8_files[student]).run(pictures), expected) == 1.0


def test_simulator_of_one_changed_weight_differs_from_the_file_twin(
    students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    quantized, pictures = students["edge_s"], random_pictures(8, 32)
    name = quantized.graph.outputs["landmarks5"]
    weight = quantized.weights[name].copy()
    weight[0] = np.where(weight[0] < 100, weight[0] + 20, weight[0] - 20)
    changed = replace(quantized, weights={**quantized.weights, name: weight})

    assert share_equal(runner(int8_files["edge_s"]).run(pictures), dequantize(changed, simulate(changed, pictures))) < 1


def _add_graph() -> Quantized:
    """Two convolutions, their sum with a ReLU, its mean and a head."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    nodes = (
        Node(name="a", op="conv2d", inputs=(INPUT,), shape=(6, 16, 16), kernel=(3, 3), padding=(1, 1, 1, 1)),
        Node(name="b", op="conv2d", inputs=(INPUT,), shape=(6, 16, 16)),
        Node(name="sum", op="add", inputs=("a", "b"), shape=(6, 16, 16), relu=True),
        Node(name="mean", op="mean", inputs=("sum",), shape=(6,)),
        Node(name="head", op="linear", inputs=("mean",), shape=(2,)),
    )
    graph = Graph(
        input_px=16,
        nodes=nodes,
        outputs={"gender": "head"},
        weights={"a": draw(6, 3, 3, 3), "b": draw(6, 3, 1, 1), "head": draw(2, 6)},
        biases={"a": draw(6), "b": draw(6), "head": draw(2)},
        mean=(128.0,) * 3,
        std=(64.0,) * 3,
    )
    grids = {INPUT: (1 / 64, 0), "a": (3 / 64, 5), "b": (1 / 32, -3), "sum": (1 / 32, -128), "mean": (1 / 128, -128)}
    return snap(graph, activations={**grids, "head": (1 / 64, 2)})


def test_sum_of_two_maps_is_within_a_step(tmp_path: Path) -> None:
    """ONNX Runtime adds in float, XNNPACK in fixed point: they may part at ties, hence one step."""
    quantized, pictures = _add_graph(), random_pictures(20, 16)
    target.write({"w8a8": tmp_path / "add.onnx"}, graph=None, quantized=quantized, model=SPEC)
    spec = ModelSpec(name="add", input_px=16, outputs=tuple(o for o in SPEC.outputs if o.name == "gender"))

    found = runner(tmp_path / "add.onnx", spec=spec).run(pictures)
    expected = dequantize(quantized, simulate(quantized, pictures))

    step = quantized.output_grid("gender")[0]
    assert np.abs(found["gender"] - expected["gender"]).max() <= step
    # Twin: a network that adds twice the one map is further away than that.
    nodes = tuple(replace(node, inputs=("a", "a")) if node.op == "add" else node for node in quantized.graph.nodes)
    other = replace(quantized, graph=replace(quantized.graph, nodes=nodes))
    assert np.abs(found["gender"] - dequantize(other, simulate(other, pictures))["gender"]).max() > step
    assert "QLinearAdd" in dict(target.fused((tmp_path / "add.onnx").read_bytes()))


@pytest.mark.parametrize("student", STUDENTS)
def test_runtime_computes_every_layer_in_integers(
    student: str, students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    kinds = [kind for kind, _ in target.fused(int8_files[student].read_bytes())]

    layers = [node for node in students[student].graph.nodes if node.op in ("conv2d", "linear")]
    assert sum(kind in ("QLinearConv", "QGemm") for kind in kinds) == len(layers)
    assert not {"Conv", "Gemm", "FusedConv", "QuantizeLinear", "Relu", "GlobalAveragePool"} & set(kinds)
    assert kinds.count("DequantizeLinear") == len(students[student].graph.outputs)


@pytest.mark.parametrize("student", STUDENTS)
def test_file_transposes_the_picture_and_nothing_else(
    student: str, students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    import onnx

    model = onnx.load(str(int8_files[student]))

    assert [node.name for node in model.graph.node if node.op_type == "Transpose"] == ["image/transpose"]
    assert {node.name for node in students[student].graph.nodes} <= {node.name for node in model.graph.node}
    assert target.macs(int8_files[student]) == macs(students[student].graph)


def _weight_up(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["gender"]
    weight = quantized.weights[name].copy()
    weight[0, 0] += 1 if weight[0, 0] < 127 else -1
    return replace(quantized, weights={**quantized.weights, name: weight})


def _bias_up(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["gender"]
    bias = quantized.biases[name].copy()
    bias[1] += 1
    return replace(quantized, biases={**quantized.biases, name: bias})


def _weight_scale_off(quantized: Quantized) -> Quantized:
    name = quantized.graph.nodes[0].name
    return replace(
        quantized,
        weight_scales={**quantized.weight_scales, name: quantized.weight_scales[name] * np.float32(1.02)},
    )


def _scale_off(quantized: Quantized) -> Quantized:
    name = quantized.graph.nodes[1].name
    scale, zero_point = quantized.activations[name]
    return replace(quantized, activations={**quantized.activations, name: (scale * 1.02, zero_point)})


def _zero_point_up(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["landmarks5"]
    scale, zero_point = quantized.activations[name]
    return replace(quantized, activations={**quantized.activations, name: (scale, zero_point + 1)})


def _outputs_exchanged(quantized: Quantized) -> Quantized:
    outputs = dict(quantized.graph.outputs)
    outputs["gender"], outputs["smile"] = outputs["smile"], outputs["gender"]
    return replace(quantized, graph=replace(quantized.graph, outputs=outputs))


def _output_less(quantized: Quantized) -> Quantized:
    outputs = {name: node for name, node in quantized.graph.outputs.items() if name != "smile"}
    return replace(quantized, graph=replace(quantized.graph, outputs=outputs))


def _relu_less(quantized: Quantized) -> Quantized:
    first, *rest = quantized.graph.nodes
    return replace(quantized, graph=replace(quantized.graph, nodes=(replace(first, relu=False), *rest)))


def _padding_moved(quantized: Quantized) -> Quantized:
    first, *rest = quantized.graph.nodes
    top, bottom, left, right = first.padding
    moved = replace(first, padding=(bottom, top, right, left))
    return replace(quantized, graph=replace(quantized.graph, nodes=(moved, *rest)))


@pytest.mark.parametrize(
    "change",
    [
        *(_weight_up, _bias_up, _weight_scale_off, _scale_off, _zero_point_up),
        *(_outputs_exchanged, _output_less, _relu_less, _padding_moved),
    ],
)
def test_check_notices_any_difference_twin(
    change: Callable[[Quantized], Quantized], students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    with pytest.raises(ModelError, match="layer"):
        target.check_w8a8(int8_files["edge_s"], change(students["edge_s"]))


def test_check_accepts_what_was_written(students: dict[str, Quantized], int8_files: dict[str, Path]) -> None:
    for student, path in int8_files.items():
        target.check_w8a8(path, students[student])


def test_check_notices_a_float_island_twin(students: dict[str, Quantized], tmp_path: Path) -> None:
    quantized = students["edge_s"]
    name = quantized.graph.nodes[2].name
    target.write({"w8a8": tmp_path / "a.onnx"}, graph=None, quantized=_in_float(quantized, name), model=SPEC)

    with pytest.raises(ModelError, match=name):
        target.check_w8a8(tmp_path / "a.onnx", quantized)


def test_check_notices_an_operation_of_no_layer_twin(
    students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    import onnx

    model = onnx.load(str(int8_files["edge_s"]))
    model.graph.node.append(onnx.helper.make_node("Abs", ["gender"], ["stray"], name="stray"))

    with pytest.raises(ModelError, match="stray"):
        target.check_w8a8(model.SerializeToString(), students["edge_s"])


def test_check_notices_a_layer_that_the_runtime_leaves_in_float_twin(
    monkeypatch: pytest.MonkeyPatch, students: dict[str, Quantized], int8_files: dict[str, Path]
) -> None:
    name = students["edge_s"].graph.nodes[0].name
    real = target.fused
    monkeypatch.setattr(
        target,
        "fused",
        lambda content: [("FusedConv" if f"{name}/weight" in read else kind, read) for kind, read in real(content)],
    )

    with pytest.raises(ModelError, match=f"{name}.*float once"):
        target.check_w8a8(int8_files["edge_s"], students["edge_s"])


def _in_float(quantized: Quantized, *names: str) -> Quantized:
    return snap(quantized.graph, activations=quantized.activations, floats=frozenset(names))


def test_chosen_layers_are_computed_in_float(students: dict[str, Quantized], tmp_path: Path) -> None:
    quantized, pictures = students["edge_s"], random_pictures(8, 32)
    inner, leaf = quantized.graph.nodes[2].name, quantized.graph.outputs["gender"]
    mixed = _in_float(quantized, inner, leaf)

    target.write({"w8a8": tmp_path / "a.onnx"}, graph=None, quantized=mixed, model=SPEC)
    found, expected = runner(tmp_path / "a.onnx").run(pictures), dequantize(mixed, simulate(mixed, pictures))

    # A float32 sum in another order may tip a code at a tie; a code more is at most one step of an integer output.
    for name in ("landmarks5", "smile"):
        assert np.abs(found[name] - expected[name]).max() <= 1.01 * mixed.output_grid(name)[0]
    noise = np.square(found["gender"] - expected["gender"]).sum() / np.square(expected["gender"]).sum()
    assert 10 * np.log10(noise + 1e-30) < -30  # a float output stands on few flipped codes
    assert not np.array_equal(found["gender"], dequantize(quantized, simulate(quantized, pictures))["gender"])


def float_outputs(path: Path, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Outputs of a file fed with anything."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    rows = [session.run(names, {INPUT: picture[None]}) for picture in batch]
    return {name: np.concatenate([row[place] for row in rows]) for place, name in enumerate(names)}


def test_standardized_values_may_take_the_place_of_the_picture(
    students: dict[str, Quantized], float_graph: Graph, tmp_path: Path
) -> None:
    quantized, pictures = students["edge_s"], random_pictures(4, 32)
    files = {"fp32": tmp_path / "a.onnx", "w8a8": tmp_path / "b.onnx"}
    target.write(files, graph=float_graph, quantized=quantized, model=SPEC, float_input=True)
    standardized = (pictures.astype(np.float32) - 128) / 64

    found = float_outputs(files["w8a8"], standardized)
    assert share_equal(found, dequantize(quantized, simulate(quantized, pictures))) == 1.0
    assert sqnr_db(float_graph, float_outputs(files["fp32"], standardized), pictures) > 100.0
    # Twin: a mean of 127.5 in place of 128 is noticed.
    wrong = float_outputs(files["fp32"], standardized + np.float32(0.5 / 64))
    assert sqnr_db(float_graph, wrong, pictures) < 60.0
    # A file of ours is handed the picture's standardized values; what a stranger's expects is not known.
    assert share_equal(runner(files["w8a8"]).run(pictures), dequantize(quantized, simulate(quantized, pictures))) == 1.0
    stranger = runner(files["w8a8"], spec=None)
    with pytest.raises(UnsupportedError, match="uint8"):
        stranger.run(random_pictures(1, stranger.spec.input_px))


def sqnr_db(graph: Graph, found: dict[str, Any], pictures: NDArray[np.uint8]) -> float:
    """Least signal-to-noise ratio against the graph, in dB."""
    expected = run(graph, torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
    ratios = []
    for name, value in expected.items():
        noise = np.square(found[name].astype(np.float64) - value.numpy()).sum()
        ratios.append(10 * np.log10(np.square(value.numpy()).sum() / noise))
    return float(min(ratios))


# float32 sums in another order keep 120 dB here.
@pytest.mark.parametrize("statistics", [((128.0,) * 3, (64.0,) * 3), ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))])
def test_float_file_computes_the_graph(statistics: Any, float_graph: Graph, tmp_path: Path) -> None:
    graph, pictures = replace(float_graph, mean=statistics[0], std=statistics[1]), random_pictures(4, 32)
    target.write({"fp32": tmp_path / "a.onnx"}, graph=graph, quantized=None, model=SPEC)

    found = runner(tmp_path / "a.onnx").run(pictures)

    assert sqnr_db(graph, found, pictures) > 100.0
    name = graph.nodes[0].name
    twin = replace(graph, weights={**graph.weights, name: graph.weights[name].flip(0)})
    assert sqnr_db(twin, found, pictures) < 15.0
    with pytest.raises(ModelError, match=name):
        target.check_fp32(tmp_path / "a.onnx", twin)


def test_same_network_gives_the_same_bytes(
    students: dict[str, Quantized], int8_files: dict[str, Path], tmp_path: Path
) -> None:
    target.write({"w8a8": tmp_path / "again.onnx"}, graph=None, quantized=students["edge_s"], model=SPEC)

    assert (tmp_path / "again.onnx").read_bytes() == int8_files["edge_s"].read_bytes()


def test_file_says_what_it_is(int8_files: dict[str, Path], float_file: Path) -> None:
    assert target.read_note(int8_files["edge_s"]) == {"schema": 1, "model": to_plain(SPEC), "precision": "w8a8"}
    assert target.read_note(float_file)["precision"] == "fp32"
    assert [runner(path, precision="").precision for path in (float_file, int8_files["edge_s"])] == ["fp32", "w8a8"]


def test_runner_counts_and_times(students: dict[str, Quantized], int8_files: dict[str, Path]) -> None:
    found = runner(int8_files["edge_s"])

    assert found.macs == macs(students["edge_s"].graph)
    assert found.size_bytes == int8_files["edge_s"].stat().st_size
    assert found.grids == {}
    found.prepare(0)()


def _foreign(path: Path) -> None:
    """A float file of someone else: channels first, batch not fixed."""
    import onnx
    from onnx import helper

    picture = helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ("N", 3, 24, 24))
    answer = helper.make_tensor_value_info("gender", onnx.TensorProto.FLOAT, ("N", 2))
    weight = onnx.numpy_helper.from_array(np.ones((2, 3 * 24 * 24), np.float32), "weight")
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["gender"], transB=1),
    ]
    graph = helper.make_graph(nodes, "foreign", [picture], [answer], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def test_foreign_file_can_be_timed_and_says_why_it_takes_no_pictures(tmp_path: Path) -> None:
    _foreign(tmp_path / "foreign.onnx")
    target.probe(tmp_path / "foreign.onnx")

    found = runner(tmp_path / "foreign.onnx", spec=None, precision="")

    assert [output.name for output in found.spec.outputs] == ["gender"]
    assert (found.spec.input_px, found.precision) == (24, "fp32")
    assert target.read_note(tmp_path / "foreign.onnx") == {}
    found.prepare(0)()
    with pytest.raises(UnsupportedError, match="timed"):
        found.run(random_pictures(1, 24))


def test_broken_file_is_refused(int8_files: dict[str, Path], tmp_path: Path) -> None:
    content = int8_files["edge_s"].read_bytes()
    (tmp_path / "half.onnx").write_bytes(content[: len(content) // 2])

    with pytest.raises(ModelError, match="cannot run"):
        target.probe(tmp_path / "half.onnx")
    with pytest.raises(ModelError, match="cannot run"):
        runner(tmp_path / "half.onnx")


def test_what_cannot_be_written_is_refused(students: dict[str, Quantized], tmp_path: Path) -> None:
    quantized, path = students["edge_s"], tmp_path / "a.onnx"
    other = replace(quantized, graph=replace(quantized.graph, mean=(120.0,) * 3))

    with pytest.raises(UnsupportedError, match="mean 128"):
        target.write({"w8a8": path}, graph=None, quantized=other, model=SPEC)
    with pytest.raises(UnsupportedError, match="float network"):
        target.write({"fp32": path}, graph=None, quantized=quantized, model=SPEC)
    with pytest.raises(UnsupportedError, match="fp16"):
        target.write({"fp16": path}, graph=quantized.graph, quantized=None, model=SPEC)
    assert not any(tmp_path.iterdir())


def test_missing_tool_kit_is_named(monkeypatch: pytest.MonkeyPatch, float_graph: Graph, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxslim", None)

    with pytest.raises(MissingToolError, match="pip install"):
        target.write({"fp32": tmp_path / "a.onnx"}, graph=float_graph, quantized=None, model=SPEC)
