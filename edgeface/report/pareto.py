"""Accuracy against cost over many students: who is on the Pareto front, as a chart and as a table of values."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeface.metrics import lower_is_better
from edgeface.report import table
from edgeface.report.plots import (
    SERIES,
    TEXT,
    WIDTH,
    Plot,
    _figure,
    _legend_rows,
    _short,
    _style,
    light,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

DONE, REFUSED, FAILED = "DONE", "REFUSED", "FAILED"
COST_TITLES = {
    "latency_ms": "milliseconds a face",
    "size_bytes": "bytes of the file",
    "macs": "multiply-accumulates a face",
}
_MARKERS = {"w8a8": "o", "fp32": "s", "fp16": "^", "w8a32": "D"}
_PANEL, _GAP, _FOOT, _KEY_ROW = 150, 34, 42, 16
_KEY_LETTERS = 22  # of a name that half the width holds


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One file of a sweep, or a student that gave none.

    Attributes:
        student: Its backbone.
        width: Factor on its channel counts.
        input_px: Side of its input.
        precision: Of the file.
        state: DONE, REFUSED or FAILED.
        reason: Why there is no file; "" where there is one.
        file: Where it lies.
        metrics: Task to its metrics, as edgeface.metrics.score gives them.
        costs: Name of a cost to its value; None where it is not known.
        front: Task to whether no other file is better at it and as cheap, or as good and cheaper.
        on_front: The same over all objectives at once.
        seconds: Spent on the student this file was built from, training included.
    """

    student: str
    width: float
    input_px: int
    precision: str
    state: str
    reason: str = ""
    file: str = ""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    costs: Mapping[str, float | None] = field(default_factory=dict)
    front: Mapping[str, bool] = field(default_factory=dict)
    on_front: bool = False
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """ "edge_s ×0.5 48 px"."""
        return f"{self.student} ×{self.width:g} {self.input_px} px"


