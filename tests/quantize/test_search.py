"""Which layer hurts which task, and the cheapest mix of precisions, on networks with faults planted in known layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeface.data.pack import Pack
from edgeface.errors import BudgetError, ConfigError
from edgeface.evaluate import decode
from edgeface.models.network import MultiTaskNetwork, build_network, model_spec
from edgeface.models.runner import TorchRunner
from edgeface.specs import ModelSpec, NetworkSpec, output_spec
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork, on_grid
from quantize.graph import Graph, GraphNetwork, layer_macs, trace
from quantize.grid import Quantized, snap
from quantize.search import COST_OF_MAC, Tried, cost, search, size_bytes
from quantize.sensitivity import Faces, Mode, sensitivity

Grids = Mapping[str, tuple[float, int]]
Pictures = Callable[[int, int], NDArray[np.uint8]]

MEAN_SHAPE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
TASKS = ("landmarks5", "gender", "pose")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A student, grids that suit it, and faces whose labels are its own answers, so that it is never wrong in float."""

    graph: Graph
    grids: Grids
    faces: Faces
    pack: Pack
    spec: ModelSpec

    def with_grid(self, changes: Grids) -> Grids:
        return {**self.grids, **changes}


def pack_of(images: NDArray[np.uint8], labels: Mapping[str, NDArray[np.generic]]) -> Pack:
    count = len(images)
    return Pack(
        images=images, px=images.shape[1], margin=1.0, keys=tuple(map(str, range(count))), people=("",) * count,
        labels=dict(labels), groups={}, name="planted", source="planted@val", split="val", licence="", skipped={},
        research_only=False, content_hash="", folder=Path(),
    )  # fmt: skip


@pytest.fixture
def setting(pictures: Pictures, stirred: Callable[[MultiTaskNetwork], None]) -> Setting:
    network = NetworkSpec(backbone="cnn5", width=0.125, input_px=32, hidden=8)
    spec = model_spec(network, [output_spec("landmarks5", mean_shape=MEAN_SHAPE), *map(output_spec, TASKS[1:])])
    student = build_network(network, spec)
    stirred(student)
    images = pictures(96, 32)
    # Centred logits, so that every class is among the answers.
    with torch.no_grad():
        for name in TASKS[1:]:
            raw = torch.from_numpy(TorchRunner(student, spec).run(images)[name])
            student.heads[name].bias -= raw.mean(0)
    labels = decode(spec, TorchRunner(student, spec).run(images))
    assert all(len(np.unique(labels[name])) > 1 for name in TASKS[1:])
    pack = pack_of(images, labels)
    graph = trace(student)
    fake = FakeQuantNetwork(graph, calibration="minmax")
    calibrate(fake, [torch.from_numpy(images).permute(0, 3, 1, 2).float()], limit=1)
    fake.freeze()
    return Setting(graph=graph, grids=fake.activations(), faces=Faces(pack, spec), pack=pack, spec=spec)


