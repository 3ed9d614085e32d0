"""The verification protocol against naive forms, and the list of pairs in its published format."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeface.cli.eval import verified
from edgeface.data.pack import Pack
from edgeface.errors import DataError, UsageError
from edgeface.evaluate import DRAWN, PUBLISHED, Evaluation, Outputs, decode, evaluate
from edgeface.report.compare import scorecard
from edgeface.report.entries import Entry
from edgeface.report.scorecard import STUDENT, TEACHER
from edgeface.report.table import shown, title
from edgeface.specs import ModelSpec, output_spec
from edgeface.verification import (
    Pairs,
    area_under,
    best_threshold,
    draw_pairs,
    pair_scores,
    picture_key,
    read_pairs,
    roc,
    score_pairs,
    tar_at_far,
    verify,
)

TWO_FOLDS = """2\t2
Ann_Lee\t1\t2
Bo\t3\t14
Ann_Lee\t1\tBo\t3
Cy\t1\tAnn_Lee\t2
Dee\t1\t2
Eve\t2\t1
Dee\t1\tEve\t2
Fay\t10\tGus\t1
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs_are_read_as_published(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, TWO_FOLDS))
    assert pairs.first[:3] == ("Ann_Lee/Ann_Lee_0001.jpg", "Bo/Bo_0003.jpg", "Ann_Lee/Ann_Lee_0001.jpg")
    assert pairs.second[:3] == ("Ann_Lee/Ann_Lee_0002.jpg", "Bo/Bo_0014.jpg", "Bo/Bo_0003.jpg")
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.fold.tolist() == [0] * 4 + [1] * 4


def test_a_list_without_folds_is_one_fold(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, "1\nAnn\t1\t2\nAnn\t1\tBo\t3\n"))
    assert pairs.fold.tolist() == [0, 0]
    with pytest.raises(DataError, match="two or more"):
        verify(np.array([0.5, 0.1]), pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"pairs\.txt:1.*number of folds"),
        ("ten\t300\n", r"pairs\.txt:1: 'ten 300'"),
        (TWO_FOLDS.replace("Bo\t3\t14", "Bo\t3\tx"), r"pairs\.txt:3: 'Bo 3 x'.*NAME a b"),
        (TWO_FOLDS.replace("Dee\t1\tEve\t2", "Dee\t1\tEve"), r"pairs\.txt:8: 'Dee 1 Eve'.*NAME a OTHER b"),
        (TWO_FOLDS.replace("Eve\t2\t1\n", ""), "7 pairs.*Expected 8"),
    ],
)
def test_a_faulty_list_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(written(tmp_path, text))


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt"):
        read_pairs(tmp_path / "none.txt")


