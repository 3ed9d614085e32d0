"""Class weights and the focal loss against their formulas, their masks, and what a recipe makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill.imbalance import binary_focal, class_weights, focal, imbalance_loss, label_weights
from distill.losses import hard_loss
from distill.objective import Objective
from distill.stages import chosen
from edgeface import specs
from edgeface.data.loader import class_counts
from edgeface.errors import ConfigError, DataError
from edgeface.specs import DistillSpec, LossSpec, ModelSpec, output_spec
from edgeface.tasks import Kind

GENERATOR = torch.Generator().manual_seed(0)
GLASSES = torch.tensor([0] * 6 + [1] * 2 + [-1] * 3)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def test_weights_are_one_on_average_and_inverse_to_the_size_of_a_class() -> None:
    weights = class_weights(torch.tensor([6, 2, 0]), power=1.0)
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4, 0.0])  # N / (classes that are there · size)
    assert (6 * weights[0] + 2 * weights[1]).item() == pytest.approx(8.0)
    half = class_weights(torch.tensor([6, 2, 0]), power=0.5)
    assert (half[1] / half[0]).item() == pytest.approx(math.sqrt(3.0))
    assert class_weights(torch.tensor([6, 2]), power=0.0).tolist() == [1.0, 1.0]


def counts_of(labels: Mapping[str, Tensor]) -> Callable[[str], Tensor]:
    return lambda name: class_counts(name, labels[name])


def test_weights_come_from_the_labels_that_are_there() -> None:
    spec = LossSpec(forms={"glasses": "weighted", "attributes": "weighted-focal", "smile": "focal"})
    marks = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 1, 1], [0, 1, -1, -1]], dtype=torch.int8)
    found = label_weights(counts_of({"glasses": GLASSES, "attributes": marks, "smile": GLASSES}), spec)
    assert set(found) == {"glasses", "attributes"}
    assert found["glasses"].tolist() == pytest.approx([8 / 12, 2.0])
    assert found["attributes"][0].tolist() == pytest.approx([4 / 6, 2.0])
    assert found["attributes"][1].tolist() == pytest.approx([3 / 4, 1.5])  # three labels, two absent
    with pytest.raises(DataError, match=r"loss\.forms\.glasses"):
        label_weights(counts_of({"glasses": torch.full((4,), -1), "attributes": marks}), spec)


def naive_focal(logits: Tensor, target: Tensor, gamma: float, weights: list[float]) -> list[float]:
    rows = []
    for row, right in zip(logits.double().tolist(), target.tolist(), strict=True):
        p = math.exp(row[right]) / sum(math.exp(value) for value in row)
        rows.append(-weights[right] * (1.0 - p) ** gamma * math.log(p))
    return rows


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_equals_its_formula_written_as_loops(gamma: float) -> None:
    logits, target, weights = draw(5, 3), torch.tensor([0, 1, 2, 1, 0]), [0.5, 2.0, 1.0]
    fast = focal(logits, target, gamma=gamma, weights=torch.tensor(weights))
    assert fast.tolist() == pytest.approx(naive_focal(logits, target, gamma, weights), rel=1e-5)  # float32 softmax
    assert fast.tolist() != pytest.approx(naive_focal(logits, target, gamma + 0.1, weights), rel=1e-5)
    assert fast.tolist() != pytest.approx(naive_focal(logits, target, gamma, [2.0, 0.5, 1.0]), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_binary_focal_loss_equals_its_formula_written_as_loops(gamma: float) -> None:
    logits, target = draw(4, 2), torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    weights = torch.tensor([[0.5, 3.0], [1.5, 0.7]])

    def naive(gamma: float) -> list[float]:
        cells = []
        for row in range(4):
            for column in range(2):
                present = int(target[row, column])
                p = 1.0 / (1.0 + math.exp(-float(logits[row, column])))
                p = p if present else 1.0 - p
                cells.append(-float(weights[column, present]) * (1.0 - p) ** gamma * math.log(p))
        return cells

    fast = binary_focal(logits, target, gamma=gamma, weights=weights)
    assert fast.flatten().tolist() == pytest.approx(naive(gamma), rel=1e-5)
    assert fast.flatten().tolist() != pytest.approx(naive(gamma + 0.1), rel=1e-5)


def test_focal_gradient_stays_finite_where_the_network_is_certain() -> None:
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)
    focal(logits, torch.tensor([0, 0]), gamma=0.5).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1, 0].item() == pytest.approx(-1.0, rel=1e-3)  # certain and wrong: as cross-entropy


@pytest.mark.parametrize("task", ["glasses", "attributes"])
@pytest.mark.parametrize("form", specs.IMBALANCE_LOSSES)
def test_a_missing_label_costs_nothing_in_every_form(task: str, form: str) -> None:
    spec, output = LossSpec(forms={task: form}), output_spec(task)
    binary = task == "attributes"
    labels = torch.tensor([[1, 0, 1, -1], [-1, -1, -1, -1], [0, 0, 0, 1]]) if binary else torch.tensor([1, -1, 0])
    known = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1]]) if binary else torch.tensor([1, 0, 0, 1])
    weights = label_weights(counts_of({task: known}), spec).get(task)
    prediction = draw(3, *output.shape).requires_grad_()

    values = hard_loss(output, prediction, labels, spec=spec, weights=weights)
    values.sum().backward()

    assert prediction.grad is not None
    assert values[1].item() == 0.0
    assert prediction.grad[1].abs().max().item() == 0.0
    assert (values[[0, 2]] > 0).all()
    if binary:  # the one unlabelled attribute of a labelled face
        assert prediction.grad[0, 3].item() == 0.0
        assert prediction.grad[0, :3].abs().min().item() > 0.0


def test_forms_differ_from_the_plain_loss_and_meet_it_at_their_neutral_parameters() -> None:
    output, logits, labels = output_spec("glasses"), draw(6, 2), torch.tensor([0, 0, 0, 0, 1, 1])
    plain = hard_loss(output, logits, labels, spec=LossSpec())
    for form in specs.IMBALANCE_LOSSES:
        spec = LossSpec(forms={"glasses": form})
        weights = label_weights(counts_of({"glasses": GLASSES}), spec).get("glasses")
        assert not torch.allclose(hard_loss(output, logits, labels, spec=spec, weights=weights), plain)
        neutral = replace(spec, class_power=0.0, focal_gamma=0.0)
        weights = label_weights(counts_of({"glasses": GLASSES}), neutral).get("glasses")
        assert torch.allclose(hard_loss(output, logits, labels, spec=neutral, weights=weights), plain)


def test_a_weighted_form_without_weights_is_an_error_not_the_plain_loss() -> None:
    with pytest.raises(DataError, match="no weights of classes"):
        imbalance_loss("weighted", Kind.CLASSES, draw(2, 2), torch.tensor([0, 1]), spec=LossSpec(), weights=None)


def test_the_objective_hands_each_task_its_own_weights() -> None:
    outputs = (output_spec("glasses"), output_spec("smile"))
    spec = LossSpec(forms={"glasses": "weighted"})
    weights = label_weights(counts_of({"glasses": GLASSES}), spec)
    objective = Objective(
        model=ModelSpec(name="x", input_px=8, outputs=outputs),
        weights={"glasses": 1.0, "smile": 1.0},
        loss=spec,
        distill=DistillSpec(),
        class_weights=weights,
    )
    raw = {"glasses": draw(4, 2), "smile": draw(4, 2)}
    labels = {name: torch.tensor([0, 0, 1, -1]) for name in raw}
    _, parts = objective(raw, torch.zeros(4, 3, 8, 8), labels)
    each = torch.nn.functional.cross_entropy(raw["glasses"][:3], labels["glasses"][:3], reduction="none")
    assert parts["glasses"].item() == pytest.approx(float((each * weights["glasses"][labels["glasses"][:3]]).mean()))
    assert parts["glasses"].item() != pytest.approx(float(each.mean()))
    assert parts["smile"].item() == pytest.approx(
        torch.nn.functional.cross_entropy(raw["smile"][:3], labels["smile"][:3]).item()
    )
    assert objective.label_loss("glasses", raw["glasses"], labels["glasses"]) == pytest.approx(parts["glasses"].item())


def test_recipes_that_name_no_such_form_keep_their_digest_and_others_change_it() -> None:
    assert "class_power" not in chosen(LossSpec())
    assert "focal_gamma" not in chosen(LossSpec())
    assert chosen(LossSpec(focal_gamma=1.0))["focal_gamma"] == 1.0
    with pytest.raises(ConfigError, match=r"forms\.landmarks5"):
        LossSpec(forms={"landmarks5": "focal"})
    with pytest.raises(ConfigError, match="focal_gamma"):
        LossSpec(focal_gamma=-1.0)
