"""How far a network's probabilities can be trusted, and what another threshold would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bin = tuple[float, float, int]  # mean confidence, accuracy, faces

BINS = 10


def reliability(confidence: Array, correct: Array, *, bins: int = BINS) -> tuple[Bin, ...]:
    """Faces by the confidence of their answer, in bins of equal width.

    Args:
        confidence: (N,) probability of the answered class, 0 to 1.
        correct: (N,) bool.
        bins: Number of bins from 0 to 1; a value on an edge falls into the upper one, 1 into the last.

    Returns:
        Mean confidence, accuracy and number of faces of every bin that holds any, in order.
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count, sure, right = (
        np.bincount(place, weights=weights, minlength=bins) for weights in (None, confidence, correct.astype(float))
    )
    return tuple((float(sure[b] / count[b]), float(right[b] / count[b]), int(count[b])) for b in np.flatnonzero(count))


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and accuracy over bins, weighted by their faces; 0 to 1.

    Source:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599, eq. 3.
    """
    total = sum(count for _, _, count in bins)
    return sum(count * abs(accuracy - sure) for sure, accuracy, count in bins) / total


@dataclass(frozen=True, kw_only=True)
class Recalibrated:
    """What a two-class task would score with a threshold of its own.

    Attributes:
        threshold: Probability of the second class above which to answer it, chosen on all faces: the one to ship.
        value: The metric when each half of the faces is answered with the threshold chosen on the other half.
        n: Faces.
    """

    threshold: float
    value: float
    n: int


def recalibrate(margin: Array, labels: Array, half: Array, *, metric: str, threshold: float) -> Recalibrated | None:
    """Choose the threshold of a two-class task, scored where it was not chosen.

    Args:
        margin: (N,) second logit minus the first.
        labels: (N,) 0 or 1.
        half: (N,) bool, which half a face belongs to.
        metric: "accuracy" or "balanced_accuracy".
        threshold: The model's own, taken again where no other is better.

    Returns:
        None where a class is missing from a half.
    """
    if any(len(np.unique(labels[side])) < 2 for side in (half, ~half)):
        return None
    shipped = math.log(threshold / (1.0 - threshold))
    answers = np.empty(len(labels), np.int64)
    for side in (half, ~half):
        cut = best_cut(margin[~side], labels[~side], metric=metric, near=shipped)
        answers[side] = margin[side] > cut
    right = answers == labels
    parts = [right[labels == label].mean() for label in (0, 1)]
    value = float(np.mean(parts)) if metric == "balanced_accuracy" else float(right.mean())
    best = best_cut(margin, labels, metric=metric, near=shipped)
    # A logit beyond 30 is a probability that a float cannot tell from 1.
    chosen = 1.0 / (1.0 + math.exp(-min(max(best, -30.0), 30.0)))
    return Recalibrated(threshold=chosen, value=value, n=len(labels))


def best_cut(margin: Array, labels: Array, *, metric: str, near: float) -> float:
    """The margin above which to answer 1, so that a metric is highest; of equals the one nearest to `near`."""
    order = np.argsort(margin, kind="stable")
    sorted_margin, truth = margin[order].astype(np.float64), labels[order]
    zeros, ones = (np.concatenate([[0], np.cumsum(truth == label)]) for label in (0, 1))
    # Cut k answers 0 to the k lowest margins.
    right = (zeros, ones[-1] - ones)
    if metric == "balanced_accuracy":
        gain = right[0] / max(zeros[-1], 1) + right[1] / max(ones[-1], 1)
    else:
        gain = (right[0] + right[1]).astype(np.float64)
    ends = np.concatenate([[sorted_margin[0] - 1.0], sorted_margin, [sorted_margin[-1] + 1.0]])
    cuts = 0.5 * (ends[:-1] + ends[1:])  # (N + 1,)
    possible = np.concatenate([[True], np.diff(sorted_margin) > 0, [True]])  # equal margins cannot be told apart
    cuts[np.searchsorted(sorted_margin, near, side="right")] = near
    best = np.flatnonzero(possible & (gain >= gain[possible].max() - 1e-12))
    return float(cuts[best[np.argmin(np.abs(cuts[best] - near))]])
