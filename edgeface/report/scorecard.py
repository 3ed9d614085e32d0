"""The scorecard: teacher, fp32 student, fake-quant student and every built file, task by task, on the same faces.

It is data first (scorecard.json), then a table; the HTML report reads the same data. Differences are signed changes of
the metric: points for accuracies and percentages, relative percent for errors in other units.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeface.errors import BudgetError, DataError, MissingToolError, ModelError
from edgeface.evaluate import Evaluation, Runner, evaluate, teacher_agreement
from edgeface.metrics import (
    cumulative_curve,
    known,
    lower_is_better,
    main_metric,
    paired_interval,
    point_errors,
    worsening,
)
from edgeface.provenance import commit, cpu, versions
from edgeface.tasks import TASKS, Kind, Task

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgeface.data.pack import Pack

SCHEMA = 1
TEACHER, STUDENT, FAKE_QUANT, FILE = "teacher", "student", "fake-quant", "file"
ROLES = (TEACHER, STUDENT, FAKE_QUANT, FILE)
CURVE_PERCENT = tuple(np.arange(0.0, 25.25, 0.25).tolist())  # thresholds of the cumulative error curves
RESAMPLES = 1000
TOLERANCE = 1e-9  # points; a change equal to its budget is inside it, whatever the last digit of a float says


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model to be scored.

    Attributes:
        role: One of ROLES; deltas refer to the one teacher and the one student.
        name: What the row is called.
        open: Gives its Runner; MissingToolError makes the row NOT_RUN.
        size_bytes: Size of its weights or file on disk; 0 when unknown.
    """

    role: str
    name: str
    open: Callable[[], Runner]
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model on one task.

    Attributes:
        metric: Key of the main metric.
        value: Its value, in the unit of metrics.score.
        n: Labelled samples it was measured on.
        failure_percent: Share of failed faces (landmarks).
        delta_teacher: Change against the teacher, in points or relative percent.
        delta_student: Change against the fp32 student, as above; None also for a relative change of 0.
        interval: 95 % bootstrap interval of `delta_student`, the samples drawn once for both.
        agreement: Measure and value of the agreement with the teacher.
        budget: Allowed worsening against the fp32 student, in points or relative percent.
        within_budget: Verdict; None when there is no budget.
        per_point: Error of each landmark in percent.
        curve: Share of faces with an error up to each of CURVE_PERCENT.
    """

    metric: str
    value: float
    n: int
    failure_percent: float | None = None
    delta_teacher: float | None = None
    delta_student: float | None = None
    interval: tuple[float, float] | None = None
    agreement: Mapping[str, float | int] = field(default_factory=dict)
    budget: float | None = None
    within_budget: bool | None = None
    per_point: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model.

    Attributes:
        role: One of ROLES.
        model: Its name.
        runtime: What ran it.
        precision: In which arithmetic.
        size_bytes: Size on disk; 0 when unknown.
        outcome: "PASS" or "FAIL" against the budgets, "MEASURED" without any, "NOT_RUN" when something could not run.
        reason: Why it failed or did not run.
        tasks: Task name to what was measured.
        absent: Task name to why it was not.
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


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """Rows in the order of a model's life, and the conditions they were measured under.

    Attributes:
        source: The faces, as the user named them.
        samples: How many.
        skipped: Reason to the number of samples left out.
        licence: Terms of the faces.
        research_only: Whether the pictures must stay where they are.
        rows: Teacher, student, fake-quant student, files.
        conditions: Date, machine, versions, commit.
    """

    source: str
    samples: int
    skipped: Mapping[str, int]
    licence: str
    research_only: bool
    rows: Sequence[Row]
    conditions: Mapping[str, Any]

    @property
    def broken(self) -> list[tuple[Row, str]]:
        """Every row and task outside its budget."""
        return [(row, task) for row in self.rows for task, cell in row.tasks.items() if cell.within_budget is False]

    @property
    def exit_code(self) -> int:
        """1 when a budget is broken, 3 when a row could not be run, else 0."""
        if self.broken:
            return BudgetError.exit_code
        return MissingToolError.exit_code if any(row.outcome == "NOT_RUN" for row in self.rows) else 0

    def as_json(self) -> dict[str, Any]:
        plain = asdict(self)
        return {"schema": SCHEMA, "pass": self.exit_code == 0, **plain}


def from_json(plain: Mapping[str, Any], *, where: str) -> Scorecard:
    """A scorecard as `as_json` wrote it.

    Raises:
        ModelError: It is not one.
    """
    try:
        if plain["schema"] != SCHEMA:
            raise ValueError(f"schema {plain['schema']!r}")
        rows = []
        for row in plain["rows"]:
            cells = {}
            for task, cell in row["tasks"].items():
                _ = TASKS[task]
                interval = cell["interval"]
                cells[task] = Cell(
                    **{
                        **cell,
                        "interval": None if interval is None else (interval[0], interval[1]),
                        "per_point": tuple(cell["per_point"]),
                        "curve": tuple(cell["curve"]),
                    }
                )
            rows.append(Row(**{**row, "tasks": cells}))
        fields = ("source", "samples", "skipped", "licence", "research_only", "conditions")
        return Scorecard(rows=rows, **{name: plain[name] for name in fields})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"not a scorecard of schema {SCHEMA} ({type(error).__name__}: {error})",
            expected="a scorecard.json that edgeface wrote",
            where=where,
            do="Measure it again",
        ) from error


def read_scorecard(path: Path) -> Scorecard:
    """Read scorecard.json.

    Raises:
        ModelError: It is missing, not JSON, or of another form.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot be read ({error})", expected="a scorecard.json", where=str(path), do="Measure it again"
        ) from error
    return from_json(plain, where=str(path))


