"""The vectorised metrics against loops that spell the formulas out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeface.errors import DataError, ModelError
from edgeface.metrics import (
    agreement,
    bootstrap,
    confusion,
    cumulative_curve,
    known,
    lower_is_better,
    main_metric,
    paired_interval,
    point_errors,
    score,
    why_absent,
    worsening,
)
from edgeface.tasks import EYES, TASKS, Kind

# Sums of a few hundred float64 terms in another order: about 1e-16 relative each.
ROUNDING = 1e-12


def landmark_case(points: int, *, n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.uniform(0.2, 0.8, (n, points, 2)).astype(np.float32)
    labels[:, EYES[points][0], 0] = 0.3
    labels[:, EYES[points][1], 0] = 0.7
    prediction = (labels + generator.normal(0.0, 0.03, labels.shape)).astype(np.float32)
    labels[generator.random(n) < 0.2] = np.nan
    return prediction, labels


def loop_nme(prediction: np.ndarray, labels: np.ndarray) -> tuple[float, float, int]:
    left, right = EYES[labels.shape[1]]
    errors = []
    for guess, truth in zip(prediction, labels, strict=True):
        if math.isnan(truth[0, 0]):
            continue
        eyes = math.dist(map(float, truth[left]), map(float, truth[right]))
        distances = [math.dist(map(float, g), map(float, t)) / eyes for g, t in zip(guess, truth, strict=True)]
        errors.append(100 * sum(distances) / len(distances))
    return sum(errors) / len(errors), 100 * sum(e > 10 for e in errors) / len(errors), len(errors)


@pytest.mark.parametrize("points", sorted(EYES))
def test_landmark_error_and_failures_equal_the_loop(points: int) -> None:
    prediction, labels = landmark_case(points)
    nme, failure, n = loop_nme(prediction, labels)
    scores = score(TASKS[f"landmarks{points}"], prediction, labels)
    assert scores["nme_percent"] == pytest.approx(nme, rel=ROUNDING)
    assert scores["failure_percent"] == pytest.approx(failure, rel=ROUNDING)
    assert scores["n"] == n < len(labels)


def test_landmark_error_equals_the_loop_twin() -> None:
    prediction, labels = landmark_case(5)
    nme, _, _ = loop_nme(prediction, labels)
    row = int(np.flatnonzero(known(TASKS["landmarks5"], labels))[0])
    prediction[row, 2, 0] += 0.01
    assert score(TASKS["landmarks5"], prediction, labels)["nme_percent"] != pytest.approx(nme, rel=ROUNDING)


def test_swapped_eyes_fail_the_face() -> None:
    _, labels = landmark_case(5)
    labels = labels[known(TASKS["landmarks5"], labels)]
    assert score(TASKS["landmarks5"], labels, labels)["failure_percent"] == 0.0
    swapped = labels[:, [1, 0, 2, 3, 4]]
    # Two of five points are a whole eye distance away, up to the eyes' height: at least 40 %.
    assert score(TASKS["landmarks5"], swapped, labels)["nme_percent"] >= 40.0 * (1 - 1e-6)  # float32 labels
    assert score(TASKS["landmarks5"], swapped, labels)["failure_percent"] == 100.0


def test_point_errors_tell_the_points_apart() -> None:
    _, labels = landmark_case(5)
    labels = labels[known(TASKS["landmarks5"], labels)]
    moved = labels.astype(np.float64)
    moved[:, 3, 1] += 0.1
    errors = point_errors(moved, labels)
    assert errors.shape == (len(labels), 5)
    assert (errors[:, [0, 1, 2, 4]] == 0.0).all()
    assert (errors[:, 3] > 0.0).all()


def test_cumulative_curve_counts_faces_at_or_below_each_threshold() -> None:
    errors = np.array([3.0, 1.0, 12.0, 3.0])
    thresholds = np.array([0.5, 1.0, 2.9, 3.0, 11.9, 12.0])
    counted = [sum(e <= t for e in errors) / 4 for t in thresholds]
    assert cumulative_curve(errors, thresholds).tolist() == counted == [0.0, 0.25, 0.25, 0.75, 0.75, 1.0]


def test_eyes_in_one_place_are_refused() -> None:
    labels = np.full((3, 5, 2), 0.5, np.float32)
    labels[:2, 1] = 0.7
    with pytest.raises(DataError, match="first row 2"):
        score(TASKS["landmarks5"], labels, labels)


def loop_classes(prediction: list[int], labels: list[int], classes: int) -> dict[str, float]:
    pairs = [(p, t) for p, t in zip(prediction, labels, strict=True) if t >= 0]
    recalls, f1 = [], []
    for c in range(classes):
        hits = sum(p == t == c for p, t in pairs)
        true, claimed = sum(t == c for _, t in pairs), sum(p == c for p, _ in pairs)
        if true:
            recalls.append(hits / true)
        if true or claimed:
            precision, recall = hits / claimed if claimed else 0.0, hits / true if true else 0.0
            f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return {
        "accuracy": sum(p == t for p, t in pairs) / len(pairs),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "macro_f1": sum(f1) / len(f1),
        "n": len(pairs),
    }


@settings(max_examples=60, deadline=None)  # a shared machine's pauses are not the code's
@given(data=st.data(), name=st.sampled_from(["pose", "gender", "expression", "expression8", "eyes_open"]))
def test_class_metrics_equal_the_loop(data: st.DataObject, name: str) -> None:
    task = TASKS[name]
    classes = len(task.classes)
    labels = data.draw(st.lists(st.integers(-1, classes - 1), min_size=1, max_size=30))
    prediction = data.draw(st.lists(st.integers(0, classes - 1), min_size=len(labels), max_size=len(labels)))
    scores = score(task, np.array(prediction), np.array(labels))
    if all(label < 0 for label in labels):
        assert scores == {"n": 0}
        return
    expected = loop_classes(prediction, labels, classes)
    wanted = {"accuracy", "n"} | ({"macro_f1"} if name.startswith("expression") else set())
    if name == "eyes_open" and {0, 1} <= set(labels):
        wanted |= {"balanced_accuracy"}
    assert set(scores) == wanted
    for key in wanted:
        assert scores[key] == pytest.approx(expected[key], rel=ROUNDING, abs=ROUNDING)


def test_class_metrics_equal_the_loop_twin() -> None:
    labels = [0, 1, 2, 3, 4, 5, 6, 0, 1, -1]
    prediction = [0, 1, 2, 3, 4, 5, 6, 0, 1, 3]
    wrong = [0, 1, 2, 3, 4, 5, 0, 0, 1, 3]
    task = TASKS["expression"]
    assert score(task, np.array(prediction), np.array(labels)) == {"n": 9, "accuracy": 1.0, "macro_f1": 1.0}
    scores = score(task, np.array(wrong), np.array(labels))
    assert scores["accuracy"] == pytest.approx(8 / 9, rel=ROUNDING)
    assert scores["macro_f1"] < 1.0


def test_balanced_accuracy_weighs_a_rare_class_like_a_common_one() -> None:
    labels = np.array([1] * 99 + [0])
    always_open = np.ones(100, np.int64)
    scores = score(TASKS["eyes_open"], always_open, labels)
    assert scores["accuracy"] == pytest.approx(0.99, rel=ROUNDING)
    assert scores["balanced_accuracy"] == pytest.approx(0.5, rel=ROUNDING)


def test_macro_f1_equals_scikit_learn() -> None:
    f1_score = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed").f1_score
    generator = np.random.default_rng(3)
    prediction, labels = generator.integers(0, 7, 200), generator.integers(0, 7, 200)
    scores = score(TASKS["expression"], prediction, labels)
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, prediction, average="macro"), rel=ROUNDING)
    assert scores["macro_f1"] != pytest.approx(f1_score(labels, prediction, average="micro"), rel=ROUNDING)


def test_age_error_is_over_exact_ages_and_bins_are_scored_as_bins() -> None:
    #               exact 30     in 20-29   one off     two off     rounds into 10-19   unknown
    labels = np.array([[30, 30], [20, 29], [20, 29], [0, 9], [10, 19], [np.nan, np.nan]], np.float32)
    years = np.array([33.5, 29.4, 19.4, 25.0, 19.4, 50.0])
    scores = score(TASKS["age"], years, labels)
    assert scores["mae_years"] == pytest.approx(3.5, rel=ROUNDING)
    assert scores["bin_accuracy"] == pytest.approx(2 / 4, rel=ROUNDING)
    assert scores["bin_accuracy_1_off"] == pytest.approx(3 / 4, rel=ROUNDING)
    assert (scores["n"], scores["n_exact"], scores["n_bins"]) == (5, 1, 4)
    assert main_metric(TASKS["age"], scores) == "mae_years"


def test_age_bins_equal_the_loop() -> None:
    generator = np.random.default_rng(4)
    edges = [(0, 2), (3, 9), (10, 19), (20, 29), (30, 39), (40, 49), (50, 59), (60, 69), (70, 100)]
    rows = generator.integers(0, len(edges), 300)
    years = generator.uniform(0, 90, 300)
    exact = near = 0
    for row, year in zip(rows, years, strict=True):
        found = next(i for i, (low, high) in enumerate(edges) if low <= round(year) <= high)
        exact += found == row
        near += abs(found - row) <= 1
    scores = score(TASKS["age"], years, np.array(edges, np.float32)[rows])
    assert scores["bin_accuracy"] == pytest.approx(exact / 300, rel=ROUNDING)
    assert scores["bin_accuracy_1_off"] == pytest.approx(near / 300, rel=ROUNDING)
    assert main_metric(TASKS["age"], scores) == "bin_accuracy"
    assert "mae_years" not in scores


def test_age_bins_equal_the_loop_twin() -> None:
    labels = np.array([[20, 29], [30, 39], [40, 49]], np.float32)
    assert score(TASKS["age"], np.array([25.0, 35.0, 45.0]), labels)["bin_accuracy"] == 1.0
    assert score(TASKS["age"], np.array([25.0, 35.0, 55.0]), labels)["bin_accuracy"] < 1.0


def test_overlapping_bins_have_no_neighbours() -> None:
    scores = score(TASKS["age"], np.array([25.0, 35.0]), np.array([[20, 29], [25, 39]], np.float32))
    assert "bin_accuracy_1_off" not in scores
    assert scores["bin_accuracy"] == 1.0


def loop_pearson(x: np.ndarray, y: np.ndarray) -> float:
    x_mean, y_mean = sum(map(float, x)) / len(x), sum(map(float, y)) / len(y)
    top = sum((float(a) - x_mean) * (float(b) - y_mean) for a, b in zip(x, y, strict=True))
    x_square = sum((float(a) - x_mean) ** 2 for a in x)
    return top / math.sqrt(x_square * sum((float(b) - y_mean) ** 2 for b in y))


def test_score_metrics_equal_the_loop() -> None:
    generator = np.random.default_rng(5)
    labels = generator.uniform(0, 1, 80).astype(np.float32)
    prediction = (0.5 * labels + generator.normal(0.2, 0.1, 80)).astype(np.float32)
    labels[::7] = np.nan
    rows = np.flatnonzero(np.isfinite(labels))
    errors = [float(prediction[i]) - float(labels[i]) for i in rows]
    scores = score(TASKS["beauty_score"], prediction, labels)
    assert scores["pearson"] == pytest.approx(loop_pearson(prediction[rows], labels[rows]), rel=1e-10)  # squares cancel
    assert scores["mae"] == pytest.approx(sum(map(abs, errors)) / len(rows), rel=ROUNDING)
    assert scores["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / len(rows)), rel=ROUNDING)
    assert scores["n"] == len(rows)


def test_score_metrics_equal_the_loop_twin() -> None:
    labels = np.linspace(0, 1, 20)
    assert score(TASKS["beauty_score"], labels, labels)["pearson"] == pytest.approx(1.0, rel=1e-10)
    swapped = labels.copy()
    swapped[[0, 19]] = swapped[[19, 0]]
    assert score(TASKS["beauty_score"], swapped, labels)["pearson"] < 0.9


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_pearson_does_not_lose_its_digits_to_a_large_mean(offset: float) -> None:
    generator = np.random.default_rng(6)
    labels = generator.normal(0, 1, 100)
    prediction = labels + generator.normal(0, 1, 100)
    plain = score(TASKS["beauty_score"], prediction, labels)["pearson"]
    # An offset of 1e6 keeps about 1e-10 of a unit of each value.
    assert score(TASKS["beauty_score"], prediction + offset, labels + offset)["pearson"] == pytest.approx(
        plain, abs=1e-9
    )


@pytest.mark.parametrize("value", [0.3, 0.1, 1e-3])
def test_constant_predictions_have_no_correlation(value: float) -> None:
    scores = score(TASKS["beauty_score"], np.full(7, value), np.linspace(0, 1, 7))
    assert "pearson" not in scores
    assert why_absent(TASKS["beauty_score"], scores) == "the predictions or the labels do not vary"


def test_attributes_are_balanced_each_on_its_own() -> None:
    task = TASKS["attributes"]
    generator = np.random.default_rng(7)
    labels = generator.integers(-1, 2, (60, 4)).astype(np.int8)
    labels[:, 3] = np.where(labels[:, 3] == 0, 1, labels[:, 3])  # an attribute nobody lacks cannot be balanced
    prediction = generator.integers(0, 2, (60, 4)).astype(np.int8)
    each = []
    for m in range(3):
        recalls = []
        for answer in (0, 1):
            rows = [i for i in range(60) if labels[i, m] == answer]
            recalls.append(sum(prediction[i, m] == answer for i in rows) / len(rows))
        each.append(sum(recalls) / 2)
    scores = score(task, prediction, labels)
    assert scores["balanced_accuracy"] == pytest.approx(sum(each) / 3, rel=ROUNDING)
    assert scores["n_attributes"] == 3
    prediction[labels[:, 0] == 1, 0] ^= 1
    assert score(task, prediction, labels)["balanced_accuracy"] != pytest.approx(sum(each) / 3, rel=ROUNDING)


def missing(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of n samples that nobody labelled."""
    task = TASKS[name]
    return {
        Kind.LANDMARKS: (np.zeros((n, task.points, 2)), np.full((n, task.points, 2), np.nan)),
        Kind.CLASSES: (np.zeros(n, np.int64), np.full(n, -1)),
        Kind.SCORE: (np.zeros(n), np.full(n, np.nan)),
        Kind.AGE: (np.zeros(n), np.full((n, 2), np.nan)),
        Kind.IDENTITY: (np.ones((n, 128)), np.full(n, -1)),
        Kind.ATTRIBUTES: (np.zeros((n, len(task.classes)), np.int8), np.full((n, len(task.classes)), -1, np.int8)),
    }[task.kind]


