"""Losses for classes of very different size: weights by how often a class is labelled, and the focal loss.

In a recipe they are forms of a task's loss against labels: `[loss.forms] glasses = "weighted"`, "focal" or
"weighted-focal". Weights come from the training labels as they lie in the sources, once, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeface.errors import DataError
from edgeface.specs import IMBALANCE_LOSSES, LossSpec
from edgeface.tasks import Kind


def class_weights(counts: Tensor, *, power: float, where: str = "class weights") -> Tensor:
    """Weights of classes by their size, such that a labelled sample weighs 1 on average.

    Args:
        counts: (..., C) labelled samples of each class; the last axis shares one mean.
        power: 1 makes every class weigh the same in the sum, 0.5 goes half the way on a logarithmic scale, 0 none.
        where: What asked for them, for the error.

    Returns:
        (..., C) float32, proportional to 1 / counts^power; 0 for a class without samples.

    Raises:
        DataError: No class has a sample.
    """
    sizes = counts.double()
    if bool((sizes.sum(dim=-1) == 0).any()):
        raise DataError(
            "no labelled sample",
            expected="some of at least one class, to weigh classes by their size",
            where=where,
            do="Take the plain loss for this task, or add a source that labels it",
        )
    shares = torch.where(sizes > 0, sizes.clamp(min=1.0) ** -power, 0.0)
    mean = (shares * sizes).sum(dim=-1, keepdim=True) / sizes.sum(dim=-1, keepdim=True)
    return (shares / mean).float()


def label_weights(counts: Callable[[str], Tensor], spec: LossSpec) -> dict[str, Tensor]:
    """The weights that a recipe's forms ask for, from all training labels.

    Args:
        counts: Gives, for a task, how many training samples are of each class: edgeface.data.loader.class_counts.
        spec: Forms of the losses.

    Returns:
        Task name to (C,) weights of its classes; of attributes (M, 2), of absence and of presence.

    Raises:
        DataError: A task, or one of its attributes, has no label.
    """
    weights = {}
    for name, form in spec.forms.items():
        if form not in ("weighted", "weighted-focal"):
            continue
        weights[name] = class_weights(counts(name), power=spec.class_power, where=f"loss.forms.{name}")
    return weights


def focal(logits: Tensor, target: Tensor, *, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy that counts little where the right class is near certain already.

    Args:
        logits: (B, C).
        target: (B,) class indices.
        gamma: 0 is the plain cross-entropy.
        weights: (C,) of the right class.

    Returns:
        (B,) −w_t (1 − p_t)^gamma log p_t.

    Source:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, arXiv:1708.02002, eq. 4 and 5; softmax in the
        place of their sigmoid.
    """
    right = F.log_softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)
    value = -_miss(right, gamma=gamma) * right
    return value if weights is None else value * weights[target]


def binary_focal(logits: Tensor, target: Tensor, *, gamma: float, weights: Tensor | None = None) -> Tensor:
    """As `focal`, for M questions of two answers each.

    Args:
        logits: (B, M).
        target: (B, M) 0 or 1.
        weights: (M, 2) of absence and of presence.

    Returns:
        (B, M).
    """
    right = F.logsigmoid(torch.where(target > 0, logits, -logits))
    value = -_miss(right, gamma=gamma) * right
    return value if weights is None else value * torch.where(target > 0, weights[:, 1], weights[:, 0])


def _miss(log_right: Tensor, *, gamma: float) -> Tensor:
    """(1 − p)^gamma. The power is of a number kept above 0, where its gradient is finite for gamma below 1."""
    if gamma == 0.0:
        return torch.ones_like(log_right)
    return (-torch.expm1(log_right)).clamp(min=1e-6) ** gamma


def imbalance_loss(
    form: str, kind: Kind, logits: Tensor, labels: Tensor, *, spec: LossSpec, weights: Tensor | None
) -> Tensor:
    """One of specs.IMBALANCE_LOSSES.

    Args:
        form: Its name.
        kind: `classes` or `attributes`.
        logits: (B, C).
        labels: (B,) class indices or (B, M) 0 or 1; -1 where there is none, which costs something here all the same.
        weights: As `label_weights` gives them; needed by the forms that are "weighted".

    Returns:
        (B,), of attributes (B, M).

    Raises:
        DataError: The form is weighted and there are no weights.
    """
    assert form in IMBALANCE_LOSSES
    if form == "focal":
        weights = None
    elif weights is None:
        raise DataError(
            "no weights of classes",
            expected="those of the training labels",
            where=f"loss form {form!r}",
            do="Take them from distill.imbalance.label_weights",
        )
    else:
        weights = weights.to(logits)
    target = labels.clamp(min=0)
    gamma = 0.0 if form == "weighted" else spec.focal_gamma
    if kind is Kind.ATTRIBUTES:
        return binary_focal(logits, target, gamma=gamma, weights=weights)
    if form == "weighted":
        return F.cross_entropy(logits, target, weights, reduction="none", label_smoothing=spec.label_smoothing)
    return focal(logits, target, gamma=gamma, weights=weights)
