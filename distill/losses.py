"""Per-sample losses of every task kind: against labels, and against a teacher.

`hard_loss` is zero, without gradient, where a label is missing. A batch's sum is divided by the number of samples that
taught the task, never by the batch size: a masked sample weighs nothing. DISTILL_LOSSES holds every loss against a
teacher by the name that recipes use; losses between features are in distill.features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.features import attention_transfer, hint, relational
from distill.imbalance import imbalance_loss
from edgeface.errors import DataError, ModelError, UnsupportedError
from edgeface.models.heads import OLDEST, expected_years
from edgeface.models.integral import expected_places
from edgeface.specs import IMBALANCE_LOSSES, DistillSpec, LossSpec, OutputSpec
from edgeface.tasks import TASKS, Kind

LandmarkLoss = Callable[..., Tensor]


def wing(student: Tensor, target: Tensor, *, width: float, curvature: float) -> Tensor:
    """Wing loss between two landmark sets: logarithmic near zero, linear beyond `width`.

    Args:
        student: (B, K, 2) in crop sides.
        target: As `student`.
        width: Half-width of the logarithmic part, crop sides.
        curvature: Its curvature, crop sides.

    Returns:
        (B,) mean over points and coordinates, divided by `width`.

    Source:
        Feng et al., Wing Loss, CVPR 2018, arXiv:1711.06753, eq. 5; the division by `width` is ours and only scales it.
    """
    distance = (student - target).abs()
    offset = width - width * math.log1p(width / curvature)
    value = torch.where(distance < width, width * torch.log1p(distance / curvature), distance - offset)
    return value.mean(dim=(1, 2)) / width


def l2(student: Tensor, target: Tensor, *, width: float, curvature: float) -> Tensor:
    """Half the squared distance, in units of `width`: (B, K, 2) twice to (B,). `curvature` has no part in it.

    Source:
        Zhang et al., ECCV 2014, eq. 3 (least squares).
    """
    return 0.5 * ((student - target) / width).square().mean(dim=(1, 2))


def smooth_l1(student: Tensor, target: Tensor, *, width: float, curvature: float) -> Tensor:
    """Huber's loss with its corner at `width`, in units of `width`: (B, K, 2) twice to (B,)."""
    return F.smooth_l1_loss(student / width, target / width, reduction="none").mean(dim=(1, 2))


LANDMARK_LOSSES: dict[str, LandmarkLoss] = {"wing": wing, "l2": l2, "smooth_l1": smooth_l1}