@pytest.mark.parametrize("n", [0, 4])
@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_label_gives_no_metric_and_a_reason(name: str, n: int) -> None:
    prediction, labels = missing(name, n)
    scores = score(TASKS[name], prediction, labels)
    assert scores == {"n": 0}
    assert why_absent(TASKS[name], scores) == "no sample has a label"


def test_identity_is_left_out_with_its_reason() -> None:
    scores = score(TASKS["identity"], np.ones((4, 128)), np.array([0, 0, 1, -1]))
    assert scores == {"n": 3}
    assert "pairs" in why_absent(TASKS["identity"], scores)


def test_single_class_has_no_balanced_accuracy() -> None:
    scores = score(TASKS["occlusion"], np.zeros(5, np.int64), np.zeros(5, np.int64))
    assert scores == {"n": 5, "accuracy": 1.0}
    assert why_absent(TASKS["occlusion"], scores) == "the labels hold a single class"


def test_unlabelled_samples_change_nothing() -> None:
    labels, prediction = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    more = score(TASKS["smile"], np.append(prediction, [1, 1]), np.append(labels, [-1, -1]))
    assert more == score(TASKS["smile"], prediction, labels) == {"n": 4, "accuracy": 0.75}


@pytest.mark.parametrize(
    ("name", "labels", "match"),
    [
        ("gender", np.array([0, 2, 1]), "a class out of range in 1 rows"),
        ("gender", np.array([0, -2, 1]), "a class out of range"),
        ("age", np.array([[3, 1], [1, 1], [1, 1]], np.float32), "an empty interval"),
        ("age", np.array([[3, np.nan], [1, 1], [1, 1]], np.float32), "half a label"),
        ("gender", np.zeros((3, 1), np.int64), "labels of shape"),
    ],
)
def test_faulty_labels_are_refused(name: str, labels: np.ndarray, match: str) -> None:
    with pytest.raises(DataError, match=match):
        score(TASKS[name], np.zeros(3), labels)