def drawn(seed: int, *, folds: int = 10, count: int = 20, gap: float = 1.0) -> tuple[NDArray[np.float64], Pairs]:
    """Scores that overlap, some of them equal, and pairs of empty names."""
    generator = np.random.default_rng(seed)
    total = 2 * folds * count
    same = (np.arange(total) // count) % 2 == 0
    scores = np.round(generator.normal(size=total) + gap * same, 1)
    names = ("",) * total
    return scores, Pairs(first=names, second=names, same=same, fold=np.arange(total) // (2 * count))


def naive_rates(scores: NDArray[np.float64], same: NDArray[np.bool_], threshold: float) -> tuple[float, float]:
    accepted = [s > threshold for s in scores.tolist()]
    true = sum(a for a, alike in zip(accepted, same.tolist(), strict=True) if alike)
    false = sum(a for a, alike in zip(accepted, same.tolist(), strict=True) if not alike)
    return false / int((~same).sum()), true / int(same.sum())


def test_every_operating_point_equals_a_count_of_pairs() -> None:
    scores, pairs = drawn(0)
    curve = roc(scores, pairs.same)
    for far, tar, threshold in zip(curve.far, curve.tar, curve.thresholds, strict=True):
        assert (far, tar) == naive_rates(scores, pairs.same, threshold)
    assert (curve.far[0], curve.tar[0], curve.far[-1], curve.tar[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert len(curve.far) == len(set(scores.tolist())) + 1
    # The twin: the same threshold on other scores gives other rates somewhere.
    assert any(
        (far, tar) != naive_rates(scores[::-1], pairs.same, threshold)
        for far, tar, threshold in zip(curve.far, curve.tar, curve.thresholds, strict=True)
    )


def naive_best(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[int, float]:
    """Most pairs called rightly, over a threshold below each score and above all; and the highest that does it."""
    levels = sorted(set(scores.tolist()), reverse=True)
    best, at = -1, math.inf
    for threshold in [levels[0] + 1, *((a + b) / 2 for a, b in itertools.pairwise(levels)), levels[-1] - 1]:
        right = sum((s > threshold) == alike for s, alike in zip(scores.tolist(), same.tolist(), strict=True))
        if right > best:
            best, at = right, threshold
    return best, at


def rightly(scores: NDArray[np.float64], same: NDArray[np.bool_], threshold: float) -> int:
    return int(((scores > threshold) == same).sum())


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: len({alike for _, alike in rows}) == 2
    )
)
@settings(deadline=None)
def test_no_threshold_is_better_than_the_best(rows: list[tuple[float, bool]]) -> None:
    scores, same = np.array([s for s, _ in rows]), np.array([alike for _, alike in rows])
    levels = np.unique(scores)
    tried = [*levels, *(levels[:-1] + levels[1:]) / 2, -2.0, 2.0]
    assert rightly(scores, same, best_threshold(scores, same)) == max(rightly(scores, same, t) for t in tried)


def test_of_equally_good_thresholds_the_highest_is_taken() -> None:
    scores, pairs = drawn(3, folds=2)
    best, at = naive_best(scores, pairs.same)
    found = best_threshold(scores, pairs.same)
    assert rightly(scores, pairs.same, found) == best
    assert found == pytest.approx(at)
    assert rightly(scores, pairs.same, found + 1.0) != best  # the twin


def test_each_fold_is_scored_at_the_threshold_of_the_others() -> None:
    scores, pairs = drawn(1)
    result = verify(scores, pairs)
    accuracies = []
    for fold in range(10):
        held = pairs.fold == fold
        _, threshold = naive_best(scores[~held], pairs.same[~held])
        accuracies.append(rightly(scores[held], pairs.same[held], threshold) / int(held.sum()))
    mean = sum(accuracies) / 10
    assert result.folds.tolist() == accuracies
    assert result.accuracy == pytest.approx(mean)
    assert result.deviation == pytest.approx(math.sqrt(sum((a - mean) ** 2 for a in accuracies) / 9))
    own = [rightly(scores[f], pairs.same[f], naive_best(scores[f], pairs.same[f])[1]) / 40 for f in
           (pairs.fold == fold for fold in range(10))]  # fmt: skip
    assert result.folds.tolist() != own  # the twin: a fold's own threshold would flatter it
    assert sum(own) > sum(accuracies)


@pytest.mark.parametrize("far", [0.1, 0.01, 0.0])
def test_tar_at_far_is_the_best_naive_threshold_that_keeps_the_rate(far: float) -> None:
    scores, pairs = drawn(2)
    rates = [naive_rates(scores, pairs.same, t) for t in (*np.unique(scores) - 0.05, scores.max() + 1)]
    found = tar_at_far(roc(scores, pairs.same), far)
    assert found == max(tar for false, tar in rates if false <= far)
    assert found != max(tar for false, tar in rates if false <= far + 0.2)


def test_the_area_is_how_often_a_same_pair_comes_before_a_different_one() -> None:
    scores, pairs = drawn(4, folds=3)  # some of them tie
    both = [(a, b) for a in scores[pairs.same].tolist() for b in scores[~pairs.same].tolist()]
    naive = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in both) / len(both)
    assert area_under(roc(scores, pairs.same)) == pytest.approx(naive)
    assert area_under(roc(-scores, pairs.same)) == pytest.approx(1.0 - naive)  # the twin: the other way round
    assert naive > 0.6


def test_scores_are_cosines_of_the_two_pictures(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, TWO_FOLDS))
    keys = sorted({*pairs.first, *pairs.second})
    embeddings = np.random.default_rng(0).normal(size=(len(keys), 5))
    naive = [
        float(a @ b / math.sqrt((a @ a) * (b @ b)))
        for a, b in ((embeddings[keys.index(x)], embeddings[keys.index(y)])
                     for x, y in zip(pairs.first, pairs.second, strict=True))
    ]  # fmt: skip
    assert pair_scores(embeddings, keys, pairs) == pytest.approx(naive)
    assert pair_scores(3.0 * embeddings, keys, pairs) == pytest.approx(naive)
    assert pair_scores(embeddings[::-1], keys, pairs) != pytest.approx(naive)  # the twin
    with pytest.raises(DataError, match=f"1 pictures of the pairs are not here .*{picture_key('Gus', 1)}"):
        pair_scores(embeddings[:-1], keys[:-1], pairs)


def test_faces_apart_are_told_apart_and_rates_that_cannot_be_measured_are_absent(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, TWO_FOLDS))
    keys = sorted({*pairs.first, *pairs.second})
    names = sorted({key.split("/")[0] for key in keys})
    embeddings = np.eye(len(names))[[names.index(key.split("/")[0]) for key in keys]]
    perfect = score_pairs(embeddings, keys, pairs)
    assert perfect == {"n": 8, "verification_accuracy": 1.0, "verification_sd": 0.0, "roc_area": 1.0}
    scores = score_pairs(np.random.default_rng(0).normal(size=(len(keys), 8)), keys, pairs)
    assert scores["verification_accuracy"] < 1.0  # the twin


