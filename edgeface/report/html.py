"""One self-contained report.html: scorecards, charts, examples and provenance, readable without a network.

Pictures stand in it only when they are synthetic, or when its user named a folder of pictures for it: faces of a corpus
never enter a page that may be committed or mailed.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ModelError
from edgeface.evaluate import Evaluation, in_words
from edgeface.metrics import FAILURE_PERCENT, known, lower_is_better
from edgeface.report import plots
from edgeface.report.pareto import COST_HEADS, DONE, FAILED, pareto_chart, shown_cost
from edgeface.report.plots import COLOURS, SERIES, Group, Line, Plot, Point
from edgeface.report.scorecard import (
    BUILT,
    CURVE_PERCENT,
    FILE,
    STUDENT,
    TEACHER,
    Cell,
    Gap,
    Row,
    Scorecard,
    Subgroups,
)
from edgeface.report.swept import Swept
from edgeface.report.table import heading, scaled, shown, signed, title, too_few, unit, with_interval
from edgeface.tasks import TASKS, Kind

if TYPE_CHECKING:
    from edgeface.data.pack import Pack
    from quantize.layers import LayerError

SYNTHETIC = "synthetic"
SHOWN = (SYNTHETIC, "folder")  # readers whose pictures may be shown: drawn ones, and the user's own
TIMED = (TEACHER, STUDENT, FILE)  # roles with times of this machine
OPEN_CHARTS = 6  # of a section; the others wait behind a line to click on
WORST_LAYERS = 3
_KINDS = {"PASS": "good", "FAIL": "bad", "NOT_RUN": "wait", "MEASURED": "soft"}
_FIVE_POINTS = ("left eye", "right eye", "nose tip", "left mouth corner", "right mouth corner")
# What an answer about people can mean, and what it cannot.
MEANING = {
    "gender": "Gender is a guess at what an annotator wrote down from a picture. It is not a person’s gender, and it "
    "is wrong more often for some groups than for others: measure it on the people your app serves.",
    "age": "Age is apparent age, with an error of years. It cannot establish that anyone is an adult.",
    "beauty": "Beauty repeats the average opinion of the raters of one corpus, their place and their time. It says "
    "nothing of a person, and must not decide anything about one.",
    "expression": "Expression is the look of a face, not what anybody feels.",
}
_SAME_MEANING = {"beauty_score": "beauty", "expression8": "expression"}


@dataclass(frozen=True, kw_only=True)
class Face:
    """One example.

    Attributes:
        picture: (px, px, 3) RGB.
        labelled: (K, 2) landmarks of the label in crop sides; K = 0 without one.
        predicted: As `labelled`, of the model.
        answers: Task, answer in words, whether the label says otherwise.
    """

    picture: NDArray[np.uint8]
    labelled: NDArray[np.float64]
    predicted: NDArray[np.float64]
    answers: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Faces with the answers of one model.

    Attributes:
        faces: In the order of their source.
        model: Its name.
        source: Where they come from.
    """

    faces: Sequence[Face]
    model: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a run's models are.

    Attributes:
        median_ms: (model, runtime) as in the scorecard to milliseconds a face.
        conditions: In words.
        not_timed: Model to why it was not timed.
    """

    median_ms: Mapping[tuple[str, str], float]
    conditions: str
    not_timed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a checkpoint or bundle comes from.

    Attributes:
        name: What it is.
        facts: What its manifest says, label and text.
        files: File name to sha256.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    files: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished report.

    Attributes:
        html: The page.
        plots: Its charts, in the order of the page.
    """

    html: str
    plots: Sequence[Plot]


def example_faces(evaluation: Evaluation, pack: Pack, *, count: int = 10) -> list[Face]:
    """The first faces of a source with what a model answered.

    Args:
        evaluation: Of the model, on the pack's faces.
        pack: Pictures at any size, of the same crops that the model was given.
        count: How many at most.

    Returns:
        Nothing unless the pictures may be shown.
    """
    if pack.name not in SHOWN or pack.research_only:
        return []
    return [_face(evaluation, pack, row) for row in range(min(count, evaluation.samples))]


