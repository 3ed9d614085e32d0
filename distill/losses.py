"""Per-sample losses of every task kind: against labels, and against a teacher.

`hard_loss` is zero, without gradient, where a label is missing. A batch's sum is divided by the number of samples that
taught the task, never by the batch size: a masked sample weighs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeface.errors import UnsupportedError
from edgeface.specs import LossSpec, OutputSpec
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
    expected = (log_probability.exp() * stages).sum(dim=1, keepdim=True)
    outside = torch.relu(low - expected) + torch.relu(expected - high)
    return -mass + outside.squeeze(1) / 10.0


def known_rows(output: OutputSpec, labels: Tensor) -> Tensor:
    """(B,) bool: which samples carry a label of this task (for attributes: at least one)."""
    kind = TASKS[output.task].kind
    if kind in (Kind.CLASSES, Kind.IDENTITY):
        return labels >= 0
    if kind is Kind.ATTRIBUTES:
        return (labels >= 0).any(dim=1)
    return torch.isfinite(labels.reshape(len(labels), -1)).all(dim=1)


def hard_loss(output: OutputSpec, prediction: Tensor, labels: Tensor, *, spec: LossSpec) -> Tensor:
    """Loss against labels.

    Args:
        prediction: (B, *shape) raw output; landmark offsets from the mean shape.
        labels: This task's labels, coded as edgeface.tasks says; landmarks in crop sides.

    Returns:
        (B,); zero without gradient where the label is missing.
    """
    kind = TASKS[output.task].kind
    known = known_rows(output, labels)
    if kind is Kind.LANDMARKS:
        mean = torch.tensor(output.mean_shape, device=prediction.device, dtype=prediction.dtype)
        # A NaN label would poison the gradient of its masked sample, so it is replaced before the loss, not after.
        target = torch.where(known.view(-1, 1, 1), labels, mean)
        value = LANDMARK_LOSSES[spec.landmarks](
            prediction + mean, target, width=spec.wing_width, curvature=spec.wing_curvature
        )
    elif kind is Kind.CLASSES:
        value = F.cross_entropy(prediction, labels.clamp(min=0), reduction="none", label_smoothing=spec.label_smoothing)
    elif kind is Kind.SCORE:
        value = (prediction.squeeze(1) - torch.nan_to_num(labels)).square()
    elif kind is Kind.AGE:
        value = age_mass(prediction, torch.nan_to_num(labels))
    elif kind is Kind.ATTRIBUTES:
        each = F.binary_cross_entropy_with_logits(prediction, labels.clamp(min=0).to(prediction), reduction="none")
        marked = labels >= 0
        value = (each * marked).sum(dim=1) / marked.sum(dim=1).clamp(min=1)
    else:
        raise UnsupportedError(
            f"task {output.task!r} has no loss against labels",
            expected="a task of another kind",
            where="tasks",
            do="Leave it out, or learn it from a teacher alone with distill.soft = 1",
        )
    return torch.where(known, value, value * 0.0)


def soft_loss(
    output: OutputSpec,
    prediction: Tensor,
    teacher: Tensor,
    *,
    teacher_output: OutputSpec,
    temperature: float,
    spec: LossSpec,
) -> Tensor:
    """Loss against the teacher's raw output of the same task: (B, *shape) twice to (B,).

    Landmarks are compared as points in the crop, so that a teacher with another mean shape teaches the same positions.
    """
    kind = TASKS[output.task].kind
    if kind is Kind.LANDMARKS:
        mean = torch.tensor(output.mean_shape, device=prediction.device, dtype=prediction.dtype)
        teacher_mean = torch.tensor(teacher_output.mean_shape, device=prediction.device, dtype=prediction.dtype)
        return LANDMARK_LOSSES[spec.landmarks](
            prediction + mean, teacher + teacher_mean, width=spec.wing_width, curvature=spec.wing_curvature
        )
    if kind in (Kind.CLASSES, Kind.AGE):
        return soft_cross_entropy(prediction, teacher, temperature=temperature)
    if kind is Kind.SCORE:
        return (prediction - teacher).squeeze(1).square()
    if kind is Kind.ATTRIBUTES:
        target = torch.sigmoid(teacher / temperature)
        each = F.binary_cross_entropy_with_logits(prediction / temperature, target, reduction="none")
        return each.mean(dim=1) * temperature**2
    return 1.0 - F.cosine_similarity(prediction, teacher, dim=1)
