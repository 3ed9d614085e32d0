"""The groups that faces are reported by: a corpus's own columns, labels that divide people, and pairs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.metrics import known
from edgeface.tasks import TASKS

Column = NDArray[np.str_]

BY_LABEL = ("gender", "age", "glasses")  # tasks whose labels are groups too
CROSSED = "gender"  # paired with every column of the corpus


def group_columns(groups: Mapping[str, Column], labels: Mapping[str, NDArray[Any]]) -> dict[str, Column]:
    """Every way to divide these faces.

    Args:
        groups: The corpus's columns, N strings each; "" is unknown.
        labels: Task name to labels in the form of tasks.py.

    Returns:
        Name to N group names, "" where unknown: columns, then "gender", "age" in decades or the corpus's own intervals,
        "glasses", then "gender × COLUMN". Those with fewer than two groups are left out.
    """
    own = dict(groups)
    by_label = {name: _names(name, labels[name]) for name in BY_LABEL if name in labels and name not in own}
    columns = {name: values for name, values in {**own, **by_label}.items() if _divides(values)}
    if CROSSED in columns:
        for name in [name for name in own if name in columns and name != CROSSED]:
            both = (columns[CROSSED] != "") & (own[name] != "")
            pairs = np.char.add(np.char.add(columns[CROSSED], " · "), own[name])
            columns[f"{CROSSED} × {name}"] = np.where(both, pairs, "")
    return columns


def _divides(values: Column) -> bool:
    told = values[values != ""]
    return bool((told != told[:1]).any())


def _names(task: str, labels: NDArray[Any]) -> Column:
    has = known(TASKS[task], labels)
    if task == "age":
        low, high = np.nan_to_num(labels).T.astype(np.int64)
        exact = low == high
        decade = low // 10 * 10
        low, high = np.where(exact, decade, low), np.where(exact, decade + 9, high)
        spans, which = np.unique(np.stack([low, high], axis=1), axis=0, return_inverse=True)
        names = np.asarray([f"{first}–{last}" for first, last in spans.tolist()])[which.reshape(-1)]
    else:
        classes = np.asarray([name.replace("_", " ") for name in TASKS[task].classes])
        names = classes[np.where(has, labels, 0)]
    return np.where(has, names, "")
