"""One self-contained report.html: scorecards, curves, examples and conditions, readable without a network.

Pictures stand in it only when they are synthetic: real faces never enter a page that may be committed or mailed.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ModelError
from edgeface.evaluate import Evaluation, in_words
from edgeface.metrics import known
from edgeface.report.chart import Series, line_chart
from edgeface.report.scorecard import (
    CURVE_PERCENT,
    FILE,
    STUDENT,
    TEACHER,
    Row,
    Scorecard,
    heading,
    lines,
    scaled,
    shown,
    signed,
    title,
    unit,
)
from edgeface.tasks import TASKS, Kind

if TYPE_CHECKING:
    from edgeface.data.pack import Pack

SYNTHETIC = "synthetic"  # the reader whose pictures may be shown
_KINDS = {"PASS": "good", "FAIL": "bad", "NOT_RUN": "wait", "MEASURED": "soft"}
_FIVE_POINTS = ("left eye", "right eye", "nose tip", "left mouth corner", "right mouth corner")


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


def example_faces(evaluation: Evaluation, pack: Pack, *, count: int = 10) -> list[Face]:
    """The first faces of a source with what a model answered.

    Returns:
        Nothing unless the source is synthetic.
    """
    if pack.name != SYNTHETIC or pack.research_only:
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
    faces: Sequence[Face] = (),
    faces_by: str = "",
    recipe: str = "",
) -> str:
    """The report as HTML.

    Args:
        name: Of the run or bundle.
        cards: Scorecards, the one that decides first.
        summary: One line below the name.
        curves: Stage to its curve.csv.
        faces: Examples; without any, the page says so where the faces are real.
        faces_by: Name of the model whose answers the examples show.
        recipe: The resolved recipe as TOML.

    Raises:
        ModelError: A curve is damaged.
    """
    import jinja2

    source = files("edgeface.report").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    real = [card.source for card in cards if card.source.partition(":")[0] != SYNTHETIC]
    return environment.from_string(source).render(
        name=name,
        summary=summary,
        verdicts=[_verdict(card) for card in cards],
        tiles=_tiles(cards[0]) if cards else [],
        cards=[_card(card) for card in cards],
        training=_training(curves or {}),
        faces=[_drawn(face) for face in faces],
        faces_by=faces_by,
        no_faces=f"No pictures: {', '.join(real)} holds real faces, which never stand in a report." if real else "",
        conditions=_conditions(cards),
        recipe=recipe,
    )


def _verdict(card: Scorecard) -> dict[str, str]:
    judged = [row for row in card.rows if row.outcome in ("PASS", "FAIL")]
    not_run = [row for row in card.rows if row.outcome == "NOT_RUN"]
    if card.broken:
        names = ", ".join(dict.fromkeys(row.model for row, _ in card.broken))
        return {"kind": "bad", "text": f"✗ FAIL on {card.source}: {names} broke a budget"}
    if not_run:
        names = ", ".join(row.model for row in not_run)
        return {"kind": "wait", "text": f"NOT_RUN on {card.source}: {names}"}
    if judged:
        return {"kind": "good", "text": f"✓ PASS on {card.source}: every built file is within its budgets"}
    return {"kind": "plain", "text": f"Measured on {card.source}; no budget applies"}


def _shipped(card: Scorecard) -> Row | None:
    """The row the tiles speak of: the int8 file, else the last file, else the last model that was run."""
    run = [row for row in card.rows if row.tasks and row.role != TEACHER]
    for wanted in (
        [row for row in run if row.role == FILE and row.precision == "w8a8"],
        [row for row in run if row.role == FILE],
        run,
    ):
        if wanted:
            return wanted[-1]
    return None


def _tiles(card: Scorecard) -> list[dict[str, str]]:
    row = _shipped(card)
    if row is None:
        return []
    by_role = {other.role: other for other in card.rows if other.role in (TEACHER, STUDENT)}
    tiles = []
    if row.size_bytes:
        text = row.model
        teacher = by_role.get(TEACHER)
        if teacher and teacher.size_bytes:
            text += f", {teacher.size_bytes / row.size_bytes:.0f}× smaller than the teacher"
        tiles.append({"value": f"{row.size_bytes / 1e6:.2f} MB", "text": text})
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


def _card(card: Scorecard) -> dict[str, Any]:
    kinds = {True: "good", False: "bad", None: ""}
    heads = []
    for row in card.rows:
        model, how = heading(row)
        parts = re.split(r"(?<=[._])", model)  # where a narrow column may break it
        heads.append({"parts": parts, "how": how, "outcome": row.outcome, "kind": _KINDS[row.outcome]})
    tasks = [
        {
            "name": name,
            "lines": [
                {
                    "title": line.title,
                    "main": line.main,
                    "cells": [
                        {"text": text, "kind": kinds[verdict]}
                        for text, verdict in zip(line.texts, line.verdicts, strict=True)
                    ],
                }
                for line in printed
            ],
        }
        for name, printed in lines(card).items()
    ]
    notes = [{"kind": _KINDS[row.outcome], "text": f"{row.model}: {row.reason}"} for row in card.rows if row.reason]
    absent = {task: why for row in card.rows for task, why in row.absent.items()}
    notes += [{"kind": "soft", "text": f"{task}: not scored, {why}."} for task, why in absent.items()]
    notes += [{"kind": "soft", "text": f"Skipped {count}: {reason}."} for reason, count in card.skipped.items()]
    landmarks = [name for name in lines(card) if TASKS[name].kind is Kind.LANDMARKS]
    return {
        "source": card.source,
        "samples": f"{card.samples:,}",
        "heads": heads,
        "tasks": tasks,
        "notes": notes,
        "charts": [_cumulative(card, name) for name in landmarks],
        "points": [_points(card, name) for name in landmarks if TASKS[name].points <= len(_FIVE_POINTS)],
    }


def _safe(svg: str) -> Any:
    """Markup made here, its texts escaped where they were put in."""
    from markupsafe import Markup

    return Markup(svg)


def _cumulative(card: Scorecard, name: str) -> dict[str, Any]:
    series = [
        Series(name=row.model, x=CURVE_PERCENT, y=[100.0 * share for share in row.tasks[name].curve])
        for row in card.rows
        if name in row.tasks
    ]
    svg = line_chart(
        series,
        title=f"{name}: share of faces up to each mean error",
        x_title="mean error of a face, % of the distance between the eyes",
        y_title="faces, %",
        y_range=(0.0, 100.0),
        mark_x=10.0,
    )
    return {"title": f"{name}: share of faces up to each error (failure beyond 10 %)", "svg": _safe(svg)}


def _points(card: Scorecard, name: str) -> dict[str, Any]:
    rows = [
        {"name": row.model, "texts": [f"{error:.2f}" for error in row.tasks[name].per_point]}
        for row in card.rows
        if name in row.tasks
    ]
    return {"task": name, "titles": _FIVE_POINTS[: TASKS[name].points], "rows": rows}


def _training(curves: Mapping[str, str]) -> list[dict[str, Any]]:
    """A chart per task metric, a line per stage."""
    lines_of: dict[str, list[Series]] = {}
    for stage, text in curves.items():
        for column, line in _read_curve(stage, text).items():
            lines_of.setdefault(column, []).append(line)
    charts = []
    order = {name: place for place, name in enumerate(TASKS)}
    for column in sorted(lines_of, key=lambda column: order.get(column.partition(".")[0], -1)):
        series = lines_of[column]
        task, _, metric = column.partition(".")
        words = title(metric) if metric else task
        svg = line_chart(series, title=f"{task}: {words}", x_title="epoch", y_title=words)
        charts.append({"title": f"{task}: {words}" if metric else task, "svg": _safe(svg)})
    return charts


def _read_curve(stage: str, text: str) -> dict[str, Series]:
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
        found: dict[str, Series] = {}
        for column in rows[0] if rows else ():
            task, _, metric = column.partition(".")
            if column != "loss" and not (task in TASKS and metric):
                continue
            at = [row for row in rows if row[column]]
            y = [float(row[column]) for row in at]
            if metric:
                y = [scaled(metric, value) for value in y]
            found[column] = Series(name=stage, x=[float(row["epoch"]) for row in at], y=y)
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
    Image.fromarray(face.picture).save(stream, "PNG")
    picture = base64.b64encode(stream.getvalue()).decode()
    shapes = [f'<image href="data:image/png;base64,{picture}" width="100" height="100"/>']
    for x, y in 100.0 * face.labelled:
        # A dark rim below each mark keeps it visible on light skin and dark alike.
        for colour, width in (("#000000", 1.6), ("#e69f00", 0.9)):
            shapes.append(
                f'<circle cx="{x:.2f}" cy="{y:.2f}" r="2.4" fill="none" stroke="{colour}" stroke-width="{width}"/>'
            )
    for x, y in 100.0 * face.predicted:
        cross = f"M{x - 1.7:.2f} {y - 1.7:.2f}l3.4 3.4M{x + 1.7:.2f} {y - 1.7:.2f}l-3.4 3.4"
        for colour, width in (("#000000", 1.6), ("#56b4e9", 0.9)):
            shapes.append(f'<path d="{cross}" stroke="{colour}" stroke-width="{width}" stroke-linecap="round"/>')
    svg = f'<svg viewBox="0 0 100 100" role="img" aria-label="a synthetic face">{"".join(shapes)}</svg>'
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
