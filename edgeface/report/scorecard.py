"""The scorecard as data: teacher, students, built files and devices, task by task, on the same faces.

It is data first (scorecard.json); the terminal's table, Markdown and the HTML report read it. Differences are signed
changes of the metric: points for accuracies and percentages, relative percent for errors in other units.

    entries.py    which models, files and devices there are to measure
    answers.py    what they answered, kept by digest
    measure.py    runs them over the same faces
    compare.py    values, differences, intervals, verdicts
    subgroups.py  the same by group, and the gaps between groups
    blame.py      which layer's rounding broke a budget
    table.py      how all of it is printed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

import numpy as np

from edgeface.errors import BudgetError, MissingToolError, ModelError
from edgeface.files import read_json
from edgeface.tasks import TASKS

SCHEMA = 1
TEACHER, STUDENT, FAKE_QUANT, FILE, DEVICE = "teacher", "student", "fake-quant", "file", "device"
FOREST = "forest"  # the teacher with forests in the place of some heads
ROLES = (TEACHER, FOREST, STUDENT, FAKE_QUANT, FILE, DEVICE)
BUILT = (FILE, DEVICE)  # roles that budgets judge
CURVE_PERCENT = tuple(np.arange(0.0, 25.25, 0.25).tolist())  # thresholds of the cumulative error curves

Ends = tuple[float, float]
Typed = TypeVar("Typed")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model on one task that the faces are labelled for.

    Attributes:
        metric: Key of the main metric.
        value: Its value, in the unit of metrics.score.
        n: Labelled samples it was measured on.
        failure_percent: Share of failed faces (landmarks).
        delta_teacher: Change against the teacher, in points or relative percent.
        delta_student: Change against the fp32 student, as above; None also for a relative change of 0.
        interval: 95 % bootstrap interval of `delta_student`, the samples drawn once for both.
        interval_teacher: The same of `delta_teacher`.
        agreement: Measure and value of the agreement with the teacher.
        budget: Allowed worsening, in points or relative percent.
        budget_vs: What the budget is measured against, one of specs.BUDGET_REFERENCES.
        within_budget: Verdict; None when there is no budget.
        per_point: Error of each landmark in percent.
        curve: Share of faces with an error up to each of CURVE_PERCENT.
        confusion: Counts, true class by row, answered class by column (tasks with classes).
        calibration: Mean confidence, accuracy and faces of ten bins of equal width, those that hold any (with classes).
        ece: Expected calibration error in 0 to 1 (tasks with classes).
        recalibrated: `threshold`, `value` and `n` as in calibration.Recalibrated (tasks with two classes).
    """

    metric: str
    value: float
    n: int
    failure_percent: float | None = None
    delta_teacher: float | None = None
    delta_student: float | None = None
    interval: Ends | None = None
    interval_teacher: Ends | None = None
    agreement: Mapping[str, float | int] = field(default_factory=dict)
    budget: float | None = None
    budget_vs: str = "student"
    within_budget: bool | None = None
    per_point: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    calibration: tuple[tuple[float, float, int], ...] = ()
    ece: float | None = None
    recalibrated: Mapping[str, float | int] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model.

    Attributes:
        role: One of ROLES.
        model: Its name.
        runtime: What ran it.
        precision: In which arithmetic.
        size_bytes: Size on disk; 0 when unknown.
        outcome: "PASS" or "FAIL" against the budgets ("FAIL" too when a device's answers cannot be believed),
            "MEASURED" without any, "NOT_RUN" when something could not run.
        reason: Why it failed or did not run.
        tasks: Task name to what was measured.
        absent: Task name to why it was not.
        unlabelled: Task name to the agreement with the teacher, of tasks without a cell: it needs no labels.
        hardware: What computed it: "CPU", "GPU: NVIDIA H200"; "" when unknown.
    """

    role: str
    model: str
    runtime: str
    precision: str
    size_bytes: int
    outcome: str
    reason: str
    tasks: Mapping[str, Cell]
    absent: Mapping[str, str]
    unlabelled: Mapping[str, Mapping[str, float | int]] = field(default_factory=dict)
    hardware: str = ""


class Group(TypedDict):
    """A group of faces and how many labelled ones are in it."""

    name: str
    n: int


class Gap(TypedDict):
    """How unevenly one model serves the groups, in the unit of the task's metric (metrics.score).

    Keys:
        model: Its row's name.
        runtime: Its row's runtime.
        values: The metric in each group; None where it has none.
        gap: Best group minus worst, 0 or above; None with fewer than two values.
        gap_interval: Ends of its 95 % bootstrap interval, faces drawn anew inside each group. Of equal groups the best
            and the worst still differ by chance, so it lies above 0 even then.
        gap_change_teacher: Its gap minus the teacher's; None for the teacher itself.
        gap_change_interval: Ends of the 95 % interval of that, the same faces drawn for both.
    """

    model: str
    runtime: str
    values: list[float | None]
    gap: float | None
    gap_interval: list[float] | None
    gap_change_teacher: float | None
    gap_change_interval: list[float] | None


class Subgroups(TypedDict):
    """One task by one way to divide the faces.

    Keys:
        task: Its name.
        by: What divides them: "gender", a column of the corpus, or two crossed, as groups.group_columns names them.
        metric: Key of the task's main metric.
        groups: Groups of at least `minimum` labelled faces.
        rows: One per model that was measured.
        minimum: Faces below which a group says nothing.
        few: The smaller groups.
        left_out: Labelled faces in smaller groups, or in none.
    """

    task: str
    by: str
    metric: str
    groups: list[Group]
    rows: list[Gap]
    minimum: int
    few: list[Group]
    left_out: int


class LayerCost(TypedDict):
    """A layer, and by how much the task gets better when it alone is computed in float."""

    layer: str
    cost: float


class Blame(TypedDict):
    """Layers whose rounding costs a task most, of a row outside its budget.

    Keys:
        model: The row's name.
        runtime: The row's runtime.
        task: The task outside its budget.
        unit: Unit of the costs: "points", or "%" for a relative change.
        layers: The most costly first.
        faces: Faces it was measured on.
    """

    model: str
    runtime: str
    task: str
    unit: str
    layers: list[LayerCost]
    faces: int


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """Rows in the order of a model's life, and the conditions they were measured under.

    Attributes:
        source: The faces, as the user named them.
        samples: How many.
        skipped: Reason to the number of samples left out.
        licence: Terms of the faces.
        research_only: Whether the pictures must stay where they are.
        rows: Teacher, student, fake-quant student, files, devices.
        conditions: Date, machine, versions, commit.
        subgroups: Every task by every way to divide the faces.
        blame: Of the rows outside a budget whose layers could be told apart.
    """

    source: str
    samples: int
    skipped: Mapping[str, int]
    licence: str
    research_only: bool
    rows: Sequence[Row]
    conditions: Mapping[str, Any]
    subgroups: Sequence[Subgroups] = field(default_factory=list)
    blame: Sequence[Blame] = field(default_factory=list)

    @property
    def broken(self) -> list[tuple[Row, str]]:
        """Every row and task outside its budget."""
        return [(row, task) for row in self.rows for task, cell in row.tasks.items() if cell.within_budget is False]

    @property
    def exit_code(self) -> int:
        """1 when a row failed, 3 when one could not be run, else 0."""
        outcomes = {row.outcome for row in self.rows}
        return (
            BudgetError.exit_code if "FAIL" in outcomes else MissingToolError.exit_code if "NOT_RUN" in outcomes else 0
        )

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "pass": self.exit_code == 0, **asdict(self)}


def from_json(plain: Mapping[str, Any], *, where: str) -> Scorecard:
    """A scorecard as `as_json` wrote it; one from before a field existed lacks only what stands in it.

    Raises:
        ModelError: It is not one.
    """
    try:
        if plain["schema"] != SCHEMA:
            raise ValueError(f"schema {plain['schema']!r}")
        names = {item.name for item in fields(Scorecard)} - {"rows", "subgroups", "blame"}
        return Scorecard(
            rows=[_row(row) for row in plain["rows"]],
            subgroups=[_typed({"few": [], **each}, Subgroups) for each in plain.get("subgroups", ())],
            blame=[_typed(each, Blame) for each in plain.get("blame", ())],
            **{name: plain[name] for name in names},
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"not a scorecard of schema {SCHEMA} ({type(error).__name__}: {error})",
            expected="a scorecard.json that edgeface wrote",
            where=where,
            do="Measure it again",
        ) from error


def _row(plain: Mapping[str, Any]) -> Row:
    return Row(**{**plain, "tasks": {task: _cell(task, cell) for task, cell in plain["tasks"].items()}})


def _cell(task: str, plain: Mapping[str, Any]) -> Cell:
    _ = TASKS[task]
    return Cell(
        **{
            **plain,
            "interval": _ends(plain["interval"]),
            "interval_teacher": _ends(plain.get("interval_teacher")),
            "per_point": tuple(plain["per_point"]),
            "curve": tuple(plain["curve"]),
            "confusion": tuple(map(tuple, plain.get("confusion", ()))),
            "calibration": tuple((sure, right, n) for sure, right, n in plain.get("calibration", ())),
        }
    )


def _typed(plain: Mapping[str, Any], form: type[Typed]) -> Typed:
    """A TypedDict whose keys, and those of its own rows, are all there and no others."""
    inner = {"groups": Group, "few": Group, "rows": Gap, "layers": LayerCost}
    for found, wanted in (
        (plain, form),
        *((row, inner[key]) for key in inner.keys() & plain.keys() for row in plain[key]),
    ):
        if found.keys() != wanted.__annotations__.keys():
            raise KeyError(", ".join(sorted(found.keys() ^ wanted.__annotations__.keys())))
    return cast(Typed, plain)


def _ends(plain: Sequence[float] | None) -> Ends | None:
    return None if plain is None else (plain[0], plain[1])


def read_scorecard(path: Path) -> Scorecard:
    """Read scorecard.json.

    Raises:
        ModelError: It is missing, not JSON, or of another form.
    """
    try:
        plain = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot be read ({error})", expected="a scorecard.json", where=str(path), do="Measure it again"
        ) from error
    return from_json(plain, where=str(path))