def test_predictions_that_are_not_finite_are_refused() -> None:
    prediction, labels = landmark_case(5)
    prediction[0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="1 of 400 predicted values are not finite"):
        score(TASKS["landmarks5"], prediction, labels)


def test_predictions_of_another_shape_are_refused() -> None:
    with pytest.raises(ModelError, match="Expected \\(3,\\)"):
        score(TASKS["gender"], np.zeros((3, 2)), np.zeros(3, np.int64))


def test_agreement_of_a_model_with_itself_is_whole() -> None:
    points, _ = landmark_case(5)
    same = {
        "gender": (np.array([0, 1, 1]), {"equal_share": 1.0, "n": 3}),
        "landmarks5": (points, {"distance_percent": 0.0, "n": len(points)}),
        "age": (np.array([3.0, 40.0]), {"difference_years": 0.0, "n": 2}),
        "beauty_score": (np.array([0.1, 0.5, 0.4]), {"pearson": pytest.approx(1.0, rel=1e-10), "mae": 0.0, "n": 3}),
        "identity": (np.eye(128)[:4], {"cosine": 1.0, "n": 4}),
        "attributes": (np.array([[0, 1, 1, 0]]), {"equal_share": 1.0, "n": 1}),
    }
    for name, (answers, expected) in same.items():
        assert agreement(TASKS[name], answers, answers) == expected