COARSE = (64.0, 0)  # a grid on which every logit and offset here is 0
HEADS = {"landmarks5": "heads_landmarks5", "gender": "heads_gender", "pose": "heads_pose"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", ["alone", "rest"])
def test_a_fault_planted_in_a_head_is_found_in_it_and_in_no_other_task(mode: Mode, task: str, setting: Setting) -> None:
    table = sensitivity(setting.graph, setting.with_grid({HEADS[task]: COARSE}), setting.faces, mode=mode)
    assert table.most_harmful(task) == HEADS[task]
    harm = {row.layer: row.harm for row in table.rows}
    assert all(harm[HEADS[task]][other] <= 0.5 for other in TASKS if other != task)
    sound = sensitivity(setting.graph, setting.grids, setting.faces, mode=mode)
    without = {row.layer: row.harm for row in sound.rows}[HEADS[task]][task]  # the twin: without the fault
    assert harm[HEADS[task]][task] > 5 * abs(without)


def test_a_fault_planted_in_the_trunk_hurts_every_task(setting: Setting) -> None:
    trunk = next(node.name for node in setting.graph.nodes if node.op == "conv2d")
    table = sensitivity(setting.graph, setting.with_grid({trunk: COARSE}), setting.faces)
    assert {table.most_harmful(task) for task in TASKS} == {trunk}
    # A float layer still ends on its grid, so giving it back does not help.
    rest = sensitivity(setting.graph, setting.with_grid({trunk: COARSE}), setting.faces, mode="rest")
    assert all(abs(harm) < 1.0 for harm in next(row.harm for row in rest.rows if row.layer == trunk).values())


def in_training(quantized: Quantized) -> FakeQuantNetwork:
    """In the float arithmetic of training, which rounds one activation in a million otherwise than integers do."""
    network = on_grid(quantized)
    network.phase = "frozen"
    return network


def test_a_table_is_what_whole_networks_score(setting: Setting) -> None:
    grids = setting.with_grid({"heads_gender": COARSE})
    table = sensitivity(setting.graph, grids, setting.faces, mode="rest", batch=17)
    rounded = setting.faces.score(in_training(snap(setting.graph, activations=grids)))
    for row in table.rows:
        one_back = snap(setting.graph, activations=grids, floats=frozenset({row.layer}))
        expected = setting.faces.worsening(rounded, setting.faces.score(in_training(one_back)))
        # The same float arithmetic, but for sums in another order.
        assert row.harm == pytest.approx(expected, abs=1e-4)
    assert any(abs(row.harm["landmarks5"]) > 1e-2 for row in table.rows)  # the twin: not all of them are nothing


def test_faces_are_taken_evenly_and_scored_as_a_whole(setting: Setting) -> None:
    assert Faces(setting.pack, setting.spec, limit=5).images.shape[0] == 5
    some = Faces(setting.pack, setting.spec, limit=5)
    assert np.array_equal(some.images[[0, -1]], setting.pack.images[[0, -1]])
    scores = setting.faces.score(GraphNetwork(setting.graph), batch=7)
    assert scores["gender"] == scores["pose"] == 1.0
    assert scores["landmarks5"] == pytest.approx(0.0, abs=1e-4)  # its own answers, in another order of summation
    wrong = setting.faces.score(GraphNetwork(swapped(setting.graph)))
    assert wrong["gender"] == 0.0  # the twin


def swapped(graph: Graph) -> Graph:
    weights = {**graph.weights, "heads_gender": graph.weights["heads_gender"].flip(0)}
    return replace(
        graph, weights=weights, biases={**graph.biases, "heads_gender": graph.biases["heads_gender"].flip(0)}
    )


def test_int8_throughout_is_kept_when_it_holds(setting: Setting) -> None:
    found = search(
        snap(setting.graph, activations=setting.grids), setting.graph, budget={"gender": 100.0}, score=setting.faces
    )
    assert (found.precision, found.floats, found.sensitivity) == ("w8a8", frozenset(), None)
    assert len(found.tried) == 1
    assert found.quantized is not None
    assert found.tried[0].cost == sum(layer_macs(setting.graph).values())


@pytest.mark.parametrize("tasks", [("gender",), ("pose", "landmarks5")])
def test_the_layers_at_fault_alone_are_left_in_float(tasks: tuple[str, ...], setting: Setting) -> None:
    grids = setting.with_grid({HEADS[task]: COARSE for task in tasks})
    base = snap(setting.graph, activations=grids)
    sound = setting.faces.score(on_grid(snap(setting.graph, activations=setting.grids)))
    change = setting.faces.worsening(sound, setting.faces.score(GraphNetwork(setting.graph)))
    # Two faces of 96 more than sound grids cost: a float head decides some faces otherwise than an int8 one.
    budget = {task: max(change[task], 0.0) + 2.1 for task in TASKS}
    told: list[Tried] = []
    found = search(base, setting.graph, budget=budget, score=setting.faces, report=told.append)
    assert found.precision == "w8a8"
    assert found.floats == {HEADS[task] for task in tasks}
    assert found.tried == tuple(told)
    assert set(found.tried[0].broken) == set(tasks)
    assert found.quantized is not None
    assert found.quantized.floats == found.floats
    scored = setting.faces.score(on_grid(found.quantized))
    reference = setting.faces.score(GraphNetwork(setting.graph))
    assert all(setting.faces.worsening(scored, reference)[task] <= budget[task] for task in TASKS)
    macs = layer_macs(setting.graph)
    extra = sum(macs[layer] for layer in found.floats) * (COST_OF_MAC["fp32"] - COST_OF_MAC["w8a8"])
    assert cost(setting.graph, precision="w8a8", floats=found.floats) == sum(macs.values()) + extra


def test_no_float_layer_is_left_that_could_be_int8(setting: Setting) -> None:
    grids = setting.with_grid({"heads_gender": COARSE})
    found = search(snap(setting.graph, activations=grids), setting.graph, budget={"gender": 5.0}, score=setting.faces)
    dropped = [tried for tried in found.tried if found.floats > tried.floats]
    assert dropped
    assert all(tried.broken for tried in dropped)


def test_harm_that_another_fault_hides_is_measured_again(setting: Setting) -> None:
    # With nothing but zeros behind it, hidden_0 seems harmless until its head is in float.
    coarse_weights = {**setting.graph.weights, "hidden_0": setting.graph.weights["hidden_0"].clone()}
    coarse_weights["hidden_0"][:, 0] = 0.0
    coarse_weights["hidden_0"][:, 0] = 100.0 * coarse_weights["hidden_0"].abs().amax()
    bias = setting.graph.biases["hidden_0"]
    graph = replace(setting.graph, weights=coarse_weights, biases={**setting.graph.biases, "hidden_0": bias})
    fake = FakeQuantNetwork(graph, calibration="minmax")
    calibrate(fake, [torch.from_numpy(setting.pack.images).permute(0, 3, 1, 2).float()], limit=1)
    fake.freeze()
    labels = decode(setting.spec, TorchRunner(GraphNetwork(graph), setting.spec).run(setting.pack.images))
    faces = Faces(pack_of(setting.pack.images, labels), setting.spec)
    base = FakeQuantNetwork(graph)
    base.load_state_dict(fake.state_dict())
    with torch.no_grad():
        slot = base.points.index("heads_landmarks5")
        base.low[slot], base.high[slot] = -8192.0, 8192.0
    hidden = {row.layer: row.harm for row in sensitivity(graph, base.activations(), faces, mode="rest").rows}
    assert hidden["hidden_0"]["landmarks5"] == 0.0
    head = frozenset({"heads_landmarks5"})
    seen = sensitivity(graph, base.activations(), faces, mode="rest", floats=head)
    (harm,) = (row.harm["landmarks5"] for row in seen.rows if row.layer == "hidden_0")
    assert "heads_landmarks5" not in {row.layer for row in seen.rows}
    assert harm > 0.0
    alone = faces.score(on_grid(snap(graph, activations=base.activations(), floats=head)))["landmarks5"]
    found = search(base, graph, budget={"landmarks5": alone - 0.5 * harm}, score=faces)
    assert found.precision == "w8a8"
    assert found.floats == {"heads_landmarks5", "hidden_0"}


def test_a_fault_no_float_layer_mends_ends_in_half_floats(setting: Setting) -> None:
    trunk = next(node.name for node in setting.graph.nodes if node.op == "conv2d")
    base = snap(setting.graph, activations=setting.with_grid({trunk: COARSE}))
    found = search(base, setting.graph, budget={"gender": 2.0, "pose": 2.0}, score=setting.faces)
    assert (found.precision, found.floats, found.quantized) == ("fp16", frozenset(), None)
    assert found.tried[-1].size_bytes == size_bytes(setting.graph, precision="fp16")
    assert found.tried[-1].cost > found.tried[0].cost


def test_a_budget_the_float_student_breaks_is_an_error(setting: Setting) -> None:
    labels = {**setting.pack.labels, "gender": 1 - setting.pack.labels["gender"]}
    faces = Faces(pack_of(setting.pack.images, labels), setting.spec)
    base = snap(setting.graph, activations=setting.grids)
    with pytest.raises(BudgetError, match=r"gender \+100.00 \(budget 1\)"):
        search(base, setting.graph, budget={"gender": 1.0}, score=faces, reference={"gender": 1.0})


def test_a_budget_no_face_can_score_is_refused(setting: Setting) -> None:
    base = snap(setting.graph, activations=setting.grids)
    with pytest.raises(ConfigError, match="glasses"):
        search(base, setting.graph, budget={"glasses": 1.0}, score=setting.faces)


def test_a_calibrated_network_is_searched_too(setting: Setting) -> None:
    fake = FakeQuantNetwork(setting.graph)
    images = torch.from_numpy(setting.faces.images).permute(0, 3, 1, 2).float()
    calibrate(fake, [images], limit=1)
    with torch.no_grad():
        slot = fake.points.index("heads_gender")
        fake.low[slot], fake.high[slot] = -8192.0, 8192.0
    found = search(fake, setting.graph, budget={"gender": 5.0}, score=setting.faces)
    assert found.floats == {"heads_gender"}
    assert found.quantized is not None
    assert torch.equal(found.quantized.graph.weights["heads_gender"], setting.graph.weights["heads_gender"])


def test_a_network_on_the_grid_runs_as_itself(setting: Setting) -> None:
    floats = frozenset({"heads_pose"})
    quantized = snap(setting.graph, activations=setting.grids, floats=floats)
    again = on_grid(quantized).quantized()
    assert again.activations == quantized.activations
    assert again.floats == floats
    assert all(np.array_equal(again.weights[name], quantized.weights[name]) for name in quantized.weights)
