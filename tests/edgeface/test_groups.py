"""Which ways there are to divide faces."""

from __future__ import annotations

import numpy as np

from edgeface.groups import group_columns


def test_columns_labels_and_pairs_divide_faces() -> None:
    columns = group_columns(
        {"race": np.array(["a", "b", "", "a"])},
        {
            "gender": np.array([0, 1, 1, -1]),
            "age": np.array([[31, 31], [3, 9], [39, 39], [np.nan, np.nan]], np.float32),
            "glasses": np.array([1, 0, 0, 0]),
            "smile": np.array([0, 1, 0, 1]),
        },
    )
    assert {name: values.tolist() for name, values in columns.items()} == {
        "race": ["a", "b", "", "a"],
        "gender": ["male", "female", "female", ""],
        "age": ["30–39", "3–9", "30–39", ""],
        "glasses": ["glasses", "none", "none", "none"],
        "gender × race": ["male · a", "female · b", "", ""],
    }


def test_a_column_of_one_group_divides_nothing() -> None:
    columns = group_columns({"folder": np.array(["AFLW", "AFLW", ""])}, {"gender": np.array([0, 0, -1])})
    assert columns == {}
    both = group_columns({"folder": np.array(["AFLW", "AFLW", ""])}, {"gender": np.array([0, 1, -1])})
    assert list(both) == ["gender"]


def test_the_corpus_own_column_counts_before_a_label_of_that_name_twin() -> None:
    own = np.array(["f", "m", "f"])
    columns = group_columns({"gender": own, "race": np.array(["a", "a", "b"])}, {"gender": np.array([0, 0, 1])})
    assert columns["gender"].tolist() == own.tolist()
    assert columns["gender × race"].tolist() == ["f · a", "m · a", "f · b"]
    assert "gender × gender" not in columns