def test_agreement_of_a_model_with_itself_twin() -> None:
    points, _ = landmark_case(5)
    for name, first, second, key in [
        ("gender", np.array([0, 1, 1, 0]), np.array([0, 1, 1, 1]), "equal_share"),
        ("landmarks5", points, points[:, [1, 0, 2, 3, 4]], "distance_percent"),
        ("age", np.array([3.0, 40.0]), np.array([3.0, 42.0]), "difference_years"),
        ("beauty_score", np.array([0.1, 0.5, 0.4]), np.array([0.1, 0.4, 0.5]), "pearson"),
        ("identity", np.eye(128)[:4], np.eye(128)[1:5], "cosine"),
        ("attributes", np.array([[0, 1, 1, 0]]), np.array([[0, 1, 1, 1]]), "equal_share"),
    ]:
        assert agreement(TASKS[name], first, second)[key] != agreement(TASKS[name], first, first)[key]


def test_landmark_agreement_is_in_eye_distances_of_the_reference() -> None:
    reference = np.array([[[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.5, 2.0], [1.5, 2.0]]])
    moved = reference + np.array([0.0, 0.1])
    # 0.1 of a distance of 2 is 5 %; float64 sums.
    assert agreement(TASKS["landmarks5"], moved, reference)["distance_percent"] == pytest.approx(5.0, rel=ROUNDING)
    assert agreement(TASKS["landmarks5"], 2 * moved, 2 * reference)["distance_percent"] == pytest.approx(5.0)


