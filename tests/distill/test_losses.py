"""Losses against naive loops, their masks, and their twins."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.losses import (
    DISTILL_LOSSES,
    LANDMARK_LOSSES,
    SPREADS,
    age_mass,
    binary_soft_cross_entropy,
    bounded,
    cosine,
    decoupled,
    distribution,
    hard_loss,
    known_rows,
    label_distribution,
    relations,
    smooth_l1,
    soft_cross_entropy,
    soft_loss,
    wing,
)
from distill.objective import Objective
from edgeface import specs
from edgeface.config import dump_recipe, load_recipe
from edgeface.errors import ConfigError, DataError, ModelError, UnsupportedError
from edgeface.models.heads import heatmap_points
from edgeface.specs import DistillSpec, LossSpec, ModelSpec, OutputSpec, output_spec

MEAN_SHAPE = tuple((0.2 + 0.1 * k, 0.5) for k in range(5))
SPEC = LossSpec()
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def test_tables_hold_exactly_the_named_losses() -> None:
    assert tuple(LANDMARK_LOSSES) == specs.LANDMARK_LOSSES
    assert tuple(DISTILL_LOSSES) == tuple(specs.DISTILL_LOSSES)


def test_every_task_but_one_of_its_own_form_may_choose_its_loss() -> None:
    assert set(options("pose")) == {"kl", "dkd", "dist"}
    assert set(options("landmarks5")) == {"wing", "l2", "smooth_l1", "bounded"}
    assert set(options("features")) == {"attention", "hint", "relational", "cosine"}
    assert options("identity") == ["cosine"]
    with pytest.raises(ConfigError, match=r"losses\.pose: 'wing'"):
        DistillSpec(losses={"pose": "wing"})
    with pytest.raises(ConfigError, match=r"losses\.features: 'dkd'"):
        DistillSpec(losses={"features": "dkd"})
    with pytest.raises(ConfigError, match=r"forms\.pose: 'distribution'"):
        LossSpec(forms={"pose": "distribution"})
    with pytest.raises(ConfigError, match=r"taps\[0\]: 'conv1'"):
        DistillSpec(losses={"features": "hint"}, taps=("conv1",))


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


def test_identity_labels_are_refused_without_a_classifier() -> None:
    with pytest.raises(UnsupportedError, match="'identity' has no loss against labels without a classifier"):
        hard_loss(output_spec("identity"), draw(2, 128), torch.tensor([0, 1]), spec=SPEC)


def options(task: str) -> list[str]:
    return [name for name, tasks in specs.DISTILL_LOSSES.items() if task in tasks]


def soft(
    output: OutputSpec,
    prediction: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    name: str = "",
    teacher_output: OutputSpec | None = None,
    temperature: float = 2.0,
) -> Tensor:
    return soft_loss(
        output,
        prediction,
        teacher,
        teacher_output=teacher_output or output,
        labels=labels,
        distill=DistillSpec(temperature=temperature, losses={output.task: name} if name else {}),
        spec=SPEC,
    )


@pytest.mark.parametrize("case", cases(), ids=lambda case: case[0].name)
def test_soft_loss_prefers_the_teachers_answer(case: tuple[OutputSpec, Tensor, Tensor]) -> None:
    output, prediction, labels = case
    for name in options(output.task):
        same = soft(output, prediction, prediction, labels=labels, name=name)
        other = soft(output, prediction + draw(*prediction.shape), prediction, labels=labels, name=name)
        if name == "bounded":  # the first sample has a label, and follows it instead
            same, other = same[1:], other[1:]
        assert (other > same).all(), name


@pytest.mark.parametrize("case", cases(), ids=lambda case: case[0].name)
def test_every_loss_against_a_teacher_has_a_finite_gradient_even_where_labels_are_missing(
    case: tuple[OutputSpec, Tensor, Tensor],
) -> None:
    output, prediction, labels = case
    teacher = prediction + draw(*prediction.shape)
    for name in options(output.task):
        mine = prediction.clone().requires_grad_()
        soft(output, mine, teacher, labels=labels, name=name).sum().backward()
        assert mine.grad is not None
        assert torch.isfinite(mine.grad).all(), name
        assert mine.grad[1].abs().max() > 0.0, name  # the unlabelled sample learns


def test_landmark_teacher_with_another_mean_shape_teaches_positions() -> None:
    output = output_spec("landmarks5", mean_shape=MEAN_SHAPE)
    shifted = output_spec("landmarks5", mean_shape=tuple((x + 0.1, y) for x, y in MEAN_SHAPE))
    offsets = draw(2, 5, 2) * 0.01
    teacher = offsets - torch.tensor([0.1, 0.0])
    labels = torch.full((2, 5, 2), float("nan"))
    value = soft(output, offsets, teacher, labels=labels, teacher_output=shifted)
    twin = soft(output, offsets, offsets, labels=labels, teacher_output=shifted)
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


def naive_divergence(teacher: list[float], student: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def softened(logits: Tensor, temperature: float) -> list[float]:
    power = [math.exp(float(value) / temperature) for value in logits]
    return [value / sum(power) for value in power]


def naive_decoupled(
    student: Tensor, teacher: Tensor, target: list[int], *, temperature: float, alpha: float, beta: float
) -> list[float]:
    rows = []
    for s, t, right in zip(student, teacher, target, strict=True):
        p, q = softened(t, temperature), softened(s, temperature)
        right = right if right >= 0 else max(range(len(p)), key=p.__getitem__)
        first = naive_divergence([p[right], 1 - p[right]], [q[right], 1 - q[right]])
        rest = [i for i in range(len(p)) if i != right]
        second = naive_divergence([p[i] / (1 - p[right]) for i in rest], [q[i] / (1 - q[right]) for i in rest])
        rows.append((alpha * first + beta * second) * temperature**2)
    return rows


def test_decoupled_distillation_equals_its_formula_written_as_loops() -> None:
    student, teacher = draw(4, 5), draw(4, 5)
    target = torch.tensor([0, 3, -1, 4])
    fast = decoupled(student, teacher, target, temperature=3.0, alpha=1.5, beta=4.0)
    naive = naive_decoupled(student, teacher, target.tolist(), temperature=3.0, alpha=1.5, beta=4.0)
    assert fast.tolist() == pytest.approx(naive, rel=1e-4)  # float32 logarithms
    wrong = naive_decoupled(student, teacher, [1, 3, -1, 4], temperature=3.0, alpha=1.5, beta=4.0)
    assert fast.tolist() != pytest.approx(wrong, rel=1e-4)


def test_decoupled_with_both_weights_as_the_plain_divergence_has_them_is_the_plain_divergence() -> None:
    # Eq. 5 of the paper: KL = first part + (1 - p_right) · second part, here for one sample at a time.
    student, teacher = draw(1, 5), draw(1, 5)
    rest = 1.0 - softened(teacher[0], 2.0)[1]
    value = decoupled(student, teacher, torch.tensor([1]), temperature=2.0, alpha=1.0, beta=rest)
    plain = soft_cross_entropy(student, teacher, temperature=2.0)
    assert value.item() == pytest.approx(plain.item(), rel=1e-4)
    other = decoupled(student, teacher, torch.tensor([1]), temperature=2.0, alpha=1.0, beta=1.0)
    assert other.item() != pytest.approx(plain.item(), rel=1e-4)


def naive_correlation(first: list[float], second: list[float]) -> float:
    a, b = (sum(values) / len(values) for values in (first, second))
    up = sum((x - a) * (y - b) for x, y in zip(first, second, strict=True))
    return up / math.sqrt(sum((x - a) ** 2 for x in first) * sum((y - b) ** 2 for y in second))


def test_relations_of_classes_equal_their_formula_written_as_loops() -> None:
    student, teacher = draw(6, 4), draw(6, 4)
    p, q = [softened(t, 2.0) for t in teacher], [softened(s, 2.0) for s in student]
    between = [1 - naive_correlation(x, y) for x, y in zip(q, p, strict=True)]
    within = [1 - naive_correlation([x[c] for x in q], [y[c] for y in p]) for c in range(4)]
    naive = [(value + sum(within) / 4) * 4.0 for value in between]
    fast = relations(student, teacher, temperature=2.0)
    assert fast.tolist() == pytest.approx(naive, rel=1e-4)
    assert fast.tolist() != pytest.approx([value * 4.0 for value in between], rel=1e-4)


def test_relations_do_not_ask_for_the_teachers_confidence() -> None:
    logits = draw(5, 4)
    p = torch.softmax(logits, 1)
    flatter = (0.5 * p + 0.5 / 4).log()  # a positive affine map of the probabilities
    assert relations(flatter, logits, temperature=1.0).abs().max() < 1e-5  # float32 correlations of 1
    assert soft_cross_entropy(flatter, logits, temperature=1.0).min() > 1e-3


def test_label_distribution_is_a_normal_curve_about_the_label() -> None:
    found = label_distribution(torch.tensor([3.2, 0.0]), torch.tensor([3.2, 0.0]), classes=6, spread=0.7)
    for row, label in zip(found.tolist(), (3.2, 0.0), strict=True):
        density = [math.exp(-((c - label) ** 2) / (2 * 0.7**2)) for c in range(6)]
        assert row == pytest.approx([value / sum(density) for value in density], rel=1e-5)
        assert row != pytest.approx([value / sum(density) for value in reversed(density)], rel=1e-5)


def test_an_interval_label_is_the_mean_of_its_classes_curves() -> None:
    found = label_distribution(torch.tensor([2.0]), torch.tensor([4.0]), classes=8, spread=1.0)
    each = [label_distribution(torch.tensor([c]), torch.tensor([c]), classes=8, spread=1.0) for c in (2.0, 3.0, 4.0)]
    torch.testing.assert_close(found, sum(each) / 3)
    assert not torch.allclose(found, each[1])
    assert found.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_distribution_loss_equals_its_formula_written_as_loops() -> None:
    logits, target = draw(3, 11), torch.softmax(draw(3, 11), 1)
    naive = []
    for row, t in zip(logits, target.tolist(), strict=True):
        q = softened(row, 1.0)
        distance = abs(sum(c * x for c, x in enumerate(q)) - sum(c * x for c, x in enumerate(t)))
        naive.append(naive_divergence(t, q) + distance / 1.0)  # a tenth of the scale from 0 to 10
    assert distribution(logits, target).tolist() == pytest.approx(naive, rel=1e-4)
    assert distribution(logits, target.flip(1)).tolist() != pytest.approx(naive, rel=1e-4)


@pytest.mark.parametrize(
    ("task", "labels", "centre"),
    [("age", [[30.0, 30.0], [float("nan")] * 2], 30), ("beauty", [3, -1], 3)],
)
def test_the_distribution_form_learns_a_curve_about_the_label(task: str, labels: list[object], centre: int) -> None:
    output, known = output_spec(task), torch.tensor(labels)
    curve = label_distribution(
        torch.tensor([float(centre)]), torch.tensor([float(centre)]), classes=output.shape[0], spread=SPREADS[task]
    )
    spec = LossSpec(forms={task: "distribution"})
    perfect = hard_loss(output, curve.log().clamp(min=-80).repeat(2, 1), known, spec=spec)
    assert perfect.abs().max() < 1e-4  # logs of float32 tails, cut at exp(-80)
    plain = hard_loss(output, curve.log().clamp(min=-80).repeat(2, 1), known, spec=SPEC)
    assert plain[0] > 0.1  # the twin: the class alone asks for all the mass
    moved = hard_loss(output, curve.roll(1, 1).log().clamp(min=-80).repeat(2, 1), known, spec=spec)
    assert moved[0] > 0.1
    assert moved[1] == 0.0


def test_bounded_regression_stops_where_the_student_is_nearer_than_the_teacher() -> None:
    target = torch.zeros(4, 1)
    teacher = torch.tensor([[0.5], [0.5], [0.5], [0.5]])
    student = torch.tensor([[0.4], [0.6], [-0.7], [0.4]])
    known = torch.tensor([True, True, True, False])
    value = bounded(student, teacher, target, known=known)
    assert value.tolist() == pytest.approx([0.0, 0.5 * 0.36, 0.5 * 0.49, 0.5 * 0.01], rel=1e-5)
    assert bounded(student, teacher * 2, target, known=known).tolist() != pytest.approx(value.tolist(), rel=1e-5)


def test_binary_soft_cross_entropy_equals_loops_and_is_least_at_the_teacher() -> None:
    student, teacher = draw(2, 3), draw(2, 3)
    naive = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = [1 / (1 + math.exp(-x / 2)) for x in t], [1 / (1 + math.exp(-x / 2)) for x in s]
        each = [-a * math.log(b) - (1 - a) * math.log(1 - b) for a, b in zip(p, q, strict=True)]
        naive.append(4 * sum(each) / 3)
    assert binary_soft_cross_entropy(student, teacher, temperature=2.0).tolist() == pytest.approx(naive, rel=1e-5)
    assert (
        binary_soft_cross_entropy(teacher, teacher, temperature=2.0)
        < binary_soft_cross_entropy(student, teacher, temperature=2.0)
    ).all()


def test_cosine_equals_its_formula_and_ignores_length() -> None:
    first, second = draw(3, 8), draw(3, 8)
    naive = [
        1 - sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
        for x, y in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert cosine(first, second).tolist() == pytest.approx(naive, rel=1e-4)
    assert cosine(5 * first, second).tolist() == pytest.approx(naive, rel=1e-4)
    assert cosine(first.flip(0), second).tolist() != pytest.approx(naive, rel=1e-4)


def naive_points(name: str, student: Tensor, target: Tensor) -> float:
    """Of one sample: "l2" or "smooth_l1", coordinate by coordinate, in units of the wing's width."""
    distances = [abs(a - b) for a, b in zip(student.flatten().tolist(), target.flatten().tolist(), strict=True)]
    if name == "l2":
        each = [0.5 * (x / SPEC.wing_width) ** 2 for x in distances]
    else:
        each = [0.5 * x * x if x < 1 else x - 0.5 for x in (x / SPEC.wing_width for x in distances)]
    return sum(each) / len(each)


