"""How far one source's faces can tell trained networks apart on one task: differences with intervals, seed by seed.

    EDGEFACE_DATA=FOLDER python -m benchmarks.paired beauty_score --data mebeauty@val --data mebeauty@dev \\
        teacher=runs/tables/kd-teacher-0/teacher student=runs/tables/kd-lightcnn9-softmax-0/student \\
        [--out benchmarks/results/paired.json]

A network is anything `edgeface eval` opens. Several of one name are seeds of one row, in the same order in each row.
Differences are against the first row, above 0 where the row is the better one. Their 95 % intervals are a paired
bootstrap: the faces drawn anew, the same ones for all networks. They say what other faces could have given, and
nothing of what other seeds would; of that, the differences of the seeds say something.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pages import publish
from benchmarks.tables import heading, shown
from edgeface.data.sources import data_root
from edgeface.errors import UsageError
from edgeface.evaluate import evaluate, evaluation_pack
from edgeface.metrics import bootstrap, known, lower_is_better, main_metric, percentiles, score
from edgeface.provenance import commit, cpu, versions
from edgeface.tasks import TASKS, Task
from targets.runners import open_to_score

RESAMPLES = 2000


def rows_of(
    task: Task, answers: Mapping[str, Sequence[NDArray[Any]]], labels: NDArray[Any], *, seed: int = 0
) -> tuple[str, list[dict[str, Any]]]:
    """The column TASK.METRIC, and a row for each name: values and differences in the unit of its heading.

    Args:
        task: What is scored; its main metric decides.
        answers: Name to its seeds' predictions, each one row per face; the first is what the others are held against.
        labels: One row per face; those without a label are left out.
        seed: Decides the resamples.

    Raises:
        UsageError: A row has another number of seeds than the first.
    """
    counts = {name: len(seeds) for name, seeds in answers.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(
            f"seeds {counts}", expected="as many of each row", where="NAME=CHECKPOINT", do="Add the others"
        )
    metric = main_metric(task, score(task, next(iter(answers.values()))[0], labels))
    column = f"{task.name}.{metric}"
    sign = -1.0 if lower_is_better(metric) else 1.0
    flat = [one for seeds in answers.values() for one in seeds]
    values = np.array([float(score(task, one, labels)[metric]) for one in flat])
    draws = bootstrap(task, flat, labels=labels, metric=metric, resamples=RESAMPLES, seed=seed)
    places = np.arange(len(flat)).reshape(len(answers), -1)
    rows = []
    for name, own in zip(answers, places, strict=True):
        gains = sign * (values[own] - values[places[0]])  # (seeds,)
        drawn = sign * (draws[own] - draws[places[0]])  # (seeds, R)
        rows.append(
            {
                "row": name,
                "values": [shown(column, value) for value in values[own].tolist()],
                "gains": [shown(column, gain) for gain in gains.tolist()],
                "intervals": [_ends(column, one) for one in drawn],
                "mean_interval": _ends(column, drawn.mean(axis=0)),
            }
        )
    return column, rows


def _ends(column: str, drawn: NDArray[np.float64]) -> list[float]:
    return [shown(column, end) for end in percentiles(drawn)]


def markdown(result: Mapping[str, Any]) -> str:
    """The page of a result."""
    lines = [f"# What these faces can tell of {result['task']}", "", *ABOUT.splitlines(), ""]
    for source in result["sources"]:
        lines += [f"## {source['source']}, {source['faces']:,} faces", ""]
        lines += [f"Figures are {heading(source['column'])}.", ""]
        lines += ["| | each seed | difference, each seed (95 % interval) | mean difference (95 % interval) |"]
        lines += ["|---|---|---|---:|"]
        for place, row in enumerate(source["rows"]):
            told = [f"| {row['row']}", ", ".join(f"{value:.2f}" for value in row["values"])]
            if place:
                seeds = zip(row["gains"], row["intervals"], strict=True)
                told += ["; ".join(_gain(gain, ends) for gain, ends in seeds)]
                told += [_gain(statistics.mean(row["gains"]), row["mean_interval"])]
            else:
                told += ["–", "–"]
            lines.append(" | ".join(told) + " |")
        lines.append("")
    return "\n".join([*lines, f"`{result['command']}`, commit {result['commit']}.", ""])


def _gain(gain: float, ends: Sequence[float]) -> str:
    return f"{gain:+.2f} ({ends[0]:+.2f} to {ends[1]:+.2f})"


ABOUT = """\
Differences are against the first row, above 0 where the row is the better one. Intervals are a paired bootstrap over
faces: what other faces of the same kind could have given these very networks, not what other seeds would."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("networks", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--data", action="append", required=True, metavar="SOURCE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/paired.json"))
    asked = parser.parse_args(arguments)
    named = [(name, folder) for name, _, folder in (text.partition("=") for text in asked.networks)]
    runners = [(name, open_to_score(folder)) for name, folder in named]
    sources = []
    for source in asked.data:
        packs = {runner.spec.input_px: evaluation_pack(source, runner.spec, root=data_root()) for _, runner in runners}
        answers: dict[str, list[NDArray[Any]]] = defaultdict(list)
        for name, runner in runners:
            answers[name].append(evaluate(runner, packs[runner.spec.input_px]).predictions[asked.task])
        task, labels = TASKS[asked.task], next(iter(packs.values())).labels[asked.task]
        column, rows = rows_of(task, answers, labels)
        faces = int(known(task, labels).sum())
        sources.append({"source": source, "faces": faces, "column": column, "rows": rows})
    flags = [f"--data {source}" for source in asked.data]
    result = {
        "command": " ".join(["python -m benchmarks.paired", asked.task, *flags, *(f'"{t}"' for t in asked.networks)]),
        "commit": commit(),
        "task": asked.task,
        "resamples": RESAMPLES,
        "sources": sources,
        "conditions": {"machine": cpu(), "versions": versions()},
    }
    publish(result, markdown(result), asked.out)


if __name__ == "__main__":
    main()