def stage_entries(run: Path) -> list[Entry]:
    """The checkpoints of a run as entries: teacher, fp32 student, fake-quant student, those that are there.

    Raises:
        ModelError: None is there.
    """
    from edgeface.checkpoint import WEIGHTS, load_checkpoint
    from targets.runners import open_model

    entries = []
    for stage, role in (("teacher", TEACHER), ("student", STUDENT), ("qat", FAKE_QUANT)):
        folder = run / stage
        if (folder / "manifest.json").is_file():
            checkpoint = load_checkpoint(folder)
            name = f"{role} {checkpoint.network.backbone}"
            size = (folder / WEIGHTS).stat().st_size
            entries.append(Entry(role=role, name=name, open=partial(open_model, folder), size_bytes=size))
    if not entries:
        raise ModelError(
            "no teacher, student or qat checkpoint",
            expected="a run folder that `edgeface distill` wrote",
            where=str(run),
            do="Name a run folder, such as runs/demo",
        )
    return entries


def bundle_entries(bundle: Path) -> list[Entry]:
    """The files of a bundle as entries, from the finest arithmetic to the coarsest.

    Raises:
        ModelError: It is not a bundle.
    """
    from edgeface.files import read_json
    from targets import artifacts
    from targets.runners import open_model

    path = bundle / "manifest.json"
    try:
        names = sorted(read_json(path)["files"], key=_order)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"no bundle ({type(error).__name__}: {error})",
            expected="a folder that `edgeface build` wrote",
            where=str(path),
            do="Name a bundle, such as out/android",
        ) from error
    return [
        Entry(
            role=FILE,
            name=name,
            open=partial(open_model, bundle / name),
            size_bytes=artifacts.size_bytes(bundle / name),
        )
        for name in names
    ]


def _order(name: str) -> tuple[int, str]:
    """Files from the finest arithmetic to the coarsest."""
    precisions = ("fp32", "fp16", "w8a32", "w8", "p6", "w8a8")
    found = [index for index, precision in enumerate(precisions) if precision in re.split(r"[._-]", name)]
    return (found[0] if found else len(precisions), name)


def measure(
    entries: Sequence[Entry],
    crops: Callable[[Runner], Pack],
    *,
    budget: Mapping[str, float] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    known: MutableMapping[str, Evaluation] | None = None,
) -> Scorecard:
    """Run every model over the same faces.

    Args:
        entries: In the order of a model's life.
        crops: Evaluation crops at a runner's input size, the same faces each time.
        budget: Task name to the allowed worsening of files.
        progress: Called with a row's name, samples done and samples in all.
        known: Evaluations of checkpoints on the same faces by row name: taken from here, and added, so that several
            bundles of one run cost one pass of its teacher and students.

    Raises:
        DataError: The rows were not measured on the same faces.
    """
    rows: list[tuple[Entry, Evaluation | str]] = []
    for entry in entries:
        if known is not None and entry.role != FILE and entry.name in known:
            rows.append((entry, known[entry.name]))
            continue
        try:
            runner = entry.open()
            pack = crops(runner)
            total = len(pack.keys)
            told = None if progress is None else (lambda done, name=entry.name, of=total: progress(name, done, of))
            found = evaluate(runner, pack, model=entry.name, progress=told)
        except MissingToolError as error:
            rows.append((entry, str(error)))
            continue
        rows.append((entry, found))
        if known is not None and entry.role != FILE:
            known[entry.name] = found
    return scorecard(rows, budget=budget)


