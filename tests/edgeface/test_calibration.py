"""Reliability, calibration error and thresholds, against naive forms and on answers whose best threshold is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.calibration import best_cut, expected_calibration_error, recalibrate, reliability


def naive_score(margin: np.ndarray, labels: np.ndarray, cut: float, metric: str) -> float:
    right = [(value > cut) == label for value, label in zip(margin, labels, strict=True)]
    if metric == "accuracy":
        return sum(right) / len(right)
    return sum(np.mean([hit for hit, label in zip(right, labels, strict=True) if label == c]) for c in (0, 1)) / 2


def test_reliability_equals_the_naive_loop() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.3, 1.0, 500)
    correct = generator.random(500) < confidence
    bins = reliability(confidence, correct)
    expected = []
    for b in range(10):
        held = [(c, r) for c, r in zip(confidence, correct, strict=True) if min(int(c * 10), 9) == b]
        if held:
            expected.append((np.mean([c for c, _ in held]), np.mean([r for _, r in held]), len(held)))
    # Sums of 500 float64 terms in another order.
    np.testing.assert_allclose(bins, expected, rtol=1e-12)
    error = sum(n * abs(right - sure) for sure, right, n in expected) / 500
    assert expected_calibration_error(bins) == pytest.approx(error, rel=1e-12)
    assert reliability(np.append(confidence[1:], 0.99), correct) != bins


def test_a_sure_and_right_network_is_calibrated_and_a_sure_and_wrong_one_is_not() -> None:
    sure = np.ones(50)
    assert reliability(sure, np.ones(50, bool)) == ((1.0, 1.0, 50),)
    assert expected_calibration_error(reliability(sure, np.ones(50, bool))) == 0.0
    assert expected_calibration_error(reliability(sure, np.zeros(50, bool))) == 1.0


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=2, max_size=25),
    st.sampled_from(["accuracy", "balanced_accuracy"]),
    st.floats(-3.0, 3.0),
)
def test_best_cut_is_no_worse_than_any_other(faces: list[tuple[int, int]], metric: str, near: float) -> None:
    margin = np.array([value / 2 for value, _ in faces])
    labels = np.array([label for _, label in faces])
    if len(set(labels.tolist())) < 2:
        return
    found = naive_score(margin, labels, best_cut(margin, labels, metric=metric, near=near), metric)
    others = [naive_score(margin, labels, cut, metric) for cut in (near, *np.arange(-2.25, 2.5, 0.25))]
    assert found >= max(others) - 1e-12


def test_the_shipped_threshold_is_kept_where_none_is_better() -> None:
    margin = np.array([-2.0, -1.0, 1.0, 2.0])
    labels = np.array([0, 0, 1, 1])
    assert best_cut(margin, labels, metric="accuracy", near=0.3) == 0.3
    assert best_cut(margin, labels, metric="accuracy", near=1.7) == 0.0
    assert best_cut(margin, labels, metric="accuracy", near=-5.0) == 0.0


def shifted(*, by: float, n: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Margins of a network that is right about a noisy line, moved off zero by `by`."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, n)
    margin = np.where(labels == 1, 1.5, -1.5) + generator.normal(0.0, 1.0, n) + by
    return margin, labels, generator.random(n) < 0.5


def test_a_shift_of_the_logits_is_taken_back() -> None:
    margin, labels, half = shifted(by=1.0)
    found = recalibrate(margin, labels, half, metric="accuracy", threshold=0.5)
    assert found is not None
    shipped = float(((margin > 0) == labels).mean())
    ideal = float(((margin > 1.0) == labels).mean())
    assert found.n == 2000
    # 2,000 faces settle the best cut to about 0.2, where accuracy is flat.
    assert math.log(found.threshold / (1 - found.threshold)) == pytest.approx(1.0, abs=0.35)
    assert found.value == pytest.approx(ideal, abs=0.01)
    assert found.value > shipped + 0.05


def test_without_a_shift_nothing_is_gained_twin() -> None:
    margin, labels, half = shifted(by=0.0)
    found = recalibrate(margin, labels, half, metric="accuracy", threshold=0.5)
    assert found is not None
    assert found.value == pytest.approx(float(((margin > 0) == labels).mean()), abs=0.01)


def test_the_value_is_scored_on_faces_that_did_not_choose_the_threshold() -> None:
    # Labels are chance: on the faces that choose it, the best threshold beats one half; on others it cannot.
    generator = np.random.default_rng(2)
    seen, unseen = [], []
    for _ in range(40):
        margin, labels = generator.normal(size=60), generator.integers(0, 2, 60)
        half = np.arange(60) < 30
        found = recalibrate(margin, labels, half, metric="accuracy", threshold=0.5)
        assert found is not None
        unseen.append(found.value)
        cut = best_cut(margin, labels, metric="accuracy", near=0.0)
        seen.append(naive_score(margin, labels, cut, "accuracy"))
    assert np.mean(seen) > 0.55
    assert abs(np.mean(unseen) - 0.5) < 0.05  # 2,400 answers: a standard error of 0.01


def test_a_half_without_a_class_has_no_recalibration() -> None:
    margin, labels, _ = shifted(by=0.0, n=100)
    assert recalibrate(margin, labels, labels == 1, metric="accuracy", threshold=0.5) is None
