"""What a sweep found, for benchmarks/results: every file as CSV, the chart, and the Pareto front as a table.

    python -m benchmarks.pareto SWEEP_FOLDER [--cost latency_ms] [--out STEM]

Reads a finished sweep (edgeface sweep RECIPE), trains, scores and times nothing: sweep.json has the figures, and the
trials' manifests say how long each student was trained and where it was stopped on the way. Writes STEM.json, STEM.csv,
STEM.png and STEM.md; STEM is benchmarks/results/pareto-NAME. They hold figures only: no pictures, no weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.pages import publish
from edgeface.errors import EdgefaceError
from edgeface.files import read_json, write_bytes
from edgeface.provenance import commit, cpu, versions
from edgeface.report.pareto import (
    COST_HEADS,
    COST_TITLES,
    DONE,
    Candidate,
    csv_text,
    pareto_chart,
    shown_cost,
    with_fronts,
)
from edgeface.report.swept import Swept, from_json, read_swept
from edgeface.report.table import shown, title

RESULTS = Path(__file__).parent / "results"
STUDENTS = 8  # that a plot is to hold at least
STAGES = ("student", "qat")
_BUSY = " Timings varied more than on a quiet machine: quote their ratios, not the milliseconds."


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sweep as its folder tells of it.

    Attributes:
        swept: Every file, marked where it stands on a front.
        trainings: Name of a student to stage to its manifest's `training`.
    """

    swept: Swept
    trainings: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def as_json(self) -> dict[str, Any]:
        """The result that is kept, without its conditions."""
        return {"schema": 1, "sweep": self.swept.as_json(), "trainings": self.trainings}


def read(folder: Path, *, cost: str = "latency_ms") -> Found:
    """The sweep of a folder.

    Raises:
        ModelError: It has no sweep.json, or one that cannot be used.
    """
    kept = read_swept(folder)
    kept = replace(kept, cost=cost, candidates=with_fronts(kept.candidates, tasks=kept.tasks, cost=cost))
    return Found(swept=kept, trainings={each.name: _trainings(folder / each.file) for each in kept.done})


def found_in(result: Mapping[str, Any]) -> Found:
    """What `as_json` gave."""
    return Found(swept=from_json(result["sweep"]), trainings=result["trainings"])


def _trainings(file: Path) -> dict[str, Mapping[str, Any]]:
    """Stage to what its manifest says of its training; the trial is the folder above the bundle's."""
    run = next((folder for folder in file.parents if (folder / "student" / "manifest.json").is_file()), None)
    stages = {stage: run / stage / "manifest.json" for stage in STAGES} if run else {}
    return {stage: read_json(place)["training"] for stage, place in stages.items() if place.is_file()}


def markdown(found: Found, *, name: str) -> str:
    """The page: chart, files by cost, and what was refused."""
    swept = found.swept
    done = sorted(swept.done, key=lambda one: _or_inf(one, swept.cost))
    students = {each.name for each in done}
    enough = "" if len(students) >= STUDENTS else f" At least {STUDENTS} are asked for: this is not the whole plot."
    busy = _BUSY if swept.noisy else ""
    front = {task: [f"`{each.name}` {each.precision}" for each in done if each.front[task]] for task in swept.tasks}
    heads = ["file", "precision", *(f"{task}: {title(metric)}" for task, metric in swept.tasks.items())]
    lines = [
        f"# Accuracy against {COST_TITLES[swept.cost]}: {name}",
        "",
        f"`python -m benchmarks.pareto` over the sweep `{name}`: {len(done)} files of {len(students)} students, scored "
        f"on the validation faces.{enough} {swept.conditions}{busy} Bold: on the Pareto front of that task, where no "
        "other file is at least as good and as cheap, and better in one of the two. ● on the front of all tasks "
        "and the cost together. The front takes differences of a face or two at their word. The best of many looks "
        "better on the faces that chose it than it is.",
        "",
        f"![accuracy against cost](pareto-{name}.png)",
        "",
        *(f"* Front of {task}, from the cheapest: {', '.join(names) or 'nothing'}." for task, names in front.items()),
        "",
        "| " + " | ".join(["", *heads, *COST_HEADS.values()]) + " |",
        "|" + "---|" * (len(heads) + len(COST_HEADS) + 1),
    ]
    if swept.teacher:
        told = [shown(metric, swept.teacher.get(task, {}).get(metric)) for task, metric in swept.tasks.items()]
        lines.append("| " + " | ".join(["", "teacher", "", *told, *[""] * len(COST_HEADS)]) + " |")
    for each in done:
        cells = [_marked(each, task, metric) for task, metric in swept.tasks.items()]
        costs = [shown_cost(key, each.costs.get(key)) for key in COST_HEADS]
        mark = "●" if each.on_front else ""
        lines.append("| " + " | ".join([mark, f"`{each.name}`", each.precision, *cells, *costs]) + " |")
    lines += ["", *(f"* {each.state} `{each.name}`: {each.reason}" for each in swept.candidates if each.state != DONE)]
    return "\n".join([*lines, *_trained(found)]).replace("\n\n\n", "\n\n").rstrip("\n") + "\n"


