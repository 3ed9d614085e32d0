"""Every chart of a report, drawn once by matplotlib: as SVG in the page's own colours, and as PNG.

Figures are as wide as a phone, so that their text keeps its size there. A value that has no colour of its own takes the
colour of its role: the teacher is grey and dashed throughout, the fp32 student blue, the file that ships vermilion.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

# Name to light and dark value; figures are drawn in the light ones, the page puts variables in their place. Hues are
# those of Okabe and Ito, "Color Universal Design", 2008, told apart under every common colour blindness, darkened or
# lightened until each stands out from its background by 3:1 (WCAG 2.1, 1.4.11). No two light values are equal.
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f27", "#e7e9ee"),
    "soft": ("#586170", "#a6aebb"),
    "line": ("#dfe3e9", "#333a45"),
    "back": ("#ffffff", "#14171c"),
    "teacher": ("#6b7280", "#9aa3b2"),
    "blue": ("#0072b2", "#56b4e9"),
    "vermilion": ("#cf5a00", "#ff8f52"),
    "green": ("#00875f", "#3ecfa3"),
    "purple": ("#a4508b", "#e394cb"),
    "ochre": ("#946200", "#e6b84c"),
    "sky": ("#2f8fc9", "#a5d8f7"),
}
SERIES = ("blue", "vermilion", "green", "purple", "ochre", "sky")
DASHES = ("-", "-", (0, (6, 2)), (0, (2, 2)), (0, (7, 2, 2, 2)), (0, (1, 2)))
WIDTH = 358  # CSS pixels: what a phone of 390 px leaves between the page's margins
TEXT = 11
_LEGEND_ROW = 17
_LETTER = 6.4  # pixels a letter of TEXT takes at most, in the widest of the usual fonts
_BOLD_LETTER = 7.6  # pixels a letter of a title takes on average
PNG_DPI = 180
RARE = 0.01  # share of the faces below which a bin of a reliability diagram is left out


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A finished chart.

    Attributes:
        name: Stem of its file; also keeps the ids inside its SVG apart from those of others.
        title: What stands above it.
        words: What it shows, for those who cannot see it.
        figure: As matplotlib holds it.
    """

    name: str
    title: str
    words: str
    figure: Figure

    def svg(self) -> str:
        """An <svg> element for a page that defines a CSS variable --NAME for each of COLOURS.

        The same data give the same bytes.
        """
        stream = io.StringIO()
        with _style():
            self.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        return _inline(stream.getvalue(), name=self.name, words=self.words)

    def png(self) -> bytes:
        """The chart on white, its title above it."""
        stream = io.BytesIO()
        with _style():
            height = self.figure.get_figheight() * 72
            # matplotlib's own wrapping leaves room for lines that it then does not draw.
            title = textwrap.fill(self.title, int((WIDTH - 24) / _BOLD_LETTER))
            head = self.figure.text(
                12 / WIDTH, 1 + 6 / height, title, ha="left", va="bottom", weight="bold", size=TEXT + 1
            )
            self.figure.savefig(
                stream, format="png", dpi=PNG_DPI, facecolor=light("back"), bbox_inches="tight", metadata={}
            )
            head.remove()
        return stream.getvalue()


def light(name: str) -> str:
    """The value of a colour in figures."""
    return COLOURS[name][0]


