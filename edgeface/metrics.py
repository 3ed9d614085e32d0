"""Task metrics in NumPy: one implementation scores every runtime, and the training loop's validation too.

Predictions travel in the forms of the labels (tasks.py), with nothing missing:

    landmarks    (N, K, 2) in the labels' frame
    classes      (N,) class index
    score        (N,) in the labels' scale
    age          (N,) years
    identity     (N, D) embedding
    attributes   (N, M) 0 or 1

Every metric is computed under a matrix of sample weights, one row per resample: a row of ones is the plain score, rows
of multinomial counts are a bootstrap. A metric that cannot be computed is absent, never 0; `why_absent` says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import DataError, ModelError
from edgeface.tasks import EYES, Kind, Task

Array = NDArray[Any]
Floats = NDArray[np.float64]
Scores = dict[str, float | int]

FAILURE_PERCENT = 10.0  # a face whose mean error is above this share of the inter-ocular distance counts as failed

_ERRORS_IN_UNITS = ("mae_years", "mae", "rmse")
_PERCENTS = ("nme_percent", "failure_percent")


def score(task: Task, prediction: Array, labels: Array) -> Scores:
    """Every metric of a task, over the samples that have a label.

    Args:
        task: Decides the metrics.
        prediction: One row per sample, in the form above.
        labels: One row per sample, in the form of tasks.py, missing ones coded as there.

    Returns:
        `n` labelled samples, and what can be computed of: landmarks `nme_percent`, `failure_percent`; classes
        `accuracy`, and `balanced_accuracy` where it is the main metric, `macro_f1` for expressions; age `mae_years`
        over exact ages (`n_exact` of them) and `bin_accuracy`, `bin_accuracy_1_off` over interval labels (`n_bins`);
        score `pearson`, `mae`, `rmse`; attributes `balanced_accuracy`, and `n_attributes` that have both answers among
        the labels. Accuracies in 0 to 1, `*_percent` in percent.

    Raises:
        ModelError: The prediction has another shape than the labels ask for, or holds values that are not finite.
        DataError: The labels are not in the form of tasks.py.
    """
    prediction, labels = _labelled(task, prediction, labels)
    n = len(labels)
    scores: Scores = {"n": n}
    if n == 0 or task.kind is Kind.IDENTITY:
        return scores
    values = _METRICS[task.kind](task, prediction, labels, np.ones((1, n)))
    scores |= {key: float(value[0]) for key, value in values.items() if np.isfinite(value[0])}
    if task.kind is Kind.AGE:
        exact = int((labels[:, 0] == labels[:, 1]).sum())
        scores |= {"n_exact": exact, "n_bins": n - exact}
    if task.kind is Kind.ATTRIBUTES:
        scores["n_attributes"] = int((_holds(labels, 0) & _holds(labels, 1)).sum())
    return scores


def main_metric(task: Task, scores: Scores) -> str:
    """Key of the metric that budgets and score cards use: the task's, or bin accuracy where ages are only intervals."""
    if task.kind is Kind.AGE and "mae_years" not in scores and "bin_accuracy" in scores:
        return "bin_accuracy"
    return task.metric


def lower_is_better(metric: str) -> bool:
    """True for errors, False for accuracies and correlations."""
    return metric in _ERRORS_IN_UNITS or metric in _PERCENTS


def why_absent(task: Task, scores: Scores) -> str:
    """Why `score` left the main metric out, or "" when it is there."""
    if main_metric(task, scores) in scores:
        return ""
    if scores["n"] == 0:
        return "no sample has a label"
    return {
        Kind.IDENTITY: "verification needs a list of same and different pairs",
        Kind.SCORE: "the predictions or the labels do not vary",
        Kind.AGE: "the labels' intervals overlap",
        Kind.CLASSES: "the labels hold a single class",
        Kind.ATTRIBUTES: "no attribute has both answers among the labels",
        Kind.LANDMARKS: "no sample has a label",
    }[task.kind]


def worsening(metric: str, value: float, reference: float) -> float:
    """How much worse a value is than its reference, in the unit budgets are written in.

    Returns:
        Points for accuracies, shares and correlations (×100) and for percentages; relative percent of the reference for
        errors in other units. Positive is worse.
    """
    if metric in _ERRORS_IN_UNITS:
        if reference == 0.0:
            return 0.0 if value == 0.0 else float("inf")
        return 100.0 * (value - reference) / reference
    if metric in _PERCENTS:
        return value - reference
    return 100.0 * (reference - value)