def non_dominated(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows no other row beats: none is at most as large everywhere and smaller somewhere.

    Args:
        costs: (N, M), smaller is better. A row with a value that is not finite is neither on the front nor beats any.

    Returns:
        (N,); of equal rows all or none.

    Source:
        Kung, Luccio, Preparata, On finding the maxima of a set of vectors, JACM 22(4), 1975: in lexicographic order a
        row can only be beaten by an earlier one. Takes as many passes as there are rows on the front.
    """
    found = np.zeros(len(costs), bool)
    left = np.flatnonzero(np.isfinite(costs).all(axis=1))
    left = left[np.lexsort(costs[left].T[::-1])]
    while left.size:
        first = costs[left[0]]
        found[left[(costs[left] == first).all(axis=1)]] = True
        left = left[(costs[left] < first).any(axis=1)]
    return found


def objective(candidate: Candidate, task: str, metric: str) -> float:
    """A task's metric as something to make small, 1 less an accuracy or correlation; NaN where there is none."""
    value = candidate.metrics.get(task, {}).get(metric)
    if value is None:
        return float("nan")
    return value if lower_is_better(metric) else 1.0 - value


def with_fronts(candidates: Sequence[Candidate], *, tasks: Mapping[str, str], cost: str) -> list[Candidate]:
    """Candidates marked where they stand on a front.

    Args:
        candidates: Of one sweep.
        tasks: Task to its main metric.
        cost: One of COST_TITLES.
    """
    from dataclasses import replace

    if not candidates:
        return []
    rows = [[objective(each, task, metric) for task, metric in tasks.items()] for each in candidates]
    errors = np.array(rows, np.float64)
    spent = np.array([[_or_nan(each.costs.get(cost))] for each in candidates], np.float64)
    whole = non_dominated(np.hstack([errors, spent]))
    single = [non_dominated(np.hstack([errors[:, place : place + 1], spent])) for place in range(len(tasks))]
    return [
        replace(
            each,
            on_front=bool(whole[row]),
            front={task: bool(marks[row]) for task, marks in zip(tasks, single, strict=True)},
        )
        for row, each in enumerate(candidates)
    ]


def pareto_chart(
    candidates: Sequence[Candidate],
    *,
    tasks: Mapping[str, str],
    cost: str,
    teacher: Mapping[str, Mapping[str, float]] | None = None,
    ringed: Collection[str] = (),
) -> Plot | None:
    """A panel per task over one logarithmic cost axis; the front of each panel is a numbered line, the rest pale.

    Args:
        candidates: From `with_fronts`.
        tasks: Task to its main metric.
        cost: One of COST_TITLES.
        teacher: Task to its metrics of the teacher, drawn as a dashed line.
        ringed: Places of the files that a ring stands around.

    Returns:
        None when no candidate has both a metric and a cost.
    """
    drawn = [each for each in candidates if each.state == DONE and (each.costs.get(cost) or 0) > 0]
    tasks = {
        task: metric for task, metric in tasks.items() if any(metric in each.metrics.get(task, {}) for each in drawn)
    }
    if not drawn or not tasks:
        return None
    students = list(dict.fromkeys(each.student for each in drawn))
    precisions = list(dict.fromkeys(each.precision for each in drawn))
    colours = {student: SERIES[place % len(SERIES)] for place, student in enumerate(students)}
    title = f"Accuracy against {COST_TITLES[cost]}"
    with _style():
        names = [*students, *(precisions if len(precisions) > 1 else ()), *(("teacher",) if teacher else ())]
        head = 17 * len(_legend_rows(names)) + 4
        numbers = _numbers(drawn, cost)
        height = head + len(tasks) * (_PANEL + _GAP) + _FOOT - 10 + _KEY_ROW * _key_rows(numbers)
        figure = _figure(height)
        for place, (task, metric) in enumerate(tasks.items()):
            top = head + _GAP - 8 + place * (_PANEL + _GAP)
            axes = figure.add_axes((52 / WIDTH, 1 - (top + _PANEL) / height, (WIDTH - 72) / WIDTH, _PANEL / height))
            _panel(
                axes,
                drawn,
                task=task,
                metric=metric,
                cost=cost,
                colours=colours,
                numbers=numbers,
                teacher=teacher or {},
                ringed=ringed,
            )
            if place < len(tasks) - 1:
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel(COST_TITLES[cost])
        _key(figure, numbers)
        _legend(figure, names, _handles(students, precisions, colours, teacher=bool(teacher)))
    best = [
        f"{task}: "
        + ", ".join(each.name for each in sorted(drawn, key=lambda one: one.costs[cost] or 0) if each.front[task])
        for task in tasks
    ]
    return Plot(name="pareto", title=title, words=f"{title}. On the front of {'; of '.join(best)}", figure=figure)


def _panel(
    axes: Axes,
    drawn: Sequence[Candidate],
    *,
    task: str,
    metric: str,
    cost: str,
    colours: Mapping[str, str],
    numbers: Mapping[str, int],
    teacher: Mapping[str, Mapping[str, float]],
    ringed: Collection[str],
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    shown = sorted((each for each in drawn if metric in each.metrics.get(task, {})), key=lambda one: _cost(one, cost))
    lower = lower_is_better(metric)
    ends = [each for each in shown if each.front[task]]
    if ends:
        x = [_cost(each, cost) for each in ends]
        y = [table.scaled(metric, each.metrics[task][metric]) for each in ends]
        # A step: between two files of the front nothing better than the cheaper one is known.
        axes.step(x, y, where="post", color=light("soft"), linewidth=1.2, zorder=1)
    for each in shown:
        value = table.scaled(metric, each.metrics[task][metric])
        on_front = each.front[task]
        axes.plot(
            _cost(each, cost),
            value,
            marker=_MARKERS.get(each.precision, "o"),
            markersize=7 if on_front else 5,
            color=light(colours[each.student]),
            alpha=1.0 if on_front else 0.45,
            markeredgewidth=0,
            linestyle="",
            clip_on=False,
            zorder=3 if on_front else 2,
            gid=f"tip {each.name} {each.precision}: {value:.2f} at {_short(_cost(each, cost))}",
        )
        if each.file in ringed:
            axes.plot(
                _cost(each, cost),
                value,
                marker="o",
                markersize=13,
                color="none",
                markeredgecolor=light("ink"),
                markeredgewidth=1.2,
                linestyle="",
                clip_on=False,
                zorder=5,
            )
        if on_front:  # above and to the left of the front there is nothing that a number could cover
            axes.annotate(
                str(numbers[_called(each)]),
                (_cost(each, cost), value),
                xytext=(-4, 4),
                textcoords="offset points",
                ha="right",
                va="bottom",
                weight="bold",
                size=TEXT,
                zorder=4,
            )
    if metric in teacher.get(task, {}):
        axes.axhline(table.scaled(metric, teacher[task][metric]), color=light("teacher"), linewidth=1.2, linestyle="--")
    costs = [_cost(each, cost) for each in drawn]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) * 0.8, max(costs) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if max(costs) < 200 * min(costs) else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    axes.xaxis.set_minor_locator(LogLocator(10, subs=()))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(True, axis="x")
    axes.margins(y=0.2)
    if lower:
        axes.invert_yaxis()
    words = f"{table.title(metric)}{' (axis reversed)' if lower else ''}"
    for text, x_place, side, colour, weight in (
        (task, 0, "left", "ink", "bold"),
        (words, 1, "right", "soft", "normal"),
    ):
        axes.annotate(
            text,
            (x_place, 1),
            xytext=(0, 5),
            xycoords="axes fraction",
            textcoords="offset points",
            ha=side,
            color=light(colour),
            weight=weight,
        )


def _numbers(drawn: Sequence[Candidate], cost: str) -> dict[str, int]:
    """Name of every file on a front of some task, from the cheapest, to the number it has in the chart."""
    ordered = sorted((each for each in drawn if any(each.front.values())), key=lambda one: _cost(one, cost))
    return {_called(each): number for number, each in enumerate(ordered, start=1)}


def _called(candidate: Candidate) -> str:
    return f"{candidate.name} {candidate.precision}"


def _key_rows(numbers: Mapping[str, int]) -> int:
    """Rows of the key: half as many as there are names, where two stand side by side."""
    short = all(len(name) <= _KEY_LETTERS for name in numbers)
    return -(-len(numbers) // 2) if short else len(numbers)


def _key(figure: Any, numbers: Mapping[str, int]) -> None:
    """Below the chart, what its numbers stand for."""
    height = figure.get_figheight() * 72
    rows = _key_rows(numbers)
    for place, (name, number) in enumerate(numbers.items()):
        x, y = 12 + (place // rows) * WIDTH / 2, _KEY_ROW * (rows - place % rows) - 4
        figure.text(x / WIDTH, y / height, f"{number}", ha="left", va="center", weight="bold", size=TEXT)
        figure.text((x + 19) / WIDTH, y / height, name, ha="left", va="center", size=TEXT)


def _handles(
    students: Sequence[str], precisions: Sequence[str], colours: Mapping[str, str], *, teacher: bool
) -> list[Artist]:
    from matplotlib.lines import Line2D

    found: list[Artist] = [Line2D([], [], marker="o", linestyle="", color=light(colours[each])) for each in students]
    if len(precisions) > 1:
        found += [
            Line2D([], [], marker=_MARKERS.get(each, "o"), linestyle="", color=light("soft"), markerfacecolor="none")
            for each in precisions
        ]
    if teacher:
        found.append(Line2D([], [], color=light("teacher"), linestyle="--"))
    return found


def _legend(figure: Any, names: Sequence[str], handles: Sequence[Artist]) -> None:
    from edgeface.report.plots import _legend_above

    _legend_above(figure, names, handles)


def csv_text(candidates: Sequence[Candidate], *, tasks: Mapping[str, str]) -> str:
    """All candidates as CSV, every metric of every task in a column of its own; shares in 0 to 1."""
    columns = list(
        dict.fromkeys(
            f"{task}.{metric}" for each in candidates for task, found in each.metrics.items() for metric in found
        )
    )
    costs = list(COST_TITLES)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["student", "width", "input_px", "precision", "state", "front"]
    writer.writerow([*head, *(f"front.{task}" for task in tasks), *costs, *columns, "seconds", "file", "reason"])
    for each in candidates:
        values = [each.metrics.get(task, {}).get(metric, "") for task, _, metric in (c.partition(".") for c in columns)]
        writer.writerow(
            [
                each.student,
                f"{each.width:g}",
                each.input_px,
                each.precision,
                each.state,
                int(each.on_front),
                *(int(each.front.get(task, False)) for task in tasks),
                *("" if each.costs.get(name) is None else f"{each.costs[name]:.6g}" for name in costs),
                *(value if isinstance(value, str | int) else f"{value:.6g}" for value in values),
                f"{each.seconds:.1f}",
                each.file,
                each.reason,
            ]
        )
    return stream.getvalue()


COST_HEADS = {"latency_ms": "ms", "size_bytes": "KiB", "macs": "MMAC"}


def shown_cost(key: str, value: float | None) -> str:
    """A cost in the unit of COST_HEADS; "-" when it is not known."""
    if value is None:
        return "-"
    return {"latency_ms": f"{value:.3f}", "size_bytes": f"{value / 1024:.0f}", "macs": f"{value / 1e6:.1f}"}[key]


def _cost(candidate: Candidate, cost: str) -> float:
    return float(candidate.costs[cost] or 0.0)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _thousands(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