def write_pngs(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Write each plot as NAME.png, and return where they lie.

    Raises:
        OutputError: The folder cannot be written.
    """
    from edgeface.files import write_bytes

    paths = [folder / f"{plot.name}.png" for plot in plots]
    for plot, path in zip(plots, paths, strict=True):
        write_bytes(path, plot.png())
    return paths


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        name: Its label.
        x: Positions, ascending.
        y: Values; those that are not finite are left out.
        colour: One of COLOURS.
        dash: In matplotlib's words.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dash: str | tuple[int, tuple[int, ...]] = "-"


def line_chart(lines: Sequence[Line], *, name: str, title: str, x_title: str) -> Plot | None:
    """Lines, their names above them; None when there is no finite value.

    Args:
        lines: From left to right in the legend.
        name: As Plot.name.
        title: As Plot.title; says what y is, with its unit.
        x_title: What x is, with its unit.
    """
    drawn = [line for line in lines if np.isfinite(np.asarray(line.y, float)).any()]
    if not drawn:
        return None
    said = []
    with _style():
        names = [line.name for line in drawn]
        figure, axes = _canvas(210, left=40, legend=names)
        handles: list[Artist] = []
        for line in drawn:
            x, y = np.asarray(line.x, float), np.asarray(line.y, float)
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            marker = "o" if len(x) <= 30 else ""
            handles += axes.plot(x, y, color=light(line.colour), linestyle=line.dash, marker=marker, markersize=3.2)
            said.append(f"{line.name} ends at {y[-1]:.4g}")
        axes.set_xlim(left=min(0.0, *(min(line.x) for line in drawn)))
        axes.set_xlabel(x_title)
        _legend_above(figure, names, handles)
    return Plot(name=name, title=title, words=f"{title}: {', '.join(said)}", figure=figure)


def error_curves(
    curves: Sequence[tuple[str, str, Sequence[float]]], thresholds: Sequence[float], *, task: str, failure: float
) -> Plot | None:
    """Cumulative landmark error: share of faces up to each error. Lines that cannot be told apart are drawn once.

    Args:
        curves: Role, name and shares in 0 to 1 at each threshold, of each model.
        thresholds: Errors in percent of the distance between the eyes.
        task: The landmarks.
        failure: Error beyond which a face counts as failed.
    """
    groups = merged(curves, most=len(SERIES) + 1)
    if not groups:
        return None
    title = f"{task}: faces up to each error"
    labels = [names[0][1] + (f" and {len(names) - 1} more" if len(names) > 1 else "") for names, _ in groups]
    with _style():
        figure, axes = _canvas(250, legend=labels)
        handles: list[Artist] = []
        free = iter(zip(SERIES, DASHES, strict=True))
        said = []
        at = min(range(len(thresholds)), key=lambda index: abs(thresholds[index] - failure))
        for names, shares in groups:
            teacher = names[0][0] == "teacher"
            colour, dash = ("teacher", "--") if teacher else next(free)
            percent = [100 * share for share in shares]
            handles += axes.plot(thresholds, percent, color=light(colour), linestyle=dash, zorder=3 if teacher else 2)
            said.append(f"{names[0][1]} {100 * shares[at]:.1f} %")
        axes.axvline(failure, color=light("soft"), linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate("failure →", (failure, 4), xytext=(4, 0), textcoords="offset points", color=light("soft"))
        axes.set_xlim(0, max(thresholds))
        axes.set_ylim(0, 100)
        _titles(axes, "mean error of a face, % of the distance between the eyes", "faces, %")
        _legend_above(figure, labels, handles)
    words = f"{title}; up to {failure:g} %: {', '.join(said)}"
    return Plot(name=f"errors-{task}", title=title, words=words, figure=figure)


def merged(
    curves: Sequence[tuple[str, str, Sequence[float]]], *, most: int
) -> list[tuple[list[tuple[str, str]], Sequence[float]]]:
    """Curves that differ by no more than half a point become one; further apart, until at most `most` are left."""
    tolerance = 0.005
    while True:
        groups: list[tuple[list[tuple[str, str]], Sequence[float]]] = []
        for role, name, shares in curves:
            if not len(shares):
                continue
            for names, kept in groups:
                # The teacher is what others are compared with and keeps a line of its own.
                same = names[0][0] != "teacher" and np.abs(np.subtract(shares, kept)).max() <= tolerance
                if same:
                    names.append((role, name))
                    break
            else:
                groups.append(([(role, name)], shares))
        if len(groups) <= most:
            return groups
        tolerance *= 2


def confusion(
    counts: Sequence[Sequence[int]], *, task: str, classes: Sequence[str], model: str, name: str
) -> Plot | None:
    """True classes down, predicted classes across; each cell in percent of its row. None without any face."""
    table = np.asarray(counts, float)
    if table.size == 0 or table.sum() == 0:
        return None
    classes = [text.replace("_", " ") for text in classes]
    size = len(classes)
    few = size <= 3
    longest = _LETTER * max(map(len, classes))
    across = (WIDTH - longest - 40) / size
    turned = longest + 6 > across
    foot = 20 + (0.6 * longest + 8 if turned else 16)
    tall = 52 if few else 30
    title = f"{task}, {model}"
    rows = table.sum(1, keepdims=True)
    share = np.divide(table, rows, out=np.zeros_like(table), where=rows > 0)
    with _style():
        figure, axes = _canvas(size * tall + foot + 8, left=longest + 30, right=10, top=8, bottom=foot)
        for y in range(size):
            for x in range(size):
                # Opacity, not a colour scale, so that ink stays legible on it in light and dark alike.
                axes.add_patch(
                    _rectangle(
                        (x - 0.48, y - 0.46),
                        0.96,
                        0.92,
                        light("blue" if x == y else "vermilion"),
                        0.04 + 0.4 * share[y, x],
                    )
                )
                text = f"{100 * share[y, x]:.{1 if few else 0}f} %" if few else f"{100 * share[y, x]:.0f}"
                main = axes.text(
                    x, y - (0.14 if few else 0), text if rows[y] else "–", ha="center", va="center", weight="bold"
                )
                if table[y, x] == 0:
                    main.set(color=light("soft"), weight="normal")
                if few:
                    axes.text(x, y + 0.2, f"{table[y, x]:,.0f}", ha="center", va="center")
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks(range(size), classes, rotation=40 if turned else 0, ha="right" if turned else "center")
        axes.set_yticks(range(size), classes)
        if turned:
            axes.tick_params(axis="x", pad=1)
        _place(figure, "predicted" if few else "predicted, % of the true class", x=None, y=4)
        _place(figure, "true", x=8, y=None, axes=axes)
    right = ", ".join(f"{label} {100 * share[i, i]:.0f} %" for i, label in enumerate(classes) if rows[i])
    return Plot(name=name, title=title, words=f"Confusion of {title}; right: {right}", figure=figure)


def reliability(
    models: Sequence[tuple[str, str, Sequence[Sequence[float]], float | None]], *, task: str, name: str
) -> Plot | None:
    """Accuracy against confidence: what lies under the diagonal is surer than it is right.

    Args:
        models: Role, name, bins of (mean confidence, accuracy, faces) and expected calibration error, all in 0 to 1.
        task: The task.
        name: As Plot.name.
    """
    shown = []
    for role, model, bins, ece in models:
        # A bin of a few faces is noise that would draw the eye.
        least = RARE * sum(bin_[2] for bin_ in bins)
        kept = np.asarray([bin_ for bin_ in bins if bin_[2] >= least], float).reshape(-1, 3)
        if len(kept):
            shown.append((role, model + ("" if ece is None else f" ({100 * ece:.1f})"), kept))
    if not shown:
        return None
    title = f"{task}: confidence and accuracy"
    low = 10.0 * math.floor(10 * max(0.0, min(float(kept[:, :2].min()) for _, _, kept in shown) - 0.02))
    names = [model for _, model, _ in shown]
    with _style():
        from matplotlib.ticker import MaxNLocator

        figure, axes = _canvas(250, legend=names)
        axes.plot([low, 100], [low, 100], color=light("soft"), linewidth=0.8, linestyle=(0, (1, 2)))
        free = iter(zip(SERIES, DASHES, strict=True))
        handles: list[Artist] = []
        for role, _, kept in shown:
            colour, dash = ("teacher", "--") if role == "teacher" else next(free)
            x, y, n = 100 * kept[:, 0], 100 * kept[:, 1], kept[:, 2]
            handles += axes.plot(x, y, color=light(colour), linestyle=dash)
            axes.scatter(x, y, s=8 + 90 * n / n.sum(), color=light(colour), linewidths=0, zorder=3, clip_on=False)
        axes.set_xlim(low, 101)
        axes.set_ylim(low, 101)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        _titles(axes, "confidence in the answer, %", "right, %")
        _legend_above(figure, names, handles)
    words = f"{title}; in brackets the calibration error in points: {', '.join(names)}"
    return Plot(name=name, title=title, words=words, figure=figure)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model in a plot of tasks against cost.

    Attributes:
        model: Its name.
        runtime: What ran it.
        precision: In which arithmetic.
        cost: Milliseconds or bytes.
        values: Task to its main metric in the unit of its title.
    """

    model: str
    runtime: str
    precision: str
    cost: float
    values: Mapping[str, float]


_PRECISION_COLOURS = {
    "fp32": "blue",
    "fp16": "sky",
    "w8a32": "ochre",
    "w8": "ochre",
    "p6": "purple",
    "fake-quant": "green",
    "w8a8": "vermilion",
}
_RUNTIME_MARKERS = {"torch": "D", "openvino": "s", "onnxruntime": "^", "mil": "P", "coreml": "P"}  # others: "o", TFLite
_RUNTIME_WORDS = {
    "D": "torch",
    "s": "OpenVINO",
    "^": "ONNX Runtime",
    "P": "Core ML",
    "o": "TFLite",
    "*": "teacher",
}


def cost_chart(
    points: Sequence[Point], tasks: Sequence[tuple[str, str, bool]], *, name: str, title: str, x_title: str
) -> Plot | None:
    """A panel per task over one logarithmic cost axis; up is better in each, left is cheaper.

    Args:
        points: The models.
        tasks: Task, its metric's title, and whether lower is better.
        name: As Plot.name.
        title: As Plot.title.
        x_title: What the cost is, with its unit.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    tasks = [task for task in tasks if any(task[0] in point.values for point in points)]
    points = [point for point in points if point.cost > 0]
    if not points or not tasks:
        return None

    def look(point: Point) -> tuple[str, str]:
        if point.model.startswith("teacher"):
            return "teacher", "*"
        return _PRECISION_COLOURS.get(point.precision, "ink"), _RUNTIME_MARKERS.get(point.runtime, "o")

    looks = {index: look(point) for index, point in enumerate(points)}
    colours = {points[index].precision: colour for index, (colour, marker) in looks.items() if marker != "*"}
    markers = list(dict.fromkeys(marker for _, marker in looks.values()))
    entries = [
        *(Line2D([], [], marker="o", linestyle="", color=light(c), label=p) for p, c in colours.items()),
        *(
            Line2D(
                [],
                [],
                marker=m,
                linestyle="",
                color=light("teacher" if m == "*" else "soft"),
                markerfacecolor=light("teacher") if m == "*" else "none",
                label=_RUNTIME_WORDS[m],
            )
            for m in markers
        ),
    ]
    rows = -(-len(entries) // 3)
    head, panel, gap, foot = 0, 74, 28, 40 + 16 * rows
    height = head + len(tasks) * (panel + gap) + foot
    with _style():
        figure = _figure(height)
        for place, (task, metric, lower) in enumerate(tasks):
            top = head + gap - 8 + place * (panel + gap)
            axes = figure.add_axes((52 / WIDTH, 1 - (top + panel) / height, (WIDTH - 68) / WIDTH, panel / height))
            for index, point in enumerate(points):
                if task in point.values:
                    colour, marker = looks[index]
                    axes.plot(
                        point.cost,
                        point.values[task],
                        marker=marker,
                        markersize=9 if marker == "*" else 6,
                        color=light(colour),
                        alpha=0.85,
                        markeredgewidth=0,
                        clip_on=False,
                        linestyle="",
                        gid=f"tip {point.model}, {point.runtime}: {point.values[task]:.2f} at {_short(point.cost)}",
                    )
            axes.set_xscale("log")
            costs = [point.cost for point in points]
            axes.set_xlim(min(costs) * 0.8, max(costs) * 1.25)
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if max(costs) < 200 * min(costs) else (1,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
            axes.xaxis.set_minor_locator(LogLocator(10, subs=()))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.grid(True, axis="x")
            axes.margins(y=0.18)
            if lower:
                axes.invert_yaxis()
            if place < len(tasks) - 1:
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel(x_title)
            axes.annotate(
                task, (0, 1), xytext=(0, 5), xycoords="axes fraction", textcoords="offset points", weight="bold"
            )
            axes.annotate(
                f"{metric}{' (axis reversed)' if lower else ''}",
                (1, 1),
                xytext=(0, 5),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="right",
                color=light("soft"),
            )
        figure.legend(
            handles=entries,
            loc="lower center",
            ncols=3,
            columnspacing=1.4,
            handletextpad=0.2,
            borderaxespad=0.0,
            borderpad=0.0,
            labelspacing=0.3,
        )
    cheapest = min(points, key=lambda point: point.cost)
    words = f"{title}; up is better, left is cheaper. Cheapest: {cheapest.model}, {_short(cheapest.cost)}"
    return Plot(name=name, title=title, words=words, figure=figure)


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """One model's values in a plot of subgroups.

    Attributes:
        role: Of the scorecard.
        model: Its name.
        values: One per group, in the unit of the title; None where there are too few faces.
        spans: As `values`: ends of the 95 % interval, or None.
    """

    role: str
    model: str
    values: Sequence[float | None]
    spans: Sequence[tuple[float, float] | None]


def group_chart(
    groups: Sequence[tuple[str, int]], models: Sequence[Group], *, title: str, metric: str, name: str
) -> Plot | None:
    """A row per subgroup, a dot per model, each with its interval.

    Args:
        groups: Name and number of faces.
        models: Teacher first.
        title: As Plot.title.
        metric: What the values are, with the unit.
        name: As Plot.name.
    """
    if not any(value is not None for model in models for value in model.values):
        return None
    labels = [f"{group or 'unknown'} ({n:,})" for group, n in groups]
    left = min(170.0, 12 + _LETTER * max(map(len, labels)))
    step = 16 + 8 * len(models)
    names = [model.model for model in models]
    with _style():
        figure, axes = _canvas(len(groups) * step + 50, left=left, right=16, top=8, bottom=40, legend=names)
        free = iter(SERIES)
        handles: list[Artist] = []
        for place, model in enumerate(models):
            colour = light("teacher" if model.role == "teacher" else next(free))
            offset = (place - (len(models) - 1) / 2) * 0.24
            marker = "D" if model.role == "teacher" else "o"
            look: Any = {"marker": marker, "markersize": 5.5, "color": colour, "linestyle": ""}
            for row, (value, span) in enumerate(zip(model.values, model.spans, strict=True)):
                if value is None:
                    continue
                if span is not None:
                    axes.plot(span, [row + offset] * 2, color=colour, linewidth=1.2, alpha=0.7)
                axes.plot(value, row + offset, **look)
            handles += axes.plot([], [], **look)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_yticks(range(len(groups)), labels)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.set_xlabel(metric)
        _legend_above(figure, names, handles)
    said = "; ".join(
        f"{label}: " + ", ".join(f"{m.model} {m.values[row]:.1f}" for m in models if m.values[row] is not None)
        for row, label in enumerate(labels)
    )
    return Plot(name=name, title=title, words=f"{title}, {metric}. {said}", figure=figure)


def bar_chart(
    bars: Sequence[tuple[str, float]], *, title: str, x_title: str, name: str, marked: Sequence[str] = ()
) -> Plot | None:
    """A bar per name from zero, its value at its end; those in `marked` stand out."""
    if not bars:
        return None
    labels = [label for label, _ in bars]
    longest = max(map(len, labels))
    left = min(150.0, 10 + _LETTER * longest)
    room = int((left - 10) / _LETTER)
    step = 17
    height = len(bars) * step + 46
    with _style():
        figure, axes = _canvas(height, left=left, right=36, top=6, bottom=40)
        colours = [light("vermilion" if label in marked else "blue") for label in labels]
        axes.barh(range(len(bars)), [value for _, value in bars], height=0.66, color=colours, linewidth=0)
        for row, (_, value) in enumerate(bars):
            axes.annotate(f"{value:.1f}", (max(value, 0), row), xytext=(3, 0), textcoords="offset points", va="center")
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_yticks(
            range(len(bars)), [label if len(label) <= room else f"…{label[1 - room :]}" for label in labels]
        )
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.set_xlabel(x_title)
    worst = ", ".join(f"{label} {value:.1f}" for label, value in bars if label in marked)
    return Plot(name=name, title=title, words=f"{title}, {x_title}" + (f"; {worst}" if worst else ""), figure=figure)


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "edgeface",
        "font.size": TEXT,
        "font.family": "DejaVu Sans",
        "text.color": light("ink"),
        "axes.labelcolor": light("soft"),
        "axes.labelsize": TEXT,
        "axes.edgecolor": light("soft"),
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.facecolor": "none",
        "grid.color": light("line"),
        "grid.linewidth": 0.8,
        "xtick.color": light("soft"),
        "ytick.color": light("soft"),
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "lines.linewidth": 1.8,
        "legend.frameon": True,
        "legend.facecolor": light("back"),
        "legend.edgecolor": "none",
        "legend.framealpha": 0.85,
        "legend.fancybox": False,
        "legend.fontsize": TEXT,
        "legend.handlelength": 1.8,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        yield


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 72, height / 72), dpi=72)


def _canvas(
    height: float,
    *,
    left: float = 46.0,
    right: float = 12.0,
    top: float = 10.0,
    bottom: float = 40.0,
    legend: Sequence[str] = (),
) -> tuple[Figure, Axes]:
    """A figure and its one pair of axes, the margins in pixels; a legend grows the figure, not its margins."""
    head = _LEGEND_ROW * len(_legend_rows(legend)) if legend else 0
    height += head
    top += head
    figure = _figure(height)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def _legend_rows(names: Sequence[str]) -> list[list[str]]:
    """Names in as few rows as the width holds."""
    rows: list[list[str]] = [[]]
    room = WIDTH - 30.0
    for name in names:
        needed = 34 + _LETTER * len(name)
        if rows[-1] and needed > room:
            rows.append([])
            room = WIDTH - 30.0
        rows[-1].append(name)
        room -= needed
    return rows


def _legend_above(figure: Figure, names: Sequence[str], handles: Sequence[Artist]) -> None:
    """Names from the upper left corner, in the rows that _legend_rows made room for."""
    height = figure.get_figheight() * 72
    place = 0
    for index, row in enumerate(_legend_rows(names)):
        figure.legend(
            handles=handles[place : place + len(row)],
            labels=row,
            loc="upper left",
            bbox_to_anchor=(4 / WIDTH, 1 - (2 + _LEGEND_ROW * index) / height),
            ncols=len(row),
            borderaxespad=0,
            borderpad=0,
            columnspacing=1.2,
            handletextpad=0.5,
            handlelength=1.6,
            frameon=False,
        )
        place += len(row)


def _titles(axes: Axes, x_title: str, y_title: str) -> None:
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)


def _place(figure: Figure, text: str, *, x: float | None, y: float | None, axes: Axes | None = None) -> None:
    """A small title at a distance in pixels from the left or the lower edge, in the middle of the other way."""
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    if x is None:
        figure.text(0.5, (y or 0) / height, text, ha="center", va="bottom", color=light("soft"))
    else:
        middle = 0.5 if axes is None else (axes.get_position().y0 + axes.get_position().y1) / 2
        figure.text(x / width, middle, text, ha="left", va="center", rotation=90, color=light("soft"))


def _rectangle(corner: tuple[float, float], width: float, height: float, colour: str, alpha: float) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, alpha=alpha, linewidth=0)


def _inline(svg: str, *, name: str, words: str) -> str:
    """matplotlib's SVG as an element of a page: no addresses, ids or fonts of its own, colours by their variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<\?xml.*?\?>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| (?:version|width|height)="[^"]*"(?=[^>]*viewBox)', "", svg)
    svg = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", svg)
    svg = re.sub(r'<g id="tip ([^"]*)">', lambda found: f"<g><title>{found[1]}</title>", svg)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    # Two digits are a hundredth of a pixel.
    svg = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), svg)
    for variable, (value, _) in COLOURS.items():
        svg = svg.replace(value, f"var(--{variable})")
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><").strip()
    head = f'<svg class="plot" role="img" aria-label="{escape(words)}"'
    return svg.replace("<svg", head, 1)