def point_errors(prediction: Array, labels: Array) -> Floats:
    """Distance of every point to its label over the distance between the eyes (tasks.EYES).

    Args:
        prediction: (N, K, 2).
        labels: (N, K, 2) in the same frame, every row known.

    Returns:
        (N, K) in percent. The mean over K is a face's error, the mean over N the error of each point.

    Raises:
        DataError: Two eyes in one place, by which nothing can be normalised.
    """
    distance = np.linalg.norm(prediction.astype(np.float64) - labels, axis=-1)
    return np.asarray(100.0 * distance / _eye_distance(labels, of="labels")[:, None])


def cumulative_curve(errors: Array, thresholds: Array) -> Floats:
    """Share of faces whose error is at most each threshold.

    Args:
        errors: (N,) in percent.
        thresholds: (T,) in percent.

    Returns:
        (T,) in 0 to 1.
    """
    return np.asarray(np.searchsorted(np.sort(errors), thresholds, side="right") / len(errors))


def _eye_distance(points: Array, *, of: str) -> Floats:
    left, right = EYES[points.shape[1]]
    distance = np.linalg.norm(points[:, left].astype(np.float64) - points[:, right], axis=-1)
    if (distance == 0.0).any():
        rows = np.flatnonzero(distance == 0.0)
        error = DataError if of == "labels" else ModelError
        raise error(
            f"both eyes in one place in {len(rows)} of the {of} (first row {rows[0]})",
            expected="two eye centres apart, since errors are measured in their distance",
            where=f"landmarks{points.shape[1]}",
            do="Correct or remove these samples" if of == "labels" else "Score a trained model",
        )
    return np.asarray(distance)


def confusion(task: Task, prediction: Array, labels: Array) -> NDArray[np.int64]:
    """How often each true class was answered as each class.

    Args:
        task: With classes.
        prediction: (N,) class index.
        labels: (N,) class index, -1 missing.

    Returns:
        (C, C) counts over the labelled samples, true class by row.
    """
    answers, truth = _labelled(task, prediction, labels)
    count = len(task.classes)
    return np.bincount(truth * count + answers, minlength=count * count).reshape(count, count)


def agreement(task: Task, prediction: Array, reference: Array) -> Scores:
    """How far two models answer alike, labels or not.

    Args:
        task: Decides the measure.
        prediction: One row per sample, in the form above.
        reference: As `prediction`, from the model compared with.

    Returns:
        `n` samples and: classes and attributes `equal_share` of decisions; landmarks `distance_percent` of the
        reference's eye distance, mean over points and samples; score `pearson` (absent when either side is constant)
        and `mae`; age `difference_years`, mean absolute; identity `cosine`, mean.

    Raises:
        ModelError: The two differ in shape or hold values that are not finite.
    """
    if prediction.shape != reference.shape:
        raise ModelError(
            f"predictions of shape {prediction.shape}",
            expected=f"{reference.shape}, as the reference has",
            where=f"task {task.name!r}",
            do="Score both models on the same samples",
        )
    for values in (prediction, reference):
        _refuse_not_finite(task, values)
    n = len(prediction)
    if n == 0:
        return {"n": 0}
    first, second = prediction.astype(np.float64), reference.astype(np.float64)
    if task.kind in (Kind.CLASSES, Kind.ATTRIBUTES):
        return {"equal_share": float((prediction == reference).mean()), "n": n}
    if task.kind is Kind.LANDMARKS:
        distance = np.linalg.norm(first - second, axis=-1) / _eye_distance(reference, of="reference")[:, None]
        return {"distance_percent": 100.0 * float(distance.mean()), "n": n}
    if task.kind is Kind.AGE:
        return {"difference_years": float(np.abs(first - second).mean()), "n": n}
    if task.kind is Kind.IDENTITY:
        length = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
        return {"cosine": float(((first * second).sum(-1) / length).mean()), "n": n} if length.all() else {"n": n}
    measured = _score(task, prediction, reference, np.ones((1, n)))
    return {key: float(measured[key][0]) for key in ("pearson", "mae") if np.isfinite(measured[key][0])} | {"n": n}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference of two scores with its bootstrap interval.

    Attributes:
        difference: Score of the first minus score of the second, on all samples.
        low: Lower end of the interval.
        high: Upper end.
        level: Its coverage, in 0 to 1.
    """

    difference: float
    low: float
    high: float
    level: float


def paired_interval(
    task: Task,
    predictions: tuple[Array, Array],
    *,
    labels: Array,
    metric: str = "",
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a metric's difference between two models on the same samples.

    Args:
        task: Decides the metrics.
        predictions: First and second model's, each one row per sample.
        labels: One row per sample; the missing are left out.
        metric: Key of `score`; "" takes the task's main metric.
        resamples: Number of resamples; each draws the samples once for both models.
        level: Coverage of the interval.
        seed: Decides the resamples.

    Raises:
        DataError: The metric cannot be computed on these labels.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
    """
    scores = score(task, predictions[0], labels)
    metric = metric or main_metric(task, scores)
    plain = [scores, score(task, predictions[1], labels)]
    if any(metric not in each for each in plain):
        raise DataError(
            f"no {metric!r} to compare: {why_absent(task, scores) or 'it is absent for one of the two models'}",
            expected="a metric both models have",
            where=f"task {task.name!r}",
            do="Score a source that has these labels",
        )
    first, second = bootstrap(task, predictions, labels=labels, metric=metric, resamples=resamples, seed=seed)
    low, high = percentiles(first - second, level=level)
    return Interval(difference=float(plain[0][metric] - plain[1][metric]), low=low, high=high, level=level)


