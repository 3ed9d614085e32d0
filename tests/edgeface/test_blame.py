"""The layer whose rounding broke a budget, on networks with a fault planted in a known layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeface.data.pack import Pack
from edgeface.evaluate import decode
from edgeface.models.network import build_network, model_spec
from edgeface.models.runner import TorchRunner
from edgeface.report.entries import Entry
from edgeface.report.measure import measure
from edgeface.report.scorecard import FAKE_QUANT, FILE, STUDENT, Scorecard, from_json
from edgeface.report.table import as_markdown
from edgeface.specs import BudgetSpec, ModelSpec, NetworkSpec, output_spec
from quantize.calibrate import calibrate
from quantize.fakequant import FakeQuantNetwork, on_grid
from quantize.graph import Graph, trace
from quantize.grid import Quantized, snap

TASKS = ("gender", "pose")


@dataclass(frozen=True, kw_only=True)
class Student:
    """A float student that is never wrong, since the labels are its own answers, and grids that suit it."""

    network: torch.nn.Module
    graph: Graph
    grids: dict[str, tuple[float, int]]
    pack: Pack
    spec: ModelSpec


class QuantizedRunner(TorchRunner):
    """The fake-quant student, or what a w8a8 file of it computes."""

    def __init__(self, quantized: Quantized, spec: ModelSpec, *, precision: str) -> None:
        super().__init__(on_grid(quantized), spec, precision=precision)
        self.quantized = quantized


@pytest.fixture(scope="module")
def student() -> Student:
    torch.set_num_threads(1)
    network = NetworkSpec(backbone="cnn5", width=0.125, input_px=32, hidden=8)
    spec = model_spec(network, [output_spec(task) for task in TASKS])
    built = build_network(network, spec, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (96, 3, 5, 5), generator=generator).float()
    images = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").round().clamp(0, 255)
    pictures = images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    with torch.no_grad():
        for task in TASKS:
            head = built.heads[task]
            assert isinstance(head, torch.nn.Linear)
            head.weight.normal_(0.0, 0.3, generator=generator)
            # Centred logits, so that every class is among the answers.
            head.bias -= torch.from_numpy(TorchRunner(built, spec).run(pictures)[task]).mean(0)
    labels = decode(spec, TorchRunner(built, spec).run(pictures))
    assert all(len(np.unique(labels[task])) > 1 for task in TASKS)
    graph = trace(built)
    fake = FakeQuantNetwork(graph, calibration="minmax")
    calibrate(fake, [images], limit=1)
    fake.freeze()
    keys = tuple(map(str, range(len(pictures))))
    pack = Pack(
        images=pictures, px=32, margin=1.0, keys=keys, people=keys, labels=dict(labels), groups={}, name="planted",
        source="planted@val", split="val", licence="", skipped={}, research_only=False, content_hash="", folder=Path(),
    )  # fmt: skip
    return Student(network=built, graph=graph, grids=fake.activations(), pack=pack, spec=spec)


def scored(student: Student, coarse: str, *, points: float = 5.0, precision: str = "w8a8") -> Scorecard:
    """A file in which the results of one layer lie on a grid of three values."""
    scale, _ = student.grids[coarse]
    quantized = snap(student.graph, activations={**student.grids, coarse: (100.0 * scale, 0)})
    entries = [
        Entry(role=STUDENT, name="student", open=lambda: TorchRunner(student.network, student.spec)),
        Entry(
            role=FAKE_QUANT,
            name="fake-quant",
            open=lambda: QuantizedRunner(quantized, student.spec, precision="fake-quant"),
        ),
        Entry(role=FILE, name="a.tflite", open=lambda: QuantizedRunner(quantized, student.spec, precision=precision)),
    ]
    budget = {task: BudgetSpec(points=points) for task in TASKS}
    return measure(entries, lambda runner: student.pack, budget=budget)


@pytest.mark.parametrize("task", TASKS)
def test_the_planted_layer_is_blamed_for_its_task(student: Student, task: str) -> None:
    card = scored(student, f"heads_{task}")
    assert [name for _, name in card.broken] == [task]
    (found,) = card.blame
    assert (found["model"], found["runtime"], found["task"], found["unit"]) == ("a.tflite", "torch", task, "points")
    assert found["layers"][0]["layer"] == f"heads_{task}"
    assert found["faces"] == 96
    # In float that layer is right again, up to the rounding of the others.
    lost = 100.0 * (1.0 - card.rows[2].tasks[task].value)
    assert found["layers"][0]["cost"] == pytest.approx(lost, abs=8.0)
    assert f"heads_{task} {found['layers'][0]['cost']:.2f}" in as_markdown(card)
    assert from_json(json.loads(json.dumps(card.as_json())), where="here").blame == card.blame


def test_the_other_layer_is_blamed_for_the_other_task_twin(student: Student) -> None:
    first, second = (scored(student, f"heads_{task}").blame[0]["layers"][0]["layer"] for task in TASKS)
    assert first != second


def test_nobody_is_blamed_inside_a_budget(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantize import sensitivity

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured although no budget was broken")

    monkeypatch.setattr(sensitivity, "sensitivity", never)
    card = scored(student, "heads_pose", points=100.0)
    assert card.broken == []
    assert card.blame == []


def test_a_float_file_has_no_integer_layers_to_blame(student: Student) -> None:
    card = scored(student, "heads_pose", precision="fp16")
    assert card.broken != []
    assert card.blame == []
