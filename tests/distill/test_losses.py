"""Losses against naive loops, their masks, and their twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill.losses import (
    LANDMARK_LOSSES,
    age_mass,
    hard_loss,
    known_rows,
    smooth_l1,
    soft_cross_entropy,
    soft_loss,
    wing,
)
from distill.objective import Objective
from edgeface import specs
from edgeface.errors import UnsupportedError
from edgeface.specs import DistillSpec, LossSpec, ModelSpec, OutputSpec, output_spec

MEAN_SHAPE = tuple((0.2 + 0.1 * k, 0.5) for k in range(5))
SPEC = LossSpec()
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def test_tables_hold_exactly_the_named_losses() -> None:
    assert tuple(LANDMARK_LOSSES) == specs.LANDMARK_LOSSES


def naive_wing(student: Tensor, target: Tensor, width: float, curvature: float) -> list[float]:
    rows = []
    for sample in range(len(student)):
        total = 0.0
        for point in range(student.shape[1]):
            for axis in range(2):
                x = abs(float(student[sample, point, axis] - target[sample, point, axis]))
                c = width - width * math.log(1 + width / curvature)
                total += width * math.log(1 + x / curvature) if x < width else x - c
        rows.append(total / (2 * student.shape[1]) / width)
    return rows


def test_wing_equals_its_formula_written_as_loops() -> None:
    student, target = draw(4, 5, 2) * 0.1, draw(4, 5, 2) * 0.1
    fast = wing(student, target, width=0.1, curvature=0.02)
    # float32 against float64 over ten terms of order one.
    assert fast.tolist() == pytest.approx(naive_wing(student, target, 0.1, 0.02), rel=1e-5)
    assert fast.tolist() != pytest.approx(naive_wing(student, target, 0.1, 0.03), rel=1e-5)


@pytest.mark.parametrize("name", list(LANDMARK_LOSSES))
def test_landmark_losses_vanish_only_on_the_target(name: str) -> None:
    target = draw(3, 5, 2)
    loss = LANDMARK_LOSSES[name]
    assert loss(target, target, width=0.1, curvature=0.02).abs().max() == 0.0
    moved = target.clone()
    moved[1, 2, 0] += 0.01
    values = loss(moved, target, width=0.1, curvature=0.02)
    assert values[1] > 0.0
    assert values[0] == values[2] == 0.0


def test_smooth_l1_is_quadratic_inside_and_linear_outside() -> None:
    zero = torch.zeros(1, 1, 2)
    inside = smooth_l1(torch.full((1, 1, 2), 0.05), zero, width=0.1, curvature=0.0)
    outside = smooth_l1(torch.full((1, 1, 2), 0.3), zero, width=0.1, curvature=0.0)
    assert inside.item() == pytest.approx(0.125, rel=1e-6)
    assert outside.item() == pytest.approx(2.5, rel=1e-6)


def test_soft_cross_entropy_equals_the_divergence_written_as_loops() -> None:
    student, teacher, temperature = draw(3, 4), draw(3, 4), 3.0
    expected = []
    for s, t in zip(student, teacher, strict=True):
        p = torch.softmax(t.double() / temperature, 0)
        q = torch.softmax(s.double() / temperature, 0)
        expected.append(float((p * (p / q).log()).sum()) * temperature**2)
    fast = soft_cross_entropy(student, teacher, temperature=temperature)
    assert fast.tolist() == pytest.approx(expected, rel=1e-4)  # float32 log-softmax
    assert fast.tolist() != pytest.approx([value / temperature**2 for value in expected], rel=1e-4)


def test_soft_cross_entropy_is_zero_when_student_equals_teacher() -> None:
    logits = draw(3, 4)
    assert soft_cross_entropy(logits, logits + 5.0, temperature=2.0).abs().max() < 1e-6  # a shift changes no softmax


def test_age_interval_loss_counts_the_mass_inside() -> None:
    logits = draw(2, 101)
    years = torch.tensor([[20.0, 29.0], [40.0, 40.0]])
    probability = torch.softmax(logits.double(), 1)
    expected = []
    for row, (low, high) in zip(probability, years.tolist(), strict=True):
        mass = sum(float(row[year]) for year in range(101) if low <= year <= high)
        mean = sum(year * float(row[year]) for year in range(101))
        expected.append(-math.log(mass) + (max(0.0, low - mean) + max(0.0, mean - high)) / 10)
    assert age_mass(logits, years).tolist() == pytest.approx(expected, rel=1e-4)
    assert age_mass(logits, years + 5).tolist() != pytest.approx(expected, rel=1e-4)


def cases() -> list[tuple[OutputSpec, Tensor, Tensor]]:
    """Output, prediction and labels in which the second of two samples has no label."""
    nan = float("nan")
    return [
        (
            output_spec("landmarks5", mean_shape=MEAN_SHAPE),
            draw(2, 5, 2),
            torch.stack([torch.rand(5, 2), torch.full((5, 2), nan)]),
        ),
        (output_spec("pose"), draw(2, 5), torch.tensor([3, -1])),
        (output_spec("beauty_score"), draw(2, 1), torch.tensor([0.4, nan])),
        (output_spec("age"), draw(2, 101), torch.tensor([[30.0, 30.0], [nan, nan]])),
        (
            output_spec("attributes"),
            draw(2, 4),
            torch.tensor([[1, 0, -1, 1], [-1, -1, -1, -1]], dtype=torch.int8),
        ),
    ]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case[0].name)
def test_a_missing_label_gives_no_loss_and_no_gradient(case: tuple[OutputSpec, Tensor, Tensor]) -> None:
    output, prediction, labels = case
    prediction = prediction.clone().requires_grad_()
    assert known_rows(output, labels).tolist() == [True, False]
    values = hard_loss(output, prediction, labels, spec=SPEC)
    values.sum().backward()
    assert values[1] == 0.0
    assert values[0] > 0.0
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad[1].abs().max() == 0.0
    assert prediction.grad[0].abs().max() > 0.0


def test_identity_labels_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="identity"):
        hard_loss(output_spec("identity"), draw(2, 128), torch.tensor([0, 1]), spec=SPEC)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case[0].name)
def test_soft_loss_prefers_the_teachers_answer(case: tuple[OutputSpec, Tensor, Tensor]) -> None:
    output, prediction, _ = case
    same = soft_loss(output, prediction, prediction, teacher_output=output, temperature=2.0, spec=SPEC)
    other = soft_loss(
        output, prediction + draw(*prediction.shape), prediction, teacher_output=output, temperature=2.0, spec=SPEC
    )
    assert (other > same).all()


def test_landmark_teacher_with_another_mean_shape_teaches_positions() -> None:
    output = output_spec("landmarks5", mean_shape=MEAN_SHAPE)
    shifted = output_spec("landmarks5", mean_shape=tuple((x + 0.1, y) for x, y in MEAN_SHAPE))
    offsets = draw(2, 5, 2) * 0.01
    teacher = offsets - torch.tensor([0.1, 0.0])
    value = soft_loss(output, offsets, teacher, teacher_output=shifted, temperature=1.0, spec=SPEC)
    twin = soft_loss(output, offsets, offsets, teacher_output=shifted, temperature=1.0, spec=SPEC)
    assert value.max() < 1e-5  # float32 sums of values below one, divided by the wing's width of 0.1
    assert twin.min() > 0.1


class _Fixed(torch.nn.Module):
    def __init__(self, outputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.outputs


def objective(soft: float, teacher: dict[str, Tensor] | None) -> Objective:
    model = ModelSpec(name="edge_s", input_px=16, outputs=(output_spec("gender"),))
    return Objective(
        model=model,
        weights={"gender": 2.0},
        loss=SPEC,
        distill=DistillSpec(soft=soft, temperature=1.0),
        teacher=None if teacher is None else _Fixed(teacher),
        teacher_model=None if teacher is None else model,
    )


def test_masked_loss_divides_by_labelled_samples_not_by_the_batch() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    total, parts = objective(0.5, None)(
        {"gender": logits}, torch.zeros(3, 3, 16, 16), {"gender": torch.tensor([0, -1, -1])}
    )
    expected = math.log(1 + math.exp(-2.0))
    assert parts["gender"].item() == pytest.approx(expected, rel=1e-6)
    assert total.item() == pytest.approx(2 * expected, rel=1e-6)
    assert total.item() != pytest.approx(2 * expected / 3, rel=1e-6)


def test_unlabelled_sample_learns_from_the_teacher_at_full_weight() -> None:
    logits, taught = draw(2, 2), draw(2, 2)
    soft = soft_cross_entropy(logits, taught, temperature=1.0)
    hard = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]), reduction="none")
    _, parts = objective(0.3, {"gender": taught})(
        {"gender": logits}, torch.zeros(2, 3, 16, 16), {"gender": torch.tensor([1, -1])}
    )
    expected = (0.3 * soft[0] + 0.7 * hard[0] + soft[1]) / 2
    assert parts["gender"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["gender"].item() != pytest.approx(((0.3 * soft + 0.7 * hard).mean()).item(), rel=1e-5)