def naive_taught(name: str, task: str, student: Tensor, teacher: Tensor, label: Tensor) -> float:
    """What a recipe's `distill.losses.TASK = NAME` costs one sample, in loops. Landmarks are points in crop sides."""
    known = bool((label >= 0).all())
    if name == "kl" and task == "attributes":
        p, q = ([1 / (1 + math.exp(-x / 2)) for x in row.tolist()] for row in (teacher, student))
        return 4 * sum(-a * math.log(b) - (1 - a) * math.log(1 - b) for a, b in zip(p, q, strict=True)) / len(p)
    if name == "kl":
        return 4 * naive_divergence(softened(teacher, 2.0), softened(student, 2.0))
    if name == "dkd":
        right = int(label.flatten()[0]) if known else -1
        return naive_decoupled(student[None], teacher[None], [right], temperature=2.0, alpha=1.0, beta=2.0)[0]
    if name == "distribution":
        p, q = softened(teacher, 1.0), softened(student, 1.0)
        apart = abs(sum(c * (a - b) for c, (a, b) in enumerate(zip(p, q, strict=True))))
        return naive_divergence(p, q) + apart * 10 / (len(p) - 1)
    if name == "wing":
        return naive_wing(student[None], teacher[None], SPEC.wing_width, SPEC.wing_curvature)[0]
    if name == "bounded":
        unit = SPEC.wing_width if task == "landmarks5" else 1.0

        def half_square(first: Tensor, second: Tensor) -> float:
            values = list(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
            return 0.5 * sum(((a - b) / unit) ** 2 for a, b in values) / len(values)

        if not known:
            return half_square(student, teacher)
        mine = half_square(student, label.reshape(student.shape))
        return mine if mine > half_square(teacher, label.reshape(student.shape)) else 0.0
    if name == "cosine":
        up = sum(a * b for a, b in zip(student.tolist(), teacher.tolist(), strict=True))
        return 1 - up / math.sqrt(sum(a * a for a in student.tolist()) * sum(b * b for b in teacher.tolist()))
    if task == "landmarks5":
        return naive_points(name, student, teacher)
    return sum((a - b) ** 2 for a, b in zip(student.tolist(), teacher.tolist(), strict=True)) / len(student)


LABELS = {
    "pose": torch.tensor([3, -1, 0, 4]),
    "beauty": torch.tensor([1, 2, -1, 0]),
    "age": torch.tensor([[30.0, 30.0], [math.nan] * 2, [7.0, 7.0], [64.0, 64.0]]),
    "attributes": torch.tensor([[1, 0, 0, 1], [-1] * 4, [0, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.int8),
    "landmarks5": torch.cat([torch.rand(3, 5, 2, generator=GENERATOR), torch.full((1, 5, 2), math.nan)]),
    "beauty_score": torch.tensor([0.4, 0.9, math.nan, 0.1]),
    "identity": torch.tensor([0, 1, -1, 1]),
}


@pytest.mark.parametrize(
    ("name", "task"),
    [
        (name, task)
        for name, tasks in specs.DISTILL_LOSSES.items()
        for task in tasks
        if task in LABELS and name != "dist"
    ],
)
def test_a_loss_against_a_teacher_is_its_formula_as_a_recipe_names_it(name: str, task: str) -> None:
    """ "dist" compares samples with each other and has a test of its own, as have the losses between features."""
    output = output_spec(task, mean_shape=MEAN_SHAPE if task == "landmarks5" else ())
    scale = 0.1 if task == "landmarks5" else 1.0
    student, teacher = scale * draw(4, *output.shape), scale * draw(4, *output.shape)
    moved = torch.tensor(MEAN_SHAPE) if task == "landmarks5" else 0.0
    labels = LABELS[task]
    naive = [
        naive_taught(name, task, s + moved, t + moved, label)
        for s, t, label in zip(student, teacher, labels, strict=True)
    ]
    fast = soft(output, student, teacher, labels=labels, name=name)
    assert fast.tolist() == pytest.approx(naive, rel=1e-4, abs=1e-6)  # float32 logarithms
    assert soft(output, student, teacher.roll(1, 0), labels=labels, name=name).tolist() != pytest.approx(
        naive, rel=1e-3
    )


def test_every_loss_against_a_teacher_has_a_naive_twin() -> None:
    between_features = {name for name, tasks in specs.DISTILL_LOSSES.items() if tasks == (specs.FEATURES,)}
    assert between_features == {"attention", "hint", "relational"}  # tests/distill/test_features.py
    here = {name for name, tasks in specs.DISTILL_LOSSES.items() if set(tasks) & set(LABELS)}
    assert here | between_features == set(DISTILL_LOSSES)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("beauty_score", torch.rand(3, 1)),
        ("age", torch.rand(3)),
        ("age", torch.rand(3, 1)),
        ("landmarks5", torch.rand(3, 10)),
        ("landmarks5", torch.rand(1, 5, 2)),
        ("pose", torch.zeros(3, 1, dtype=torch.long)),
    ],
)
def test_labels_that_would_broadcast_are_refused_naming_the_task(task: str, labels: Tensor) -> None:
    output = output_spec(task, mean_shape=MEAN_SHAPE if task == "landmarks5" else ())
    prediction = draw(3, *output.shape)
    with pytest.raises(DataError, match=f"loss of task '{task}': labels of shape"):
        hard_loss(output, prediction, labels, spec=SPEC)
    with pytest.raises(DataError, match=f"loss of task '{task}': labels of shape"):
        soft(output, prediction, prediction, labels=labels)


def test_outputs_without_their_last_axis_are_refused_naming_the_task() -> None:
    output, labels = output_spec("beauty_score"), torch.rand(3)
    with pytest.raises(ModelError, match="loss of task 'beauty_score': an output of shape"):
        hard_loss(output, draw(3), labels, spec=SPEC)
    with pytest.raises(ModelError, match="loss of task 'beauty_score': an output of shape"):
        soft(output, draw(3, 1), draw(3), labels=labels)
    assert hard_loss(output, draw(3, 1), labels, spec=SPEC).shape == (3,)  # the form that is accepted


CHOSEN = """
name = "chosen"
tasks = { pose = 1.0, landmarks5 = 1.0, age = 0.1, identity = 1.0 }
[data]
train = ["synthetic:8"]
[loss.forms]
age = "distribution"
identity = "margin"
[teacher.transfer]
start = "imagenet"
frozen_prefix = 4
[distill]
taps = ["conv2:pool2"]
[distill.losses]
pose = "dist"
landmarks5 = "bounded"
features = "attention"
"""


def test_a_recipe_names_its_losses_and_says_all_of_their_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "chosen.toml"
    path.write_text(CHOSEN, encoding="utf-8")
    recipe = load_recipe(str(path))
    assert recipe.distill.losses == {"pose": "dist", "landmarks5": "bounded", "features": "attention"}
    assert recipe.teacher.transfer.frozen_prefix == 4
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe
    faults = ["distill.losses.pose=wing", "distill.losses.gender=kl", "loss.forms.smile=distribution"]
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides=faults)
    where = {fault.where for fault in caught.value.faults}
    assert {"--set distill.losses.pose", "--set loss.forms.smile"} <= where
    with pytest.raises(ConfigError, match=r"distill\.losses\.gender: 'gender'\. Expected one of 'pose'"):
        load_recipe(str(path), overrides=faults[1:2])