def scorecard(
    rows: Sequence[tuple[Entry, Evaluation | str]], *, budget: Mapping[str, float] | None = None
) -> Scorecard:
    """Compare evaluations of the same faces.

    Args:
        rows: Each model with its evaluation, or with the reason why there is none.
        budget: Task name to the allowed worsening of files against the fp32 student, in points (relative percent for
            errors in other units).

    Raises:
        DataError: Nothing was run, or not on the same faces.
    """
    done = [evaluation for _, evaluation in rows if isinstance(evaluation, Evaluation)]
    if not done:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in rows if isinstance(reason, str)))
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
    teacher, student = _only(rows, TEACHER), _only(rows, STUDENT)
    return Scorecard(
        source=first.source,
        samples=first.samples,
        skipped={reason: len(keys) for reason, keys in first.skipped.items()},
        licence=first.licence,
        research_only=first.research_only,
        rows=[_row(entry, made, teacher=teacher, student=student, budget=budget or {}) for entry, made in rows],
        conditions={
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "machine": cpu(),
            "versions": versions(),
            "commit": commit(),
        },
    )


def _only(rows: Sequence[tuple[Entry, Evaluation | str]], role: str) -> Evaluation | None:
    found = [evaluation for entry, evaluation in rows if entry.role == role]
    if len(found) > 1:
        raise DataError(f"{len(found)} rows with the role {role!r}", expected="at most one", where="scorecard")
    return found[0] if found and isinstance(found[0], Evaluation) else None


def _row(
    entry: Entry,
    made: Evaluation | str,
    *,
    teacher: Evaluation | None,
    student: Evaluation | None,
    budget: Mapping[str, float],
) -> Row:
    if isinstance(made, str):
        return Row(
            role=entry.role,
            model=entry.name,
            runtime="",
            precision="",
            size_bytes=entry.size_bytes,
            outcome="NOT_RUN",
            reason=made,
            tasks={},
            absent={},
        )
    agreed = teacher_agreement(made, teacher) if teacher is not None and made is not teacher else {}
    cells = {}
    for name, scores in made.tasks.items():
        metric = main_metric(TASKS[name], scores)
        if metric in scores:
            cell = _cell(TASKS[name], made, metric=metric, teacher=teacher, student=student)
            allowed = budget.get(name) if entry.role == FILE else None
            verdict = _verdict(cell, metric, allowed)
            # A relative change of nothing is infinite: judged as that, but no number to write.
            finite = {key: value for key, value in cell.items() if not (isinstance(value, float) and np.isinf(value))}
            cells[name] = Cell(**finite, **verdict, agreement=agreed.get(name, {}))
    outcome, reason = _outcome(made, cells, budget=budget if entry.role == FILE else {}, student=student)
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
    )


def _cell(
    task: Task, made: Evaluation, *, metric: str, teacher: Evaluation | None, student: Evaluation | None
) -> dict[str, Any]:
    name, scores = task.name, made.tasks[task.name]
    value = float(scores[metric])
    cell: dict[str, Any] = {"metric": metric, "value": value, "n": int(scores["n"])}
    if task.kind is Kind.LANDMARKS:
        cell["failure_percent"] = float(scores["failure_percent"])
        rows = known(task, made.labels[name])
        errors = point_errors(made.predictions[name][rows], made.labels[name][rows])
        cell["per_point"] = tuple(errors.mean(0).tolist())
        cell["curve"] = tuple(cumulative_curve(errors.mean(1), np.array(CURVE_PERCENT)).tolist())
    for key, other in (("delta_teacher", teacher), ("delta_student", student if made is not teacher else None)):
        if other is not None and other is not made and metric in other.tasks.get(name, {}):
            cell[key] = change(metric, value, float(other.tasks[name][metric]))
    if "delta_student" in cell and student is not None:
        reference = float(student.tasks[name][metric])
        both = (made.predictions[name], student.predictions[name])
        interval = paired_interval(task, both, labels=made.labels[name], metric=metric, resamples=RESAMPLES)
        ends = (change(metric, reference + end, reference) for end in (interval.low, interval.high))
        low, high = sorted(ends)
        if np.isfinite([low, high]).all():
            cell["interval"] = (low, high)
    return cell


