"""How the weights of tasks move while a balancer learns them: the λ of TCDCN, and others.

    python -m benchmarks.task_weights "learned λ=runs/tables/balancer-learned-0/teacher" \\
        [--out benchmarks/results/task_weights.json]

Reads the `TASK.weight` columns that a training's curve.csv has under a balancer; the first point is the weights of the
recipe, where all of these balancers begin. A training is validated ten times, and oftener under

    edgeface distill balancer-learned --until teacher --set teacher.stopping.mode=all \\
        --set teacher.stopping.threshold=1e9 --set teacher.stopping.validations=100

which never stops a task: its weights are those of the training without it. Several trainings of one name are its seeds:
one panel of the picture, and a table each.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import publish
from edgeface.checkpoint import load_checkpoint
from edgeface.config import load_recipe
from edgeface.provenance import commit, cpu, versions
from edgeface.specs import Recipe

CURVE, RECIPE, _ENDING = "curve.csv", "recipe.toml", ".weight"


def paths_of(curve: str, recipe: Recipe) -> dict[str, list[tuple[int, float]]]:
    """Task to its (step, weight), from the recipe's own at step 0 on.

    Args:
        curve: Text of a curve.csv.
        recipe: What was trained.

    Raises:
        ValueError: The training had no balancer, and its curve no weights.
    """
    rows = list(csv.DictReader(curve.splitlines()))
    tasks = [task for task in recipe.tasks if rows and f"{task}{_ENDING}" in rows[0]]
    if not tasks:
        raise ValueError("no column TASK.weight: this training had no balancer")
    return {
        task: [
            (0, float(recipe.tasks[task])),
            *((int(row["step"]), float(row[f"{task}{_ENDING}"])) for row in rows),
        ]
        for task in tasks
    }


def measure(name: str, folder: Path) -> dict[str, Any]:
    """The weights of one training."""
    recipe = load_recipe(str(folder / RECIPE))
    balancer = recipe.teacher.balancer
    return {
        "name": name,
        "recipe": recipe.name,
        "balancer": balancer.name,
        "floor": balancer.floor,
        "seed": recipe.seed,
        "checkpoint": load_checkpoint(folder).sha256,
        "tasks": list(recipe.tasks),
        "weights": paths_of((folder / CURVE).read_text(encoding="utf-8"), recipe),
    }


def picture(trainings: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each name, a line for each task and seed: weight, on a logarithmic scale, by step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(training["name"] for training in trainings))
    size = (5.5 * len(names), 3.8)
    figure, panels = plt.subplots(1, len(names), figsize=size, squeeze=False, constrained_layout=True)
    for axes, name in zip(panels[0], names, strict=True):
        seeds = [training for training in trainings if training["name"] == name]
        for place, training in enumerate(seeds):
            for colour, task in enumerate(training["tasks"]):
                steps, weights = zip(*training["weights"][task], strict=True)
                axes.plot(steps, weights, color=f"C{colour}", label="" if place else task)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("weight of the task")
        axes.set_title(name if len(seeds) == 1 else f"{name}, {len(seeds)} seeds")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def ends(result: Mapping[str, Any]) -> str:
    """In a sentence for each training, how many weights ended at the floor, and from when on."""
    told = []
    for training in result["trainings"]:
        others = {task: training["weights"][task] for task in training["tasks"][1:]}
        down = [task for task, path in others.items() if path[-1][1] <= training["floor"]]
        since = [step for step, _ in training["weights"][training["tasks"][0]]]
        while down and len(since) > 1 and all(_at(others[task], since[-2]) <= training["floor"] for task in down):
            since.pop()
        told.append(
            f"{training['name']}, seed {training['seed']}: {len(down)} of {len(others)} auxiliary weights end at the "
            f"floor of {training['floor']:g}" + (f" and are there from step {since[-1]:,} on." if down else ".")
        )
    return " ".join(told)


def _at(path: Sequence[Sequence[float]], step: int) -> float:
    return next(weight for at, weight in path if at == step)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result."""
    lines = ["# How learned weights of tasks move", "", *ABOUT.splitlines(), ""]
    lines += [f"![Weights by step]({result['picture']})", ""]
    for training in result["trainings"]:
        paths = {task: training["weights"][task] for task in training["tasks"]}
        steps = [step for step, _ in next(iter(paths.values()))]
        shown = sorted({0, 1, 2, 3, 5, 10, len(steps) // 4, len(steps) // 2, len(steps) - 1} & set(range(len(steps))))
        lines += [
            f"## {training['name']}: `{training['recipe']}`, seed {training['seed']}",
            "",
            f"| step | {' | '.join(paths)} |",
            "|---:|" + "---:|" * len(paths),
            *(
                f"| {steps[place]} | " + " | ".join(f"{points[place][1]:.4g}" for points in paths.values()) + " |"
                for place in shown
            ),
            "",
        ]
    return "\n".join([*lines, f"`{result['command']}`, commit {result['commit']}.", ""])


ABOUT = """\
Zhang et al. (ECCV 2014) learn λ, the weight of each auxiliary task, by gradient descent on the weighted sum (Adam's
steps here), and do not say what keeps it positive. Its gradient is the task's loss, which is never negative, so λ can
only fall; here it is projected into [0.001, 1] after each step, and the main task keeps its weight of 1."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/task_weights.json"))
    asked = parser.parse_args(arguments)
    named = [text.partition("=") for text in asked.trainings]
    drawn = asked.out.with_suffix(".png")
    result = {
        "command": " ".join(["python -m benchmarks.task_weights", *(f'"{text}"' for text in asked.trainings)]),
        "commit": commit(),
        "picture": drawn.name,
        "trainings": [measure(name, Path(folder)) for name, _, folder in named],
        "conditions": {"machine": cpu(), "versions": versions()},
    }
    picture(result["trainings"], drawn)
    publish(result, markdown(result), asked.out)


if __name__ == "__main__":
    main()
