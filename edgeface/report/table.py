"""A scorecard as people read it: words and figures, the terminal's table, Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeface.metrics import lower_is_better
from edgeface.report.scorecard import FILE, STUDENT, TEACHER, Blame, Cell, Ends, Gap, Row, Scorecard, Subgroups
from edgeface.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

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
    "verification_accuracy": ("verification", 100.0, 2, "%"),
    "verification_sd": ("deviation over folds", 100.0, 2, "%"),
    "roc_area": ("area under the ROC", 1.0, 4, ""),
    "tar_at_far_0.1": ("accepted at FAR 10 %", 100.0, 2, "%"),
    "tar_at_far_0.01": ("accepted at FAR 1 %", 100.0, 2, "%"),
    "tar_at_far_0.001": ("accepted at FAR 0.1 %", 100.0, 2, "%"),
}

_GAIN = 0.003  # of a metric: below it another threshold is not worth a line


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


def with_interval(value: float | None, ends: Ends | None) -> str:
    """A delta with half the width of its interval: "-0.50 ±0.31"."""
    return signed(value) + ("" if ends is None else f" ±{(ends[1] - ends[0]) / 2:.2f}")


def is_real(ends: Ends | None) -> bool:
    """Whether an interval leaves 0 out: a change that other faces of the kind would show too.

    One that would be printed as 0.00 is none, however sure it is.
    """
    return ends is not None and not ends[0] <= 0.0 <= ends[1] and max(map(abs, ends)) >= 0.005


@dataclass(frozen=True, kw_only=True)
class Line:
    """One printed line of a task: the same quantity for every model.

    Attributes:
        key: "value", "failures", "delta_teacher", "delta_student" or "agreement".
        title: What it is.
        texts: One per row of the scorecard; "-" where there is nothing.
        verdicts: One per row: True and False colour the text, None leaves it plain.
        main: Whether it is the first of its task.
        budget: Allowed worsening in the unit of `title`; "" without one.
        real: One per row: whether the interval of a change leaves 0 out; () for what is no change.
    """

    key: str
    title: str
    texts: tuple[str, ...]
    verdicts: tuple[bool | None, ...]
    main: bool = False
    budget: str = ""
    real: tuple[bool, ...] = ()


def lines(card: Scorecard) -> dict[str, list[Line]]:
    """What the terminal's table and the report print, task by task."""
    names = [name for name in TASKS if any(name in row.tasks or name in row.unlabelled for row in card.rows)]
    return {name: list(_task_lines(card, name)) for name in names}


def _task_lines(card: Scorecard, name: str) -> Iterator[Line]:
    cells = [row.tasks.get(name) for row in card.rows]
    plain: tuple[bool | None, ...] = (None,) * len(cells)
    some = next((cell for cell in cells if cell is not None), None)
    if some is not None:
        values = tuple("-" if cell is None else shown(cell.metric, cell.value) for cell in cells)
        yield Line(key="value", title=title(some.metric), texts=values, verdicts=plain, main=True)
        if some.failure_percent is not None:
            failures = tuple("-" if cell is None else shown("failure_percent", cell.failure_percent) for cell in cells)
            yield Line(key="failures", title=title("failure_percent"), texts=failures, verdicts=plain)
        yield from _delta_lines(cells, unit(some))
    agreements = [row.tasks[name].agreement if name in row.tasks else row.unlabelled.get(name, {}) for row in card.rows]
    measure = next((key for agreed in agreements for key in agreed if key != "n"), "")
    if measure:
        words = "correlation with teacher" if measure == "pearson" else title(measure)
        texts = tuple(shown(measure, agreed.get(measure)) for agreed in agreements)
        yield Line(key="agreement", title=words, texts=texts, verdicts=plain, main=some is None)