def bootstrap(
    task: Task,
    predictions: Sequence[Array],
    *,
    labels: Array,
    metric: str,
    resamples: int = 1000,
    seed: int = 0,
) -> Floats:
    """A metric of several models on the same resamples of the same samples, so that differences are paired.

    Args:
        task: Decides the metrics.
        predictions: M models' answers, each one row per sample.
        labels: One row per sample; the missing are left out.
        metric: Key of `score`, which every model has.
        resamples: Number of resamples R.
        seed: Decides the resamples; those of equally many samples are the same.

    Returns:
        (M, R); NaN where a resample lacks a class that the metric needs.
    """
    pairs = [_labelled(task, prediction, labels) for prediction in predictions]
    measure = _METRICS[task.kind]
    parts = [
        np.stack([measure(task, known_rows, truth, weights)[metric] for known_rows, truth in pairs])
        for weights in _resamples(len(pairs[0][1]), resamples, seed)
    ]
    return np.concatenate(parts, axis=1)


def percentiles(values: Array, *, level: float = 0.95) -> tuple[float, float]:
    """Ends of the central interval that holds a share `level` of (R,) resampled values; NaN when none has a value."""
    # A resample without a needed class has no value: it is left out of the percentiles.
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return math.nan, math.nan
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def _resamples(n: int, count: int, seed: int) -> Iterator[Floats]:
    """(rows, N) counts of `count` resamples in all, 16 MB at a time."""
    rows = max(1, 2_000_000 // n)
    if rows >= count:  # small enough to be kept: a scorecard draws the same ones for task after task
        yield _counts(n, count, seed)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, count, rows):
        yield _drawn(generator, n, min(rows, count - start))


@lru_cache(maxsize=8)
def _counts(n: int, count: int, seed: int) -> Floats:
    return _drawn(np.random.default_rng(seed), n, count)


def _drawn(generator: np.random.Generator, n: int, count: int) -> Floats:
    weights = generator.multinomial(n, np.full(n, 1.0 / n), size=count).astype(np.float64)
    weights.setflags(write=False)
    return weights


# Of a task, predictions (N, …), known labels (N, …) and weights (R, N) >= 0: metric name to (R,), NaN where undefined.
Measure = Callable[[Task, Array, Array, Floats], dict[str, Floats]]


