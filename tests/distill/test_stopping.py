"""Task-wise early stopping against its published criterion, written as loops."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch

from distill.stopping import Stopping, criterion
from edgeface.specs import StoppingSpec

TASKS = ("landmarks5", "gender", "smile")
WEIGHTS = {"landmarks5": 1.0, "gender": 0.5, "smile": 0.25}
FALLING = [8.0, 4.0, 2.0, 1.0, 0.5]
FLAT = [1.0, 0.9, 0.9, 0.9, 0.9]


def naive(training: list[float], validation: float, weight: float, window: int) -> float:
    now = len(training) - 1
    recent = [training[j] for j in range(now - window, now + 1)]
    middle = window * statistics.median(recent)
    least = min(training)
    return middle / (sum(recent) - middle) * (validation - least) / (weight * least)


@pytest.mark.parametrize("training", [FALLING, FLAT, [3.0, 1.0, 2.0, 1.5, 1.2]])
def test_the_criterion_is_the_published_one(training: list[float]) -> None:
    found = criterion(np.array(training), 2.5, 0.3, window=3)
    assert found == pytest.approx(naive(training, 2.5, 0.3, 3))
    assert found != pytest.approx(naive(training, 2.5, 0.3, 2))


def test_a_task_that_still_falls_has_a_smaller_criterion_than_one_that_stands_still() -> None:
    # The same gap relative to the least error, so that only the first factor differs.
    falling, flat = (criterion(np.array(errors), 2 * min(errors), 1.0, window=4) for errors in (FALLING, FLAT))
    assert falling < 1.5 < 3.5 < flat


def test_a_denominator_that_is_not_positive_counts_as_learning_nothing() -> None:
    risen = [0.01, 0.01, 1.0, 1.0, 1.0, 1.0]  # 4.02 − 5·1
    assert naive(risen, 2.0, 1.0, 5) < 0.0
    assert criterion(np.array(risen), 2.0, 1.0, window=5) > 1e6
    assert criterion(np.array([0.0, *FLAT]), 2.0, 1.0, window=4) > 1e6  # a least error of 0, and a gap


def test_a_task_whose_weight_has_sunk_is_stopped_by_a_gap_of_a_thousandth() -> None:
    gap = 0.9 * 1.001
    assert criterion(np.array(FLAT), gap, 0.001, window=4) > 2.0  # the threshold of tcdcn-mtfl
    assert criterion(np.array(FLAT), gap, 0.1, window=4) < 0.1  # the twin: under the weight it began with


def run(stopping: Stopping, training: list[tuple[float, ...]], validation: dict[str, float]) -> dict[str, float]:
    values: dict[str, float] = {}
    for errors in training:
        for _ in range(2):
            stopping.saw(torch.tensor(errors), torch.ones(len(TASKS)))
        values = stopping.validated(validation, WEIGHTS)
    return values


def overfitting() -> list[tuple[float, ...]]:
    """The main task and smile fall, gender stands still."""
    return list(zip(FLAT, FLAT, FALLING, strict=True))


def test_each_stops_the_task_that_overfits_and_never_the_main_one() -> None:
    stopping = Stopping(TASKS, StoppingSpec(mode="each", window=4, threshold=20.0))
    values = run(stopping, overfitting(), {"landmarks5": 9.0, "gender": 9.0, "smile": 0.51})
    assert stopping.active.tolist() == [1.0, 0.0, 1.0]
    assert set(values) == {"gender", "smile"}
    assert values["gender"] == pytest.approx(naive(FLAT, 9.0, 0.5, 4), rel=1e-6)
    stopping.active[1:] = 0.0
    assert not stopping.finetunes, "stopped one by one, the main task goes on as it was"


def test_all_stops_every_auxiliary_task_at_once() -> None:
    stopping = Stopping(TASKS, StoppingSpec(mode="all", window=4, threshold=20.0))
    run(stopping, overfitting(), {"landmarks5": 9.0, "gender": 9.0, "smile": 0.51})
    assert stopping.active.tolist() == [1.0, 0.0, 0.0]
    assert stopping.finetunes


@pytest.mark.parametrize("mode", ["none", "each", "all"])
def test_nothing_stops_below_the_threshold_or_before_the_window_is_full(mode: str) -> None:
    high = Stopping(TASKS, StoppingSpec(mode=mode, window=4, threshold=1e9))
    run(high, overfitting(), {"gender": 9.0, "smile": 9.0})
    short = Stopping(TASKS, StoppingSpec(mode=mode, window=4, threshold=0.0))
    assert run(short, overfitting()[:4], {"gender": 9.0, "smile": 9.0}) == {}
    assert high.active.tolist() == short.active.tolist() == [1.0, 1.0, 1.0]


def test_a_task_without_labels_for_a_while_is_judged_by_the_errors_it_had() -> None:
    stopping = Stopping(TASKS, StoppingSpec(mode="each", window=4, threshold=1e9))
    values: dict[str, float] = {}
    for place, errors in enumerate(overfitting()):
        values = run(stopping, [errors], {"gender": 9.0})
        if place == 2:  # an interval without a label of gender, whose loss is 0 then
            stopping.saw(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]))
            stopping.validated({"gender": 9.0}, WEIGHTS)
    assert values["gender"] == pytest.approx(naive(FLAT, 9.0, 0.5, 4), rel=1e-6)
    assert naive([*FLAT[:3], 1e-9, *FLAT[3:]], 9.0, 0.5, 4) > 1e6, "the twin: what an error of nearly 0 would give"


def test_a_stopped_task_stays_stopped_after_a_resume() -> None:
    first = Stopping(TASKS, StoppingSpec(mode="each", window=4, threshold=20.0))
    run(first, overfitting(), {"gender": 9.0, "smile": 0.51})
    second = Stopping(TASKS, first.spec)
    second.load_state_dict(first.state_dict())
    values = run(second, [(0.9, 0.1, 0.4)], {"gender": 0.1, "smile": 0.41})
    assert second.active.tolist() == [1.0, 0.0, 1.0]
    assert set(values) == {"smile"}