def change(metric: str, value: float, reference: float) -> float:
    """Signed change of a metric, in points or relative percent: below zero is less, better or worse."""
    worse = worsening(metric, value, reference)
    return worse if lower_is_better(metric) else -worse


def _verdict(cell: Mapping[str, Any], metric: str, allowed: float | None) -> dict[str, Any]:
    if allowed is None or "delta_student" not in cell:
        return {}
    worse = cell["delta_student"] if lower_is_better(metric) else -cell["delta_student"]
    return {"budget": allowed, "within_budget": bool(worse <= allowed + TOLERANCE)}


def _outcome(
    made: Evaluation, cells: Mapping[str, Cell], *, budget: Mapping[str, float], student: Evaluation | None
) -> tuple[str, str]:
    if not budget:
        return "MEASURED", ""
    broken = [name for name in budget if name in cells and cells[name].within_budget is False]
    if broken:
        return "FAIL", "; ".join(f"{name} worse by more than {budget[name]:g} {unit(cells[name])}" for name in broken)
    unchecked = [name for name in budget if name not in cells or cells[name].within_budget is None]
    if not unchecked:
        return "PASS", ""
    if student is None:
        return "NOT_RUN", "budgets not checked: no fp32 student to compare with"
    return "NOT_RUN", "; ".join(
        f"budget of {name} not checked: {made.absent.get(name, 'not measured on the fp32 student')}"
        for name in unchecked
    )


# How a metric is called and written: name, factor from metrics.score to what is shown, digits, unit.
_SHOWN: dict[str, tuple[str, float, int, str]] = {
    "nme_percent": ("mean error", 1.0, 2, "%"),
    "failure_percent": ("failures", 1.0, 2, "%"),
    "accuracy": ("accuracy", 100.0, 2, "%"),
    "balanced_accuracy": ("balanced accuracy", 100.0, 2, "%"),
    "macro_f1": ("macro F1", 100.0, 2, "%"),
    "bin_accuracy": ("bin accuracy", 100.0, 2, "%"),
    "bin_accuracy_1_off": ("bin accuracy ±1", 100.0, 2, "%"),
    "mae_years": ("mean error", 1.0, 2, "years"),
    "pearson": ("correlation", 1.0, 3, ""),
    "mae": ("mean error", 1.0, 3, ""),
    "rmse": ("RMSE", 1.0, 3, ""),
    "equal_share": ("same answer as teacher", 100.0, 2, "%"),
    "distance_percent": ("distance to teacher", 1.0, 2, "%"),
    "difference_years": ("difference to teacher", 1.0, 2, "years"),
    "cosine": ("cosine to teacher", 1.0, 3, ""),
}


def title(metric: str) -> str:
    """What a metric is called, with its unit."""
    name, _, _, shown_unit = _SHOWN[metric]
    return f"{name}, {shown_unit}" if shown_unit else name


def scaled(metric: str, value: float) -> float:
    """A value in the unit of `title`: shares become percent."""
    return value * _SHOWN[metric][1]


def shown(metric: str, value: float | None) -> str:
    """A value as tables print it, in the unit of `title`; "-" when there is none."""
    return "-" if value is None else f"{scaled(metric, value):.{_SHOWN[metric][2]}f}"


def unit(cell: Cell) -> str:
    """Unit of a cell's deltas and budget."""
    return "%" if cell.metric in ("mae_years", "mae", "rmse") else "points"


def signed(value: float | None) -> str:
    """A delta as tables print it; "-" when there is none."""
    if value is None:
        return "-"
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


@dataclass(frozen=True, kw_only=True)
class Line:
    """One printed line of a task: the same quantity for every model.

    Attributes:
        title: What it is.
        texts: One per row of the scorecard.
        verdicts: One per row: True and False colour the text, None leaves it plain.
        main: Whether it is the task's main metric.
    """

    title: str
    texts: tuple[str, ...]
    verdicts: tuple[bool | None, ...]
    main: bool = False