def test_a_rate_is_measured_only_where_one_false_accept_is_not_above_it() -> None:
    scores, pairs = drawn(0, folds=5, count=20)
    angles = np.arccos(np.clip(scores / np.abs(scores).max(), -1, 1))
    count = len(scores)
    keys = [f"{side}{place}" for side in "ab" for place in range(count)]
    embeddings = np.concatenate([np.tile([1.0, 0.0], (count, 1)), np.stack([np.cos(angles), np.sin(angles)], axis=1)])
    named = Pairs(first=tuple(keys[:count]), second=tuple(keys[count:]), same=pairs.same, fold=pairs.fold)
    found = score_pairs(embeddings, keys, named)  # 100 different pairs
    rates = {"tar_at_far_0.1", "tar_at_far_0.01"}
    assert set(found) == {"n", "verification_accuracy", "verification_sd", "roc_area", *rates}
    # Cosines are the drawn scores but for rounding, which no threshold half-way between two of them notices.
    curve = roc(scores, pairs.same)
    assert found["verification_accuracy"] == verify(scores, pairs).accuracy
    assert found["tar_at_far_0.1"] == tar_at_far(curve, 0.1) != tar_at_far(curve, 0.3)


def test_pairs_of_one_sort_are_refused() -> None:
    with pytest.raises(DataError, match="2 same and 0 different"):
        roc(np.array([0.1, 0.2]), np.array([True, True]))


def test_drawn_pairs_are_balanced_and_no_person_is_in_two_folds() -> None:
    people = np.repeat(np.arange(60), 4)
    people[::17] = -1
    keys = [f"k{row}" for row in range(len(people))]
    pairs = draw_pairs(keys, people, folds=5, count=30)
    place = {key: row for row, key in enumerate(keys)}
    first, second = (people[[place[key] for key in side]] for side in (pairs.first, pairs.second))
    assert pairs.same.tolist() == (first == second).tolist()
    assert min(first.min(), second.min()) >= 0
    assert all((pairs.same[pairs.fold == fold].sum(), (pairs.fold == fold).sum()) == (30, 60) for fold in range(5))
    seen = [{*first[pairs.fold == fold], *second[pairs.fold == fold]} for fold in range(5)]
    assert all(not a & b for a, b in itertools.combinations(seen, 2))
    assert len({frozenset(pair) for pair in zip(pairs.first, pairs.second, strict=True)}) == len(pairs.first)
    again, other = draw_pairs(keys, people, folds=5, count=30), draw_pairs(keys, people, folds=5, count=30, seed=1)
    assert again.first == pairs.first != other.first