def heatmaps() -> tuple[OutputSpec, Tensor, Tensor]:
    """An output of heatmaps, raw values of four samples, and the points they mean."""
    output = replace(output_spec("landmarks5", mean_shape=MEAN_SHAPE), shape=(6, 7, 5), heatmap=True)
    raw = 3.0 * torch.randn(4, 6, 7, 5, generator=torch.Generator().manual_seed(3))
    return output, raw, torch.from_numpy(heatmap_points(raw.numpy()))


def test_heatmaps_are_judged_by_the_points_they_mean() -> None:
    output, raw, points = heatmaps()
    labels = points.clone()
    labels[3] = torch.nan
    found = hard_loss(output, raw, labels, spec=SPEC)
    assert found.tolist() == pytest.approx([0.0] * 4, abs=1e-4)  # float32 of points, through a logarithm of slope 50
    moved = hard_loss(output, raw, labels + 0.01, spec=SPEC)
    assert (moved[:3] > 0.05).all()  # twin
    assert float(moved[3]) == 0.0
    with pytest.raises(DataError, match=r"labels of shape \(4, 6, 7, 5\)"):
        hard_loss(output, raw, torch.zeros(4, 6, 7, 5), spec=SPEC)


@pytest.mark.parametrize("teacher_maps", [False, True])
@pytest.mark.parametrize("student_maps", [False, True])
def test_a_teacher_of_either_landmark_head_teaches_a_student_of_either(student_maps: bool, teacher_maps: bool) -> None:
    output, raw, points = heatmaps()
    plain = output_spec("landmarks5", mean_shape=MEAN_SHAPE)
    offsets = points - torch.tensor(MEAN_SHAPE)
    (own, prediction), (other, answer) = (
        (output, raw) if mapped else (plain, offsets) for mapped in (student_maps, teacher_maps)
    )

    def lose(answer: Tensor) -> Tensor:
        unknown = torch.full((4, 5, 2), torch.nan)
        return soft_loss(
            own, prediction, answer, teacher_output=other, labels=unknown, distill=DistillSpec(), spec=SPEC
        )

    assert lose(answer).tolist() == pytest.approx([0.0] * 4, abs=1e-4)
    assert (lose(answer.flip(1)) > 0.05).all()  # twin