def test_agreement_of_different_samples_is_refused() -> None:
    with pytest.raises(ModelError, match="same samples"):
        agreement(TASKS["gender"], np.zeros(3), np.zeros(4))


def test_worsening_is_in_points_or_relative_percent() -> None:
    assert worsening("accuracy", 0.90, 0.91) == pytest.approx(1.0)
    assert worsening("pearson", 0.95, 0.90) == pytest.approx(-5.0)
    assert worsening("nme_percent", 6.5, 6.2) == pytest.approx(0.3)
    assert worsening("mae_years", 5.5, 5.0) == pytest.approx(10.0)
    assert worsening("rmse", 0.1, 0.0) == math.inf
    assert worsening("rmse", 0.0, 0.0) == 0.0


def test_direction_of_each_main_metric_is_the_tasks() -> None:
    for task in TASKS.values():
        assert lower_is_better(task.metric) == task.lower_is_better
        assert (worsening(task.metric, 0.6, 0.5) > 0) == task.lower_is_better


def bootstrap_case(name: str) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(8)
    if name == "landmarks5":
        prediction, labels = landmark_case(5)
        return (prediction, prediction[:, [0, 1, 2, 4, 3]]), labels
    if name == "beauty_score":
        labels = generator.uniform(0, 1, 40)
        return (labels + generator.normal(0, 0.1, 40), labels + generator.normal(0, 0.3, 40)), labels
    if name == "age":
        labels = np.repeat(generator.integers(0, 90, (40, 1)), 2, axis=1).astype(np.float32)
        return (labels[:, 0] + generator.normal(0, 2, 40), labels[:, 0] + generator.normal(0, 6, 40)), labels
    classes = len(TASKS[name].classes)
    if name == "attributes":
        # Enough rows that no resample loses an answer of an attribute: such a resample has no value.
        labels = generator.integers(-1, 2, (120, 4)).astype(np.int8)
        return (generator.integers(0, 2, (120, 4)), np.maximum(labels, 0)), labels
    labels = generator.integers(-1, classes, 40)
    return (generator.integers(0, classes, 40), np.maximum(labels, 0)), labels


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("landmarks5", "nme_percent"),
        ("landmarks5", "failure_percent"),
        ("gender", "accuracy"),
        ("eyes_open", "balanced_accuracy"),
        ("expression", "macro_f1"),
        ("age", "mae_years"),
        ("beauty_score", "pearson"),
        ("beauty_score", "rmse"),
        ("attributes", "balanced_accuracy"),
    ],
)
def test_bootstrap_interval_equals_resampled_scores(name: str, metric: str) -> None:
    task = TASKS[name]
    (first, second), labels = bootstrap_case(name)
    rows = np.flatnonzero(known(task, labels))
    generator = np.random.default_rng(9)
    differences = []
    for counts in generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=50):
        again = rows[np.repeat(np.arange(len(rows)), counts)]
        both = [score(task, answers[again], labels[again])[metric] for answers in (first, second)]
        differences.append(both[0] - both[1])
    low, high = np.percentile(differences, [2.5, 97.5])
    interval = paired_interval(task, (first, second), labels=labels, metric=metric, resamples=50, seed=9)
    # Weighted sums instead of repeated rows: the same terms in another order; correlations cancel some digits.
    assert interval.low == pytest.approx(low, abs=1e-9)
    assert interval.high == pytest.approx(high, abs=1e-9)
    whole = [score(task, answers, labels)[metric] for answers in (first, second)]
    assert interval.difference == whole[0] - whole[1]
    other = paired_interval(task, (first, second), labels=labels, metric=metric, resamples=50, seed=10)
    assert (other.low, other.high) != (interval.low, interval.high)