def test_too_few_people_to_draw_from_are_refused() -> None:
    with pytest.raises(DataError, match="3 people in 6 pictures"):
        draw_pairs(list("abcdef"), np.array([0, 0, 1, 1, 2, 2]))


def evaluation(keys: tuple[str, ...], outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> Evaluation:
    spec = ModelSpec(name="edge_s", input_px=16, outputs=(output_spec("identity"),))
    return Evaluation(
        model="m",
        spec=spec,
        runtime="torch",
        precision="fp32",
        source="s",
        licence="",
        research_only=False,
        keys=keys,
        skipped={},
        outputs={"identity": outputs},
        predictions=decode(spec, {"identity": outputs}),
        labels={"identity": labels},
        tasks={"identity": {"n": len(keys)}},
        absent={"identity": "verification needs a list of same and different pairs"},
    )


def test_eval_scores_identity_over_a_list_or_over_drawn_pairs(tmp_path: Path) -> None:
    path = written(tmp_path, TWO_FOLDS)
    listed = read_pairs(path)
    keys = tuple(sorted({*listed.first, *listed.second}))
    embeddings = np.random.default_rng(0).normal(size=(len(keys), 128)).astype(np.float32)
    scored = verified(evaluation(keys, embeddings, np.arange(len(keys))), pairs=str(path))
    assert scored.tasks["identity"] == score_pairs(scored.predictions["identity"], keys, listed)
    assert scored.absent == {}
    people = np.repeat(np.arange(30), 4)
    names = tuple(map(str, range(120)))
    faces = np.eye(128, dtype=np.float32)[people]
    assert verified(evaluation(names, faces, people), pairs="drawn").tasks["identity"]["verification_accuracy"] == 1.0
    wrong = verified(evaluation(names, faces[::-1] + faces, people), pairs="drawn")  # the twin: of two people each
    assert wrong.tasks["identity"]["verification_accuracy"] < 1.0
    silent = evaluation(names, faces, people)
    silent = dataclasses.replace(silent, predictions={}, labels={})
    with pytest.raises(UsageError, match="does not answer 'identity'"):
        verified(silent, pairs="drawn")


PEOPLE = np.repeat(np.arange(40), 4)


def crops(*, people: NDArray[np.int64] = PEOPLE, pairs: Pairs | None = None) -> Pack:
    """A face a row: the first pixel's red says who it is, its green which picture of them."""
    images = np.zeros((len(people), 16, 16, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = people, np.arange(len(people))
    return Pack(
        images=images,
        px=16,
        margin=1.0,
        keys=tuple(f"k{row}" for row in range(len(people))),
        people=tuple(map(str, people.tolist())),
        labels={"identity": people},
        groups={"hair": np.array(["dark", "fair"])[people % 2]},
        name="toy",
        source="toy@test",
        split="test",
        licence="",
        research_only=False,
        skipped={},
        content_hash="",
        folder=Path(),
        pairs=pairs,
    )


class Knows:
    """Answers a direction of its own for each person, turned by `noise`."""

    runtime, precision = "torch", "fp32"
    spec = ModelSpec(name="toy", input_px=16, outputs=(output_spec("identity"),))

    def __init__(self, *, noise: float = 0.0) -> None:
        self._own = np.random.default_rng(0).normal(size=(40, 128))
        self._turn = noise * np.random.default_rng(1).normal(size=(160, 128))

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        who, which = batch[:, 0, 0, 0], batch[:, 0, 0, 1]
        return {"identity": (self._own[who] + self._turn[which]).astype(np.float32)}


def test_identity_is_scored_wherever_a_source_says_who_is_on_a_picture() -> None:
    found = evaluate(Knows(), crops())
    assert found.tasks["identity"]["verification_accuracy"] == 1.0
    assert (found.absent, found.pairs, found.as_json()["pairs"]) == ({}, DRAWN, DRAWN)
    noisy = evaluate(Knows(noise=4.0), crops())
    assert noisy.tasks["identity"]["verification_accuracy"] < 0.9  # the twin
    assert noisy.tasks["identity"] == verified(noisy, pairs="drawn").tasks["identity"]


def test_the_pairs_that_a_source_publishes_come_before_drawn_ones() -> None:
    keys = tuple(f"k{row}" for row in range(len(PEOPLE)))
    listed = draw_pairs(keys, PEOPLE, folds=4, count=6, seed=5)
    found = evaluate(Knows(noise=4.0), crops(pairs=listed))
    assert found.pairs == PUBLISHED
    assert found.tasks["identity"] == score_pairs(found.predictions["identity"], keys, listed)
    assert found.tasks["identity"] != evaluate(Knows(noise=4.0), crops()).tasks["identity"]


def test_faces_that_give_no_pairs_say_why_identity_is_not_scored() -> None:
    found = evaluate(Knows(), crops(people=np.repeat(np.arange(3), 4)))
    assert found.tasks["identity"] == {"n": 12}
    assert found.pairs == ""
    assert found.absent["identity"].startswith("3 people in 12 pictures; verification needs in each of 10 folds")
    other = dataclasses.replace(draw_pairs(crops().keys, PEOPLE), first=("gone",) * 240)
    assert "pictures of the pairs are not here" in evaluate(Knows(), crops(pairs=other)).absent["identity"]


def test_a_scorecard_has_identity_without_an_interval_and_without_groups() -> None:
    def entry(role: str) -> Entry:
        return Entry(role=role, name=role, open=Knows)

    teacher, student = evaluate(Knows(), crops()), evaluate(Knows(noise=4.0), crops())
    card = scorecard([(entry(TEACHER), teacher), (entry(STUDENT), student)])
    cell = card.rows[1].tasks["identity"]
    assert cell.value == student.tasks["identity"]["verification_accuracy"]
    assert cell.delta_teacher == pytest.approx(100 * (cell.value - 1.0))
    assert cell.interval_teacher is None
    assert card.subgroups == []
    few = evaluate(Knows(), crops(people=np.repeat(np.arange(3), 4)))
    bare = scorecard([(entry(TEACHER), few)])
    assert (bare.rows[0].tasks, list(bare.rows[0].absent)) == ({}, ["identity"])  # the twin: no pairs, and it says so


def test_a_training_watches_identity_on_pairs_of_its_validation_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.stages import TrainingData, watcher
    from edgeface.models.network import build_network, model_spec
    from edgeface.specs import NetworkSpec

    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    network = NetworkSpec(backbone="edge_s", width=0.25, input_px=16)
    outputs = {"identity": output_spec("identity")}
    model = model_spec(network, tuple(outputs.values()))

    def watched(source: str) -> Mapping[str, float]:
        data = TrainingData(train=(), val=(source,), root=tmp_path, outputs=outputs, content_hash="")
        watch = watcher(data, model)
        assert watch is not None
        return watch(build_network(network, model))

    assert 0.3 < watched("synthetic:160@val")["identity.verification_accuracy"] <= 1.0
    assert watched("synthetic:8@val") == {}  # the twin: two people give no pairs


def test_every_figure_of_the_protocol_can_be_printed() -> None:
    scores, pairs = drawn(0, folds=10, count=100)  # a thousand different pairs: every rate is measured
    keys = [f"{side}{place}" for side in "ab" for place in range(len(scores))]
    named = dataclasses.replace(pairs, first=tuple(keys[: len(scores)]), second=tuple(keys[len(scores) :]))
    found = score_pairs(np.random.default_rng(0).normal(size=(len(keys), 4)), keys, named)
    assert len(found) == 7
    assert all(title(key) and shown(key, value) for key, value in found.items() if key != "n")
    with pytest.raises(KeyError):
        title("tar_at_far_0.5")  # the twin