def _face(evaluation: Evaluation, pack: Pack, row: int) -> Face:
    none = np.zeros((0, 2))
    labelled, predicted = none, none
    answers = []
    for output in evaluation.spec.outputs:
        task = TASKS[output.task]
        answer = evaluation.predictions[task.name][row]
        label = evaluation.labels[task.name][row : row + 1] if task.name in evaluation.labels else None
        labelled_here = label is not None and bool(known(task, label)[0])
        if task.kind is Kind.LANDMARKS:
            predicted = np.concatenate([predicted, answer])
            if label is not None and labelled_here:
                labelled = np.concatenate([labelled, label[0]])
            continue
        raw = evaluation.outputs[output.name][row : row + 1]
        text, wrong = in_words(output, raw, answer), False
        if label is not None and labelled_here and task.kind is Kind.CLASSES:
            wrong = bool(answer != label[0])
        answers.append((task.name, text, wrong))
    return Face(picture=np.asarray(pack.images[row]), labelled=labelled, predicted=predicted, answers=tuple(answers))


def page(
    *,
    name: str,
    cards: Sequence[Scorecard],
    summary: str = "",
    curves: Mapping[str, str] | None = None,
    speed: Speed | str = "",
    layers: Sequence[LayerError] | str = (),
    examples: Examples | None = None,
    origins: Sequence[Origin] = (),
    recipe: str = "",
    sweep: Swept | None = None,
    own: Collection[str] = (),
) -> Report:
    """The report as HTML, and its charts.

    Args:
        name: Of the run or bundle.
        cards: Scorecards, the one that decides first; the last one, of test faces where there are any, is drawn.
        summary: One line below the name.
        curves: Stage to its curve.csv.
        speed: Times, or why there are none.
        layers: Quantization error of each layer, in the order of the network, or why it is not known.
        examples: Faces; without any, the page says so where the faces are real.
        origins: Checkpoints and bundles.
        recipe: The resolved recipe as TOML.
        sweep: What this run is a trial of, or what the page is of.
        own: Places in the sweep of the files that are this run's.

    Raises:
        ModelError: A curve is damaged.
    """
    import jinja2

    source = files("edgeface.report").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    drawn: list[Plot] = []

    def charts(*found: Plot | None) -> list[dict[str, Any]]:
        kept = [plot for plot in found if plot is not None]
        drawn.extend(kept)
        return [{"title": plot.title, "svg": _safe(plot.svg())} for plot in kept]

    detail = cards[-1] if cards else None
    ship = shipped(detail) if detail else None
    tasks = [task for task in TASKS if any(task in row.tasks for card in cards for row in card.rows)]
    landmarks = [task for task in tasks if TASKS[task].kind is Kind.LANDMARKS]
    times = speed if isinstance(speed, Speed) else None
    sections = {
        "cost": _cost(detail, tasks, times),
        "sweep": [] if sweep is None else [_pareto(sweep, own)],
        "errors": [_error_curves(detail, task) for task in landmarks] if detail else [],
        "confusion": [_confusion(ship, task) for task in tasks] if ship else [],
        "calibration": [_reliability(detail, ship, task) for task in tasks] if detail else [],
        "groups": _groups(detail, ship),
        "layers": [] if isinstance(layers, str) else [_layers(layers)],
        "training": _training(curves or {}),
    }
    real = [card.source for card in cards if card.source.partition(":")[0] not in SHOWN]
    context = {
        "name": name,
        "summary": summary,
        "light": {variable: value for variable, (value, _) in COLOURS.items()},
        "dark": {variable: value for variable, (_, value) in COLOURS.items()},
        "verdicts": [_verdict(card) for card in cards] or ([] if sweep is None else [_standing(sweep)]),
        "tiles": _tiles(detail, ship, times) if detail and ship else [],
        "detail": detail.source if detail else "",
        "ship": ship.model if ship else "",
        "cards": [_card(card, times) for card in cards],
        "sweep": {} if sweep is None else _sweep(sweep, own),
        "charts": {key: charts(*found) for key, found in sections.items()},
        "speed": {
            "why": "" if times else str(speed),
            "conditions": times.conditions if times else "",
            "notes": sorted(times.not_timed.items()) if times else [],
        },
        "points": [_points(detail, task) for task in landmarks if detail and TASKS[task].points <= len(_FIVE_POINTS)],
        "no_layers": layers if isinstance(layers, str) else "",
        "recalibrated": _recalibrated(detail, ship, tasks) if detail else [],
        "gaps": _gaps(detail, ship) if detail else {},
        "blame": [{"source": card.source, **entry} for card in cards for entry in _blame(card)],
        "faces": [_drawn(face) for face in examples.faces] if examples else [],
        "faces_by": examples.model if examples else "",
        "faces_from": examples.source if examples else "",
        "faces_own": bool(examples) and examples is not None and examples.source.partition(":")[0] != SYNTHETIC,
        "no_faces": f"No pictures: {', '.join(real)} holds real faces, which never stand in a report." if real else "",
        "meaning": [
            MEANING[key] for key in dict.fromkeys(_SAME_MEANING.get(task, task) for task in tasks) if key in MEANING
        ],
        "conditions": _conditions(cards) or ([] if sweep is None else _swept_faces(sweep)),
        "origins": origins,
        "recipe": recipe,
        "open_charts": OPEN_CHARTS,
    }
    context["contents"] = _contents(context)
    return Report(html=environment.from_string(source).render(context), plots=drawn)


