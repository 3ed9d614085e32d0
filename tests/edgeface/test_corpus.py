"""The corpus type: consistent by construction, selectable, with one code for a missing label."""

from __future__ import annotations

import numpy as np
import pytest

from edgeface.data.corpus import Corpus, is_labelled, is_validation, label_shape, unlabelled
from edgeface.errors import DataError
from edgeface.tasks import TASKS


def corpus(count: int = 4, **changes: object) -> Corpus:
    fields: dict[str, object] = {
        "name": "made",
        "source": "made@train",
        "split": "train",
        "licence": "none",
        "research_only": False,
        "keys": tuple(f"{i}.png" for i in range(count)),
        "people": tuple(f"person {i // 2}" for i in range(count)),
        "crops": np.tile(np.asarray([8, 8, 8], np.float32), (count, 1)),
        "labels": {"pose": np.arange(count) % 5, "landmarks5": np.ones((count, 5, 2), np.float32)},
        "groups": {"tone": np.asarray(["a", "b"] * (count // 2))},
        "load": lambda index: np.full((16, 16, 3), index, np.uint8),
        **changes,
    }
    return Corpus(**fields)  # type: ignore[arg-type]


def test_select_takes_labels_groups_and_pictures_along() -> None:
    chosen = corpus().select([3, 1])
    assert len(chosen) == 2
    assert chosen.keys == ("3.png", "1.png")
    assert chosen.people == ("person 1", "person 0")
    assert chosen.labels["pose"].tolist() == [3, 1]
    assert chosen.groups["tone"].tolist() == ["b", "b"]
    assert chosen.load(0)[0, 0, 0] == 3
    assert chosen.select([1]).load(0)[0, 0, 0] == 1
    assert chosen.load_many is None


def test_select_takes_the_batched_loader_along() -> None:
    many = corpus(load_many=lambda wanted: np.stack([np.full((2, 2, 3), i, np.uint8) for i in wanted]))
    loader = many.select([3, 1, 2]).load_many
    assert loader is not None
    assert loader(np.asarray([2, 0]))[:, 0, 0, 0].tolist() == [2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"people": ("a",)},
        {"crops": np.zeros((4, 2), np.float32)},
        {"labels": {"pose": np.zeros(3, np.int64)}},
        {"labels": {"landmarks5": np.zeros((4, 6, 2), np.float32)}},
    ],
)
def test_inconsistent_parts_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DataError, match="Correct the reader"):
        corpus(**changes)


@pytest.mark.parametrize("name", TASKS)
def test_missing_labels_are_not_labelled(name: str) -> None:
    missing = unlabelled(TASKS[name], 3)
    assert missing.shape == label_shape(TASKS[name], 3)
    assert not is_labelled(TASKS[name], missing).any()
    missing[1] = 0
    assert is_labelled(TASKS[name], missing).tolist() == [False, True, False]


def test_half_a_landmark_set_is_no_label_and_one_attribute_is() -> None:
    points = unlabelled(TASKS["landmarks5"], 1)
    points[0, :3] = 1.0
    assert not is_labelled(TASKS["landmarks5"], points)[0]
    attributes = unlabelled(TASKS["attributes"], 1)
    attributes[0, 2] = 1
    assert is_labelled(TASKS["attributes"], attributes)[0]


def test_a_tenth_of_the_people_is_kept_for_validation() -> None:
    share = np.mean([is_validation(f"person {i}") for i in range(10_000)])
    assert abs(share - 0.1) < 0.015  # five standard errors of a share of 0.1 among 10000
    assert is_validation("person 3") == is_validation("person 3")