def soft_cross_entropy(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Kullback–Leibler divergence from the teacher's softened classes to the student's, times temperature squared.

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits.

    Returns:
        (B,); zero when the two agree.

    Source:
        Hinton et al., arXiv:1503.02531, section 2 (T² keeps the gradient's size independent of T).
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    value = F.kl_div(F.log_softmax(student / temperature, dim=1), target, log_target=True, reduction="none")
    return value.sum(dim=1) * temperature**2


def binary_soft_cross_entropy(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """As `soft_cross_entropy` for M questions of two answers each, but for a constant: (B, M) logits twice to (B,)."""
    target = torch.sigmoid(teacher / temperature)
    each = F.binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
    return each.mean(dim=1) * temperature**2


def decoupled(
    student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float, alpha: float = 1.0, beta: float = 2.0
) -> Tensor:
    """Decoupled distillation: the right class against the rest, and the rest among themselves.

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits.
        target: (B,) the right class; below 0 where it is not known, and then the teacher's first choice.
        alpha: Weight of the divergence between "right" and "the rest".
        beta: Weight of the divergence among the rest; nothing with two classes.

    Returns:
        (B,), times temperature squared.

    Source:
        Zhao et al., Decoupled Knowledge Distillation, arXiv:2203.08679, eq. 7. Their beta is 8 on CIFAR-100 and 0.5 on
        ImageNet; 2 is ours, for tasks of few classes.
    """
    target = torch.where(target >= 0, target, teacher.argmax(dim=1))
    right = F.one_hot(target, student.shape[1]).bool()
    logs = [F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher)]
    pairs = [
        torch.stack(
            [
                log[right],
                torch.logsumexp(log.masked_fill(right, -torch.inf), dim=1),
            ],
            dim=1,
        )
        for log in logs
    ]
    rest = [log[~right].view(len(log), -1) for log in logs]
    rest = [log - torch.logsumexp(log, dim=1, keepdim=True) for log in rest]
    value = alpha * _divergence(*pairs) + beta * _divergence(*rest)
    return value * temperature**2


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback–Leibler divergence of log-probabilities, teacher first: (B, C) twice to (B,)."""
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(dim=1)


def relations(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """One minus the correlation of softened classes: within each sample, and of each class over the batch.

    Of two classes the part within a sample is 0 or 2, whichever class is the larger, and has no gradient: there the
    part over the batch alone teaches.

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits.

    Returns:
        (B,): each sample's own part, plus the batch's part, which is the same for all; times temperature squared.

    Source:
        Huang et al., Knowledge Distillation from A Stronger Teacher (DIST), arXiv:2205.10536, eq. 7 to 9, both weights
        1; the factor T² is that of the authors' code.
    """
    first, second = (torch.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    between = 1.0 - _correlation(first, second, dim=1)
    within = 1.0 - _correlation(first, second, dim=0)
    return (between + within.mean()) * temperature**2


def _correlation(first: Tensor, second: Tensor, *, dim: int) -> Tensor:
    first, second = (value - value.mean(dim=dim, keepdim=True) for value in (first, second))
    return F.cosine_similarity(first, second, dim=dim)


def distribution(logits: Tensor, target: Tensor) -> Tensor:
    """Divergence from a distribution over ordered classes, plus the distance of the two expectations.

    Args:
        logits: (B, C), one class per step.
        target: (B, C) probabilities.

    Returns:
        (B,); the distance is in units of a tenth of the scale.

    Source:
        Gao et al., Age Estimation Using Expectation of Label Distribution Learning (DLDL-v2), IJCAI 2018, eq. 4 to 8;
        both parts weigh 1. The unit of the second is ours, as in `age_mass`.
    """
    log_probability = F.log_softmax(logits, dim=1)
    steps = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    divergence = F.kl_div(log_probability, target, reduction="none").sum(dim=1)
    distance = ((log_probability.exp() - target) @ steps).abs()
    return divergence + distance * 10.0 / (logits.shape[1] - 1)


# Deviation of a label from the truth, in classes. Source: two years, DLDL-v2 section 4.2 [recalled, not confirmed];
# half a grade of beauty is ours.
SPREADS = {"age": 2.0, "beauty": 0.5}


def label_distribution(low: Tensor, high: Tensor, *, classes: int, spread: float) -> Tensor:
    """A normal distribution about each label, over the classes; about an interval, the mean of those of its classes.

    Args:
        low: (B,) lowest class a label may mean.
        high: (B,) highest; equal to `low` for an exact label, which may then lie between two classes.
        classes: C.
        spread: Standard deviation, in classes.

    Returns:
        (B, C), each row of sum 1.
    """
    steps = torch.arange(classes, device=low.device, dtype=low.dtype)
    exact = _normal(steps, low, spread=spread)
    inside = (steps >= low.floor()[:, None]) & (steps <= high.ceil()[:, None])
    weights = inside / inside.sum(dim=1, keepdim=True).clamp(min=1)
    spread_out = weights.to(low.dtype) @ _normal(steps, steps, spread=spread)
    return torch.where((low == high)[:, None], exact, spread_out)


def _normal(steps: Tensor, centres: Tensor, *, spread: float) -> Tensor:
    return torch.softmax(-0.5 * ((steps - centres[:, None]) / spread).square(), dim=1)


def bounded(student: Tensor, teacher: Tensor, target: Tensor, *, known: Tensor) -> Tensor:
    """Half the squared distance to the label while the student is further from it than the teacher, else nothing.

    Args:
        student: (B, …).
        teacher: As `student`.
        target: As `student`; any finite value where the label is not known.
        known: (B,) bool; samples without a label follow the teacher instead.

    Returns:
        (B,) means over the values of a sample.

    Source:
        Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NIPS 2017, eq. 5, margin 0.
    """
    to_label, bound, to_teacher = (
        0.5 * (first - second).square().flatten(1).mean(dim=1)
        for first, second in ((student, target), (teacher, target), (student, teacher))
    )
    return torch.where(known, torch.where(to_label > bound, to_label, to_label * 0.0), to_teacher)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine between two embeddings: (B, D) twice to (B,)."""
    return 1.0 - F.cosine_similarity(student.flatten(1), teacher.flatten(1), dim=1)


def age_mass(logits: Tensor, years: Tensor) -> Tensor:
    """Negative log of the mass inside the labelled interval, plus the expected age's L1 distance to it.

    Args:
        logits: (B, 101), one class per year.
        years: (B, 2) lowest and highest possible age; an exact age has both equal.

    Returns:
        (B,); the L1 part is in units of 10 years.
    """
    stages = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    low, high = years[:, :1], years[:, 1:]
    inside = (stages >= low.floor()) & (stages <= high.ceil())
    log_probability = F.log_softmax(logits, dim=1)
    mass = torch.logsumexp(log_probability.masked_fill(~inside, -torch.inf), dim=1)
    expected = (log_probability.exp() * stages).sum(dim=1)
    return -mass + age_distance(expected, years)


def age_distance(expected: Tensor, years: Tensor) -> Tensor:
    """L1 distance of expected ages to labelled intervals, in units of 10 years.

    Args:
        expected: (B,) years.
        years: (B, 2) lowest and highest possible age; an exact age has both equal.

    Returns:
        (B,); zero inside the interval.
    """
    return (torch.relu(years[:, 0] - expected) + torch.relu(expected - years[:, 1])) / 10.0


def known_rows(output: OutputSpec, labels: Tensor) -> Tensor:
    """(B,) bool: which samples carry a label of this task (for attributes: at least one)."""
    kind = TASKS[output.task].kind
    if kind in (Kind.CLASSES, Kind.IDENTITY):
        return labels >= 0
    if kind is Kind.ATTRIBUTES:
        return (labels >= 0).any(dim=1)
    return torch.isfinite(labels.reshape(len(labels), -1)).all(dim=1)


def require_shapes(output: OutputSpec, prediction: Tensor, labels: Tensor | None = None) -> None:
    """Refuse outputs and labels that would broadcast against each other, such as (B, 1) against (B,).

    Raises:
        ModelError: The prediction is not (B, *shape of the output).
        DataError: The labels are not in the form of edgeface.tasks for these B samples.
    """
    where = f"loss of task {output.task!r}"
    if tuple(prediction.shape[1:]) != output.shape:
        raise ModelError(
            f"an output of shape {tuple(prediction.shape)}",
            expected=f"(B, {', '.join(map(str, output.shape))})",
            where=where,
            do="Give the head the shape of the task",
        )
    if labels is None:
        return
    kind = TASKS[output.task].kind
    points = (len(output.mean_shape), 2)
    sample = {Kind.LANDMARKS: points, Kind.AGE: (2,), Kind.ATTRIBUTES: output.shape}.get(kind, ())
    if tuple(labels.shape) != (len(prediction), *sample):
        raise DataError(
            f"labels of shape {tuple(labels.shape)} against outputs of shape {tuple(prediction.shape)}",
            expected=f"labels of shape {(len(prediction), *sample)}: another one would broadcast to a wrong loss",
            where=where,
            do="Squeeze or reshape the labels into the form of edgeface.tasks",
        )


def hard_loss(
    output: OutputSpec, prediction: Tensor, labels: Tensor, *, spec: LossSpec, weights: Tensor | None = None
) -> Tensor:
    """Loss against labels.

    Args:
        prediction: (B, *shape) raw output; landmark offsets from the mean shape.
        labels: This task's labels, coded as edgeface.tasks says; landmarks in crop sides.
        weights: Of the task's classes, from distill.imbalance.label_weights, where its form is a weighted one.

    Returns:
        (B,); zero without gradient where the label is missing.

    Raises:
        ModelError: The prediction has another shape than its output.
        DataError: The labels have another shape than the prediction asks for, or a weighted form has no weights.
        UnsupportedError: The task is identity, which needs a classifier: distill.identity.
    """
    require_shapes(output, prediction, labels)
    kind = TASKS[output.task].kind
    known = known_rows(output, labels)
    form = spec.forms.get(output.task, "")
    # A NaN label would poison the gradient of its masked sample, so it is replaced before the loss, not after.
    if kind is Kind.LANDMARKS:
        target = torch.where(known.view(-1, 1, 1), labels, _mean_shape(output, like=prediction))
        value = LANDMARK_LOSSES[spec.landmarks](
            _places(output, prediction), target, width=spec.wing_width, curvature=spec.wing_curvature
        )
    elif form == "distribution":
        years = torch.nan_to_num(labels) if kind is Kind.AGE else labels.clamp(min=0)[:, None].to(prediction)
        target = label_distribution(years[:, 0], years[:, -1], classes=prediction.shape[1], spread=SPREADS[output.task])
        value = distribution(prediction, target)
    elif kind is Kind.CLASSES and form in IMBALANCE_LOSSES:
        value = imbalance_loss(form, kind, prediction, labels, spec=spec, weights=weights)
    elif kind is Kind.CLASSES:
        value = F.cross_entropy(prediction, labels.clamp(min=0), reduction="none", label_smoothing=spec.label_smoothing)
    elif kind is Kind.SCORE:
        value = (prediction.squeeze(1) - torch.nan_to_num(labels)).square()
    elif output.stages:
        value = age_distance(expected_years(prediction, output.stages), torch.nan_to_num(labels))
    elif kind is Kind.AGE:
        value = age_mass(prediction, torch.nan_to_num(labels))
    elif kind is Kind.ATTRIBUTES:
        if form in IMBALANCE_LOSSES:
            each = imbalance_loss(form, kind, prediction, labels, spec=spec, weights=weights)
        else:
            each = F.binary_cross_entropy_with_logits(prediction, labels.clamp(min=0).to(prediction), reduction="none")
        marked = labels >= 0
        value = (each * marked).sum(dim=1) / marked.sum(dim=1).clamp(min=1)
    else:
        raise UnsupportedError(
            f"task {output.task!r} has no loss against labels without a classifier over people",
            expected="the objective of a training, which has one",
            where="distill.losses.hard_loss",
            do="Call distill.identity.PeopleClassifier",
        )
    return torch.where(known, value, value * 0.0)


def _years(output: OutputSpec, raw: Tensor) -> Tensor:
    """(B,) ages that a network of either form of age output answers."""
    if output.stages:
        return expected_years(raw, output.stages).clamp(0.0, OLDEST)
    return torch.softmax(raw, dim=1) @ torch.arange(raw.shape[1], device=raw.device, dtype=raw.dtype)


def _places(output: OutputSpec, raw: Tensor) -> Tensor:
    """(B, K, 2) landmarks in crop sides that a network of either form of landmark output answers."""
    if output.heatmap:
        return expected_places(raw.permute(0, 3, 1, 2))
    return raw + _mean_shape(output, like=raw)


def _mean_shape(output: OutputSpec, *, like: Tensor) -> Tensor:
    return torch.tensor(output.mean_shape, device=like.device, dtype=like.dtype)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a loss against a teacher may look at.

    Attributes:
        student: (B, …) raw output, landmarks as points in crop sides; or features.
        teacher: As `student`; feature maps may have another size and other channels only where the loss says so.
        target: The labels in the student's form (points, scores), or class indices, -1 for none.
        known: (B,) bool, which samples have a label.
        kind: Of the task; None for features.
        temperature: Of class logits.
        width: Unit of landmark distances, crop sides.
        curvature: Of the wing loss, crop sides.
    """

    student: Tensor
    teacher: Tensor
    target: Tensor = field(default_factory=lambda: torch.empty(0))
    known: Tensor = field(default_factory=lambda: torch.empty(0))
    kind: Kind | None = None
    temperature: float = 1.0
    width: float = 1.0
    curvature: float = 1.0


def _kl(of: Lesson) -> Tensor:
    form = binary_soft_cross_entropy if of.kind is Kind.ATTRIBUTES else soft_cross_entropy
    return form(of.student, of.teacher, temperature=of.temperature)


def _points(loss: LandmarkLoss) -> Callable[[Lesson], Tensor]:
    return lambda of: loss(of.student, of.teacher, width=of.width, curvature=of.curvature)


def _squares(of: Lesson) -> Tensor:
    if of.kind is Kind.LANDMARKS:
        return l2(of.student, of.teacher, width=of.width, curvature=of.curvature)
    return (of.student - of.teacher).square().mean(dim=1)


def _bounded(of: Lesson) -> Tensor:
    unit = of.width if of.kind is Kind.LANDMARKS else 1.0
    return bounded(of.student / unit, of.teacher / unit, of.target / unit, known=of.known)


# By the name in a recipe's distill.losses; specs.DISTILL_LOSSES says which tasks each can teach.
DISTILL_LOSSES: dict[str, Callable[[Lesson], Tensor]] = {
    "kl": _kl,
    "dkd": lambda of: decoupled(of.student, of.teacher, of.target, temperature=of.temperature),
    "dist": lambda of: relations(of.student, of.teacher, temperature=of.temperature),
    "distribution": lambda of: distribution(of.student, torch.softmax(of.teacher, dim=1)),
    "wing": _points(wing),
    "l2": _squares,
    "smooth_l1": _points(smooth_l1),
    "bounded": _bounded,
    "cosine": lambda of: cosine(of.student, of.teacher),
    "attention": lambda of: attention_transfer(of.student, of.teacher),
    "hint": lambda of: hint(of.student, of.teacher),
    "relational": lambda of: relational(of.student, of.teacher),
}


def _own(kind: Kind, spec: LossSpec) -> str:
    """The loss a kind of task learns from its teacher by where the recipe names none."""
    return {Kind.LANDMARKS: spec.landmarks, Kind.SCORE: "l2", Kind.IDENTITY: "cosine"}.get(kind, "kl")


def soft_loss(
    output: OutputSpec,
    prediction: Tensor,
    teacher: Tensor,
    *,
    teacher_output: OutputSpec,
    labels: Tensor,
    distill: DistillSpec,
    spec: LossSpec,
) -> Tensor:
    """Loss against the teacher's raw output of the same task: (B, *shape) twice to (B,).

    Landmarks are compared as points in the crop, so that a teacher with another mean shape teaches the same positions;
    a stage-wise age as a number of years, so that its teacher may have a class a year.

    Args:
        labels: This task's labels; some losses bound or split the teacher's answer by them.

    Raises:
        ModelError: Student and teacher differ in shape.
        DataError: The labels have another shape than the prediction asks for.
    """
    require_shapes(output, prediction, labels)
    own_form = output.stages or output.heatmap or teacher_output.heatmap
    require_shapes(teacher_output if own_form else output, teacher)
    if output.stages:
        taught = _years(teacher_output, teacher)[:, None]
        return age_distance(expected_years(prediction, output.stages), taught.expand(-1, 2))
    kind, known = TASKS[output.task].kind, known_rows(output, labels)
    target = labels
    if kind is Kind.LANDMARKS:
        prediction, teacher = _places(output, prediction), _places(teacher_output, teacher)
        target = torch.where(known.view(-1, 1, 1), labels, teacher)
    elif kind is Kind.SCORE:
        target = torch.nan_to_num(labels)[:, None]
    elif kind is Kind.AGE:
        exact = known & (labels[:, 0] == labels[:, 1])
        year = torch.nan_to_num(labels[:, 0]).round().clamp(0, prediction.shape[1] - 1).long()
        target = torch.where(exact, year, -1)
    return DISTILL_LOSSES[distill.losses.get(output.task, _own(kind, spec))](
        Lesson(
            student=prediction,
            teacher=teacher,
            target=target,
            known=known,
            kind=kind,
            temperature=distill.temperature,
            width=spec.wing_width,
            curvature=spec.wing_curvature,
        )
    )


def compare_features(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of this name between a layer of the student and one of the teacher: (B, …) twice to (B,)."""
    return DISTILL_LOSSES[name](Lesson(student=student, teacher=teacher))