def sweep_page(sweep: Swept) -> Report:
    """The report of a sweep, from what it kept."""
    return page(name=sweep.name, summary=sweep.summary, cards=[], sweep=sweep, recipe=sweep.recipe)


def _contents(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Id and title of the sections that have something in them."""
    found, held = context["charts"], context
    rows = [
        ("scorecard", "Scorecard", held["cards"]),
        ("cost", "Speed and size", found["cost"] or (held["cards"] and held["speed"]["why"])),
        ("sweep", "Sweep", held["sweep"]),
        ("errors", "Landmarks", found["errors"]),
        ("confusion", "Confusion", found["confusion"]),
        ("calibration", "Calibration", found["calibration"] or held["recalibrated"]),
        ("groups", "Subgroups", found["groups"] or held["gaps"]),
        ("layers", "Layers", found["layers"] or held["blame"] or held["no_layers"]),
        ("examples", "Examples", held["faces"] or held["no_faces"]),
        ("training", "Training", found["training"]),
        ("meaning", "What answers mean", held["meaning"]),
        ("provenance", "Provenance", held["conditions"] or held["origins"] or held["recipe"]),
    ]
    return [(key, words) for key, words, there in rows if there]


def _verdict(card: Scorecard) -> dict[str, str]:
    by_outcome = {
        outcome: list(dict.fromkeys(row.model for row in card.rows if row.outcome == outcome)) for outcome in _KINDS
    }
    if by_outcome["FAIL"]:
        broken = {row.model for row, _ in card.broken}
        budgets = [name for name in by_outcome["FAIL"] if name in broken]
        others = [name for name in by_outcome["FAIL"] if name not in broken]
        said = [f"{', '.join(budgets)} broke a budget"] if budgets else []
        said += [f"the answers of {', '.join(others)} cannot be believed"] if others else []
        return {"kind": "bad", "text": f"✗ FAIL on {card.source}: {'; '.join(said)}"}
    if by_outcome["NOT_RUN"]:
        return {"kind": "wait", "text": f"NOT_RUN on {card.source}: {', '.join(by_outcome['NOT_RUN'])}"}
    if by_outcome["PASS"]:
        return {"kind": "good", "text": f"✓ PASS on {card.source}: every built file is within its budgets"}
    return {"kind": "plain", "text": f"Measured on {card.source}; no budget applies"}


def shipped(card: Scorecard) -> Row | None:
    """The row the page speaks of: the first int8 file, else the last file, else the last model that was run."""
    run = [row for row in card.rows if row.tasks and row.role != TEACHER]
    built = [row for row in run if row.role == FILE] or [row for row in run if row.role in BUILT]
    int8 = [row for row in built if row.precision == "w8a8"]
    return int8[0] if int8 else built[-1] if built else run[-1] if run else None


def _tiles(card: Scorecard, row: Row, speed: Speed | None) -> list[dict[str, str]]:
    by_role = {other.role: other for other in card.rows if other.role in (TEACHER, STUDENT)}
    tiles = []
    if row.size_bytes:
        teacher = by_role.get(TEACHER)
        text = "on disk"
        if teacher and teacher.size_bytes:
            text += f", {teacher.size_bytes / row.size_bytes:.0f}× smaller than the teacher"
        tiles.append({"value": f"{row.size_bytes / 1e6:.2f} MB", "text": text})
    if speed and (row.model, row.runtime) in speed.median_ms:
        ms = speed.median_ms[row.model, row.runtime]
        text = f"a face on one core, {row.runtime}"
        fp32 = [
            speed.median_ms[other.model, other.runtime]
            for other in card.rows
            if other.role == FILE
            and other.precision == "fp32"
            and other.runtime == row.runtime
            and (other.model, other.runtime) in speed.median_ms
        ]
        if fp32 and row.precision != "fp32":
            text += f"; fp32 takes {fp32[0] / ms:.1f} times as long"
        tiles.append({"value": f"{ms:.3g} ms", "text": text})
    for name, cell in row.tasks.items():
        if TASKS[name].kind is Kind.LANDMARKS:
            others = [
                f"{role} {shown(cell.metric, other.tasks[name].value)}"
                for role, other in by_role.items()
                if name in other.tasks and other is not row
            ]
            text = f"{name} mean error" + (f" ({', '.join(others)})" if others else "")
            tiles.append({"value": f"{shown(cell.metric, cell.value)} %", "text": text})
            break
    shares = [float(cell.agreement["equal_share"]) for cell in row.tasks.values() if "equal_share" in cell.agreement]
    if shares:
        counted = f"{len(shares)} tasks" if len(shares) > 1 else "one task"
        text = f"same answer as the teacher, mean over {counted}"
        tiles.append({"value": f"{100 * sum(shares) / len(shares):.1f} %", "text": text})
    changed = [(name, cell) for name, cell in row.tasks.items() if cell.delta_student is not None]
    if changed:
        name, cell = max(changed, key=lambda item: abs(item[1].delta_student or 0.0))
        text = f"largest change against the fp32 student: {name}"
        tiles.append({"value": f"{signed(cell.delta_student)} {unit(cell)}", "text": text})
    return tiles


def _card(card: Scorecard, speed: Speed | None) -> dict[str, Any]:
    names = [name for name in TASKS if any(name in row.tasks or name in row.unlabelled for row in card.rows)]
    rows = []
    for row in card.rows:
        model, how = heading(row)
        ms = speed.median_ms.get((row.model, row.runtime)) if speed and row.role in TIMED else None
        # What a row is stands in the names of checkpoints and goes without saying for files.
        role = (row.role,) if row.role not in (*model.split(), FILE) else ()
        cells = [
            _cell(row.tasks[name])
            if name in row.tasks
            else _no_cell(row.unlabelled.get(name), row.absent.get(name, ""))
            for name in names
        ]
        rows.append(
            {
                "parts": re.split(r"(?<=[._ ])", model),  # where a narrow column may break it
                "how": (*role, *how, *(() if ms is None else (f"{ms:.3g} ms a face",))),
                "outcome": row.outcome,
                "kind": _KINDS[row.outcome],
                "run": bool(row.tasks or row.unlabelled),
                "cells": cells,
                "reason": row.reason,
            }
        )
    absent = {task: why for row in card.rows for task, why in row.absent.items()}
    notes = [{"kind": "soft", "text": f"{task}: not scored, {why}."} for task, why in absent.items()]
    notes += [{"kind": "soft", "text": f"Skipped {count}: {reason}."} for reason, count in card.skipped.items()]
    return {
        "source": card.source,
        "samples": f"{card.samples:,}",
        "heads": [_head(card, name) for name in names],
        "rows": rows,
        "budgets": any(cell.budget is not None for row in card.rows for cell in row.tasks.values()),
        "notes": notes,
    }


def _head(card: Scorecard, name: str) -> dict[str, str]:
    cells = [row.tasks[name] for row in card.rows if name in row.tasks]
    if not cells:
        return {"name": name, "title": "agreement with the teacher", "n": "no labels", "budget": ""}
    judged = next((cell for cell in cells if cell.budget is not None), None)
    budget = "" if judged is None else f"budget {judged.budget:g} {unit(judged)}"
    if judged is not None and judged.budget_vs == TEACHER:
        budget += " to the teacher"
    return {
        "name": name,
        "title": title(cells[0].metric),
        "n": f"{max(cell.n for cell in cells):,} faces",
        "budget": budget,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    printed = []
    if cell.failure_percent is not None:
        text = f"{shown('failure_percent', cell.failure_percent)} %"
        printed.append({"label": "failures", "text": text, "real": False})
    for label, delta, ends in (
        ("teacher", cell.delta_teacher, cell.interval_teacher),
        ("student", cell.delta_student, cell.interval),
    ):
        if delta is not None:
            real = ends is not None and not ends[0] <= 0 <= ends[1] and signed(delta) != "0.00"
            printed.append({"label": label, "text": with_interval(delta, ends), "real": real})
    printed += _agreed(cell.agreement)
    kind = {True: "good", False: "bad", None: ""}[cell.within_budget]
    mark = {True: "✓", False: "✗", None: ""}[cell.within_budget]
    return {"value": shown(cell.metric, cell.value), "kind": kind, "mark": mark, "lines": printed, "why": ""}


def _no_cell(agreement: Mapping[str, float | int] | None, absent: str) -> dict[str, Any]:
    """Of a task without labels: its agreement with the teacher stands alone."""
    return {"value": "", "kind": "soft", "lines": _agreed(agreement or {}), "mark": "", "why": absent}


def _agreed(agreement: Mapping[str, float | int]) -> list[dict[str, Any]]:
    return [
        {"label": _AGREED[key][0], "text": shown(key, float(value)) + _AGREED[key][1], "real": False}
        for key, value in agreement.items()
        if key in _AGREED
    ][:1]


# The measures of agreement with the teacher: their short name in a cell, and the unit behind the value.
_AGREED = {
    "equal_share": ("same", " %"),
    "distance_percent": ("distance", " %"),
    "difference_years": ("apart", " years"),
    "pearson": ("correl.", ""),
    "cosine": ("cosine", ""),
}


def _safe(markup: str) -> Any:
    """Markup made here, its texts escaped where they were put in."""
    from markupsafe import Markup

    return Markup(markup)


def _cost(card: Scorecard | None, tasks: Sequence[str], speed: Speed | None) -> list[Plot | None]:
    """What a task costs in time and in bytes."""
    if card is None:
        return []
    rows = [row for row in card.rows if row.tasks]
    panels = []
    for task in tasks:
        metric = next((row.tasks[task].metric for row in rows if task in row.tasks), "")
        if metric:
            panels.append((task, title(metric), lower_is_better(metric)))

    def point(row: Row, cost: float) -> Point:
        values = {task: scaled(cell.metric, cell.value) for task, cell in row.tasks.items()}
        return Point(model=row.model, runtime=row.runtime, precision=row.precision, cost=cost, values=values)

    timed = [point(row, ms) for row in rows if speed and (ms := speed.median_ms.get((row.model, row.runtime)))]
    sized = [point(row, row.size_bytes / 1e6) for row in rows if row.size_bytes]
    return [
        plots.cost_chart(
            timed, panels, name="latency", title="Accuracy against latency", x_title="milliseconds a face, one thread"
        ),
        plots.cost_chart(sized, panels, name="size", title="Accuracy against size", x_title="megabytes on disk"),
    ]


def _pareto(sweep: Swept, own: Collection[str]) -> Plot | None:
    return pareto_chart(sweep.candidates, tasks=sweep.tasks, cost=sweep.cost, teacher=sweep.teacher, ringed=own)


def _sweep(sweep: Swept, own: Collection[str]) -> dict[str, Any]:
    """Every file of a sweep, from the cheapest, and what gave none."""
    done = sorted(sweep.done, key=lambda each: _or_inf(each.costs.get(sweep.cost)))
    return {
        "name": sweep.name,
        "heads": [(task, title(metric), sweep.source.get(task, "")) for task, metric in sweep.tasks.items()],
        "costs": list(COST_HEADS.values()),
        "teacher": None
        if sweep.teacher is None
        else [shown(metric, sweep.teacher.get(task, {}).get(metric)) for task, metric in sweep.tasks.items()],
        "rows": [
            {
                "name": each.name,
                "precision": each.precision,
                "front": each.on_front,
                "own": each.file in own,
                "cells": [
                    (shown(metric, each.metrics.get(task, {}).get(metric)), each.front[task])
                    for task, metric in sweep.tasks.items()
                ],
                "costs": [shown_cost(key, each.costs.get(key)) for key in COST_HEADS],
            }
            for each in done
        ],
        "others": [(each.name, each.state, each.reason) for each in sweep.candidates if each.state != DONE],
        "own": any(each.file in own for each in done),
        "on_front": sum(each.on_front for each in done),
        "unfinished": _unfinished(sweep),
        "noisy": sweep.noisy,
        "conditions": sweep.conditions,
    }


def _unfinished(sweep: Swept) -> str:
    """What is still to come of a sweep, in words; "" once it is finished."""
    if not sweep.running and not sweep.left:
        return ""
    return f"Not finished: trials at work {len(sweep.running)}, not begun {sweep.left}"


def _standing(sweep: Swept) -> dict[str, str]:
    """How a sweep stands, for the head of its page."""
    if failed := list(dict.fromkeys(each.name for each in sweep.candidates if each.state == FAILED)):
        return {"kind": "bad", "text": f"✗ FAILED: {', '.join(failed)}"}
    if unfinished := _unfinished(sweep):
        return {"kind": "wait", "text": unfinished}
    sizes = {(each.student, each.width, each.input_px) for each in sweep.done}
    words = f"{len(sizes)} student{'s' if len(sizes) != 1 else ''}"
    others = len(sweep.candidates) - len(sweep.done)
    return {"kind": "plain", "text": f"Finished: {words}" + (f", {others} refused" if others else "")}


def _swept_faces(sweep: Swept) -> list[tuple[str, str]]:
    return [("Faces", source) for source in dict.fromkeys(sweep.source.values())]


def _or_inf(value: float | None) -> float:
    return float("inf") if value is None else value


def _error_curves(card: Scorecard, task: str) -> Plot | None:
    seen: set[str] = set()
    curves = []
    for row in card.rows:
        if task in row.tasks:
            name = f"{row.model} ({row.runtime})" if row.model in seen else row.model
            curves.append((row.role, name, row.tasks[task].curve))
            seen.add(row.model)
    return plots.error_curves(curves, CURVE_PERCENT, task=task, failure=FAILURE_PERCENT)


def _confusion(row: Row, task: str) -> Plot | None:
    cell = row.tasks.get(task)
    if cell is None or not cell.confusion:
        return None
    classes = TASKS[task].classes
    if len(classes) != len(cell.confusion):
        classes = tuple(str(index) for index in range(len(cell.confusion)))
    return plots.confusion(cell.confusion, task=task, classes=classes, model=row.model, name=f"confusion-{task}")


def _compared(card: Scorecard, ship: Row | None) -> list[Row]:
    """Teacher, fp32 student and the file that ships: what charts of few lines compare."""
    wanted = [row for row in card.rows if row.role in (TEACHER, STUDENT) and row.tasks]
    return [*wanted, ship] if ship is not None and ship not in wanted else wanted


def _called(row: Row) -> str:
    """A name short enough for a legend: of teacher and student there is one each."""
    return row.role if row.role in (TEACHER, STUDENT) else row.model


def _reliability(card: Scorecard, ship: Row | None, task: str) -> Plot | None:
    models = [
        (row.role, _called(row), cell.calibration, cell.ece)
        for row in _compared(card, ship)
        if (cell := row.tasks.get(task)) is not None
    ]
    return plots.reliability(models, task=task, name=f"calibration-{task}")


def _recalibrated(card: Scorecard, ship: Row | None, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """What another threshold would give, task by task; first the teacher, the student and the file that ships."""
    found = []
    for task in tasks:
        for row in card.rows:
            cell = row.tasks.get(task)
            if cell is not None and cell.recalibrated:
                held = cell.recalibrated
                gain = scaled(cell.metric, held["value"]) - scaled(cell.metric, cell.value)
                found.append(
                    {
                        "task": task,
                        "model": row.model,
                        "runtime": row.runtime,
                        "metric": title(cell.metric),
                        "threshold": f"{held['threshold']:.3f}",
                        "before": shown(cell.metric, cell.value),
                        "after": shown(cell.metric, held["value"]),
                        "gain": signed(gain),
                        "n": f"{int(held['n']):,}",
                        "main": row in _compared(card, ship),
                    }
                )
    return found


def _subgroup_rows(entry: Subgroups, card: Scorecard, ship: Row | None) -> list[tuple[str, Gap]]:
    """Role and row of the models that are compared."""
    wanted = {(row.model, row.runtime): row.role for row in _compared(card, ship)}
    return [
        (wanted[row["model"], row["runtime"]], row) for row in entry["rows"] if (row["model"], row["runtime"]) in wanted
    ]


def _groups(card: Scorecard | None, ship: Row | None) -> list[Plot | None]:
    """A chart for each task and way of grouping, the clearest gaps first."""
    if card is None:
        return []
    found = []
    for entry in _by_clearness(card, ship):
        if entry["by"] == entry["task"]:
            continue  # the confusion of that task says it already
        metric = entry["metric"]
        models = []
        for role, row in _subgroup_rows(entry, card, ship):
            values = [None if value is None else scaled(metric, value) for value in row["values"]]
            spans = [
                wilson(value, group["n"]) if metric == "accuracy" and value is not None else None
                for value, group in zip(row["values"], entry["groups"], strict=True)
            ]
            called = role if role in (TEACHER, STUDENT) else row["model"]
            models.append(Group(role=role, model=called, values=values, spans=spans))
        stem = re.sub(r"[^a-z0-9]+", "-", f"{entry['task']}-by-{entry['by']}".lower())
        found.append(
            plots.group_chart(
                [(group["name"], group["n"]) for group in entry["groups"]],
                models,
                title=f"{entry['task']} by {entry['by']}",
                metric=title(metric),
                name=f"groups-{stem}",
            )
        )
    return found


def wilson(share: float, n: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share of n, in percent.

    Source:
        Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    """
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return 100 * (middle - half), 100 * (middle + half)


def _by_clearness(card: Scorecard, ship: Row | None) -> list[Subgroups]:
    """The clearest gaps first; of two divisions into the same faces, such as one by a column that never varies, one."""
    kept: dict[str, Subgroups] = {}
    for entry in card.subgroups:
        same = [entry["task"], [group["n"] for group in entry["groups"]], [row["values"] for row in entry["rows"]]]
        kept.setdefault(str(same), entry)
    return sorted(kept.values(), key=lambda entry: -_clear(entry, ship))


def _clear(entry: Subgroups, ship: Row | None) -> float:
    """How far a gap stands out from its own uncertainty: gaps of years and of shares compare so."""
    rows = [row for row in entry["rows"] if ship and (row["model"], row["runtime"]) == (ship.model, ship.runtime)]
    for row in rows or entry["rows"]:
        if row["gap"] is not None and row["gap_interval"] is not None:
            return float(row["gap"] / max(row["gap_interval"][1] - row["gap_interval"][0], 1e-9))
    return 0.0


def _gaps(card: Scorecard, ship: Row | None) -> dict[str, Any]:
    """The widest difference between groups, of each task, grouping and compared model."""
    if not card.subgroups:
        return {}
    models = [row.model for row in _compared(card, ship)]
    rows: list[dict[str, Any]] = []
    for entry in _by_clearness(card, ship):
        texts = {}
        for _, row in _subgroup_rows(entry, card, ship):
            if row["gap"] is None:
                continue
            span, change, metric = row["gap_interval"], row["gap_change_teacher"], entry["metric"]
            ends = "" if span is None else f" [{shown(metric, span[0])}, {shown(metric, span[1])}]"
            moved = "" if change is None else signed(scaled(metric, change))
            if moved and row["gap_change_interval"] is not None:
                low, high = row["gap_change_interval"]
                moved += f" [{signed(scaled(metric, low))}, {signed(scaled(metric, high))}]"
            texts[row["model"]] = (shown(metric, row["gap"]) + ends, moved)
        cells = [texts.get(model, ("–", "")) for model in models]
        asked = {"task": entry["task"], "by": entry["by"], "metric": title(entry["metric"]), "few": too_few(entry)}
        rows.append({**asked, "cells": cells})
    return {"models": models, "rows": rows, "minimum": card.subgroups[0]["minimum"]}


def _blame(card: Scorecard) -> list[dict[str, Any]]:
    return [
        {
            "model": entry["model"],
            "runtime": entry["runtime"],
            "task": entry["task"],
            "layers": [(layer["layer"], f"{layer['cost']:+.2f} {entry['unit']}") for layer in entry["layers"]],
        }
        for entry in card.blame
    ]


def _layers(layers: Sequence[LayerError]) -> Plot | None:
    """Layers with weights; of the others the noise is that of the layers they come from."""
    bars = [(error.layer, error.sqnr_db) for error in layers if error.macs and np.isfinite(error.sqnr_db)]
    return plots.bar_chart(
        bars,
        title="Quantization error of each layer",
        x_title="signal over quantization noise, dB",
        name="layers",
        marked=[layer for layer, _ in sorted(bars, key=lambda bar: bar[1])[:WORST_LAYERS]],
    )


def _points(card: Scorecard, task: str) -> dict[str, Any]:
    rows = [
        {"name": row.model, "runtime": row.runtime, "texts": [f"{error:.2f}" for error in row.tasks[task].per_point]}
        for row in card.rows
        if task in row.tasks
    ]
    return {"task": task, "titles": _FIVE_POINTS[: TASKS[task].points], "rows": rows}


_STAGE_COLOURS = {"teacher": ("teacher", "--"), "student": ("blue", "-"), "qat": ("vermilion", "-")}


def _training(curves: Mapping[str, str]) -> list[Plot | None]:
    """A chart per task metric, a line per stage; int8 training goes on where the student's ended."""
    lines_of: dict[str, list[Line]] = {}
    read = {stage: _read_curve(stage, text) for stage, text in curves.items()}
    end = max((line.x[-1] for line in read.get("student", {}).values()), default=0.0)
    for stage, found in read.items():
        for column, line in found.items():
            if stage == "qat":
                line = replace(line, name="int8 training", x=[end + epoch for epoch in line.x])
            lines_of.setdefault(column, []).append(line)
    order = {name: place for place, name in enumerate(TASKS)}
    plots_of = []
    for column in sorted(lines_of, key=lambda column: order.get(column.partition(".")[0], -1)):
        task, _, metric = column.partition(".")
        if metric in _STEERING:
            continue
        words = title(metric) if metric else task
        plots_of.append(
            plots.line_chart(
                lines_of[column],
                name=f"training-{column.replace('.', '-')}",
                title=f"{task}: {words}" if metric else task,
                x_title="epoch",
            )
        )
    return plots_of + [chart for stage, found in read.items() for chart in _steering(stage, found)]


# What balancers and early stopping add to a training curve, a column for each task; "" is not drawn.
_STEERING = {"weight": "weights of the tasks", "criterion": "stopping criterion of the tasks", "loss": "", "active": ""}


def _steering(stage: str, found: Mapping[str, Line]) -> list[Plot | None]:
    """How a stage's tasks were balanced and stopped, a line per task."""
    charts = []
    for metric, words in _STEERING.items():
        columns = [column for column in found if column.partition(".")[2] == metric]
        if not words or not columns:
            continue
        lines_of = [
            replace(
                found[column],
                name=column.partition(".")[0],
                colour=SERIES[place % len(SERIES)],
                dash=plots.DASHES[place // len(SERIES) % len(plots.DASHES)],
            )
            for place, column in enumerate(columns)
        ]
        title_words = f"{stage}: {words}"
        charts.append(plots.line_chart(lines_of, name=f"{stage}-{metric}", title=title_words, x_title="epoch"))
    return charts


def _read_curve(stage: str, text: str) -> dict[str, Line]:
    colour, dash = _STAGE_COLOURS.get(stage, (SERIES[2], "-"))
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
        found: dict[str, Line] = {}
        for column in rows[0] if rows else ():
            task, _, metric = column.partition(".")
            if column != "loss" and not (task in TASKS and metric):
                continue
            at = [row for row in rows if row[column]]
            y = [float(row[column]) for row in at]
            if metric and metric not in _STEERING:
                y = [scaled(metric, value) for value in y]
            if at:
                x = [float(row["epoch"]) for row in at]
                found[column] = Line(name=stage, x=x, y=y, colour=colour, dash=dash)
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ModelError(
            f"a damaged training curve ({type(error).__name__}: {error})",
            expected="a curve.csv that edgeface wrote",
            where=f"stage {stage!r}",
            do="Restore the run's files",
        ) from error
    return found


def _drawn(face: Face) -> dict[str, Any]:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(face.picture)).save(stream, "JPEG", quality=90)
    picture = base64.b64encode(stream.getvalue()).decode()
    shapes = [f'<image href="data:image/jpeg;base64,{picture}" width="100" height="100"/>']
    many = max(len(face.labelled), len(face.predicted)) > len(_FIVE_POINTS)
    radius, arm, wide = (0.9, 0.7, 0.5) if many else (2.4, 1.7, 0.9)
    for x, y in 100.0 * face.labelled:
        # A dark rim below each mark keeps it visible on light skin and dark alike.
        for colour, width in (("#000000", wide * 1.8), ("#e69f00", wide)):
            shapes.append(
                f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius}" fill="none" stroke="{colour}" '
                f'stroke-width="{width:.2f}"/>'
            )
    for x, y in 100.0 * face.predicted:
        cross = f"M{x - arm:.2f} {y - arm:.2f}l{2 * arm} {2 * arm}M{x + arm:.2f} {y - arm:.2f}l{-2 * arm} {2 * arm}"
        for colour, width in (("#000000", wide * 1.8), ("#56b4e9", wide)):
            shapes.append(f'<path d="{cross}" stroke="{colour}" stroke-width="{width:.2f}" stroke-linecap="round"/>')
    svg = f'<svg viewBox="0 0 100 100" role="img" aria-label="a face with its landmarks">{"".join(shapes)}</svg>'
    answers = [{"task": task, "text": text, "wrong": wrong} for task, text, wrong in face.answers]
    return {"svg": _safe(svg), "answers": answers}


def _conditions(cards: Sequence[Scorecard]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for card in cards:
        rows.append(("Faces", f"{card.source}, {card.samples:,}, {card.licence}"))
        if card.research_only:
            rows.append(("Terms", f"{card.source} is for research only"))
    if cards:
        seen = cards[0].conditions
        machine = seen.get("machine", {})
        model = machine.get("model", "") if isinstance(machine, Mapping) else str(machine)
        cores = machine.get("cores", "") if isinstance(machine, Mapping) else ""
        flags = ", ".join(machine.get("flags", ())) if isinstance(machine, Mapping) else ""
        rows.append(("Measured", str(seen.get("date", ""))))
        rows.append(("Machine", f"{model}, {cores} cores" + (f" ({flags})" if flags else "")))
        rows.append(("Versions", ", ".join(f"{key} {value}" for key, value in seen.get("versions", {}).items())))
        if seen.get("commit"):
            rows.append(("Commit", str(seen["commit"])))
    return rows
