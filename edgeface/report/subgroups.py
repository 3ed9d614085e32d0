"""How evenly each model serves the groups among the faces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.evaluate import Evaluation
from edgeface.metrics import bootstrap, known, percentiles, score
from edgeface.report.scorecard import Gap, Group, Subgroups
from edgeface.tasks import TASKS

MINIMUM = 30  # labelled faces: one of fewer is more than 3 points of an accuracy
RESAMPLES = 1000


def subgroups(
    models: Sequence[Evaluation], *, metrics: Mapping[str, str], teacher: Evaluation | None
) -> list[Subgroups]:
    """Every task by every way to divide the faces that leaves two groups of MINIMUM labelled faces or more.

    Smaller groups are named with their number of faces: a figure of theirs would say nothing.

    Args:
        models: On the same faces, in the order of the scorecard's rows.
        metrics: Task to its main metric.
        teacher: The one of `models` that gaps are compared with.
    """
    found = []
    for task, metric in metrics.items():
        scored = [made for made in models if metric in made.tasks.get(task, {})]
        labelled = known(TASKS[task], scored[0].labels[task])
        for by, names in scored[0].groups.items():
            named = sorted(set(names.tolist()) - {""}, key=_natural)
            members = {name: labelled & (names == name) for name in named}
            kept = {name: rows for name, rows in members.items() if rows.sum() >= MINIMUM}
            few = {name: rows for name, rows in members.items() if 0 < rows.sum() < MINIMUM}
            if len(kept) >= 2:
                found.append(
                    Subgroups(
                        task=task,
                        by=by,
                        metric=metric,
                        groups=_counted(kept),
                        rows=_gaps(task, metric, scored, kept, teacher=teacher),
                        minimum=MINIMUM,
                        few=_counted(few),
                        left_out=int(labelled.sum() - sum(rows.sum() for rows in kept.values())),
                    )
                )
    return found


def _counted(members: Mapping[str, NDArray[np.bool_]]) -> list[Group]:
    return [Group(name=name, n=int(rows.sum())) for name, rows in members.items()]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "3–9" before "10–19"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _gaps(
    task: str,
    metric: str,
    models: Sequence[Evaluation],
    members: Mapping[str, NDArray[np.bool_]],
    *,
    teacher: Evaluation | None,
) -> list[Gap]:
    values = np.full((len(models), len(members)), np.nan)
    resampled = np.full((len(models), len(members), RESAMPLES), np.nan)
    for column, rows in enumerate(members.values()):
        labels = models[0].labels[task][rows]
        answers = [made.predictions[task][rows] for made in models]
        plain = [float(score(TASKS[task], each, labels).get(metric, np.nan)) for each in answers]
        values[:, column] = plain
        if np.isfinite(plain).all():
            resampled[:, column] = bootstrap(
                TASKS[task], answers, labels=labels, metric=metric, resamples=RESAMPLES, seed=column
            )
    gaps = [_spread(row) for row in values]
    draws = [_drawn_spread(each[np.isfinite(row)]) for each, row in zip(resampled, values, strict=True)]
    taught = next((place for place, made in enumerate(models) if made is teacher), None)
    found: list[Gap] = []
    for place, (made, row, gap) in enumerate(zip(models, values, gaps, strict=True)):
        reference = None if taught in (None, place) else gaps[taught or 0]
        compared = gap is not None and reference is not None
        found.append(
            Gap(
                model=made.model,
                runtime=made.runtime,
                values=[float(value) if np.isfinite(value) else None for value in row],
                gap=gap,
                gap_interval=_interval(draws[place]),
                gap_change_teacher=gap - reference if gap is not None and reference is not None else None,
                gap_change_interval=_interval(draws[place] - draws[taught or 0]) if compared else None,
            )
        )
    return found


def _spread(values: NDArray[Any]) -> float | None:
    held = values[np.isfinite(values)]
    return float(held.max() - held.min()) if len(held) >= 2 else None


def _drawn_spread(draws: NDArray[Any]) -> NDArray[Any]:
    """(R,) gaps of (groups, R) resampled values; NaN with fewer than two groups."""
    return draws.max(0) - draws.min(0) if len(draws) >= 2 else np.full(RESAMPLES, np.nan)


def _interval(draws: NDArray[Any]) -> list[float] | None:
    low, high = percentiles(draws)
    return [low, high] if np.isfinite([low, high]).all() else None