def lines(card: Scorecard) -> dict[str, list[Line]]:
    """What the terminal's table and the report print, task by task."""
    names = [name for name in TASKS if any(name in row.tasks for row in card.rows)]
    printed: dict[str, list[Line]] = {}
    plain: tuple[bool | None, ...] = (None,) * len(card.rows)
    for name in names:
        cells = [row.tasks.get(name) for row in card.rows]
        some = next(cell for cell in cells if cell is not None)
        values = tuple("-" if cell is None else shown(cell.metric, cell.value) for cell in cells)
        rows = [Line(title=title(some.metric), texts=values, verdicts=plain, main=True)]
        if some.failure_percent is not None:
            failures = tuple("-" if cell is None else shown("failure_percent", cell.failure_percent) for cell in cells)
            rows.append(Line(title=title("failure_percent"), texts=failures, verdicts=plain))
        for key, words in (("delta_teacher", "Δ teacher"), ("delta_student", "Δ student")):
            deltas = [None if cell is None else getattr(cell, key) for cell in cells]
            judged = tuple(None if cell is None or key == "delta_teacher" else cell.within_budget for cell in cells)
            budget = next((cell.budget for cell in cells if cell and cell.budget is not None), None)
            if any(delta is not None for delta in deltas) or any(verdict is not None for verdict in judged):
                words += f", {unit(some)}" + (f" (budget {budget:g})" if budget is not None and judged != plain else "")
                marks = {True: " ✓", False: " ✗", None: ""}
                texts = tuple(f"{signed(d)}{marks[v]}" for d, v in zip(deltas, judged, strict=True))
                rows.append(Line(title=words, texts=texts, verdicts=judged))
        measure_key = next((key for cell in cells if cell for key in cell.agreement if key != "n"), "")
        if measure_key:
            agreed = tuple(
                "-" if cell is None else shown(measure_key, cell.agreement.get(measure_key)) for cell in cells
            )
            words = "correlation with teacher" if measure_key == "pearson" else title(measure_key)
            rows.append(Line(title=words, texts=agreed, verdicts=plain))
        printed[name] = rows
    return printed


def heading(row: Row) -> tuple[str, tuple[str, ...]]:
    """A row's name, and what stands below it: precision, runtime, size; a precision in the name is not repeated."""
    size = f"{row.size_bytes / 1e6:.2f} MB" if row.size_bytes else ""
    precision = "" if row.precision in re.split(r"[. ]", row.model) else row.precision
    return row.model, tuple(text for text in (precision, row.runtime, size) if text)


def render(card: Scorecard) -> RenderableType:
    """The scorecard as a rich table: a column per model in the order of its life, a block per task."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title_text = f"Scorecard on {card.source}, {card.samples} faces"
    table = Table(
        title=title_text,
        title_justify="left",
        box=box.HORIZONTALS,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("task", no_wrap=True)
    for row in card.rows:
        name, how = heading(row)
        broken = re.sub(r"\.|(?= )", ".\n" if "." in name else "\n", name, count=1).replace("\n ", "\n")
        words = Text.assemble((broken, "bold"), *((f"\n{text.replace('-', '-' + chr(10))}", "dim") for text in how))
        table.add_column(words, justify="right", overflow="fold")
    for name, printed in lines(card).items():
        for index, line in enumerate(printed):
            label = Text.assemble((name, "bold"), f"  {line.title}") if line.main else Text(f"  {line.title}", "dim")
            cells = [
                Text(text, {True: "green", False: "bold red", None: "" if line.main else "dim"}[verdict])
                for text, verdict in zip(line.texts, line.verdicts, strict=True)
            ]
            table.add_row(label, *cells, end_section=index == len(printed) - 1)
    outcomes = [Text(row.outcome, _OUTCOME_STYLES[row.outcome]) for row in card.rows]
    table.add_row(Text("outcome", "bold"), *outcomes)
    notes = [Text(f"{row.model}: {row.reason}", _OUTCOME_STYLES[row.outcome]) for row in card.rows if row.reason]
    notes += [Text(f"skipped {count}: {reason}", "dim") for reason, count in card.skipped.items()]
    return Group(table, *notes)


_OUTCOME_STYLES = {"PASS": "green", "FAIL": "bold red", "MEASURED": "dim", "NOT_RUN": "yellow"}