def _mean(values: Array, weights: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # no weight at all is 0/0, NaN on purpose
        return np.asarray((weights @ values.astype(np.float64)) / weights.sum(1))


def _landmarks(task: Task, prediction: Array, labels: Array, weights: Floats) -> dict[str, Floats]:
    face = point_errors(prediction, labels).mean(1)  # (N,)
    return {
        "nme_percent": _mean(face, weights),
        "failure_percent": 100.0 * _mean(face > FAILURE_PERCENT, weights),
    }


def _classes(task: Task, prediction: Array, labels: Array, weights: Floats) -> dict[str, Floats]:
    correct = prediction == labels
    values = {"accuracy": _mean(correct, weights)}
    if task.metric == "balanced_accuracy":
        values["balanced_accuracy"] = _balanced(correct, labels, weights, classes=len(task.classes))
    if task.name.startswith("expression"):
        values["macro_f1"] = _macro_f1(prediction, labels, weights, classes=len(task.classes))
    return values


def _balanced(correct: Array, labels: Array, weights: Floats, *, classes: int) -> Floats:
    """Mean recall over the classes among the labels; NaN where there are fewer than two, which says nothing."""
    recalls = np.stack([_mean(correct[labels == c], weights[:, labels == c]) for c in range(classes)])  # (classes, R)
    present = np.isfinite(recalls)
    count = present.sum(0)
    mean = np.where(present, recalls, 0.0).sum(0) / np.maximum(count, 1)
    return np.where(count >= 2, mean, np.nan)


def _macro_f1(prediction: Array, labels: Array, weights: Floats, *, classes: int) -> Floats:
    """Mean F1 over the classes that occur among labels or predictions."""
    f1 = []
    for c in range(classes):
        claimed, true = prediction == c, labels == c
        # 2·hits / (claimed + true) is the harmonic mean of precision and recall without its 0/0 at no hit.
        hits, either = weights @ (claimed & true), weights @ claimed.astype(np.float64) + weights @ true
        f1.append(np.where(either > 0, 2.0 * hits / np.maximum(either, 1e-300), np.nan))
    return np.asarray(np.nanmean(np.stack(f1), axis=0))


def _age(task: Task, prediction: Array, labels: Array, weights: Floats) -> dict[str, Floats]:
    exact = labels[:, 0] == labels[:, 1]
    years = prediction.astype(np.float64)
    values: dict[str, Floats] = {}
    if exact.any():
        values["mae_years"] = _mean(np.abs(years - labels[:, 0])[exact], weights[:, exact])
    if exact.all():
        return values
    bins, weights, whole = labels[~exact], weights[:, ~exact], np.rint(years[~exact])  # bins hold whole years
    values["bin_accuracy"] = _mean((bins[:, 0] <= whole) & (whole <= bins[:, 1]), weights)
    edges = np.unique(bins, axis=0)  # ordered by lower edge
    if (edges[1:, 0] > edges[:-1, 1]).all():
        own = np.searchsorted(edges[:, 0], bins[:, 0])
        low, high = edges[np.maximum(own - 1, 0), 0], edges[np.minimum(own + 1, len(edges) - 1), 1]
        values["bin_accuracy_1_off"] = _mean((low <= whole) & (whole <= high), weights)
    return values


def _score(task: Task, prediction: Array, labels: Array, weights: Floats) -> dict[str, Floats]:
    x, y = prediction.astype(np.float64), labels.astype(np.float64)
    x_mean, y_mean = _mean(x, weights), _mean(y, weights)  # (R,)
    # Centred on the plain means first, so that the products below do not cancel in their leading digits.
    x, x_mean = x - x.mean(), x_mean - x.mean()
    y, y_mean = y - y.mean(), y_mean - y.mean()
    x_var = _mean(x * x, weights) - x_mean**2
    y_var = _mean(y * y, weights) - y_mean**2
    covariance = _mean(x * y, weights) - x_mean * y_mean
    # Rounding leaves about 1e-16 of the largest square where there is no spread at all.
    spread = (x_var > 1e-14 * (x * x).max()) & (y_var > 1e-14 * (y * y).max())
    if np.ptp(prediction) == 0 or np.ptp(labels) == 0:
        spread = np.zeros_like(spread)
    pearson = np.full(len(weights), np.nan)
    pearson[spread] = np.clip(covariance[spread] / np.sqrt(x_var[spread] * y_var[spread]), -1.0, 1.0)
    error = prediction.astype(np.float64) - labels
    return {"pearson": pearson, "mae": _mean(np.abs(error), weights), "rmse": np.sqrt(_mean(error**2, weights))}


def _attributes(task: Task, prediction: Array, labels: Array, weights: Floats) -> dict[str, Floats]:
    usable = np.flatnonzero(_holds(labels, 0) & _holds(labels, 1))
    if len(usable) == 0:
        return {}
    each = []
    for m in usable:
        rows = labels[:, m] >= 0
        truth = labels[rows, m]
        each.append(_balanced(prediction[rows, m] == truth, truth, weights[:, rows], classes=2))
    return {"balanced_accuracy": np.asarray(np.mean(each, axis=0))}


_METRICS: dict[Kind, Measure] = {
    Kind.LANDMARKS: _landmarks,
    Kind.CLASSES: _classes,
    Kind.SCORE: _score,
    Kind.AGE: _age,
    Kind.ATTRIBUTES: _attributes,
}


def known(task: Task, labels: Array) -> NDArray[np.bool_]:
    """(N,) true where a sample has a label (for attributes: at least one).

    Raises:
        DataError: Half-missing landmarks or ages, or a class outside the task's, which no reader may pass on.
    """
    if task.kind in (Kind.LANDMARKS, Kind.AGE):
        finite = np.isfinite(labels).reshape(len(labels), math.prod(labels.shape[1:]))
        whole = finite.all(1)
        _refuse_rows(task, finite.any(1) & ~whole, "half a label", "every value of a sample known, or none")
        if task.kind is Kind.AGE:
            _refuse_rows(task, whole & (labels[:, 0] > labels[:, 1]), "an empty interval", "lowest <= highest age")
        return np.asarray(whole)
    if task.kind is Kind.SCORE:
        return np.asarray(np.isfinite(labels))
    if task.kind is Kind.IDENTITY:
        return np.asarray(labels >= 0)
    limit = 2 if task.kind is Kind.ATTRIBUTES else len(task.classes)
    rows = labels.reshape(len(labels), math.prod(labels.shape[1:]))
    _refuse_rows(task, ((rows < -1) | (rows >= limit)).any(1), "a class out of range", f"-1 (none) to {limit - 1}")
    return np.asarray((rows >= 0).any(1))


def _holds(labels: Array, answer: int) -> NDArray[np.bool_]:
    return np.asarray((labels == answer).any(0))


def _labelled(task: Task, prediction: Array, labels: Array) -> tuple[Array, Array]:
    _shaped(task, prediction, labels)
    rows = known(task, labels)
    _refuse_not_finite(task, prediction)
    return prediction[rows], labels[rows]


def _shaped(task: Task, prediction: Array, labels: Array) -> None:
    sample: dict[Kind, tuple[Sequence[int], Sequence[int]]] = {
        Kind.LANDMARKS: ((task.points, 2), (task.points, 2)),
        Kind.CLASSES: ((), ()),
        Kind.SCORE: ((), ()),
        Kind.AGE: ((), (2,)),
        Kind.ATTRIBUTES: ((len(task.classes),), (len(task.classes),)),
        Kind.IDENTITY: (prediction.shape[1:], ()),
    }
    for_prediction, for_labels = sample[task.kind]
    if labels.shape[1:] != tuple(for_labels):
        raise DataError(
            f"labels of shape {labels.shape}",
            expected=f"(N, {', '.join(map(str, for_labels))})" if for_labels else "(N,)",
            where=f"task {task.name!r}",
            do="Pass labels in the form of edgeface.tasks",
        )
    if prediction.shape != (len(labels), *for_prediction):
        raise ModelError(
            f"predictions of shape {prediction.shape}",
            expected=f"{(len(labels), *for_prediction)}",
            where=f"task {task.name!r}",
            do="Decode the outputs with edgeface.evaluate.decode",
        )


def _refuse_not_finite(task: Task, prediction: Array) -> None:
    finite = np.isfinite(prediction)
    if not finite.all():
        raise ModelError(
            f"{int(finite.size - finite.sum())} of {finite.size} predicted values are not finite",
            expected="finite outputs",
            where=f"task {task.name!r}",
            do="Train with a lower learning rate, or check the exported file with `edgeface parity`",
        )


def _refuse_rows(task: Task, faulty: Array | np.bool_, found: str, expected: str) -> None:
    if faulty.any():
        raise DataError(
            f"{found} in {int(faulty.sum())} rows (first row {int(np.flatnonzero(faulty)[0])})",
            expected=expected,
            where=f"labels of task {task.name!r}",
            do="Correct the reader or the label file",
        )