def _delta_lines(cells: Sequence[Cell | None], unit_words: str) -> Iterator[Line]:
    for vs in ("teacher", "student"):
        deltas = [None if cell is None else getattr(cell, f"delta_{vs}") for cell in cells]
        judged = tuple(None if cell is None or cell.budget_vs != vs else cell.within_budget for cell in cells)
        if all(delta is None for delta in deltas) and all(verdict is None for verdict in judged):
            continue
        budget = next((c.budget for c in cells if c and c.budget is not None and c.budget_vs == vs), None)
        ends = [None if cell is None else cell.interval if vs == "student" else cell.interval_teacher for cell in cells]
        texts = tuple(
            with_interval(delta, interval) + ("✗" if verdict is False else "")
            for delta, interval, verdict in zip(deltas, ends, judged, strict=True)
        )
        told = "" if budget is None else f"{budget:g}"
        words = f"Δ {vs}, {unit_words}" + (f" (budget {told})" if told else "")
        yield Line(
            key=f"delta_{vs}", title=words, texts=texts, verdicts=judged, budget=told, real=tuple(map(is_real, ends))
        )


def heading(row: Row) -> tuple[str, tuple[str, ...]]:
    """A row's name, and what stands below it: precision, runtime, size; a precision in the name is not repeated."""
    size = f"{row.size_bytes / 1e6:.2f} MB" if row.size_bytes else ""
    precision = "" if row.precision in re.split(r"[. ]", row.model) else row.precision
    # Where a teacher was run is said always, of others only where it is not the CPU that runs everything else.
    tells = row.role == TEACHER or row.hardware.startswith("GPU")
    runtime = f"{row.runtime} ({row.hardware})" if tells and row.hardware and row.runtime else row.runtime
    return row.model, tuple(text for text in (precision, runtime, size) if text)


_LABELS = {
    "value": "",
    "failures": "failures",
    "delta_teacher": "Δ teacher",
    "delta_student": "Δ student",
    "agreement": "agreement",
}
_LEGEND = (
    "Δ: change, ± half the width of its 95 % interval (paired bootstrap over faces). agreement: with the teacher, "
    "equal answers in %, distance of landmarks in %."
)
_LEFT = 24  # of the terminal's first column
_ANY_WIDTH = 10_000  # to learn how wide a table would be
_OUTCOME_STYLES = {"PASS": "green", "FAIL": "bold red", "MEASURED": "dim", "NOT_RUN": "yellow"}


def render(card: Scorecard) -> RenderableType:
    """The scorecard for the terminal: a row per model in the order of its life, a column per task."""
    from rich.console import Group
    from rich.text import Text

    notes = [Text(words, _OUTCOME_STYLES[outcome]) for words, outcome in reasons(card)]
    notes += [Text(_blamed(each), "yellow") for each in card.blame]
    notes += [Text(words, "dim") for words in _thresholds(card)]
    notes += [Text(f"skipped {count}: {reason}", "dim") for reason, count in card.skipped.items()]
    return Group(_Panels(card), *_gaps(card), *notes)


def reasons(card: Scorecard) -> list[tuple[str, str]]:
    """Why rows failed or did not run, each reason once with all the rows it holds for; and their outcome."""
    models: dict[tuple[str, str], list[str]] = {}
    for row in card.rows:
        if row.reason:
            models.setdefault((row.reason, row.outcome), []).append(row.model)
    return [(f"{', '.join(names)}: {reason}", outcome) for (reason, outcome), names in models.items()]


class _Panels:
    """As many tasks side by side as the terminal has room for, the rest below."""

    def __init__(self, card: Scorecard) -> None:
        self.card = card

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.measure import Measurement
        from rich.text import Text

        printed = lines(self.card)
        panels: list[list[str]] = []
        for name in printed:
            wider = _panel(self.card, {other: printed[other] for other in (*(panels[-1] if panels else ()), name)})
            if (
                panels
                and Measurement.get(console, options.update(width=_ANY_WIDTH), wider).maximum <= options.max_width
            ):
                panels[-1].append(name)
            else:
                panels.append([name])
        yield Text(f"Scorecard on {self.card.source}, {self.card.samples} faces", "bold italic")
        for names in panels:
            yield _panel(self.card, {name: printed[name] for name in names})
        yield Text(_LEGEND, "dim")


