"""The students edge_s, edge_m and edge_l, and the study that their shapes come from (benchmarks/architecture.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.architecture import (
    CANDIDATES,
    EARLIER,
    EDGE_S,
    LARGER,
    TASKS,
    Shape,
    all_tasks,
    backbone,
    collect,
    convert,
    markdown,
    network_of,
    predicted_us,
    steps,
    table,
    time_files,
)
from edgeface.errors import ConfigError
from edgeface.models.backbones import BUILDERS
from edgeface.models.network import build_network, count_parameters
from edgeface.specs import NetworkSpec, StudentSpec
from quantize.graph import macs, trace

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "architecture.json"
PAGE = ROOT / "docs" / "students.md"
DENSE = tuple(shape for shape in (*CANDIDATES, *EARLIER, *LARGER) if shape.name != "depthwise")

# Folded parameters and multiply-accumulates of backbones at 64 px, worked out by hand: for edge_s the convolutions' are
# 448 + 9,280 + 2 · 36,928 + 46,160 + 3 · 57,680 + 46,144, the 1×1 4,160, and the linear layer 1024 · 96 + 96.
COSTS = {"edge_s": (451_488, 36_585_472), "edge_m": (791_040, 57_950_208), "edge_l": (1_331_520, 83_787_776)}


@pytest.mark.parametrize("name", COSTS)
def test_students_have_exactly_these_parameters_and_operations(name: str) -> None:
    spec = NetworkSpec(backbone=name)
    network = build_network(spec, all_tasks(spec)).eval()
    parameters, operations = COSTS[name]
    heads = sum(count_parameters(head) for head in network.heads.values())
    features = BUILDERS[name](width=1.0, input_px=64, head="").features
    assert count_parameters(network) - heads == parameters
    assert macs(trace(network)) - (heads - heads // (features + 1)) == operations


def test_another_input_or_width_costs_something_else_twin() -> None:
    wider = BUILDERS["edge_m"](width=1.125, input_px=64, head="")
    larger = BUILDERS["edge_m"](width=1.0, input_px=80, head="")
    assert COSTS["edge_m"][0] not in (count_parameters(wider.module), count_parameters(larger.module))


def test_checkpoints_of_edge_s_find_their_layers() -> None:
    """Names and shapes that weights on disk have."""
    built = BUILDERS["edge_s"](width=1.0, input_px=64, head="")
    found = {name: tuple(value.shape) for name, value in built.module.state_dict().items() if value.ndim > 1}
    convolutions = [(16, 3), (64, 16), (64, 64), (64, 64), (80, 64), (80, 80), (80, 80), (80, 80), (64, 80)]
    assert found == {
        **{f"conv{place}.conv.weight": (*sides, 3, 3) for place, sides in enumerate(convolutions, start=1)},
        "squeeze.conv.weight": (64, 64, 1, 1),
        "fc.linear.weight": (96, 1024),
    }


@pytest.mark.parametrize("name", ["edge_m", "edge_l"])
def test_a_larger_student_may_have_prelus_and_an_exact_integer_form_of_them(name: str) -> None:
    spec = NetworkSpec(backbone=name, width=0.25, input_px=32, activation="prelu")
    assert StudentSpec(network=spec).network == spec
    plain = trace(build_network(spec.__class__(backbone=name, width=0.25, input_px=32), all_tasks(spec)).eval())
    assert macs(trace(build_network(spec, all_tasks(spec)).eval())) > 2 * macs(plain)


def test_a_student_with_poolings_may_not_have_prelus_twin() -> None:
    with pytest.raises(ConfigError, match="max-pooling reads cnn5's activations"):
        StudentSpec(network=NetworkSpec(backbone="cnn5", activation="prelu"))


@pytest.mark.parametrize("shape", [EDGE_S, *LARGER], ids=lambda shape: shape.name)
def test_the_studied_plan_is_the_registered_student(shape: Shape) -> None:
    registered = BUILDERS[shape.name](width=1.0, input_px=shape.input_px, head="").module
    studied = backbone(shape.plan, shape.input_px)
    assert [tuple(p.shape) for p in studied.parameters()] == [tuple(p.shape) for p in registered.parameters()]


@pytest.mark.parametrize("shape", DENSE, ids=lambda shape: shape.name)
def test_a_plan_counts_what_its_network_has(shape: Shape) -> None:
    spec = NetworkSpec(backbone="edge_s", input_px=shape.input_px)
    network = network_of(shape, build_network(spec, all_tasks(spec)), seed=0).eval()
    done = steps(shape.plan, shape.input_px)
    heads = sum(count_parameters(head) for head in network.heads.values())
    values = heads // (done[-1].channels + 1)
    assert sum(step.parameters for step in done) + heads == count_parameters(network)
    assert sum(step.macs for step in done) + heads - values == macs(trace(network))


def test_a_plan_with_another_layer_counts_something_else_twin() -> None:
    done, other = (steps(plan, 64) for plan in (EDGE_S.plan, EDGE_S.plan.replace("64s2 64 ", "64s2 72 ")))
    assert sum(step.macs for step in done) != sum(step.macs for step in other)
    assert sum(step.parameters for step in done) != sum(step.parameters for step in other)


@pytest.mark.parametrize(("plan", "field"), [("16s2 8", 7), ("16k4s4 8", 12), ("8s2 ds2 8k1 d", 15), ("8 8 8s2", 7)])
def test_the_field_of_a_plan_is_what_a_cell_sees(plan: str, field: int) -> None:
    """The pixels that move one cell in the middle, by the gradient."""
    network = backbone(plan, 64).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(1.0)
    pixels = torch.ones(1, 3, 64, 64, requires_grad=True)
    answer = network(pixels)
    answer[0, 0, answer.shape[2] // 2, answer.shape[3] // 2].backward()
    assert pixels.grad is not None
    assert int((pixels.grad[0, 0].abs().sum(dim=0) > 0).sum()) == field == steps(plan, 64)[-1].field


def test_tiles_are_filled_up_by_hand() -> None:
    """24 channels count as 32, 3 as 8, and 1024 cells as 147 rows of 7."""
    (step,) = steps("24s2", 64)
    assert step.macs == 1024 * 9 * 3 * 24
    assert step.computed == 147 * 7 * 9 * 8 * 32
    (whole,) = steps("16k1s4", 4)[-1:]
    assert whole.computed != whole.macs


def test_an_unknown_word_is_refused() -> None:
    for plan in ("24s2 x3", "24s2 gapp"):
        with pytest.raises(ValueError, match="is no operation"):
            steps(plan, 64)


@pytest.fixture
def found() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text(encoding="utf-8")))


def test_the_tables_are_those_of_the_figures(found: dict[str, Any]) -> None:
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == markdown(found)
    assert RESULTS.with_suffix(".csv").read_text(encoding="utf-8") == table(found)


def test_another_figure_is_not_in_the_tables_twin(found: dict[str, Any]) -> None:
    found["networks"]["rows"][0]["us"] += 10.0
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") != markdown(found)
    assert RESULTS.with_suffix(".csv").read_text(encoding="utf-8") != table(found)


def test_what_was_measured_is_what_the_students_cost(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["networks"]["rows"] if row["runtime"] == "LiteRT"}
    for name, (parameters, operations) in COSTS.items():
        features = BUILDERS[name](width=1.0, input_px=64, head="").features
        assert rows[name]["macs"] == operations + features * 134, "eight tasks have 134 values"
        assert rows[name]["parameters"] == parameters + (features + 1) * 134


def test_students_are_within_the_default_s_latency_as_documented(found: dict[str, Any]) -> None:
    """docs/students.md: edge_s answers all tasks in a quarter of a millisecond, edge_l in half of one."""
    ms = {row["name"]: row["us"] / 1e3 for row in found["networks"]["rows"] if row["made_by"] == "edgeface"}
    assert ms.keys() >= {"edge_s", "edge_m", "edge_l"}
    litert = {row["name"]: row["us"] / 1e3 for row in found["networks"]["rows"] if row["runtime"] == "LiteRT"}
    assert litert["edge_s"] <= 0.25 < litert["edge_m"] < litert["edge_l"] <= 0.5


def warm_ms(found: dict[str, Any]) -> str:
    """Milliseconds of edge_s in LiteRT with warm caches, as docs/students.md writes them."""
    (row,) = (
        row
        for row in found["networks"]["rows"]
        if (row["name"], row["made_by"], row["runtime"]) == ("edge_s", "edgeface", "LiteRT")
    )
    return f"`edge_s` takes {row['us'] / 1e3:.3f} ms"


def test_the_page_of_students_says_what_was_measured_with_warm_caches(found: dict[str, Any]) -> None:
    assert warm_ms(found) in " ".join(PAGE.read_text(encoding="utf-8").split())


def test_readme_says_what_the_edge_students_take_with_warm_caches(found: dict[str, Any]) -> None:
    rows = [row for row in found["networks"]["rows"] if row["made_by"] == "edgeface" and row["runtime"] == "LiteRT"]
    first, second, third = (next(row["us"] / 1e3 for row in rows if row["name"] == name) for name in COSTS)
    text = " ".join((PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"in {first:.2f}, {second:.2f} and {third:.2f} ms on one x86 core" in text
    assert f"in {first + 0.01:.2f}, {second:.2f} and {third:.2f} ms on one x86 core" not in text  # twin


def test_another_latency_is_not_on_the_page_twin(found: dict[str, Any]) -> None:
    for row in found["networks"]["rows"]:
        row["us"] += 10.0
    assert warm_ms(found) not in " ".join(PAGE.read_text(encoding="utf-8").split())


def off_percent(row: dict[str, Any]) -> float:
    return 100.0 * abs(predicted_us(row["plan"], row["input_px"]) / row["us"] - 1.0)


def test_dense_networks_take_the_time_that_their_plan_predicts(found: dict[str, Any]) -> None:
    """2 % is what the page says; the constants stem from parts of networks, not from these."""
    rows = [row for row in found["networks"]["rows"] if row["runtime"] == "LiteRT" and row["made_by"] == "edgeface"]
    assert len(rows) == len(DENSE) + len(COSTS), "edge students with heatmaps too"
    assert max(map(off_percent, rows)) < 2.0


def test_networks_of_depthwise_convolutions_take_longer_than_predicted_twin(found: dict[str, Any]) -> None:
    rows = [row for row in found["networks"]["rows"] if "ds2" in row["plan"]]
    assert len(rows) == 4
    assert min(map(off_percent, rows)) > 5.0


def test_trainings_are_collected_in_the_order_of_the_candidates(tmp_path: Path) -> None:
    for shape in (CANDIDATES[2], CANDIDATES[0]):
        folder = tmp_path / f"architecture-{shape.name}-0"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"name": shape.name, "seed": 0}))
    assert [row["name"] for row in collect(tmp_path)["rows"]] == [CANDIDATES[0].name, CANDIDATES[2].name]


@pytest.mark.slow
def test_a_converted_plan_has_its_operations_and_runs(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow converts the plans that edgeface does not deploy")
    from targets.flatbuffer import macs as file_macs

    plan, path = "b2 16s2 < d 16k1 + gap", tmp_path / "plan.tflite"
    path.write_bytes(convert(plan, 32, heads=(len(TASKS),)))
    assert file_macs(path.read_bytes()) == sum(step.macs for step in steps(plan, 32)) + 16 * len(TASKS)
    assert time_files([path], rounds=1)[0] > 0.0
