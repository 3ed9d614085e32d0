"""`edgeface sweep`: students × widths × inputs × precisions under one teacher, and which of them are worth having."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.cli.result import Result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgeface.report.swept import Swept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name or path of a recipe with a [sweep] table")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=V", help="change a key of the recipe")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the sweep; default: runs/NAME-sweep. One that was begun goes on, beside other processes at it",
    )
    parser.add_argument(
        "--storage",
        default="",
        metavar="URL",
        help="where Optuna keeps the study: journal:FILE, sqlite:///FILE or a database; default: a journal in DIR",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first sample that cannot be read")


def run(arguments: argparse.Namespace) -> Result:
    from edgeface.cli.console import note
    from edgeface.config import load_recipe
    from edgeface.errors import InterruptedRun
    from edgeface.report.pareto import FAILED
    from edgeface.runs import RUNS
    from edgeface.sweep.whole import sweep

    recipe = load_recipe(arguments.recipe, overrides=arguments.set)
    folder = arguments.out or RUNS / f"{recipe.name.removesuffix('-sweep')}-sweep"
    try:
        found = sweep(recipe, folder, storage=arguments.storage, strict=arguments.strict, told=note)
    except KeyboardInterrupt as error:
        raise InterruptedRun("stopped by the user", where=str(folder)) from error
    return Result(
        payload=_payload(found, folder),
        text=_rendered(found, folder),
        exit_code=int(any(each.state == FAILED for each in found.candidates)),
    )


def _payload(found: Swept, folder: Path) -> dict[str, object]:
    from edgeface.sweep.whole import CSV, PAGE, PLOT

    return {
        "sweep": str(folder),
        **found.as_json(folder),
        "csv": str(folder / CSV),
        "plot": str(folder / PLOT) if (folder / PLOT).is_file() else "",
        "report": str(folder / PAGE),
    }


def _rendered(found: Swept, folder: Path) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from edgeface.cli.console import table
    from edgeface.report.pareto import COST_HEADS, DONE, shown_cost
    from edgeface.report.table import shown, title
    from edgeface.sweep.whole import CSV, PAGE, PLOT

    columns = ["", "file", *(f"{task}\n{title(metric)}" for task, metric in found.tasks.items()), *COST_HEADS.values()]
    rows = []
    if found.teacher is not None:
        told = [shown(metric, found.teacher.get(task, {}).get(metric)) for task, metric in found.tasks.items()]
        rows.append(["teacher", "", *told, *[""] * len(COST_HEADS)])
    done = found.done
    for each in sorted(done, key=lambda one: one.costs[found.cost] or 0.0):
        cells = [
            shown(metric, each.metrics.get(task, {}).get(metric)) + (" *" if each.front[task] else "  ")
            for task, metric in found.tasks.items()
        ]
        mark = "● " if each.on_front else "  "
        costs = [shown_cost(key, each.costs.get(key)) for key in COST_HEADS]
        rows.append([mark + each.name, each.precision, *cells, *costs])
    parts: list[RenderableType] = [table(columns, rows)] if rows else []
    parts += [f"{each.state} {each.name}: {each.reason}" for each in found.candidates if each.state != DONE]
    on_front = sum(each.on_front for each in done)
    if done:
        parts.append(f"●  on the front over all objectives: {on_front} of {len(done)}   *  on that task's own front")
        parts.append(Text(found.conditions, "dim"))
    if found.noisy:
        parts.append(Text("others used this machine: quote the ratios, not the milliseconds", "yellow"))
    if found.running:
        names = ", ".join(found.running)
        parts.append(f"other processes are at {names}: type the same command again for the whole table")
    parts += ["", f"table:  {folder / CSV}"]
    parts += [f"plot:   {folder / PLOT}"] if (folder / PLOT).is_file() else []
    parts += [f"report: {folder / PAGE}"]
    return Group(*parts)
