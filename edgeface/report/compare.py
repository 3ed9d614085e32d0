"""From evaluations of the same faces to a scorecard: values, differences, intervals, verdicts."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.calibration import expected_calibration_error, recalibrate, reliability
from edgeface.errors import BudgetError, DataError
from edgeface.evaluate import Evaluation, probabilities, teacher_agreement
from edgeface.metrics import (
    bootstrap,
    confusion,
    cumulative_curve,
    known,
    lower_is_better,
    main_metric,
    percentiles,
    point_errors,
    worsening,
)
from edgeface.provenance import commit, cpu, versions
from edgeface.report.entries import Entry
from edgeface.report.scorecard import BUILT, CURVE_PERCENT, STUDENT, TEACHER, Cell, Ends, Row, Scorecard
from edgeface.report.subgroups import subgroups
from edgeface.report.table import unit
from edgeface.specs import BudgetSpec
from edgeface.tasks import TASKS, Kind, Task

RESAMPLES = 1000
TOLERANCE = 1e-9  # points; a change equal to its budget is inside it, whatever the last digit of a float says

Budget = Mapping[str, BudgetSpec]
Measured = Evaluation | str | BudgetError  # answers; why there are none; why they cannot be believed


def scorecard(rows: Sequence[tuple[Entry, Measured]], *, budget: Budget | None = None) -> Scorecard:
    """Compare evaluations of the same faces.

    Args:
        rows: Each model with its evaluation, the reason why there is none, or what is wrong with its answers.
        budget: Task name to the allowed worsening of files and devices.

    Raises:
        DataError: Nothing was run, or not on the same faces.
    """
    done = [evaluation for _, evaluation in rows if isinstance(evaluation, Evaluation)]
    if not done:
        reasons = "; ".join(dict.fromkeys(str(reason) for _, reason in rows))
        raise DataError(f"no model could be run: {reasons or 'none given'}", expected="at least one", where="scorecard")
    first = done[0]
    for other in done[1:]:
        if other.keys != first.keys:
            raise DataError(
                f"{other.samples} faces of {other.source!r} for {other.model!r}",
                expected=f"the {first.samples} faces of {first.source!r} that {first.model!r} was scored on",
                where="scorecard",
                do="Score all of them on one source",
            )
    compared = _Compared(done, teacher=_only(rows, TEACHER), student=_only(rows, STUDENT))
    return Scorecard(
        source=first.source,
        samples=first.samples,
        skipped={reason: len(keys) for reason, keys in first.skipped.items()},
        licence=first.licence,
        research_only=first.research_only,
        rows=[_row(entry, made, compared, budget=budget or {}) for entry, made in rows],
        conditions={
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "machine": cpu(),
            "versions": versions(),
            "commit": commit(),
        },
        subgroups=subgroups(done, metrics=compared.by_face, teacher=compared.teacher),
    )


def _only(rows: Sequence[tuple[Entry, Measured]], role: str) -> Evaluation | None:
    found = [evaluation for entry, evaluation in rows if entry.role == role]
    if len(found) > 1:
        raise DataError(f"{len(found)} rows with the role {role!r}", expected="at most one", where="scorecard")
    return found[0] if found and isinstance(found[0], Evaluation) else None


class _Compared:
    """Every model's metrics on all faces and on the same resamples of them.

    Attributes:
        teacher: Or None.
        student: The fp32 student, or None.
        metrics: Task to its main metric, of tasks that some model was scored on.
        by_face: The same of tasks that are scored face by face: of all but identity.
    """

    def __init__(self, models: Sequence[Evaluation], *, teacher: Evaluation | None, student: Evaluation | None) -> None:
        self.teacher = teacher
        self.student = student
        self.metrics: dict[str, str] = {}
        self._resampled: dict[str, dict[int, NDArray[np.float64]]] = {}
        for name in TASKS:
            scored = [made for made in models if name in made.tasks]
            metric = main_metric(TASKS[name], scored[0].tasks[name]) if scored else ""
            scored = [made for made in scored if metric in made.tasks[name]]
            if scored:
                self.metrics[name] = metric
            # Identity has no interval: its pairs share faces, and drawn as if they did not it would be too narrow.
            if scored and TASKS[name].kind is not Kind.IDENTITY:
                draws = bootstrap(
                    TASKS[name],
                    [made.predictions[name] for made in scored],
                    labels=scored[0].labels[name],
                    metric=metric,
                    resamples=RESAMPLES,
                )
                self._resampled[name] = {id(made): row for made, row in zip(scored, draws, strict=True)}

    @property
    def by_face(self) -> dict[str, str]:
        return {name: self.metrics[name] for name in self._resampled}

    def delta(self, name: str, made: Evaluation, other: Evaluation | None) -> tuple[float | None, Ends | None]:
        """Change of a task's metric against another model's, with its interval."""
        metric = self.metrics[name]
        if other is None or other is made or metric not in other.tasks.get(name, {}):
            return None, None
        reference = float(other.tasks[name][metric])
        delta = change(metric, float(made.tasks[name][metric]), reference)
        if name not in self._resampled:
            return delta, None
        draws = self._resampled[name]
        ends = [change(metric, reference + end, reference) for end in percentiles(draws[id(made)] - draws[id(other)])]
        return delta, (min(ends), max(ends)) if np.isfinite(ends).all() else None


def _row(entry: Entry, made: Measured, compared: _Compared, *, budget: Budget) -> Row:
    if not isinstance(made, Evaluation):
        return Row(
            role=entry.role,
            model=entry.name,
            runtime=entry.runtime,
            precision="",
            size_bytes=entry.size_bytes,
            outcome="NOT_RUN" if isinstance(made, str) else "FAIL",
            reason=str(made),
            tasks={},
            absent={},
        )
    budget = budget if entry.role in BUILT else {}
    teacher = compared.teacher
    agreed = teacher_agreement(made, teacher) if teacher is not None and made is not teacher else {}
    cells = {}
    for name, metric in compared.metrics.items():
        if metric in made.tasks.get(name, {}):
            cell = _cell(TASKS[name], made, compared, allowed=budget.get(name))
            cells[name] = replace(cell, agreement=agreed.get(name, {}))
    outcome, reason = _outcome(made, cells, budget=budget, compared=compared)
    return Row(
        role=entry.role,
        model=entry.name,
        runtime=made.runtime,
        precision=made.precision,
        size_bytes=entry.size_bytes,
        outcome=outcome,
        reason=reason,
        tasks=cells,
        absent=made.absent,
        unlabelled={name: found for name, found in agreed.items() if name not in cells},
        hardware=made.hardware,
    )


def _cell(task: Task, made: Evaluation, compared: _Compared, *, allowed: BudgetSpec | None) -> Cell:
    name, metric = task.name, compared.metrics[task.name]
    scores = made.tasks[name]
    delta_teacher, interval_teacher = compared.delta(name, made, compared.teacher)
    delta_student, interval = None, None
    if made is not compared.teacher:
        delta_student, interval = compared.delta(name, made, compared.student)
    details = _landmark_details(task, made) if task.kind is Kind.LANDMARKS else {}
    if task.kind is Kind.CLASSES:
        details = _class_details(task, made, metric=metric)
    if allowed is not None:
        judged = delta_student if allowed.vs == "student" else delta_teacher
        details |= {"budget_vs": allowed.vs, "budget": allowed.points if judged is not None else None}
        details["within_budget"] = None if judged is None else _is_within(metric, judged, allowed.points)
    return Cell(
        metric=metric,
        value=float(scores[metric]),
        n=int(scores["n"]),
        # A relative change of nothing is infinite: judged as that, but no number to write.
        delta_teacher=_finite(delta_teacher),
        delta_student=_finite(delta_student),
        interval_teacher=interval_teacher,
        interval=interval,
        **details,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _is_within(metric: str, delta: float, points: float) -> bool:
    return bool((delta if lower_is_better(metric) else -delta) <= points + TOLERANCE)


def _landmark_details(task: Task, made: Evaluation) -> dict[str, Any]:
    rows = known(task, made.labels[task.name])
    errors = point_errors(made.predictions[task.name][rows], made.labels[task.name][rows])
    return {
        "failure_percent": float(made.tasks[task.name]["failure_percent"]),
        "per_point": tuple(errors.mean(0).tolist()),
        "curve": tuple(cumulative_curve(errors.mean(1), np.array(CURVE_PERCENT)).tolist()),
    }


def _class_details(task: Task, made: Evaluation, *, metric: str) -> dict[str, Any]:
    labels, answers = made.labels[task.name], made.predictions[task.name]
    details: dict[str, Any] = {"confusion": tuple(map(tuple, confusion(task, answers, labels).tolist()))}
    output = next((output for output in made.spec.outputs if output.task == task.name), None)
    if output is None or output.name not in made.outputs:
        return details
    rows = known(task, labels)
    labels, answers, raw = labels[rows], answers[rows], made.outputs[output.name][rows]
    sure = probabilities(output, raw)[np.arange(len(answers)), answers]
    bins = reliability(sure, answers == labels)
    details |= {"calibration": bins, "ece": expected_calibration_error(bins)}
    if len(task.classes) == 2:
        people = np.asarray(made.people or made.keys)[rows]
        margin = raw[:, 1].astype(np.float64) - raw[:, 0]
        found = recalibrate(margin, labels, _half(people), metric=metric, threshold=output.threshold)
        if found is not None:
            details["recalibrated"] = {"threshold": found.threshold, "value": found.value, "n": found.n}
    return details


def _half(people: NDArray[np.str_]) -> NDArray[np.bool_]:
    """(N,) the same half of the people whenever they are asked for, whatever their order."""
    named, place = np.unique(people, return_inverse=True)
    return np.asarray([hashlib.sha256(name.encode()).digest()[0] % 2 == 0 for name in named.tolist()])[place]


def change(metric: str, value: float, reference: float) -> float:
    """Signed change of a metric, in points or relative percent: below zero is less, better or worse."""
    worse = worsening(metric, value, reference)
    return worse if lower_is_better(metric) else -worse


def _outcome(made: Evaluation, cells: Mapping[str, Cell], *, budget: Budget, compared: _Compared) -> tuple[str, str]:
    if not budget:
        return "MEASURED", ""
    broken = [name for name in budget if name in cells and cells[name].within_budget is False]
    if broken:
        return "FAIL", "; ".join(
            f"{name} worse by more than {budget[name].points:g} {unit(cells[name])}"
            + (" than the teacher" if budget[name].vs == "teacher" else "")
            for name in broken
        )
    unchecked = [name for name in budget if name not in cells or cells[name].within_budget is None]
    if not unchecked:
        return "PASS", ""
    reasons = []
    for name in unchecked:
        vs = budget[name].vs
        reference, words = (compared.teacher, "teacher") if vs == "teacher" else (compared.student, "fp32 student")
        why = made.absent.get(name, f"not measured on the {words}") if reference else f"no {words} to compare with"
        reasons.append(f"budget of {name} not checked: {why}")
    return "NOT_RUN", "; ".join(reasons)