def test_bootstrap_interval_excludes_zero_only_for_a_real_difference() -> None:
    generator = np.random.default_rng(11)
    labels = generator.integers(0, 2, 1000)
    good = np.where(generator.random(1000) < 0.9, labels, 1 - labels)
    also_good = np.where(generator.random(1000) < 0.9, labels, 1 - labels)
    poor = np.where(generator.random(1000) < 0.7, labels, 1 - labels)
    real = paired_interval(TASKS["gender"], (good, poor), labels=labels, resamples=500)
    none = paired_interval(TASKS["gender"], (good, also_good), labels=labels, resamples=500)
    assert real.low > 0.0
    assert none.low < 0.0 < none.high


def test_bootstrap_of_an_absent_metric_is_refused() -> None:
    with pytest.raises(DataError, match="no sample has a label"):
        paired_interval(TASKS["gender"], (np.zeros(3), np.zeros(3)), labels=np.full(3, -1))


def test_bootstrap_of_several_models_is_that_of_each_alone() -> None:
    task = TASKS["gender"]
    (first, second), labels = bootstrap_case("gender")
    both = bootstrap(task, [first, second], labels=labels, metric="accuracy", resamples=40, seed=3)
    assert both.shape == (2, 40)
    for row, answers in zip(both, (first, second), strict=True):
        (alone,) = bootstrap(task, [answers], labels=labels, metric="accuracy", resamples=40, seed=3)
        assert (row == alone).all()
    assert (both[0] != both[1]).any()


def test_bootstrap_in_parts_has_the_spread_of_one_in_a_single_piece() -> None:
    task = TASKS["gender"]
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 2, 2000)
    answers = np.where(generator.random(2000) < 0.8, labels, 1 - labels)
    whole = bootstrap(task, [answers], labels=labels, metric="accuracy", resamples=900)
    # 2,000 faces and 1,100 resamples are more than is drawn at a time.
    parts = bootstrap(task, [answers], labels=labels, metric="accuracy", resamples=1100)
    assert parts.shape == (1, 1100)
    assert len(np.unique(parts)) > 50
    # The standard error of an accuracy of 0.8 on 2,000 faces; a spread from 900 draws is known to about 5 %.
    for drawn in (whole, parts):
        assert drawn.std() == pytest.approx(math.sqrt(0.8 * 0.2 / 2000), rel=0.2)


def test_confusion_counts_every_labelled_face() -> None:
    task = TASKS["glasses3"]
    labels = np.array([0, 0, 1, 2, 2, -1])
    answers = np.array([0, 1, 1, 0, 2, 2])
    expected = np.zeros((3, 3), int)
    for truth, answer in zip(labels, answers, strict=True):
        if truth >= 0:
            expected[truth, answer] += 1
    found = confusion(task, answers, labels)
    assert found.tolist() == expected.tolist()
    assert confusion(task, np.array([0, 1, 0, 0, 2, 2]), labels).tolist() != expected.tolist()
