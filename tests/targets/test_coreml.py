"""Core ML packages: w8a8 carries QAT's constants to the bit, and its check notices every kind of change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeface.config import to_plain
from edgeface.errors import MissingToolError, ModelError, UnsupportedError
from edgeface.specs import STUDENTS, ModelSpec, NetworkSpec
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork
from quantize.graph import Graph, Node, apply, macs, run, trace
from quantize.grid import Quantized, dequantize, simulate, simulate_nodes
from quantize.qat import finish
from targets import coreml
from targets.mil import MilRunner, execute

from .conftest import quantize_network, random_network, random_pictures, spec_of

SIDES = dict.fromkeys(STUDENTS, 32) | {"tcdcn_relu": 40}
SPEC = spec_of(NetworkSpec(backbone="edge_s", width=0.25, input_px=32))


def spec_for(student: str) -> ModelSpec:
    return spec_of(NetworkSpec(backbone=student, width=0.25, input_px=SIDES[student]))


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    return quantize_network(random_network("edge_s"))


@pytest.fixture(scope="module")
def float_graph() -> Graph:
    return trace(random_network("edge_s"))


@pytest.fixture(scope="module")
def files(quantized: Quantized, float_graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("coreml")
    made = {precision: folder / f"{precision}.mlpackage" for precision in ("fp16", "w8", "p6", "w8a8")}
    coreml.write(made, graph=float_graph, quantized=quantized, model=SPEC)
    return made


def opened(path: Path, spec: ModelSpec = SPEC) -> MilRunner:
    return MilRunner(path, spec=spec, runtime="mil", precision="", threads=1)


def sqnr_db(path: Path, graph: Graph) -> float:
    pictures = random_pictures(16, graph.input_px)
    expected = run(graph, torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
    found = opened(path).run(pictures)
    noise = sum(np.square(found[name] - value.numpy()).sum() for name, value in expected.items())
    return float(10 * np.log10(sum(np.square(value.numpy()).sum() for value in expected.values()) / noise))


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("ios", [17, 18])
def test_int8_package_computes_the_grid_of_every_student(student: str, ios: int, tmp_path: Path) -> None:
    side, spec = SIDES[student], spec_for(student)
    quantized = quantize_network(random_network(student, input_px=side), input_px=side)
    path = tmp_path / "file.mlpackage"

    coreml.write({"w8a8": path}, graph=None, quantized=quantized, model=spec, ios=ios)

    pictures = random_pictures(12, side)
    found = opened(path, spec).run(pictures)
    expected = dequantize(quantized, simulate(quantized, pictures, kernels="coreml"))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    # The twin: the same pictures, each under its neighbour's name.
    assert not all(np.array_equal(np.roll(found[name], 1, axis=0), expected[name]) for name in expected)
    assert coreml.macs(path) == macs(quantized.graph)


# Half-float weights carry 2^-12 of relative rounding, int8 weights 2^-8 of the largest, 64 values about 2^-6.
@pytest.mark.parametrize(("precision", "least_db"), [("fp16", 50.0), ("w8", 25.0), ("p6", 10.0)])
def test_float_package_stays_close_to_the_float_student(
    precision: str, least_db: float, files: dict[str, Path], float_graph: Graph
) -> None:
    assert sqnr_db(files[precision], float_graph) > least_db


def test_float_package_of_another_layer_is_far_twin(files: dict[str, Path], float_graph: Graph) -> None:
    name = float_graph.nodes[0].name
    changed = replace(float_graph, weights={**float_graph.weights, name: float_graph.weights[name].flip(0)})

    assert sqnr_db(files["fp16"], changed) < 10.0


def test_input_is_a_picture_and_outputs_bear_the_tasks_names(files: dict[str, Path]) -> None:
    for path in files.values():
        package = coreml.read_package(path)

        assert package.picture == (32, 32, "RGB")
        assert set(package.outputs) == {"landmarks5", "gender", "smile"}
        assert package.specification == 8


def test_note_says_what_the_file_is(files: dict[str, Path]) -> None:
    expected = {"schema": 1, "model": json.loads(json.dumps(to_plain(SPEC))), "precision": "w8a8"}

    assert coreml.read_note(files["w8a8"]) == expected


def test_w8a8_for_ios_16_is_refused_with_the_reason(quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="iOS 17"):
        coreml.write({"w8a8": tmp_path / "file.mlpackage"}, graph=None, quantized=quantized, model=SPEC, ios=16)
    assert list(tmp_path.iterdir()) == []


def test_same_network_gives_the_same_bytes(quantized: Quantized, files: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.mlpackage"
    coreml.write({"w8a8": again}, graph=None, quantized=quantized, model=SPEC)

    parts = sorted(part.relative_to(again) for part in again.rglob("*") if part.is_file())
    assert len(parts) == 3
    assert all((again / part).read_bytes() == (files["w8a8"] / part).read_bytes() for part in parts)


def _one_weight(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["gender"]
    weight = quantized.weights[name].copy()
    weight[0, 0] += 1 if weight[0, 0] < 127 else -1
    return replace(quantized, weights={**quantized.weights, name: weight})


def _one_bias(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["gender"]
    return replace(quantized, biases={**quantized.biases, name: quantized.biases[name] + np.int32(1)})


def _weight_scale(quantized: Quantized) -> Quantized:
    name = quantized.graph.nodes[0].name
    return replace(
        quantized, weight_scales={**quantized.weight_scales, name: quantized.weight_scales[name] * np.float32(1.02)}
    )


def _scale(quantized: Quantized) -> Quantized:
    name = quantized.graph.nodes[1].name
    scale, zero_point = quantized.activations[name]
    return replace(quantized, activations={**quantized.activations, name: (scale * 1.02, zero_point)})


def _zero_point(quantized: Quantized) -> Quantized:
    name = quantized.graph.outputs["landmarks5"]
    scale, zero_point = quantized.activations[name]
    return replace(quantized, activations={**quantized.activations, name: (scale, zero_point + 1)})


def _swapped(quantized: Quantized) -> Quantized:
    outputs = dict(quantized.graph.outputs)
    outputs["gender"], outputs["smile"] = outputs["smile"], outputs["gender"]
    return replace(quantized, graph=replace(quantized.graph, outputs=outputs))


def _other_relu(quantized: Quantized) -> Quantized:
    nodes = tuple(
        replace(node, relu=not node.relu) if place == 1 else node for place, node in enumerate(quantized.graph.nodes)
    )
    return replace(quantized, graph=replace(quantized.graph, nodes=nodes))


def _float_island(quantized: Quantized) -> Quantized:
    return replace(quantized, floats=frozenset({quantized.graph.nodes[1].name}))


def test_check_accepts_what_was_written(files: dict[str, Path], quantized: Quantized) -> None:
    coreml.check_w8a8(files["w8a8"], quantized)


@pytest.mark.parametrize(
    "change",
    [_one_weight, _one_bias, _weight_scale, _scale, _zero_point, _swapped, _other_relu, _float_island],
)
def test_check_notices_any_difference_twin(
    change: Callable[[Quantized], Quantized], files: dict[str, Path], quantized: Quantized
) -> None:
    with pytest.raises(ModelError, match="layer"):
        coreml.check_w8a8(files["w8a8"], change(quantized))


def test_check_notices_another_version_twin(files: dict[str, Path], quantized: Quantized) -> None:
    with pytest.raises(ModelError, match="specification version 8"):
        coreml.check_w8a8(files["w8a8"], quantized, ios=18)


@pytest.mark.parametrize("precision", ["fp16", "w8", "p6"])
def test_check_notices_one_changed_float_weight_twin(
    precision: str, files: dict[str, Path], float_graph: Graph
) -> None:
    name = float_graph.nodes[0].name
    weight = float_graph.weights[name].clone()
    weight.view(-1)[0] += weight.abs().max() / 8
    changed = replace(float_graph, weights={**float_graph.weights, name: weight})

    coreml.check_float(files[precision], float_graph, precision=precision)
    with pytest.raises(ModelError, match=name):
        coreml.check_float(files[precision], changed, precision=precision)


def test_truncated_weights_are_an_error(files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(files["w8a8"], broken)
    weights = coreml.weights_file(broken)
    weights.write_bytes(weights.read_bytes()[:-4000])

    with pytest.raises(ModelError, match="Copy or build it again"):
        opened(broken)


def test_float_layer_keeps_its_neighbours_in_integers(quantized: Quantized, tmp_path: Path) -> None:
    middle, last = quantized.graph.nodes[1].name, quantized.graph.outputs["gender"]
    floats = frozenset({middle, last})
    kept = {
        key: {name: value for name, value in getattr(quantized, key).items() if name not in floats}
        for key in ("weights", "weight_scales", "biases")
    }
    mixed = replace(quantized, floats=floats, **kept)
    path = tmp_path / "mixed.mlpackage"

    coreml.write({"w8a8": path}, graph=None, quantized=mixed, model=SPEC)

    pictures = random_pictures(8, 32)
    found = opened(path).run(pictures)
    whole = dequantize(quantized, simulate(quantized, pictures, kernels="coreml"))
    step, zero = quantized.output_grid("gender")[:2]
    inside = np.clip(found["gender"], (-128 - zero) * step, (127 - zero) * step)  # where the integers end, floats go on
    assert np.abs(inside - whole["gender"]).max() <= 2 * step
    assert not np.allclose(found["gender"] / step, np.rint(found["gender"] / step), atol=1e-3)
    with pytest.raises(ModelError, match="layer"):
        coreml.check_w8a8(path, quantized)


@pytest.mark.parametrize("precision", ["fp16", "w8a8"])
def test_float_input_takes_standardized_values(
    precision: str, files: dict[str, Path], quantized: Quantized, float_graph: Graph, tmp_path: Path
) -> None:
    path = tmp_path / "file.mlpackage"
    coreml.write({precision: path}, graph=float_graph, quantized=quantized, model=SPEC, float_input=True)
    pictures = random_pictures(4, 32)

    found, expected = opened(path).run(pictures), opened(files[precision]).run(pictures)

    assert coreml.read_package(path).inputs[0].shape == (1, 32, 32, 3)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_other_statistics_work_in_half_floats_and_not_in_int8(
    float_graph: Graph, quantized: Quantized, tmp_path: Path
) -> None:
    statistics = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    graph, path = replace(float_graph, **statistics), tmp_path / "file.mlpackage"

    coreml.write({"fp16": path}, graph=graph, quantized=None, model=SPEC)

    assert sqnr_db(path, graph) > 50.0
    assert sqnr_db(path, float_graph) < 30.0
    other = replace(quantized, graph=replace(quantized.graph, **statistics))
    with pytest.raises(UnsupportedError, match="mean 128"):
        coreml.write({"w8a8": path}, graph=None, quantized=other, model=SPEC)


def test_palette_serves_each_weight_with_its_nearest_value() -> None:
    weight = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float16)

    palette, indices = coreml.palettise(weight)

    assert palette.shape == (64,)
    naive = np.abs(weight.astype(np.float64)[..., None] - palette.astype(np.float64)).min(axis=-1)
    assert np.array_equal(np.abs(weight.astype(np.float64) - palette[indices]), naive)
    even = np.linspace(float(weight.min()), float(weight.max()), 64)
    nearest = np.abs(weight.astype(np.float64)[..., None] - even).min(axis=-1)
    # The best 64 values for a normal density have an error of about 7e-4, even steps over this range 1e-3.
    assert np.square(naive).mean() < 0.8 * np.square(nearest).mean()


def test_core_ml_itself_is_not_run_off_mac(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")

    with pytest.raises(MissingToolError, match="macOS") as caught:
        coreml.CoremlRunner(files["w8a8"], spec=SPEC, runtime="coreml", precision="w8a8", threads=1)
    assert caught.value.exit_code == 3


def _every_operation() -> Graph:
    """Each operation once at least: asymmetric padding, stride, an overlapping pool, both forms of max-feature-map."""
    generator = torch.Generator().manual_seed(3)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / float(np.sqrt(np.prod(shape[1:])))

    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (0, 1, 0, 1)}
    nodes = (
        Node(name="stem", op="conv2d", inputs=("image",), shape=(8, 8, 8), relu=True, **window),
        Node(name="side", op="conv2d", inputs=("stem",), shape=(8, 8, 8), kernel=(3, 1), padding=(2, 0, 0, 0)),
        Node(name="joined", op="add", inputs=("stem", "side"), shape=(8, 8, 8), relu=True),
        Node(name="pooled", op="max_pool", inputs=("joined",), shape=(8, 3, 3), kernel=(3, 3), stride=(2, 2)),
        Node(name="halved", op="mfm", inputs=("pooled",), shape=(4, 3, 3)),
        Node(name="averaged", op="mean", inputs=("pooled",), shape=(8,)),
        Node(name="flat", op="flatten", inputs=("halved",), shape=(36,)),
        Node(name="wide", op="linear", inputs=("flat",), shape=(8,)),
        Node(name="narrow", op="mfm", inputs=("wide",), shape=(4,)),
        Node(name="points", op="linear", inputs=("narrow",), shape=(10,)),
        Node(name="choice", op="linear", inputs=("averaged",), shape=(2,)),
    )
    weights = {
        "stem": weight(8, 3, 3, 3),
        "side": weight(8, 8, 3, 1),
        "wide": weight(8, 36),
        "points": weight(10, 4),
        "choice": weight(2, 8),
    }
    return Graph(
        input_px=16,
        nodes=nodes,
        outputs={"landmarks5": "points", "gender": "choice"},
        output_shapes={"landmarks5": (5, 2)},
        weights=weights,
        biases={name: torch.randn(len(value), generator=generator) / 4 for name, value in weights.items()},
        mean=(128.0,) * 3,
        std=(64.0,) * 3,
    )


@pytest.fixture(scope="module")
def every_operation() -> Quantized:
    network = FakeQuantNetwork(_every_operation())
    calibrate(network, [torch.from_numpy(random_pictures(8, 16)).permute(0, 3, 1, 2).float()], limit=1)
    finish(network)
    return network.quantized()


@pytest.mark.parametrize("ios", [17, 18])
def test_every_operation_gives_the_grids_integers(every_operation: Quantized, ios: int, tmp_path: Path) -> None:
    path, pictures = tmp_path / "file.mlpackage", random_pictures(16, 16, seed=5)
    coreml.write({"w8a8": path}, graph=None, quantized=every_operation, model=SPEC, ios=ios)

    found = execute(path, pictures)

    expected = simulate_nodes(every_operation, pictures, kernels="coreml")
    assert all(np.array_equal(found[f"{name}_codes"], codes) for name, codes in expected.items())
    outputs = dequantize(every_operation, simulate(every_operation, pictures, kernels="coreml"))
    assert all(np.array_equal(found[name], values) for name, values in outputs.items())
    # The twin: one bias moved by what is worth two steps of its layer.
    step = round(2 / float(coreml.multiplier(every_operation, every_operation.graph.node("stem"))[0]))
    biases = {**every_operation.biases, "stem": every_operation.biases["stem"] + np.int32(step)}
    other = simulate_nodes(replace(every_operation, biases=biases), pictures, kernels="coreml")
    assert not np.array_equal(found["stem_codes"], other["stem"])


@pytest.mark.parametrize("ios", [16, 17, 18])
@pytest.mark.parametrize(("precision", "least_db"), [("fp16", 60.0), ("w8", 30.0), ("p6", 30.0)])
def test_every_operation_computes_the_float_graph(precision: str, least_db: float, ios: int, tmp_path: Path) -> None:
    graph, path, pictures = _every_operation(), tmp_path / "file.mlpackage", random_pictures(8, 16)
    coreml.write({precision: path}, graph=graph, quantized=None, model=SPEC, ios=ios)

    found = execute(path, pictures)

    values = {"image": (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - 128) / 64}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        values[node.name] = apply(node, inputs, weight=graph.weights.get(node.name), bias=graph.biases.get(node.name))
        noise = np.square(found[node.name] - values[node.name].numpy()).sum()
        assert 10 * np.log10(np.square(values[node.name].numpy()).sum() / max(noise, 1e-20)) > least_db, node.name


def test_int8_constants_are_float32_in_the_file(files: dict[str, Path], quantized: Quantized) -> None:
    package = coreml.read_package(files["w8a8"])
    kinds = {value.dtype for operation in package.operations for value in operation.outputs}
    scales = [package.constant(op, "scale") for op in package.operations if op.kind == "constexpr_affine_dequantize"]

    assert kinds == {"fp32", "int8"}
    assert len(scales) == len(quantized.weights)
    assert all(scale.dtype == np.float32 and (np.frexp(scale)[0] == 0.5).all() for scale in scales)


Change = Callable[[Any, Any, Quantized], None]


def _tampered(path: Path, folder: Path, change: Change, quantized: Quantized) -> Path:
    """A copy of a package, its program changed behind edgeface's back."""
    other = folder / "other.mlpackage"
    shutil.copytree(path, other)
    model = coreml.read_model(other)
    function = model.mlProgram.functions["main"]
    change(model, function.block_specializations[function.opset], quantized)
    (other / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(model.SerializeToString())
    return other


def _operation(block: Any, value: str) -> Any:
    return next(op for op in block.operations if op.outputs and op.outputs[0].name == value)


def _constant(block: Any, operation: Any, parameter: str) -> Any:
    """Where a scalar constant of an operation is held."""
    name = operation.inputs[parameter].arguments[0].name
    return _operation(block, name).attributes["val"].immediateValue.tensor


def _output_scale_off(model: Any, block: Any, quantized: Quantized) -> None:
    held = _constant(block, _operation(block, "gender"), "scale")
    held.floats.values[0] *= 1.02


def _outputs_swapped(model: Any, block: Any, quantized: Quantized) -> None:
    first, second = (_operation(block, name) for name in ("gender", "smile"))
    codes = [op.inputs["input"].arguments[0].name for op in (first, second)]
    for op, name in zip((first, second), reversed(codes), strict=True):
        op.inputs["input"].arguments[0].name = name


def _one_operation_more(model: Any, block: Any, quantized: Quantized) -> None:
    extra = block.operations.add()
    extra.CopyFrom(_operation(block, f"{quantized.graph.nodes[0].name}_total"))
    extra.outputs[0].name = "stray"


def _layer_reads_another(model: Any, block: Any, quantized: Quantized) -> None:
    (name,) = quantized.graph.node(quantized.graph.outputs["gender"]).inputs
    _operation(block, f"{quantized.graph.outputs['gender']}_total").inputs["x"].arguments[0].name = f"{name}_codes"


def _pads_moved(model: Any, block: Any, quantized: Quantized) -> None:
    held = _constant(block, _operation(block, f"{quantized.graph.nodes[0].name}_total"), "pad")
    held.ints.values[0] += 1


def _older_version(model: Any, block: Any, quantized: Quantized) -> None:
    model.specificationVersion = 7


@pytest.mark.parametrize(
    "change",
    [_output_scale_off, _outputs_swapped, _one_operation_more, _layer_reads_another, _pads_moved, _older_version],
)
def test_check_notices_a_tampered_program_twin(
    change: Change, files: dict[str, Path], quantized: Quantized, tmp_path: Path
) -> None:
    other = _tampered(files["w8a8"], tmp_path, change, quantized)

    with pytest.raises(ModelError, match="layer"):
        coreml.check_w8a8(other, quantized)


@pytest.mark.parametrize("precision", ["w8a8", "w8", "fp16"])
def test_check_notices_one_bit_of_the_weights_file_twin(
    precision: str, files: dict[str, Path], quantized: Quantized, float_graph: Graph, tmp_path: Path
) -> None:
    other = tmp_path / "other.mlpackage"
    shutil.copytree(files[precision], other)
    name = float_graph.nodes[0].name
    held = float_graph.weights[name].numpy().astype(np.float16)
    if precision != "fp16":
        package = coreml.read_package(other)
        held = package.constant(package.producers()[f"{name}_weight"], "quantized_data")
    file = coreml.weights_file(other)
    content = bytearray(file.read_bytes())
    place = content.find(held.tobytes())
    assert place > 0
    content[place + 4] ^= 1
    file.write_bytes(content)

    check = partial(coreml.check_float, graph=float_graph, precision=precision)
    if precision == "w8a8":
        check = partial(coreml.check_w8a8, quantized=quantized)
    check(files[precision])
    with pytest.raises(ModelError, match=name):
        check(other)


def test_precision_without_its_network_is_refused(quantized: Quantized, float_graph: Graph, tmp_path: Path) -> None:
    for precision, given in (("w8a8", {"graph": float_graph}), ("fp16", {"quantized": quantized})):
        both = {"graph": None, "quantized": None, **given}
        with pytest.raises(UnsupportedError, match="without the"):
            coreml.write({precision: tmp_path / "file.mlpackage"}, model=SPEC, **both)
    assert list(tmp_path.iterdir()) == []


def test_names_a_program_cannot_hold_are_refused(tmp_path: Path) -> None:
    graph = _every_operation()
    for name in ("0", "stem_weight"):
        nodes = tuple(replace(node, name=name) if node.name == "choice" else node for node in graph.nodes)
        weights, biases = (
            {name if key == "choice" else key: value for key, value in held.items()}
            for held in (graph.weights, graph.biases)
        )
        outputs = {**graph.outputs, "gender": name}
        odd = replace(graph, nodes=nodes, weights=weights, biases=biases, outputs=outputs)
        with pytest.raises(UnsupportedError, match=name):
            coreml.write({"fp16": tmp_path / "file.mlpackage"}, graph=odd, quantized=None, model=SPEC)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"itemInfoEntries": {"a": {"path": "../../x"}}, "rootModelIdentifier": "a"}']
)
def test_broken_manifest_is_an_error(content: str, files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(files["fp16"], broken)
    (broken / "Manifest.json").write_text(content, encoding="utf-8")

    with pytest.raises(ModelError, match=r"Manifest\.json"):
        coreml.read_note(broken)