def _panel(card: Scorecard, printed: Mapping[str, list[Line]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.HORIZONTALS, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("model", overflow="fold", max_width=_LEFT)
    table.add_column("", style="dim", no_wrap=True)
    for name, task in printed.items():
        heads = _wrapped(next(line.title for line in task if line.main))
        heads += [f"budget {line.budget}" for line in task if line.budget]
        table.add_column(Text.assemble((name, "bold"), "\n" + "\n".join(heads)), justify="right", no_wrap=True)
    keys = [key for key in _LABELS if any(line.key == key for task in printed.values() for line in task)]
    for index, row in enumerate(card.rows):
        left = [Text(text, "dim") for text in _left(row)]
        left[0].stylize("not dim bold")
        left += [Text(row.outcome, _OUTCOME_STYLES[row.outcome])] * (row.outcome != "MEASURED")
        told = [key for key in keys if any(_text(task, key, index) != "-" for task in printed.values())]
        for place in range(max(len(told), len(left))):
            key = told[place] if place < len(told) else ""
            cells = [_styled(task, key, index) for task in printed.values()]
            table.add_row(left[place] if place < len(left) else "", _LABELS.get(key, ""), *cells)
    return table


def _left(row: Row) -> list[str]:
    """A row's name and what is said of it, in lines that fit the first column."""
    from textwrap import wrap

    name, how = heading(row)
    size = how[-1:] if row.size_bytes else ()
    words = " ".join(how[: len(how) - len(size)])
    return [line for text in (name, words, *size) for line in wrap(text, _LEFT)]


def _wrapped(words: str) -> list[str]:
    """A heading in lines of about a cell's width."""
    from textwrap import wrap

    return wrap(words, 13)


def _text(task: Sequence[Line], key: str, index: int) -> str:
    return next((line.texts[index] for line in task if line.key == key), "-")


def _styled(task: Sequence[Line], key: str, index: int) -> Text:
    from rich.text import Text

    line = next((line for line in task if line.key == key), None)
    if line is None or line.texts[index] == "-":
        return Text("")
    plain = "" if line.main or (line.real and line.real[index]) else "dim"
    style = {True: "green", False: "bold red", None: plain}[line.verdicts[index]]
    return Text(line.texts[index], style)


def _blamed(blame: Blame) -> str:
    faces, unit_words = f"({blame['faces']} faces)", "points" if blame["unit"] == "points" else "percent"
    if not blame["layers"]:
        return f"{blame['model']}: no layer that were alone in float would make {blame['task']} better {faces}"
    layers = ", ".join(f"{layer['layer']} {layer['cost']:.2f}" for layer in blame["layers"])
    return f"{blame['model']}: {blame['task']} would gain so many {unit_words} by one layer in float {faces}: {layers}"


def main_row(card: Scorecard) -> Row | None:
    """The row that stands for what ships: the int8 file on its first runtime, else the last model that was run."""
    run = [row for row in card.rows if row.tasks and row.role != TEACHER]
    files = [row for row in run if row.role == FILE]
    int8 = [row for row in files if row.precision == "w8a8"]
    return next(iter(int8), None) or next(reversed(files or run), None)


def _thresholds(card: Scorecard) -> Iterator[str]:
    row = main_row(card)
    if row is None:
        return
    for name, cell in row.tasks.items():
        found = cell.recalibrated
        if found is not None and found["value"] - cell.value > _GAIN:
            yield (
                f"{row.model}: {name} {shown(cell.metric, found['value'])} instead of {shown(cell.metric, cell.value)} "
                f"({title(cell.metric)}) with the threshold at {found['threshold']:.2f}, scored on faces that did not "
                "choose it"
            )


def widest(card: Scorecard) -> list[tuple[Subgroups, Gap]]:
    """Of each task the division with the widest gap for what ships."""
    row = main_row(card)
    found: dict[str, tuple[Subgroups, Gap]] = {}
    for each in card.subgroups:
        for gap in each["rows"]:
            mine = row is not None and (gap["model"], gap["runtime"]) == (row.model, row.runtime)
            held = found.get(each["task"])
            if mine and gap["gap"] is not None and (held is None or gap["gap"] > (held[1]["gap"] or 0.0)):
                found[each["task"]] = (each, gap)
    return list(found.values())


def extremes(each: Subgroups, gap: Gap) -> tuple[str, str]:
    """Names of the best and the worst group of a model."""
    values = [
        (value, group["name"]) for value, group in zip(gap["values"], each["groups"], strict=True) if value is not None
    ]
    ordered = sorted(values, reverse=not lower_is_better(each["metric"]))
    return ordered[0][1], ordered[-1][1]


def too_few(each: Subgroups) -> str:
    """The groups that are too small to say anything, such as "too few: black (21)"; "" where there are none."""
    return "too few: " + ", ".join(f"{group['name']} ({group['n']})" for group in each["few"]) if each["few"] else ""


def _gaps(card: Scorecard) -> list[RenderableType]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = widest(card)
    if not found:
        return []
    words = f"Widest gaps of {found[0][1]['model']} between groups of {found[0][0]['minimum']} faces or more"
    table = Table(title=words, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, style="dim")
    for head in ("task", "by", "gap", "95 %", "teacher's", "best", "worst"):
        table.add_column(head, justify="right" if head in ("gap", "95 %", "teacher's") else "left")
    for each, gap in found:
        metric, interval, change = each["metric"], gap["gap_interval"], gap["gap_change_teacher"]
        ends = "-" if interval is None else " to ".join(shown(metric, end) for end in interval)
        taught = None if change is None or gap["gap"] is None else gap["gap"] - change
        table.add_row(
            each["task"], each["by"], shown(metric, gap["gap"]), ends, shown(metric, taught), *extremes(each, gap)
        )
    small = dict.fromkeys(f"by {each['by']}, {too_few(each)}" for each, _ in found if each["few"])
    return [table, *(Text(words, "dim") for words in small)]


def as_markdown(card: Scorecard) -> str:
    """The scorecard as Markdown: how it was measured, a table of models, agreement, thresholds, gaps, blame."""
    printed = lines(card)
    conditions = card.conditions
    machine = conditions["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(conditions["versions"].items()))
    parts = [
        f"{card.samples:,} faces of {card.source}"
        + "".join(f", {count} skipped ({reason})" for reason, count in sorted(card.skipped.items()))
        + f". {card.licence}. {conditions['date']}, {machine['model']} ({', '.join(machine['flags'])}), "
        f"{machine['cores']} cores, commit {conditions['commit'] or 'unknown'}.",
        versions + ".",
        "Δ is the change against teacher and fp32 student in points (relative % for years), ± half the width of its "
        "95 % interval (paired bootstrap over faces, 1,000 resamples); bold where that leaves 0 out.",
    ]
    parts += [_table(card, name, task) for name, task in printed.items()]
    parts += _markdown_thresholds(card)
    parts += _markdown_gaps(card)
    if card.blame:
        parts.append("## Layers that broke a budget\n\n" + "\n".join(f"* {_blamed(each)}" for each in card.blame))
    return "\n\n".join(parts) + "\n"


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    rule = "|" + "---|" * left + "---:|" * (len(heads) - left)
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _where(row: Row) -> str:
    tells = row.role == TEACHER or row.hardware.startswith("GPU")
    return f"{row.runtime} ({row.hardware})" if tells and row.hardware else row.runtime


def _table(card: Scorecard, name: str, task: Sequence[Line]) -> str:
    heads = ["model", "runtime", *(line.title for line in task)]
    rows = [
        [f"`{row.model}`", _where(row), *(_bold(line, index) for line in task)]
        if row.outcome != "NOT_RUN" or row.tasks or row.unlabelled
        else [f"`{row.model}`", row.runtime, f"NOT_RUN: {row.reason}", *[""] * (len(task) - 1)]
        for index, row in enumerate(card.rows)
    ]
    return f"## {name}\n\n{_rows(heads, rows, left=2)}"


def _bold(line: Line, index: int) -> str:
    return f"**{line.texts[index]}**" if line.real and line.real[index] else line.texts[index]


def _told(card: Scorecard) -> list[Row]:
    """The rows that stand for the others in long tables: teacher, fp32 student, what ships."""
    rows = [row for row in card.rows if row.role in (TEACHER, STUDENT)]
    main = main_row(card)
    return rows if main is None or main in rows else [*rows, main]


def _markdown_thresholds(card: Scorecard) -> list[str]:
    heads = ["model", "runtime", "task", "as shipped", "recalibrated", "threshold", "calibration error"]
    rows = []
    for row in _told(card):
        for name, cell in sorted(row.tasks.items(), key=lambda task: list(TASKS).index(task[0])):
            if cell.recalibrated is not None and cell.ece is not None:
                figures = [shown(cell.metric, cell.value), shown(cell.metric, cell.recalibrated["value"])]
                figures += [f"{cell.recalibrated['threshold']:.3f}", f"{cell.ece:.3f}"]
                rows.append([f"`{row.model}`", row.runtime, name, *figures])
    if not rows:
        return []
    words = (
        "A threshold is chosen on one half of the faces (by person) and scored on the other, both ways; the one given "
        "is chosen on all. Calibration error: mean distance between confidence and accuracy over ten bins, 0 to 1. All "
        "other rows are in the JSON."
    )
    return [f"## Thresholds of two-class tasks\n\n{words}\n\n{_rows(heads, rows, left=3)}"]


def _moved(metric: str, gap: Gap) -> str:
    change, span = gap["gap_change_teacher"], gap["gap_change_interval"]
    ends = None if span is None else (scaled(metric, span[0]), scaled(metric, span[1]))
    text = signed(None if change is None else scaled(metric, change))
    text += "" if ends is None else f" ({signed(ends[0])} to {signed(ends[1])})"
    return f"**{text}**" if is_real(ends) else text


def _markdown_gaps(card: Scorecard) -> list[str]:
    if not card.subgroups:
        return []
    words = (
        f"Best group minus worst, of groups of {card.subgroups[0]['minimum']} labelled faces or more, with a 95 % "
        "interval (bootstrap inside each group), and its change from the teacher's with that one's. "
        "All other rows are in the JSON."
    )
    heads = ["task", "by", "model", "runtime", "groups", "gap", "95 %", "Δ teacher"]
    rows = []
    told = {(row.model, row.runtime) for row in _told(card)}
    for each in card.subgroups:
        for gap in each["rows"]:
            if (gap["model"], gap["runtime"]) not in told:
                continue
            metric = each["metric"]
            values = [
                f"{group['name']} {shown(metric, value)} ({group['n']})"
                for group, value in zip(each["groups"], gap["values"], strict=True)
            ]
            ends = (
                "-" if gap["gap_interval"] is None else " to ".join(shown(metric, end) for end in gap["gap_interval"])
            )
            groups = ", ".join(values) + (f"; {too_few(each)}" if each["few"] else "")
            cells = [each["task"], each["by"], f"`{gap['model']}`", gap["runtime"], groups]
            rows.append([*cells, shown(metric, gap["gap"]), ends, _moved(metric, gap)])
    return [f"## Groups\n\n{words}\n\n{_rows(heads, rows, left=5)}"]
