"""Decoding and the one path from pictures to scores, with runners whose answers are known in advance."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgeface.errors import DataError, ModelError
from edgeface.evaluate import decode, evaluate, probabilities, teacher_agreement
from edgeface.metrics import score
from edgeface.specs import ModelSpec, output_spec
from edgeface.tasks import TASKS

SHAPE = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
SPEC = ModelSpec(
    name="toy",
    input_px=16,
    outputs=(output_spec("landmarks5", mean_shape=SHAPE), output_spec("gender"), output_spec("pose")),
)


@dataclass
class TableRunner:
    """Answers by the sample number written into each picture's first pixels."""

    spec: ModelSpec
    table: dict[str, np.ndarray]
    runtime: str = "torch"
    precision: str = "fp32"
    batches: list[int] = field(default_factory=list)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        assert batch.shape[1:] == (self.spec.input_px, self.spec.input_px, 3)
        self.batches.append(len(batch))
        rows = batch[:, 0, 0, :2].astype(int) @ [1, 256]
        return {name: values[rows] for name, values in self.table.items()}


def toy_pack(n: int = 70, *, seed: int = 0, **changes: object) -> SimpleNamespace:
    generator = np.random.default_rng(seed)
    images = np.zeros((n, 16, 16, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    labels = {
        "landmarks5": (np.array(SHAPE) + generator.normal(0, 0.02, (n, 5, 2))).astype(np.float32),
        "gender": generator.integers(-1, 2, n),
        "smile": generator.integers(0, 2, n),
    }
    fields = {
        "images": images,
        "px": 16,
        "margin": 1.0,
        "keys": tuple(f"face{i}" for i in range(n)),
        "people": tuple(f"person{i}" for i in range(n)),
        "labels": labels,
        "groups": {},
        "name": "toy",
        "source": "toy@test",
        "licence": "none",
        "research_only": False,
        "skipped": {"truncated": ("face_a", "face_b")},
        "content_hash": "0",
        "derived": (),
        "pairs": None,
    }
    return SimpleNamespace(**(fields | changes))


def toy_runner(n: int = 70, *, seed: int = 1) -> TableRunner:
    generator = np.random.default_rng(seed)
    table = {
        "landmarks5": generator.normal(0, 0.02, (n, 5, 2)).astype(np.float32),
        "gender": generator.normal(0, 1, (n, 2)).astype(np.float32),
        "pose": generator.normal(0, 1, (n, 5)).astype(np.float32),
    }
    return TableRunner(SPEC, table)


def test_landmarks_are_the_mean_shape_plus_the_offset() -> None:
    offsets = np.zeros((2, 5, 2), np.float32)
    offsets[1, 2] = [0.1, -0.05]
    points = decode(ModelSpec(name="toy", input_px=16, outputs=SPEC.outputs[:1]), {"landmarks5": offsets})["landmarks5"]
    assert points[0] == pytest.approx(np.array(SHAPE))  # float32 of the given shape
    assert points[1, 2] == pytest.approx([0.6, 0.55])
    assert points[1, 2] != pytest.approx(SHAPE[2])


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
def test_two_class_decisions_follow_the_threshold(threshold: float) -> None:
    output = replace(output_spec("smile"), threshold=threshold)
    logits = np.random.default_rng(2).normal(0, 2, (200, 2)).astype(np.float32)
    decided = decode(ModelSpec(name="toy", input_px=16, outputs=(output,)), {"smile": logits})["smile"]
    for row, (no, yes) in enumerate(logits.astype(float)):
        assert decided[row] == (math.exp(yes) / (math.exp(no) + math.exp(yes)) > threshold)


def test_another_threshold_decides_otherwise_twin() -> None:
    logits = {"smile": np.array([[0.0, 0.5]], np.float32)}  # probability 0.62
    for threshold, expected in [(0.5, 1), (0.7, 0)]:
        output = replace(output_spec("smile"), threshold=threshold)
        assert decode(ModelSpec(name="toy", input_px=16, outputs=(output,)), logits)["smile"].tolist() == [expected]


def test_equal_logits_decide_for_the_first_class() -> None:
    spec = ModelSpec(name="toy", input_px=16, outputs=(output_spec("smile"), output_spec("pose")))
    answers = decode(spec, {"smile": np.ones((3, 2), np.float32), "pose": np.ones((3, 5), np.float32)})
    assert answers["smile"].tolist() == answers["pose"].tolist() == [0, 0, 0]


def test_age_is_the_expectation_over_the_softmax() -> None:
    spec = ModelSpec(name="toy", input_px=16, outputs=(output_spec("age"),))
    logits = np.full((2, 101), -100.0, np.float32)
    logits[0, 30] = 0.0
    logits[1, [20, 40]] = [1.0, 1.0]
    years = decode(spec, {"age": logits})["age"]
    # exp(-100) in each of 99 other years moves the mean by less than 1e-38.
    assert years == pytest.approx([30.0, 30.0], abs=1e-9)
    logits[1, 40] = 3.0
    assert decode(spec, {"age": logits})["age"][1] == pytest.approx(20 + 20 / (1 + math.exp(-2.0)), abs=1e-9)


def test_attributes_scores_and_embeddings_decode() -> None:
    spec = ModelSpec(
        name="toy",
        input_px=16,
        outputs=(output_spec("attributes"), output_spec("beauty_score"), output_spec("identity")),
    )
    features = np.random.default_rng(3).normal(0, 5, (2, 128)).astype(np.float32)
    answers = decode(
        spec,
        {
            "attributes": np.array([[-1, 0, 0.1, 2], [3, -3, 3, -3]], np.float32),
            "beauty_score": np.array([[0.25], [0.75]], np.float32),
            "identity": features,
        },
    )
    assert answers["attributes"].tolist() == [[0, 0, 1, 1], [1, 0, 1, 0]]
    assert answers["beauty_score"].tolist() == [0.25, 0.75]
    assert np.linalg.norm(answers["identity"], axis=1) == pytest.approx([1.0, 1.0], abs=1e-6)  # float32 norm


def test_probabilities_sum_to_one_and_do_not_overflow() -> None:
    logits = np.array([[1000.0, 0.0, -1000.0], [1.0, 1.0, 1.0]], np.float32)
    each = probabilities(output_spec("glasses3"), logits)
    assert each[0].tolist() == [1.0, 0.0, 0.0]
    assert each[1] == pytest.approx([1 / 3] * 3)
    single = probabilities(output_spec("attributes"), np.array([[1000.0, -1000.0, 0.0, 1.0]], np.float32))[0]
    assert single == pytest.approx([1.0, 0.0, 0.5, 1 / (1 + math.exp(-1))])


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ({"face": np.zeros((1, 2), np.float32)}, "one named 'smile'"),
        ({"smile": np.zeros((1, 3), np.float32)}, "Expected \\(N, 2\\)"),
        ({"smile": np.array([[np.nan, 0]], np.float32)}, "1 of 2 values are not finite"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        decode(ModelSpec(name="toy", input_px=16, outputs=(output_spec("smile"),)), outputs)


def test_threshold_that_is_no_probability_is_refused() -> None:
    output = replace(output_spec("smile"), threshold=1.0)
    with pytest.raises(ModelError, match="threshold of 'smile'"):
        decode(ModelSpec(name="toy", input_px=16, outputs=(output,)), {"smile": np.zeros((1, 2), np.float32)})


def test_evaluation_scores_every_task_that_model_and_labels_share() -> None:
    pack, runner, done = toy_pack(), toy_runner(), []
    result = evaluate(runner, pack, batch=32, progress=done.append)
    assert runner.batches == [32, 32, 6]
    assert done == [32, 64, 70]
    assert set(result.tasks) == {"landmarks5", "gender"}
    assert result.absent == {"pose": "toy has no labels for it"}
    decided = runner.table["gender"].argmax(1)
    assert result.tasks["gender"] == score(TASKS["gender"], decided, pack.labels["gender"])
    assert (result.outputs["pose"] == runner.table["pose"]).all()


def test_evaluation_does_not_depend_on_the_batch() -> None:
    whole, single = (evaluate(toy_runner(), toy_pack(), batch=batch) for batch in (70, 1))
    assert whole.as_json() == single.as_json()


def test_evaluation_notices_one_changed_answer_twin() -> None:
    runner = toy_runner()
    before = evaluate(runner, toy_pack())
    row = int(np.flatnonzero(toy_pack().labels["gender"] >= 0)[0])
    runner.table["gender"][row] = runner.table["gender"][row, ::-1]
    after = evaluate(runner, toy_pack())
    assert after.tasks["gender"] != before.tasks["gender"]
    assert after.tasks["landmarks5"] == before.tasks["landmarks5"]


def test_evaluation_json_is_the_contract() -> None:
    pack = toy_pack()
    plain = json.loads(json.dumps(evaluate(toy_runner(), pack, model="out/android").as_json()))
    assert plain["schema"] == 1
    assert (plain["model"], plain["runtime"], plain["precision"]) == ("out/android", "torch", "fp32")
    assert (plain["samples"], plain["skipped"]) == (70, {"truncated": 2})
    assert set(plain["tasks"]["landmarks5"]) == {"nme_percent", "failure_percent", "n"}
    assert set(plain["tasks"]["gender"]) == {"accuracy", "n"}
    assert plain["tasks"]["gender"]["n"] == int((pack.labels["gender"] >= 0).sum())
    assert plain["teacher_agreement"] == {}


def test_task_nobody_labelled_is_absent_with_its_reason() -> None:
    pack = toy_pack()
    pack.labels["gender"][:] = -1
    result = evaluate(toy_runner(), pack)
    assert result.tasks["gender"] == {"n": 0}
    assert result.absent["gender"] == "no sample has a label"


def test_teacher_agrees_with_itself_and_not_with_a_stranger_twin() -> None:
    first, again, other = (evaluate(toy_runner(seed=seed), toy_pack()) for seed in (1, 1, 2))
    whole, part = teacher_agreement(first, again), teacher_agreement(first, other)
    assert set(whole) == {"landmarks5", "gender", "pose"}
    assert whole["gender"] == whole["pose"] == {"equal_share": 1.0, "n": 70}
    assert whole["landmarks5"] == {"distance_percent": 0.0, "n": 70}
    assert part["gender"]["equal_share"] < 1.0
    assert part["landmarks5"]["distance_percent"] > 0.0


def test_agreement_over_other_samples_is_refused() -> None:
    first = evaluate(toy_runner(), toy_pack())
    second = evaluate(toy_runner(), toy_pack(keys=tuple(f"other{i}" for i in range(70))))
    with pytest.raises(DataError, match="in that order"):
        teacher_agreement(first, second)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"px": 32}, "32 px"), ({"margin": 1.3}, "margin 1.3"), ({"keys": ()}, "no sample")],
)
def test_crops_of_another_model_are_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        evaluate(toy_runner(), toy_pack(**changes))


def test_runner_that_loses_rows_is_refused() -> None:
    runner = toy_runner()
    runner.run = lambda batch: {name: values[: len(batch) - 1] for name, values in runner.table.items()}
    with pytest.raises(ModelError, match="one row per picture"):
        evaluate(runner, toy_pack())