def overview(found: Found, *, precision: str = "w8a8") -> str:
    """The files of one precision by cost, short enough for README; bold on the front of that task."""
    swept = found.swept
    tasks = [f"{task}: {title(metric)}" for task, metric in swept.tasks.items()]
    lines = ["| " + " | ".join(["student", COST_HEADS[swept.cost], *tasks]) + " |", "|---|" + "---|" * (len(tasks) + 1)]
    for each in sorted(swept.done, key=lambda one: _or_inf(one, swept.cost)):
        if each.precision == precision:
            cells = [_marked(each, task, metric) for task, metric in swept.tasks.items()]
            cost = shown_cost(swept.cost, each.costs.get(swept.cost))
            lines.append("| " + " | ".join([f"`{each.name}`", cost, *cells]) + " |")
    return "\n".join(lines)


def _marked(candidate: Candidate, task: str, metric: str) -> str:
    text = shown(metric, candidate.metrics.get(task, {}).get(metric))
    return f"**{text}**" if candidate.front[task] else text


def _trained(found: Found) -> list[str]:
    names = dict.fromkeys(each.name for each in found.swept.done)
    rows = [
        (name, stage, found.trainings[name][stage])
        for name in names
        for stage in STAGES
        if stage in found.trainings[name]
    ]
    if not rows:
        return []
    lines = ["", "| training | stage | steps | hours | stopped, and went on at step |", "|---|---|---|---|---|"]
    for name, stage, training in rows:
        stops = training.get("resumed_at")
        words = "not recorded" if stops is None else ", ".join(f"{step:,}" for step in stops) or "never"
        hours = training["seconds"] / 3600
        lines.append(f"| `{name}` | {stage} | {training['steps']:,} | {hours:.2f} | {words} |")
    return lines


def _or_inf(candidate: Candidate, cost: str) -> float:
    value = candidate.costs.get(cost)
    return float("inf") if value is None else float(value)


def write(found: Found, stem: Path) -> list[Path]:
    """Write the result, the table of values, the chart and the page; their places.

    Args:
        found: A sweep.
        stem: Path of the files without suffix, ending in pareto-NAME.
    """
    swept = found.swept
    name = stem.name.removeprefix("pareto-")
    conditions = {"machine": cpu(), "versions": versions(), "commit": commit(), "times": swept.conditions}
    json, page = stem.with_name(f"{stem.name}.json"), markdown(found, name=name)
    publish({**found.as_json(), "conditions": conditions}, page, json)
    places = {json.with_suffix(".csv"): csv_text(swept.candidates, tasks=swept.tasks).encode()}
    chart = pareto_chart(swept.candidates, tasks=swept.tasks, cost=swept.cost, teacher=swept.teacher or None)
    if chart is not None:
        places[json.with_suffix(".png")] = chart.png()
    for place, content in places.items():
        write_bytes(place, content)
    return [json, json.with_suffix(".md"), *places]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP_FOLDER")
    parser.add_argument("--cost", choices=tuple(COST_TITLES), default="latency_ms")
    parser.add_argument("--out", type=Path, metavar="STEM", help="default: benchmarks/results/pareto-NAME")
    arguments = parser.parse_args()
    stem = arguments.out or RESULTS / f"pareto-{arguments.sweep.resolve().name}"
    try:
        found = read(arguments.sweep, cost=arguments.cost)
        for place in write(found, stem):
            print(place)
    except EdgefaceError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
