"""Gaps between groups, on faces whose answers are chosen."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgeface.evaluate import Evaluation
from edgeface.metrics import score
from edgeface.report.compare import scorecard
from edgeface.report.entries import Entry
from edgeface.report.scorecard import FILE, TEACHER, Subgroups, from_json
from edgeface.report.subgroups import MINIMUM, subgroups
from edgeface.report.table import as_markdown, extremes, widest
from edgeface.specs import ModelSpec, output_spec
from edgeface.tasks import TASKS

SIZES = {"a": 200, "b": 100, "c": MINIMUM - 1, "": 40}
SPEC = ModelSpec(name="toy", input_px=16, outputs=(output_spec("gender"), output_spec("age")))
TONE = np.repeat(list(SIZES), list(SIZES.values()))
N = len(TONE)


def made(*, wrong: dict[str, int], model: str = "toy", years: float = 2.0) -> Evaluation:
    """So many genders wrong in each group; ages off by `years`, twice as far in group b."""
    truth = np.random.default_rng(0).integers(0, 2, N)
    said = truth.copy()
    for name, count in wrong.items():
        rows = np.flatnonzero(name == TONE)[:count]
        said[rows] = 1 - truth[rows]
    age = np.full((N, 2), 30, np.float32)
    labels = {"gender": truth, "age": age}
    predictions = {"gender": said, "age": 30.0 + years * np.where(TONE == "b", 2.0, 1.0)}
    return Evaluation(
        model=model, spec=SPEC, runtime="torch", precision="fp32", source="toy@val", licence="none",
        research_only=False, keys=tuple(map(str, range(N))), skipped={}, outputs={}, predictions=predictions,
        labels=labels, tasks={name: score(TASKS[name], predictions[name], labels[name]) for name in labels}, absent={},
        groups={"tone": TONE},
    )  # fmt: skip


def of(found: list[Subgroups], task: str) -> Subgroups:
    return next(each for each in found if each["task"] == task)


METRICS = {"gender": "accuracy", "age": "mae_years"}


def test_values_gap_and_its_change_are_the_groups_own() -> None:
    teacher, file = made(wrong={"a": 10, "b": 10}, model="big"), made(wrong={"a": 10, "b": 30, "c": 20}, model="int8")
    gender = of(subgroups([teacher, file], metrics=METRICS, teacher=teacher), "gender")
    assert gender["groups"] == [{"name": "a", "n": 200}, {"name": "b", "n": 100}]
    assert gender["few"] == [{"name": "c", "n": MINIMUM - 1}]
    assert (gender["minimum"], gender["left_out"]) == (MINIMUM, SIZES["c"] + SIZES[""])
    first, second = gender["rows"]
    assert first["values"] == pytest.approx([0.95, 0.90])
    assert second["values"] == pytest.approx([0.95, 0.70])
    assert (first["gap"], second["gap"]) == pytest.approx((0.05, 0.25))
    assert first["gap_change_teacher"] is None
    assert second["gap_change_teacher"] == pytest.approx(0.20)
    assert first["gap_change_interval"] is None
    low, high = second["gap_change_interval"]
    assert 0.0 < low < 0.20 < high
    low, high = second["gap_interval"]
    assert low < 0.25 < high
    # Standard errors 0.0154 and 0.0458: 1.96 of their joint one is 0.095; 1,000 draws know a quantile to some 10 %.
    assert high - low == pytest.approx(2 * 0.095, rel=0.2)


def test_more_errors_in_one_group_widen_the_gap_twin() -> None:
    narrow = of(subgroups([made(wrong={"a": 20, "b": 10})], metrics=METRICS, teacher=None), "gender")["rows"][0]
    wide = of(subgroups([made(wrong={"a": 20, "b": 11})], metrics=METRICS, teacher=None), "gender")["rows"][0]
    assert narrow["gap"] == pytest.approx(0.0)
    assert wide["gap"] == pytest.approx(0.01)
    assert narrow["gap_interval"][0] >= 0.0


def test_a_group_with_enough_faces_is_not_too_few_twin() -> None:
    evaluation = made(wrong={})
    enough = replace(evaluation, groups={"tone": np.where(TONE == "", "c", TONE)})
    gender = of(subgroups([enough], metrics=METRICS, teacher=None), "gender")
    assert [group["name"] for group in gender["groups"]] == ["a", "b", "c"]
    assert (gender["few"], gender["left_out"]) == ([], 0)


def test_of_errors_the_smallest_is_the_best() -> None:
    age = of(subgroups([made(wrong={})], metrics=METRICS, teacher=None), "age")
    assert age["rows"][0]["gap"] == pytest.approx(2.0)
    assert extremes(age, age["rows"][0]) == ("a", "b")


def test_a_metric_that_a_group_lacks_is_none_there() -> None:
    evaluation = made(wrong={})
    glasses = np.where(TONE == "a", 1, np.arange(N) % 2)
    eyes = replace(
        evaluation,
        predictions={"eyes_open": glasses},
        labels={"eyes_open": glasses},
        tasks={"eyes_open": score(TASKS["eyes_open"], glasses, glasses)},
        groups={"tone": np.where(TONE == "", "d", TONE)},
    )
    (found,) = subgroups([eyes], metrics={"eyes_open": "balanced_accuracy"}, teacher=None)
    assert [group["name"] for group in found["groups"]] == ["a", "b", "d"]
    assert found["rows"][0]["values"] == [None, 1.0, 1.0]
    assert found["rows"][0]["gap"] == 0.0


def test_faces_of_one_large_group_have_no_table() -> None:
    alone = replace(made(wrong={}), groups={"tone": np.where(TONE == "b", "", TONE)})
    assert subgroups([alone], metrics=METRICS, teacher=None) == []


def test_scorecard_holds_writes_and_prints_the_gaps() -> None:
    def never() -> None:
        raise AssertionError("not opened")

    teacher, file = made(wrong={"b": 5}, model="big"), made(wrong={"b": 30}, model="int8")
    card = scorecard(
        [(Entry(role=TEACHER, name="big", open=never), teacher), (Entry(role=FILE, name="int8", open=never), file)]
    )
    again = from_json(json.loads(json.dumps(card.as_json(), allow_nan=False)), where="here")
    assert again.subgroups == card.subgroups
    assert [each["task"] for each, _ in widest(card)] == ["gender", "age"]
    text = as_markdown(card)
    assert f"a 100.00 (200), b 70.00 (100); too few: c ({MINIMUM - 1})" in text
    assert "| 30.00 |" in text
    assert "| **+25.00 (+1" in text
    before = json.loads(json.dumps(card.as_json()))
    for each in before["subgroups"]:
        del each["few"]  # a scorecard from before small groups were named
    assert [each["few"] for each in from_json(before, where="here").subgroups] == [[], []]
    spoilt = json.loads(json.dumps(card.as_json()))
    del spoilt["subgroups"][0]["rows"][0]["gap"]
    with pytest.raises(Exception, match="not a scorecard"):
        from_json(spoilt, where="here")
